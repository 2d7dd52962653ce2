package cgroup

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if g, err := Open("keg-test-cgroup"); err == nil {
		for _, h := range g.Hierarchies() {
			_ = unix.Rmdir(h.Dir)
		}
	}
	os.Exit(code)
}

func ptr[T any](v T) *T { return &v }

func name(t testing.TB) string {
	return fmt.Sprintf("keg-test-cgroup/cg-%d-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-"))
}

// group makes a group for the test and takes it away afterwards.
func group(t testing.TB, r *specs.LinuxResources) *Group {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: cgroups")
	}
	g, warnings, err := Create(name(t), r)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range warnings {
		t.Log(w)
	}
	t.Cleanup(func() {
		if err := g.Kill(context.Background()); err != nil {
			t.Error(err)
		}
		if err := g.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return g
}

// member starts a shell line in the group, as a child that enters by itself.
func member(t testing.TB, g *Group, line string) *exec.Cmd {
	t.Helper()
	join := "true"
	for _, h := range g.Hierarchies() {
		if !h.V2 {
			join += " && echo 0 > " + h.Dir + "/tasks"
		}
	}
	cmd := exec.Command("sh", "-c", join+"; "+line)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	dir, err := g.Directory()
	if err != nil {
		t.Fatal(err)
	}
	if dir != nil {
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func read(t testing.TB, g *Group, controller, file string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(g.dir(controller), file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestLimitsAreWritten(t *testing.T) {
	r := &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Reservation: ptr(int64(32 << 20))},
		CPU:    &specs.LinuxCPU{Shares: ptr(uint64(512)), Quota: ptr(int64(50000)), Period: ptr(uint64(100000)), Cpus: "0"},
		Pids:   &specs.LinuxPids{Limit: ptr(int64(99))},
	}
	g := group(t, r)
	if g.Unified() {
		for file, want := range map[string]string{"memory.max": "67108864", "cpu.max": "50000 100000", "pids.max": "99", "cpuset.cpus": "0"} {
			if got := read(t, g, "", file); got != want {
				t.Errorf("%s: %s", file, got)
			}
		}
		return
	}
	for _, c := range [][3]string{{"memory", "memory.limit_in_bytes", "67108864"}, {"memory", "memory.soft_limit_in_bytes", "33554432"},
		{"cpu", "cpu.shares", "512"}, {"cpu", "cpu.cfs_quota_us", "50000"}, {"pids", "pids.max", "99"}, {"cpuset", "cpuset.cpus", "0"}} {
		if got := read(t, g, c[0], c[1]); got != c[2] {
			t.Errorf("%s: %s", c[1], got)
		}
	}
	// docker update
	if _, err := g.Set(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(128 << 20))}}); err != nil {
		t.Fatal(err)
	}
	if got := read(t, g, "memory", "memory.limit_in_bytes"); got != "134217728" {
		t.Error(got)
	}
	if _, err := g.Set(&specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0-9999"}}); err == nil {
		t.Error("a processor that does not exist was accepted")
	}
}

// What the host has no controller for is a warning, not a failure.
func TestMissingControllerIsAWarning(t *testing.T) {
	g := group(t, nil)
	if g.Unified() || g.dir("hugetlb") != "" {
		t.Skip("needs a host without the hugetlb controller on v1")
	}
	w, err := g.Set(&specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1}}})
	if err != nil || len(w) != 1 || !strings.Contains(w[0], "hugetlb") {
		t.Error(w, err)
	}
}

