package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

func TestDefaultConfinement(t *testing.T) {
	out := must(t, busyRoot(t), confinement)
	for _, want := range []string{"CapInh:\t0000000000000000", "CapPrm:\t00000000a80425fb", "CapEff:\t00000000a80425fb",
		"CapBnd:\t00000000a80425fb", "CapAmb:\t0000000000000000", "Seccomp:\t2", "NoNewPrivs:\t0", "Umask:\t0022", "Groups:\t \n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	// ls itself holds 3; nothing else of ours may be open.
	if !strings.HasSuffix(out, "\n0\n1\n2\n3") {
		t.Errorf("leaked descriptors:\n%s", out)
	}
}

func TestUserAndGroups(t *testing.T) {
	out := must(t, busyRoot(t), "id; grep -E '^Cap' /proc/self/status; echo hi > /proc/self/fd/1", func(s *specs.Spec) {
		s.Process.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{1000, 44}}
	})
	if !strings.Contains(out, "uid=1000(ann) gid=1000(ann) groups=44(video),1000(ann)") || !strings.Contains(out, "CapEff:\t0000000000000000") ||
		!strings.Contains(out, "CapPrm:\t0000000000000000") || !strings.HasSuffix(out, "hi") {
		t.Error(out)
	}
}

func TestMountsSeenInside(t *testing.T) {
	root := busyRoot(t)
	src := t.TempDir()
	os.WriteFile(filepath.Join(src, "f"), []byte("content"), 0o644)
	os.Mkdir(filepath.Join(src, "sub"), 0o755)
	// A symlink whose end is missing is followed inside the root, like resolv.conf of many images.
	os.Symlink("../run/resolve/stub.conf", filepath.Join(root, "etc/resolv.conf"))
	os.Symlink("/run", filepath.Join(root, "var-run"))
	out := must(t, root, "cat /proc/self/mountinfo; cat /etc/resolv.conf /data/made/deep; echo; cat /run/sock; touch /ro/x 2>&1; ls -ld /dev/shm /data/sub", func(s *specs.Spec) {
		s.Mounts = append(s.Mounts,
			specs.Mount{Destination: "/data", Type: "bind", Source: src, Options: []string{"rbind", "rprivate"}},
			specs.Mount{Destination: "/ro", Type: "bind", Source: src, Options: []string{"bind", "ro", "nosuid"}},
			specs.Mount{Destination: "/data/made/deep", Type: "bind", Source: filepath.Join(src, "f"), Options: []string{"bind"}},
			specs.Mount{Destination: "/run", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=755", "size=1m"}},
			specs.Mount{Destination: "/etc/resolv.conf", Type: "bind", Source: filepath.Join(src, "f"), Options: []string{"bind"}},
			specs.Mount{Destination: "/var-run/sock", Type: "bind", Source: filepath.Join(src, "f"), Options: []string{"bind"}})
	})
	for _, want := range []string{" /proc rw,nosuid,nodev,noexec", " /dev rw,nosuid", "- tmpfs tmpfs rw,size=65536k,mode=755", " /dev/pts rw,nosuid,noexec",
		"gid=5,mode=620,ptmxmode=666", " /dev/shm rw,nosuid,nodev,noexec", " /dev/mqueue rw", " /sys ro,nosuid,nodev,noexec", " /sys/fs/cgroup",
		" /proc/sys ro", " /proc/bus ro", " /proc/keys rw", " /sys/firmware ro", " /ro ro,nosuid", "contentcontent", "\ncontent", "Read-only file system", "drwxrwxrwt"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if _, err := os.Lstat(filepath.Join(root, "etc/run")); err == nil {
		t.Error("the link's target was made in the wrong place")
	}
	for _, line := range strings.Split(out, "\n") {
		if f := strings.Fields(line); len(f) > 6 && strings.Contains(line, " - ") && f[6] != "-" {
			t.Errorf("a mount is shared with somebody: %s", line)
		}
	}
}

func TestMasksAndReadOnlyPathsHold(t *testing.T) {
	out := must(t, busyRoot(t), `cat /proc/sched_debug 2>/dev/null | wc -c; cat /proc/keys /proc/timer_list /proc/interrupts | wc -c; ls /sys/firmware /proc/acpi 2>/dev/null | grep -v : | wc -w
		echo 1 > /proc/sys/kernel/panic 2>/dev/null && echo BAD; echo h > /proc/sysrq-trigger 2>/dev/null && echo BAD; touch /sys/firmware/x 2>/dev/null && echo BAD; echo end`)
	if strings.Join(strings.Fields(out), " ") != "0 0 0 end" {
		t.Errorf("%q", out)
	}
}

// An image that brings its own /dev/null must not choose what masks a path (CVE-2025-31133).
func TestMaskIsTheEnginesNull(t *testing.T) {
	root := busyRoot(t)
	canary := filepath.Join(t.TempDir(), "canary")
	os.WriteFile(canary, []byte("canary"), 0o600)
	os.Remove(filepath.Join(root, "dev/null"))
	os.Symlink(canary, filepath.Join(root, "dev/null"))
	out := must(t, root, "stat -c %t:%T /proc/keys /dev/null; cat /proc/keys")
	if out != "1:3\n1:3" {
		t.Errorf("%q", out)
	}
}

func TestReadonlyRoot(t *testing.T) {
	out := must(t, busyRoot(t), "touch /x 2>&1; touch /dev/shm/y && echo fine", func(s *specs.Spec) { s.Root.Readonly = true })
	if !strings.Contains(out, "Read-only") || !strings.Contains(out, "fine") {
		t.Error(out)
	}
}

func TestDevices(t *testing.T) {
	out := must(t, busyRoot(t), `stat -c '%n %F %t:%T %a' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/fuse; for l in fd stdin ptmx; do readlink /dev/$l; done
		head -c 3 /dev/zero | wc -c; mknod /tmp/b b 254 0 && echo made; cat /tmp/b 2>&1; cat /dev/fuse 2>&1 | head -1`, func(s *specs.Spec) {
		mode := os.FileMode(0o600)
		uid := uint32(1000)
		s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, FileMode: &mode, UID: &uid}, {Path: "/dev/null", Type: "c", Major: 1, Minor: 3}}
	})
	for _, want := range []string{"/dev/null character special file 1:3 666", "/dev/tty character special file 5:0 666", "/dev/fuse character special file a:e5 600",
		"/proc/self/fd\n/proc/self/fd/0\npts/ptmx", "\n3\n", "made", "Operation not permitted"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestTerminal(t *testing.T) {
	root := busyRoot(t)
	// What an image puts in the terminal's way (CVE-2025-52565).
	os.MkdirAll(filepath.Join(root, "dev/pts"), 0o755)
	os.Symlink("/proc/sys/kernel/core_pattern", filepath.Join(root, "dev/pts/0"))
	os.Symlink("/etc/passwd", filepath.Join(root, "dev/console"))
	os.Symlink("/etc/passwd", filepath.Join(root, "dev/ptmx"))
	s := dockerSpec("sh", "-c", "tty; stat -c '%t:%T' /dev/console; stty size; echo ok > /dev/console; echo me > /dev/tty; exit 5")
	s.Process.Terminal = true
	s.Process.ConsoleSize = &specs.Box{Height: 24, Width: 80}
	o := options(t, root)
	p, err := Start(context.Background(), s, o)
	if err != nil {
		t.Fatal(err)
	}
	out := readTerminal(t, p)
	for _, want := range []string{"/dev/pts/0", "88:0", "24 80", "ok", "me"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q", want, out)
		}
	}
	code, err := p.Wait()
	if code != 5 || err != nil {
		t.Error(code, err)
	}
	p.Cgroup.Remove(context.Background())
}

func TestWorkingDirectory(t *testing.T) {
	root := busyRoot(t)
	os.Symlink("/tmp", filepath.Join(root, "link"))
	for cwd, want := range map[string]string{"/": "/", "/tmp": "/tmp", "/made/by/us": "/made/by/us", "/link/x": "/tmp/x", "/../../tmp": "/tmp"} {
		if out := must(t, root, "readlink /proc/self/cwd", func(s *specs.Spec) { s.Process.Cwd = cwd }); out != want {
			t.Errorf("%s: %q", cwd, out)
		}
	}
}

// CVE-2024-21626: a descriptor of the host as working directory.
func TestWorkingDirectoryStaysInside(t *testing.T) {
	root := busyRoot(t)
	for i := 0; i < 40; i++ { // more chances: directories of the host, inheritable
		fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
	}
	os.Symlink("/proc/self/fd/7", filepath.Join(root, "seven"))
	cwds := []string{"/seven", "/seven/tmp", "/proc/1/cwd", "/proc/1/root", "/proc/self/root/tmp"}
	for i := 0; i <= 64; i += 4 {
		cwds = append(cwds, fmt.Sprintf("/proc/self/fd/%d", i), fmt.Sprintf("/proc/self/fd/%d/etc", i))
	}
	for _, cwd := range cwds {
		s := dockerSpec("sh", "-c", "readlink /proc/self/cwd")
		s.Process.Cwd = cwd
		if r, err := run(t, s, options(t, root)); err == nil {
			t.Errorf("%s: started: %s%s", cwd, r.out, r.err)
		}
	}
}

func TestSysctls(t *testing.T) {
	root := busyRoot(t)
	if out := must(t, root, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax", func(s *specs.Spec) {
		s.Linux.Sysctl["kernel.msgmax"] = "4444"
	}); out != "0\n4444" {
		t.Errorf("%q", out)
	}
	for k, v := range map[string]string{"kernel.core_pattern": "|/x", "a": "1+kernel.core_pattern=x", "net/../kernel/core_pattern": "x", "kernel.panic": "1"} {
		s := dockerSpec("true")
		s.Linux.Sysctl = map[string]string{k: v}
		if _, err := run(t, s, options(t, root)); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", k, err)
		}
	}
	s := dockerSpec("true")
	s.Linux.Namespaces = without(s.Linux.Namespaces, specs.NetworkNamespace)
	if _, err := run(t, s, options(t, root)); err == nil || !strings.Contains(err.Error(), "not allowed in host network namespace") {
		t.Error(err)
	}
}

