package api

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"keg/internal/engine"
	"keg/internal/fault"
	"keg/internal/monitor"
)

func itoa(n int) string { return strconv.Itoa(n) }

func actor(id string) events.Actor {
	return events.Actor{ID: id, Attributes: map[string]string{"image": "keg/shell"}}
}

func messageOf(t *testing.T, b []byte) string {
	t.Helper()
	var m struct{ Message string }
	if err := json.Unmarshal(b, &m); err != nil || m.Message == "" {
		t.Errorf("no Docker error: %q, %v", b, err)
	}
	return m.Message
}

func TestVersions(t *testing.T) {
	for path, want := range map[string]int{
		"/_ping": 200, "/v1.24/_ping": 200, "/v1.51/_ping": 200, "/v1.56/_ping": 200, "/v1.57/_ping": 400, "/v1.23/_ping": 400, "/v2.0/_ping": 404,
		"/v1.024/_ping": 404, "/v1.24": 404, "/nothing": 404, "/v1.24/system/df": 400, "/%zz": 404,
	} {
		if path == "/%zz" {
			continue // no URL at all: net/http refuses it
		}
		w := ask(newFake(), "GET", path, "")
		if w.Code != want {
			t.Errorf("%s: %d, want %d: %s", path, w.Code, want, w.Body)
		}
		if w.Code >= 400 {
			messageOf(t, w.Body.Bytes())
		}
		for _, h := range []string{"Api-Version", "Ostype", "Server", "Docker-Experimental"} {
			if w.Header().Get(h) == "" {
				t.Errorf("%s: no header %s", path, h)
			}
		}
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, path, name string
		ok                  bool
	}{
		{"/images/{name*}/json", "/images/a/json", "a", true},
		{"/images/{name*}/json", "/images/host:5000/a/b:1/json", "host:5000/a/b:1", true},
		{"/images/{name*}/json", "/images/json", "", false},
		{"/images/{name*}", "/images/a/b", "a/b", true},
		{"/images/{name*}", "/images/", "", false},
		{"/containers/{name}/json", "/containers/a/b/json", "", false},
		{"/containers/{name}/json", "/containers//json", "", false},
	} {
		vars, ok := match(strings.Split(c.pattern[1:], "/"), strings.Split(c.path[1:], "/"))
		if ok != c.ok || ok && vars["name"] != c.name {
			t.Errorf("%s on %s: %v, %v", c.pattern, c.path, vars, ok)
		}
	}
}

func TestStatuses(t *testing.T) {
	for kind, want := range map[fault.Kind]int{fault.Unknown: 500, fault.NotFound: 404, fault.Conflict: 409, fault.Invalid: 400,
		fault.Denied: 403, fault.Unauthorized: 401, fault.Unavailable: 503, fault.Unsupported: 501} {
		f := newFake()
		f.fail = fault.Errorf(kind, "what is wrong")
		w := ask(f, "POST", "/containers/web/kill?signal=HUP", "")
		if w.Code != want || messageOf(t, w.Body.Bytes()) != "what is wrong" {
			t.Errorf("%s: %d %s", kind, w.Code, w.Body)
		}
		if !slices.Equal(f.calls, []string{"kill web HUP"}) {
			t.Errorf("calls: %v", f.calls)
		}
	}
	f := newFake()
	f.fail = &engine.ExitError{Code: 127, Err: io.EOF}
	if w := ask(f, "POST", "/containers/web/start", ""); w.Code != 400 {
		t.Errorf("program not found: %d", w.Code)
	}
	f = newFake()
	f.running = true
	if w := ask(f, "POST", "/containers/web/start", ""); w.Code != 304 || w.Body.Len() != 0 {
		t.Errorf("started twice: %d %s", w.Code, w.Body)
	}
}

// TestCreateByABadName: clients look for Docker's words and no others; people hear from their client what is wrong.
func TestCreateByABadName(t *testing.T) {
	f := newFake()
	f.fail = fault.Invalidf("invalid reference format: the tag is bad: %q", "a:sha256:1")
	w := ask(f, "POST", "/containers/create", `{"Image":"a:sha256:1"}`)
	if got := messageOf(t, w.Body.Bytes()); w.Code != 400 || got != "invalid reference format" {
		t.Errorf("%d %s", w.Code, got)
	}
}