func TestPidsStatsFreezeKill(t *testing.T) {
	g := group(t, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(50))}})
	// Children that ignore signals, and one that leaves its session.
	cmd := member(t, g, "trap '' TERM; (setsid sleep 1000 &) ; sleep 1000 & while :; do sleep 0.01; done")
	go cmd.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := poll(ctx, func() (bool, error) { p, err := g.Pids(); return len(p) >= 3, err }); err != nil {
		t.Fatal(err)
	}
	if of, err := Of(cmd.Process.Pid); err != nil || of.Path() != g.Path() || !slices.Equal(dirs(of), dirs(g)) {
		t.Errorf("%+v %v", of, err)
	}
	if err := g.Freeze(ctx); err != nil {
		t.Fatal(err)
	}
	if before, after := ticks(t, cmd.Process.Pid), ticks(t, cmd.Process.Pid); before != after {
		t.Error("a frozen process runs")
	}
	s, err := g.Stats()
	if err != nil || s.PidsStats.Current < 3 || s.PidsStats.Limit != 50 || s.MemoryStats.Usage.Usage == 0 || s.CpuStats.CpuUsage.TotalUsage == 0 {
		t.Errorf("%+v %v", s, err)
	}
	if err := g.Kill(ctx); err != nil { // frozen
		t.Fatal(err)
	}
	if p, err := g.Pids(); err != nil || len(p) != 0 {
		t.Error(p, err)
	}
	if err := g.Kill(ctx); err != nil {
		t.Error("killing an empty group:", err)
	}
}

func dirs(g *Group) (out []string) {
	for _, h := range g.Hierarchies() {
		out = append(out, h.Dir)
	}
	slices.Sort(out)
	return out
}

func ticks(t *testing.T, pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b))
	return f[13] + f[14]
}

// Without cgroup.kill (v1 alone) freezing, killing and thawing must empty the group as well.
func TestKillOnV1Alone(t *testing.T) {
	g := group(t, nil)
	if g.Unified() {
		t.Skip("needs cgroup v1")
	}
	v1 := &Group{path: g.path}
	for _, h := range g.hierarchies {
		if !h.V2 {
			v1.hierarchies = append(v1.hierarchies, h)
		}
	}
	cmd := member(t, g, "while :; do (sleep 100 &); sleep 0.001; done")
	go cmd.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := poll(ctx, func() (bool, error) { p, err := v1.Pids(); return len(p) > 10, err }); err != nil {
		t.Fatal(err)
	}
	if err := v1.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if p, err := g.Pids(); err != nil || len(p) != 0 {
		t.Error(p, err)
	}
}

func TestOOMIsCounted(t *testing.T) {
	g := group(t, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(8 << 20))}})
	if n, err := g.OOMKills(); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	cmd := member(t, g, "exec tail /dev/zero")
	if err := cmd.Wait(); err == nil {
		t.Fatal("the program survived")
	}
	if n, err := g.OOMKills(); n == 0 || err != nil {
		t.Error(n, err)
	}
}

