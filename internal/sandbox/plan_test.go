package sandbox

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "rewrite the golden plans")

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".plan")
	if *update {
		os.MkdirAll("testdata", 0o755)
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		w, g := strings.Split(string(want), "\n"), strings.Split(got, "\n")
		for i := range max(len(w), len(g)) {
			if i >= len(w) || i >= len(g) || w[i] != g[i] {
				t.Fatalf("%s differs at line %d:\n%s\n(go test -update rewrites it)", file, i+1, strings.Join(g[i:min(i+3, len(g))], "\n"))
			}
		}
	}
}

// plainLayout is a layout as decide and furnish give it, without a descriptor being open.
func plainLayout() *layout {
	ns, _ := decideNamespaces(dockerSpec("x").Linux.Namespaces, true)
	caps, _ := parseCaps(dockerSpec("x").Process.Capabilities)
	return &layout{
		process: process{args: []string{"web", "-v"}, env: []string{"PATH=/bin:/usr/bin", "A=b"}, cwd: "/srv/app", uid: 1000, gid: 1000,
			groups: []uint32{1000, 44}, umask: 0o022, caps: caps, lastCap: 40, filter: make([]byte, 8), personality: -1, makeCwd: true,
			limits: []limit{{unix.RLIMIT_NOFILE, 1024, 4096}}},
		ns: ns, tasks: 2, closeFirst: 1, hostname: "box",
		sysctls: []sysctl{{"net/ipv4/ip_unprivileged_port_start", "0"}},
		mounts: []attachment{
			{object: "proc on /proc", target: "target0", path: "/proc", fstype: "proc", opts: mountOptions{set: unix.MOUNT_ATTR_NOSUID}},
			{object: "tmpfs on /dev", source: "mount1", target: "target1", path: "/dev", fstype: "tmpfs"},
			{object: "/host on /proc/cpuinfo", source: "mount2", path: "/proc/cpuinfo", fstype: "bind"},
		},
		masks: []mask{{"/proc/kcore", "mask0"}}, readonly: []string{"/proc/sys"},
	}
}

func TestPlans(t *testing.T) {
	golden(t, "start", planStart(plainLayout()).String())

	tty := plainLayout()
	tty.tty, tty.console, tty.rootRO, tty.noNewPrivs, tty.hold, tty.files = true, true, true, true, true, 2
	tty.ns.clone |= unix.CLONE_NEWUSER | unix.CLONE_NEWNET
	tty.apparmor = "keg-default"
	golden(t, "start-tty-userns", planStart(tty).String())

	golden(t, "exec", planExec(plainLayout()).String())
	users := plainLayout()
	users.inUserNS = true
	users.ns.own[unix.CLONE_NEWUSER] = true
	golden(t, "exec-userns", planExec(users).String())
}

// What must come before what, whatever else changes in the plans.
func TestPlanOrder(t *testing.T) {
	for _, nnp := range []bool{false, true} {
		l := plainLayout()
		l.noNewPrivs = nnp
		p := planStart(l)
		at := func(act, object string) int {
			for i := len(p.steps) - 1; i >= 0; i-- {
				if s := p.steps[i]; s.act == act && (object == "" || s.object == object) {
					return i
				}
			}
			t.Fatalf("no step %s %s", act, object)
			return 0
		}
		order := []int{at("close", "what only the engine may hold"), at("join", "cgroup"), at("set sysctl", ""), at("pivot to", "the root"),
			at("unmount", "the host's root"), at("mount", "proc on /proc"), at("open mount target", "/proc/cpuinfo"), at("mask", "/proc/kcore"),
			at("drop capability", ""), at("set groups", ""), at("become user", "1000"), at("tie the process to", "its monitor"),
			at("wait for", "the go-ahead"), at("mark", "the rest close-on-exec"), at("load", "the seccomp filter"), at("exec", "/bin/web")}
		for i := 1; i < len(order); i++ {
			if order[i-1] >= order[i] {
				t.Errorf("step %d comes too late: %s %s", i-1, p.steps[order[i-1]].act, p.steps[order[i-1]].object)
			}
		}
	}
}

func TestSysctlPlan(t *testing.T) {
	own := map[int]bool{unix.CLONE_NEWNET: true, unix.CLONE_NEWIPC: true}
	out, err := planSysctls(map[string]string{"net/ipv4/conf/eth0.100/forwarding": "1", "kernel.shmmax": "9"}, own)
	if err != nil || len(out) != 2 || out[1].file != "net/ipv4/conf/eth0.100/forwarding" || out[0].file != "kernel/shmmax" {
		t.Error(out, err)
	}
}

func TestParseOptions(t *testing.T) {
	o, err := parseOptions([]string{"rbind", "ro", "nosuid", "suid", "rnoexec", "rslave", "size=1m", "sync", "noatime", "relatime"})
	if err != nil || !o.bind || !o.recursive || o.set != unix.MOUNT_ATTR_RDONLY || o.clear&unix.MOUNT_ATTR_NOSUID == 0 ||
		o.allSet != unix.MOUNT_ATTR_NOEXEC || o.propagation != unix.MS_SLAVE || !o.spread || o.data[0] != "size=1m" || o.flags[0] != "sync" {
		t.Errorf("%+v %v", o, err)
	}
}

