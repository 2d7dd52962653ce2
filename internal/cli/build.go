// keg build.

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"keg/internal/builder"
	"keg/internal/engine"
	"keg/internal/image"
)

type buildFlags struct {
	file, target, progress, iidfile, network                       string
	platforms, outputs, attests, cacheFrom, cacheTo, ssh, contexts []string
	tags, args, labels, hosts, noCacheFilter, secrets              []string
	noCache, pull, quiet, explain, push, reproducible, verify      bool
	shmSize                                                        int64
	provenance, sbom, metadata                                     string
	annotations, allow                                             []string
	check, call, onError                                           string
	ulimits                                                        ulimitValue
	limits                                                         builder.Limits
	load                                                           bool
	builderName                                                    string
	refused                                                        map[string]string
}

func newBuild(a *app) *cobra.Command {
	o := &buildFlags{progress: firstOf(a.env["BUILDKIT_PROGRESS"], "auto")}
	c := &cobra.Command{
		Use:  "build [OPTIONS] PATH | URL | -",
		Args: exactArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		RunE: func(c *cobra.Command, args []string) error {
			return a.build1(c.Context(), args[0], o)
		},
	}
	o.bind(c.Flags())
	return c
}

func (o *buildFlags) bind(fs *pflag.FlagSet) {
	fs.Var(newList(&o.hosts, checkExtraHost), "add-host", "Add a custom host-to-IP mapping (host:ip)")
	fs.StringSliceVar(&o.allow, "allow", nil, `Allow extra privileged entitlement (e.g., "network.host", "security.insecure")`)
	fs.Var(newList(&o.annotations, checkLabel), "annotation", "Add annotation to the image")
	fs.StringVar(&o.metadata, "metadata-file", "", "Write build result metadata to a file")
	fs.Var(&o.ulimits, "ulimit", "Ulimit options")
	fs.Var(newList(&o.args, checkBuildArg), "build-arg", "Set build-time variables")
	fs.BoolVar(&o.explain, "explain", false, "Say of each step that ran which input differed from the last time")
	fs.StringVar(&o.check, "check", "", `Look for mistakes instead of building ("error": fail when there are any, "json": print JSON)`)
	fs.Lookup("check").NoOptDefVal = "warn"
	fs.StringVar(&o.call, "call", "build", `Set method for evaluating build ("build", "check")`)
	fs.StringVar(&o.onError, "on-error", "", `What to do when a RUN fails ("shell": open one in the state that it left)`)
	fs.StringVarP(&o.file, "file", "f", "", `Name of the Dockerfile (default: "PATH/Dockerfile"); "-" reads it from stdin`)
	fs.StringVar(&o.iidfile, "iidfile", "", "Write the image ID to a file")
	fs.Var(newList(&o.labels, checkLabel), "label", "Set metadata for an image")
	fs.StringVar(&o.network, "network", "", `Networking mode of RUN instructions ("default", "host", "none")`)
	fs.BoolVar(&o.noCache, "no-cache", false, "Do not use cache when building the image")
	fs.StringSliceVar(&o.noCacheFilter, "no-cache-filter", nil, "Do not cache these stages")
	fs.StringSliceVar(&o.platforms, "platform", nil, "Set target platforms for build, as one image")
	fs.StringArrayVarP(&o.outputs, "output", "o", nil, `Output destination (format: "type=local,dest=path")`)
	fs.BoolVar(&o.push, "push", false, `Push the image when it is built (short for "--output type=registry")`)
	fs.StringArrayVar(&o.contexts, "build-context", nil, `Additional build contexts (e.g., "name=path", "name=docker-image://image", "name=oci-layout://path:tag")`)
	fs.StringArrayVar(&o.cacheFrom, "cache-from", nil, `External cache sources (e.g., "user/app:cache", "type=local,src=path/to/dir")`)
	fs.StringArrayVar(&o.cacheTo, "cache-to", nil, `Cache export destinations (e.g., "type=registry,ref=user/app:cache,mode=max", "type=local,dest=path/to/dir")`)
	fs.StringArrayVar(&o.attests, "attest", nil, `Attestation parameters (format: "type=provenance,mode=max")`)
	fs.StringVar(&o.progress, "progress", o.progress, `Type of progress output ("auto", "plain", "tty", "quiet")`)
	fs.BoolVar(&o.pull, "pull", false, "Always attempt to pull newer versions of the base images")
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "Suppress the build output and print the image ID on success")
	fs.StringArrayVar(&o.secrets, "secret", nil, `Secret to expose to the build (format: "id=mysecret[,src=/local/secret]" or "id=mysecret,env=NAME")`)
	fs.StringArrayVar(&o.ssh, "ssh", nil, `SSH agent socket or keys to expose to the build (format: "default|<id>[=<socket>|<key>[,<key>]]")`)
	fs.Var(&bytesValue{p: &o.shmSize}, "shm-size", "Size of /dev/shm of RUN instructions")
	fs.VarP(newList(&o.tags, nil), "tag", "t", `Name and optionally a tag of the image ("name:tag")`)
	fs.BoolVar(&o.reproducible, "reproducible", false, "Same sources, same digests: files and image get the time of the git commit, or SOURCE_DATE_EPOCH")
	fs.BoolVar(&o.verify, "verify", false, "Build twice without cache and name the first file that differs")
	fs.StringVar(&o.target, "target", "", "Set the target stage to build")
	fs.BoolVar(&o.load, "load", false, `Keep the image here beside other outputs (short for "--output type=docker")`)
	o.bindLimits(fs)
	bindBuilder(fs, &o.builderName)
	// Said by scripts, and without a meaning here: the context is read in place, and no containers are left over.
	for _, name := range []string{"rm", "force-rm", "compress"} {
		fs.Bool(name, true, "")
		fs.Lookup(name).Hidden = true
	}
	o.refuse(fs)
	fs.StringVar(&o.provenance, "provenance", "", `Shorthand for "--attest=type=provenance"`)
	fs.StringVar(&o.sbom, "sbom", "", `Shorthand for "--attest=type=sbom"`)
	fs.Lookup("provenance").NoOptDefVal, fs.Lookup("sbom").NoOptDefVal = "true", "true"
}

