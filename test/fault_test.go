package test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// engine is one engine of a test, with directories of its own.
type engine struct {
	t     *testing.T
	state string
	env   []string
}

func newEngine(t *testing.T) *engine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: containers and mounts")
	}
	conf := bases(t)
	state, err := os.MkdirTemp("", "k-")
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{t: t, state: state}
	e.env = append(os.Environ(), "KEG_ROOT="+state+"/root", "KEG_RUN_ROOT="+state+"/run", "HOME="+state,
		"CONTAINERS_REGISTRIES_CONF="+conf, "DOCKER_CONFIG=")
	before := host(state)
	t.Cleanup(func() {
		if out, _, _ := e.try("ps", "-aq"); out != "" {
			e.try(append([]string{"rm", "-f"}, strings.Fields(out)...)...)
		}
		if left := settle(state, before); left != "" {
			t.Errorf("left on the host:\n%s", left)
		}
		os.RemoveAll(state)
	})
	return e
}

func (e *engine) command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(bin, "keg"), args...)
	cmd.Env = e.env
	return cmd
}

// try runs keg and returns what it printed and its exit code.
func (e *engine) try(args ...string) (out, errs string, code int) {
	cmd := e.command(args...)
	var o, x bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &x
	err := cmd.Run()
	if cmd.ProcessState == nil {
		e.t.Fatal(err)
	}
	return strings.TrimSpace(o.String()), x.String(), cmd.ProcessState.ExitCode()
}

// keg runs it and expects success.
func (e *engine) keg(args ...string) string {
	e.t.Helper()
	out, errs, code := e.try(args...)
	if code != 0 {
		e.t.Fatalf("keg %q: exit %d\n%s%s", args, code, out, errs)
	}
	return out
}

// A full disk stops what writes, with its reason, and not what shows or removes.
func TestFullDisk(t *testing.T) {
	e := newEngine(t)
	disk := filepath.Join(e.state, "disk")
	os.Mkdir(disk, 0o755)
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=24m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(disk, syscall.MNT_DETACH) })
	e.env = append(e.env, "KEG_ROOT="+disk+"/root")
	e.keg("pull", "-q", "busybox")
	e.keg("run", "-d", "--name", "lives", "busybox", "sleep", "1000")

	ctx := t.TempDir()
	os.WriteFile(filepath.Join(ctx, "Dockerfile"), []byte("FROM busybox\nCOPY big /\n"), 0o644)
	os.WriteFile(filepath.Join(ctx, "big"), bytes.Repeat([]byte("x"), 30<<20), 0o644)
	for range 2 {
		_, errs, code := e.try("build", "-t", "big", ctx)
		if code == 0 || !strings.Contains(errs, "no space left on device") {
			t.Fatalf("a build on a full disk: exit %d\n%s", code, errs)
		}
	}
	if _, errs, code := e.try("run", "--rm", "busybox", "dd", "if=/dev/zero", "of=/fill", "bs=1M", "count=64"); code == 0 {
		t.Fatalf("a container wrote 64 MB to a disk of 24: %s", errs)
	}
	if out := e.keg("ps", "--format", "{{.Names}}"); out != "lives" {
		t.Fatalf("ps on a full disk: %q", out)
	}
	if out := e.keg("images", "-q"); strings.Contains(out, "\n") {
		t.Fatalf("a half-made image has a name: %s", out)
	}
	e.keg("rm", "-f", "lives")
	e.keg("system", "prune", "-f")
	if err := syscall.Mount("tmpfs", disk, "tmpfs", syscall.MS_REMOUNT, "size=200m"); err != nil {
		t.Fatal(err)
	}
	e.keg("build", "-t", "big", ctx)
	e.keg("run", "--rm", "big", "test", "-s", "/big")
	e.keg("rmi", "-f", "big", "busybox")
}

