package api

// Where a build of the control protocol has its Dockerfile and contexts from: directories of the client's, its standard
// input, addresses, images, what other builds made.

import (
	"cmp"
	"context"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/patternmatcher/ignorefile"
	"github.com/opencontainers/go-digest"

	"keg/internal/buildcontrol"
	"keg/internal/builder"
	"keg/internal/buildsession"
	"keg/internal/fault"
	"keg/internal/image"
)

// contexts fills in the Dockerfile, the context and those with names.
func (r *reference) contexts(ctx context.Context, o *builder.Options) error {
	if err := r.mainContext(ctx, o); err != nil {
		return err
	}
	n := 0
	for name, place := range withPrefix(r.front.Attrs, "context:") {
		name, platform, limited := strings.Cut(name, "::")
		if limited {
			p, err := image.ParsePlatform(platform)
			wanted := image.Host()
			if o.Platform != nil {
				wanted = *o.Platform
			}
			if err != nil || !image.Matches(wanted, p) {
				continue
			}
		}
		n++
		c, err := r.namedContext(ctx, o, name, place, filepath.Join(r.dir, "named"+strconv.Itoa(n)))
		if err != nil {
			return err
		}
		if o.Contexts == nil {
			o.Contexts = map[string]builder.Context{}
		}
		o.Contexts[name] = c
	}
	return nil
}

func (r *reference) mainContext(ctx context.Context, o *builder.Options) error {
	a := r.front.Attrs
	from := sources{definition: cmp.Or(a["dockerfilekey"], "dockerfile"), context: "context"}
	var err error
	if from.definitionOf, err = r.sessionOf(ctx, from.definition); err != nil {
		return err
	}
	if from.contextOf, err = r.sessionOf(ctx, from.context); err != nil {
		return err
	}
	name := cmp.Or(a["filename"], "Dockerfile")
	address := a[cmp.Or(a["contextkey"], "context")]
	if def := r.front.Inputs["context"]; address == "" && def != nil {
		if address, err = addressOf(def); err != nil {
			return err
		}
	}
	if address == "" || a["dockerfilekey"] != "" {
		if err := r.approveContext(ctx, o, "local://"+from.definition); err != nil {
			return err
		}
	}
	if address == "" {
		if err := r.approveContext(ctx, o, "local://"+from.context); err != nil {
			return err
		}
		if err := fetchSession(ctx, from, r.dir, name, o, r.trace); err != nil {
			return err
		}
		o.Context, err = subdirectory(o.Context, a["contextsubdir"])
		return err
	}
	dir := filepath.Join(r.dir, "context")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := r.approveContext(ctx, o, builder.SourceIdentifier(address)); err != nil {
		return err
	}
	f, err := r.fetch(ctx, address, dir, "[internal] load remote build context")
	if err != nil {
		return err
	}
	if o.Context, err = subdirectory(cmp.Or(f.Dir, dir), a["contextsubdir"]); err != nil {
		return err
	}
	f.Dir = o.Context
	o.Dockerfile = "-"
	switch {
	case a["dockerfilekey"] != "":
		o.Dockerfile = ""
		ignore, err := fetchDefinition(ctx, from, r.dir, name, o)
		if err == nil && ignore != nil {
			err = os.WriteFile(o.Dockerfile+".dockerignore", ignore, 0o600)
		}
		return err
	case f.Text != nil:
		o.Text = f.Text
	default:
		o.Text, err = f.ReadDockerfile(name)
		if err != nil && path.Base(name) == "Dockerfile" {
			if text, e := f.ReadDockerfile(path.Join(path.Dir(name), "dockerfile")); e == nil {
				o.Text, err = text, nil
			}
		}
	}
	return err
}

