package api

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// house is keg serve on directories of its own, and Docker's own client to drive it.
type house struct {
	t         *testing.T
	dir, bin  string
	docker    string
	server    *exec.Cmd
	serverLog bytes.Buffer
}

func newHouse(t *testing.T) *house {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: starts containers")
	}
	docker, err := exec.LookPath("docker")
	if err != nil {
		t.Skip("needs Docker's own client: not installed")
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Skipf("needs ip(8): %v: %s", err, out)
	}
	dir, err := os.MkdirTemp("", "keg") // short, for the socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &house{t: t, dir: dir, bin: filepath.Join(dir, "keg"), docker: docker}
	build := exec.Command("go", "build", "-o", h.bin, "keg/cmd/keg")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build keg: %v\n%s", err, out)
	}
	if out, err := exec.Command(docker, "--version").Output(); err != nil || !strings.HasPrefix(string(out), "Docker version") {
		t.Skipf("needs Docker's own client: %s says %q", docker, out)
	}
	h.serve()
	t.Cleanup(h.clean)
	return h
}

func (h *house) sock() string { return filepath.Join(h.dir, "run", "keg.sock") }

func (h *house) keg(args ...string) *exec.Cmd {
	return exec.Command(h.bin, append([]string{"--root", filepath.Join(h.dir, "root"), "--run-root", filepath.Join(h.dir, "run")}, args...)...)
}

func (h *house) serve() {
	h.t.Helper()
	h.server = h.keg("serve")
	h.server.Stdout, h.server.Stderr = &h.serverLog, &h.serverLog
	if err := h.server.Start(); err != nil {
		h.t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, code := h.try("", "version", "--format", "{{.Server.APIVersion}}"); code == 0 {
			return
		}
	}
	h.t.Fatalf("the server does not answer: %s", h.serverLog.String())
}

func (h *house) clean() {
	out, _ := h.keg("ps", "-aq").Output()
	for _, id := range strings.Fields(string(out)) {
		_ = h.keg("rm", "-f", id).Run()
	}
	_ = h.server.Process.Signal(syscall.SIGTERM)
	_ = h.server.Wait()
	if strings.Contains(h.serverLog.String(), "panic") || strings.Contains(h.serverLog.String(), "superfluous") {
		h.t.Errorf("the server complains:\n%s", h.serverLog.String())
	}
}

// try runs docker and returns what it wrote, both streams, and its exit status.
func (h *house) try(stdin string, args ...string) (string, int) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, h.docker, args...)
	c.Env = []string{"DOCKER_HOST=unix://" + h.sock(), "DOCKER_CONFIG=" + h.dir, "DOCKER_BUILDKIT=0", "PATH=" + os.Getenv("PATH"), "HOME=" + h.dir}
	c.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Run(); err != nil && c.ProcessState == nil {
		h.t.Fatal(err)
	}
	return strings.TrimSpace(out.String()), c.ProcessState.ExitCode()
}

// want runs docker and compares.
func (h *house) want(code int, text string, args ...string) {
	h.t.Helper()
	h.wantFrom("", code, text, args...)
}

func (h *house) wantFrom(stdin string, code int, text string, args ...string) {
	h.t.Helper()
	out, got := h.try(stdin, args...)
	if got != code || !strings.Contains(out, text) {
		h.t.Errorf("docker %s: status %d, want %d; output lacks %q:\n%s", strings.Join(args, " "), got, code, text, out)
	}
}

