package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	dcontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"golang.org/x/sys/unix"

	"keg/internal/container"
	"keg/internal/event"
	"keg/internal/fault"
	"keg/internal/volume"
)

var ctx = context.Background()

func TestExec(t *testing.T) {
	h := newHouse(t)
	r := h.detached([]string{"sleep", "1000"}, func(r *container.Record) { r.Config.Env = []string{"A=1"}; r.Config.WorkingDir = "/tmp" })
	out, x, err := h.exec(r.ID, ExecRequest{Cmd: sh("echo $A $B $HOME; pwd; id -u; exit 7"), Env: []string{"B=2"}, User: "app"}, nil)
	if err != nil || x.Code != 7 || out != "1 2 /home/app\n/tmp\n1000\n" {
		t.Errorf("%q %+v %v", out, x, err)
	}
	if out, _, err := h.exec(r.ID, ExecRequest{Cmd: []string{"cat"}}, strings.NewReader("in\n")); err != nil || out != "in\n" {
		t.Errorf("%q %v", out, err)
	}
	if out, _, err := h.exec(r.ID, ExecRequest{Cmd: []string{"pwd"}, Dir: "/etc"}, nil); err != nil || out != "/etc\n" {
		t.Errorf("%q %v", out, err)
	}
	_, _, err = h.exec(r.ID, ExecRequest{Cmd: []string{"nope"}}, nil)
	var c interface{ ExitCode() int }
	if !errors.As(err, &c) || c.ExitCode() != 127 ||
		err.Error() != `OCI runtime exec failed: exec failed: unable to start container process: exec: "nope": executable file not found in $PATH` {
		t.Error(err)
	}
	if _, x, err := h.exec(r.ID, ExecRequest{Cmd: sh("touch /tmp/made"), Detach: true}, nil); err != nil || x.Code != 0 {
		t.Error(x, err)
	}
	h.settled(func() bool {
		_, x, _ := h.exec(r.ID, ExecRequest{Cmd: []string{"test", "-e", "/tmp/made"}}, nil)
		return x.Code == 0
	}, "a detached exec did nothing")
	_, _, err = h.exec(r.ID, ExecRequest{Cmd: []string{"true"}, User: "nobody-here"}, nil)
	if err == nil || !strings.Contains(err.Error(), "nobody-here") {
		t.Error(err)
	}
}

func TestExecManyAtOnce(t *testing.T) {
	h := newHouse(t)
	r := h.detached([]string{"sleep", "1000"})
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			out, x, err := h.exec(r.ID, ExecRequest{Cmd: sh(fmt.Sprintf("echo %d; exit %d", i, i))}, nil)
			if err != nil || x.Code != i || out != fmt.Sprintf("%d\n", i) {
				t.Errorf("%d: %q %+v %v", i, out, x, err)
			}
		})
	}
	wg.Wait()
	info, err := h.dial(r.ID).Info(ctx)
	if err != nil || len(info.Execs) != 0 || info.Pid == 0 {
		t.Errorf("%+v %v", info, err)
	}
}

// TestExecWithBackgroundChild: a child that keeps the output open does not keep the exec.
func TestExecWithBackgroundChild(t *testing.T) {
	h := newHouse(t)
	r := h.detached([]string{"sleep", "1000"})
	start := time.Now()
	out, x, err := h.exec(r.ID, ExecRequest{Cmd: sh("sleep 999 & echo started")}, nil)
	if err != nil || x.Code != 0 || out != "started\n" || time.Since(start) > 5*time.Second {
		t.Errorf("%q %+v %v after %v", out, x, err, time.Since(start))
	}
}

