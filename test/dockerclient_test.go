package test

import (
	"archive/tar"
	"bytes"
	"context"
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

//go:embed dockerclient
var dockerClientFiles embed.FS

// clientDifference is a command whose output differs: why, and what keg writes.
type clientDifference struct{ why, want string }

// clientDifferences reads dockerclient/differences.txt: a reason, the commands that it is true of, what keg writes.
func clientDifferences(t *testing.T) map[string]clientDifference {
	t.Helper()
	b, err := dockerClientFiles.ReadFile("dockerclient/differences.txt")
	if err != nil {
		t.Fatal(err)
	}
	list := map[string]clientDifference{}
	why, command := "", ""
	for line := range strings.SplitSeq(string(b), "\n") {
		switch {
		case strings.HasPrefix(line, "# "):
			why = line[2:]
		case strings.HasPrefix(line, "$ "):
			command = line[2:]
			list[command] = clientDifference{why: why}
		case strings.HasPrefix(line, "\t"):
			d := list[command]
			d.want += line[1:] + "\n"
			list[command] = d
		}
	}
	return list
}

// TestDockerClientBesideDocker runs the commands of dockerclient/commands.txt with Docker's own client against Docker's
// engine and against keg serve, and compares both streams and the exit status.
func TestDockerClientBesideDocker(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: Docker's engine does")
	}
	if testing.Short() {
		t.Skip("starting Docker's engine is not short")
	}
	for _, p := range []string{"dockerd", "containerd", "docker"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip("needs Docker's engine and client: ", err)
		}
	}
	reviewed, reasons := clientDifferences(t), map[string]bool{}
	for _, d := range reviewed {
		reasons[d.why] = true
	}
	if len(reasons) > 15 {
		t.Errorf("%d reviewed differences are too many", len(reasons))
	}
	text, err := dockerClientFiles.ReadFile("dockerclient/commands.txt")
	if err != nil {
		t.Fatal(err)
	}
	var commands []string
	for line := range strings.SplitSeq(string(text), "\n") {
		if line != "" && line[0] != '#' {
			commands = append(commands, line)
		}
	}
	if len(commands) < 120 {
		t.Errorf("only %d commands", len(commands))
	}
	clients := dockerClients(t)
	if os.Getenv("KEG_TEST_ALL_CLIENTS") == "" {
		clients = clients[:1]
	}
	for _, client := range clients {
		t.Run(client.version, func(t *testing.T) {
			theirs := newClientRun(t, client.path, startDockerd(t, "--storage-driver", "overlay2").sock)
			ours := newClientRun(t, client.path, startServe(t))
			wants := make(chan string, len(commands))
			go func() {
				for _, c := range commands {
					wants <- theirs.run(c)
				}
			}()
			var gots []string
			for _, c := range commands {
				gots = append(gots, ours.run(c))
			}
			differ := 0
			for i, c := range commands {
				want, got := <-wants, gots[i]
				if want == got {
					continue
				}
				d, ok := reviewed[c]
				if ok && strings.TrimSpace(d.want) == strings.TrimSpace(got) {
					differ++
					continue
				}
				t.Errorf("$ %s\nDocker: %s\nkeg:    %s", c, want, got)
			}
			t.Logf("%d commands, %d with one of %d reviewed differences", len(commands), differ, len(reasons))
		})
	}
}

type dockerClient struct{ path, version string }

// dockerClients are the one on PATH and Debian's, when that is another.
func dockerClients(t *testing.T) (list []dockerClient) {
	first, _ := exec.LookPath("docker")
	for _, p := range []string{first, "/usr/bin/docker"} {
		out, err := exec.Command(p, "--version").Output()
		v, ok := strings.CutPrefix(string(out), "Docker version ")
		if err != nil || !ok {
			continue
		}
		v, _, _ = strings.Cut(v, ",")
		if !slices.ContainsFunc(list, func(c dockerClient) bool { return c.version == v }) {
			list = append(list, dockerClient{p, v})
		}
	}
	if len(list) == 0 {
		t.Skip("needs Docker's client")
	}
	return list
}

