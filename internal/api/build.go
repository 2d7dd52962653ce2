package api

// POST /build: a context as a tar (or a URL of one), options in the query, progress as
// lines of JSON in the words of Docker's classic builder.

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/jsonstream"
	dregistry "github.com/moby/moby/api/types/registry"

	"keg/internal/builder"
	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/registry"
)

// builds are those under way that can be cancelled by id.
type builds struct {
	mu sync.Mutex
	m  map[string]context.CancelFunc
}

func (b *builds) begin(ctx context.Context, id string) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	if id == "" {
		return ctx, cancel
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.m == nil {
		b.m = map[string]context.CancelFunc{}
	}
	b.m[id] = cancel
	return ctx, func() {
		cancel()
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.m, id)
	}
}

func (s *Server) buildCancel(w *reply, r *request) error {
	id := r.query.Get("id")
	if id == "" {
		return fault.Invalidf("build ID not provided")
	}
	s.builds.mu.Lock()
	cancel := s.builds.m[id]
	s.builds.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	return w.done(nil)
}

// maxDockerfile is what a Dockerfile may have.
const maxDockerfile = 4 << 20

func (s *Server) build(w *reply, r *request) error {
	if r.query.Get("version") == "2" {
		return s.buildInSession(w, r)
	}
	if r.query.Get("remote") == clientSession {
		return fault.Invalidf("a context in the client's session goes with version=2")
	}
	o, err := r.buildOptions()
	if err != nil {
		return err
	}
	e, err := s.accounts(r)
	if err != nil {
		return err
	}
	ctx, done := s.builds.begin(r.Context(), r.query.Get("buildid"))
	defer done()
	dir, remove, err := makeScratch(s.o.Scratch)
	if err != nil {
		return err
	}
	defer remove()
	o.Context = dir
	if o.Text, err = r.buildContext(ctx, r.Body, dir); err != nil {
		return err
	}
	out := &classic{progress: progress{w: w}, quiet: r.flag("q"), bases: map[int]bool{}}
	res, err := e.Build(ctx, o, out.event)
	if err != nil {
		return out.fail(err)
	}
	out.finish(res, o.Tags)
	return nil
}

// buildContext unpacks the context, from the body or from where remote says, and returns the Dockerfile.
func (r *request) buildContext(ctx context.Context, body io.Reader, dir string) ([]byte, error) {
	remote := r.query.Get("remote")
	if remote == uploadRequest {
		remote = ""
	}
	if remote != "" {
		f, err := fetchContext(ctx, remote)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		body = f
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	text, err := unpackContext(root, body, remote != "")
	if err != nil || text != nil {
		return text, err
	}
	return readDockerfile(root, r.dockerfile(), "Cannot locate specified Dockerfile: "+r.dockerfile())
}

func (r *request) dockerfile() string { return cmp.Or(r.query.Get("dockerfile"), "Dockerfile") }

// readDockerfile says missing when there is none.
func readDockerfile(root *os.Root, name, missing string) ([]byte, error) {
	// Below the root whatever the name and the links of the context say.
	f, err := root.Open(strings.TrimPrefix(path.Clean("/"+name), "/"))
	if errors.Is(err, os.ErrNotExist) && name == "Dockerfile" {
		f, err = root.Open("dockerfile")
	}
	if err != nil {
		return nil, fault.As(fault.Invalid, errors.New(missing))
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxDockerfile+1))
	switch {
	case err != nil:
		return nil, fault.Invalidf("read the Dockerfile %s of the context: %w", name, err)
	case len(b) > maxDockerfile:
		return nil, fault.Invalidf("the Dockerfile %s is larger than 4 MiB", name)
	case len(b) == 0:
		return nil, fault.Invalidf("the Dockerfile (%s) cannot be empty", name)
	case len(bytes.TrimSpace(b)) == 0:
		return nil, fault.Invalidf("dockerfile parse error on line 1: file with no instructions")
	}
	return b, nil
}

// fetchContext gets a context from the web.
func fetchContext(ctx context.Context, url string) (io.ReadCloser, error) {
	if !strings.HasPrefix(url, "https://") && !strings.HasPrefix(url, "http://") || strings.HasSuffix(url, ".git") || strings.Contains(url, ".git#") {
		return nil, fault.Unsupportedf("cannot build from %q: clone the repository and send it as the context", url)
	}
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fault.Invalidf("invalid remote %q: %w", url, err)
	}
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		return nil, fault.Unavailablef("fetch the context: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fault.Invalidf("fetch the context %s: the server answers %s", url, resp.Status)
	}
	return resp.Body, nil
}

