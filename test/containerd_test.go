package test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestContainerdDrivesUs: containerd runs, enters, freezes and ends containers with keg as their runtime.
func TestContainerdDrivesUs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: containerd does")
	}
	if testing.Short() {
		t.Skip("starting containerd is not short")
	}
	for _, p := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip("needs containerd to compare with: ", err)
		}
	}
	c := startContainerd(t)
	const path = "PATH=/bin"
	for _, r := range []struct {
		args []string
		want string
		code int
	}{
		{[]string{"--env", path, "sh", "-c", "id -u; hostname | wc -c; exit 7"}, "0\n", 7},
		{[]string{"--env", path, "--cwd", "/tmp", "--env", "A=b", "sh", "-c", "id -u; pwd; echo $A"}, "0\n/tmp\nb\n", 0},
		{[]string{"--env", path, "--read-only", "sh", "-c", "echo x 2>/dev/null > /x || echo refused"}, "refused\n", 0},
		{[]string{"--env", path, "--mount", "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro", "--memory-limit", "67108864", "sh", "-c", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true"}, "67108864\n", 0},
		{[]string{"--env", path, "--privileged", "sh", "-c", "test -w /proc/sys/kernel/hostname && echo may"}, "may\n", 0},
	} {
		out, code := c.run(r.args...)
		if !strings.HasPrefix(out, r.want) || code != r.code {
			t.Errorf("ctr run %q: %q and %d, not %q and %d", r.args, out, code, r.want, r.code)
		}
	}
	if out, code := c.run("nowhere"); code == 0 || !strings.Contains(out, "executable file not found") {
		t.Errorf("a missing program: %q %d", out, code)
	}
	c.life(t)
}

// life is one container over several commands.
func (c *containerd) life(t *testing.T) {
	c.must("run", "-d", "--env", "PATH=/bin", "--runc-binary", c.keg, "--runc-root", filepath.Join(c.dir, "runc"), "--rootfs", c.rootfs, "box", "sleep", "1000")
	if out, code := c.ctr("task", "exec", "--exec-id", "one", "box", "sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '; exit 3"); out != "sleep 1000 " || code != 3 {
		t.Errorf("exec: %q %d", out, code)
	}
	if out := c.must("task", "ls"); !strings.Contains(out, "RUNNING") {
		t.Errorf("%q", out)
	}
	c.must("task", "pause", "box")
	if out := c.must("task", "ls"); !strings.Contains(out, "PAUSED") {
		t.Errorf("%q", out)
	}
	c.must("task", "resume", "box")
	c.must("task", "metrics", "box")
	if out := c.must("task", "ps", "box"); strings.Count(out, "\n") < 2 {
		t.Errorf("%q", out)
	}
	if out, code := c.ctr("task", "rm", "box"); code == 0 {
		t.Errorf("a running task was removed: %q", out)
	}
	c.must("task", "kill", "--signal", "SIGKILL", "box")
	for end := time.Now().Add(20 * time.Second); !strings.Contains(c.must("task", "ls"), "STOPPED"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the task does not stop")
		}
	}
	c.must("task", "rm", "--force", "box")
	c.must("container", "rm", "box")
}

type containerd struct {
	t                      *testing.T
	sock, dir, keg, rootfs string
	n                      int
}

func startContainerd(t *testing.T) *containerd {
	dir, err := os.MkdirTemp("", "kc") // short: sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &containerd{t: t, dir: dir, sock: filepath.Join(dir, "sock"), keg: filepath.Join(dir, "keg-oci"), rootfs: filepath.Join(dir, "rootfs")}
	keg, err := exec.LookPath(filepath.Join(bin, "keg"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Symlink(keg, c.keg), untar(busyboxTar(t), c.rootfs)); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "config.toml")
	os.WriteFile(config, []byte("version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n"), 0o600)
	var log bytes.Buffer
	cmd := exec.Command("sh", "-c", `mount -t proc proc /proc && exec "$@"`, "sh", "containerd", "--config", config, "--root", filepath.Join(dir, "root"),
		"--state", filepath.Join(dir, "state"), "--address", c.sock)
	cmd.Stdout, cmd.Stderr = &log, &log
	// With a pid namespace of its own nothing that it starts outlives it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(15*time.Second, func() { cmd.Process.Kill() })
		cmd.Wait()
		kill.Stop()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if _, code := c.ctr("version"); code == 0 {
			return c
		}
		if time.Now().After(end) {
			t.Fatal("containerd does not answer")
		}
	}
}

func (c *containerd) ctr(args ...string) (string, int) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ctr", append([]string{"--address", c.sock}, args...)...)
	out, _ := cmd.CombinedOutput()
	return string(out), cmd.ProcessState.ExitCode()
}

func (c *containerd) run(args ...string) (string, int) {
	c.n++
	flags := []string{"run", "--rm", "--runc-binary", c.keg, "--runc-root", filepath.Join(c.dir, "runc"), "--rootfs"}
	var words []string
	for len(args) > 0 && strings.HasPrefix(args[0], "--") {
		n := 2
		if args[0] == "--read-only" || args[0] == "--privileged" {
			n = 1
		}
		flags, args = append(flags[:1:1], append(args[:n:n], flags[1:]...)...), args[n:]
	}
	words = append(flags, c.rootfs, "c"+string(rune('a'+c.n)))
	return c.ctr(append(words, args...)...)
}

func (c *containerd) must(args ...string) string {
	c.t.Helper()
	out, code := c.ctr(args...)
	if code != 0 {
		c.t.Errorf("ctr %q: %d\n%s", args, code, out)
	}
	return out
}

func untar(r io.Reader, to string) error {
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		p := filepath.Join(to, h.Name)
		switch h.Typeflag {
		case tar.TypeDir:
			err = errors.Join(os.MkdirAll(p, 0o755), os.Chmod(p, os.FileMode(h.Mode&0o777)|os.ModeSticky))
		case tar.TypeSymlink:
			err = os.Symlink(h.Linkname, p)
		default:
			var b []byte
			if b, err = io.ReadAll(tr); err == nil {
				err = os.WriteFile(p, b, os.FileMode(h.Mode))
			}
		}
		if err != nil {
			return err
		}
	}
}
