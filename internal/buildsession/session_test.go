package buildsession

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"keg/internal/grpc"
)

// single is a listener of one connection.
type single struct {
	conn chan net.Conn
	once sync.Once
	done chan struct{}
}

func (l *single) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *single) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *single) Addr() net.Addr { return &net.UnixAddr{} }

// begin opens a session with a client that answers calls with h.
func begin(t *testing.T, h http.HandlerFunc, methods ...string) (*Session, net.Conn) {
	t.Helper()
	ours, theirs := net.Pipe()
	srv := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	srv.Protocols.SetUnencryptedHTTP2(true)
	l := &single{conn: make(chan net.Conn, 1), done: make(chan struct{})}
	l.conn <- theirs
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	s, err := Open(t.Context(), ours, http.Header{HeaderID: {"id"}, HeaderMethod: methods})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, theirs
}

func frame(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
}

func unframe(t *testing.T, r io.Reader) []byte {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil
	}
	b := make([]byte, binary.BigEndian.Uint32(head[1:]))
	if _, err := io.ReadFull(r, b); err != nil {
		t.Error(err)
	}
	return b
}

// answer sends one message and a status.
func answer(w http.ResponseWriter, message []byte, code, text string) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status, Grpc-Message")
	if message != nil {
		w.Write(frame(message))
	}
	w.Header().Set("Grpc-Status", code)
	w.Header().Set("Grpc-Message", text)
}

func TestSecret(t *testing.T) {
	s, _ := begin(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != methodSecret || r.Header.Get("Content-Type") != "application/grpc" || r.Header.Get("Te") != "trailers" {
			t.Errorf("asked %s %v", r.URL.Path, r.Header)
		}
		switch id, _ := textOf(unframe(t, r.Body), 1); string(id) {
		case "s":
			answer(w, grpc.AppendText(nil, 1, "word"), "0", "")
		case "empty":
			answer(w, []byte{}, "0", "")
		case "none":
			answer(w, nil, "5", "secret none: not found")
		case "failing":
			answer(w, nil, "2", "no%20luck%0A")
		case "large":
			answer(w, grpc.AppendText(nil, 1, make([]byte, maxSecret+1)), "0", "")
		case "silent":
			answer(w, nil, "0", "")
		case "broken":
			answer(w, []byte{0x0a, 9}, "0", "")
		case "twice":
			w.Write(frame(nil))
			answer(w, []byte{}, "0", "")
		case "huge":
			w.Write([]byte{0, 0xff, 0xff, 0xff, 0xff})
		case "compressed":
			w.Write([]byte{1, 0, 0, 0, 0})
		case "cut":
			w.Write([]byte{0, 0, 0, 1, 0, 'x'})
		case "statusless":
			w.Write(frame(nil))
		case "refusing":
			w.WriteHeader(http.StatusTeapot)
		}
	}, "/moby.buildkit.secrets.v1.Secrets/GetSecret")
	for _, c := range []struct {
		id, data string
		found    bool
		err      string
	}{
		{"s", "word", true, ""},
		{"empty", "", true, ""},
		{"none", "", false, ""},
		{"failing", "", false, "secret failing: no luck\n"},
		{"large", "", false, "larger than"},
		{"silent", "", false, "does not answer"},
		{"broken", "", false, "cut off"},
		{"twice", "", false, "more than it was asked"},
		{"huge", "", false, "4294967295 bytes"},
		{"compressed", "", false, "compressed 1"},
		{"cut", "", false, "unexpected EOF"},
		{"statusless", "", false, "without a status"},
		{"refusing", "", false, "418"},
	} {
		data, found, err := s.Secret(t.Context(), c.id)
		if string(data) != c.data || found != c.found || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %.20q %v %v", c.id, data, found, err)
		}
	}
	// What was not offered is not asked for.
	if name, secret, err := s.Credentials(t.Context(), "docker.io"); name+secret != "" || err != nil {
		t.Errorf("credentials: %q %q %v", name, secret, err)
	}
	if s.HasAgent(t.Context(), "default") {
		t.Error("an agent")
	}
	if err := s.Files(t.Context(), Select{Dir: "context"}, &memory{}, nil); err == nil {
		t.Error("files")
	}
}

