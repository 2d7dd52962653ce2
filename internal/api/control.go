package api

// POST /grpc: BuildKit's control protocol, which buildx speaks, on a connection that is taken from HTTP. A build is what a
// call of Control/Solve waits for; meanwhile other calls, which name it, say what is to be built and ask how it goes.

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/moby/moby/api/types/build"

	"keg/internal/buildcontrol"
	"keg/internal/buildsession"
	"keg/internal/fault"
	"keg/internal/grpc"
	"keg/internal/image"
)

// upgradeH2C answers 101 to a client that will speak HTTP/2 on its connection.
func upgradeH2C(w *reply, r *request) (*wire, error) {
	conn, err := hijack(w, r, "")
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(conn.Conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"); err != nil {
		conn.Close()
		return nil, nil // the client left
	}
	return conn, nil
}

func askedH2C(r *request) error {
	switch up := r.Header.Get("Upgrade"); up {
	case "h2c":
		return nil
	case "":
		return fault.Invalidf("no upgrade proto in request")
	default:
		return fault.Invalidf("protocol %s not supported", up)
	}
}

func (s *Server) control(w *reply, r *request) error {
	if err := askedH2C(r); err != nil {
		return err
	}
	conn, err := upgradeH2C(w, r)
	if conn == nil {
		return err
	}
	defer conn.Close()
	c := &control{s: s, references: map[string]*reference{}}
	grpc.Serve(r.Context(), conn, c.methods(), s.o.Log)
	c.close()
	return nil
}

// answerGRPC answers a client that speaks HTTP/2 from the beginning.
func (s *Server) answerGRPC(w *reply, r *http.Request) {
	err := checkOrigin(r)
	if err == nil && !grpc.Is(r) {
		err = fault.Invalidf("HTTP/2 is for gRPC here: use HTTP/1.1")
	}
	if err != nil {
		w.fail(err)
		return
	}
	grpc.Answer(w.ResponseWriter, r, s.controls.of(r, s).methods(), s.o.Log)
}

// controls are the connections that speak HTTP/2 from the beginning and have made a call.
type controls struct {
	mu sync.Mutex
	m  map[net.Conn]*control
}

type connKey struct{}

