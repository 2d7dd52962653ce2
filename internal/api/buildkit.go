package api

// POST /build?version=2: the build of a client that speaks as with BuildKit. Context and
// Dockerfile come from its session (or as version 1 has them), progress goes out as
// BuildKit's.

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/patternmatcher/ignorefile"

	"keg/internal/builder"
	"keg/internal/buildsession"
	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/registry"
)

// Values of remote, and what a buildid begins with that brings a context.
const (
	clientSession = "client-session"
	uploadRequest = "upload-request"
)

func (s *Server) buildInSession(w *reply, r *request) (err error) {
	id := r.query.Get("buildid")
	if upload, ok := strings.CutPrefix(id, uploadRequest+":"); ok {
		return s.uploads.bring(r.Context(), upload, r.Body)
	}
	o, err := r.buildOptions()
	if err == nil {
		err = r.output(&o)
	}
	if err != nil {
		return err
	}
	ctx, done := s.builds.begin(r.Context(), id)
	defer done()
	dir, remove, err := makeScratch(s.o.Scratch)
	if err != nil {
		return err
	}
	defer remove()
	e, err := s.accounts(r)
	if err != nil {
		return err
	}
	out := &lines{progress: progress{w: w}, quiet: r.flag("q")}
	out.trace = newTrace(id+dir, out.tell)
	remote := r.query.Get("remote")
	sid := r.query.Get("session")
	if sid == "" && remote == clientSession {
		return fault.Invalidf("a context in the client's session needs the session's id")
	}
	if sid != "" && (remote == clientSession || s.sessions.has(sid)) {
		session, err := s.sessions.get(ctx, sid)
		if err != nil {
			return err
		}
		o.Caller = caller{session}
		if s.o.Asking != nil && e == s.engine { // the request names no accounts
			e = s.o.Asking(caller{session}.account)
		}
		if remote == clientSession {
			if err := fetchSession(ctx, sources{session, "dockerfile", session, "context"}, dir, r.dockerfile(), &o, out.trace); err != nil {
				return out.end(err)
			}
		}
	}
	if remote != clientSession {
		if err := s.sentContext(ctx, r, dir, &o); err != nil {
			return err
		}
	}
	res, err := e.Build(ctx, o, out.event)
	if err != nil {
		return out.end(err)
	}
	if !o.NoImage {
		out.image(string(res.ConfigID))
	}
	return nil
}

// output reads what is to become of the build; only images are made on this way.
func (r *request) output(o *builder.Options) error {
	text := r.query.Get("outputs")
	if text == "" {
		return nil
	}
	var list []struct{ Type string }
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return fault.Invalidf("error reading outputs: %w", err)
	}
	if len(list) > 1 {
		return fault.Invalidf("multiple outputs not supported")
	}
	for _, out := range list {
		switch out.Type {
		case "moby", "docker", "image":
		case "cacheonly":
			o.NoImage = true
		default:
			return fault.Unsupportedf("output of type %q is not supported on the API; use keg build --output", out.Type)
		}
	}
	return nil
}

// sentContext takes a context that is not in the session.
func (s *Server) sentContext(ctx context.Context, r *request, dir string, o *builder.Options) (err error) {
	body := io.Reader(r.Body)
	if r.query.Get("remote") == uploadRequest {
		up, release, err := s.uploads.take(ctx, r.query.Get("buildid"))
		if err != nil {
			return err
		}
		defer release()
		body = up
	}
	o.Context = dir
	o.Text, err = r.buildContext(ctx, body, dir)
	return err
}

// sources are where a client has the Dockerfile and the context: sessions, and the names of directories there.
type sources struct {
	definitionOf *buildsession.Session
	definition   string
	contextOf    *buildsession.Session
	context      string
}

