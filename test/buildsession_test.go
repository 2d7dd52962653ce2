package test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// sessionFiles are the context; a directory ends in a slash, a target stands after " -> ".
var sessionFiles = map[string]string{
	"app/main":              "program",
	"app/conf/deep/er":      "deeper",
	"app/ünïcode":           "named",
	"app/link -> main":      "",
	"app/dangling -> /none": "",
	"app/empty/":            "",
	"app/big":               strings.Repeat("0123456789abcdef", 1<<16),
	"logs/a.log":            "ignored",
	"logs/keep.log":         "kept",
	"secret":                "not to be sent",
	".dockerignore":         "# what is not sent\nlogs/*\n!logs/keep.log\nsecret\n**/deep\n",
	"Dockerfile": `FROM scratch AS base
ADD root.tar /
FROM base AS tools
ARG WORD=none
LABEL word=$WORD
RUN echo "$WORD" > /word
FROM tools
ENV A=b
WORKDIR /srv
COPY --chown=7:8 . /srv/all/
COPY app/link app/main ./
RUN --mount=type=bind,source=app,target=/m cat /m/main > /fromMount
CMD ["cat", "/word"]
`,
	"Own":              "FROM scratch\nCOPY . /\n",
	"Own.dockerignore": "app\nroot.tar\n",
	"Secret":           "FROM scratch\nADD root.tar /\nRUN --mount=type=secret,id=s,required cat /run/secrets/s > /told\n",
	"Agent":            "FROM scratch\nADD root.tar /\nRUN --mount=type=ssh,required test -S $SSH_AUTH_SOCK && echo there > /told\n",
	"Failing":          "FROM scratch\nADD root.tar /\nRUN echo some words; exit 9\n",
	"Wrong":            "FROM scratch\nCOPY missing /\n",
	"Slow":             "FROM scratch\nADD root.tar /\nRUN echo begun; sleep 60\n",
}

func writeSessionFiles(t *testing.T, dir string) {
	t.Helper()
	old := time.Unix(oldFile-1000, 0)
	for name, text := range sessionFiles {
		name, target, link := strings.Cut(name, " -> ")
		p := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(p), 0o755)
		switch {
		case err != nil:
		case link:
			err = os.Symlink(target, p)
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(p, 0o755)
		default:
			err = os.WriteFile(p, []byte(text), 0o644)
			if err == nil {
				err = os.Chtimes(p, old, old)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]os.FileMode{"app/main": 0o755 | os.ModeSetuid, "app/big": 0o400} {
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(dir, "app/main"), filepath.Join(dir, "app/hard")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "root.tar"), clientRoot(t), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestBuildKitClient has Docker's own client, with DOCKER_BUILDKIT=1, build by Docker's engine and by keg serve: the
// context, ignore files, secrets and agents come from the client's session.
func TestBuildKitClient(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: Docker's engine does")
	}
	if testing.Short() {
		t.Skip("starting Docker's engine is not short")
	}
	for _, p := range []string{"dockerd", "containerd", "/usr/bin/docker"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip("needs Debian's Docker: ", err)
		}
	}
	dir := t.TempDir()
	writeSessionFiles(t, dir)
	agent, err := net.Listen("unix", filepath.Join(dir, "..", "agent"))
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	archive := packDir(t, dir)
	theirs := startBuildkit(t)
	ours := &dockerEngine{t, startServe(t)}
	root := filepath.Join(filepath.Dir(filepath.Dir(ours.sock)), "root")
	word := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(word, []byte("hidden"), 0o600); err != nil {
		t.Fatal(err)
	}
	places := []string{"/m", "/run", "/run/secrets", "/run/buildkit"} // of mounts; later BuildKits leave them out, too
	for _, c := range []struct {
		what  string
		job   buildJob
		words string // in what both write
	}{
		{"a tree", buildJob{flags: []string{"--build-arg", "WORD=spoken", "--label", "l=m"}}, ""},
		{"again", buildJob{flags: []string{"--build-arg", "WORD=spoken", "--label", "l=m"}}, "CACHED"},
		{"a stage", buildJob{flags: []string{"--target", "tools"}}, ""},
		{"an ignore file of its own", buildJob{flags: []string{"-f", filepath.Join(dir, "Own")}}, ""},
		{"a Dockerfile on stdin", buildJob{flags: []string{"-f", "-"}, stdin: []byte("FROM scratch\nCOPY app /x\n")}, ""},
		{"a Dockerfile without a context", buildJob{context: "-", stdin: []byte("FROM scratch\nLABEL a=b\nWORKDIR /w\n")}, ""},
		{"an archive on stdin", buildJob{context: "-", stdin: archive, flags: []string{"--target", "tools"}}, ""},
		{"a secret", buildJob{flags: []string{"-f", filepath.Join(dir, "Secret"), "--secret", "id=s,src=" + word}}, ""},
		{"no secret", buildJob{flags: []string{"-f", filepath.Join(dir, "Secret"), "--no-cache"}}, "not found"},
		{"an agent", buildJob{flags: []string{"-f", filepath.Join(dir, "Agent"), "--ssh", "default=" + agent.Addr().String()}}, ""},
		{"a command that fails", buildJob{flags: []string{"-f", filepath.Join(dir, "Failing")}}, "some words"},
		{"its code", buildJob{flags: []string{"-f", filepath.Join(dir, "Failing")}}, "exit code: 9"},
		{"a file that is not there", buildJob{flags: []string{"-f", filepath.Join(dir, "Wrong")}}, "not found"},
		{"no Dockerfile", buildJob{flags: []string{"-f", filepath.Join(dir, "None")}}, "no such file or directory"},
		{"an unknown stage", buildJob{flags: []string{"--target", "none"}}, "none"},
	} {
		t.Run(c.what, func(t *testing.T) {
			j := c.job
			j.tag, j.env = "tagged", []string{"DOCKER_BUILDKIT=1"}
			if j.context == "" {
				j.context = dir
			}
			iid := filepath.Join(t.TempDir(), "iid")
			want, err := theirs.build(&j)
			if err != nil {
				t.Fatal(err)
			}
			got, err := j.run(ours.command(j.args(iid)...), iid)
			if err == nil && got.code == 0 {
				err = got.read(root)
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, got.out)
			}
			if got.code != want.code || !strings.Contains(want.out, c.words) || !strings.Contains(got.out, c.words) {
				t.Fatalf("%d, and Docker %d; %q in both\n%s\nDocker: %s", got.code, want.code, c.words, got.out, want.out)
			}
			if got.code != 0 {
				return
			}
			for _, at := range got.tree.differ(want.tree) {
				if _, ok := got.tree[at]; !ok && slices.Contains(places, at) {
					continue
				}
				t.Errorf("%s: %s, Docker: %s", at, got.tree[at], want.tree[at])
			}
			gc, wc := got.imageConfig(), want.imageConfig()
			for _, at := range gc.differ(wc) {
				if !strings.HasPrefix(at, "history.") { // worded otherwise since
					t.Errorf("%s: %s, Docker: %s", at, gc[at], wc[at])
				}
			}
		})
	}
	quiet := func(d *dockerEngine) string {
		cmd := d.command("build", "-q", "--target", "tools", "--network", "none", dir)
		cmd.Env = append(cmd.Env, "DOCKER_BUILDKIT=1")
		out, err := cmd.CombinedOutput()
		if id := strings.TrimSpace(string(out)); err != nil || len(id) != len("sha256:")+64 || !strings.HasPrefix(id, "sha256:") {
			return fmt.Sprintf("%v %q", err, out)
		}
		return ""
	}
	if a, b := quiet(ours), quiet(theirs.dockerEngine); a != "" || b != "" {
		t.Errorf("quiet: %s; Docker: %s", a, b)
	}
	t.Run("a base of the client's account", func(t *testing.T) { sessionAccount(t, ours) })
	t.Run("a client that leaves", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		var out bytes.Buffer
		cmd := ours.command("build", "--progress", "plain", "--network", "none", "-f", filepath.Join(dir, "Slow"), dir)
		cmd.Env = append(cmd.Env, "DOCKER_BUILDKIT=1")
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		cmd.Stdout, cmd.Stderr = w, w
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w.Close()
		stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
		defer stop()
		for b := make([]byte, 4096); !strings.Contains(out.String(), " begun"); {
			n, err := r.Read(b)
			out.Write(b[:n])
			if err != nil {
				t.Fatalf("it does not begin: %s", out.String())
			}
		}
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
		contexts := filepath.Join(root, "contexts")
		for end := time.Now().Add(15 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if left, _ := os.ReadDir(contexts); len(left) == 0 {
				return
			} else if time.Now().After(end) {
				t.Fatalf("the build goes on: %v", left)
			}
		}
	})
}

