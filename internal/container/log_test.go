package container

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
)

func logged(t *testing.T, cfg container.LogConfig) (*Store, *Record, *LogWriter) {
	t.Helper()
	s := Open(t.TempDir())
	r := newRecord("web")
	r.Host.LogConfig = cfg
	if err := s.Create(context.Background(), r); err != nil {
		t.Fatal(err)
	}
	w, err := s.OpenLog(r)
	if err != nil {
		t.Fatal(err)
	}
	return s, r, w
}

func add(t *testing.T, w *LogWriter, stream int, text string) {
	t.Helper()
	if err := w.Append(stream, time.Now(), []byte(text)); err != nil {
		t.Fatal(err)
	}
}

// read returns the log as a person would see it.
func read(t *testing.T, s *Store, id string, o LogOptions) string {
	t.Helper()
	var b strings.Builder
	err := s.Logs(context.Background(), id, o, func(e LogEntry) error {
		b.Write(e.Line)
		if !e.Partial {
			b.WriteByte('\n')
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestLogRoundTrip(t *testing.T) {
	s, r, w := logged(t, container.LogConfig{})
	add(t, w, Stdout, "plain\n<tag> & \"quote\" \\ \t\r\n")
	add(t, w, Stderr, "half")
	add(t, w, Stdout, "héllo \u2028 \x00\x01\x1b[0m\n")
	add(t, w, Stderr, " and half\n")
	add(t, w, Stdout, "no newline")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	want := "plain\n<tag> & \"quote\" \\ \t\r\nhéllo \u2028 \x00\x01\x1b[0m\nhalf and half\nno newline"
	if got := read(t, s, r.ID, LogOptions{Tail: -1}); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	// Each record is JSON as everybody reads it, and escaped as encoding/json does.
	b, _ := os.ReadFile(s.LogPath(r.ID))
	for line := range bytes.Lines(b) {
		var j struct{ Log, Stream, Time string }
		if err := json.Unmarshal(line, &j); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		text, _ := json.Marshal(j.Log)
		if !bytes.Contains(line, text) {
			t.Errorf("%s is not how encoding/json writes it: %s", line, text)
		}
	}
}

func TestLogInvalidUTF8AndLongLines(t *testing.T) {
	s, r, w := logged(t, container.LogConfig{})
	long := strings.Repeat("aé", 20<<10)
	add(t, w, Stdout, "bad \xff\xfe\n"+long+"\n")
	w.Close()
	if got := read(t, s, r.ID, LogOptions{Tail: -1}); got != "bad \ufffd\ufffd\n"+long+"\n" {
		t.Errorf("long line came back changed (%d bytes)", len(got))
	}
	parts := 0
	s.Logs(context.Background(), r.ID, LogOptions{Tail: -1}, func(e LogEntry) error {
		if len(e.Line) > MaxLine {
			t.Errorf("part of %d bytes", len(e.Line))
		}
		parts++
		return nil
	})
	if parts != 1+(len(long)+1+MaxLine-1)/MaxLine {
		t.Errorf("%d parts", parts)
	}
}

func TestLogRotationKeepsTheCap(t *testing.T) {
	s, r, w := logged(t, container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": "10k", "max-file": "3"}})
	for i := range 2000 {
		add(t, w, Stdout, fmt.Sprintf("line %d\n", i))
	}
	add(t, w, Stdout, strings.Repeat("x\n", 30000)) // one write larger than all files
	w.Close()
	files, _ := filepath.Glob(s.LogPath(r.ID) + "*")
	if len(files) != 3 {
		t.Errorf("files: %v", files)
	}
	for _, f := range files {
		if fi, _ := os.Stat(f); fi.Size() > 10000 {
			t.Errorf("%s has %d bytes", f, fi.Size())
		}
	}
	got := read(t, s, r.ID, LogOptions{Tail: 5})
	if got != "x\nx\nx\nx\nx\n" {
		t.Errorf("tail: %q", got)
	}
}

func TestLogTailAcrossFiles(t *testing.T) {
	s, r, w := logged(t, container.LogConfig{Config: map[string]string{"max-size": "1k", "max-file": "9"}})
	for i := range 60 {
		add(t, w, Stdout, fmt.Sprintf("%d\n", i))
	}
	w.Close()
	for n := range 60 {
		var want strings.Builder
		for i := 60 - n; i < 60; i++ {
			fmt.Fprintln(&want, i)
		}
		if got := read(t, s, r.ID, LogOptions{Tail: n}); got != want.String() {
			t.Fatalf("tail %d: %q", n, got)
		}
	}
	if got := read(t, s, r.ID, LogOptions{Tail: 1000}); strings.Count(got, "\n") != 60 {
		t.Errorf("tail of more than there is: %q", got)
	}
}

func TestLogSinceUntil(t *testing.T) {
	s, r, w := logged(t, container.LogConfig{})
	t0 := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i := range 10 {
		w.Append(Stdout, t0.Add(time.Duration(i)*time.Second), fmt.Appendf(nil, "%d\n", i))
	}
	w.Close()
	got := read(t, s, r.ID, LogOptions{Tail: -1, Since: t0.Add(3 * time.Second), Until: t0.Add(5 * time.Second)})
	if got != "3\n4\n5\n" {
		t.Errorf("%q", got)
	}
}

func TestLogTornRecordIsCut(t *testing.T) {
	s, r, w := logged(t, container.LogConfig{})
	add(t, w, Stdout, "whole\n")
	w.Close()
	f, _ := os.OpenFile(s.LogPath(r.ID), os.O_WRONLY|os.O_APPEND, 0)
	f.WriteString(`{"log":"torn`)
	f.Close()
	if got := read(t, s, r.ID, LogOptions{Tail: -1}); got != "whole\n" {
		t.Errorf("before: %q", got)
	}
	w, err := s.OpenLog(r)
	if err != nil {
		t.Fatal(err)
	}
	add(t, w, Stdout, "next\n")
	w.Close()
	if got := read(t, s, r.ID, LogOptions{Tail: -1}); got != "whole\nnext\n" {
		t.Errorf("after: %q", got)
	}
}

// TestLogFollowAcrossRotation: three readers see each line once and in order while the
// files rotate under them (max-file large enough that none is dropped unread).
func TestLogFollowAcrossRotation(t *testing.T) {
	s, r, w := logged(t, container.LogConfig{Config: map[string]string{"max-size": "20k", "max-file": "1000"}})
	lock, err := s.Lock(r.ID)
	if err != nil || lock == nil {
		t.Fatal(err)
	}
	const lines = 20000
	got := make(chan error, 3)
	for range 3 {
		go func() {
			next := 0
			err := Open(s.root).Logs(context.Background(), r.ID, LogOptions{Tail: -1, Follow: true}, func(e LogEntry) error {
				if string(e.Line) != fmt.Sprint(next) {
					return fmt.Errorf("got %q, want %d", e.Line, next)
				}
				next++
				return nil
			})
			if err == nil && next != lines {
				err = fmt.Errorf("%d lines", next)
			}
			got <- err
		}()
	}
	for i := 0; i < lines; i += 10 {
		var b []byte
		for j := i; j < i+10; j++ {
			b = fmt.Appendln(b, j)
		}
		if err := w.Append(Stdout, time.Now(), b); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	lock.Close()
	for range 3 {
		select {
		case err := <-got:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("a reader did not end")
		}
	}
}

func TestLogFollowEndsWithContext(t *testing.T) {
	s, r, w := logged(t, container.LogConfig{})
	defer w.Close()
	lock, _ := s.Lock(r.ID)
	defer lock.Close()
	ctx, cancel := context.WithCancel(context.Background())
	add(t, w, Stdout, "one\n")
	err := s.Logs(ctx, r.ID, LogOptions{Tail: -1, Follow: true}, func(LogEntry) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// TestLogFollowEndsWithTheRun: whoever follows gets the output of the run that is under way, to its end, whether the next one
// has begun by then or is only awaited.
func TestLogFollowEndsWithTheRun(t *testing.T) {
	for name, next := range map[string]State{
		"awaited": {Status: container.StateRestarting, Started: time.Unix(1000, 0)},
		"begun":   {Status: container.StateRunning, Started: time.Unix(2000, 0)},
	} {
		t.Run(name, func(t *testing.T) {
			s, r, w := logged(t, container.LogConfig{})
			defer w.Close()
			lock, _ := s.Lock(r.ID)
			defer lock.Close()
			became := func(st State, sec int64, text string) {
				if err := errors.Join(s.PutState(r.ID, &st, true), w.Append(Stdout, time.Unix(sec, 0), []byte(text))); err != nil {
					t.Fatal(err)
				}
			}
			became(State{Status: container.StateRunning, Started: time.Unix(1000, 0)}, 1001, "first\n")
			var got []string
			f := logReader{s: s, id: r.ID, path: s.LogPath(r.ID), o: LogOptions{Tail: -1, Follow: true},
				yield: func(e LogEntry) error { got = append(got, string(e.Line)); return nil }}
			defer f.close()
			if f.ended() {
				t.Error("ended while it runs")
			}
			if err := f.catchUp(context.Background()); err != nil {
				t.Fatal(err)
			}
			became(State{Status: container.StateRunning, Started: time.Unix(1000, 0)}, 1002, "last\n")
			if next.Status == container.StateRunning {
				became(next, 2001, "of the next run\n")
			} else if err := s.PutState(r.ID, &next, true); err != nil {
				t.Fatal(err)
			}
			if !f.ended() {
				t.Error("goes on")
			}
			if err := f.catchUp(context.Background()); err != nil && !errors.Is(err, errUntil) {
				t.Fatal(err)
			}
			if !slices.Equal(got, []string{"first", "last"}) {
				t.Errorf("%q", got)
			}
		})
	}
}

func TestLogNoneAndUnknownDrivers(t *testing.T) {
	s, r, w := logged(t, container.LogConfig{Type: "none"})
	add(t, w, Stdout, "x\n")
	w.Close()
	if got := read(t, s, r.ID, LogOptions{Tail: -1}); got != "" {
		t.Errorf("%q", got)
	}
	for _, c := range []container.LogConfig{{Type: "syslog"}, {Config: map[string]string{"x": "y"}},
		{Config: map[string]string{"max-size": "ten"}}, {Config: map[string]string{"max-file": "0"}}} {
		if CheckLogConfig(c) == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

func TestTailOfBigLogIsFast(t *testing.T) {
	s, r, w := logged(t, container.LogConfig{Config: map[string]string{"max-size": "-1"}})
	chunk := bytes.Repeat([]byte(strings.Repeat("y", 99)+"\n"), 10000)
	for range 40 {
		if err := w.Append(Stdout, time.Now(), chunk); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	start := time.Now()
	read(t, s, r.ID, LogOptions{Tail: 10})
	if d := time.Since(start); d > 200*time.Millisecond {
		t.Errorf("tail took %v", d)
	} else {
		t.Log(d)
	}
}

func FuzzLogText(f *testing.F) {
	for _, s := range []string{"", "a\n", "\xff", "\u2028\"\\", `","stream":"stdout`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 {
			return
		}
		line := appendTail(appendText(appendHead(nil), b), Stderr, time.Unix(1, 2))
		var own, std LogEntry
		var scratch []byte
		if !parseOwn(bytes.TrimSuffix(line, []byte("\n")), &own, &scratch) {
			t.Fatalf("own format not understood: %s", line)
		}
		var j struct{ Log string }
		if err := json.Unmarshal(line, &j); err != nil {
			t.Fatal(err)
		}
		setEntry(&std, []byte(j.Log), "stderr", own.Time)
		if !bytes.Equal(own.Line, std.Line) || own.Partial != std.Partial || own.Stream != "stderr" {
			t.Fatalf("%q read as %q, encoding/json says %q", b, own.Line, std.Line)
		}
	})
}
