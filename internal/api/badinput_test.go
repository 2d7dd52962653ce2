package api

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"

	"keg/internal/engine"
	"keg/internal/monitor"
)

// TestBodiesAreReadToTheirEnd: row AP3 of the threats. The verdict on a body does not depend on how it is sent, and what
// comes after its end or is too much is refused, not cut off.
func TestBodiesAreReadToTheirEnd(t *testing.T) {
	const body = `{"Image":"a","HostConfig":{"Privileged":true}}`
	for _, c := range []struct {
		what, body string
		chunked    bool
		want       int
	}{
		{"with its length", body, false, 201},
		{"in chunks", body, true, 201},
		{"1 MiB and a byte long", body + strings.Repeat(" ", 1<<20+1-len(body)), false, 201},
		{"1 MiB and a byte in chunks", body + strings.Repeat(" ", 1<<20+1-len(body)), true, 201},
		{"empty", "", false, 400},
		{"empty, in chunks", "", true, 400},
		{"two bodies", body + `{"Image":"b"}`, false, 400},
		{"blanks beyond the limit", body + strings.Repeat(" ", maxBody), false, 413},
		{"blanks beyond the limit, in chunks", body + strings.Repeat(" ", maxBody), true, 413},
	} {
		f := newFake()
		r := httptest.NewRequest("POST", "http://docker/containers/create", strings.NewReader(c.body))
		r.Header.Set("Content-Type", "application/json")
		if c.chunked {
			r.ContentLength, r.TransferEncoding = -1, []string{"chunked"}
		}
		w := httptest.NewRecorder()
		New(f, Options{}).ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("%s: %d, want %d: %.200s", c.what, w.Code, c.want, w.Body)
		}
		if made := f.created.Host != nil && f.created.Host.Privileged; made != (c.want == 201) {
			t.Errorf("%s: made: %v", c.what, made)
		}
	}
}

// TestBadInput: Docker's error shape, and nothing reaches the engine.
func TestBadInput(t *testing.T) {
	for _, c := range []struct {
		method, path, body string
		want               int
	}{
		{"POST", "/containers/web/update", "{", 400},
		{"POST", "/containers/web/update", `{"Memory":"much"}`, 400},
		{"POST", "/containers/web/update", `{"PidsLimit":1e99}`, 400},
		{"POST", "/containers/web/exec", `{"Cmd":"sh"}`, 400},
		{"POST", "/containers/web/exec", `{"Cmd":[]}`, 400},
		{"POST", "/containers/web/exec", `{"Cmd":["sh"],"DetachKeys":"ctrl-"}`, 400},
		{"POST", "/containers/web/resize?h=-1&w=2", "", 400},
		{"POST", "/containers/web/resize?h=1&w=99999999999999999999", "", 400},
		{"POST", "/containers/web/stop?t=soon", "", 400},
		{"POST", "/containers/web/wait?condition=never", "", 400},
		{"GET", "/containers/web/logs", "", 400},
		{"GET", "/containers/web/logs?stdout=1&since=yesterday", "", 400},
		{"GET", "/containers/web/archive", "", 400},
		{"GET", "/containers/json?limit=x", "", 400},
		{"GET", "/containers/json?filters=%5B1%5D", "", 400},
		{"GET", "/events?since=x", "", 400},
		{"GET", "/images/json?identity=1", "", 400},
		{"GET", "/events?filters=x", "", 400},
		{"POST", "/images/create", "", 400},
		{"POST", "/images/create?fromImage=UPPER", "", 400},
		{"POST", "/images/create?fromImage=a&platform=%7B", "", 400},
		{"POST", "/build?buildargs=%7B", "", 400},
		{"POST", "/build?t=UPPER", "", 400},
		{"POST", "/networks/create", `{"Name":""}`, 400},
		{"POST", "/networks/create", `{"Name":"n","IPAM":{"Config":[{"Subnet":"x"}]}}`, 400},
		{"POST", "/volumes/create", `[]`, 400},
		{"POST", "/auth", ``, 400},
		{"PATCH", "/containers/json", "", 404},
		{"GET", "/containers/..%2f..%2fetc/json", "", 404},
		{"GET", "/containers/a%00b/json", "", 404},
		{"GET", "/containers/a%0Ab%1B%5B31m/json", "", 404},
		{"POST", "/containers/web/start", `{"Binds":["/:/host"]}`, 400},
		{"POST", "/containers/create?name=web&platform=%7B%22os%22%3A1%7D", `{"Image":"a"}`, 400},
	} {
		f := newFake()
		w := ask(f, c.method, c.path, c.body)
		if w.Code != c.want {
			t.Errorf("%s %s %s: %d, want %d: %s", c.method, c.path, c.body, w.Code, c.want, w.Body)
		}
		if m := messageOf(t, w.Body.Bytes()); strings.ContainsAny(w.Body.String()[:w.Body.Len()-1], "\x00\x1b\n") {
			t.Errorf("%s: control characters go out raw: %q", c.path, m)
		}
		if len(f.calls) > 0 {
			t.Errorf("%s %s %s: %v", c.method, c.path, c.body, f.calls)
		}
	}
}

