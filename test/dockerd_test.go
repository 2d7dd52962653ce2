package test

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestDockerDrivesUs: Docker's own engine, with containerd below it, runs and enters containers with keg
// as their runtime.
func TestDockerDrivesUs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: Docker's engine does")
	}
	if testing.Short() {
		t.Skip("starting Docker's engine is not short")
	}
	for _, p := range []string{"dockerd", "containerd", "containerd-shim-runc-v2", "docker"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip("needs Docker's engine to compare with: ", err)
		}
	}
	d := startDockerOverKeg(t)
	d.must(busyboxTar(t), "import", "-", "busy")
	// The name goes by the image's command line, which must not matter to the runtime's.
	for _, c := range []struct {
		args []string
		want string
		code int
	}{
		{[]string{"run", "--rm", "busy", "sh", "-c", "id -u; hostname | wc -c; exit 7"}, "0\n13\n", 7},
		{[]string{"run", "--rm", "-u", "1000:1000", "-w", "/tmp", "-e", "A=b", "busy", "sh", "-c", "id -u; pwd; echo $A"}, "1000\n/tmp\nb\n", 0},
		{[]string{"run", "--rm", "-t", "busy", "sh", "-c", "test -t 0 && tty"}, "/dev/pts/0\r\n", 0},
		{[]string{"run", "--rm", "-m", "64m", "busy", "sh", "-c", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true"}, "67108864\n", 0},
		{[]string{"run", "--rm", "--read-only", "busy", "sh", "-c", "echo x 2>/dev/null > /x || echo refused"}, "refused\n", 0},
	} {
		out, code := d.docker(nil, c.args...)
		if out != c.want || code != c.code {
			t.Errorf("docker %q: %q and %d, not %q and %d", c.args, out, code, c.want, c.code)
		}
	}
	if out, code := d.docker(nil, "run", "--rm", "busy", "nowhere"); code != 127 || !strings.Contains(out, "executable file not found") {
		t.Errorf("a missing program: %q %d", out, code)
	}
	d.life(t)
}

// life is one container over several commands.
func (d *dockerEngine) life(t *testing.T) {
	d.must(nil, "run", "-d", "--name", "box", "busy", "sleep", "1000")
	if out, code := d.docker(nil, "exec", "box", "sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '; exit 3"); out != "sleep 1000 " || code != 3 {
		t.Errorf("exec: %q %d", out, code)
	}
	if out, code := d.docker(nil, "exec", "-t", "-u", "1000", "box", "sh", "-c", "tty; id -u"); out != "/dev/pts/0\r\n1000\r\n" || code != 0 {
		t.Errorf("exec -t: %q %d", out, code)
	}
	if out, code := d.docker(bytes.NewReader([]byte("words")), "exec", "-i", "box", "cat"); out != "words" || code != 0 {
		t.Errorf("exec -i: %q %d", out, code)
	}
	d.must(nil, "pause", "box")
	if out := d.must(nil, "inspect", "--format", "{{.State.Status}} {{.HostConfig.Runtime}}", "box"); out != "paused keg\n" {
		t.Errorf("%q", out)
	}
	d.must(nil, "unpause", "box")
	d.must(nil, "update", "--pids-limit", "77", "box")
	if out := d.must(nil, "exec", "box", "sh", "-c", "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; true"); out != "77\n" {
		t.Errorf("update: %q", out)
	}
	d.must(nil, "top", "box")
	d.must(nil, "stop", "-t", "1", "box")
	d.must(nil, "start", "box")
	d.must(nil, "kill", "box")
	if out := d.must(nil, "inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "box"); out != "exited 137\n" {
		t.Errorf("%q", out)
	}
	d.must(nil, "rm", "box")
}

type dockerEngine struct {
	t    *testing.T
	sock string
}

// startDockerOverKeg is Docker's engine with keg as the runtime.
func startDockerOverKeg(t *testing.T) *dockerEngine {
	keg, err := exec.LookPath(filepath.Join(bin, "keg"))
	if err != nil {
		t.Fatal(err)
	}
	runtime := filepath.Join(t.TempDir(), "keg-oci")
	if err := os.Symlink(keg, runtime); err != nil {
		t.Fatal(err)
	}
	return startDockerd(t, "--bridge", "none", "--storage-driver", "vfs", "--add-runtime", "keg="+runtime, "--default-runtime", "keg")
}

// startDockerd starts dockerd in namespaces of its own, all its files below one directory.
func startDockerd(t *testing.T, args ...string) *dockerEngine {
	t.Helper()
	return startDockerdIn(t, syscall.CLONE_NEWNET, args...)
}

// startDockerdIn is startDockerd with a network of its own, or with 0 in ours.
func startDockerdIn(t *testing.T, network uintptr, args ...string) *dockerEngine {
	t.Helper()
	// A Unix socket's address is short.
	dir, err := os.MkdirTemp("", "kd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	config := filepath.Join(dir, "daemon.json")
	os.WriteFile(config, []byte("{}"), 0o600)
	d := &dockerEngine{t, filepath.Join(dir, "sock")}
	var log bytes.Buffer
	cmd := exec.Command("dockerd", append([]string{"--config-file", config, "--data-root", d.data(), "--exec-root", filepath.Join(dir, "exec"), "--pidfile", filepath.Join(dir, "pid"),
		"-H", "unix://" + d.sock, "--iptables=false", "--ip-forward=false"}, args...)...)
	cmd.Stdout, cmd.Stderr = &log, &log
	// With a pid namespace of its own nothing that it starts outlives it, with a network of its own it bridges what it likes.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | network, Pdeathsig: syscall.SIGKILL}
	wrap := `mount -t proc proc /proc && echo 1 > /proc/sys/net/ipv4/ip_forward && ip link set lo up && exec "$@"`
	cmd.Path, cmd.Args = "/bin/sh", append([]string{"sh", "-c", wrap, "sh"}, cmd.Args...)
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
		if _, code := d.docker(nil, "version"); code == 0 {
			return d
		}
		if time.Now().After(end) {
			t.Fatal("Docker's engine does not answer")
		}
	}
}

func (d *dockerEngine) docker(stdin *bytes.Reader, args ...string) (string, int) {
	if args[0] == "run" { // there is no bridge
		args = append([]string{"run", "--network", "none"}, args[1:]...)
	}
	cmd := d.command(args...)
	if stdin != nil {
		cmd.Stdin = stdin
	}
	out, _ := cmd.CombinedOutput()
	return string(out), cmd.ProcessState.ExitCode()
}

func (d *dockerEngine) data() string { return filepath.Join(filepath.Dir(d.sock), "data") }

// command is the client of the same package as the engine.
func (d *dockerEngine) command(args ...string) *exec.Cmd {
	client := "/usr/bin/docker"
	if _, err := os.Stat(client); err != nil {
		client = "docker"
	}
	cmd := exec.Command(client, append([]string{"-H", "unix://" + d.sock}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Dir(d.sock), "DOCKER_CONFIG=" + filepath.Dir(d.sock)}
	return cmd
}

func (d *dockerEngine) must(stdin *bytes.Reader, args ...string) string {
	d.t.Helper()
	out, code := d.docker(stdin, args...)
	if code != 0 {
		d.t.Errorf("docker %q: %d\n%s", args, code, out)
	}
	return out
}

// busyboxTar is a root file system.
func busyboxTar(t *testing.T) *bytes.Reader {
	box, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs busybox-static: ", err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, d := range []string{"bin/", "etc/", "tmp/", "proc/", "sys/", "dev/"} {
		w.WriteHeader(&tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o1777})
	}
	w.WriteHeader(&tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(box))})
	w.Write(box)
	for _, n := range []string{"sh", "id", "hostname", "wc", "pwd", "echo", "test", "tty", "cat", "sleep", "tr"} {
		w.WriteHeader(&tar.Header{Name: "bin/" + n, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777})
	}
	w.Close()
	return bytes.NewReader(b.Bytes())
}