func TestExecPrivilegedAndConfined(t *testing.T) {
	h := newHouse(t)
	r := h.detached([]string{"sleep", "1000"})
	caps := func(q ExecRequest) string {
		q.Cmd = []string{"grep", "CapEff", "/proc/self/status"}
		out, _, err := h.exec(r.ID, q, nil)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(strings.TrimPrefix(out, "CapEff:"))
	}
	if got := caps(ExecRequest{}); got != "00000000a80425fb" {
		t.Errorf("exec has capabilities %s", got)
	}
	if got := caps(ExecRequest{User: "app"}); got != "0000000000000000" {
		t.Errorf("a user has capabilities %s", got)
	}
	if got := caps(ExecRequest{Privileged: true}); len(got) != 16 || got <= "00000000a80425fb" {
		t.Errorf("privileged exec has capabilities %s", got)
	}
}

func TestTerminal(t *testing.T) {
	h := newHouse(t)
	in, feed := io.Pipe()
	resize := make(chan [2]uint16, 1)
	rec := h.create([]string{"sh"}, tty)
	var out bytes.Buffer
	w := &locked{w: &out}
	resize <- [2]uint16{33, 99}
	c, err := Spawn(ctx, h.roots, rec.ID, &Stdio{In: in, Out: w, Resize: resize})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	text := func() string { w.mu.Lock(); defer w.mu.Unlock(); return out.String() }
	io.WriteString(feed, "stty size; tty; echo $TERM\n")
	h.settled(func() bool { return strings.Contains(text(), "xterm\r\n") }, "no answer on the terminal: "+text())
	if !strings.Contains(text(), "33 99\r\n") || !strings.Contains(text(), "/dev/pts/0\r\n") {
		t.Errorf("%q", text())
	}
	if err := h.dial(rec.ID).Resize(ctx, 44, 55); err != nil {
		t.Error(err)
	}
	io.WriteString(feed, "stty size\n")
	h.settled(func() bool { return strings.Contains(text(), "44 55\r\n") }, "the size did not change")
	io.WriteString(feed, "\x10\x11")
	x, err := c.Wait(ctx)
	if err != nil || !x.Detached {
		t.Fatalf("detach: %+v %v", x, err)
	}
	// It goes on, and another one attaches and ends it.
	in2, feed2 := io.Pipe()
	done := make(chan Exit, 1)
	var out2 bytes.Buffer
	go func() {
		x, err := h.dial(rec.ID).Attach(ctx, Stdio{In: in2, Out: &locked{w: &out2}})
		if err != nil {
			t.Error(err)
		}
		done <- x
	}()
	io.WriteString(feed2, "exit 5\n")
	if x := <-done; x.Code != 5 {
		t.Errorf("%+v", x)
	}
}

func TestStop(t *testing.T) {
	h := newHouse(t)
	graceful := h.detached(sh("trap 'exit 3' TERM; echo set; while true; do sleep 0.01; done"))
	h.prints(graceful.ID, "set")
	if err := h.dial(graceful.ID).Stop(ctx, 0, 10); err != nil {
		t.Fatal(err)
	}
	if st := h.state(graceful.ID); st.ExitCode != 3 || !st.ManualStop || st.Status != dcontainer.StateExited {
		t.Errorf("%+v", st)
	}
	stubborn := h.detached(sh("trap '' TERM; echo set; while true; do sleep 0.01; done"))
	h.prints(stubborn.ID, "set")
	start := time.Now()
	if err := h.dial(stubborn.ID).Stop(ctx, 0, 1); err != nil {
		t.Fatal(err)
	}
	if st := h.state(stubborn.ID); st.ExitCode != 137 || time.Since(start) < time.Second {
		t.Errorf("%+v after %v", st, time.Since(start))
	}
	if c, err := Dial(ctx, h.roots, stubborn.ID); err == nil {
		c.Close() // the monitor is still cleaning up
	} else if !fault.Is(err, fault.Conflict) {
		t.Error(err)
	}
}

// TestStopRightAfterTheStart: a program gets time for its handlers; one that wants none is not waited for.
func TestStopRightAfterTheStart(t *testing.T) {
	h := newHouse(t)
	late := h.detached(sh("sleep 0.03; trap 'exit 3' TERM; while true; do sleep 0.01; done"))
	if err := h.dial(late.ID).Stop(ctx, 0, 10); err != nil {
		t.Fatal(err)
	}
	if st := h.state(late.ID); st.ExitCode != 3 {
		t.Errorf("the signal came before the handler: %+v", st)
	}
	never := h.detached([]string{"sleep", "1000"})
	start := time.Now()
	if err := h.dial(never.ID).Kill(ctx, int(unix.SIGTERM)); err != nil || time.Since(start) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}