// sessionAccount builds from a registry that wants an account, which only the client's config has.
func sessionAccount(t *testing.T, d *dockerEngine) {
	dir, addr := t.TempDir(), accountRegistry(t)
	config := filepath.Join(dir, "docker")
	auth := base64.StdEncoding.EncodeToString([]byte("me:word"))
	if err := errors.Join(os.Mkdir(config, 0o700), os.WriteFile(filepath.Join(config, "config.json"), []byte(`{"auths":{"`+addr+`":{"auth":"`+auth+`"}}}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	docker := func(config, stdin string, args ...string) (string, error) {
		cmd := d.command(args...)
		cmd.Env = append(cmd.Env, "DOCKER_BUILDKIT=1", "DOCKER_CONFIG="+config)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	base := addr + "/base"
	for _, args := range [][]string{{"build", "-t", base, "-"}, {"push", base}, {"rmi", base}} {
		if out, err := docker(config, "FROM scratch\nLABEL a=b\n", args...); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	if out, err := docker(dir, "FROM "+base+"\n", "build", "-"); err == nil || !strings.Contains(out, "authentication required") {
		t.Errorf("without an account: %v\n%s", err, out)
	}
	if out, err := docker(config, "FROM "+base+"\n", "build", "-"); err != nil {
		t.Errorf("with the account: %v\n%s", err, out)
	}
}

// accountRegistry is the address of a registry that wants an account: me with word.
func accountRegistry(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	users := filepath.Join(dir, "users")
	hash, err := bcrypt.GenerateFromPassword([]byte("word"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(users, append([]byte("me:"), hash...), 0o600); err != nil {
		t.Fatal(err)
	}
	reg := exec.Command(filepath.Join(bin, "keg"), "--root", filepath.Join(dir, "root"), "--run-root", filepath.Join(dir, "run"),
		"registry", "serve", "--addr", "127.0.0.1:0", "--htpasswd", users)
	out, err := reg.StdoutPipe()
	if err == nil {
		reg.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		err = reg.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reg.Process.Kill(); reg.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	_, addr, ok := strings.Cut(strings.TrimSpace(line), "listening on ")
	if err != nil || !ok {
		t.Fatalf("the registry says %q: %v", line, err)
	}
	return addr
}

// packDir packs a directory.
func packDir(t *testing.T, dir string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
