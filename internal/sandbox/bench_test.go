package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// overlay mounts a detached overlay of lower, as the engine does for a container.
func overlay(t testing.TB, lower string) int {
	t.Helper()
	dir := t.TempDir()
	up, work := filepath.Join(dir, "u"), filepath.Join(dir, "w")
	os.Mkdir(up, 0o755)
	os.Mkdir(work, 0o755)
	fd, err := newMount("overlay", "overlay", nil, []string{"lowerdir=" + lower, "upperdir=" + up, "workdir=" + work}, 0)
	if err != nil {
		t.Skip("needs overlayfs: ", err)
	}
	return fd
}

func median(d []time.Duration) time.Duration {
	sort.Slice(d, func(i, j int) bool { return d[i] < d[j] })
	return d[len(d)/2]
}

// runcBundle is a bundle on the same root with runc's own default spec.
func runcBundle(t testing.TB, root string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip("needs runc to compare with")
	}
	dir := t.TempDir()
	if out, err := exec.Command("runc", "spec", "--bundle", dir).CombinedOutput(); err != nil {
		t.Fatalf("%s %v", out, err)
	}
	b, _ := os.ReadFile(filepath.Join(dir, "config.json"))
	var s specs.Spec
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	s.Root.Path, s.Process.Args, s.Process.Terminal = root, args, false
	s.Process.Rlimits = nil
	b, _ = json.Marshal(s)
	os.WriteFile(filepath.Join(dir, "config.json"), b, 0o644)
	return dir
}

// BenchmarkRun compares Start, Wait and Remove on an overlay with "runc run" of a prepared
// bundle, taking turns. It reports medians and their ratio.
func BenchmarkRun(b *testing.B) {
	root := busyRoot(b)
	bundle := runcBundle(b, root, "/bin/true")
	cache := b.TempDir()
	var ours, theirs []time.Duration
	null, _ := os.OpenFile("/dev/null", os.O_RDWR, 0)
	defer null.Close()
	for i := 0; i < b.N; i++ {
		fd := overlay(b, root)
		at := time.Now()
		p, err := Start(context.Background(), dockerSpec("/bin/true"), Options{Root: fd, NetNS: -1, DefaultSeccomp: true,
			Cache: cache, Cgroup: fmt.Sprintf("keg-test-sandbox/bench-%d", i), Stdio: [3]*os.File{null, null, null}})
		if err != nil {
			b.Fatal(err)
		}
		if code, err := p.Wait(); code != 0 || err != nil {
			b.Fatal(code, err)
		}
		if err := p.Cgroup.Remove(context.Background()); err != nil {
			b.Fatal(err)
		}
		ours = append(ours, time.Since(at))
		unix.Close(fd)
		at = time.Now()
		if out, err := exec.Command("runc", "run", "--bundle", bundle, fmt.Sprintf("keg-bench-%d-%d", os.Getpid(), i)).CombinedOutput(); err != nil {
			b.Fatalf("%s %v", out, err)
		}
		theirs = append(theirs, time.Since(at))
	}
	compare(b, ours, theirs)
}

func compare(b *testing.B, ours, theirs []time.Duration) {
	o, t := median(ours), median(theirs)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(o.Microseconds())/1000, "ms/keg")
	b.ReportMetric(float64(t.Microseconds())/1000, "ms/runc")
	b.ReportMetric(float64(o)/float64(t), "ratio")
}

// BenchmarkExec compares Exec and Wait with "runc exec".
func BenchmarkExec(b *testing.B) {
	root := busyRoot(b)
	bundle := runcBundle(b, root, "/bin/sleep", "600")
	id := fmt.Sprintf("keg-bench-exec-%d", os.Getpid())
	if err := exec.Command("runc", "run", "--detach", "--bundle", bundle, id).Run(); err != nil {
		b.Fatal(err)
	}
	defer exec.Command("runc", "delete", "--force", id).Run()
	null, _ := os.OpenFile("/dev/null", os.O_RDWR, 0)
	defer null.Close()
	spec := dockerSpec("/bin/sleep", "600")
	o := options(b, root)
	o.Stdio = [3]*os.File{null, null, null}
	p, err := Start(context.Background(), spec, o)
	if err != nil {
		b.Fatal(err)
	}
	defer end(b, p)
	var ours, theirs []time.Duration
	b.ResetTimer()
	for i := 0; i < b.N; i++ {
		at := time.Now()
		e, err := Exec(context.Background(), p.Pid, spec, &specs.Process{Args: []string{"/bin/true"}, Cwd: "/", Env: []string{"PATH=/bin"}}, o)
		if err != nil {
			b.Fatal(err)
		}
		if code, err := e.Wait(); code != 0 || err != nil {
			b.Fatal(code, err)
		}
		ours = append(ours, time.Since(at))
		at = time.Now()
		if out, err := exec.Command("runc", "exec", id, "/bin/true").CombinedOutput(); err != nil {
			b.Fatalf("%s %v", out, err)
		}
		theirs = append(theirs, time.Since(at))
	}
	compare(b, ours, theirs)
}

// end kills a container and removes what Start made.
func end(t testing.TB, p *Process) {
	t.Helper()
	if err := p.Signal(int(unix.SIGKILL)); err != nil {
		t.Error(err)
	}
	if _, err := p.Wait(); err != nil {
		t.Error(err)
	}
	if err := p.Cgroup.Remove(context.Background()); err != nil {
		t.Error(err)
	}
}