// TestKillThatIsNoStop: with a stop signal of its own another signal leaves the restart policy in force.
func TestKillThatIsNoStop(t *testing.T) {
	h := newHouse(t)
	program := sh("trap 'exit 3' TERM; trap 'exit 4' USR1; echo set; while true; do sleep 0.01; done")
	again := h.detached(program, func(r *container.Record) {
		r.Config.StopSignal, r.Host.RestartPolicy.Name = "USR1", dcontainer.RestartPolicyAlways
	})
	h.prints(again.ID, "set")
	if err := h.dial(again.ID).Kill(ctx, int(unix.SIGTERM)); err != nil {
		t.Fatal(err)
	}
	h.settled(func() bool {
		st := h.state(again.ID)
		return st.RestartCount == 1 && st.Status == dcontainer.StateRunning
	}, "not started again")
	if err := h.dial(again.ID).Kill(ctx, int(unix.SIGUSR1)); err != nil {
		t.Fatal(err)
	}
	h.settled(func() bool { st := h.state(again.ID); return st.Status == dcontainer.StateExited && st.ExitCode == 4 }, "started again after its stop signal")
}

// prints waits until the container has printed a line.
func (h *house) prints(id, line string) {
	h.t.Helper()
	h.settled(func() bool {
		b, _ := os.ReadFile(h.s.LogPath(id))
		return strings.Contains(string(b), `"`+line+`\n"`)
	}, "no line "+line)
}

func TestRenewKeepsWhatAStopWouldRemove(t *testing.T) {
	h := newHouse(t)
	r := h.detached(sh("test ! -e /kept || echo again; echo x >/kept; echo ready; sleep 1000"), autoRemove)
	h.prints(r.ID, "ready") // it was there before it is killed
	first := h.state(r.ID).Pid
	if err := h.dial(r.ID).Renew(ctx, int(unix.SIGKILL), 0); err != nil {
		t.Fatal(err)
	}
	st := h.state(r.ID)
	if st.Status != dcontainer.StateRunning || st.Pid == first || st.RestartCount != 0 {
		t.Errorf("%+v, the first process was %d", st, first)
	}
	h.prints(r.ID, "again")
	if err := h.dial(r.ID).Stop(ctx, int(unix.SIGKILL), 0); err != nil {
		t.Fatal(err)
	}
	h.settled(func() bool { _, err := h.s.Get(r.ID); return fault.Is(err, fault.NotFound) }, "a stop does not remove it")
}