func checkBuildArg(s string) (string, error) {
	if k, _, _ := strings.Cut(s, "="); k == "" {
		return "", fmt.Errorf("invalid build-arg: %q", s)
	}
	return s, nil
}

// options makes the request of the flags; clean removes what was made for it.
func (a *app) buildOptions(ctx context.Context, dir string, o *buildFlags) (req builder.Options, clean func(), err error) {
	clean = func() {}
	req = builder.Options{
		Context: dir, Dockerfile: o.file, Target: o.target, Env: a.env, Labels: keyValues(o.labels),
		NoCache: o.noCache, NoCacheFilter: o.noCacheFilter, Pull: o.pull, ExtraHosts: o.hosts, ShmSize: o.shmSize, Limits: o.limits,
		Args: map[string]*string{},
	}
	if o.network != "default" {
		req.Network = o.network
	}
	for k, v := range a.proxyEnv() {
		req.Args[k] = &v
	}
	for _, s := range o.args {
		k, v, has := strings.Cut(s, "=")
		if has {
			req.Args[k] = &v
		} else {
			req.Args[k] = nil
		}
	}
	for _, t := range o.tags {
		ref, err := image.ParseReference(t)
		if err != nil {
			return req, clean, fmt.Errorf("invalid tag %q: %w", t, err)
		}
		if ref.Digest != "" {
			return req, clean, fmt.Errorf("invalid tag %q: a tag cannot have a digest", t)
		}
		req.Tags = append(req.Tags, ref)
	}
	if len(o.platforms) == 0 && a.env["DOCKER_DEFAULT_PLATFORM"] != "" {
		o.platforms = []string{a.env["DOCKER_DEFAULT_PLATFORM"]}
	}
	if req.Secrets, err = a.buildSecrets(o.secrets); err != nil {
		return req, clean, err
	}
	if req.SSH, err = a.buildAgents(o.ssh); err != nil {
		return req, clean, err
	}
	if err := o.grant(&req); err != nil {
		return req, clean, err
	}
	if clean, err = a.buildContext(ctx, &req, dir); err != nil {
		return req, clean, err
	}
	more, err := a.namedContexts(ctx, &req, o.contexts)
	first := clean
	return req, func() { first(); more() }, err
}

