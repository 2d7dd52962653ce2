package oci

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/sandbox/cgroup"
	"keg/test/private"
)

// The tests run in mount and network namespaces of their own.
func TestMain(m *testing.M) {
	private.Enter()
	os.Exit(m.Run())
}

// lab is a runtime and a bundle with busybox.
type lab struct {
	*Runtime
	t      *testing.T
	bundle string
	out    *os.File
}

func newLab(t *testing.T, change func(*specs.Spec), args ...string) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces, mounts and cgroups")
	}
	box, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs busybox-static: ", err)
	}
	dir := t.TempDir()
	l := &lab{&Runtime{Root: filepath.Join(dir, "state")}, t, filepath.Join(dir, "bundle"), nil}
	for _, d := range []string{"bin", "etc", "tmp", "proc", "sys", "dev"} {
		os.MkdirAll(filepath.Join(l.bundle, "rootfs", d), 0o755)
	}
	if err := os.WriteFile(filepath.Join(l.bundle, "rootfs/bin/busybox"), box, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"sh", "cat", "sleep", "echo", "id", "hostname", "stat", "touch", "ls"} {
		os.Symlink("busybox", filepath.Join(l.bundle, "rootfs/bin", n))
	}
	s := Template()
	s.Process.Terminal, s.Process.Args, s.Root.Readonly = false, args, false
	s.Linux.CgroupsPath = "/keg-test-oci/" + fmt.Sprint(time.Now().UnixNano())
	if change != nil {
		change(s)
	}
	l.write(s)
	if l.out, err = os.CreateTemp(dir, "out"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.Delete(context.Background(), "c", true)
		l.out.Close()
		cgroup.Tidy("keg-test-oci")
	})
	return l
}

func (l *lab) write(s *specs.Spec) {
	b, _ := json.Marshal(s)
	if err := os.WriteFile(filepath.Join(l.bundle, "config.json"), b, 0o644); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) launch() Launch { return Launch{Stdio: [3]*os.File{nil, l.out, l.out}} }

func (l *lab) said() string {
	b, _ := os.ReadFile(l.out.Name())
	return strings.TrimSpace(string(b))
}