// TestDockerClient is the tour that a user of Docker makes.
func TestDockerClient(t *testing.T) {
	h := newHouse(t)
	h.want(0, "hi there", "run", "--rm", "keg/shell", "echo", "hi there")
	t.Run("run", func(t *testing.T) {
		h.t = t
		h.want(3, "err", "run", "--rm", "keg/shell", "sh", "-c", "echo err >&2; exit 3")
		h.wantFrom("typed\n", 0, "typed", "run", "--rm", "-i", "keg/shell", "cat")
		h.want(127, "executable file not found", "run", "--rm", "keg/shell", "nosuch")
		if out, code := h.try("", "ps", "-aq"); code != 0 || out != "" {
			t.Errorf("--rm left %q", out)
		}
		for range 5 { // a program that ends at once still tells its code
			h.want(7, "", "run", "--rm", "keg/shell", "sh", "-c", "exit 7")
		}
		big := strings.Repeat("0123456789abcdef\n", 1<<16)
		if out, code := h.try(big, "run", "--rm", "-i", "keg/shell", "cat"); code != 0 || out != strings.TrimSpace(big) {
			t.Errorf("1 MiB through cat: %d bytes, status %d", len(out), code)
		}
	})
	t.Run("life", func(t *testing.T) {
		h.t = t
		h.want(0, "", "run", "-d", "--name", "web", "--label", "a=b", "keg/shell", "sh", "-c", "echo out; echo err >&2; exec sleep 1000")
		h.want(0, "web", "ps", "--filter", "label=a=b", "--format", "{{.Names}}")
		h.want(0, "running 172.", "inspect", "-f", "{{.State.Status}} {{.NetworkSettings.IPAddress}}", "web")
		h.want(0, "inside", "exec", "web", "echo", "inside")
		h.wantFrom("x", 5, "x", "exec", "-i", "web", "sh", "-c", "cat; exit 5")
		h.want(127, "executable file not found", "exec", "web", "nosuch")
		h.want(0, "", "exec", "-d", "web", "sh", "-c", "echo detached > /tmp/d")
		h.want(0, "sleep", "top", "web")
		h.want(0, "err", "logs", "web")
		h.want(0, "web", "stats", "--no-stream", "--format", "{{.Name}}", "web")
		h.want(0, "", "pause", "web")
		h.want(0, "(Paused)", "ps")
		h.want(0, "", "unpause", "web")
		h.want(0, "", "rename", "web", "www")
		h.want(0, "", "stop", "-t", "0", "www")
		h.want(0, "", "start", "www")
		h.want(0, "", "restart", "-t", "0", "www")
		h.want(0, "", "kill", "www")
		h.want(0, "137", "wait", "www")
		h.want(0, "", "rm", "www")
		h.want(1, "No such container: www", "stop", "www")
	})
	t.Run("files", func(t *testing.T) {
		h.t = t
		h.want(0, "", "create", "--name", "box", "keg/shell", "true")
		file := filepath.Join(h.dir, "file")
		if err := os.WriteFile(file, []byte("content"), 0o644); err != nil {
			t.Fatal(err)
		}
		h.want(0, "", "cp", file, "box:/tmp/f")
		h.want(0, "A /tmp/f", "diff", "box")
		h.want(0, "", "cp", "box:/tmp/f", file+"2")
		if b, err := os.ReadFile(file + "2"); string(b) != "content" {
			t.Errorf("cp out: %q, %v", b, err)
		}
		h.want(0, "sha256:", "commit", "box", "kept")
		h.want(0, "content", "run", "--rm", "kept", "cat", "/tmp/f")
		h.want(0, "", "save", "-o", file, "kept")
		h.want(0, "Untagged: kept:latest", "rmi", "kept")
		h.want(0, "Loaded image: kept:latest", "load", "-i", file)
		h.want(0, "", "rm", "box")
	})
	t.Run("build", func(t *testing.T) {
		h.t = t
		dir := filepath.Join(h.dir, "ctx")
		if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		write := func(name, text string) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		write("Dockerfile", "FROM keg/shell\nARG WORD\nRUN echo $WORD > /word\nCOPY sub/file /file\nCMD cat /word /file\n")
		write("sub/file", "of the context\n")
		h.want(0, "Successfully tagged mine:latest", "build", "-t", "mine", "--build-arg", "WORD=spoken", dir)
		h.want(0, "Using cache", "build", "-t", "mine", "--build-arg", "WORD=spoken", dir)
		h.want(0, "spoken\nof the context", "run", "--rm", "mine")
		h.want(0, "sha256:", "build", "-q", dir)
		h.want(0, "COPY sub/file", "history", "--no-trunc", "mine")
		write("Bad", "FROM keg/shell\nRUN exit 9\n")
		h.want(9, "returned a non-zero code: 9", "build", "-f", filepath.Join(dir, "Bad"), dir)
		h.want(0, "Untagged: mine:latest", "rmi", "-f", "mine")
		if left, _ := os.ReadDir(filepath.Join(h.dir, "root", "contexts")); len(left) != 0 {
			t.Errorf("contexts are left: %v", left)
		}
	})
	t.Run("objects", func(t *testing.T) {
		h.t = t
		h.want(0, "v1", "volume", "create", "v1")
		h.want(0, "", "run", "--rm", "-v", "v1:/d", "keg/shell", "sh", "-c", "echo kept > /d/f")
		h.want(0, "kept", "run", "--rm", "-v", "v1:/d", "keg/shell", "cat", "/d/f")
		h.want(0, "v1", "volume", "rm", "v1")
		h.want(0, "", "network", "create", "n1")
		h.want(0, "", "run", "-d", "--name", "peer", "--network", "n1", "keg/shell", "sleep", "100")
		h.want(0, "peer", "network", "inspect", "n1")
		h.want(0, "", "network", "connect", "bridge", "peer")
		h.want(0, "", "network", "disconnect", "bridge", "peer")
		h.want(0, "", "rm", "-f", "peer")
		h.want(0, "n1", "network", "prune", "-f")
		h.want(0, "Images", "system", "df")
		h.want(0, "container destroy", "events", "--since", "5m", "--until", "0s")
		h.want(1, "not a swarm manager", "service", "ls")
	})
	// The server dies; what ran goes on, and the next server knows it.
	t.Run("killed", func(t *testing.T) {
		h.t = t
		h.want(0, "", "run", "-d", "--name", "survivor", "keg/shell", "sleep", "1000")
		if err := h.server.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = h.server.Wait()
		h.serve()
		h.want(0, "running", "inspect", "-f", "{{.State.Status}}", "survivor")
		h.want(0, "alive", "exec", "survivor", "echo", "alive")
		h.want(0, "", "rm", "-f", "survivor")
	})
}
