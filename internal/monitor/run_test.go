package monitor

import (
	"fmt"
	"os"
	"strings"
	"testing"

	dcontainer "github.com/moby/moby/api/types/container"
)

func TestRunTrue(t *testing.T) {
	h := newHouse(t)
	if r := h.run([]string{"true"}, nil); r.failure != nil || r.exit.Code != 0 || r.out+r.err != "" {
		t.Fatalf("%+v", r)
	}
}

func TestRunStreamsAndExitCode(t *testing.T) {
	h := newHouse(t)
	rec := h.create(sh("echo out; echo err >&2; exit 42"))
	r := h.start(rec, nil)
	if r.failure != nil || r.exit.Code != 42 || r.out != "out\n" || r.err != "err\n" {
		t.Fatalf("%+v", r)
	}
	h.settled(func() bool { on, _ := h.s.Running(rec.ID); return !on }, "the lock is held")
	st := h.state(rec.ID)
	if st.Status != dcontainer.StateExited || st.ExitCode != 42 || st.Pid != 0 || st.Started.IsZero() || st.Finished.Before(st.Started) {
		t.Errorf("%+v", st)
	}
}

func TestAutoRemoveLeavesNothing(t *testing.T) {
	h := newHouse(t)
	for i := range 20 { // the same name, at once
		r := h.run([]string{"true"}, nil, autoRemove, named("again"))
		if r.failure != nil || r.exit.Code != 0 {
			t.Fatalf("run %d: %+v", i, r)
		}
	}
	h.settled(func() bool {
		ids, _ := h.s.List()
		gone, _ := h.s.Retired()
		keys, _ := h.snaps.Keys()
		return len(ids)+len(gone)+len(keys) == 0
	}, "something of a --rm container remains")
}

func TestExitCodes(t *testing.T) {
	h := newHouse(t)
	for _, c := range []struct {
		args []string
		want int
	}{{sh("exit 0"), 0}, {sh("exit 255"), 255}, {sh("sh -c 'kill -TERM $$'; exit $?"), 143}} {
		r := h.run(c.args, nil, autoRemove)
		// A pid 1 cannot kill itself with a signal it does not handle: the kernel ignores it.
		if r.failure != nil || r.exit.Code != c.want {
			t.Errorf("%v: %+v %v", c.args, r, r.failure)
		}
	}
	for arg, code := range map[string]int{"/nope": 127, "nope": 127, "/etc/passwd": 126, "/etc": 126} {
		r := h.run([]string{arg}, nil, autoRemove)
		x, ok := r.failure.(interface{ ExitCode() int })
		if !ok || x.ExitCode() != code {
			t.Errorf("%s: %v", arg, r.failure)
		}
	}
	r := h.run([]string{"nope"}, nil, autoRemove)
	if r.failure == nil || !strings.HasSuffix(r.failure.Error(), `exec: "nope": executable file not found in $PATH`) {
		t.Error(r.failure)
	}
}

func TestFailedStartIsRecorded(t *testing.T) {
	h := newHouse(t)
	rec := h.create([]string{"nope"})
	h.start(rec, nil)
	h.settled(func() bool { on, _ := h.s.Running(rec.ID); return !on }, "the lock is held")
	st := h.state(rec.ID)
	if st.Status != dcontainer.StateCreated || st.ExitCode != 127 || !strings.Contains(st.Error, "not found in $PATH") {
		t.Errorf("%+v", st)
	}
	if _, err := os.Stat(h.roots.dir(rec.ID)); err == nil {
		t.Error("run directory remains")
	}
}

func TestStdin(t *testing.T) {
	h := newHouse(t)
	if r := h.run([]string{"cat"}, strings.NewReader("hello\n"), openStdin, autoRemove); r.failure != nil || r.out != "hello\n" {
		t.Errorf("%+v", r)
	}
	// More than every buffer on the way, with its end.
	big := strings.Repeat("0123456789abcdef\n", 1<<18)
	r := h.run([]string{"md5sum"}, strings.NewReader(big), openStdin, autoRemove)
	if r.failure != nil || !strings.HasPrefix(r.out, "0") && len(r.out) < 32 {
		t.Errorf("%+v", r)
	}
	if r := h.run([]string{"wc", "-c"}, strings.NewReader(big), openStdin, autoRemove); strings.TrimSpace(r.out) != fmt.Sprint(len(big)) {
		t.Errorf("%+v", r)
	}
	// A program that does not read its input ends all the same.
	if r := h.run([]string{"true"}, strings.NewReader(big), openStdin, autoRemove); r.failure != nil || r.exit.Code != 0 {
		t.Errorf("%+v", r)
	}
	// Without -i there is none.
	if r := h.run([]string{"cat"}, nil, autoRemove); r.failure != nil || r.out != "" {
		t.Errorf("%+v", r)
	}
}

func TestMuchOutput(t *testing.T) {
	h := newHouse(t)
	rec := h.create(sh("seq 1 200000; seq 1 1000 >&2"))
	r := h.start(rec, nil)
	if r.failure != nil || strings.Count(r.out, "\n") != 200000 || !strings.HasSuffix(r.out, "\n200000\n") || strings.Count(r.err, "\n") != 1000 {
		t.Errorf("%d lines, %d errors, %+v", strings.Count(r.out, "\n"), strings.Count(r.err, "\n"), r.exit)
	}
}