func without(list []specs.LinuxNamespace, typ specs.LinuxNamespaceType) (out []specs.LinuxNamespace) {
	for _, n := range list {
		if n.Type != typ {
			out = append(out, n)
		}
	}
	return out
}

func TestNotFoundAndNotExecutable(t *testing.T) {
	root := busyRoot(t)
	os.WriteFile(filepath.Join(root, "bin/script"), []byte("#!/no/interpreter\n"), 0o755)
	os.WriteFile(filepath.Join(root, "bin/junk"), []byte("junk"), 0o755)
	for _, c := range []struct {
		arg  string
		code int
		msg  string
	}{
		{"nosuch", 127, `exec: "nosuch": executable file not found in $PATH`},
		{"/nosuch", 127, `exec: "/nosuch": stat /nosuch: no such file or directory`},
		{"/etc/passwd", 126, `exec: "/etc/passwd": permission denied`},
		{"/etc", 126, `exec: "/etc": permission denied`},
		{"/bin/junk", 126, `exec /bin/junk: exec format error`},
		{"/bin/script", 127, `exec /bin/script: no such file or directory`},
	} {
		_, err := run(t, dockerSpec(c.arg), options(t, root))
		var e *ExecError
		if !errors.As(err, &e) || e.Code != c.code || !strings.HasPrefix(e.Error(), c.msg) {
			t.Errorf("%s: %v", c.arg, err)
		}
	}
}