func (l *lab) status() specs.ContainerState {
	s, err := l.State("c")
	if err != nil {
		l.t.Fatal(err)
	}
	return s.Status
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func TestLifecycle(t *testing.T) {
	l := newLab(t, nil, "sh", "-c", "echo started; sleep 1000")
	ctx := context.Background()
	c := l.launch()
	c.PidFile = filepath.Join(l.bundle, "pid")
	l.must(l.Create(ctx, "c", l.bundle, c))
	s, err := l.State("c")
	l.must(err)
	if b, _ := os.ReadFile(c.PidFile); s.Status != specs.StateCreated || fmt.Sprint(s.Pid) != string(b) || l.said() != "" || s.Bundle != l.bundle {
		t.Errorf("%+v %q", s, l.said())
	}
	if err := l.Create(ctx, "c", l.bundle, l.launch()); !fault.Is(err, fault.Conflict) {
		t.Errorf("a second container of the same id: %v", err)
	}
	if err := l.Delete(ctx, "c", false); !fault.Is(err, fault.Conflict) || l.status() != specs.StateCreated {
		t.Errorf("a created container was deleted: %v", err)
	}
	l.must(l.Start(ctx, "c"))
	if err := l.Start(ctx, "c"); !fault.Is(err, fault.Conflict) || l.status() != specs.StateRunning {
		t.Errorf("%v %s", err, l.status())
	}
	if err := l.Delete(ctx, "c", false); !fault.Is(err, fault.Conflict) {
		t.Errorf("a running container was deleted: %v", err)
	}
	p, err := l.ProcessOf("c")
	l.must(err)
	p.Args = []string{"sh", "-c", "hostname; exit 7"}
	if code, err := l.Exec(ctx, "c", p, l.launch(), false, false); code != 7 || err != nil || !strings.HasSuffix(l.said(), "started\nkeg") {
		t.Errorf("%d %v %q", code, err, l.said())
	}
	l.must(l.Pause(ctx, "c"))
	if l.status() != Paused {
		t.Error(l.status())
	}
	if _, err := l.Exec(ctx, "c", p, l.launch(), false, false); !fault.Is(err, fault.Conflict) {
		t.Errorf("exec in a paused container: %v", err)
	}
	l.must(l.Resume(ctx, "c"))
	if pids, err := l.Pids("c"); err != nil || len(pids) < 1 || l.status() != specs.StateRunning {
		t.Error(pids, err, l.status())
	}
	l.must(l.Kill("c", unix.SIGKILL, false))
	unix.Wait4(s.Pid, nil, 0, nil)
	if l.status() != specs.StateStopped {
		t.Error(l.status())
	}
	if err := l.Kill("c", unix.SIGTERM, false); err == nil || err.Error() != "container not running" {
		t.Error(err)
	}
	l.must(l.Delete(ctx, "c", false))
	if _, err := l.State("c"); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if all, err := l.List(); len(all) != 0 || err != nil {
		t.Error(all, err)
	}
}

// A container whose program is missing is stopped once start has said so, and goes as stopped ones go.
func TestNoCgroupIsLeft(t *testing.T) {
	l := newLab(t, func(s *specs.Spec) { s.Linux.CgroupsPath = "" }, "sleep", "1000")
	ctx := context.Background()
	l.must(l.Create(ctx, "c", l.bundle, l.launch()))
	groups := func() (all []string) {
		for _, pattern := range []string{"/sys/fs/cgroup/keg-oci", "/sys/fs/cgroup/*/keg-oci"} {
			found, _ := filepath.Glob(pattern)
			all = append(all, found...)
		}
		return all
	}
	if len(groups()) == 0 {
		t.Error("the container has no cgroup of its own")
	}
	l.must(l.Delete(ctx, "c", true))
	for _, dir := range groups() {
		if inside, _ := filepath.Glob(dir + "/*/cgroup.procs"); len(inside) == 0 {
			t.Errorf("%s is left behind and empty", dir)
		}
	}
}

func TestFailedStartIsStopped(t *testing.T) {
	l := newLab(t, nil, "nowhere")
	l.must(l.Create(context.Background(), "c", l.bundle, l.launch()))
	if err := l.Start(context.Background(), "c"); err == nil {
		t.Fatal("started")
	}
	if s := l.status(); s != specs.StateStopped {
		t.Error(s)
	}
	l.must(l.Delete(context.Background(), "c", false))
}

// What the spec said when the container was created counts, not what the file says later.
func TestRunAndErrors(t *testing.T) {
	l := newLab(t, nil, "sh", "-c", "echo out; exit 42")
	if code, err := l.Run(context.Background(), "c", l.bundle, l.launch(), false, false); code != 42 || err != nil || l.said() != "out" {
		t.Errorf("%d %v %q", code, err, l.said())
	}
	l = newLab(t, nil, "nowhere")
	code, err := l.Run(context.Background(), "c", l.bundle, l.launch(), false, false)
	if code == 0 || err == nil || !strings.Contains(err.Error(), `"nowhere": executable file not found in $PATH`) {
		t.Errorf("%d %v", code, err)
	}
	if all, _ := l.List(); len(all) != 0 {
		t.Errorf("a failed run left %v", all)
	}
}

func TestHooks(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	note := func(name string) []specs.Hook {
		script := fmt.Sprintf("s=$(cat); echo %s $(hostname) $(echo $s | sed 's/.*\"status\":\"\\([a-z]*\\)\".*/\\1/') $0 >> %s", name, log)
		return []specs.Hook{{Path: "/bin/sh", Args: []string{"arg0", "-c", script, "args"}, Env: []string{"PATH=/bin:/usr/bin"}}}
	}
	change := func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/log", Type: "bind", Source: filepath.Dir(log), Options: []string{"bind"}})
		//lint:ignore SA1019 still asked for
		s.Hooks = &specs.Hooks{Prestart: note("prestart"), CreateRuntime: note("createRuntime"), CreateContainer: note("createContainer"),
			Poststart: note("poststart"), Poststop: note("poststop"),
			StartContainer: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo startContainer $(hostname) created args >> /log/log"}}}}
	}
	l := newLab(t, change, "sh", "-c", "echo program >> /log/log")
	if code, err := l.Run(context.Background(), "c", l.bundle, l.launch(), false, false); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	host, _ := os.Hostname()
	b, _ := os.ReadFile(log)
	got := strings.Split(strings.TrimSpace(string(b)), "\n")
	want := []string{"prestart " + host + " created args", "createRuntime " + host + " creating args", "createContainer keg creating args",
		"startContainer keg created args", "program", "poststart " + host + " running args", "poststop " + host + " stopped args"}
	seen := strings.Join(got, "\n")
	// The program and the poststart hook run side by side.
	if swapped := strings.Join(append(append(append([]string{}, want[:4]...), want[5], want[4]), want[6]), "\n"); seen != strings.Join(want, "\n") && seen != swapped {
		t.Errorf("%s", seen)
	}
}

func TestFailingHooks(t *testing.T) {
	bad := []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo why >&2; exit 3"}}}
	for name, set := range map[string]func(*specs.Hooks){
		//lint:ignore SA1019 still asked for
		"prestart": func(h *specs.Hooks) { h.Prestart = bad }, "createRuntime": func(h *specs.Hooks) { h.CreateRuntime = bad },
		"createContainer": func(h *specs.Hooks) { h.CreateContainer = bad }, "startContainer": func(h *specs.Hooks) { h.StartContainer = bad },
		"poststart": func(h *specs.Hooks) { h.Poststart = bad },
	} {
		l := newLab(t, func(s *specs.Spec) { s.Hooks = &specs.Hooks{}; set(s.Hooks) }, "sleep", "1000")
		_, err := l.Run(context.Background(), "c", l.bundle, l.launch(), false, false)
		if err == nil || !strings.Contains(err.Error(), name+" hook #0") || !strings.Contains(err.Error(), "exit status 3") {
			t.Errorf("%s: %v", name, err)
		}
		if all, _ := l.List(); len(all) != 0 {
			t.Errorf("%s: left %v", name, all)
		}
	}
	one := 1
	l := newLab(t, func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/sleep", Args: []string{"sleep", "1000"}, Timeout: &one}}}
	}, "true")
	if _, err := l.Run(context.Background(), "c", l.bundle, l.launch(), false, false); err == nil || !strings.Contains(err.Error(), "did not end in time") {
		t.Error(err)
	}
}