// TestStreamsWithoutUpgrade: old clients ask for streams without an upgrade, and get them; who speaks HTTP/1.0 or
// pipelines what is no stream gets an answer, too.
func TestStreamsWithoutUpgrade(t *testing.T) {
	f := newFake()
	f.running = true
	_, dial := serve(t, f)
	for _, head := range []string{
		"POST /containers/none/attach?stream=1 HTTP/1.1\r\nHost: docker\r\n\r\n",
		"POST /containers/none/attach?stream=1 HTTP/1.0\r\n\r\n",
		"POST /exec/none/start HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
		"POST /exec/none/start HTTP/1.1\r\nHost: docker\r\nUpgrade: tcp\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n",
	} {
		c := dial()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		io.WriteString(c, head)
		if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.Contains(line, " 404 ") {
			t.Errorf("%q: %q, %v", head, line, err)
		}
		c.Close()
	}
}

// vanishing is a CopyTo that reads all that comes.
type vanishing struct {
	*fake
	ended chan error
}

func (v vanishing) CopyTo(_ context.Context, _, _ string, r io.Reader, _ engine.CopyOptions) error {
	_, err := io.Copy(io.Discard, r)
	v.ended <- err
	return err
}

// TestClientThatVanishes: what it sent is not taken for all that it wanted to send.
func TestClientThatVanishes(t *testing.T) {
	v := vanishing{newFake(), make(chan error, 1)}
	lns, err := Listen("unix://"+t.TempDir()+"/s", ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- New(v, Options{}).Serve(ctx, lns...) }()
	defer func() { cancel(); <-done }()
	c, err := net.Dial("unix", lns[0].(*socket).path)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "PUT /containers/web/archive?path=/ HTTP/1.1\r\nHost: docker\r\nContent-Length: 1000000\r\n\r\n%s", strings.Repeat("x", 1000))
	c.Close()
	select {
	case err := <-v.ended:
		if err == nil {
			t.Error("half a body was taken for the whole")
		}
	case <-time.After(10 * time.Second):
		t.Error("the engine still waits for a client that went")
	}
}