// startServe is keg serve on directories of its own; the answer is its socket.
func startServe(t *testing.T) string {
	t.Helper()
	state, err := os.MkdirTemp("", "ks") // short, for the socket
	if err != nil {
		t.Fatal(err)
	}
	before := host(state)
	keg := func(args ...string) *exec.Cmd {
		return exec.Command(filepath.Join(bin, "keg"), append([]string{"--root", filepath.Join(state, "root"), "--run-root", filepath.Join(state, "run")}, args...)...)
	}
	var log bytes.Buffer
	srv := keg("serve")
	srv.Stdout, srv.Stderr = &log, &log
	srv.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // also when the test is aborted
	if err := srv.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		out, _ := keg("ps", "-aq").Output()
		if ids := strings.Fields(string(out)); len(ids) > 0 {
			keg(append([]string{"rm", "-f"}, ids...)...).Run()
		}
		srv.Process.Signal(syscall.SIGTERM)
		srv.Wait()
		if left := settle(state, before); left != "" {
			t.Errorf("left on the host:\n%s", left)
		}
		os.RemoveAll(state)
		if t.Failed() || strings.Contains(log.String(), "panic") {
			t.Error(log.String())
		}
	})
	sock := filepath.Join(state, "run", "keg.sock")
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(sock); err == nil {
			return sock
		}
	}
	t.Fatalf("the server does not listen: %s", log.String())
	return ""
}

// clientRun is one client with one engine.
type clientRun struct{ dir, client, sock string }

func newClientRun(t *testing.T, client, sock string) *clientRun {
	r := &clientRun{t.TempDir(), client, sock}
	for _, name := range []string{"Dockerfile", "file.txt"} {
		b, err := dockerClientFiles.ReadFile("dockerclient/files/" + name)
		if err == nil {
			err = os.WriteFile(filepath.Join(r.dir, name), b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(r.dir, "root.tar"), clientRoot(t), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(r.dir, ".bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(client, filepath.Join(r.dir, ".bin", "docker")); err != nil {
		t.Fatal(err)
	}
	return r
}

// run returns what a command wrote and its exit status, without what differs from run to run.
func (r *clientRun) run(command string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, "sh", "-c", command)
	c.Dir = r.dir
	// The older of the two engines speaks 1.41: what the client shows depends on the version.
	c.Env = []string{"PATH=" + filepath.Join(r.dir, ".bin") + ":" + os.Getenv("PATH"), "HOME=" + r.dir, "DOCKER_CONFIG=" + filepath.Join(r.dir, ".docker"),
		"DOCKER_HOST=unix://" + r.sock, "DOCKER_API_VERSION=1.41", "DOCKER_BUILDKIT=0", "LC_ALL=C"}
	c.WaitDelay = time.Second
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	c.Run()
	return fmt.Sprintf("%d\n%s\n---\n%s", c.ProcessState.ExitCode(), plain(out.String(), r), plain(errs.String(), r))
}

// varying is what no two runs have in common.
var varying = []struct {
	re *regexp.Regexp
	to string
}{
	{regexp.MustCompile(`\b[0-9a-f]{64}\b`), "<id>"},
	{regexp.MustCompile(`\b[0-9a-f]{12}\b`), "<short>"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[0-9.]*(Z| [+-]\d{4} UTC)?`), "<time>"},
	{regexp.MustCompile(`(About a|Less than a|\d+) (second|minute)s?( ago)?`), "<age>"},
	{regexp.MustCompile(` +`), " "},
	// What the two clients say by themselves.
	{regexp.MustCompile(`(?m)^(DEPRECATED: .*| BuildKit is .*| environment-variable\.|(Run|See) 'docker run --help'.*|exit status 1|time="<time>" level=error msg="error waiting for container: context canceled")$`), ""}, // the last: a race of 20.10 with its engine
	{regexp.MustCompile(`(?m)^((docker: Error|no configured) .*)\.$`), "$1"},
	{regexp.MustCompile(`\n\n+`), "\n"},
	{regexp.MustCompile(`/tmp/[A-Za-z0-9/_.-]*`), "<tmp>"},
}

func plain(s string, r *clientRun) string {
	s = strings.NewReplacer(r.sock, "<sock>", r.dir, "<dir>", "\r", "").Replace(s)
	for _, v := range varying {
		s = v.re.ReplaceAllString(s, v.to)
	}
	return strings.TrimSpace(s)
}

// clientRoot is a root file system with busybox's programs.
func clientRoot(t *testing.T) []byte {
	t.Helper()
	box, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs busybox-static: ", err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, d := range []string{"bin/", "etc/", "tmp/", "proc/", "sys/", "dev/"} {
		w.WriteHeader(&tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o1777})
	}
	passwd := "root:x:0:0:root:/root:/bin/sh\n"
	w.WriteHeader(&tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(passwd))})
	w.Write([]byte(passwd))
	w.WriteHeader(&tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(box))})
	w.Write(box)
	for _, n := range strings.Fields("sh id hostname wc pwd echo test tty cat sleep tr env grep mount ip true ps ls head touch") {
		w.WriteHeader(&tar.Header{Name: "bin/" + n, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777})
	}
	w.Close()
	return b.Bytes()
}