func TestIDMappedMountAndClocks(t *testing.T) {
	src := t.TempDir()
	os.WriteFile(filepath.Join(src, "f"), nil, 0o644)
	os.Chown(filepath.Join(src, "f"), 5, 7)
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	l := newLab(t, func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/plain", Type: "bind", Source: src, Options: []string{"bind"}},
			specs.Mount{Destination: "/shifted", Type: "bind", Source: src, Options: []string{"bind"}, UIDMappings: ids, GIDMappings: ids})
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1000000000}}
		s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}
		s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 5}
	}, "sh", "-c", "stat -c %u:%g /plain/f /shifted/f; cat /proc/uptime /proc/self/sched /proc/self/stat")
	code, err := l.Run(context.Background(), "c", l.bundle, l.launch(), false, false)
	f := strings.Fields(l.said())
	if err != nil && strings.Contains(err.Error(), "cannot be mounted with shifted ids") {
		t.Skip(err)
	}
	if code != 0 || err != nil || len(f) < 3 || f[0] != "5:7" || f[1] != "100005:100007" || len(f[2]) < len("1000000000.00") {
		t.Errorf("%d %v %s", code, err, l.said())
	}
	last := strings.Split(l.said(), "\n")
	if s := strings.Fields(last[len(last)-1]); len(s) < 41 || s[18] != "5" || s[40] != "3" { // nice and policy (proc(5))
		t.Errorf("%v", s)
	}
}