// TestHalfOpenConnections: ten thousand that never say what they want cost little, keep nobody out, and are given up.
func TestHalfOpenConnections(t *testing.T) {
	const n = 10000
	lim := unix.Rlimit{}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	count := n
	if lim.Max < 2*n+200 { // both ends are ours here
		count = (int(lim.Max) - 200) / 2
	}
	lim.Cur = lim.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	if count < 100 {
		t.Skipf("needs open files: this user may have %d", lim.Max)
	}
	lns, err := Listen("unix://"+t.TempDir()+"/s", ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- New(newFake(), Options{}).Serve(ctx, lns...) }()
	defer func() { cancel(); <-done }()
	path := lns[0].(*socket).path
	dial := func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) }
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
	used := func() uint64 {
		runtime.GC() // the first one finds what has to be closed, the next what that held
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	round := func() (kept uint64) {
		before := used()
		conns := make([]net.Conn, 0, count)
		for i := range count {
			c, err := dial(ctx, "", "")
			for ; errors.Is(err, unix.EAGAIN); c, err = dial(ctx, "", "") {
				time.Sleep(time.Millisecond) // the queue of those that are not accepted yet is full
			}
			if err != nil {
				t.Fatal(err)
			}
			if i%2 == 0 {
				io.WriteString(c, "GET /_ping HTTP/1.1\r\nHost: doc")
			}
			conns = append(conns, c)
		}
		begun := time.Now()
		resp, err := client.Get("http://docker/_ping")
		if err != nil || resp.StatusCode != 200 || time.Since(begun) > time.Second {
			t.Errorf("beside them: %v, %v after %v", resp, err, time.Since(begun))
		}
		if each := (used() - before) / uint64(count); each > 48<<10 {
			t.Errorf("a connection costs %d bytes", each)
		} else {
			t.Logf("%d connections of %d bytes", count, each)
		}
		for _, c := range conns {
			c.Close()
		}
		for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > 100; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d goroutines wait for connections that went", runtime.NumGoroutine())
			}
		}
		return used()
	}
	// What the runtime keeps for the next ones it keeps once.
	once := round()
	if again := round(); again > once+4<<20 {
		t.Errorf("%d bytes are used after one round, %d after the next", once, again)
	}
}

// TestHugeContext: a context without end is read from the network, not into memory.
func TestHugeContext(t *testing.T) {
	if headerTime > time.Minute || headerSize > 1<<20 || maxBody > 16<<20 {
		t.Error("limits that are none")
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	w.WriteHeader(&tar.Header{Name: "../../../etc/cron.d/x", Typeflag: tar.TypeReg, Mode: 0o644, Size: 1})
	w.Write([]byte("x"))
	w.WriteHeader(&tar.Header{Name: "Dockerfile", Typeflag: tar.TypeReg, Mode: 0o644, Size: maxDockerfile + 1})
	w.Write(bytes.Repeat([]byte("#"), maxDockerfile+1))
	w.Close()
	r := httptest.NewRequest("POST", "http://docker/build", &b)
	rec := httptest.NewRecorder()
	New(newFake(), Options{Scratch: t.TempDir()}).ServeHTTP(rec, r)
	if rec.Code != http.StatusBadRequest || !strings.Contains(rec.Body.String(), "larger than 4 MiB") {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

// slowOutput is a container whose last words take longer than the news of its end.
type slowOutput struct {
	*fake
	exited chan struct{}
}

func (s slowOutput) Wait(context.Context, string, container.WaitCondition) (int, error) {
	close(s.exited)
	return 5, nil
}

func (s slowOutput) Attach(_ context.Context, _ string, io monitor.Stdio) (monitor.Exit, error) {
	<-s.exited
	<-time.After(50 * time.Millisecond)
	_, err := io.Out.Write([]byte("last words"))
	return monitor.Exit{Code: 5}, err
}

// TestOutputComesBeforeTheEnd: programs read what they have once they hear that the container ended.
func TestOutputComesBeforeTheEnd(t *testing.T) {
	s := slowOutput{newFake(), make(chan struct{})}
	s.running, s.tty = true, true
	lns, err := Listen("unix://"+t.TempDir()+"/s", ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- New(s, Options{}).Serve(ctx, lns...) }()
	defer func() { cancel(); <-done }()
	dial := func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", lns[0].(*socket).path)
	}
	c, err := dial(ctx, "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	out := upgrade(t, c, "/v1.42/containers/web/attach?stream=1&stdout=1", "")
	resp, err := (&http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}).Post("http://docker/v1.42/containers/web/wait", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(b), `"StatusCode":5`) {
		t.Errorf("%s, %v", b, err)
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond)) // it is there already
	if b, err := out.Peek(10); string(b) != "last words" {
		t.Errorf("%q, %v", b, err)
	}
}
