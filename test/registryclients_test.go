package test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/crane"
)

// servedRegistry is keg registry serve, with a configuration.
type servedRegistry struct {
	host, dir string
	cmd       *exec.Cmd
	end       func() // asks it to stop and waits
}

// serveRegistry starts one on a free port; its log shows when the test fails.
func serveRegistry(t *testing.T, conf string) *servedRegistry {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	r := &servedRegistry{host: fmt.Sprintf("localhost:%d", port), dir: t.TempDir()}
	file := filepath.Join(r.dir, "keg.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(r.dir, "users"), []byte("alice:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"), 0o600) // "secret"
	r.cmd = exec.Command(filepath.Join(bin, "keg"), "registry", "serve", "--config", file, "--addr", fmt.Sprintf("127.0.0.1:%d", port))
	r.cmd.Env = append(os.Environ(), "KEG_ROOT="+r.dir+"/engine", "KEG_RUN_ROOT="+r.dir+"/run", "HOME="+r.dir)
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var log bytes.Buffer
	r.cmd.Stdout, r.cmd.Stderr = &log, &log
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.end = sync.OnceFunc(func() {
		r.cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(15*time.Second, func() { r.cmd.Process.Kill() })
		if err := r.cmd.Wait(); err != nil {
			t.Errorf("the registry ended with %v", err)
		}
		kill.Stop()
	})
	t.Cleanup(func() {
		r.end()
		if t.Failed() {
			t.Logf("%s", log.Bytes()[max(0, log.Len()-4000):])
		}
	})
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			c.Close()
			return r
		}
		if time.Now().After(end) {
			t.Fatal("the registry does not listen")
		}
	}
}

const publicPull = "dir store\nhtpasswd users\nallow ** anyone pull users push\nallow private/** alice all\nallow ** alice all\n"

// TestClientsOfOurRegistry: Docker's engine, containerd's ctr and crane log in, push and pull, and each pulls what the
// others have pushed. (skopeo does in internal/registry; podman is not among the packages of the tests.)
func TestClientsOfOurRegistry(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: Docker's engine does")
	}
	if testing.Short() {
		t.Skip("starting Docker's engine is not short")
	}
	for _, p := range []string{"dockerd", "containerd", "ctr", "docker"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip("needs Docker's engine: ", err)
		}
	}
	r := serveRegistry(t, publicPull)
	d := startDockerdIn(t, 0, "--bridge", "none", "--storage-driver", "vfs")
	d.must(busyboxTar(t), "import", "-c", `CMD ["/bin/sh"]`, "-", r.host+"/team/docker:1")
	id := strings.TrimSpace(d.must(nil, "inspect", "-f", "{{.Id}}", r.host+"/team/docker:1"))

	// Docker: refused, logged in, pushed, pulled without an account.
	if out, code := d.docker(nil, "push", r.host+"/team/docker:1"); code == 0 || !strings.Contains(out, "denied") && !strings.Contains(out, "unauthorized") && !strings.Contains(out, "no basic auth") {
		t.Errorf("a push without an account: %d\n%s", code, out)
	}
	d.must(bytes.NewReader([]byte("secret")), "login", "-u", "alice", "--password-stdin", r.host)
	if out := d.must(nil, "push", r.host+"/team/docker:1"); !strings.Contains(out, "1: digest: sha256:") {
		t.Errorf("%s", out)
	}
	if out := d.must(nil, "push", r.host+"/team/docker:1"); !strings.Contains(out, "Layer already exists") {
		t.Errorf("%s", out)
	}
	d.must(nil, "tag", r.host+"/team/docker:1", r.host+"/team/mounted:1")
	if out := d.must(nil, "push", r.host+"/team/mounted:1"); !strings.Contains(out, "Mounted from team/docker") {
		t.Errorf("%s", out)
	}
	d.must(nil, "tag", r.host+"/team/docker:1", r.host+"/private/docker:1")
	d.must(nil, "push", r.host+"/private/docker:1")
	d.must(nil, "logout", r.host)
	d.must(nil, "rmi", r.host+"/team/docker:1", r.host+"/team/mounted:1", r.host+"/private/docker:1")
	d.must(nil, "pull", r.host+"/team/docker:1")
	if got := strings.TrimSpace(d.must(nil, "inspect", "-f", "{{.Id}}", r.host+"/team/docker:1")); got != id {
		t.Errorf("came back as %s, not %s", got, id)
	}

	// containerd.
	c := startContainerd(t)
	c.must("images", "pull", "--plain-http", "--snapshotter", "native", r.host+"/team/docker:1")
	if out, code := c.ctr("images", "push", "--plain-http", r.host+"/team/ctr:1", r.host+"/team/docker:1"); code == 0 {
		t.Errorf("ctr pushes without an account: %s", out)
	}
	c.must("images", "push", "--plain-http", "--user", "alice:secret", r.host+"/team/ctr:1", r.host+"/team/docker:1")

	// crane's library, which its command is a wrapper of.
	alice := crane.WithAuth(&authn.Basic{Username: "alice", Password: "secret"})
	if err := crane.Copy(r.host+"/team/ctr:1", r.host+"/team/crane:1", crane.Insecure); err == nil {
		t.Error("crane pushes without an account")
	}
	if err := crane.Copy(r.host+"/team/ctr:1", r.host+"/team/crane:1", crane.Insecure, alice); err != nil {
		t.Error(err)
	}
	if err := crane.Tag(r.host+"/team/crane:1", "2", crane.Insecure, alice); err != nil {
		t.Error(err)
	}
	if tags, err := crane.ListTags(r.host+"/team/crane", crane.Insecure); err != nil || !slices.Equal(tags, []string{"1", "2"}) {
		t.Error(tags, err)
	}
	repos, err := crane.Catalog(r.host, crane.Insecure, alice)
	if err != nil || !slices.Contains(repos, "team/crane") {
		t.Error(repos, err)
	}
	want, err := crane.Digest(r.host+"/team/docker:1", crane.Insecure)
	if err != nil {
		t.Error(err)
	}
	for _, name := range []string{"/team/ctr:1", "/team/crane:2", "/team/mounted:1"} {
		if got, err := crane.Digest(r.host+name, crane.Insecure); err != nil || got != want {
			t.Errorf("%s is %s, not %s: %v", name, got, want, err)
		}
		d.must(nil, "pull", r.host+name)
	}
	im, err := crane.Pull(r.host+"/team/crane:1", crane.Insecure)
	if err == nil {
		var layers int
		if ls, lerr := im.Layers(); lerr == nil {
			layers = len(ls)
		}
		if conf, cerr := im.ConfigName(); cerr != nil || conf.String() != id || layers != 1 {
			t.Errorf("crane pulled %v with %d layers: %v", conf, layers, cerr)
		}
	} else {
		t.Error(err)
	}
	if err := crane.Delete(r.host+"/team/crane@"+want, crane.Insecure, alice); err != nil {
		t.Error(err)
	}
	if _, err := crane.Digest(r.host+"/team/crane:1", crane.Insecure); err == nil {
		t.Error("still there after crane's delete")
	}

	// keg pulls what each has pushed.
	e := newEngine(t)
	for _, name := range []string{"/team/docker:1", "/team/ctr:1", "/team/mounted:1"} {
		e.keg("pull", "-q", r.host+name)
		if got := e.keg("image", "inspect", "-f", "{{.Id}}", r.host+name); got != id {
			t.Errorf("%s is %s here, not %s", name, got, id)
		}
	}
}

