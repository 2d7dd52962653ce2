package api

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/builder"
	"keg/internal/engine"
	"keg/internal/fault"
	"keg/internal/registry"
)

// kit is an engine that builds by looking at what it is given.
type kit struct {
	Engine
	look func(o builder.Options, progress func(builder.Event)) error
	made func(engine.BuildRequest)
	ask  registry.Ask
}

func (k *kit) Build(ctx context.Context, o builder.Options, progress func(builder.Event)) (*builder.Result, error) {
	if o.Fetch != nil {
		if err := o.Fetch(ctx, nil); err != nil {
			return nil, err
		}
	}
	if err := k.look(o, progress); err != nil {
		return nil, err
	}
	return &builder.Result{ConfigID: digest.FromString("built")}, nil
}

// kitServer is a server and how to reach it.
type kitServer struct {
	t    *testing.T
	sock string
	s    *Server
	http *http.Client
}

func newKitServer(t *testing.T, k *kit) *kitServer {
	t.Helper()
	return newKitServerOf(t, k, func(a registry.Ask) Engine { k.ask = a; return k })
}

func newKitServerOf(t *testing.T, e Engine, asking ...func(registry.Ask) Engine) *kitServer {
	t.Helper()
	o := Options{Version: "1", Scratch: filepath.Join(t.TempDir(), "contexts")}
	if len(asking) > 0 {
		o.Asking = asking[0]
	}
	ks := &kitServer{t: t, sock: filepath.Join(t.TempDir(), "s")}
	lns, err := Listen("unix://"+ks.sock, ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	ks.s = New(e, o)
	go func() { done <- ks.s.Serve(ctx, lns...) }()
	t.Cleanup(func() {
		cancel()
		<-done
		if left, _ := os.ReadDir(ks.s.o.Scratch); len(left) != 0 {
			t.Errorf("contexts are left: %v", left)
		}
	})
	ks.http = &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return ks.dial(), nil }}}
	t.Cleanup(ks.http.CloseIdleConnections)
	return ks
}

func (ks *kitServer) dial() net.Conn {
	c, err := net.Dial("unix", ks.sock)
	if err != nil {
		ks.t.Fatal(err)
	}
	return c
}

// upgrade asks for a session and returns the answer's status line and body's first line.
func (ks *kitServer) upgrade(c net.Conn, id string, headers ...string) (*http.Response, *bufio.Reader) {
	q := "POST /session HTTP/1.1\r\nHost: docker\r\nX-Docker-Expose-Session-Uuid: " + id + "\r\n"
	for _, h := range headers {
		q += h + "\r\n"
	}
	if _, err := io.WriteString(c, q+"\r\n"); err != nil {
		ks.t.Fatal(err)
	}
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, &http.Request{Method: "POST"})
	if err != nil {
		ks.t.Fatal(err)
	}
	return resp, in
}

// sent is a file of a client's, as it names it.
type sent struct {
	path, link, text string
	mode             fs.FileMode
}

// Protobuf as a client has it.
func number(b []byte, n int, v uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(n)<<3), v)
}
func text(b []byte, n int, s string) []byte {
	return append(binary.AppendUvarint(binary.AppendUvarint(b, uint64(n)<<3|2), uint64(len(s))), s...)
}

type bufConn struct {
	net.Conn
	in *bufio.Reader
}

func (c bufConn) Read(b []byte) (int, error) { return c.in.Read(b) }

// offer opens a session that has dirs, by name; it sends all of one, whatever was selected.
func (ks *kitServer) offer(id string, dirs map[string][]sent) {
	ks.t.Helper()
	c := ks.dial()
	resp, in := ks.upgrade(c, id, "Upgrade: h2c", "Connection: Upgrade", "X-Docker-Expose-Session-Grpc-Method: /moby.filesync.v1.FileSync/DiffCopy",
		"X-Docker-Expose-Session-Grpc-Method: /moby.filesync.v1.Auth/Credentials")
	if resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "h2c" {
		ks.t.Fatalf("%s %v", resp.Status, resp.Header)
	}
	srv := filesOf(dirs)
	l := &oneListener{conn: make(chan net.Conn, 1), done: make(chan struct{})}
	l.conn <- bufConn{c, in}
	go srv.Serve(l)
	ks.t.Cleanup(func() { srv.Close() })
}