func TestKillAndWait(t *testing.T) {
	h := newHouse(t)
	r := h.detached(sh("trap 'echo hup' HUP; echo set; while true; do sleep 0.01; done"))
	h.prints(r.ID, "set")
	c := h.dial(r.ID)
	if err := c.Kill(ctx, int(unix.SIGHUP)); err != nil {
		t.Fatal(err)
	}
	wait := make(chan Exit)
	go func() { x, _ := h.dial(r.ID).Wait(ctx); wait <- x }()
	h.prints(r.ID, "hup")
	if err := c.Kill(ctx, int(unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	if x := <-wait; x.Code != 137 {
		t.Errorf("%+v", x)
	}
	if err := c.Kill(ctx, 999); err == nil {
		t.Error("signal 999 was accepted")
	}
}

func TestPause(t *testing.T) {
	h := newHouse(t)
	r := h.detached(sh("while true; do echo x; sleep 0.01; done"))
	c := h.dial(r.ID)
	if err := c.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	size := func() int64 {
		fi, err := os.Stat(h.s.LogPath(r.ID))
		if err != nil {
			return 0 // nothing was printed yet
		}
		return fi.Size()
	}
	time.Sleep(50 * time.Millisecond) // what is in the pipe
	before := size()
	time.Sleep(100 * time.Millisecond)
	if size() != before || h.state(r.ID).Status != dcontainer.StatePaused {
		t.Errorf("not paused: %d then %d bytes, %s", before, size(), h.state(r.ID).Status)
	}
	if err := c.Pause(ctx); !fault.Is(err, fault.Conflict) {
		t.Error(err)
	}
	if _, _, err := h.exec(r.ID, ExecRequest{Cmd: []string{"true"}}, nil); err == nil || !strings.Contains(err.Error(), "is paused, unpause the container before exec") {
		t.Error(err)
	}
	if err := c.Unpause(ctx); err != nil {
		t.Fatal(err)
	}
	h.settled(func() bool { return size() > before }, "not running again")
	c.Pause(ctx)
	if err := c.Stop(ctx, 9, 1); err != nil {
		t.Errorf("stop of a paused one: %v", err)
	}
}

func TestRestartPolicy(t *testing.T) {
	h := newHouse(t)
	r := h.detached(sh("echo run; exit 4"), func(r *container.Record) {
		r.Host.RestartPolicy = dcontainer.RestartPolicy{Name: "on-failure", MaximumRetryCount: 2}
	})
	h.settled(func() bool { on, _ := h.s.Running(r.ID); return !on }, "it goes on and on")
	if st := h.state(r.ID); st.RestartCount != 2 || st.ExitCode != 4 || st.Status != dcontainer.StateExited {
		t.Errorf("%+v", st)
	}
	n := 0
	h.s.Logs(ctx, r.ID, container.LogOptions{Tail: -1}, func(container.LogEntry) error { n++; return nil })
	if n != 3 {
		t.Errorf("ran %d times", n)
	}
	always := h.detached(sh("exit 1"), func(r *container.Record) { r.Host.RestartPolicy.Name = "always" })
	h.settled(func() bool { return h.state(always.ID).Status == dcontainer.StateRestarting }, "not restarting")
	if _, _, err := h.exec(always.ID, ExecRequest{Cmd: []string{"true"}}, nil); err == nil {
		t.Log("exec hit a short run")
	}
	if err := h.dial(always.ID).Stop(ctx, 0, 5); err != nil {
		t.Fatal(err)
	}
	h.settled(func() bool { on, _ := h.s.Running(always.ID); return !on }, "stop did not end the restarts")
	if st := h.state(always.ID); st.Status != dcontainer.StateExited {
		t.Errorf("%+v", st)
	}
}

// TestMonitorKilled: kill -9 of the monitor ends the container; whoever looks next cleans up.
func TestMonitorKilled(t *testing.T) {
	h := newHouse(t)
	r := h.detached(sh("sleep 1000 & sleep 1000"), named("lost"))
	info, err := h.dial(r.ID).Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	pid := info.Pid
	unix.Kill(info.Monitor, unix.SIGKILL)
	h.settled(func() bool { return !alive(pid) }, "the container outlives its monitor")
	h.settled(func() bool { on, _ := h.s.Running(r.ID); return !on }, "the lock is held")
	if st := h.state(r.ID); st.Status != dcontainer.StateRunning {
		t.Errorf("before: %+v", st)
	}
	if err := Reap(ctx, h.roots, r.ID); err != nil {
		t.Fatal(err)
	}
	st := h.state(r.ID)
	if st.Status != dcontainer.StateExited || st.ExitCode != 137 || st.Error != "monitor lost" {
		t.Errorf("after: %+v", st)
	}
	if _, err := os.Stat("/sys/fs/cgroup/pids/keg/" + r.ID); err == nil {
		t.Error("the cgroup remains")
	}
	// It can be started again.
	if res := h.startDetached(r); res != nil {
		t.Fatal(res)
	}
	if err := Reap(ctx, h.roots, r.ID); err != nil {
		t.Error(err)
	}
	if on, _ := h.s.Running(r.ID); !on {
		t.Error("reaping hit a living container")
	}
}

// zombies of the test's own children count as dead.
func alive(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(b), ") Z ")
}

func (h *house) startDetached(r *container.Record) error {
	c, err := Spawn(ctx, h.roots, r.ID, nil)
	if err == nil {
		c.Close()
	}
	return err
}

// TestMonitorKilledStartsAgain: a start cleans up itself.
func TestMonitorKilledStartsAgain(t *testing.T) {
	h := newHouse(t)
	r := h.detached([]string{"sleep", "1000"})
	info, _ := h.dial(r.ID).Info(ctx)
	unix.Kill(info.Monitor, unix.SIGKILL)
	h.settled(func() bool { on, _ := h.s.Running(r.ID); return !on }, "the lock is held")
	if err := h.startDetached(r); err != nil {
		t.Fatal(err)
	}
	if st := h.state(r.ID); st.Status != dcontainer.StateRunning || st.Pid == info.Pid {
		t.Errorf("%+v", st)
	}
}

func TestMonitorKilledAutoRemove(t *testing.T) {
	h := newHouse(t)
	r := h.detached([]string{"sleep", "1000"}, autoRemove)
	info, _ := h.dial(r.ID).Info(ctx)
	unix.Kill(info.Monitor, unix.SIGKILL)
	h.settled(func() bool { on, _ := h.s.Running(r.ID); return !on }, "the lock is held")
	if err := ReapAll(ctx, h.roots); err != nil {
		t.Fatal(err)
	}
	if _, err := h.s.Find(r.ID); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if keys, _ := h.snaps.Keys(); len(keys) != 0 {
		t.Errorf("layers remain: %v", keys)
	}
}

// TestReapSparesStrangers (F17): the state names a process that is somebody else's by now.
func TestReapSparesStrangers(t *testing.T) {
	h := newHouse(t)
	r := h.create([]string{"true"})
	decoy, err := os.StartProcess("/bin/busybox", []string{"sleep", "1000"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { decoy.Kill(); decoy.Wait() }()
	for _, boot := range []string{"an earlier boot", ""} {
		h.s.PutState(r.ID, &container.State{Status: dcontainer.StateRunning, Pid: decoy.Pid, BootID: boot, Started: time.Now()}, true)
		if err := Reap(ctx, h.roots, r.ID); err != nil {
			t.Fatal(err)
		}
		if !alive(decoy.Pid) {
			t.Fatal("a stranger was killed")
		}
		if st := h.state(r.ID); st.ExitCode != 137 || st.Error != "monitor lost: the host was restarted" {
			t.Errorf("%+v", st)
		}
	}
}

func TestStartTwice(t *testing.T) {
	h := newHouse(t)
	r := h.detached([]string{"sleep", "1000"})
	if err := h.startDetached(r); !fault.Is(err, fault.NotModified) {
		t.Error(err)
	}
	h.dial(r.ID).Stop(ctx, 9, 0)
	if err := h.startDetached(r); err != nil { // at once after the exit was reported
		t.Error(err)
	}
}

func TestSocketIsPrivate(t *testing.T) {
	h := newHouse(t)
	r := h.detached([]string{"sleep", "1000"})
	d, err := os.Stat(h.roots.dir(r.ID))
	if err != nil || d.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v %v", d, err)
	}
	s, err := os.Stat(h.roots.socket(r.ID))
	if err != nil || s.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v %v", s, err)
	}
	b, _ := os.ReadFile("/proc/net/unix")
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 8 && strings.HasPrefix(f[7], "@") && strings.Contains(f[7], "keg") {
			t.Errorf("abstract socket: %s", line)
		}
	}
}

