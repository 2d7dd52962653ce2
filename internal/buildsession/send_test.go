package buildsession

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keg/internal/grpc"
)

// finish ends a call that may have answered.
func finish(w http.ResponseWriter, code, text string) {
	w.Header().Set(http.TrailerPrefix+"Grpc-Status", code)
	w.Header().Set(http.TrailerPrefix+"Grpc-Message", text)
	w.(http.Flusher).Flush()
}

func TestSendFile(t *testing.T) {
	want := make([]byte, 3<<20+5)
	rand.Read(want)
	var got []byte
	s, _ := begin(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.Header.Get("Buildkit-Attachable-Exporter-Id") {
		case "2":
			for {
				m, err := grpc.ReadFrame(r.Body)
				if err != nil {
					break
				}
				d, _ := textOf(m, 1)
				got = append(got, d...)
			}
			finish(w, "0", "")
		case "3":
			finish(w, "2", "disk full")
		default:
			answer(w, []byte("\x0a\x01x"), "0", "")
		}
	}, methodSend)
	w, err := s.SendFile(t.Context(), 2)
	if err == nil {
		_, err = io.Copy(w, bytes.NewReader(want))
	}
	if err = errors.Join(err, w.Close()); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d: %v", len(got), len(want), err)
	}
	w, _ = s.SendFile(t.Context(), 3)
	if _, err := io.Copy(w, bytes.NewReader(want)); err == nil {
		err = w.Close()
		t.Log(err)
	} else if !strings.Contains(err.Error(), "disk full") {
		t.Errorf("%v", err)
	}
	w.Close()
	w, _ = s.SendFile(t.Context(), 4)
	if err := w.Close(); err == nil || !strings.Contains(err.Error(), "sends more") {
		t.Errorf("%v", err)
	}
	none, _ := begin(t, func(http.ResponseWriter, *http.Request) {})
	if _, err := none.SendFile(t.Context(), 0); err == nil {
		t.Error("to a client that takes none")
	}
}

// receiver is a client that takes a tree, as fsutil's receiver does.
type receiver struct {
	want  func(number uint32, s Stat) bool
	stats []string
	data  map[uint32][]byte
	reply func(p packet) []byte // in the place of what is right; nil: nothing special
}

func (r *receiver) serve(w http.ResponseWriter, q *http.Request) {
	send := func(b []byte) {
		w.Write(frame(b))
		w.(http.Flusher).Flush()
	}
	wanted, n, listed := 0, uint32(0), false
	for {
		b, err := grpc.ReadFrame(q.Body)
		if err != nil {
			break
		}
		p, _ := parsePacket(b)
		if r.reply != nil {
			if b := r.reply(p); b != nil {
				send(b)
				continue
			}
		}
		switch {
		case p.kind == packetStat && p.stat == nil:
			listed = true
		case p.kind == packetStat:
			st, _ := parseStat(p.stat)
			r.stats = append(r.stats, fmt.Sprintf("%s %v %s", st.Path, st.Mode, st.Link))
			if st.Mode.IsRegular() && st.Link == "" {
				wanted++
				send(packet{kind: packetReq, id: n}.encode())
			}
			n++
		case p.kind == packetData && len(p.data) == 0:
			wanted--
		case p.kind == packetData:
			r.data[p.id] = append(r.data[p.id], p.data...)
		case p.kind == packetFin:
			finish(w, "0", "")
			return
		}
		if listed && wanted == 0 {
			send(packet{kind: packetFin}.encode())
		}
	}
	finish(w, "0", "")
}