// filesOf serves what a session with dirs offers.
func filesOf(dirs map[string][]sent) *http.Server {
	srv := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "Grpc-Status")
		send := func(b []byte) {
			w.Write(append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...))
			w.(http.Flusher).Flush()
		}
		receive := func() []byte {
			var head [5]byte
			io.ReadFull(r.Body, head[:])
			b := make([]byte, binary.BigEndian.Uint32(head[1:]))
			io.ReadFull(r.Body, b)
			return b
		}
		defer w.Header().Set("Grpc-Status", "0")
		if strings.HasSuffix(r.URL.Path, "Credentials") {
			host := receive()
			send(text(text(nil, 1, "me"), 2, "at "+string(host[2:])))
			return
		}
		files := dirs[r.Header.Get("Dir-Name")]
		wants := 0
		for _, f := range files {
			send(text(nil, 2, string(text(number(text(nil, 1, f.path), 2, uint64(f.mode)), 7, f.link))))
			if f.mode.IsRegular() && f.link == "" {
				wants++
			}
		}
		send(nil)
		for range wants {
			p := receive()
			if string(p[:2]) != "\x08\x01" { // an error: told, and the end
				return
			}
			id := uint64(0)
			if len(p) > 3 {
				id, _ = binary.Uvarint(p[3:])
			}
			if body := files[id].text; body != "" {
				send(text(number(number(nil, 1, 2), 3, id), 4, body))
			}
			send(number(number(nil, 1, 2), 3, id))
		}
		receive()
		send(number(nil, 1, 3))
	})}
	srv.Protocols.SetUnencryptedHTTP2(true)
	return srv
}

type oneListener struct {
	conn chan net.Conn
	once sync.Once
	done chan struct{}
}

func (l *oneListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *oneListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *oneListener) Addr() net.Addr { return &net.UnixAddr{} }

// build posts a build and returns the status and the messages.
func (ks *kitServer) build(query string, body io.Reader) (int, []map[string]any) {
	ks.t.Helper()
	q, err := http.NewRequest("POST", "http://docker/build?version=2&"+query, body)
	if err != nil {
		ks.t.Fatal(err)
	}
	q.Header.Set("X-Registry-Config", "bnVsbA==") // null, as Docker's client sends beside its session
	resp, err := ks.http.Do(q)
	if err != nil {
		ks.t.Fatal(err)
	}
	defer resp.Body.Close()
	var list []map[string]any
	for d := json.NewDecoder(resp.Body); ; {
		var m map[string]any
		if err := d.Decode(&m); err != nil {
			return resp.StatusCode, list
		}
		list = append(list, m)
	}
}

func TestSessionUpgrade(t *testing.T) {
	ks := newKitServer(t, &kit{})
	for _, c := range []struct {
		headers []string
		want    string
	}{
		{nil, "no upgrade"},
		{[]string{"Upgrade: foo", "Connection: Upgrade"}, "protocol foo not supported"},
	} {
		conn := ks.dial()
		resp, _ := ks.upgrade(conn, "bad", c.headers...)
		if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 400 || !strings.Contains(string(b), c.want) {
			t.Errorf("%q: %s %s", c.headers, resp.Status, b)
		}
		conn.Close()
	}
	first := ks.dial()
	if resp, _ := ks.upgrade(first, "one", "Upgrade: h2c", "Connection: Upgrade"); resp.StatusCode != 101 {
		t.Fatal(resp.Status)
	}
	second := ks.dial()
	defer second.Close()
	resp, _ := ks.upgrade(second, "one", "Upgrade: h2c", "Connection: Upgrade")
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 409 || !strings.Contains(string(b), "session one already exists") {
		t.Errorf("the id twice: %s %s", resp.Status, b)
	}
	first.Close()
	for end := time.Now().Add(10 * time.Second); ks.s.sessions.has("one"); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the session outlives its client")
		}
	}
	for i := range maxSessions {
		ks.s.sessions.claim(string(rune('a' + i)))
	}
	third := ks.dial()
	defer third.Close()
	if resp, _ := ks.upgrade(third, "more", "Upgrade: h2c", "Connection: Upgrade"); resp.StatusCode != 503 {
		t.Errorf("one session more than may be: %s", resp.Status)
	}
}