func TestLongRunRoot(t *testing.T) {
	h := newHouse(t)
	h.roots.Run = filepath.Join(h.roots.Run, strings.Repeat("long/", 30))
	os.MkdirAll(h.roots.Run, 0o700)
	r := h.detached([]string{"sleep", "1000"})
	if _, x, err := h.exec(r.ID, ExecRequest{Cmd: []string{"true"}}, nil); err != nil || x.Code != 0 {
		t.Error(err)
	}
	h.dial(r.ID).Stop(ctx, 9, 0)
}

func TestOOM(t *testing.T) {
	h := newHouse(t)
	rec := h.create(sh("x=$(yes 0123456789012345678901234567890123456789)"), func(r *container.Record) { r.Host.Memory = 16 << 20 })
	r := h.start(rec, nil)
	if r.failure != nil || r.exit.Code != 137 || !r.exit.OOM || !h.state(rec.ID).OOMKilled {
		t.Errorf("%+v %+v", r.exit, r.failure)
	}
}

func TestHealthOfARun(t *testing.T) {
	h := newHouse(t)
	r := h.detached([]string{"sleep", "1000"}, func(r *container.Record) {
		r.Config.Healthcheck = &dcontainer.HealthConfig{Test: []string{"CMD-SHELL", "echo checked; test -e /tmp/ok"}, Interval: 20 * time.Millisecond, Retries: 2}
	})
	if st := h.state(r.ID); st.Health == nil || st.Health.Status != dcontainer.Starting {
		t.Errorf("at first: %+v", st.Health)
	}
	is := func(s dcontainer.HealthStatus) func() bool {
		return func() bool { st := h.state(r.ID); return st.Health != nil && st.Health.Status == s }
	}
	h.settled(is(dcontainer.Unhealthy), "not unhealthy")
	h.exec(r.ID, ExecRequest{Cmd: []string{"touch", "/tmp/ok"}}, nil)
	h.settled(is(dcontainer.Healthy), "not healthy")
	if l := h.state(r.ID).Health.Log; len(l) == 0 || l[0].Output != "checked\n" {
		t.Errorf("%+v", l)
	}
	h.settled(func() bool {
		var seen []string
		event.Open(h.roots.Root).Read(ctx, 0, 0, false, func(m event.Message) error {
			if s, ok := strings.CutPrefix(string(m.Action), "health_status: "); ok {
				seen = append(seen, s)
			}
			return nil
		})
		return fmt.Sprint(seen) == "[unhealthy healthy]"
	}, "the events are not unhealthy, healthy")
}

