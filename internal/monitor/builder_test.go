package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"keg/internal/container"
)

func (h *house) builder() *Builder {
	h.t.Helper()
	b, err := StartBuilder(ctx, h.roots)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { b.Close() })
	return b
}

func (h *house) key() string {
	h.t.Helper()
	key := container.NewID()
	if err := h.snaps.Prepare(ctx, key, h.stack); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { h.snaps.Remove(key) })
	return key
}

func TestSteps(t *testing.T) {
	h := newHouse(t)
	b := h.builder()
	key := h.key()
	var out bytes.Buffer
	code, err := b.Run(ctx, Step{Key: key, Args: sh("echo $A; id -u; pwd; echo made >made; echo err >&2; exit 6"), Env: []string{"A=1"},
		Dir: "/home/app", User: "app", Network: "none"}, &out)
	if err != nil || code != 6 || out.String() != "1\n1000\n/home/app\nerr\n" && !strings.Contains(out.String(), "made: Permission denied") {
		t.Errorf("%d %v %q", code, err, out.String())
	}
	// The next step on the same key sees what the last one did.
	if code, err := b.Run(ctx, Step{Key: key, Args: sh("echo two >/two"), Network: "none"}, &out); err != nil || code != 0 {
		t.Error(code, err)
	}
	if data, err := os.ReadFile(filepath.Join(h.snaps.Upper(key), "two")); err != nil || string(data) != "two\n" {
		t.Errorf("%q %v", data, err)
	}
	out.Reset()
	if code, err := b.Run(ctx, Step{Key: key, Args: []string{"sh"}, Stdin: []byte("echo from here\n"), Network: "none"}, &out); err != nil || code != 0 || out.String() != "from here\n" {
		t.Errorf("%d %v %q", code, err, out.String())
	}
	_, err = b.Run(ctx, Step{Key: key, Args: []string{"nope"}, Network: "none"}, &out)
	var x interface{ ExitCode() int }
	if !errors.As(err, &x) || x.ExitCode() != 127 {
		t.Error(err)
	}
}

// TestStepIsConfinedLikeRun: capabilities, seccomp and masks are those of run.
func TestStepIsConfinedLikeRun(t *testing.T) {
	h := newHouse(t)
	probe := sh("grep -E '^(Cap|Seccomp|NoNewPrivs|Groups)' /proc/self/status; cat /proc/mounts | grep -c ' /proc/'; ls /dev")
	var out bytes.Buffer
	if code, err := h.builder().Run(ctx, Step{Key: h.key(), Args: probe, Network: "none"}, &out); err != nil || code != 0 {
		t.Fatal(code, err)
	}
	r := h.run(probe, nil, autoRemove)
	if r.out != out.String() || !strings.Contains(r.out, "Seccomp:\t2") {
		t.Errorf("run:\n%s\nstep:\n%s", r.out, out.String())
	}
}

func TestStepsAtOnce(t *testing.T) {
	h := newHouse(t)
	b := h.builder()
	var wg sync.WaitGroup
	for i := range 8 {
		key := h.key()
		wg.Go(func() {
			var out bytes.Buffer
			code, err := b.Run(ctx, Step{Key: key, Args: sh(fmt.Sprintf("seq 1 5000; exit %d", i)), Network: "none"}, &out)
			if err != nil || code != i || strings.Count(out.String(), "\n") != 5000 {
				t.Errorf("%d: %d %v, %d bytes", i, code, err, out.Len())
			}
		})
	}
	wg.Wait()
}

func TestStepMounts(t *testing.T) {
	h := newHouse(t)
	src := t.TempDir()
	os.WriteFile(src+"/f", []byte("bound\n"), 0o644)
	var out bytes.Buffer
	code, err := h.builder().Run(ctx, Step{Key: h.key(), Network: "none", Args: sh("cat /in/f; touch /in/g 2>&1; grep -c ' /t tmpfs' /proc/mounts; stat -c %a /t"),
		Mounts: []Mount{{Type: "bind", Source: src, Target: "/in", ReadOnly: true}, {Type: "tmpfs", Target: "/t", Size: 1 << 20, Mode: 0o1777}}}, &out)
	if err != nil || code != 0 || out.String() != "bound\ntouch: /in/g: Read-only file system\n1\n1777\n" {
		t.Errorf("%d %v %q", code, err, out.String())
	}
}

// steps lists the ids of the steps under way, by their run directories.
func (h *house) steps() (ids []string) {
	ents, _ := os.ReadDir(h.roots.Run)
	for _, e := range ents {
		if id, ok := strings.CutPrefix(e.Name(), stepPrefix); ok {
			ids = append(ids, id[:64])
		}
	}
	return ids
}