// Limits that cannot be raised are a warning; others hold.
func TestLimits(t *testing.T) {
	s := dockerSpec("sh", "-c", "ulimit -n; ulimit -Hn; ulimit -c")
	s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 123, Hard: 1 << 40}, {Type: "RLIMIT_CORE", Soft: 0, Hard: 0}}
	r, err := run(t, s, options(t, busyRoot(t)))
	if err != nil || !strings.HasPrefix(r.out, "123\n") {
		t.Fatal(r, err)
	}
	if !ownCaps().has(unix.CAP_SYS_RESOURCE) && !strings.Contains(strings.Join(r.proc.Warnings, "\n"), "RLIMIT_NOFILE: cannot raise") {
		t.Error(r.proc.Warnings)
	}
}

func TestNoNewPrivilegesAndPrivileged(t *testing.T) {
	root := busyRoot(t)
	if out := must(t, root, "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status", func(s *specs.Spec) { s.Process.NoNewPrivileges = true }); !strings.Contains(out, "NoNewPrivs:\t1") || !strings.Contains(out, "Seccomp:\t2") {
		t.Error(out)
	}
	s := dockerSpec("sh", "-c", "grep -E 'CapEff|Seccomp:' /proc/self/status; mount -t tmpfs x /tmp && echo mounted; echo 5 > /proc/sys/net/ipv4/ip_default_ttl && echo set")
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths, s.Linux.Seccomp = nil, nil, nil
	all := capNames(1<<41 - 1)
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
	o := options(t, root)
	o.DefaultSeccomp = false
	r, err := run(t, s, o)
	if err != nil || !strings.Contains(r.out, "Seccomp:\t0") || !strings.Contains(r.out, "mounted") || !strings.Contains(r.out, "set") {
		t.Error(r, err)
	}
	if want := fmt.Sprintf("CapEff:\t%016x", uint64(ownCaps())); !strings.Contains(r.out, want) {
		t.Errorf("want %s in %s", want, r.out)
	}
}

