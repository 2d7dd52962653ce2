package sandbox

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/sandbox/cgroup"
	"keg/test/private"
)

// The tests run in mount and network namespaces of their own; the test binary is also a
// monitor in a process of its own (probe_test.go).
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "probe" {
		os.Exit(probe(os.Args[2:]))
	}
	private.Enter()
	before, _ := os.ReadFile("/proc/self/mountinfo")
	code := m.Run()
	if left := leftovers(string(before)); len(left) > 0 {
		fmt.Println("FAIL: the tests left behind", left)
		code = 1
	}
	os.Exit(code)
}

// leftovers lists cgroups, mounts and children that should be gone.
func leftovers(mounts string) (left []string) {
	if g, err := cgroup.Open("keg-test-sandbox"); err == nil && os.Geteuid() == 0 {
		for _, h := range g.Hierarchies() {
			if err := unix.Rmdir(h.Dir); err != nil && err != unix.ENOENT {
				inner, _ := filepath.Glob(h.Dir + "/*-*")
				left = append(left, inner...)
			}
		}
	}
	if after, _ := os.ReadFile("/proc/self/mountinfo"); string(after) != mounts {
		left = append(left, "mounts")
	}
	if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
		left = append(left, fmt.Sprint("a child ", pid))
	}
	return left
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces, mounts and cgroups")
	}
}

// busyRoot is a root file system: static busybox.
func busyRoot(t testing.TB) string {
	t.Helper()
	needRoot(t)
	box, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs busybox-static: ", err)
	}
	root := t.TempDir()
	os.Chmod(root, 0o755)
	for _, d := range []string{"bin", "etc", "tmp", "proc", "sys", "dev", "root"} {
		os.MkdirAll(filepath.Join(root, d), 0o755)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), box, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"sh", "true", "false", "env", "cat", "sleep", "id", "ls", "echo", "tty", "kill", "mknod", "stat", "hostname", "mount", "dd", "ulimit", "head", "test", "touch", "readlink", "ps", "stty", "grep", "seq", "wc", "sort", "df", "umount", "chmod", "su", "unshare", "uname"} {
		os.Symlink("busybox", filepath.Join(root, "bin", n))
	}
	os.WriteFile(filepath.Join(root, "inside"), nil, 0o644)
	os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n"), 0o644)
	os.WriteFile(filepath.Join(root, "etc/group"), []byte("root:x:0:\nann:x:1000:\nvideo:x:44:ann\n"), 0o644)
	return root
}

// rootFD is the root as the engine gives it: a detached mount.
func rootFD(t testing.TB, dir string) int {
	t.Helper()
	fd, err := cloneTree(unix.AT_FDCWD, dir, true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

var dockerCaps = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}

// dockerSpec is what Docker asks for by default.
func dockerSpec(args ...string) *specs.Spec {
	dev := func(allow bool, typ string, major, minor int64, access string) specs.LinuxDeviceCgroup {
		d := specs.LinuxDeviceCgroup{Allow: allow, Type: typ, Access: access}
		if major >= 0 {
			d.Major = &major
		}
		if minor >= 0 {
			d.Minor = &minor
		}
		return d
	}
	pids, mem, shares := int64(512), int64(256<<20), uint64(512)
	nse := []string{"nosuid", "noexec", "nodev"}
	return &specs.Spec{
		Hostname: "box",
		Root:     &specs.Root{},
		Process: &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin", "A=b"},
			Capabilities: &specs.LinuxCapabilities{Bounding: dockerCaps, Effective: dockerCaps, Permitted: dockerCaps}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: nse},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: append([]string{"ro"}, nse...)},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: append([]string{"ro"}, nse...)},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: nse},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: append([]string{"mode=1777", "size=67108864"}, nse...)},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace},
				{Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.CgroupNamespace}},
			MaskedPaths: []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
				"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			Sysctl:        map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"},
			Resources: &specs.LinuxResources{
				Pids: &specs.LinuxPids{Limit: &pids}, Memory: &specs.LinuxMemory{Limit: &mem}, CPU: &specs.LinuxCPU{Shares: &shares},
				Devices: []specs.LinuxDeviceCgroup{dev(false, "a", -1, -1, "rwm"), dev(true, "c", -1, -1, "m"), dev(true, "b", -1, -1, "m"),
					dev(true, "c", 1, 3, "rwm"), dev(true, "c", 1, 5, "rwm"), dev(true, "c", 1, 7, "rwm"), dev(true, "c", 1, 8, "rwm"),
					dev(true, "c", 1, 9, "rwm"), dev(true, "c", 5, 0, "rwm"), dev(true, "c", 5, 1, "rwm"), dev(true, "c", 5, 2, "rwm"), dev(true, "c", 136, -1, "rwm")}},
		},
	}
}