// TestBrowsersAreRefused: row AP2 of the threats, with its positive twins.
func TestBrowsersAreRefused(t *testing.T) {
	for host, want := range map[string]int{"docker": 200, "localhost": 200, "localhost:2375": 200, "api.moby.localhost": 200, "127.0.0.1:80": 200,
		"[::1]:1": 200, "%2Fvar%2Frun%2Fdocker.sock": 200, "evil.com": 403, "evil.com:2375": 403, "10.0.0.1": 403, "EVIL.Com.": 403} {
		if w := ask(newFake(), "GET", "/_ping", "", "Host", host); w.Code != want {
			t.Errorf("host %s: %d, want %d", host, w.Code, want)
		}
	}
	if w := ask(newFake(), "GET", "/_ping", "", "Origin", "http://localhost"); w.Code != 403 {
		t.Errorf("a page: %d", w.Code)
	}
	if w := ask(newFake(), "GET", "/containers/web/attach/ws", "", "Upgrade", "websocket", "Origin", "http://evil.com"); w.Code != 403 {
		t.Errorf("a page with a WebSocket: %d", w.Code)
	}
	for _, ct := range []string{"text/plain", "application/x-www-form-urlencoded", "multipart/form-data"} {
		if w := ask(newFake(), "POST", "/containers/create", `{"Image":"a"}`, "Content-Type", ct); w.Code != 400 {
			t.Errorf("a form as %s: %d", ct, w.Code)
		}
	}
}

// TestBodies: rows AP3 and AP4. The whole body counts, however it comes.
func TestBodies(t *testing.T) {
	deep := strings.Repeat(`{"a":`, 20000)
	for body, want := range map[string]int{
		`{"Image":"keg/shell"}`: 201, "": 400, "{": 400, "null": 400, "[]": 400, `{"Image":1}`: 400, `{"Image":"a"}{}`: 400, "{}": 400, deep: 400,
		`{"Image":"a","HostConfig":null,"NetworkingConfig":null}`:                                  201,
		`{"Image":"a","Unknown":{"b":1}}`:                                                          201,
		`{"Image":"a","Labels":{"x":"` + strings.Repeat("y", 1<<20+1) + `"}}`:                      201,
		`{"Image":"a","Labels":{"x":"` + strings.Repeat("y", maxBody) + `"}}`:                      413,
		`{"Image":"a","HostConfig":{"PortBindings":{"80":[{"HostPort":"x"}]}},"ExposedPorts":"x"}`: 400,
	} {
		w := ask(newFake(), "POST", "/containers/create", body)
		if w.Code != want {
			t.Errorf("%.60q: %d, want %d: %.200s", body, w.Code, want, w.Body)
		}
		if w.Code >= 400 {
			messageOf(t, w.Body.Bytes())
		}
	}
}

func TestFilters(t *testing.T) {
	for text, want := range map[string]string{
		`{"label":["a"]}`:                       `"label":["a"]`,
		`{"label":{"a":true,"b":false}}`:        `"label":["a"]`,
		`{"status":{"exited":true},"name":{} }`: `"status":["exited"]`,
	} {
		f := newFake()
		r := ask(f, "GET", "/containers/json?limit=3&filters="+strings.NewReplacer(" ", "", `"`, "%22", "{", "%7B", "}", "%7D").Replace(text), "")
		if r.Code != 200 || !strings.Contains(f.calls[0], want) || !strings.Contains(f.calls[0], `"Last":3`) {
			t.Errorf("%s: %d %s %v", text, r.Code, r.Body, f.calls)
		}
	}
	if w := ask(newFake(), "GET", "/containers/json?filters=%7B", ""); w.Code != 400 {
		t.Errorf("a broken filter: %d", w.Code)
	}
}