func TestSendTree(t *testing.T) {
	dir := t.TempDir()
	big := strings.Repeat("0123456789", 60000)
	for name, text := range map[string]string{"a/file": "text", "a/b/deep": "", "big": big, "z": "last"} {
		p := filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(p), 0o755)
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("/etc/passwd", filepath.Join(dir, "link")), os.Link(filepath.Join(dir, "a/file"), filepath.Join(dir, "y"))); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	r := &receiver{data: map[uint32][]byte{}}
	s, _ := begin(t, r.serve, methodSend)
	if err := s.SendTree(t.Context(), 0, root, ""); err != nil {
		t.Fatal(err)
	}
	want := "a drwxr-xr-x |a/b drwxr-xr-x |a/b/deep -rw-r--r-- |a/file -rw-r--r-- |big -rw-r--r-- |link Lrwxrwxrwx /etc/passwd|y -rw-r--r-- a/file|z -rw-r--r-- "
	if got := strings.Join(r.stats, "|"); got != want {
		t.Errorf("%s", got)
	}
	if string(r.data[3]) != "text" || string(r.data[4]) != big || string(r.data[7]) != "last" || len(r.data) != 3 {
		t.Errorf("%d files", len(r.data))
	}
	r = &receiver{data: map[uint32][]byte{}}
	s, _ = begin(t, r.serve, methodSend)
	if err := s.SendTree(t.Context(), 0, root, "linux_amd64"); err != nil || !strings.HasPrefix(strings.Join(r.stats, "|"), "linux_amd64 drwxr-xr-x |linux_amd64/a drwx") || string(r.data[4]) != "text" {
		t.Errorf("below a directory: %v %q", err, r.stats)
	}
	for what, c := range map[string]struct {
		reply func(p packet) []byte
		words string
	}{
		"a wish for what is not there":     {func(packet) []byte { return packet{kind: packetReq, id: 99}.encode() }, "wants file 99"},
		"a wish for a directory":           {func(packet) []byte { return packet{kind: packetReq}.encode() }, "wants file 0"},
		"an error":                         {func(packet) []byte { return packet{kind: packetErr, data: []byte("full")}.encode() }, "full"},
		"a file in the wrong direction":    {func(packet) []byte { return packet{stat: []byte{}}.encode() }, "unexpected kind 0"},
		"a packet that is cut off":         {func(packet) []byte { return []byte("\x22\x05a") }, "cut off"},
		"an end before it has seen all is": {func(packet) []byte { return packet{kind: packetFin}.encode() }, ""},
	} {
		s, _ := begin(t, (&receiver{data: map[uint32][]byte{}, reply: c.reply}).serve, methodSend)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if err := s.SendTree(ctx, 0, root, ""); c.words != "" && (err == nil || !strings.Contains(err.Error(), c.words)) || ctx.Err() != nil {
			t.Errorf("%s: %v", what, err)
		}
		cancel()
	}
	if err := s.SendTree(t.Context(), 0, root, "a/b"); err == nil {
		t.Error("a directory in a directory")
	}
	if err := os.WriteFile(filepath.Join(dir, "a/file"), []byte("x"), 0); err != nil {
		t.Error(err)
	}
	gone, conn := begin(t, func(_ http.ResponseWriter, q *http.Request) { grpc.ReadFrame(q.Body); <-q.Context().Done() }, methodSend)
	time.AfterFunc(20*time.Millisecond, func() { conn.Close() })
	if err := gone.SendTree(t.Context(), 0, root, ""); err == nil {
		t.Error("to a client that left")
	}
}

