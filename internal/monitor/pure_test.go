package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	dcontainer "github.com/moby/moby/api/types/container"

	"keg/internal/container"
	"keg/internal/fault"
	"keg/internal/sandbox"
)

func TestBackoffIsDockers(t *testing.T) {
	policy := func(name string, n int) dcontainer.RestartPolicy {
		return dcontainer.RestartPolicy{Name: dcontainer.RestartPolicyMode(name), MaximumRetryCount: n}
	}
	for _, c := range []struct {
		policy  dcontainer.RestartPolicy
		code    int
		stopped bool
		want    bool
	}{
		{policy("", 0), 1, false, false}, {policy("no", 0), 1, false, false},
		{policy("always", 0), 0, false, true}, {policy("always", 0), 1, true, false},
		{policy("unless-stopped", 0), 0, false, true}, {policy("unless-stopped", 0), 0, true, false},
		{policy("on-failure", 0), 0, false, false}, {policy("on-failure", 0), 3, false, true}, {policy("on-failure", 2), 3, true, false},
	} {
		if got := (&backoff{}).next(c.policy, c.code, 0, c.stopped); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
	b := &backoff{}
	var delays []time.Duration
	for range 12 {
		b.next(policy("always", 0), 1, time.Second, false)
		delays = append(delays, b.delay)
	}
	if delays[0] != 100*time.Millisecond || delays[1] != 200*time.Millisecond || delays[9] != 51200*time.Millisecond || delays[11] != time.Minute {
		t.Error(delays)
	}
	if b.next(policy("always", 0), 1, 10*time.Second, false); b.delay != 100*time.Millisecond {
		t.Errorf("after a good run: %v", b.delay)
	}
	limited := &backoff{}
	n := 0
	for limited.next(policy("on-failure", 3), 1, 0, false) {
		n++
	}
	if n != 3 {
		t.Errorf("on-failure:3 restarted %d times", n)
	}
}

func TestDetachKeys(t *testing.T) {
	seq := []byte{16, 17}
	for _, c := range []struct {
		in   []string
		out  string
		left bool
	}{
		{[]string{"abc"}, "abc", false}, {[]string{"a\x10\x11b"}, "a", true}, {[]string{"a\x10", "\x11"}, "a", true},
		{[]string{"a\x10", "b"}, "a\x10b", false}, {[]string{"\x10\x10\x11"}, "\x10", true}, {[]string{"\x11\x10"}, "\x11", false},
	} {
		d := detachKeys{seq: seq}
		var got []byte
		left := false
		for _, s := range c.in {
			out, l := d.feed([]byte(s))
			got, left = append(got, out...), left || l
		}
		if string(got) != c.out || left != c.left {
			t.Errorf("%q: %q, %v", c.in, got, left)
		}
	}
	none := detachKeys{}
	if out, left := none.feed([]byte("\x10\x11")); string(out) != "\x10\x11" || left {
		t.Error("keys without a sequence")
	}
}

// TestHealthStates runs the loop in a bubble: time is exact there.
func TestHealthStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		codes := []int{1, 1, 0, 1, 1, 1, 0}
		var seen []string
		begin := time.Now()
		ctx, cancel := context.WithCancel(context.Background())
		h := &health{cfg: dcontainer.HealthConfig{Interval: 10 * time.Second, Retries: 3, StartPeriod: 3 * time.Second, StartInterval: time.Second}}
		h.probe = func(context.Context) dcontainer.HealthcheckResult {
			if len(codes) == 0 {
				cancel()
				return dcontainer.HealthcheckResult{}
			}
			code := codes[0]
			codes = codes[1:]
			return dcontainer.HealthcheckResult{Start: time.Now(), ExitCode: code}
		}
		h.note = func(st dcontainer.Health, changed bool) {
			if len(st.Log) > healthLog {
				t.Errorf("%d results kept", len(st.Log))
			}
			seen = append(seen, fmt.Sprintf("%v %s %d %v", time.Since(begin), st.Status, st.FailingStreak, changed))
		}
		h.loop(ctx)
		want := `1s starting 0 false
2s starting 0 false
3s healthy 0 true
13s healthy 1 false
23s healthy 2 false
33s unhealthy 3 true
43s healthy 0 true`
		if got := strings.Join(seen, "\n"); got != want {
			t.Errorf("got\n%s", got)
		}
	})
}

func TestHealthTestForms(t *testing.T) {
	cfg := func(test ...string) *dcontainer.Config {
		return &dcontainer.Config{Healthcheck: &dcontainer.HealthConfig{Test: test}}
	}
	if got := healthTest(cfg("CMD", "a", "b")); fmt.Sprint(got) != "[a b]" {
		t.Error(got)
	}
	if got := healthTest(cfg("CMD-SHELL", "x | y")); strings.Join(got, ",") != "/bin/sh,-c,x | y" {
		t.Error(got)
	}
	for _, c := range []*dcontainer.Config{cfg("NONE"), cfg(), {}, cfg("CMD")} {
		if healthTest(c) != nil {
			t.Errorf("%+v has a test", c.Healthcheck)
		}
	}
}

