package api

// The build behind a reference. It is made when somebody needs it: another build that stands on it, or the exporters of
// Control/Solve.

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"maps"
	"slices"

	"keg/internal/buildcontrol"
	"keg/internal/builder"
	"keg/internal/buildsession"
	"keg/internal/engine"
	"keg/internal/fault"
	"keg/internal/grpc"
	"keg/internal/image"
)

// reference is what LLBBridge/Solve gives.
type reference struct {
	c     *control
	id    string
	solve *solve
	front *buildcontrol.Frontend

	busy     chan struct{} // held by who works on what follows
	dir      string        // its scratch; "": none yet
	remove   func()
	session  *buildsession.Session
	request  *engine.BuildRequest // without outputs
	trace    *trace
	prepared bool
	made     *engine.Built // once it was evaluated
}

func (c *control) reference(v *solve, f *buildcontrol.Frontend) (*reference, error) {
	switch {
	case f.Name == "" && f.Definition != nil:
	case f.Name == "dockerfile.v0":
	case f.Name == "gateway.v0" && dockersFrontend(f.Attrs["source"]):
	case f.Name == "gateway.v0":
		return nil, fault.Unsupportedf("the frontend %s is not supported: keg builds Dockerfiles itself", f.Attrs["source"])
	default:
		return nil, fault.NotFoundf("failed to find frontend: %s", f.Name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.references == nil {
		return nil, fault.Unavailablef("the client has left")
	}
	if len(c.references) >= maxReferences {
		return nil, fault.Unavailablef("the client has %d references; it has to connect anew", maxReferences)
	}
	r := &reference{c: c, id: rand.Text(), solve: v, front: f, busy: make(chan struct{}, 1)}
	c.references[r.id] = r
	return r, nil
}

func (c *control) find(id string) (*reference, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.references[id]; r != nil {
		return r, nil
	}
	return nil, fault.NotFoundf("no such reference %q", id)
}

// close takes away what references have, when the calls that work on them have ended.
func (c *control) close() {
	c.mu.Lock()
	list := slices.Collect(maps.Values(c.references))
	c.references = nil
	c.mu.Unlock()
	for _, r := range list {
		r.busy <- struct{}{}
		r.drop()
	}
}

func (r *reference) drop() {
	if r.remove != nil {
		r.remove()
		r.remove, r.dir, r.prepared = nil, "", false
	}
}

// hold waits for the others that work on a reference.
func (r *reference) hold(ctx context.Context) (release func(), err error) {
	select {
	case r.busy <- struct{}{}:
		return func() { <-r.busy }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// dockersFrontend: keg's own does what that image would do.
func dockersFrontend(source string) bool {
	ref, err := image.ParseReference(source)
	return err == nil && ref.Registry == image.DefaultRegistry && (ref.Repository == "docker/dockerfile" || ref.Repository == "docker/dockerfile-upstream")
}

func (c *control) frontend(st *grpc.Stream, b []byte) ([]byte, error) {
	f, err := buildcontrol.ParseFrontend(b)
	if err != nil {
		return nil, err
	}
	v, err := c.named(st)
	if err != nil {
		return nil, err
	}
	r, err := c.reference(v, f)
	if err != nil {
		return nil, err
	}
	if name, ok := f.Attrs["requestid"]; ok {
		m, err := r.answer(st.Context(), name)
		return buildcontrol.Result{Metadata: m}.Encode(), statusOfBuild(err)
	}
	if f.Definition != nil && f.Evaluate {
		if _, err := r.source(st.Context()); err != nil {
			return nil, err
		}
	} else if f.Evaluate {
		if _, err := r.evaluate(st.Context()); err != nil {
			return nil, statusOfBuild(err)
		}
	}
	def := f.Definition
	if def == nil {
		def = buildcontrol.Source(referenceScheme + r.id)
	}
	return buildcontrol.Result{Ref: r.id, Definition: def}.Encode(), nil
}

// referenceScheme begins the sources of definitions that stand for references.
const referenceScheme = "keg-reference://"

// start makes what the build needs: a scratch, its session, options, contexts.
func (r *reference) start(ctx context.Context) (err error) {
	if r.prepared {
		return nil
	}
	if r.dir == "" {
		if r.dir, r.remove, err = makeScratch(r.c.s.o.Scratch); err != nil {
			return err
		}
	}
	if r.session, err = r.c.s.sessions.get(ctx, r.solve.Session); err != nil {
		return err
	}
	r.trace = newTrace(r.solve.Ref, func(t buildsession.Trace) { r.solve.feed.put(ctx, t) })
	q := engine.BuildRequest{}
	if q.Options, err = frontendOptions(r.front.Attrs, r.solve.Entitlements); err != nil {
		return err
	}
	if q.Platforms, err = platforms(r.front.Attrs["platform"]); err != nil {
		return err
	}
	if len(q.Platforms) > 0 {
		q.Platform = &q.Platforms[0]
	}
	if q.Provenance, err = provenance(r.front.Attrs); err != nil {
		return err
	}
	q.Caller = caller{r.session}
	if r.solve.PolicySession != "" {
		q.Approve = r.approve
	}
	if err := r.contexts(ctx, &q.Options); err != nil {
		r.drop()
		return err
	}
	r.request, r.prepared = &q, true
	return nil
}

// approve asks the client's policy about a source.
func (r *reference) approve(ctx context.Context, identifier string, p image.Platform, b *builder.Base) error {
	session, err := r.c.s.sessions.get(ctx, r.solve.PolicySession)
	if err != nil {
		return err
	}
	src := buildsession.PolicySource{Identifier: identifier, OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}
	if b != nil {
		if src.Config, err = json.Marshal(b.Config); err != nil {
			return err
		}
		src.Digest = b.Digest.String()
	}
	return session.Approve(ctx, src)
}

// approveContext is approve for what is no image.
func (r *reference) approveContext(ctx context.Context, o *builder.Options, identifier string) error {
	if o.Approve == nil {
		return nil
	}
	p := image.Host()
	if o.Platform != nil {
		p = *o.Platform
	}
	return o.Approve(ctx, identifier, p, nil)
}

// engine asks the client for accounts.
func (r *reference) engine() Engine {
	if r.c.s.o.Asking != nil {
		return r.c.s.o.Asking(caller{r.session}.account)
	}
	return r.c.s.engine
}

// evaluate makes the build, once, without an image of it.
func (r *reference) evaluate(ctx context.Context) (*engine.Built, error) {
	release, err := r.hold(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	if r.made != nil {
		return r.made, nil
	}
	if r.front.Definition != nil {
		return nil, errLLB()
	}
	if err := r.start(ctx); err != nil {
		return nil, err
	}
	q := *r.request
	q.NoImage, q.Provenance = true, ""
	r.trace.tell = func(t buildsession.Trace) { r.solve.feed.put(ctx, t) }
	r.made, err = r.engine().BuildTo(ctx, q, r.trace.event)
	return r.made, err
}

func (c *control) evaluate(st *grpc.Stream, b []byte) ([]byte, error) {
	id, err := buildcontrol.ParseRef(b)
	if err != nil {
		return nil, err
	}
	r, err := c.find(id)
	if err == nil {
		_, err = r.evaluate(st.Context())
	}
	return nil, statusOfBuild(err)
}

// base is the reference as what a stage stands on.
func (r *reference) base(name string) builder.Built {
	return func(ctx context.Context, p image.Platform) (builder.Base, error) {
		made, err := r.evaluate(ctx)
		if err != nil {
			return builder.Base{}, err
		}
		ref, _ := image.ParseReference(name) // only shown
		for _, e := range made.Each {
			if image.Matches(p, e.Platform) {
				return builder.Base{Ref: ref, Config: e.Config}, nil
			}
		}
		return builder.Base{}, fault.NotFoundf("it was not built for %s", image.FormatPlatform(p))
	}
}

// export makes the build and delivers it.
func (r *reference) export(ctx context.Context) (map[string]string, error) {
	if r.front.Definition != nil {
		return nil, errLLB()
	}
	release, err := r.hold(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	defer r.drop()
	r.solve.record.front(r.front)
	if err := r.start(ctx); err != nil {
		return nil, statusOfBuild(err)
	}
	q := *r.request
	d, err := r.delivery(ctx, &q)
	if err != nil {
		return nil, err
	}
	q.Outputs, q.NoImage = d.outs, len(d.outs) == 0
	tell := func(t buildsession.Trace) { r.solve.feed.put(ctx, t) }
	if r.made != nil {
		tell = again(r.trace.vertices, tell)
		r.trace = newTrace(r.solve.Ref+" export", nil)
	}
	r.trace.tell = tell
	built, err := r.engine().BuildTo(ctx, q, r.trace.event)
	if err == nil {
		r.trace.warnings(built.Checked)
		err = d.finish(ctx, built)
	}
	if err != nil {
		return nil, statusOfBuild(err)
	}
	return d.response, nil
}

// again leaves out what was told when the build was evaluated.
func again(told map[int]buildsession.Vertex, tell func(buildsession.Trace)) func(buildsession.Trace) {
	names := map[string]bool{}
	for _, v := range told {
		names[v.Name] = true
	}
	silent := map[string]bool{}
	return func(t buildsession.Trace) {
		for _, v := range t.Vertices {
			if names[v.Name] && v.Error == "" {
				silent[v.Digest] = true
			}
		}
		t.Vertices = slices.DeleteFunc(t.Vertices, func(v buildsession.Vertex) bool { return silent[v.Digest] })
		t.Statuses = slices.DeleteFunc(t.Statuses, func(s buildsession.Status) bool { return silent[s.Vertex] })
		t.Logs = slices.DeleteFunc(t.Logs, func(l buildsession.Log) bool { return silent[l.Vertex] })
		tell(t)
	}
}

// statusOfBuild has the place of an error in the Dockerfile with it, which clients show (moby/buildkit solver/errdefs).
func statusOfBuild(err error) error {
	var e *builder.Error
	if !errors.As(err, &e) || e.Line == 0 {
		return err
	}
	type position struct {
		Line int `json:"line"`
	}
	detail, jerr := json.Marshal(map[string]any{
		"info":   map[string]any{"filename": e.File, "data": e.Text, "language": "Dockerfile"},
		"ranges": []any{map[string]any{"start": position{e.Line}, "end": position{e.Last}}},
	})
	if jerr != nil {
		return err
	}
	s := *grpc.StatusOf(err)
	s.Details = append(s.Details, anyOf("github.com/moby/buildkit/errdefs.Source+json", detail))
	return &s
}

// anyOf is a message google.protobuf.Any.
func anyOf(url string, value []byte) []byte {
	return grpc.AppendText(grpc.AppendText(nil, 1, url), 2, value)
}