// TestAttachBeforeStart is docker run: attach, wait, start, in this order.
func TestAttachBeforeStart(t *testing.T) {
	f := newFake()
	client, dial := serve(t, f)
	c := dial()
	// dockerode says in a body what it wants; that is not typed into the program.
	in := upgrade(t, c, "/v1.42/containers/web/attach?stream=1&stdin=1&stdout=1&stderr=1", `{"stream":true}`)
	waited := make(chan container.WaitResponse, 1)
	resp, err := client.Post("http://docker/v1.42/containers/web/wait?condition=next-exit", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		var w container.WaitResponse
		_ = json.NewDecoder(resp.Body).Decode(&w)
		resp.Body.Close()
		waited <- w
	}()
	if resp, err := client.Post("http://docker/v1.42/containers/web/start", "", nil); err != nil || resp.StatusCode != 204 {
		t.Fatal(resp, err)
	}
	io.WriteString(c, "typed")
	c.(*net.UnixConn).CloseWrite()
	got := map[byte]string{}
	for {
		var head [8]byte
		if _, err := io.ReadFull(in, head[:]); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, binary.BigEndian.Uint32(head[4:]))
		if _, err := io.ReadFull(in, b); err != nil {
			t.Fatal(err)
		}
		got[head[0]] += string(b)
	}
	if got[1] != "hellotyped" || got[2] != "oops" {
		t.Errorf("streams: %q", got)
	}
	select {
	case w := <-waited:
		if w.StatusCode != 3 || w.Error != nil {
			t.Errorf("waited for %+v", w)
		}
	case <-time.After(5 * time.Second):
		t.Error("the wait does not end")
	}
}

