package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"keg/internal/buildcontrol"
	"keg/internal/builder"
	"keg/internal/buildsession"
	"keg/internal/grpc"
)

// TestControlGarbage: what is no HTTP/2, no gRPC or no message is refused, and the next client is served.
func TestControlGarbage(t *testing.T) {
	ks := newKitServer(t, &kit{})
	var log bytes.Buffer
	ks.s.o.Log = &log
	noise := make([]byte, 64<<10)
	rand.Read(noise)
	for _, sent := range [][]byte{noise, []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + string(noise)), []byte("GET / HTTP/1.1\r\n\r\n"), nil} {
		c := ks.dial()
		io.WriteString(c, "POST /grpc HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
		go func() { c.Write(sent) }()
		c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		io.Copy(io.Discard, c)
		c.Close()
	}
	c := ks.control()
	for what, body := range map[string][]byte{
		"a frame that announces 1 GiB": binary.BigEndian.AppendUint32([]byte{0}, 1<<30),
		"a compressed frame":           {1, 0, 0, 0, 0},
		"half a frame":                 {0, 0, 0, 0, 9, 1},
		"nothing":                      nil,
		"noise":                        grpc.Frame(noise),
	} {
		resp, err := c.begin(t.Context(), theControl+"Solve", "", bytes.NewReader(body))
		if err != nil {
			t.Fatal(what, err)
		}
		if io.Copy(io.Discard, resp.Body); resp.Trailer.Get("Grpc-Status") == "0" || resp.Trailer.Get("Grpc-Status") == "13" {
			t.Errorf("%s: %v", what, resp.Trailer)
		}
	}
	for name := range (&control{s: ks.s}).methods() {
		if strings.HasSuffix(name, "/Session") || strings.HasSuffix(name, "/ListenBuildHistory") {
			continue // go on until the client leaves
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		if resp, err := c.begin(ctx, name, "", bytes.NewReader(grpc.Frame([]byte("\x0a\xff\xff\xff\xff\x0f")))); err == nil {
			if io.Copy(io.Discard, resp.Body); resp.Trailer.Get("Grpc-Status") == "13" {
				t.Errorf("%s: %v", name, resp.Trailer)
			}
		}
		cancel()
	}
	if _, err := ks.control().call(theControl+"Info", "", nil); err != nil {
		t.Error(err)
	}
	if log.Len() > 0 {
		t.Errorf("it said: %s", log.String())
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestControlMemory: 64 MiB of output go to a client that reads, none of them is held for one that does not, or for nobody.
func TestControlMemory(t *testing.T) {
	const pieces, piece = 2048, 32 << 10
	k := &kit{}
	ks := newKitServer(t, k)
	ks.offer("s1", map[string][]sent{"dockerfile": {{path: "Dockerfile", text: "FROM scratch\n", mode: 0o644}}, "context": {}})
	most := uint64(0)
	before := heap()
	k.look = func(_ builder.Options, progress func(builder.Event)) error {
		now := time.Now()
		progress(builder.Event{Vertex: 1, Name: "step", Started: &now})
		text := make([]byte, piece)
		for i := range pieces {
			progress(builder.Event{Vertex: 1, Log: text})
			if i%512 == 511 {
				most = max(most, heap())
			}
		}
		return nil
	}
	build := func(c *controlClient, ctx context.Context, ref string) error {
		resp, err := c.begin(ctx, theControl+"Solve", "", bytes.NewReader(grpc.Frame(pairs(text(text(text(nil, 1, ref), 5, "s1"), 6, "dockerfile.v0"), 7, "filename", "Dockerfile"))))
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		return err
	}
	flat := func(what string) {
		t.Helper()
		if most > before+24<<20 {
			t.Errorf("%s: %d MiB of heap, %d before", what, most>>20, before>>20)
		}
		most = 0
	}
	c := ks.control()
	var read int64
	var wg sync.WaitGroup
	wg.Go(func() {
		if resp, err := c.begin(t.Context(), theControl+"Status", "", bytes.NewReader(grpc.Frame(text(nil, 1, "read")))); err == nil {
			read, _ = io.Copy(io.Discard, resp.Body)
		}
	})
	time.Sleep(50 * time.Millisecond) // it asks before the build begins
	if err := build(c, t.Context(), "read"); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if flat("a client that reads"); read < pieces*piece {
		t.Errorf("%d of %d bytes came", read, pieces*piece)
	}
	if err := build(c, t.Context(), "alone"); err != nil {
		t.Fatal(err)
	}
	flat("nobody")
	// One that does not read makes the build wait, until it leaves.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	slow := ks.control()
	go slow.begin(ctx, theControl+"Status", "", bytes.NewReader(grpc.Frame(text(nil, 1, "slow"))))
	done := make(chan error, 1)
	go func() { done <- build(c, t.Context(), "slow") }()
	time.Sleep(300 * time.Millisecond)
	select {
	case err := <-done:
		t.Errorf("the build did not wait: %v", err)
	default:
	}
	slow.conn.Close()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("the build waits for a client that left")
	}
	flat("a client that does not read")
}

// TestControlBounds: references and builds end somewhere.
func TestControlBounds(t *testing.T) {
	ks := newKitServer(t, &kit{})
	c := ks.control()
	go c.call(theControl+"Solve", "", text(nil, 1, "r"))
	if _, err := c.call(theBridge+"Ping", "r", nil); err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		_, err := c.call(theBridge+"Solve", "r", text(nil, 2, "dockerfile.v0"))
		if err != nil {
			if i != maxReferences || !strings.Contains(err.Error(), "references") {
				t.Errorf("after %d: %v", i, err)
			}
			break
		}
	}
	for i := range maxSolves {
		ks.s.solves.begin(&buildcontrol.Solve{Ref: strconv.Itoa(i)})
	}
	if _, err := ks.control().call(theControl+"Solve", "", text(nil, 1, "more")); err == nil || !strings.Contains(err.Error(), "are under way") {
		t.Errorf("one build more than may be: %v", err)
	}
}

// TestControlSessionInside: a session in a call, as bake has them, serves builds as one of its own connection does.
func TestControlSessionInside(t *testing.T) {
	k := &kit{look: func(builder.Options, func(builder.Event)) error { return nil }}
	ks := newKitServer(t, k)
	c := ks.control()
	r, w := io.Pipe()
	q := (&http.Request{Method: "POST", URL: httptest.NewRequest("POST", "http://docker"+theControl+"Session", nil).URL, Body: r, ContentLength: -1,
		Header: http.Header{"Content-Type": {"application/grpc"}, buildsession.HeaderID: {"in"},
			buildsession.HeaderMethod: {"/moby.filesync.v1.FileSync/DiffCopy"}}}).WithContext(t.Context())
	resp, err := c.cc.RoundTrip(q)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	go func() { // what the engine says
		defer ours.Close()
		for {
			m, err := grpc.ReadFrame(resp.Body)
			if err != nil {
				return
			}
			if _, err := ours.Write(submessage(t, m, 1)); err != nil {
				return
			}
		}
	}()
	go func() { // and the client
		for b := make([]byte, 4096); ; {
			n, err := ours.Read(b)
			if err != nil {
				w.Close()
				return
			}
			w.Write(grpc.Frame(text(nil, 1, string(b[:n]))))
		}
	}()
	srv := filesOf(map[string][]sent{"dockerfile": {{path: "Dockerfile", text: "FROM scratch\n", mode: 0o644}}, "context": {{path: "f", text: "x", mode: 0o644}}})
	l := &oneListener{conn: make(chan net.Conn, 1), done: make(chan struct{})}
	l.conn <- theirs
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	if _, err := c.call(theControl+"Solve", "", pairs(text(text(text(nil, 1, "r"), 5, "in"), 6, "dockerfile.v0"), 7, "filename", "Dockerfile")); err != nil {
		t.Error(err)
	}
	w.Close()
	for end := time.Now().Add(10 * time.Second); ks.s.sessions.has("in"); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the session outlives its call")
		}
	}
}