// subdirectory of a context, without links on the way.
func subdirectory(dir, sub string) (string, error) {
	if sub == "" {
		return dir, nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	sub = strings.TrimPrefix(path.Clean("/"+sub), "/")
	at := ""
	for part := range strings.SplitSeq(sub, "/") {
		at = path.Join(at, part)
		if st, err := root.Lstat(at); err != nil || !st.IsDir() {
			return "", fault.Invalidf("the context has no directory %q", sub)
		}
	}
	return filepath.Join(dir, sub), nil
}

// sessionOf is the session that has a directory: bake has one for what several builds share.
func (r *reference) sessionOf(ctx context.Context, dir string) (*buildsession.Session, error) {
	id := r.front.Attrs["local-sessionid:"+dir]
	if id == "" || id == r.session.ID {
		return r.session, nil
	}
	return r.c.s.sessions.get(ctx, id)
}

// fetch puts what is at an address into a directory, as a vertex of the build.
func (r *reference) fetch(ctx context.Context, address, dir, name string) (f builder.Fetched, err error) {
	u, err := url.Parse(address)
	if err == nil && u.Host == buildsession.UploadHost {
		body, err := r.session.Upload(ctx, u)
		if err != nil {
			return f, err
		}
		defer body.Close()
		return builder.ReadContext(ctx, body, dir)
	}
	done := r.trace.vertex(name + " " + address)
	defer func() { done(err) }()
	if !builder.IsRemote(address) {
		return f, fault.Unsupportedf("cannot build from %q", address)
	}
	return builder.FetchContext(ctx, address, dir, r.c.s.o.Env)
}

// namedContext reads what a name of --build-context stands for. dir is its own, not made yet.
func (r *reference) namedContext(ctx context.Context, o *builder.Options, name, place, dir string) (c builder.Context, err error) {
	scheme, rest, ok := strings.Cut(place, ":")
	if !ok {
		return c, fault.Invalidf("invalid context specifier %s for %s", place, name)
	}
	switch scheme {
	case "docker-image":
		c.Image = strings.TrimPrefix(rest, "//")
		if _, err := image.ParseReference(c.Image); err != nil {
			return c, fault.Invalidf("context %s: %w", name, err)
		}
		return c, nil
	case "local":
		if err := r.approveContext(ctx, o, "local://"+rest); err != nil {
			return c, err
		}
		c.Dir = dir
		return c, r.localContext(ctx, name, rest, dir)
	case "oci-layout":
		if err := r.approveContext(ctx, o, "oci-layout:"+rest); err != nil {
			return c, err
		}
		c.Layout, err = r.layoutContext(ctx, o, strings.TrimPrefix(rest, "//"), dir)
		return c, err
	case "input":
		def := r.front.Inputs[rest]
		if def == nil {
			return c, fault.Invalidf("invalid input %s for %s", rest, name)
		}
		source, err := sourceOf(def)
		if err != nil {
			return c, err
		}
		if id, ok := strings.CutPrefix(source, referenceScheme); ok {
			other, err := r.c.find(id)
			if err != nil {
				return c, err
			}
			if other == r {
				return c, fault.Invalidf("context %s is the build itself", name)
			}
			c.Built = other.base(name)
			return c, nil
		}
		if place, err = addressOf(def); err != nil {
			return c, err
		}
	}
	if err := r.approveContext(ctx, o, builder.SourceIdentifier(place)); err != nil {
		return c, err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return c, err
	}
	f, err := r.fetch(ctx, place, dir, "[context "+name+"]")
	if err == nil && f.Text != nil { // no archive: one file
		err = os.WriteFile(filepath.Join(dir, "context"), f.Text, 0o644)
	}
	c.Dir = cmp.Or(f.Dir, dir)
	return c, err
}

// localContext has the client send a directory, without what its ignore file names.
func (r *reference) localContext(ctx context.Context, name, local, dir string) error {
	session, err := r.sessionOf(ctx, local)
	if err != nil {
		return err
	}
	ignore, err := fetchIgnore(ctx, session, local, dir+"-ignore")
	if err != nil {
		return err
	}
	patterns, err := ignorefile.ReadAll(strings.NewReader(string(ignore)))
	if err != nil {
		return fault.Invalidf("failed parsing .dockerignore of the context %s: %w", name, err)
	}
	root, err := fetchFiles(ctx, session, buildsession.Select{Dir: local, Exclude: patterns}, dir, r.trace.transfer("[context "+name+"] load from client"))
	if err != nil {
		return err
	}
	return root.Close()
}

// layoutContext copies an OCI layout of the client's: STORE@DIGEST.
func (r *reference) layoutContext(ctx context.Context, o *builder.Options, place, dir string) (string, error) {
	store, d, ok := strings.Cut(place, "@")
	if !ok {
		return "", fault.Invalidf("oci-layout reference %q has no digest", place)
	}
	store, _, _ = strings.Cut(store, ":") // a tag
	wanted, err := platforms(r.front.Attrs["platform"])
	if err != nil {
		return "", err
	}
	if len(wanted) == 0 {
		wanted = []image.Platform{image.Host()}
	}
	if err := stage(ctx, buildsession.Blobs{Session: r.session, Store: "oci:" + store}, dir, digest.Digest(d), wanted); err != nil {
		return "", err
	}
	return dir + "@" + d, nil
}

// sourceOf is the one source of a definition.
func sourceOf(def []byte) (string, error) {
	ops, err := buildcontrol.ParseSources(def)
	if err != nil {
		return "", err
	}
	if len(ops) != 1 {
		return "", errLLB()
	}
	return ops[0].Identifier, nil
}

// addressOf is a definition as the address of a context: a git repository or what a server sends.
func addressOf(def []byte) (string, error) {
	ops, err := buildcontrol.ParseSources(def)
	if err != nil {
		return "", err
	}
	if len(ops) != 1 {
		return "", errLLB()
	}
	id, full := ops[0].Identifier, ops[0].Attrs["git.fullurl"]
	switch {
	case strings.HasPrefix(id, "git://"):
		_, fragment, ok := strings.Cut(id, "#")
		if ok {
			fragment = "#" + fragment
		}
		if full == "" {
			full, _, _ = strings.Cut("https://"+strings.TrimPrefix(id, "git://"), "#")
		}
		return full + fragment, nil
	case strings.HasPrefix(id, "http://"), strings.HasPrefix(id, "https://"):
		return id, nil
	}
	return "", fault.Unsupportedf("a definition of %q is no context: want a git repository, an address or the target of another build", id)
}