// fetchSession has the client send the Dockerfile, the ignore file and the context, to
// directories of their own.
func fetchSession(ctx context.Context, from sources, dir, name string, o *builder.Options, out *trace) error {
	ignore, err := fetchDefinition(ctx, from, dir, name, o)
	if err == nil && ignore == nil {
		ignore, err = fetchIgnore(ctx, from.contextOf, from.context, filepath.Join(dir, "ignore"))
	}
	if err != nil {
		return err
	}
	patterns, err := ignorefile.ReadAll(strings.NewReader(string(ignore)))
	if err != nil {
		return fault.Invalidf("error reading .dockerignore: %w", err)
	}
	o.Context = filepath.Join(dir, "context")
	if err := os.Mkdir(o.Context, 0o755); err != nil {
		return err
	}
	o.Fetch = (&fetching{from, patterns, o.Context, out, nil, false}).fetch
	return os.WriteFile(o.Dockerfile+".dockerignore", ignore, 0o600)
}

// fetching brings what a build reads of its context, once it is known.
type fetching struct {
	from     sources
	patterns []string // what is ignored
	dir      string
	out      *trace
	have     []string
	all      bool
}

// fetch is called again for other platforms, which mostly read the same.
func (f *fetching) fetch(ctx context.Context, paths []string) error {
	missing := func(p string) bool { return !slices.Contains(f.have, p) }
	if f.all || paths != nil && !slices.ContainsFunc(paths, missing) {
		return nil
	}
	f.all, f.have = paths == nil, append(f.have, paths...)
	sel := buildsession.Select{Dir: f.from.context, Follow: paths, Exclude: f.patterns}
	return receiveFiles(ctx, f.from.contextOf, sel, f.dir, f.out.transfer("[internal] receive build context"))
}

// fetchDefinition has the client send the Dockerfile, and returns the ignore file beside it; nil: there is none.
func fetchDefinition(ctx context.Context, from sources, dir, name string, o *builder.Options) (ignore []byte, err error) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	files := []string{name, name + ".dockerignore"}
	if path.Base(name) == "Dockerfile" {
		files = append(files, path.Join(path.Dir(name), "dockerfile"))
	}
	definition, err := fetchFiles(ctx, from.definitionOf, buildsession.Select{Dir: from.definition, Follow: files}, filepath.Join(dir, "definition"), nil)
	if err != nil {
		return nil, err
	}
	defer definition.Close()
	text, err := readDockerfile(definition, name, "failed to read dockerfile: open "+name+": no such file or directory")
	if err == nil {
		ignore, err = readIgnore(definition, name+".dockerignore")
	}
	if err != nil {
		return nil, err
	}
	// What the client calls its files must not lead the builder, which goes by paths, to ours.
	own := filepath.Join(dir, "own")
	o.Dockerfile = filepath.Join(own, filepath.Base("/"+name))
	if err = os.Mkdir(own, 0o700); err == nil {
		err = os.WriteFile(o.Dockerfile, text, 0o600)
	}
	return ignore, err
}

// fetchIgnore is the ignore file of a directory of the client's; nil: there is none.
func fetchIgnore(ctx context.Context, session *buildsession.Session, name, dir string) ([]byte, error) {
	root, err := fetchFiles(ctx, session, buildsession.Select{Dir: name, Follow: []string{".dockerignore"}}, dir, nil)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return readIgnore(root, ".dockerignore")
}

// maxIgnore is what an ignore file may have.
const maxIgnore = 4 << 20

// readIgnore returns nil when there is none.
func readIgnore(root *os.Root, name string) ([]byte, error) {
	f, err := root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.Invalidf("read %s: %w", name, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxIgnore+1))
	if err == nil && len(b) > maxIgnore {
		err = errors.New("it is larger than 4 MiB")
	}
	if err != nil {
		return nil, fault.Invalidf("read %s: %w", name, err)
	}
	return append(b, '\n'), nil
}

// fetchFiles makes a directory of what is selected. out is told how much came; nil: nobody.
func fetchFiles(ctx context.Context, session *buildsession.Session, sel buildsession.Select, dir string, out *transfer) (*os.Root, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	if err := receiveFiles(ctx, session, sel, dir, out); err != nil {
		return nil, err
	}
	return os.OpenRoot(dir)
}