// runtime-spec: what cannot be meant is refused, at once and with nothing left behind.
func TestBadBundles(t *testing.T) {
	long := strings.Repeat("x", 64<<10)
	many := make([]specs.LinuxIDMapping, 5000)
	for i := range many {
		many[i] = specs.LinuxIDMapping{ContainerID: uint32(i), HostID: uint32(100000 + i), Size: 1}
	}
	user := func(s *specs.Spec) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	}
	for name, change := range map[string]func(*specs.Spec){
		"version":   func(s *specs.Spec) { s.Version = "invalid" },
		"future":    func(s *specs.Spec) { s.Version = "2.0.0" },
		"linux":     func(s *specs.Spec) { s.Linux = nil },
		"root":      func(s *specs.Spec) { s.Root = nil },
		"process":   func(s *specs.Spec) { s.Process = nil },
		"args":      func(s *specs.Spec) { s.Process.Args = nil },
		"nul":       func(s *specs.Spec) { s.Process.Args = []string{"a\x00b"} },
		"cwd":       func(s *specs.Spec) { s.Process.Cwd = "tmp" },
		"id":        func(s *specs.Spec) { s.Process.User.UID = 1<<32 - 1 },
		"score":     func(s *specs.Spec) { n := 1001; s.Process.OOMScoreAdj = &n },
		"hostname":  func(s *specs.Spec) { s.Hostname = long },
		"namespace": func(s *specs.Spec) { s.Linux.Namespaces[0].Type = specs.LinuxNamespaceType(long) },
		"twice":     func(s *specs.Spec) { s.Linux.Namespaces = append(s.Linux.Namespaces, s.Linux.Namespaces[0]) },
		"path":      func(s *specs.Spec) { s.Linux.Namespaces[1].Path = "/proc/self/ns/uts" },
		"mappings":  func(s *specs.Spec) { user(s); s.Linux.UIDMappings, s.Linux.GIDMappings = many, many },
		"overflow": func(s *specs.Spec) {
			user(s)
			m := []specs.LinuxIDMapping{{HostID: 1<<32 - 1, Size: 1<<32 - 1}}
			s.Linux.UIDMappings, s.Linux.GIDMappings = m, m
		},
		"stray":       func(s *specs.Spec) { s.Linux.UIDMappings = many[:1] },
		"rlimit":      func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} },
		"propagation": func(s *specs.Spec) { s.Linux.RootfsPropagation = "sideways" },
		"hook":        func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "sh"}}} },
		"seccomp":     func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: "SCMP_ACT_MAYBE"} },
		"proc": func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/proc/self/attr", Type: "tmpfs", Source: "tmpfs"})
		},
		"sysctl": func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel.core_pattern": "|/x"} },
	} {
		l := newLab(t, change, "true")
		// The fastest of a few: the machine may be busy.
		fastest := time.Hour
		for range 5 {
			start := time.Now()
			code, err := l.Run(context.Background(), "c", l.bundle, l.launch(), false, false)
			if err == nil || code == 0 || len(err.Error()) > 80<<10 {
				t.Errorf("%s: accepted (%d)", name, code)
				break
			}
			if name == "mappings" && !strings.Contains(err.Error(), "5000 uid and 5000 gid mappings: the kernel takes at most 340") {
				t.Errorf("%s: the reason is not named: %v", name, err)
			}
			if fastest = min(fastest, time.Since(start)); fastest < time.Second {
				break
			}
		}
		if fastest > time.Second {
			t.Errorf("%s: refused only after %v", name, fastest)
		}
		if all, _ := os.ReadDir(l.Root); len(all) != 0 {
			t.Errorf("%s: left %v", name, all)
		}
	}
	l := newLab(t, nil, "true")
	for name, body := range map[string]string{"nulls": `{"ociVersion":"1.0.0","process":null,"root":null,"linux":{"namespaces":null,"resources":null}}`, "text": "hello", "empty": "",
		"deep": strings.Repeat("[", 100000), "number": `{"ociVersion":"1.0.0","process":{"user":{"uid":99999999999}}}`} {
		os.WriteFile(filepath.Join(l.bundle, "config.json"), []byte(body), 0o644)
		if _, err := l.Run(context.Background(), "c", l.bundle, l.launch(), false, false); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	os.Remove(filepath.Join(l.bundle, "config.json"))
	unix.Mkfifo(filepath.Join(l.bundle, "config.json"), 0o644)
	if _, err := l.Run(context.Background(), "c", l.bundle, l.launch(), false, false); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	for _, id := range []string{"", "..", "a/b", long, "a\nb"} {
		if _, err := l.State(id); !fault.Is(err, fault.Invalid) {
			t.Errorf("id %.20q: %v", id, err)
		}
	}
}

// The rules of a spec may refuse every device: those that every container has stay usable.
func TestDefaultDevicesWork(t *testing.T) {
	l := newLab(t, func(s *specs.Spec) {
		s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}
	}, "sh", "-c", "echo x > /dev/null && echo fine; cat /dev/fuse 2>&1")
	l.Run(context.Background(), "c", l.bundle, l.launch(), false, false)
	if out := l.said(); !strings.HasPrefix(out, "fine\n") || !strings.Contains(out, "not permitted") {
		t.Errorf("%q", out)
	}
}

func TestTerminalNeedsASocket(t *testing.T) {
	l := newLab(t, func(s *specs.Spec) { s.Process.Terminal = true }, "true")
	if err := l.Create(context.Background(), "c", l.bundle, l.launch()); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}

func TestCgroupPaths(t *testing.T) {
	for _, c := range []struct {
		systemd    bool
		path, want string
	}{{false, "", "keg-oci/c"}, {false, "/docker/x", "docker/x"}, {false, "a/../../b", "b"}, {true, "", "system.slice/keg-c.scope"},
		{true, "a-b.slice:docker:x", "a.slice/a-b.slice/docker-x.scope"}, {true, ":x:y", "system.slice/x-y.scope"}, {true, "/docker/x", "error"}, {true, "a--b.slice:x:y", "error"}} {
		s := Template()
		s.Linux.CgroupsPath = c.path
		got, err := (&Runtime{Systemd: c.systemd}).cgroupPath(s, "c")
		if err != nil {
			got = "error"
		}
		if got != c.want {
			t.Errorf("%q: %q, not %q", c.path, got, c.want)
		}
	}
}
