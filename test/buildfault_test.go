package test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const faultFile = `FROM busybox AS one
RUN mkdir /out && echo one > /out/one
COPY data /out/data
FROM busybox AS two
ADD t.tar /unpacked/
RUN --mount=type=cache,target=/cache --mount=type=bind,target=/ctx cat /ctx/data/f > /f && echo x >> /cache/x
FROM busybox
COPY --from=one /out /out
COPY --from=two /unpacked /f /two/
RUN --mount=type=secret,id=s test -s /run/secrets/s && cat /out/data/f /two/f /two/t/f > /all
`

// faultContext is a context with all kinds of steps; each call of change makes most of
// them run again.
func faultContext(t *testing.T) (dir string, change func(n int) (want string)) {
	dir = t.TempDir()
	os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(faultFile), 0o644)
	os.Mkdir(filepath.Join(dir, "data"), 0o755)
	os.WriteFile(filepath.Join(dir, "secret"), []byte("hush"), 0o600)
	for i := range 40 {
		os.WriteFile(filepath.Join(dir, fmt.Sprintf("data/x%d", i)), bytes.Repeat([]byte{byte(i)}, 5000), 0o644)
	}
	return dir, func(n int) string {
		os.WriteFile(filepath.Join(dir, "data/f"), fmt.Appendf(nil, "%d\n", n), 0o644)
		os.WriteFile(filepath.Join(dir, "t.tar"), tarOf(t, "t/f", fmt.Sprintf("tar %d\n", n)), 0o644)
		return fmt.Sprintf("%d\n%d\ntar %d", n, n, n)
	}
}

func tarOf(t *testing.T, name, text string) []byte {
	tr := tree{}
	tr.file(name, text)
	b, err := tr.tar()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func soak(short, long int) int {
	if os.Getenv("KEG_SOAK") != "" {
		return long
	}
	return short
}

// A build killed at any of many moments leaves nothing half-made: the next build of the same
// is right, and after a prune the engine is as empty as before.
func TestBuildKilledAtEveryStep(t *testing.T) {
	e := newEngine(t)
	dir, change := faultContext(t)
	args := []string{"build", "-q", "--secret", "id=s,src=" + dir + "/secret", "-t", "killed", dir}
	e.keg("pull", "-q", "busybox")
	change(-1)
	e.keg(args...)
	change(-2)
	start := time.Now()
	e.keg(args...)
	whole := time.Since(start)
	n := soak(8, 400)
	for i := range n {
		want := change(i)
		cmd := e.command(args...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(whole * time.Duration(i) / time.Duration(n))
		cmd.Process.Kill()
		cmd.Wait()
		e.keg(args...)
		if got := e.keg("run", "--rm", "--network", "none", "killed", "cat", "/all"); got != want {
			t.Fatalf("after %d of %d parts of %v: %q, not %q", i, n, whole, got, want)
		}
	}
	e.empty(t)
}

// empty removes everything and looks at what is still there.
func (e *engine) empty(t *testing.T) {
	t.Helper()
	e.keg("system", "prune", "-af")
	for _, dir := range []string{"root/active", "root/blobs/sha256", "root/layers", "root/steps/held", "run/secrets"} {
		left, _ := filepath.Glob(filepath.Join(e.state, dir, "[^.]*"))
		if len(left) > 0 {
			t.Errorf("%s holds %v after everything was pruned", dir, left)
		}
	}
}

// A disk that is full at any of many points of a build stops it with that reason; with room
// again the same build is right.
func TestFullDiskAtEveryStep(t *testing.T) {
	e := newEngine(t)
	disk := filepath.Join(e.state, "root")
	os.Mkdir(disk, 0o755)
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=200m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(disk, syscall.MNT_DETACH) })
	resize := func(bytes int64) {
		if err := syscall.Mount("tmpfs", disk, "tmpfs", syscall.MS_REMOUNT, fmt.Sprintf("size=%d", bytes)); err != nil {
			t.Fatal(err)
		}
	}
	usage := func() int64 {
		var st syscall.Statfs_t
		if err := syscall.Statfs(disk, &st); err != nil {
			t.Fatal(err)
		}
		return int64(st.Blocks-st.Bfree) * st.Bsize
	}
	dir, change := faultContext(t)
	args := []string{"build", "-q", "--secret", "id=s,src=" + dir + "/secret", "-t", "full", dir}
	e.keg("pull", "-q", "busybox")
	change(-1)
	e.keg(args...)
	before := usage()
	change(-2)
	e.keg(args...)
	need := usage() - before
	n := soak(8, 200)
	full, built := 0, 0
	for i := range n {
		want := change(i)
		resize(usage() + need*int64(i+1)/int64(n))
		_, errs, code := e.try(args...)
		switch {
		case code == 0:
			built++
		case strings.Contains(errs, "no space left on device"):
			full++
		default:
			t.Errorf("with %d of %d parts: exit %d without a word of the disk: %s", i+1, n, code, errs)
		}
		resize(200 << 20)
		e.keg(args...)
		if got := e.keg("run", "--rm", "--network", "none", "full", "cat", "/all"); got != want {
			t.Fatalf("with %d of %d parts: %q, not %q", i+1, n, got, want)
		}
	}
	if full == 0 {
		t.Errorf("the disk was never full: %d of %d were built", built, n)
	}
	e.empty(t)
}

// A build that is killed while a person looks around in what failed leaves nothing that the next build does not take away.
func TestFailedShellKilled(t *testing.T) {
	e := newEngine(t)
	dir := t.TempDir()
	file := func(text string) {
		os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM busybox\n"+text), 0o644)
	}
	e.keg("pull", "-q", "busybox")
	file("RUN echo half > /half; exit 3\n")
	pid := filepath.Join(dir, "pid")
	// script(1) gives it a terminal; the shell's prompt tells that it is there.
	cmd := exec.Command("script", "-qefc", "echo $$ > "+pid+"; exec "+filepath.Join(bin, "keg")+" build --on-error shell "+dir, "/dev/null")
	cmd.Env = e.env
	typed, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer typed.Close()
	shown, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	typed.Write([]byte("cat /half; echo I am $((40+2))\n"))
	var all []byte
	for b := make([]byte, 4096); !bytes.Contains(all, []byte("I am 42")); {
		n, err := shown.Read(b)
		if all = append(all, b[:n]...); err != nil {
			t.Fatalf("no shell: %v\n%s", err, all)
		}
	}
	var n int
	fmt.Sscan(read(pid), &n)
	if n == 0 || syscall.Kill(n, syscall.SIGKILL) != nil {
		t.Fatalf("keg has no pid %d", n)
	}
	cmd.Wait()
	file("RUN test ! -e /half\n")
	e.keg("build", "-q", dir)
	e.empty(t)
}