func TestRecordedBeforeExecveAndHold(t *testing.T) {
	root := busyRoot(t)
	s := dockerSpec("sh", "-c", "cat /mark")
	o := options(t, root)
	o.Recorded = func(pid int, start uint64) error {
		exe, err := os.Readlink(procFile(pid, "exe"))
		if self, _ := os.Readlink("/proc/self/exe"); err != nil || exe != self || start == 0 {
			t.Errorf("the program runs before it is recorded: %s %v", exe, err)
		}
		return os.WriteFile(filepath.Join(root, "mark"), []byte("recorded"), 0o644)
	}
	if r, err := run(t, s, o); err != nil || r.out != "recorded" {
		t.Error(r, err)
	}
	o.Root = rootFD(t, root)
	o.Recorded = func(int, uint64) error { return errors.New("disk is full") }
	if _, err := run(t, s, o); err == nil || !strings.Contains(err.Error(), "disk is full") {
		t.Error(err)
	}
	o.Recorded, o.Hold, o.Root = nil, true, rootFD(t, root)
	or, ow, _ := os.Pipe()
	er, ew, _ := os.Pipe()
	o.Stdio = [3]*os.File{nil, ow, ew}
	p, err := Start(context.Background(), s, o)
	ow.Close()
	ew.Close()
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(root, "mark"), []byte("released"), 0o644)
	if err := p.Release(); err != nil {
		t.Fatal(err)
	}
	if r := collect(t, p, or, er); r.out != "released" {
		t.Error(r)
	}
	if err := p.Release(); !fault.Is(err, fault.Conflict) {
		t.Error(err)
	}
}

func TestFilesPrivateAndHostname(t *testing.T) {
	s := dockerSpec("sh", "-c", "hostname; cat <&3; ls /proc/self/fd")
	o := options(t, busyRoot(t))
	r, w, _ := os.Pipe()
	w.WriteString("three")
	w.Close()
	defer r.Close()
	lock, _ := os.Create(filepath.Join(t.TempDir(), "lock"))
	defer lock.Close()
	o.Files, o.Private = []*os.File{r}, []*os.File{lock}
	if r, err := run(t, s, o); err != nil || r.out != "box\nthree0\n1\n2\n3\n4\n" {
		t.Errorf("%q %v", r.out, err)
	}
}

func TestUserNamespace(t *testing.T) {
	root := busyRoot(t)
	s := dockerSpec("sh", "-c", "id -u; cat /proc/self/uid_map; touch /tmp/x && stat -c %u /dev/null /dev/shm /tmp/x; grep CapBnd /proc/self/status")
	userNS(s)
	os.Chmod(filepath.Join(root, "tmp"), 0o777)
	r, err := run(t, s, options(t, root))
	if err != nil || r.code != 0 || !strings.HasPrefix(r.out, "0\n") || !strings.Contains(r.out, "100000      65536\n0\n0\n0\n") || !strings.Contains(r.out, "a80425fb") {
		t.Errorf("%v %v", r, err)
	}
	var st unix.Stat_t
	if unix.Stat(filepath.Join(root, "tmp/x"), &st) != nil || st.Uid != 100000 {
		t.Error(st.Uid)
	}
}

// The child dies with the thread that made it, so with the monitor; here: when asked to.
func TestContextAndNoZombies(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Start(ctx, dockerSpec("true"), Options{Root: -1, NetNS: -1}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	root := busyRoot(t)
	s := dockerSpec("true")
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/bin/busybox", Type: "bind", Source: t.TempDir(), Options: []string{"bind"}})
	if _, err := run(t, s, options(t, root)); err == nil || !strings.Contains(err.Error(), "Are you trying to mount a directory onto a file") {
		t.Error(err)
	}
	if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
		t.Errorf("a child is left: %d %v", pid, err)
	}
}