func (cs *controls) opened(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

func (cs *controls) of(r *http.Request, s *Server) *control {
	conn, _ := r.Context().Value(connKey{}).(net.Conn)
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := cs.m[conn]
	if c == nil {
		c = &control{s: s, references: map[string]*reference{}}
		if cs.m == nil {
			cs.m = map[net.Conn]*control{}
		}
		cs.m[conn] = c
	}
	return c
}

// changed lets go what a connection has when it is closed.
func (cs *controls) changed(conn net.Conn, state http.ConnState) {
	if state != http.StateClosed && state != http.StateHijacked {
		return
	}
	cs.mu.Lock()
	c := cs.m[conn]
	delete(cs.m, conn)
	cs.mu.Unlock()
	if c != nil {
		go c.close() // calls under way end with their connection
	}
}

// control is one connection.
type control struct {
	s *Server

	mu         sync.Mutex
	references map[string]*reference // by id
}

func (c *control) methods() map[string]grpc.Method {
	ms := map[string]grpc.Method{
		buildcontrol.Control + "Status":  c.status,
		buildcontrol.Control + "Session": c.session,
		buildcontrol.Control + "Prune":   c.prune,

		buildcontrol.Control + "ListenBuildHistory": c.listenHistory,
		buildcontrol.Content + "Read":               c.contentRead,
	}
	for name, m := range map[string]func(*grpc.Stream, []byte) ([]byte, error){
		buildcontrol.Control + "Info":        c.info,
		buildcontrol.Control + "ListWorkers": c.workers,
		buildcontrol.Control + "DiskUsage":   c.diskUsage,
		buildcontrol.Control + "Solve":       c.solve,
		buildcontrol.Bridge + "Ping":         c.ping,

		buildcontrol.Control + "UpdateBuildHistory": c.updateHistory,
		buildcontrol.Content + "Info":               c.contentInfo,
		buildcontrol.Bridge + "Solve":               c.frontend,
		buildcontrol.Bridge + "Evaluate":            c.evaluate,
		buildcontrol.Bridge + "ReadFile":            c.readFile,
		buildcontrol.Bridge + "StatFile":            c.statFile,
		buildcontrol.Bridge + "ReadDir":             c.readDir,
		buildcontrol.Bridge + "Inputs":              c.inputs,
		buildcontrol.Bridge + "Return":              c.end,
		buildcontrol.Bridge + "Warn":                c.warn,
	} {
		ms[name] = grpc.Unary(m)
	}
	return ms
}

func (c *control) worker() buildcontrol.Worker {
	name, _ := os.Hostname()
	return buildcontrol.Worker{ID: "keg", Version: c.s.o.Version, Platforms: []image.Platform{image.Host()},
		Labels: map[string]string{
			"org.mobyproject.buildkit.worker.executor": "keg", "org.mobyproject.buildkit.worker.hostname": name,
			// By this clients know an engine that has all outputs, caches, several platforms and attestations.
			"org.mobyproject.buildkit.worker.snapshotter": "overlayfs"}}
}

func (c *control) info(*grpc.Stream, []byte) ([]byte, error) {
	return buildcontrol.Info(c.s.o.Version), nil
}

func (c *control) workers(*grpc.Stream, []byte) ([]byte, error) {
	return buildcontrol.Workers(c.worker()), nil
}

// session is POST /session in another coat: bytes of the connection in messages.
func (c *control) session(st *grpc.Stream) error {
	id := st.Metadata().Get(buildsession.HeaderID)
	if len(id) > 256 || len(st.Metadata()[buildsession.HeaderMethod]) > 256 {
		return fault.Invalidf("the session's headers are too long")
	}
	if err := c.s.sessions.claim(id); err != nil {
		return err
	}
	defer c.s.sessions.drop(id)
	if err := st.Header(); err != nil {
		return err
	}
	session, err := buildsession.Open(st.Context(), &tunnel{st: st}, st.Metadata())
	if err != nil {
		return err
	}
	defer session.Close()
	c.s.sessions.set(id, session)
	select {
	case <-session.Gone():
	case <-st.Context().Done():
	}
	return nil
}

// tunnel is a connection inside a call.
type tunnel struct {
	st   *grpc.Stream
	rest []byte
}

func (t *tunnel) Read(b []byte) (int, error) {
	for len(t.rest) == 0 {
		m, err := t.st.Receive()
		if err != nil {
			return 0, err
		}
		d, err := buildcontrol.ParseData(m)
		if err != nil {
			return 0, err
		}
		t.rest = d
	}
	n := copy(b, t.rest)
	t.rest = t.rest[n:]
	return n, nil
}

func (t *tunnel) Write(b []byte) (int, error) {
	if err := t.st.Send(buildcontrol.Data(b).Encode()); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Close ends reading and writing: both end with the call.
func (t *tunnel) Close() error                     { return nil }
func (t *tunnel) LocalAddr() net.Addr              { return &net.UnixAddr{Name: "session", Net: "unix"} }
func (t *tunnel) RemoteAddr() net.Addr             { return t.LocalAddr() }
func (t *tunnel) SetDeadline(time.Time) error      { return nil }
func (t *tunnel) SetReadDeadline(time.Time) error  { return nil }
func (t *tunnel) SetWriteDeadline(time.Time) error { return nil }

// solves are the builds under way, by name, and for a little while those that are over: their status may be asked late.
type solves struct {
	mu      sync.Mutex
	m       map[string]*solve
	changed chan struct{} // closed by the next change
}

// Bounds of builds through the control protocol.
const (
	maxSolves     = 1000
	solveLingers  = 5 * time.Second
	maxReferences = 10000
)

// solve is one call of Control/Solve.
type solve struct {
	*buildcontrol.Solve
	feed     *feed
	record   *recording
	returned chan *buildcontrol.Return
}

func (s *solves) begin(q *buildcontrol.Solve) (v *solve, end func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.m[q.Ref]; ok {
		return nil, nil, fault.Conflictf("job ID %s exists", q.Ref)
	}
	if len(s.m) >= maxSolves {
		return nil, nil, fault.Unavailablef("%d builds are under way; wait for some to end", maxSolves)
	}
	if s.m == nil {
		s.m = map[string]*solve{}
	}
	v = &solve{Solve: q, feed: newFeed(), returned: make(chan *buildcontrol.Return, 1)}
	s.m[q.Ref] = v
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
	return v, func() {
		v.feed.end()
		time.AfterFunc(solveLingers, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.m, q.Ref)
		})
	}, nil
}