// grant sets what RUN may do beyond its box. What is not known is refused.
func (o *buildFlags) grant(req *builder.Options) error {
	for _, name := range o.allow {
		switch name {
		case "security.insecure":
			req.Insecure = true
		case "network.host":
			req.HostNetwork = true
		default:
			return fmt.Errorf("invalid --allow %q: want security.insecure or network.host", name)
		}
	}
	for _, u := range o.ulimits.list() {
		req.Ulimits = append(req.Ulimits, builder.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	for _, s := range o.annotations {
		k, v, _ := strings.Cut(s, "=")
		switch kind, name, typed := strings.Cut(k, ":"); {
		case !typed:
		case kind == "manifest":
			k = name
		default:
			return fmt.Errorf("invalid --annotation %q: an image of one platform has annotations of the manifest only", s)
		}
		if req.Annotations == nil {
			req.Annotations = map[string]string{}
		}
		req.Annotations[k] = v
	}
	return nil
}

// buildSecrets reads what --secret names: a file, else a variable of that id or name.
func (a *app) buildSecrets(specs []string) (map[string][]byte, error) {
	secrets := map[string][]byte{}
	for _, s := range specs {
		p := keyValues(strings.Split(s, ","))
		id := firstOf(p["id"], filepath.Base(firstOf(p["src"], p["source"])))
		if p["id"] == "" && firstOf(p["src"], p["source"]) == "" {
			return nil, fmt.Errorf("invalid --secret %q: want id=NAME[,src=FILE] or id=NAME,env=VARIABLE", s)
		}
		file := firstOf(p["src"], p["source"])
		if v, ok := a.lookup(firstOf(p["env"], id)); file == "" && ok {
			secrets[id] = []byte(v)
			continue
		}
		if p["env"] != "" {
			return nil, fmt.Errorf("--secret %q: the variable %s is not set", s, p["env"])
		}
		b, err := os.ReadFile(firstOf(file, id))
		if err != nil {
			return nil, fmt.Errorf("--secret %q: %w", s, err)
		}
		secrets[id] = b
	}
	return secrets, nil
}

// buildPrinter shows the progress as --progress says.
func (a *app) buildPrinter(o *buildFlags) (*builder.Printer, error) {
	p := builder.PrintOptions{Explain: o.explain, Now: a.now}
	w := a.err
	switch o.progress {
	case "plain":
	case "tty":
		p.Live, w = true, a.rawErr
	case "auto":
		if a.errTTY {
			p.Live, w = true, a.rawErr
		}
	case "quiet", "none":
		p.Quiet = true
	default:
		return nil, failf("invalid progress type %q: must be one of \"auto\", \"plain\", \"tty\" or \"quiet\"", o.progress)
	}
	p.Quiet = p.Quiet || o.quiet
	return builder.NewPrinter(w, p), nil
}

func (a *app) build1(ctx context.Context, dir string, o *buildFlags) error {
	if err := o.refusal(); err != nil {
		return failf("ERROR: %v", err)
	}
	req, clean, err := a.buildRequest(ctx, dir, o)
	defer func() { clean() }()
	if err != nil {
		return failf("ERROR: %v", err)
	}
	how, err := o.checks()
	if err != nil {
		return err
	}
	if o.onError != "" && o.onError != "shell" {
		return failf("invalid --on-error %q: want shell", o.onError)
	}
	show, err := a.buildPrinter(o)
	if err != nil {
		return err
	}
	eng, err := a.engine()
	if err != nil {
		return err
	}
	if how != nil {
		return a.checkBuild(ctx, eng, req.Options, *how)
	}
	if o.verify {
		err := eng.Verify(ctx, req.Options, show.Event)
		show.Close()
		if err != nil {
			return buildError(ctx, err)
		}
		fmt.Fprintln(a.out, "reproducible: two builds without cache gave the same image")
		return nil
	}
	failed := ""
	if o.onError == "shell" {
		req.Failed = func(ctx context.Context, f engine.FailedStep) { failed = a.lookAround(ctx, f, show) }
	}
	res, err := eng.BuildTo(ctx, req, show.Event)
	show.Close()
	if err != nil {
		if failed != "" {
			fmt.Fprintln(a.err, failed)
		}
		return buildError(ctx, err)
	}
	return a.tellBuild(o, req, res)
}

// tellBuild writes what scripts ask for of a finished build.
func (a *app) tellBuild(o *buildFlags, req engine.BuildRequest, res *engine.Built) error {
	id := res.ConfigID.String()
	for _, w := range res.Warnings {
		fmt.Fprintln(a.err, "WARNING:", w)
	}
	a.advise(o, res.Advice)
	if id != "" && (o.quiet || o.progress == "quiet") {
		fmt.Fprintln(a.out, id)
	}
	if o.metadata != "" {
		if err := writeMetadata(o.metadata, res, req.Tags); err != nil {
			return failf("write the metadata: %v", err)
		}
	}
	if o.iidfile != "" {
		if err := os.WriteFile(o.iidfile, []byte(id), 0o666); err != nil {
			return failf("write the image ID: %v", err)
		}
	}
	return nil
}

// muchTime is what an order of lines must have cost to be worth a word that nobody asked for.
const muchTime = 3 * time.Second

// advise tells what another order of lines would have saved.
func (a *app) advise(o *buildFlags, all []builder.Advice) {
	var saved time.Duration
	for _, x := range all {
		saved += x.Saved
	}
	if !o.explain && (saved < muchTime || o.quiet || o.progress == "quiet") {
		return
	}
	for _, x := range all {
		fmt.Fprintf(a.err, "\nADVICE: %s\n%s", oneLine(x.Text), x.Excerpt)
	}
}

// buildError puts the lines of the Dockerfile that are meant before the sentence.
func buildError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	var at *builder.Error
	if errors.As(err, &at) && at.Excerpt != "" {
		return failf("%sERROR: failed to build: failed to solve: %v", at.Excerpt, err)
	}
	return failf("ERROR: failed to build: failed to solve: %v", err)
}