func TestCreateTwiceAndRemove(t *testing.T) {
	g := group(t, nil)
	again, _, err := Create(name(t), nil) // nobody is in it: the rest of a crash
	if err != nil || again.Path() != g.Path() {
		t.Fatal(err)
	}
	cmd := member(t, g, "sleep 1000")
	go cmd.Wait()
	last := g.Hierarchies()[len(g.Hierarchies())-2:][0].Dir
	if err := poll(t.Context(), func() (bool, error) { p, err := tree(last); return len(p) > 0, err }); err != nil {
		t.Fatal(err)
	}
	// Creation fails in the first hierarchy with a member; the group must survive that.
	if _, _, err := Create(name(t), nil); !fault.Is(err, fault.Conflict) {
		t.Error(err)
	}
	if _, err := os.Stat(g.Hierarchies()[0].Dir); err != nil {
		t.Error(err)
	}
	inner := filepath.Join(g.Hierarchies()[0].Dir, "inner", "most")
	if err := os.MkdirAll(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	o, err := Open(name(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := o.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, h := range g.Hierarchies() {
		if _, err := os.Stat(h.Dir); !os.IsNotExist(err) {
			t.Error(h.Dir, err)
		}
	}
	if err := o.Remove(t.Context()); err != nil {
		t.Error("removing what is gone:", err)
	}
}

func TestBadPaths(t *testing.T) {
	for _, p := range []string{"", "/", "..", "../x", "keg/../../x", "a\x00b", "a\nb"} {
		if _, err := Open(p); !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.Unsupported) {
			t.Errorf("%q: %v", p, err)
		}
	}
}

func TestParseMounts(t *testing.T) {
	hybrid := `31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:3 - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
42 31 0:29 / /other/cpu rw - cgroup cgroup rw,cpu,cpuacct
`
	m, err := parseMounts(hybrid)
	if err != nil || m.unified || len(m.list) != 3 || m.list[0].Name != "cpu,cpuacct" || !slices.Equal(m.list[0].Links, []string{"cpu", "cpuacct"}) ||
		!slices.Equal(m.list[1].Controllers, []string{"name=systemd"}) || !m.list[2].V2 {
		t.Errorf("%+v %v", m, err)
	}
	m, err = parseMounts("30 23 0:26 /docker/x /sys/fs/cgroup ro - cgroup2 cgroup rw\n")
	if err != nil || !m.unified || m.list[0].relative("/docker/x/y") != "/y" {
		t.Errorf("%+v %v", m, err)
	}
	if _, err := parseMounts("1 0 0:1 / / rw - ext4 x rw\n"); !fault.Is(err, fault.Unsupported) {
		t.Error(err)
	}
}

func TestV1DeviceListIsExact(t *testing.T) {
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}, {Allow: true, Type: "c", Access: "m"},
		{Allow: true, Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(3)), Access: "rwm"}, {Allow: true, Type: "b", Major: ptr(int64(7)), Access: "r"}}
	g := group(t, &specs.LinuxResources{Devices: rules})
	if g.Unified() {
		t.Skip("needs cgroup v1")
	}
	if got := read(t, g, "devices", "devices.list"); got != "c *:* m\nc 1:3 rwm\nb 7:* r" {
		t.Errorf("%q", got)
	}
}

// The eBPF form of the same rules, on a v2 directory (a hybrid host has one too).
func TestV2DeviceProgram(t *testing.T) {
	g := group(t, nil)
	dir := g.v2()
	if dir == "" {
		t.Skip("needs a mounted cgroup v2 hierarchy")
	}
	d, err := g.Directory()
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
	if d, err = os.Open(dir); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	dev := func(allow bool, major, minor int64, access string) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: allow, Type: "c", Major: &major, Minor: &minor, Access: access}
	}
	rules := []specs.LinuxDeviceCgroup{{Allow: false}, {Allow: true, Type: "c", Access: "m"}, dev(true, 1, 3, "rwm"), dev(true, 1, 5, "r"), dev(true, 1, 9, "rw"), dev(false, 1, 9, "w")}
	if err := attachDevices(int(d.Fd()), rules); err != nil {
		t.Fatal(err)
	}
	tmp := t.TempDir()
	for line, ok := range map[string]bool{
		"echo x > /dev/null": true, "head -c1 /dev/null": true, "head -c1 /dev/zero": true, "echo x > /dev/zero": false,
		"head -c1 /dev/urandom": true, "echo x > /dev/urandom": false, "head -c1 /dev/full": false,
		"mknod " + tmp + "/c c 5 9": true, "mknod " + tmp + "/b b 7 0": false,
	} {
		err := member(t, g, line+" >/dev/null 2>&1").Wait()
		if (err == nil) != ok {
			t.Errorf("%s: %v", line, err)
		}
	}
}

func TestDeviceRuleErrors(t *testing.T) {
	for _, d := range []specs.LinuxDeviceCgroup{{Type: "x"}, {Type: "c", Access: "q"}} {
		if err := checkRule(&d); !fault.Is(err, fault.Invalid) {
			t.Error(d, err)
		}
	}
}

func BenchmarkCreateRemove(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root: cgroups")
	}
	r := &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(512))}, Memory: &specs.LinuxMemory{Limit: ptr(int64(256 << 20))}, CPU: &specs.LinuxCPU{Shares: ptr(uint64(512))}}
	for i := 0; i < b.N; i++ {
		g, _, err := Create(fmt.Sprintf("keg-test-cgroup/bench-%d-%d", os.Getpid(), i), r)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := g.Remove(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