// get waits a little for a build that is about to begin: clients ask for its status at once.
// One that is over already, as past tells, is nil.
func (s *solves) get(ctx context.Context, ref string, past func(ref string) bool) (*solve, error) {
	ctx, cancel := context.WithTimeout(ctx, sessionPatience)
	defer cancel()
	for {
		s.mu.Lock()
		v := s.m[ref]
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		changed := s.changed
		s.mu.Unlock()
		if v != nil || past != nil && past(ref) {
			return v, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fault.NotFoundf("no such job %s", ref)
		}
	}
}

// feed is what is told of a build, for those who follow it. All is kept up to a bound; then the builder waits for the
// slowest, and without any, output of steps is lost.
type feed struct {
	record  *recording
	mu      sync.Mutex
	log     [][]byte
	first   int // number of the first that is kept
	size    int
	readers map[*int]bool // each is at that number
	over    bool
	changed chan struct{}
}

const maxFeed = 1 << 20

func newFeed() *feed { return &feed{readers: map[*int]bool{}, changed: make(chan struct{})} }

func (f *feed) change() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// put tells a message; ctx is the build's.
func (f *feed) put(ctx context.Context, t buildsession.Trace) {
	m := t.Encode()
	if len(m) == 0 {
		return
	}
	f.record.told(t, m)
	f.mu.Lock()
	for f.size >= maxFeed && len(f.readers) > 0 && !f.trim() && ctx.Err() == nil {
		changed := f.changed
		f.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		f.mu.Lock()
	}
	defer f.mu.Unlock()
	if f.over || f.size >= maxFeed && len(t.Logs) > 0 {
		return
	}
	f.log = append(f.log, m)
	f.size += len(m)
	f.change()
}

// trim lets go what all have read, and tells whether there was anything.
func (f *feed) trim() bool {
	least := f.first + len(f.log)
	for at := range f.readers {
		least = min(least, *at)
	}
	n := least - f.first
	for _, m := range f.log[:n] {
		f.size -= len(m)
	}
	f.log, f.first = f.log[n:], least
	return n > 0
}

func (f *feed) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.over = true
	f.change()
}