type result struct {
	code     int
	out, err string
	proc     *Process
}

// run starts spec, collects its output and removes its cgroup.
func run(t testing.TB, spec *specs.Spec, o Options) (r result, err error) {
	t.Helper()
	or, ow, _ := os.Pipe()
	er, ew, _ := os.Pipe()
	defer or.Close()
	defer er.Close()
	o.Stdio = [3]*os.File{nil, ow, ew}
	p, err := Start(context.Background(), spec, o)
	ow.Close()
	ew.Close()
	if err != nil {
		return r, err
	}
	return collect(t, p, or, er), nil
}

func collect(t testing.TB, p *Process, or, er io.Reader) (r result) {
	t.Helper()
	r.proc = p
	done := make(chan []byte)
	go func() { b, _ := io.ReadAll(er); done <- b }()
	out, _ := io.ReadAll(or)
	r.out, r.err = string(out), string(<-done)
	code, err := p.Wait()
	if err != nil {
		t.Fatal(err)
	}
	r.code = code
	if p.Cgroup != nil {
		if err := p.Cgroup.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	}
	return r
}

func options(t testing.TB, root string) Options {
	return Options{Root: rootFD(t, root), NetNS: -1, DefaultSeccomp: true, Cache: t.TempDir(), Cgroup: cgroupName(t)}
}

func cgroupName(t testing.TB) string {
	return fmt.Sprintf("keg-test-sandbox/%d-%s", os.Getpid(), strings.NewReplacer("/", "-", "#", "-").Replace(t.Name()))
}

// must runs a shell line and returns what it printed.
func must(t testing.TB, root, line string, change ...func(*specs.Spec)) string {
	t.Helper()
	s := dockerSpec("sh", "-c", line)
	for _, c := range change {
		c(s)
	}
	r, err := run(t, s, options(t, root))
	if err != nil {
		t.Fatal(err)
	}
	if r.code != 0 {
		t.Fatalf("%s: exit %d: %s%s", line, r.code, r.out, r.err)
	}
	return strings.TrimSpace(r.out)
}

func TestRunTrue(t *testing.T) {
	r, err := run(t, dockerSpec("true"), options(t, busyRoot(t)))
	if err != nil || r.code != 0 {
		t.Fatal(r, err)
	}
	for _, w := range r.proc.Warnings {
		t.Log(w)
	}
}

func TestExitCodes(t *testing.T) {
	root := busyRoot(t)
	for line, want := range map[string]int{"exit 0": 0, "exit 7": 7, "exit 300": 44, "sh -c 'kill -TERM $$'; exit $?": 143, "sh -c 'kill -KILL $$'; exit $?": 137} {
		r, err := run(t, dockerSpec("sh", "-c", line), options(t, root))
		if err != nil {
			t.Fatal(err)
		}
		if r.code != want {
			t.Errorf("%q: exit %d, want %d", line, r.code, want)
		}
	}
}

func removeGroup(t testing.TB, name string) {
	t.Helper()
	g, err := cgroup.Open(name)
	if err == nil {
		err = g.Remove(context.Background())
	}
	if err != nil {
		t.Error(err)
	}
}
