package monitor

// Attacks on monitors, each beside what must keep working. The numbers in brackets are CVEs.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"keg/internal/container"
)

// A container in the host's network reaches no socket of the engine: there is none without a name in
// the file system (2020-15257), and those with one open for root only.
func TestNoAbstractSocket(t *testing.T) {
	h := newHouse(t)
	before := abstractSockets(t)
	r := h.detached(sh("sleep 1000"), hostNet)
	for s := range abstractSockets(t) {
		if !before[s] {
			t.Errorf("the abstract socket %s is new", s)
		}
	}
	out, _, err := h.exec(r.ID, ExecRequest{Cmd: sh("grep -c @ /proc/net/unix; echo seen")}, nil)
	if err != nil || !strings.Contains(out, "seen") {
		t.Errorf("%q %v", out, err)
	}
	sockets := 0
	near := t.TempDir() // addresses have 107 bytes at most
	os.Chmod(filepath.Dir(near), 0o755)
	os.Chmod(near, 0o755)
	filepath.Walk(h.roots.Run, func(p string, fi os.FileInfo, err error) error {
		if err == nil && fi.Mode()&os.ModeSocket != 0 {
			sockets++
			short := filepath.Join(near, fmt.Sprint(sockets))
			if err := os.Symlink(filepath.Dir(p), short); err != nil {
				t.Fatal(err)
			}
			short += "/" + fi.Name()
			if fi.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s has mode %v", p, fi.Mode())
			}
			if e := connectAs(1000, short); !errors.Is(e, unix.EACCES) {
				t.Errorf("user 1000 at %s: %v", p, e)
			}
			if c, e := net.Dial("unix", short); e != nil {
				t.Errorf("root cannot talk to %s: %v", p, e)
			} else {
				c.Close()
			}
		}
		return nil
	})
	if sockets == 0 {
		t.Error("no socket was found: nothing was shown")
	}
}

func abstractSockets(t *testing.T) map[string]bool {
	b, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 8 && strings.HasPrefix(f[7], "@") {
			out[f[7]] = true
		}
	}
	return out
}

// connectAs connects as another user: on a thread of its own, which ends with the goroutine.
func connectAs(uid int, socket string) error {
	answer := make(chan error)
	go func() {
		runtime.LockOSThread()
		s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			defer unix.Close(s)
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
				err = e
			} else {
				err = unix.Connect(s, &unix.SockaddrUnix{Name: socket})
			}
		}
		answer <- err
	}()
	return <-answer
}

// What an image says of itself is data: no label names a program, a hook or a logger that runs
// (2026-53488, 2026-53492).
func TestLabelsAreData(t *testing.T) {
	h := newHouse(t)
	canary := filepath.Join(t.TempDir(), "canary")
	evil := "/bin/sh -c 'touch " + canary + "'"
	labels := map[string]string{"log-uri": "binary:///bin/touch?" + canary, "io.containerd.image.config.stop-signal": "SIGKILL",
		"org.opencontainers.runtime.hooks": evil, "io.kubernetes.cri-o.Hooks": evil, "cdi.k8s.io/x": "vendor.com/device=all",
		"run.oci.handler": evil, "run.oci.hooks.stdout": canary, "com.docker.hooks": evil, "keg.hooks": evil, "keg.log": "binary://" + canary,
		"io.containerd.runc.v2.group": evil, "org.systemd.property.ExecStartPost": evil, "module.wasm.image/variant": "compat"}
	res := h.run(sh("echo honest"), nil, func(r *container.Record) { r.Config.Labels = labels })
	if res.failure != nil || res.out != "honest\n" {
		t.Errorf("%+v", res)
	}
	if _, err := os.Stat(canary); err == nil {
		t.Error("a label was executed")
	}
}

// Clients that die, and programs that leave children behind, cost a monitor nothing that stays
// (2022-23471, 2022-1708, 2026-53495).
func TestClientsThatDieLeaveNothing(t *testing.T) {
	h := newHouse(t)
	r := h.detached(sh("while sleep 0.01; do echo x; done"))
	pid := monitorOf(t, h.state(r.ID).Pid)
	cycle := func(i int) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		c, err := Dial(ctx, h.roots, r.ID)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			switch i % 3 {
			case 0:
				_, _ = c.Exec(ctx, ExecRequest{Cmd: sh("sleep 1000")}, Stdio{Out: new(strings.Builder), Err: new(strings.Builder)})
			case 1:
				_, _ = c.Exec(ctx, ExecRequest{Cmd: sh("sleep 2 & echo hi")}, Stdio{Out: new(strings.Builder)})
			default:
				_, _ = c.Exec(ctx, ExecRequest{Cmd: []string{"nowhere"}}, Stdio{})
			}
		}()
		time.Sleep(5 * time.Millisecond)
		c.Close()
		cancel()
		<-done
	}
	for i := range 6 {
		cycle(i)
	}
	rounds := 60
	if os.Getenv("KEG_SOAK") != "" {
		rounds = 1000
	}
	settle := func() int { time.Sleep(2500 * time.Millisecond); return openFiles(t, pid) }
	killSleepers(t, h, r.ID)
	base := settle()
	for i := range rounds {
		cycle(i)
	}
	killSleepers(t, h, r.ID)
	if now := settle(); now > base+2 {
		t.Errorf("the monitor has %d open files, before it had %d", now, base)
	}
	if out, x, err := h.exec(r.ID, ExecRequest{Cmd: sh("echo alive")}, nil); out != "alive\n" || x.Code != 0 || err != nil {
		t.Errorf("%q %v %v", out, x, err)
	}
}

// killSleepers ends what killed clients left running: as with Docker, an exec outlives its client.
func killSleepers(t *testing.T, h *house, id string) {
	t.Helper()
	if _, _, err := h.exec(id, ExecRequest{Cmd: sh(`for d in /proc/[0-9]*; do grep -q 1000 $d/cmdline 2>/dev/null && kill -9 ${d#/proc/}; done; true`)}, nil); err != nil {
		t.Error(err)
	}
}

func monitorOf(t *testing.T, pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var n int
		if k, _ := fmt.Sscanf(line, "PPid: %d", &n); k == 1 {
			return n
		}
	}
	t.Fatal("no parent")
	return 0
}

func openFiles(t *testing.T, pid int) int {
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