// follow hands out what was told and what will be, until the build is over.
func (f *feed) follow(ctx context.Context, yield func([]byte) error) error {
	f.mu.Lock()
	at := f.first
	f.readers[&at] = true
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.readers, &at)
		f.change()
		f.mu.Unlock()
	}()
	for {
		f.mu.Lock()
		news := f.log[at-f.first:]
		at += len(news)
		over, changed := f.over, f.changed
		if len(news) > 0 {
			f.change()
		}
		f.mu.Unlock()
		for _, m := range news {
			if err := yield(m); err != nil {
				return err
			}
		}
		switch {
		case len(news) > 0:
		case over:
			return nil
		default:
			select {
			case <-changed:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

func (c *control) status(st *grpc.Stream) error {
	b, err := st.Receive()
	if err != nil {
		return err
	}
	ref, err := buildcontrol.ParseRef(b)
	if err != nil {
		return err
	}
	v, err := c.s.solves.get(st.Context(), ref, c.s.history.has)
	if err != nil {
		return err
	}
	if err := st.Header(); err != nil {
		return err
	}
	if v == nil {
		return c.s.history.replay(st.Context(), ref, st.Send)
	}
	return v.feed.follow(st.Context(), st.Send)
}

// named is the build that a call to the bridge belongs to.
func (c *control) named(st *grpc.Stream) (*solve, error) {
	return c.s.solves.get(st.Context(), st.Metadata().Get(buildcontrol.HeaderBuild), nil)
}

func (c *control) ping(st *grpc.Stream, _ []byte) ([]byte, error) {
	if _, err := c.named(st); err != nil {
		return nil, err
	}
	return buildcontrol.Pong(c.worker()), nil
}

// warn is for warnings of frontends, of which there are none but ours.
func (c *control) warn(*grpc.Stream, []byte) ([]byte, error) { return nil, nil }

func (c *control) end(st *grpc.Stream, b []byte) ([]byte, error) {
	r, err := buildcontrol.ParseReturn(b)
	if err != nil {
		return nil, err
	}
	v, err := c.named(st)
	if err != nil {
		return nil, err
	}
	select {
	case v.returned <- r:
		return nil, nil
	default:
		return nil, fault.Conflictf("build %s has ended already", v.Ref)
	}
}

func (c *control) solve(st *grpc.Stream, b []byte) ([]byte, error) {
	q, err := buildcontrol.ParseSolve(b)
	if err != nil {
		return nil, err
	}
	v, end, err := c.s.solves.begin(q)
	if err != nil {
		return nil, err
	}
	defer end()
	v.record = c.s.history.begin(q)
	v.feed.record = v.record
	response, err := c.solved(st.Context(), v)
	v.record.end(response, err)
	return buildcontrol.Solved(response), err
}

// solved waits for what is to be built, and builds it.
func (c *control) solved(ctx context.Context, v *solve) (map[string]string, error) {
	q := v.Solve
	if q.Definition != nil && q.Frontend == "" {
		return nil, errUnlessEmpty(q)
	}
	if q.Frontend != "" {
		r, err := c.reference(v, &buildcontrol.Frontend{Name: q.Frontend, Attrs: q.Attrs, Inputs: q.Inputs})
		if err != nil {
			return nil, err
		}
		return r.export(ctx)
	}
	if q.SourcePolicy || q.ProxyNetwork {
		// What was to be refused must not be built in silence.
		return nil, fault.Unsupportedf("policies that the engine evaluates (EXPERIMENTAL_BUILDKIT_SOURCE_POLICY, a proxy for the network) are not supported; those of buildx (--policy) are")
	}
	var r *buildcontrol.Return
	select {
	case r = <-v.returned:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	switch {
	case r.Err != nil && r.Err.Code != 0:
		return nil, r.Err
	case len(r.Refs) == 0:
		return nil, nil
	case len(r.Refs) > 1:
		return nil, fault.Unsupportedf("a result of several references is not supported; a Dockerfile gives one for all its platforms")
	}
	ref, err := c.find(r.Refs[0])
	if err != nil {
		return nil, err
	}
	return ref.export(ctx)
}

// errUnlessEmpty: of nothing at all, nothing is made.
func errUnlessEmpty(q *buildcontrol.Solve) error {
	if len(q.Exporters) == 0 && buildcontrol.IsEmpty(q.Definition) {
		return nil
	}
	return errLLB()
}

func errLLB() error {
	return fault.Unsupportedf("a build from LLB is not supported: keg builds Dockerfiles")
}

// builderVersion tells clients to build with BuildKit's protocols.
const builderVersion = build.BuilderBuildKit