// A pull that was killed goes on where it was: the registry is asked for the rest, by Range, and for nothing twice.
func TestKilledPullGoesOn(t *testing.T) {
	e := newEngine(t)
	r := serveRegistry(t, "dir store\n")
	name := r.host + "/large:1"
	pushRandom(t, name, 64<<20)
	slow := newThrottle(t, r.host, 24<<20)
	defer slow.close()
	through := slow.host + "/large:1"
	cmd := e.command("pull", "-q", through)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slow.waitFor(8 << 20)
	cmd.Process.Kill()
	cmd.Wait()
	before := slow.blobBytes()
	slow.rate.Store(0)
	e.keg("pull", "-q", through)
	total := slow.blobBytes()
	if total > 64<<20+8<<20 {
		t.Errorf("%d bytes of blobs were sent for 64 MiB, %d of them before the kill", total, before)
	}
	if got := slow.ranges(); len(got) == 0 {
		t.Error("nothing was asked for by Range")
	}
	if out := e.keg("system", "check"); strings.Contains(out, "damaged") {
		t.Error(out)
	}
}

// Ten processes pull one image at once: each blob is fetched once.
func TestTenPullsFetchOnce(t *testing.T) {
	e := newEngine(t)
	r := serveRegistry(t, "dir store\n")
	pushRandom(t, r.host+"/shared:1", 8<<20)
	slow := newThrottle(t, r.host, 16<<20)
	defer slow.close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	done := make(chan string, 10)
	for range 10 {
		go func() {
			cmd := exec.CommandContext(ctx, filepath.Join(bin, "keg"), "pull", "-q", slow.host+"/shared:1")
			cmd.Env = e.env
			out, err := cmd.CombinedOutput()
			if err != nil {
				out = fmt.Appendf(out, "%v", err)
			} else {
				out = nil
			}
			done <- string(out)
		}()
	}
	for range 10 {
		if out := <-done; out != "" {
			t.Error(out)
		}
	}
	for path, n := range slow.fetches() {
		if n != 1 {
			t.Errorf("%s was fetched %d times", path, n)
		}
	}
}