// A pull that is killed half-way leaves no name, and the next one goes on where it ended.
func TestPullKilledHalfWayResumes(t *testing.T) {
	e := newEngine(t)
	const size = 8 << 20
	img, err := random.Image(size, 1)
	if err != nil {
		t.Fatal(err)
	}
	ref, _ := name.ParseReference(hub.addr+"/test/large:1", name.Insecure)
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	var stall, ranged atomic.Bool
	var served atomic.Int64
	var once sync.Once
	stalled := make(chan struct{})
	stall.Store(true)
	// A proxy that, while told so, stops in the middle of a large blob.
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		up, _ := http.NewRequestWithContext(r.Context(), r.Method, "http://"+hub.addr+r.URL.Path, nil)
		up.Header = r.Header.Clone()
		resp, err := http.DefaultClient.Do(up)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		for k, v := range resp.Header {
			w.Header()[k] = v
		}
		w.WriteHeader(resp.StatusCode)
		large := strings.Contains(r.URL.Path, "/blobs/") && resp.ContentLength > 1<<20
		if large && r.Method == http.MethodGet {
			if stall.Load() {
				io.CopyN(w, resp.Body, 3<<20)
				w.(http.Flusher).Flush()
				once.Do(func() { close(stalled) })
				<-r.Context().Done()
				return
			}
			ranged.Store(r.Header.Get("Range") != "")
			n, _ := io.Copy(w, resp.Body)
			served.Add(n)
			return
		}
		io.Copy(w, resp.Body)
	}))
	defer proxy.Close()
	target := strings.TrimPrefix(proxy.URL, "http://") + "/test/large:1"

	cmd := e.command("pull", target)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-stalled:
	case <-time.After(30 * time.Second):
		t.Fatal("the blob was never asked for")
	}
	time.Sleep(300 * time.Millisecond) // what was sent reaches the disk
	cmd.Process.Kill()
	cmd.Wait()
	if out := e.keg("images", "-aq"); out != "" {
		t.Fatalf("half an image has a name: %s", out)
	}
	stall.Store(false)
	e.keg("pull", target)
	if !ranged.Load() || served.Load() > size-(2<<20) {
		t.Errorf("the second pull did not resume: range %v, %d bytes of %d", ranged.Load(), served.Load(), size)
	}
	want, err := crane.Digest(hub.addr+"/test/large:1", crane.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if out := e.keg("images", "--digests", "--format", "{{.Digest}}"); out != want {
		t.Errorf("digest %s, want %s", out, want)
	}
	e.keg("rmi", target)
}

// Builds of one thing at once, by several processes, all succeed with one result.
func TestBuildsAtOnce(t *testing.T) {
	e := newEngine(t)
	ctx := t.TempDir()
	os.WriteFile(filepath.Join(ctx, "Dockerfile"), []byte("FROM busybox\nRUN echo a > /a\nCOPY f /f\nRUN cat /f /a > /b\n"), 0o644)
	os.WriteFile(filepath.Join(ctx, "f"), []byte("f\n"), 0o644)
	var wg sync.WaitGroup
	errs := make(chan string, 4)
	for i := range 4 {
		wg.Go(func() {
			if _, x, code := e.try("build", "-q", "-t", fmt.Sprintf("same:%d", i), ctx); code != 0 {
				errs <- x
			}
		})
	}
	wg.Wait()
	close(errs)
	for x := range errs {
		t.Error(x)
	}
	for i := range 4 {
		if out := e.keg("run", "--rm", fmt.Sprintf("same:%d", i), "cat", "/b"); out != "f\na" {
			t.Errorf("same:%d: %q", i, out)
		}
	}
	e.keg("system", "prune", "-af")
}

// A build killed at any moment leaves nothing half-made; the next one is right.
func TestKilledBuild(t *testing.T) {
	e := newEngine(t)
	ctx := t.TempDir()
	os.WriteFile(filepath.Join(ctx, "Dockerfile"), []byte("FROM busybox\nRUN echo a > /a; sleep 0.2\nRUN echo b > /b; sleep 0.2\nRUN cat /a /b > /c\n"), 0o644)
	e.keg("pull", "-q", "busybox")
	for _, after := range []time.Duration{20, 60, 120, 200, 280, 350, 420} {
		cmd := e.command("build", "-q", "-t", "killed", ctx)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
	}
	e.keg("build", "-q", "-t", "killed", ctx)
	if out := e.keg("run", "--rm", "killed", "cat", "/c"); out != "a\nb" {
		t.Errorf("%q", out)
	}
	e.keg("system", "prune", "-af")
	for _, dir := range []string{"active", "blobs/sha256", "layers"} {
		left, _ := filepath.Glob(filepath.Join(e.state, "root", dir, "[^.]*"))
		if len(left) > 0 {
			t.Errorf("%s holds %v after everything was pruned", dir, left)
		}
	}
}

// One name and one port, used again at once, never fail.
func TestSameNameAndPortInALoop(t *testing.T) {
	e := newEngine(t)
	e.keg("pull", "-q", "busybox")
	n := 40
	if os.Getenv("KEG_SOAK") != "" {
		n = 500
	}
	for i := range n {
		if _, errs, code := e.try("run", "--rm", "--name", "loop", "-p", "127.0.0.1:18080:80", "-v", "loop:/data", "busybox", "true"); code != 0 {
			t.Fatalf("round %d: exit %d: %s", i, code, errs)
		}
	}
	e.keg("volume", "rm", "loop")
	e.keg("rmi", "busybox")
}