func TestEvents(t *testing.T) {
	h := newHouse(t)
	h.run(sh("exit 3"), nil, autoRemove, named("noted"))
	var got []string
	h.settled(func() bool {
		got = nil
		event.Open(h.roots.Root).Read(ctx, 0, 0, false, func(m event.Message) error {
			got = append(got, string(m.Action)+m.Actor.Attributes["exitCode"]+m.Actor.Attributes["name"])
			return nil
		})
		return len(got) == 3
	}, "events are missing")
	if fmt.Sprint(got) != "[startnoted die3noted destroynoted]" {
		t.Error(got)
	}
}

func TestVolumes(t *testing.T) {
	h := newHouse(t)
	vols := volume.Open(h.roots.Root)
	v, err := vols.Create(ctx, volume.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	keep, err := vols.Create(ctx, volume.CreateOptions{Name: "keep", Options: map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}})
	if err != nil {
		t.Fatal(err)
	}
	mounts := func(r *container.Record) {
		r.Mounts = []dcontainer.MountPoint{{Type: mount.TypeVolume, Name: v.Name, Source: v.Mountpoint, Destination: "/data", RW: true},
			{Type: mount.TypeVolume, Name: "keep", Source: keep.Mountpoint, Destination: "/keep", RW: true}}
	}
	r := h.run(sh("cat /data/seed; stat -c %u:%g:%a /data/seed; grep -c ' /keep tmpfs' /proc/mounts; echo x >/keep/x"), nil, autoRemove, mounts)
	if r.failure != nil || r.out != "seed\n1000:1001:640\n1\n" {
		t.Errorf("%+v", r)
	}
	h.settled(func() bool { _, err := vols.Get(v.Name); return fault.Is(err, fault.NotFound) }, "the anonymous volume remains")
	h.settled(func() bool { _, err := os.Stat(keep.Mountpoint + "/x"); return err != nil }, "the volume stays mounted")
	if _, err := vols.Get("keep"); err != nil {
		t.Error(err)
	}
}

