package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"keg/internal/builder"
	"keg/internal/engine"
	"keg/internal/grpc"
)

func (k *kit) BuildTo(ctx context.Context, q engine.BuildRequest, progress func(builder.Event)) (*engine.Built, error) {
	if k.made != nil {
		k.made(q)
	}
	r, err := k.Build(ctx, q.Options, progress)
	return &engine.Built{Result: r}, err
}

// controlClient is a client of the control protocol.
type controlClient struct {
	t    *testing.T
	conn net.Conn
	cc   *http.ClientConn
}

func (ks *kitServer) control() *controlClient {
	ks.t.Helper()
	c := ks.dial()
	io.WriteString(c, "POST /grpc HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
	head := make([]byte, len("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"))
	if _, err := io.ReadFull(c, head); err != nil || !strings.HasPrefix(string(head), "HTTP/1.1 101 ") {
		ks.t.Fatalf("%q %v", head, err)
	}
	return ks.speak(c)
}

// speak begins HTTP/2.
func (ks *kitServer) speak(c net.Conn) *controlClient {
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }, Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	cc, err := tr.NewClientConn(context.Background(), "http", "docker:80")
	if err != nil {
		ks.t.Fatal(err)
	}
	ks.t.Cleanup(func() { cc.Close(); c.Close() })
	return &controlClient{ks.t, c, cc}
}

// begin makes a call with what is sent, for a build ("": none).
func (c *controlClient) begin(ctx context.Context, method, ref string, body io.Reader) (*http.Response, error) {
	q := (&http.Request{Method: "POST", URL: &url.URL{Scheme: "http", Host: "docker", Path: method},
		Header: http.Header{"Content-Type": {"application/grpc"}, "Buildkit-Controlapi-Buildid": {ref}}, Body: io.NopCloser(body), ContentLength: -1}).WithContext(ctx)
	return c.cc.RoundTrip(q)
}

// call makes one with a message and returns all answers.
func (c *controlClient) call(method, ref string, message []byte) (answers [][]byte, err error) {
	resp, err := c.begin(c.t.Context(), method, ref, strings.NewReader(string(grpc.Frame(message))))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	for {
		b, err := grpc.ReadFrame(resp.Body)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return answers, err
		}
		answers = append(answers, b)
	}
	if code := resp.Trailer.Get("Grpc-Status"); code != "0" {
		msg, _ := url.PathUnescape(resp.Trailer.Get("Grpc-Message"))
		return answers, errors.New(code + " " + msg)
	}
	return answers, nil
}

const (
	theControl = "/moby.buildkit.v1.Control/"
	theBridge  = "/moby.buildkit.v1.frontend.LLBBridge/"
)

func pairs(b []byte, n int, kv ...string) []byte {
	for i := 0; i < len(kv); i += 2 {
		b = text(b, n, string(text(text(nil, 1, kv[i]), 2, kv[i+1])))
	}
	return b
}