// buildOptions reads the query.
func (r *request) buildOptions() (o builder.Options, err error) {
	q := r.query
	if r.flag("squash") {
		return o, fault.Unsupportedf("squash is not supported: use a build of several stages")
	}
	o = builder.Options{Dockerfile: "-", Target: q.Get("target"), NoCache: r.flag("nocache"), Pull: r.flag("pull"), Network: q.Get("networkmode")}
	if o.Network == "default" || o.Network == "bridge" {
		o.Network = ""
	}
	if o.ShmSize, _, err = r.number("shmsize"); err != nil {
		return o, err
	}
	for _, hosts := range q["extrahosts"] {
		o.ExtraHosts = append(o.ExtraHosts, strings.Split(hosts, ",")...)
	}
	for key, v := range map[string]any{"buildargs": &o.Args, "labels": &o.Labels} {
		if text := q.Get(key); text != "" {
			if err := json.Unmarshal([]byte(text), v); err != nil {
				return o, fault.Invalidf("error reading %s: %w", key, err)
			}
		}
	}
	for _, t := range q["t"] {
		if t == "" {
			continue
		}
		ref, err := image.ParseReference(t)
		if err != nil {
			return o, fault.As(fault.Invalid, err)
		}
		if ref.Digest != "" {
			return o, fault.Invalidf("invalid tag %q: a tag cannot have a digest", t)
		}
		o.Tags = append(o.Tags, ref)
	}
	o.Platform, err = r.platform()
	return o, err
}

// accounts is the engine for whom a build speaks: X-Registry-Config, by registry.
func (s *Server) accounts(r *request) (Engine, error) {
	h := r.Header.Get("X-Registry-Config")
	if h == "" || s.o.As == nil {
		return s.engine, nil
	}
	var m map[string]dregistry.AuthConfig
	b, err := base64.URLEncoding.DecodeString(h)
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		return nil, fault.Invalidf("invalid X-Registry-Config header: %w", err)
	}
	var as []registry.Account
	for host, a := range m {
		if a.Username != "" || a.IdentityToken != "" {
			as = append(as, registry.Account{Registry: host,
				Credentials: registry.Credentials{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken}})
		}
	}
	if len(as) == 0 {
		return s.engine, nil
	}
	return s.o.As(as...), nil
}

// classic tells a build in the words of the classic builder.
type classic struct {
	progress
	quiet bool
	bases map[int]bool // vertices of FROM: their image is here, which is no cache
}

func (c *classic) say(format string, args ...any) {
	if !c.quiet {
		c.send(jsonstream.Message{Stream: fmt.Sprintf(format, args...)})
	}
}

func (c *classic) event(e builder.Event) {
	switch {
	case e.Name != "":
		if step, rest, ok := stepOf(e.Name); ok {
			c.say("Step %s : %s\n", step, rest)
			if strings.HasPrefix(rest, "FROM ") {
				c.bases[e.Vertex] = true
			}
		}
	case e.Cached && c.bases[e.Vertex]:
	case e.Cached:
		c.say(" ---> Using cache\n")
	case len(e.Log) > 0:
		c.say("%s", e.Log)
	}
}

// stepOf reads "[build 2/5] RUN make".
func stepOf(name string) (step, rest string, ok bool) {
	head, rest, ok := strings.Cut(name, "] ")
	head, bracket := strings.CutPrefix(head, "[")
	if !ok || !bracket {
		return "", "", false
	}
	words := strings.Fields(head)
	if len(words) == 0 {
		return "", "", false
	}
	step = words[len(words)-1]
	var i, n int
	if k, err := fmt.Sscanf(step, "%d/%d", &i, &n); k != 2 || err != nil {
		return "", "", false
	}
	return step, rest, true
}

func (c *classic) fail(err error) error {
	code := 0
	var exit *builder.ExitError
	if errors.As(err, &exit) {
		code = exit.Code
	}
	if !c.w.begun && code == 0 {
		return err
	}
	text := err.Error()
	if exit != nil { // the classic builder's words, which scripts read
		text = fmt.Sprintf("The command '%s' returned a non-zero code: %d", strings.Join(exit.Args, " "), code)
	}
	c.send(message{Message: jsonstream.Message{Error: &jsonstream.Error{Code: code, Message: text}}, ErrorText: text})
	return nil
}

func (c *classic) finish(res *builder.Result, tags []image.Reference) {
	id := res.ConfigID
	for _, text := range res.Warnings {
		c.say("[Warning] %s\n", text)
	}
	c.aux(build.Result{ID: string(id)})
	if c.quiet {
		c.send(jsonstream.Message{Stream: string(id) + "\n"})
		return
	}
	c.say("Successfully built %s\n", image.ShortID(string(id)))
	for _, t := range tags {
		c.say("Successfully tagged %s\n", t.Familiar())
	}
}