func TestMountsOverProcAndSysAreRefused(t *testing.T) {
	root := busyRoot(t)
	os.Symlink("/proc", filepath.Join(root, "p"))
	for _, dst := range []string{"/proc", "/proc/self/attr", "/proc/sys", "/p/sys/net", "/sys", "/sys/fs", "/proc/../proc/bus"} {
		s := dockerSpec("true")
		s.Mounts = append(s.Mounts, specs.Mount{Destination: dst, Type: "bind", Source: t.TempDir(), Options: []string{"bind"}})
		if _, err := run(t, s, options(t, root)); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", dst, err)
		}
		s.Mounts[len(s.Mounts)-1] = specs.Mount{Destination: dst, Type: "tmpfs", Source: "tmpfs"}
		if _, err := run(t, s, options(t, root)); dst != "/sys" && !fault.Is(err, fault.Invalid) {
			t.Errorf("tmpfs on %s: %v", dst, err)
		}
	}
}

// Whoever was killed before execve is not taken for a success that never was.
func TestJoinNamespaces(t *testing.T) {
	root := busyRoot(t)
	p, _, _ := sleeper(t, root)
	o := options(t, root)
	o.Cgroup += "-2"
	s := dockerSpec("sh", "-c", "for n in net ipc uts pid; do readlink /proc/self/ns/$n; done; hostname")
	s.Hostname = ""
	s.Linux.Sysctl = nil
	for i := range s.Linux.Namespaces {
		switch n := &s.Linux.Namespaces[i]; n.Type {
		case specs.NetworkNamespace:
			n.Path = procFile(p.Pid, "ns/net")
		case specs.IPCNamespace:
			n.Path = procFile(p.Pid, "ns/ipc")
		case specs.UTSNamespace:
			n.Path = procFile(p.Pid, "ns/uts")
		case specs.PIDNamespace:
			n.Path = procFile(p.Pid, "ns/pid")
		}
	}
	r, err := run(t, s, o)
	if err != nil {
		t.Fatal(err)
	}
	var want string
	for _, n := range []string{"net", "ipc", "uts", "pid"} {
		l, _ := os.Readlink(procFile(p.Pid, "ns/"+n))
		want += l + "\n"
	}
	if r.out != want+"box\n" {
		t.Errorf("%q, want %q %s", r.out, want, r.err)
	}
	own, _ := os.Readlink("/proc/self/ns/pid_for_children")
	if is, _ := os.Readlink("/proc/self/ns/pid"); own != is {
		t.Error("the engine was left in the container's pid namespace")
	}
}

func TestNetNSDescriptor(t *testing.T) {
	root := busyRoot(t)
	other, _, _ := sleeper(t, root)
	f, err := os.Open(procFile(other.Pid, "ns/net"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	o := options(t, root)
	o.Cgroup += "-2"
	o.NetNS = int(f.Fd())
	r, err := run(t, dockerSpec("readlink", "/proc/self/ns/net"), o)
	if want, _ := os.Readlink(procFile(other.Pid, "ns/net")); err != nil || strings.TrimSpace(r.out) != want {
		t.Error(r, err, want)
	}
}

func TestTimeNamespace(t *testing.T) {
	must(t, busyRoot(t), "test $(readlink /proc/self/ns/time) != "+link(t, "/proc/self/ns/time"), func(s *specs.Spec) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
	})
}

func link(t testing.TB, p string) string {
	l, err := os.Readlink(p)
	if err != nil {
		t.Skip(err)
	}
	return l
}

func TestMonitorGoneContainerGone(t *testing.T) {
	needRoot(t)
	root := busyRoot(t)
	r, w, _ := os.Pipe()
	defer r.Close()
	pid := startInOtherProcess(t, root, w)
	w.Close()
	// Its own monitor was killed; the container holds the pipe until it is gone, too.
	r.SetReadDeadline(time.Now().Add(10 * time.Second))
	var b [1]byte
	if n, err := r.Read(b[:]); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("container %d lives on: %v", pid, err)
	}
}

// A child that fails at any moment around the go-ahead must never be taken for started.
func TestEarlyFailureIsAlwaysSeen(t *testing.T) {
	p, s, o := sleeper(t, busyRoot(t))
	for i := 0; i < 200; i++ {
		if _, err := execIn(t, p, s, o, func(x *specs.Process) { x.Cwd = "/none" }, "true"); err == nil || !strings.Contains(err.Error(), "no such file") {
			t.Fatalf("round %d: %v", i, err)
		}
	}
}