func TestCredentials(t *testing.T) {
	s, _ := begin(t, func(w http.ResponseWriter, r *http.Request) {
		host, _ := textOf(unframe(t, r.Body), 1)
		if r.URL.Path != methodCredentials || string(host) != "localhost:5000" {
			t.Errorf("asked %s for %q", r.URL.Path, host)
		}
		answer(w, grpc.AppendText(grpc.AppendText(nil, 1, "me"), 2, "word"), "0", "")
	}, methodCredentials)
	if name, secret, err := s.Credentials(t.Context(), "localhost:5000"); name != "me" || secret != "word" || err != nil {
		t.Errorf("%q %q %v", name, secret, err)
	}
}

// TestFilesOverConnection: both directions at once, with what was selected in the header.
func TestFilesOverConnection(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 64<<10) // more than a window
	s, _ := begin(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Dir-Name") != "context" || strings.Join(r.Header["Exclude-Patterns"], " ") != "a !b" || r.Header.Get("Followpaths") != "f" {
			t.Errorf("selected: %v", r.Header)
		}
		w.Header().Set("Trailer", "Grpc-Status")
		send := func(p packet) {
			w.Write(frame(p.encode()))
			w.(http.Flusher).Flush()
		}
		send(stat(Stat{Path: "f", Mode: 0o644}))
		if p, _ := parsePacket(unframe(t, r.Body)); p.kind != packetReq || p.id != 0 { // before the end of files
			t.Errorf("%+v is no wish", p)
		}
		send(packet{})
		for i := 0; i < len(big); i += 32 << 10 {
			send(packet{kind: packetData, data: []byte(big[i : i+32<<10])})
		}
		send(packet{kind: packetData})
		if p, _ := parsePacket(unframe(t, r.Body)); p.kind != packetFin {
			t.Errorf("%+v is not the end", p)
		}
		send(packet{kind: packetFin})
		w.Header().Set("Grpc-Status", "0")
	}, methodDiffCopy)
	m, told := &memory{}, int64(0)
	err := s.Files(t.Context(), Select{Dir: "context", Follow: []string{"f"}, Exclude: []string{"a", "!b"}}, m, func(n int64) { told = n })
	if err != nil || m.files["f"].String() != big || !m.files["f"].closed || told < int64(len(big))/2 {
		t.Errorf("%v; %d bytes, told %d", err, m.files["f"].Len(), told)
	}
}

func TestAgent(t *testing.T) {
	s, _ := begin(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case methodCheckAgent:
			if id, _ := textOf(unframe(t, r.Body), 1); string(id) != "default" {
				answer(w, nil, "2", "unset ssh forward key other")
				return
			}
			answer(w, []byte{}, "0", "")
		case methodForward:
			if r.Header.Get("Buildkit.ssh.id") != "default" {
				t.Errorf("forwards %v", r.Header)
			}
			w.Header().Set("Trailer", "Grpc-Status")
			for { // an echo, until our side ends
				b := unframe(t, r.Body)
				if b == nil {
					break
				}
				w.Write(frame(b))
				w.(http.Flusher).Flush()
			}
			w.Header().Set("Grpc-Status", "0")
		}
	}, methodCheckAgent, methodForward)
	if !s.HasAgent(t.Context(), "default") || s.HasAgent(t.Context(), "other") {
		t.Error("the wrong agents are there")
	}
	before := runtime.NumGoroutine()
	c := s.Agent(t.Context(), "default")
	c.SetDeadline(time.Now().Add(10 * time.Second))
	for _, word := range []string{"one", "two"} {
		b := make([]byte, 3)
		if _, err := c.Write([]byte(word)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, b); err != nil || string(b) != word {
			t.Fatalf("%q %v", b, err)
		}
	}
	c.Close()
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the forwarding goes on")
		}
	}
}

// TestClientLeaves: a call in the middle ends, and the session is gone.
func TestClientLeaves(t *testing.T) {
	asked := make(chan struct{})
	s, conn := begin(t, func(w http.ResponseWriter, r *http.Request) {
		close(asked)
		<-r.Context().Done()
	}, methodSecret, methodDiffCopy)
	go func() {
		<-asked
		conn.Close()
	}()
	if _, _, err := s.Secret(t.Context(), "s"); err == nil {
		t.Error("an answer of nobody")
	}
	select {
	case <-s.Gone():
	case <-time.After(10 * time.Second):
		t.Error("it is not noticed")
	}
	if err := s.Files(t.Context(), Select{}, &memory{}, nil); err == nil {
		t.Error("files of nobody")
	}
}

// TestCancel: the caller's end ends a call that the client does not answer.
func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s, _ := begin(t, func(w http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	}, methodDiffCopy)
	if err := s.Files(ctx, Select{}, &memory{}, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