func TestBlobs(t *testing.T) {
	stored := map[string]string{}
	s, _ := begin(t, func(w http.ResponseWriter, r *http.Request) {
		store := r.Header.Get("Buildkit-Attachable-Store-Id")
		b := unframe(t, r.Body)
		if strings.HasSuffix(r.URL.Path, "Read") {
			d, _ := textOf(b, 1)
			text, ok := stored[store+" "+string(d)]
			if !ok {
				finish(w, "5", "not found")
				return
			}
			w.Write(frame(grpc.AppendText(nil, 2, text[:1])))
			w.Write(frame(grpc.AppendText(grpc.AppendNumber(nil, 1, 1), 2, text[1:])))
			finish(w, "0", "")
			return
		}
		var all []byte
		for {
			d, _ := textOf(b, 4)
			data, _ := textOf(b, 6)
			all = append(all, data...)
			if string(d) == "there" {
				finish(w, "6", "exists")
				return
			}
			if string(d) == "bad" {
				finish(w, "2", "no room")
				return
			}
			if b[1] == actionCommit {
				stored[store+" "+string(d)] = string(all)
			}
			w.Write(frame(grpc.AppendNumber(nil, 4, uint64(len(all)))))
			w.(http.Flusher).Flush()
			if b[1] == actionCommit {
				finish(w, "0", "")
				return
			}
			b = unframe(t, r.Body)
		}
	}, methodRead, methodWrite)
	blobs := Blobs{s, "local:x"}
	text := strings.Repeat("abc", 1<<20)
	if err := blobs.Write(t.Context(), "d", int64(len(text)), strings.NewReader(text)); err != nil || stored["local:x d"] != text {
		t.Fatalf("%v, %d bytes", err, len(stored["local:x d"]))
	}
	r, err := blobs.Read(t.Context(), "d")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != text {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	r.Close()
	if err := blobs.Write(t.Context(), "there", 1, strings.NewReader("x")); err != nil {
		t.Errorf("what is there already: %v", err)
	}
	if err := blobs.Write(t.Context(), "bad", 3<<20, strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("%v", err)
	}
	if r, err := blobs.Read(t.Context(), "none"); err == nil {
		if _, err = io.ReadAll(r); err == nil || !strings.Contains(err.Error(), "not found") {
			t.Errorf("%v", err)
		}
		r.Close()
	}
	none, _ := begin(t, func(http.ResponseWriter, *http.Request) {})
	if _, err := (Blobs{none, ""}).Read(t.Context(), "d"); err == nil {
		t.Error("from a client that has none")
	}
	if err := (Blobs{none, ""}).Write(t.Context(), "d", 0, nil); err == nil {
		t.Error("to a client that takes none")
	}
}

func TestUpload(t *testing.T) {
	s, _ := begin(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Urlpath") != "/id" || r.Header.Get("Urlhost") != UploadHost {
			finish(w, "5", "unknown upload")
			return
		}
		w.Write(frame(grpc.AppendText(nil, 1, "some ")))
		w.Write(frame(grpc.AppendText(nil, 1, "text")))
		finish(w, "0", "")
	}, methodPull)
	for at, want := range map[string]string{"/id": "some text", "/none": "unknown upload"} {
		r, err := s.Upload(t.Context(), &url.URL{Scheme: "http", Host: UploadHost, Path: at})
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if got := string(b); got != want && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %q %v", at, got, err)
		}
		r.Close()
	}
}

// TestStatOf: what is sent of a file is what is read of it.
func TestStatOf(t *testing.T) {
	p := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(p, []byte("abc"), 0o640); err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(p)
	if err != nil {
		t.Fatal(err)
	}
	st := StatOf("f", info)
	st.Capability = []byte{1, 2}
	got, err := parseStat(st.Encode())
	if err != nil || got.Path != "f" || got.Mode != fs.FileMode(0o640) || got.Size != 3 || !got.ModTime.Equal(info.ModTime()) {
		t.Errorf("%+v %v", got, err)
	}
}

func TestApprove(t *testing.T) {
	decide := func(action uint64, more ...[]byte) []byte {
		d := grpc.AppendNumber(nil, 1, action)
		for _, m := range more {
			d = append(d, m...)
		}
		return grpc.AppendMessage(nil, 1, d)
	}
	var next []byte
	s, _ := begin(t, func(w http.ResponseWriter, r *http.Request) {
		q := unframe(t, r.Body)
		if !strings.Contains(string(q), "docker-image://x") || !strings.Contains(string(q), "sha256:1") {
			t.Errorf("%q", q)
		}
		answer(w, next, "0", "")
	}, methodPolicy)
	for _, c := range []struct {
		answer []byte
		want   string // of the error; "": none
	}{
		{decide(0), ""},
		{decide(1), `source "docker-image://x" not allowed by policy: action DENY`},
		{decide(1, grpc.AppendMessage(nil, 2, grpc.AppendText(nil, 1, "too old"))), "action DENY: too old"},
		{decide(2, grpc.AppendMessage(nil, 3, grpc.AppendText(nil, 1, "docker-image://x@sha256:1"))), ""},
		{decide(2, grpc.AppendMessage(nil, 3, grpc.AppendText(nil, 1, "docker-image://y"))), `wants "docker-image://y" in its place`},
		{decide(9), "not allowed"},
		{grpc.AppendMessage(nil, 2, ""), "wants to know more"},
		{[]byte{}, "wants to know more"},
		{[]byte("\x0a\x05x"), "cut off"},
	} {
		next = c.answer
		err := s.Approve(t.Context(), PolicySource{Identifier: "docker-image://x", OS: "linux", Architecture: "amd64", Digest: "sha256:1", Config: []byte("{}")})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.answer, err, c.want)
		}
	}
}