func TestTerminalIsRaw(t *testing.T) {
	f := newFake()
	f.tty = true
	client, dial := serve(t, f)
	c := dial()
	in := upgrade(t, c, "/containers/web/attach?stream=1&stdout=1&stderr=1", "")
	if resp, err := client.Post("http://docker/containers/web/start", "", nil); err != nil || resp.StatusCode != 204 {
		t.Fatal(resp, err)
	}
	b, err := io.ReadAll(in)
	if string(b) != "hello" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

// TestFailedStartEndsTheWaiting: nobody hangs on a program that never ran.
func TestFailedStartEndsTheWaiting(t *testing.T) {
	f := newFake()
	f.fail = &engine.ExitError{Code: 126, Err: io.ErrUnexpectedEOF}
	client, dial := serve(t, f)
	in := upgrade(t, dial(), "/containers/web/attach?stream=1&stdout=1", "")
	if resp, err := client.Post("http://docker/containers/web/start", "", nil); err != nil || resp.StatusCode != 400 {
		t.Fatal(resp, err)
	}
	if b, err := io.ReadAll(in); len(b) != 0 || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

// TestLeaversAreForgotten: clients that vanish before a start leave nothing in memory.
func TestLeaversAreForgotten(t *testing.T) {
	var v vigils
	a, b := v.join("x", nil), v.join("x", nil)
	if a != b {
		t.Fatal("two vigils for one container")
	}
	v.leave("x", a)
	if len(v.m) != 1 {
		t.Error("the other one is forgotten")
	}
	v.leave("x", b)
	if len(v.m) != 0 || v.take("x") != nil {
		t.Error("somebody is remembered")
	}
}

func TestPanicIsAnError(t *testing.T) {
	var log bytes.Buffer
	w := &bytes.Buffer{}
	s := New(newFake(), Options{Log: &log})
	rec := newRecorder(w)
	r, _ := http.NewRequest("GET", "http://docker/images/a/history", nil) // the fake has none
	s.ServeHTTP(rec, r)
	if rec.code != 500 || !strings.Contains(log.String(), "panic while answering GET") {
		t.Errorf("%d, log %q", rec.code, log.String())
	}
	messageOf(t, w.Bytes())
}

type recorder struct {
	*bytes.Buffer
	h    http.Header
	code int
}

func newRecorder(b *bytes.Buffer) *recorder  { return &recorder{b, http.Header{}, 0} }
func (r *recorder) Header() http.Header      { return r.h }
func (r *recorder) WriteHeader(statuses int) { r.code = statuses }

func TestEventsStream(t *testing.T) {
	client, _ := serve(t, newFake())
	resp, err := client.Get("http://docker/v1.51/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var e struct{ Status, ID, From, Type string }
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || e.Status != "die" || e.ID != "cafe" || e.From != "keg/shell" {
		t.Errorf("%+v, %v", e, err)
	}
	if w := ask(newFake(), "GET", "/events?since=20&until=10", ""); w.Code != 400 {
		t.Errorf("since after until: %d", w.Code)
	}
}

func TestAuth(t *testing.T) {
	f := newFake()
	w := ask(f, "POST", "/auth", `{"username":"a","password":"secret","serveraddress":"localhost:5000"}`)
	if w.Code != 200 || !strings.Contains(w.Body.String(), "Login Succeeded") || !slices.Contains(f.calls, "login localhost:5000 a") {
		t.Errorf("%d %s %v", w.Code, w.Body, f.calls)
	}
	s := New(f, Options{As: nil})
	r := &request{Request: &http.Request{Header: http.Header{"X-Registry-Auth": {"!!"}}}}
	if e, err := s.account(r, "x"); e != Engine(f) || err != nil {
		t.Errorf("without accounts: %v", err)
	}
	_, _ = serve(t, f)
	r.Header.Set("X-Registry-Auth", base64.URLEncoding.EncodeToString([]byte(`{}`)))
	if _, err := s.account(r, "x"); err != nil {
		t.Error(err)
	}
}

func TestListenRefuses(t *testing.T) {
	for addr, kind := range map[string]fault.Kind{"tcp://127.0.0.1:0": fault.Denied, "fd://": fault.Invalid, "npipe:////x": fault.Invalid,
		"unix://relative": fault.Invalid} {
		if _, err := Listen(addr, ListenOptions{}); fault.KindOf(err) != kind {
			t.Errorf("%s: %v", addr, err)
		}
	}
	sock := filepath.Join(t.TempDir(), "s")
	lns, err := Listen("unix://"+sock, ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(sock); st.Mode().Perm() != 0o660 {
		t.Errorf("mode %v", st.Mode())
	}
	if _, err := Listen(sock, ListenOptions{}); !fault.Is(err, fault.Conflict) {
		t.Errorf("a second server: %v", err)
	}
	lns[0].Close()
	dead, _ := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	dead.SetUnlinkOnClose(false)
	dead.Close()
	if lns, err = Listen(sock, ListenOptions{}); err != nil {
		t.Fatalf("in place of a dead server: %v", err)
	}
	lns[0].Close()
	if err := os.WriteFile(sock, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(sock, ListenOptions{}); !fault.Is(err, fault.Conflict) {
		t.Errorf("over a file: %v", err)
	}
}

// TestContextStaysInside: no entry of a context reaches outside of its directory.
func TestContextStaysInside(t *testing.T) {
	outer := t.TempDir()
	unpack := func(hs ...tar.Header) error {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range hs {
			h.Mode = 0o755 // directories must be removable by an ordinary user
			if h.Typeflag == tar.TypeReg {
				h.Size = 4
			}
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if h.Typeflag == tar.TypeReg {
				io.WriteString(w, "evil")
			}
		}
		w.Close()
		dir := filepath.Join(outer, "ctx")
		os.RemoveAll(dir)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		_, err = unpackContext(root, &b, false)
		return err
	}
	for _, hs := range [][]tar.Header{
		{{Name: "../out", Typeflag: tar.TypeReg}},
		{{Name: "/../../out", Typeflag: tar.TypeReg}},
		{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "l/out", Typeflag: tar.TypeReg}},
		{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: outer}, {Name: "l/out", Typeflag: tar.TypeReg}},
		{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../out"}, {Name: "l", Typeflag: tar.TypeReg}},
		{{Name: "h", Typeflag: tar.TypeLink, Linkname: "../../etc/passwd"}},
	} {
		_ = unpack(hs...)
		if _, err := os.Lstat(filepath.Join(outer, "out")); err == nil {
			t.Fatalf("%v got out", hs)
		}
	}
	if err := unpack(tar.Header{Name: "dev", Typeflag: tar.TypeChar}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a device: %v", err)
	}
	if err := unpack(tar.Header{Name: "d/", Typeflag: tar.TypeDir}, tar.Header{Name: "d/f", Typeflag: tar.TypeReg}); err != nil {
		t.Error(err)
	}
}

func TestScratchIsSwept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "contexts")
	mine, remove, err := makeScratch(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "dead", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, remove2, err := makeScratch(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(mine); err != nil {
		t.Errorf("one in use was swept: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "dead")); err == nil {
		t.Error("a dead server's stays")
	}
	remove()
	remove2()
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestSmallGrammars(t *testing.T) {
	for in, want := range map[string]string{"": "\x10\x11", "ctrl-a": "\x01", "ctrl-@,q": "\x00q", "x,ctrl-\\": "x\x1c"} {
		if got, err := detachKeys(in); string(got) != want || err != nil {
			t.Errorf("detach keys %q: %q, %v", in, got, err)
		}
	}
	if _, err := detachKeys("ctrl-1"); !fault.Is(err, fault.Invalid) {
		t.Error("ctrl-1 is no key")
	}
	if got := splitWords(`-o "pid,args" 'a b'  c`); !slices.Equal(got, []string{"-o", "pid,args", "a b", "c"}) {
		t.Errorf("%q", got)
	}
	for in, want := range map[string]string{"[2/5] RUN make": "2/5 RUN make", "[build 1/2] FROM x": "1/2 FROM x", "[internal] load": "", "exporting": ""} {
		step, rest, ok := stepOf(in)
		if got := strings.TrimSpace(step + " " + rest); ok != (want != "") || got != want {
			t.Errorf("%q: %q, %v", in, got, ok)
		}
	}
}

// FuzzRequests: whatever a client sends to whatever route, there is an answer in Docker's
// shape and no panic of our own (a method that the fake lacks is one of the engine's).
func FuzzRequests(f *testing.F) {
	for i := range routes() {
		f.Add(i, "web", "all=1&filters={}", `{"Image":"a"}`)
	}
	f.Add(7, "", "filters=%7B%22a%22%3A1%7D&h=99999&t=x", `{"HostConfig":{"Binds":[null]}}`)
	f.Fuzz(func(t *testing.T, i int, name, query, body string) {
		rs := routes()
		r := rs[int(uint(i)%uint(len(rs)))]
		var log bytes.Buffer
		s := New(newFake(), Options{Log: &log, Scratch: t.TempDir()})
		path := strings.NewReplacer("{name}", escape(name), "{name*}", escape(name), "{id}", escape(name)).Replace(r.path)
		q, err := http.NewRequest(r.method, "http://docker"+path, strings.NewReader(body))
		if err != nil {
			return
		}
		q.URL.RawQuery = query
		q.Header.Set("Content-Type", "application/json")
		ctx, cancel := timeoutContext()
		defer cancel()
		var out bytes.Buffer
		rec := newRecorder(&out)
		func() {
			defer func() {
				if p := recover(); p != nil && p != http.ErrAbortHandler {
					panic(p)
				}
			}()
			s.ServeHTTP(rec, q.WithContext(ctx))
		}()
		if strings.Contains(log.String(), "panic") && !strings.Contains(log.String(), "nil pointer dereference") {
			t.Fatalf("%s %s: %s", r.method, path, log.String())
		}
		if rec.code >= 400 && rec.code != 500 {
			messageOf(t, out.Bytes())
		}
	})
}

// answering is an engine that knows the exit of every container.
type answering struct {
	*fake
	code int
}

func (a answering) Wait(context.Context, string, container.WaitCondition) (int, error) {
	time.Sleep(20 * time.Millisecond) // the record comes later than the news
	return a.code, nil
}

// TestWaitOfTheShortLived: a program may end before whoever started it can follow it; its exit is in the record.
func TestWaitOfTheShortLived(t *testing.T) {
	s := New(answering{newFake(), 3}, Options{})
	for _, cond := range []container.WaitCondition{container.WaitConditionNextExit, container.WaitConditionRemoved} {
		v := &vigil{ended: make(chan struct{}), left: make(chan struct{})}
		v.end(monitor.Exit{}, fault.Conflictf("container x is not running"))
		if code, err := s.wait(t.Context(), "x", cond, v); code != 3 || err != nil {
			t.Errorf("%s: %d, %v", cond, code, err)
		}
	}
	v := &vigil{ended: make(chan struct{}), left: make(chan struct{})}
	v.end(monitor.Exit{Code: 127}, fault.NotFoundf("no such program"))
	if code, err := s.wait(t.Context(), "x", container.WaitConditionNextExit, v); code != 127 || err == nil {
		t.Errorf("a failed start: %d, %v", code, err)
	}
}