// grouped tells whether a cgroup of a step remains anywhere.
func grouped(id string) bool {
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*/keg/" + id)
	more, _ := filepath.Glob("/sys/fs/cgroup/keg/" + id)
	return len(dirs)+len(more) > 0
}

// TestStepIsCancelled: the process is killed, and everything is gone when Run returns.
func TestStepIsCancelled(t *testing.T) {
	h := newHouse(t)
	b := h.builder()
	key := h.key()
	cctx, cancel := context.WithCancel(ctx)
	var id string
	go func() {
		h.up(key)
		id = h.steps()[0]
		cancel()
	}()
	_, err := b.Run(cctx, Step{Key: key, Args: sh("touch /up; sleep 1000 & sleep 1000"), Network: "none"}, &bytes.Buffer{})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if id == "" || grouped(id) || len(h.steps()) > 0 {
		t.Errorf("step %s remains: %v", id, h.steps())
	}
}

// up waits until a step has made /up.
func (h *house) up(key string) {
	h.settled(func() bool { _, err := os.Stat(filepath.Join(h.snaps.Upper(key), "up")); return err == nil }, "not up")
}

// TestBuilderDies: closing, or kill -9 of either side, leaves nothing.
func TestBuilderDies(t *testing.T) {
	h := newHouse(t)
	for _, how := range []string{"close", "kill"} {
		b := h.builder()
		done := make(chan error, 1)
		key := h.key()
		go func() {
			_, err := b.Run(ctx, Step{Key: key, Args: sh("touch /up; sleep 1000"), Network: "none"}, &bytes.Buffer{})
			done <- err
		}()
		h.up(key)
		id := h.steps()[0]
		if !grouped(id) {
			t.Errorf("%s: the step has no cgroup", how)
		}
		if how == "close" {
			b.Close()
		} else {
			unix.Kill(b.pid, unix.SIGKILL)
		}
		if err := <-done; err == nil && how == "kill" {
			t.Errorf("%s: no error", how)
		}
		if how == "kill" {
			h.builder() // the next one sweeps
		}
		h.settled(func() bool { return !grouped(id) && len(h.steps()) == 0 }, how+": the step remains")
	}
}

// TestStepShell: a step on a terminal, in what another step left; it ends with its peer.
func TestStepShell(t *testing.T) {
	h := newHouse(t)
	b := h.builder()
	s := Step{Key: h.key(), Args: sh("echo left >/left; exit 3"), Dir: "/home/app", User: "root", Network: "none"}
	if code, err := b.Run(ctx, s, io.Discard); code != 3 || err != nil {
		t.Fatal(code, err)
	}
	s.Args, s.Terminal = []string{"sh"}, &Size{30, 90}
	typed, keys := io.Pipe()
	sizes := make(chan [2]uint16, 1)
	var out bytes.Buffer
	go func() {
		io.WriteString(keys, "cat /left; pwd; stty size\n")
		time.Sleep(200 * time.Millisecond)
		sizes <- [2]uint16{31, 91}
		time.Sleep(200 * time.Millisecond)
		io.WriteString(keys, "\x10\x11\x15stty size\nexit 5\n") // ctrl-p ctrl-q do not leave it; ctrl-u takes them away
	}()
	x, err := b.Shell(ctx, s, Stdio{In: typed, Out: &out, Resize: sizes, Stay: true})
	if err != nil || x.Code != 5 || x.Detached {
		t.Errorf("%+v %v", x, err)
	}
	for _, want := range []string{"left\r\n", "/home/app\r\n", "30 90\r\n", "31 91\r\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in %q", want, out.String())
		}
	}
	keys.Close()
	// Nobody waits any more: the shell and what it started are gone when Shell returns.
	dying, cancel := context.WithCancel(ctx)
	typed, keys = io.Pipe()
	defer keys.Close()
	started := &watcher{want: "started-here", seen: make(chan struct{})}
	go func() {
		io.WriteString(keys, "sleep 4711 & echo started-$((0))here | tr -d 0\n")
		<-started.seen
		cancel()
	}()
	if _, err := b.Shell(dying, s, Stdio{In: typed, Out: started}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range all {
		if line, _ := os.ReadFile(p); string(line) == "sleep\x004711\x00" {
			t.Errorf("%s still sleeps", p)
		}
	}
	s.Args = []string{"nothing-of-the-kind"}
	var coded interface{ ExitCode() int }
	if _, err := b.Shell(ctx, s, Stdio{}); !errors.As(err, &coded) || coded.ExitCode() != 127 {
		t.Error(err)
	}
}

// watcher closes seen when what it wants was written.
type watcher struct {
	want string
	all  []byte
	seen chan struct{}
	once sync.Once
}

func (w *watcher) Write(b []byte) (int, error) {
	if w.all = append(w.all, b...); bytes.Contains(w.all, []byte(w.want)) {
		w.once.Do(func() { close(w.seen) })
	}
	return len(b), nil
}