// submessage is the first field of a number.
func submessage(t *testing.T, b []byte, path ...int) []byte {
	t.Helper()
	for _, n := range path {
		var found []byte
		if err := grpc.Each(b, func(f grpc.Field) error {
			if f.Number == n && found == nil {
				found = f.Data
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		b = found
	}
	return b
}

// TestControlBuild is what buildx does for docker buildx build.
func TestControlBuild(t *testing.T) {
	k := &kit{}
	ks := newKitServer(t, k)
	ks.offer("s1", map[string][]sent{
		"dockerfile": {{path: "Dockerfile", text: "FROM scratch\n", mode: 0o644}},
		"context":    {{path: "file", text: "content", mode: 0o644}},
	})
	k.look = func(o builder.Options, progress func(builder.Event)) error {
		if b, err := os.ReadFile(filepath.Join(o.Context, "file")); string(b) != "content" {
			t.Errorf("%q %v", b, err)
		}
		if o.Target != "t" || *o.Args["A"] != "b" || o.Labels["l"] != "m" || !o.NoCache || o.ShmSize != 5 || strings.Join(o.ExtraHosts, " ") != "h:1.2.3.4" || o.Caller == nil ||
			len(o.Ulimits) != 1 || o.Ulimits[0] != (builder.Ulimit{Name: "nofile", Soft: 1, Hard: 2}) || o.Network != "none" || !o.Insecure {
			t.Errorf("%+v", o)
		}
		now := time.Now()
		progress(builder.Event{Vertex: 1, Name: "[1/1] RUN it", Started: &now})
		progress(builder.Event{Vertex: 1, Log: []byte("its words")})
		return nil
	}
	k.made = func(q engine.BuildRequest) {
		if len(q.Outputs) != 1 || q.Outputs[0].Type != engine.OutputImage || len(q.Outputs[0].Names) != 2 || q.Outputs[0].Push {
			t.Errorf("%+v", q.Outputs)
		}
	}
	c := ks.control()
	type end struct {
		answers [][]byte
		err     error
	}
	solved, told := make(chan end, 1), make(chan end, 1)
	go func() { // asks before there is such a build
		a, err := c.call(theControl+"Status", "", text(nil, 1, "r1"))
		told <- end{a, err}
	}()
	go func() {
		a, err := c.call(theControl+"Solve", "", text(text(text(text(nil, 1, "r1"), 5, "s1"), 9, "security.insecure"), 13,
			string(pairs(text(nil, 1, "moby"), 2, "name", "x,docker.io/y:2", "push", "false"))))
		solved <- end{a, err}
	}()
	if a, err := c.call(theBridge+"Ping", "r1", nil); err != nil || len(a) != 1 || string(submessage(t, a[0], 1, 1)) != "solve.base" {
		t.Fatalf("%q %v", a, err)
	}
	a, err := c.call(theBridge+"Solve", "r1", pairs(text(nil, 2, "dockerfile.v0"), 3, "target", "t", "build-arg:A", "b", "label:l", "m", "no-cache", "", "shm-size", "5",
		"add-hosts", "h=1.2.3.4", "ulimit", "nofile=1:2", "force-network-mode", "none", "filename", "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	ref := submessage(t, a[0], 3, 3, 1)
	if len(ref) < 20 {
		t.Fatalf("reference %q", ref)
	}
	if _, err := c.call(theBridge+"Return", "r1", text(nil, 1, string(text(nil, 3, string(text(nil, 1, string(ref))))))); err != nil {
		t.Fatal(err)
	}
	s := <-solved
	if s.err != nil {
		t.Fatal(s.err)
	}
	if got := string(s.answers[0]); !strings.Contains(got, "containerimage.digest\x12\x47sha256:") || !strings.Contains(got, "image.name\x12\x30docker.io/library/x:latest,docker.io/library/y:2") {
		t.Errorf("%q", got)
	}
	st := <-told
	all := ""
	for _, a := range st.answers {
		all += string(a)
	}
	if st.err != nil || !strings.Contains(all, "[1/1] RUN it") || !strings.Contains(all, "its words") || !strings.Contains(all, "transferring context") && !strings.Contains(all, "receive build context") {
		t.Errorf("%v %q", st.err, all)
	}
}

func TestControlFailures(t *testing.T) {
	k := &kit{}
	ks := newKitServer(t, k)
	ks.offer("s1", map[string][]sent{"dockerfile": {{path: "Dockerfile", text: "FROM scratch\n", mode: 0o644}}, "context": {}})
	k.look = func(builder.Options, func(builder.Event)) error {
		return &builder.Error{File: "Dockerfile", Line: 2, Last: 3, Text: []byte("FROM x\nRUN y"), Err: errors.New("it is — wrong")}
	}
	c := ks.control()
	direct := func(ref, frontend string) []byte {
		return pairs(text(text(text(nil, 1, ref), 5, "s1"), 6, frontend), 7, "filename", "Dockerfile")
	}
	resp, err := c.begin(t.Context(), theControl+"Solve", "", strings.NewReader(string(grpc.Frame(direct("r1", "dockerfile.v0")))))
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	details := resp.Trailer.Get("Grpc-Status-Details-Bin")
	if msg, _ := url.PathUnescape(resp.Trailer.Get("Grpc-Message")); msg != "it is — wrong" || resp.Trailer.Get("Grpc-Status") != "2" || len(details) < 100 {
		t.Errorf("%v", resp.Trailer)
	}
	var wg sync.WaitGroup
	for _, x := range []struct {
		what, method, ref string
		message           []byte
		want              string
	}{
		{"no name", "Control/Solve", "", nil, "2 a build needs a name"},
		{"LLB", "Control/Solve", "", text(text(nil, 1, "r2"), 2, "x"), "2 a build from LLB is not supported"},
		{"an unknown frontend", "Control/Solve", "", direct("r3", "mine"), "2 failed to find frontend: mine"},
		{"a foreign frontend", "Control/Solve", "", pairs(text(text(nil, 1, "r4"), 6, "gateway.v0"), 7, "source", "mine"), "2 the frontend mine is not supported"},
		{"an unknown exporter", "Control/Solve", "", text(direct("r5", "dockerfile.v0"), 13, string(text(nil, 1, "none"))), `2 exporter "none" could not be found`},
		{"no session", "Control/Solve", "", text(text(nil, 1, "r6"), 6, "dockerfile.v0"), "2 no active session for "},
		{"the same build again", "Control/Solve", "", direct("r1", "dockerfile.v0"), "2 job ID r1 exists"},
		{"a message that is cut off", "Control/Solve", "", []byte("\x0a\x05ab"), "2 the client sent a message that is cut off"},
		{"a field of no number", "Control/Solve", "", []byte("\x00\x00"), "2 the client sent a message with a field that has no number"},
		{"a map that is none", "Control/Solve", "", text(text(nil, 1, "r7"), 7, "\xff"), "2 the client sent a message with a field that has no number"},
		{"an unknown method", "Control/Nothing", "", nil, `12 method "/moby.buildkit.v1.Control/Nothing" is not supported`},
		{"no such build", "frontend.LLBBridge/Ping", "none", nil, "2 no such job none"},
	} {
		wg.Go(func() { // some wait a little for what may still come
			if _, err := c.call("/moby.buildkit.v1."+x.method, x.ref, x.message); err == nil || !strings.HasPrefix(err.Error(), x.want) {
				t.Errorf("%s: %v, want %s", x.what, err, x.want)
			}
		})
	}
	wg.Wait()
	// A frontend of the client's that fails: the build fails with its words.
	failed := make(chan error)
	go func() {
		_, err := c.call(theControl+"Solve", "", text(nil, 1, "r8"))
		failed <- err
	}()
	if _, err := c.call(theBridge+"Return", "r8", text(nil, 2, string(text(number(nil, 1, 3), 2, "not so")))); err != nil {
		t.Error(err)
	}
	if err := <-failed; err == nil || err.Error() != "3 not so" {
		t.Errorf("%v", err)
	}
}

// TestControlClientLeaves: a build ends when its client does, and when the call is given up.
func TestControlClientLeaves(t *testing.T) {
	ks := newKitServer(t, &kit{})
	for _, leave := range []func(*controlClient, context.CancelFunc){
		func(c *controlClient, _ context.CancelFunc) { c.conn.Close() },
		func(_ *controlClient, cancel context.CancelFunc) { cancel() },
	} {
		c := ks.control()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			if resp, err := c.begin(ctx, theControl+"Solve", "", strings.NewReader(string(grpc.Frame(text(nil, 1, "r"))))); err == nil {
				io.Copy(io.Discard, resp.Body)
			}
		}()
		v, err := ks.s.solves.get(ctx, "r", nil)
		if err != nil {
			t.Fatal(err)
		}
		leave(c, cancel)
		<-gone
		if err := v.feed.follow(t.Context(), func([]byte) error { return nil }); err != nil { // until it is over
			t.Error(err)
		}
		ks.s.solves.mu.Lock()
		delete(ks.s.solves.m, "r")
		ks.s.solves.mu.Unlock()
	}
}

// TestControlWithoutUpgrade: BuildKit's own client speaks HTTP/2 from the beginning.
func TestControlWithoutUpgrade(t *testing.T) {
	ks := newKitServer(t, &kit{})
	c := ks.speak(ks.dial())
	if a, err := c.call(theControl+"ListWorkers", "", nil); err != nil || string(submessage(t, a[0], 1, 1)) != "keg" {
		t.Errorf("%q %v", a, err)
	}
	resp, err := c.cc.RoundTrip(&http.Request{Method: "GET", URL: &url.URL{Scheme: "http", Host: "docker", Path: "/info"}, Header: http.Header{}})
	if err != nil || resp.StatusCode != 400 {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
	resp, err = c.cc.RoundTrip(&http.Request{Method: "POST", URL: &url.URL{Scheme: "http", Host: "evil.example", Path: theControl + "Info"},
		Header: http.Header{"Content-Type": {"application/grpc"}}, Body: http.NoBody})
	if err != nil || resp.StatusCode != 403 {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
	if _, err := c.call(theControl+"Solve", "", text(text(nil, 1, "nothing"), 2, "")); err != nil {
		t.Errorf("nothing from nothing: %v", err)
	}
	c.cc.Close()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		ks.s.controls.mu.Lock()
		n := len(ks.s.controls.m)
		ks.s.controls.mu.Unlock()
		if n == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the connection is remembered")
		}
	}
}

// TestHistory: records of builds, and who listens.
func TestHistory(t *testing.T) {
	k := &kit{look: func(_ builder.Options, progress func(builder.Event)) error {
		now := time.Now()
		progress(builder.Event{Vertex: 1, Name: "[1/1] RUN it", Started: &now})
		progress(builder.Event{Vertex: 1, Log: []byte("its words")})
		progress(builder.Event{Vertex: 1, Finished: &now, Cached: true})
		return nil
	}}
	ks := newKitServer(t, k)
	ks.s.history.dir = filepath.Join(t.TempDir(), "builds")
	ks.offer("s1", map[string][]sent{"dockerfile": {{path: "Dockerfile", text: "FROM scratch\n", mode: 0o644}}, "context": {}})
	c := ks.control()
	listen, err := c.begin(t.Context(), theControl+"ListenBuildHistory", "", strings.NewReader(string(grpc.Frame(nil))))
	if err != nil {
		t.Fatal(err)
	}
	defer listen.Body.Close()
	heard := func() []byte {
		t.Helper()
		b, err := grpc.ReadFrame(listen.Body)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	build := func(ref, frontend string) error {
		_, err := c.call(theControl+"Solve", "", pairs(text(text(text(nil, 1, ref), 5, "s1"), 6, frontend), 7, "filename", "Dockerfile", "target", "t"))
		return err
	}
	if err := build("r1", "dockerfile.v0"); err != nil {
		t.Fatal(err)
	}
	if begun, done := heard(), heard(); string(submessage(t, begun, 2, 1)) != "r1" || string(submessage(t, done, 2, 1)) != "r1" || done[1] != 1 {
		t.Errorf("%q %q", begun, done)
	}
	if err := build("r2", "none"); err == nil {
		t.Error("a frontend that is not there")
	}
	heard()
	if failed := heard(); string(submessage(t, failed, 2, 5, 2)) != "failed to find frontend: none" {
		t.Errorf("%q", failed)
	}
	list := func(q []byte) (refs []string) {
		t.Helper()
		a, err := c.call(theControl+"ListenBuildHistory", "", number(q, 3, 1))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range a {
			refs = append(refs, string(submessage(t, e, 2, 1)))
		}
		return refs
	}
	if got := strings.Join(list(nil), " "); got != "r2 r1" {
		t.Errorf("records %q", got)
	}
	if got := strings.Join(list(text(nil, 2, "r1")), " "); got != "r1" {
		t.Errorf("records %q", got)
	}
	if got := list(number(nil, 1, 1)); len(got) != 0 {
		t.Errorf("active %q", got)
	}
	ks.s.solves.mu.Lock()
	delete(ks.s.solves.m, "r1") // as after a while
	ks.s.solves.mu.Unlock()
	if a, err := c.call(theControl+"Status", "", text(nil, 1, "r1")); err != nil || !strings.Contains(string(bytes.Join(a, nil)), "its words") {
		t.Errorf("%v %q", err, a)
	}
	a, err := c.call(theControl+"ListenBuildHistory", "", number(text(nil, 2, "r1"), 3, 1))
	if err != nil {
		t.Fatal(err)
	}
	d := string(submessage(t, a[0], 2, 13, 2))
	if doc, err := c.call("/containerd.services.content.v1.Content/Read", "", text(nil, 1, d)); err != nil || !strings.Contains(string(doc[0]), `"Name":"[1/1] RUN it"`) {
		t.Errorf("%v %q", err, doc)
	}
	if _, err := c.call("/containerd.services.content.v1.Content/Info", "", text(nil, 1, "sha256:none")); err == nil || !strings.HasPrefix(err.Error(), "5 ") {
		t.Errorf("%v", err)
	}
	if _, err := c.call(theControl+"UpdateBuildHistory", "", number(text(nil, 1, "r1"), 3, 1)); err != nil {
		t.Error(err)
	}
	if gone := heard(); gone[1] != 2 {
		t.Errorf("%q", gone)
	}
	for i := range maxRecords + 3 {
		if err := build("more"+string(rune('A'+i)), "none"); err == nil {
			t.Error("it should fail")
		}
	}
	if n := len(list(nil)); n != maxRecords {
		t.Errorf("%d records", n)
	}
	if files, _ := os.ReadDir(ks.s.history.dir); len(files) != 3*maxRecords {
		t.Errorf("%d files", len(files))
	}
}