func TestBuildFromSession(t *testing.T) {
	k := &kit{}
	ks := newKitServer(t, k)
	ks.offer("s1", map[string][]sent{
		"dockerfile": {{path: "My", text: "FROM scratch\n", mode: 0o644}, {path: "My.dockerignore", text: "skipped", mode: 0o644}},
		"context": {{path: "dir", mode: fs.ModeDir | 0o700}, {path: "dir/file", text: "content", mode: fs.ModeSetuid | 0o755}, {path: "empty", mode: 0o600},
			{path: "hard", link: "dir/file", mode: fs.ModeSetuid | 0o755}, {path: "link", link: "/etc/passwd", mode: fs.ModeSymlink | 0o777}, {path: "pipe", mode: fs.ModeNamedPipe}},
	})
	k.look = func(o builder.Options, progress func(builder.Event)) error {
		list := ""
		filepath.WalkDir(o.Context, func(p string, d fs.DirEntry, err error) error {
			if p != o.Context {
				st, _ := d.Info()
				list += strings.TrimPrefix(p, o.Context) + " " + st.Mode().String() + "\n"
			}
			return err
		})
		if want := "/dir drwx------\n/dir/file urwxr-xr-x\n/empty -rw-------\n/hard urwxr-xr-x\n/link Lrwxrwxrwx\n"; list != want {
			t.Errorf("the context:\n%s", list)
		}
		if b, _ := os.ReadFile(filepath.Join(o.Context, "hard")); string(b) != "content" {
			t.Errorf("content %q", b)
		}
		b, err := os.ReadFile(o.Dockerfile)
		ignore, _ := os.ReadFile(o.Dockerfile + ".dockerignore")
		if string(b) != "FROM scratch\n" || filepath.Base(o.Dockerfile) != "My" || strings.TrimSpace(string(ignore)) != "skipped" {
			t.Errorf("Dockerfile %s: %q, ignored %q, %v", o.Dockerfile, b, ignore, err)
		}
		if cr, err := k.ask(t.Context(), "docker.io"); cr.Username != "me" || cr.Password != "at https://index.docker.io/v1/" || err != nil {
			t.Errorf("account %q %q %v", cr.Username, cr.Password, err)
		}
		if _, found, err := o.Caller.Secret(t.Context(), "s"); found || err != nil {
			t.Errorf("a secret that is not offered: %v", err)
		}
		now := time.Now()
		progress(builder.Event{Vertex: 1, Name: "[1/1] FROM scratch", Started: &now})
		progress(builder.Event{Vertex: 1, Log: []byte("words")})
		progress(builder.Event{Vertex: 1, Finished: &now})
		return nil
	}
	const query = "session=s1&remote=client-session&dockerfile=My&buildid=b1"
	code, list := ks.build(query, nil)
	if code != 200 || len(list) < 4 {
		t.Fatalf("%d %v", code, list)
	}
	last := list[len(list)-1]
	if aux, _ := last["aux"].(map[string]any); last["id"] != "moby.image.id" || aux["ID"] != digest.FromString("built").String() {
		t.Errorf("the last message %v", last)
	}
	for _, m := range list[:len(list)-1] {
		if m["id"] != "moby.buildkit.trace" {
			t.Errorf("message %v", m)
		}
	}
	// Quiet: the id alone.
	if code, list := ks.build(query+"&q=1", nil); code != 200 || len(list) != 1 || list[0]["stream"] != digest.FromString("built").String()+"\n" {
		t.Errorf("quiet: %d %v", code, list)
	}
	look := k.look
	k.look = func(o builder.Options, progress func(builder.Event)) error {
		look(o, progress)
		return fault.Invalidf("process did not complete")
	}
	code, list = ks.build(query, nil)
	if last := list[len(list)-1]; code != 200 || last["error"] != "process did not complete" {
		t.Errorf("a failure: %d %v", code, last)
	}
	// Nothing of an image.
	k.look = func(o builder.Options, _ func(builder.Event)) error {
		if !o.NoImage {
			t.Error("an image is made")
		}
		return nil
	}
	if code, list := ks.build(query+"&q=1&outputs=%5B%7B%22Type%22%3A%22cacheonly%22%7D%5D", nil); code != 200 || len(list) != 0 {
		t.Errorf("cacheonly: %d %v", code, list)
	}
}