func TestErrorsCrossTheWire(t *testing.T) {
	err := decodeError(encodeError(fault.Conflictf("port is already allocated")))
	if !fault.Is(err, fault.Conflict) || err.Error() != "port is already allocated" {
		t.Error(err)
	}
	err = decodeError(encodeError(startError(&sandbox.ExecError{Code: 127, Err: errors.New("exec: \"x\": not found")})))
	var x *sandbox.ExecError
	var c interface{ ExitCode() int }
	if !errors.As(err, &x) || x.Code != 127 || !errors.As(err, &c) || c.ExitCode() != 127 || !strings.Contains(err.Error(), `exec: "x": not found`) {
		t.Error(err)
	}
}

func TestFrames(t *testing.T) {
	var b []byte
	big := bytes.Repeat([]byte("x"), 300<<10)
	b = appendFrame(b, 'a', nil)
	b = appendFrame(b, 'b', []byte("hello"))
	b = appendFrame(b, 'c', big)
	f := newFrames(io.MultiReader(bytes.NewReader(b[:7]), bytes.NewReader(b[7:])))
	for _, want := range []struct {
		kind byte
		n    int
	}{{'a', 0}, {'b', 5}, {'c', len(big)}} {
		kind, p, err := f.next()
		if err != nil || kind != want.kind || len(p) != want.n {
			t.Fatalf("%q %d %v", kind, len(p), err)
		}
	}
	if _, _, err := f.next(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	if _, _, err := newFrames(bytes.NewReader([]byte{'x', 255, 255, 255, 255})).next(); err == nil {
		t.Error("a frame of 4 GiB was accepted")
	}
	if _, _, err := newFrames(bytes.NewReader(b[:8])).next(); err != nil {
		t.Error(err)
	}
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte{'R', 0, 0, 0, 2, '{', '}'})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newFrames(bytes.NewReader(b))
		for range len(b) + 1 {
			if _, p, err := r.next(); err != nil {
				return
			} else if len(p) > len(b) {
				t.Fatal("payload from nowhere")
			}
		}
		t.Fatal("no end")
	})
}

// TestSlowPeerIsDropped: one that takes nothing delays output by its patience, no longer.
func TestSlowPeerIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		l := newLink(ours)
		start := time.Now()
		for range 20 {
			l.deliver(frameStdout, make([]byte, chunk), nil)
		}
		if d := time.Since(start); d < patienceOther || d > 2*patienceOther {
			t.Errorf("held up for %v", d)
		}
		<-l.done
	})
}

// TestQueueIsWrittenBeforeTheEnd: finish lets everything through.
func TestQueueIsWrittenBeforeTheEnd(t *testing.T) {
	ours, theirs := net.Pipe()
	l := newLink(ours)
	for range 50 {
		l.send(frameStdout, make([]byte, 1000))
	}
	l.send(frameExit, []byte("{}"))
	l.finish()
	f := newFrames(theirs)
	n, last := 0, byte(0)
	for {
		kind, p, err := f.next()
		if err != nil {
			break
		}
		n, last = n+len(p), kind
	}
	if n != 50*1000+2+2 || last != frameExit {
		t.Errorf("%d bytes, last frame %q", n, last)
	}
}

func TestLostState(t *testing.T) {
	st := &container.State{Status: dcontainer.StateRunning, Pid: 7, Started: time.Now()}
	got := lostState(st)
	if got.Status != dcontainer.StateExited || got.ExitCode != 137 || !strings.HasPrefix(got.Error, "monitor lost") || got.Pid != 0 {
		t.Errorf("%+v", got)
	}
	if st.Pid != 7 {
		t.Error("the argument was changed")
	}
}

func TestStopSignal(t *testing.T) {
	for s, want := range map[string]int{"": 15, "SIGQUIT": 3, "quit": 3, "9": 9, "nonsense": 15} {
		if got := stopSignal(&dcontainer.Config{StopSignal: s}); got != want {
			t.Errorf("%q: %d", s, got)
		}
	}
}

func TestHears(t *testing.T) {
	const status = "Name:\ttop\nSigPnd:\t0000000000000000\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000000004\nSigCgt:\t8000000000004000\n"
	for sig, want := range map[int]bool{1: true, 3: true, 15: true, 64: true, 2: false, 14: false, 16: false, 63: false} {
		if got := hears(status, sig); got != want {
			t.Errorf("signal %d: %v", sig, got)
		}
	}
}