func TestKernelSurfaceIsClosed(t *testing.T) {
	out := must(t, busyRoot(t), `unshare -m true 2>&1; mount -t tmpfs x /tmp 2>&1; touch /sys/fs/cgroup/x 2>&1
		for f in /sys/fs/cgroup/*/notify_on_release /sys/fs/cgroup/*/tasks /sys/fs/cgroup/cgroup.procs; do [ -e $f ] && { echo 1 > $f; } 2>&1; done
		dd if=/dev/zero of=/dev/shm/fill bs=1M count=70 2>&1 | grep -i space; cat /proc/self/cgroup; true`)
	for _, want := range []string{"unshare: unshare(0x", "mount: permission denied", "No space left on device"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if !strings.Contains(out, "Read-only file system") || strings.Contains(out, "keg-test-sandbox") {
		t.Errorf("the cgroups are writable, or seen from outside:\n%s", out)
	}
}

// Who joins a container must not be traced from inside while it still has the engine's memory
// and descriptors (CVE-2016-9962): its /proc entry belongs to root although it runs as 1000.
func TestJoinerIsNotDumpable(t *testing.T) {
	p, s, o := sleeper(t, busyRoot(t))
	checked := false
	o.Recorded = func(pid int, _ uint64) error {
		for range 1000 {
			var st unix.Stat_t
			b, err := os.ReadFile(procFile(pid, "status"))
			if err != nil || unix.Stat(procFile(pid, "fd"), &st) != nil {
				return errors.New("the joiner is gone")
			}
			if st.Uid != 0 {
				return fmt.Errorf("its descriptors belong to %d", st.Uid)
			}
			if strings.Contains(string(b), "Uid:\t1000") {
				checked = true
				return nil
			}
			time.Sleep(time.Millisecond)
		}
		return errors.New("it never became user 1000")
	}
	r, err := execIn(t, p, s, o, func(x *specs.Process) { x.User = specs.User{UID: 1000, GID: 1000} }, "id", "-u")
	if err != nil || strings.TrimSpace(r.out) != "1000" || !checked {
		t.Error(r, err, checked)
	}
}

// Many at once, while one is held: no child may keep another's socket open, or its start would
// not be seen to end.
func TestManyAtOnceWhileOneIsHeld(t *testing.T) {
	root := busyRoot(t)
	null, _ := os.OpenFile("/dev/null", os.O_RDWR, 0)
	defer null.Close()
	one := func(i int, hold bool) (*Process, error) {
		return Start(context.Background(), dockerSpec("true"), Options{Root: -1, NetNS: -1, Stdio: [3]*os.File{null, null, null},
			Cgroup: fmt.Sprintf("%s-%d", cgroupName(t), i), DefaultSeccomp: true, Hold: hold})
	}
	if _, err := one(0, false); !fault.Is(err, fault.Invalid) {
		t.Fatal("a spec without a root starts:", err)
	}
	withRoot := func(i int, hold bool) (*Process, error) {
		s := dockerSpec("true")
		s.Root.Path = root
		return Start(context.Background(), s, Options{Root: -1, NetNS: -1, Stdio: [3]*os.File{null, null, null},
			Cgroup: fmt.Sprintf("%s-%d", cgroupName(t), i), DefaultSeccomp: true, Hold: hold})
	}
	r, w, _ := os.Pipe()
	defer r.Close()
	held, err := withRoot(99, true)
	if err != nil {
		t.Fatal(err)
	}
	// What was open when it was cloned is not kept open by the one that is held.
	w.Close()
	r.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	errs := make(chan error)
	for i := range 16 {
		go func() {
			p, err := withRoot(i, false)
			if err == nil {
				var code int
				if code, err = p.Wait(); err == nil && code != 0 {
					err = fmt.Errorf("exit %d", code)
				}
				err = errors.Join(err, p.Cgroup.Remove(context.Background()))
			}
			errs <- err
		}()
	}
	for range 16 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if err := held.Release(); err != nil {
		t.Error(err)
	}
	if code, err := held.Wait(); code != 0 || err != nil {
		t.Error(code, err)
	}
	if err := held.Cgroup.Remove(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestPersonalityAndWhatIsNotSupported(t *testing.T) {
	root := busyRoot(t)
	if out := must(t, root, "uname -m", func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32} }); out == "x86_64" || out == "aarch64" {
		t.Error(out)
	}
	for name, ask := range map[string]func(*specs.Spec){
		"hooks": func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/x"}}} },
		"idmap": func(s *specs.Spec) {
			s.Mounts[0].UIDMappings = []specs.LinuxIDMapping{{Size: 1}}
		},
		"listener": func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActNotify} },
	} {
		s := dockerSpec("true")
		ask(s)
		if _, err := run(t, s, options(t, root)); !fault.Is(err, fault.Unsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