// TestHostileSession: nothing of the host gets into a build, nothing of a build out of its directory.
func TestHostileSession(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("FROM host"), 0o600); err != nil {
		t.Fatal(err)
	}
	k := &kit{look: func(o builder.Options, _ func(builder.Event)) error {
		b, _ := os.ReadFile(o.Dockerfile)
		ignore, _ := os.ReadFile(o.Dockerfile + ".dockerignore")
		return fault.Invalidf("built %q %q", b, ignore)
	}}
	ks := newKitServer(t, k)
	good := []sent{{path: "Dockerfile", text: "FROM scratch", mode: 0o644}}
	for i, c := range []struct {
		what string
		dirs map[string][]sent
		want string
	}{
		{"a Dockerfile that leads out", map[string][]sent{"dockerfile": {{path: "Dockerfile", link: secret, mode: fs.ModeSymlink}}}, "failed to read dockerfile"},
		{"an ignore file that leads out", map[string][]sent{"dockerfile": append(good, sent{path: "Dockerfile.dockerignore", link: secret, mode: fs.ModeSymlink})}, "Dockerfile.dockerignore"},
		{"no Dockerfile", nil, "failed to read dockerfile: open Dockerfile: no such file or directory"},
		{"an empty Dockerfile", map[string][]sent{"dockerfile": {{path: "Dockerfile", mode: 0o644}}}, "cannot be empty"},
		{"a file through a link", map[string][]sent{"dockerfile": good, "context": {{path: "d", link: filepath.Dir(secret), mode: fs.ModeSymlink}, {path: "d/secret", text: "x", mode: 0o644}}}, "unpack"},
		{"another name of a file outside", map[string][]sent{"dockerfile": good, "context": {{path: "h", link: "../../../../" + secret, mode: 0o644}}}, "unpack"},
		{"a path that leads out", map[string][]sent{"dockerfile": good, "context": {{path: "../../secret", text: "x", mode: 0o644}}}, "name"},
		{"a file over a directory", map[string][]sent{"dockerfile": good, "context": {{path: "d", mode: fs.ModeDir | 0o755}, {path: "d", text: "x", mode: 0o644}}}, "replaces a directory"},
		{"a file twice", map[string][]sent{"dockerfile": good, "context": {{path: "d", text: "1", mode: 0o644}, {path: "d", text: "2", mode: 0o644}}}, "built \"FROM scratch\""},
	} {
		id := string(rune('a' + i))
		ks.offer(id, c.dirs)
		_, list := ks.build("remote=client-session&session="+id, nil)
		b, _ := json.Marshal(list)
		text := ""
		for _, m := range list {
			for _, key := range []string{"error", "message"} {
				if s, ok := m[key].(string); ok {
					text += s
				}
			}
		}
		if !strings.Contains(text, c.want) || strings.Contains(string(b), "FROM host") {
			t.Errorf("%s: %s", c.what, b)
		}
	}
	if b, err := os.ReadFile(secret); string(b) != "FROM host" {
		t.Errorf("the host's file: %q %v", b, err)
	}
}

func TestBuildKitQueries(t *testing.T) {
	k := &kit{look: func(o builder.Options, _ func(builder.Event)) error {
		if string(o.Text) != "FROM tar\n" {
			t.Errorf("Dockerfile %q", o.Text)
		}
		return nil
	}}
	ks := newKitServer(t, k)
	for query, want := range map[string]string{
		"remote=client-session":                        "session",
		"outputs=%5B%7B%22Type%22%3A%22local%22%7D%5D": "output of type",
		"outputs=%5B%7B%7D%2C%7B%7D%5D":                "multiple outputs",
		"outputs=1":                                    "error reading outputs",
		"t=UPPER":                                      "invalid",
	} {
		code, list := ks.build(query, nil)
		if code < 400 || len(list) != 1 || !strings.Contains(list[0]["message"].(string), want) {
			t.Errorf("%s: %d %v", query, code, list)
		}
	}
	if resp, err := ks.http.Post("http://docker/build?remote=client-session", "", nil); err != nil || resp.StatusCode != 400 {
		t.Errorf("version 1 with a session: %v %v", resp, err)
	}
	// A tar in the body, with a session or without.
	body := func() io.Reader { return contextTar(t, "Dockerfile", "FROM tar\n") }
	if code, list := ks.build("q=1", body()); code != 200 || len(list) != 1 {
		t.Errorf("a tar: %d %v", code, list)
	}
	// A tar that another request brings, before the build or after it.
	for _, first := range []bool{true, false} {
		done := make(chan int)
		bring := func() {
			code, _ := ks.build("remote=client-session&buildid=upload-request:u1", body())
			done <- code
		}
		if first {
			go bring()
			time.Sleep(20 * time.Millisecond)
		}
		go func() {
			code, _ := ks.build("q=1&remote=upload-request&buildid=u1", nil)
			done <- code
		}()
		if !first {
			time.Sleep(20 * time.Millisecond)
			go bring()
		}
		if a, b := <-done, <-done; a != 200 || b != 200 {
			t.Errorf("an upload: %d %d", a, b)
		}
	}
	if len(ks.s.uploads.m) != 0 {
		t.Error("uploads are remembered")
	}
}

func contextTar(t *testing.T, name, text string) io.Reader {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, text)
	w.Close()
	return &b
}

// TestTraceSaysNothingEmpty: clients read what is under aux without looking whether it is there.
func TestTraceSaysNothingEmpty(t *testing.T) {
	rec := httptest.NewRecorder()
	out := &lines{progress: progress{w: &reply{ResponseWriter: rec}}}
	out.trace = newTrace("b", out.tell)
	now := time.Now()
	out.event(builder.Event{Vertex: 1, Name: "step", Started: &now})
	said := rec.Body.Len()
	out.event(builder.Event{Vertex: 1})
	if more := rec.Body.String()[said:]; said == 0 || more != "" {
		t.Errorf("after %d bytes: %q", said, more)
	}
}