// receiveFiles fetches into a directory that is there.
func receiveFiles(ctx context.Context, session *buildsession.Session, sel buildsession.Select, dir string, out *transfer) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	var progress func(int64)
	finish := func(error) {}
	if out != nil {
		progress, finish = out.progress, out.finish
	}
	in := &incoming{unpacking: unpacking{root: root}}
	err = session.Files(ctx, sel, in, progress)
	if err == nil {
		err = in.finish()
	}
	finish(err)
	return err
}

// incoming unpacks files as a session sends them.
type incoming struct {
	unpacking
	links []*tar.Header // other names, made when all files are there
}

func headerOf(st buildsession.Stat) *tar.Header {
	h := &tar.Header{Name: st.Path, Linkname: st.Link, ModTime: st.ModTime, Mode: int64(st.Mode.Perm())}
	for bit, mode := range map[int64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if st.Mode&mode != 0 {
			h.Mode |= bit
		}
	}
	return h
}

// Add makes what has no content. Sockets, pipes and devices are not taken: the rest of the
// context does not suffer from them.
func (in *incoming) Add(st buildsession.Stat) error {
	h := headerOf(st)
	switch st.Mode.Type() {
	case fs.ModeDir:
		h.Typeflag = tar.TypeDir
	case fs.ModeSymlink:
		h.Typeflag = tar.TypeSymlink
	case 0:
		h.Typeflag = tar.TypeLink
		in.links = append(in.links, h)
		return nil
	default:
		return nil
	}
	return in.unpack(h)
}

func (in *incoming) unpack(h *tar.Header) error {
	if err := in.entry(h, nil); err != nil {
		return fault.Invalidf("unpack %q of the context: %w", h.Name, err)
	}
	return nil
}

// Create makes a file that gets its content.
func (in *incoming) Create(st buildsession.Stat) (io.WriteCloser, error) {
	err := in.clear(st.Path)
	var f *unpacked
	if err == nil {
		f, err = in.create(st.Path, headerOf(st))
	}
	if err != nil {
		return nil, fault.Invalidf("unpack %q of the context: %w", st.Path, err)
	}
	return f, nil
}

func (in *incoming) finish() error {
	for _, h := range in.links {
		if err := in.unpack(h); err != nil {
			return err
		}
	}
	return in.unpacking.finish()
}

// caller is who has a session, as the builder and the registry ask.
type caller struct{ *buildsession.Session }

func (c caller) SSH(ctx context.Context, id string) (builder.Agent, bool) {
	if !c.HasAgent(ctx, id) {
		return nil, false
	}
	return func() (net.Conn, error) { return c.Agent(ctx, id), nil }, true
}

func (c caller) account(ctx context.Context, host string) (registry.Credentials, error) {
	if host == image.DefaultRegistry {
		host = "https://index.docker.io/v1/" // Docker's name of it
	}
	name, secret, err := c.Credentials(ctx, host)
	if err != nil || name != "" {
		return registry.Credentials{Username: name, Password: secret}, err
	}
	return registry.Credentials{IdentityToken: secret}, nil
}

// lines tells a build as BuildKit does, in lines of JSON.
type lines struct {
	progress
	*trace
	quiet bool // only the id of the image, as a stream
}

// Ids of messages.
const (
	idTrace = "moby.buildkit.trace"
	idImage = "moby.image.id"
)

func (l *lines) tell(m buildsession.Trace) { l.identified(idTrace, m.Encode()) }

func (l *lines) identified(id string, v any) {
	if l.quiet {
		return
	}
	b, err := json.Marshal(v)
	if err != nil || string(b) == "null" { // an event that says nothing new; clients take aux for granted
		return
	}
	raw := json.RawMessage(b)
	l.send(jsonstream.Message{ID: id, Aux: &raw})
}

func (l *lines) image(id string) {
	if l.quiet {
		l.send(jsonstream.Message{Stream: id + "\n"})
	}
	l.identified(idImage, build.Result{ID: id})
}