func TestParseLimits(t *testing.T) {
	get := func(int) (uint64, uint64) { return 10, 100 }
	out, w, err := parseLimits([]specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 50, Hard: 500}, {Type: "RLIMIT_CORE", Soft: 1, Hard: 2}}, get, false)
	if err != nil || len(w) != 1 || out[0] != (limit{unix.RLIMIT_NOFILE, 50, 100}) || out[1] != (limit{unix.RLIMIT_CORE, 1, 2}) {
		t.Error(out, w, err)
	}
	for _, bad := range [][]specs.POSIXRlimit{{{Type: "RLIMIT_X"}}, {{Type: "RLIMIT_CORE", Soft: 2, Hard: 1}}, {{Type: "RLIMIT_CORE"}, {Type: "RLIMIT_CORE"}}} {
		if _, _, err := parseLimits(bad, get, true); err == nil {
			t.Error(bad)
		}
	}
}

func TestNamespaceDecisions(t *testing.T) {
	for _, bad := range [][]specs.LinuxNamespace{{{Type: "x"}}, {{Type: specs.MountNamespace}, {Type: specs.MountNamespace}}, {{Type: specs.UserNamespace}},
		{{Type: specs.UserNamespace}, {Type: specs.MountNamespace, Path: "/proc/1/ns/mnt"}}} {
		if _, err := decideNamespaces(bad, false); err == nil {
			t.Error(bad)
		}
	}
}

// Clones while the garbage collector runs on every thread: the hooks of the runtime that the
// clone relies on hold for this Go version. KEG_SOAK makes it long.
func TestCloneUnderGarbageCollection(t *testing.T) {
	rounds := 100
	if os.Getenv("KEG_SOAK") != "" {
		rounds = 5000
	}
	stop := make(chan struct{})
	var churn, work sync.WaitGroup
	for range 3 {
		churn.Add(1)
		go func() {
			defer churn.Done()
			for s := [][]byte{}; ; {
				select {
				case <-stop:
					return
				default:
				}
				if s = append(s, make([]byte, 10000)); len(s) > 500 {
					s = nil
					runtime.GC()
				}
			}
		}()
	}
	for g := range 4 {
		work.Add(1)
		go func() {
			defer work.Done()
			for range rounds {
				if err := cloneOnce(g); err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	work.Wait()
	close(stop)
	churn.Wait()
}

// cloneOnce runs a program that needs no privileges: results as arguments, passes, a check,
// memory, execve.
func cloneOnce(n int) error {
	p := &program{}
	p.signals()
	p.add("open", "/none", unix.SYS_OPENAT, num(unix.AT_FDCWD), text("/none"), num(0), num(0)).ignore(unix.ENOENT, 1)
	p.add("never", "", opFail, num(int(unix.EIO)))
	p.add("open", "/", unix.SYS_OPENAT, num(unix.AT_FDCWD), text("/"), num(unix.O_PATH), num(0))
	root := p.result()
	p.add("change to", "/", unix.SYS_FCHDIR, root)
	p.workdir(&process{cwd: "/"})
	p.add("exec", "/bin/true", unix.SYS_EXECVE, text("/bin/true"), vector([]string{"true"}), vector([]string{"N=" + string(rune('0'+n))}))
	t := &talk{o: &Options{}, c: &process{args: []string{"true"}}, program: p}
	b := &birth{program: p, fds: map[string]int{}, keepBelow: 3, cgroup: -1, pidns: -1}
	if err := spawn(b); err != nil {
		return err
	}
	t.sock = b.parentEnd
	defer t.sock.Close()
	t.p = &Process{Pid: b.pid, PidFD: os.NewFile(uintptr(b.pidfd), "pidfd")}
	if r, err := t.read(); err != nil || r != nil {
		t.abandon()
		return t.failure(r)
	}
	code, err := t.p.Wait()
	if err == nil && code != 0 {
		err = os.ErrInvalid
	}
	return err
}

// Nobody who shares a pid namespace with the child may trace it, from its first instant on.
func TestChildIsBornNotDumpable(t *testing.T) {
	p := &program{}
	p.add("be", "dumpable", unix.SYS_PRCTL, num(unix.PR_GET_DUMPABLE)).flag(wantSome)
	tk := &talk{o: &Options{}, c: &process{args: []string{"true"}}, program: p}
	_, err := tk.begin(t.Context(), &birth{program: p, fds: map[string]int{}, keepBelow: 3, cgroup: -1, pidns: -1})
	if !errors.Is(err, unix.ECANCELED) {
		t.Error(err)
	}
	if d, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); os.Geteuid() == 0 && (d != 1 || err != nil) {
		t.Error("the engine itself stays so:", d, err)
	}
}

func TestFailingStepIsNamed(t *testing.T) {
	p := &program{}
	p.add("open", "/none/x", unix.SYS_OPENAT, num(unix.AT_FDCWD), text("/none/x"), num(0), num(0))
	tk := &talk{o: &Options{}, c: &process{args: []string{"true"}}, program: p}
	_, err := tk.begin(t.Context(), &birth{program: p, fds: map[string]int{}, keepBelow: 3, cgroup: -1, pidns: -1})
	if err == nil || err.Error() != "open /none/x: no such file or directory" {
		t.Error(err)
	}
	q := &program{}
	q.add("use", "it", unix.SYS_CLOSE, fd("missing"))
	if _, err := q.bind(map[string]int{}); err == nil || !strings.Contains(err.Error(), `"missing"`) {
		t.Error(err)
	}
}