func TestModesThatJoin(t *testing.T) {
	h := newHouse(t)
	first := h.detached([]string{"sleep", "1000"}, named("first"), func(r *container.Record) { r.Config.Hostname, r.Host.IpcMode = "one", "shareable" })
	join := func(r *container.Record) {
		r.Host.NetworkMode = dcontainer.NetworkMode("container:first")
		r.Host.PidMode, r.Host.IpcMode = dcontainer.PidMode("container:"+first.ID), "container:first"
	}
	r := h.run(sh("cat /etc/hostname; ps | grep -c 'sleep 1000'"), nil, autoRemove, join)
	if r.failure != nil || !strings.HasPrefix(r.out, "one\n") || strings.TrimSpace(strings.TrimPrefix(r.out, "one\n")) == "0" {
		t.Errorf("%+v %v", r, r.failure)
	}
	h.dial(first.ID).Stop(ctx, 9, 0)
	if r := h.run([]string{"true"}, nil, autoRemove, join); r.failure == nil {
		t.Error("joined a stopped container")
	}
}

func TestHostPid(t *testing.T) {
	h := newHouse(t)
	start := time.Now()
	r := h.run(sh("sleep 1000 & echo $$"), nil, autoRemove, func(r *container.Record) { r.Host.PidMode = "host" })
	if r.failure != nil || time.Since(start) > 10*time.Second {
		t.Errorf("%+v after %v", r, time.Since(start))
	}
	if n, _ := strconv.Atoi(strings.TrimSpace(r.out)); n < 2 {
		t.Errorf("pid %q in the host's namespace", r.out)
	}
}

func TestInit(t *testing.T) {
	h := newHouse(t)
	yes := true
	with := func(r *container.Record) { r.Host.Init = &yes }
	// As pid 1 a shell would ignore TERM; behind an init it dies of it.
	r := h.detached(sh("echo up; exec sleep 1000"), with)
	h.settled(func() bool { fi, err := os.Stat(h.s.LogPath(r.ID)); return err == nil && fi.Size() > 0 }, "not up")
	start := time.Now()
	if err := h.dial(r.ID).Stop(ctx, 0, 10); err != nil {
		t.Fatal(err)
	}
	if st := h.state(r.ID); st.ExitCode != 143 || time.Since(start) > 5*time.Second {
		t.Errorf("%+v after %v", st, time.Since(start))
	}
	if r := h.run(sh("exit 9"), nil, autoRemove, with); r.exit.Code != 9 {
		t.Errorf("%+v", r)
	}
	if r := h.run([]string{"nope"}, nil, autoRemove, with); r.exit.Code != 127 {
		t.Errorf("%+v", r)
	}
}

func TestUpdate(t *testing.T) {
	h := newHouse(t)
	r := h.detached([]string{"sleep", "1000"}, func(r *container.Record) { r.Host.Memory = 64 << 20 })
	r.Host.Memory = 32 << 20
	if err := h.s.Put(r); err != nil {
		t.Fatal(err)
	}
	if err := h.dial(r.ID).Update(ctx); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"/sys/fs/cgroup/memory/keg/" + r.ID + "/memory.limit_in_bytes", "/sys/fs/cgroup/keg/" + r.ID + "/memory.max"} {
		if b, err := os.ReadFile(f); err == nil {
			if strings.TrimSpace(string(b)) != fmt.Sprint(32<<20) {
				t.Errorf("%s = %s", f, b)
			}
			return
		}
	}
	t.Skip("needs the memory controller")
}

func TestForkBombIsBounded(t *testing.T) {
	h := newHouse(t)
	n := int64(20)
	r := h.run(sh("for i in $(seq 1 50); do sleep 100 & done; echo made"), nil, autoRemove, func(r *container.Record) { r.Host.PidsLimit = &n })
	if r.failure != nil || !strings.Contains(r.err, "fork") {
		t.Errorf("%+v", r)
	}
}
