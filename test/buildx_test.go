//go:build buildx

package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// buildx is Docker's client with buildx as its plugin, and keg serve.
type buildx struct {
	t               *testing.T
	sock, root, run string
	config          string
}

func startBuildx(t *testing.T) *buildx {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: images are read from the store")
	}
	plugin := os.Getenv("KEG_TEST_BUILDX")
	b := &buildx{t: t, sock: startServe(t), config: t.TempDir()}
	b.run = filepath.Dir(b.sock)
	b.root = filepath.Join(filepath.Dir(b.run), "root")
	plugins := filepath.Join(b.config, "cli-plugins")
	if err := os.Mkdir(plugins, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(plugin, filepath.Join(plugins, "docker-buildx")); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *buildx) docker(args ...string) *exec.Cmd {
	cmd := exec.Command(dockerClients(b.t)[0].path, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.config, "DOCKER_CONFIG=" + b.config, "DOCKER_HOST=unix://" + b.sock}
	return cmd
}

func (b *buildx) keg(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(bin, "keg"), append([]string{"--root", b.root, "--run-root", b.run}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.config, "DOCKER_CONFIG=" + b.config}
	return cmd
}

// TestBuildxBuild has buildx build through keg serve, and then keg build, which finds each step in the cache and makes the
// very same image, if the first had the same files and options.
func TestBuildxBuild(t *testing.T) {
	b := startBuildx(t)
	dir := t.TempDir()
	writeSessionFiles(t, dir)
	for _, c := range []struct {
		what  string
		job   buildJob
		words string // in what both write
	}{
		{"a tree", buildJob{flags: []string{"--build-arg", "WORD=spoken", "--label", "l=m"}}, ""},
		{"a stage", buildJob{flags: []string{"--target", "tools"}}, ""},
		{"an ignore file of its own", buildJob{flags: []string{"-f", filepath.Join(dir, "Own")}}, ""},
		{"a Dockerfile on stdin", buildJob{flags: []string{"-f", "-"}, stdin: []byte("FROM scratch\nCOPY app /x\n")}, ""},
		{"a Dockerfile without a context", buildJob{context: "-", stdin: []byte("FROM scratch\nLABEL a=b\nWORKDIR /w\n")}, ""},
		{"a command that fails", buildJob{flags: []string{"-f", filepath.Join(dir, "Failing")}}, "some words"},
		{"its code", buildJob{flags: []string{"-f", filepath.Join(dir, "Failing")}}, "exit code: 9"},
		{"its place", buildJob{flags: []string{"-f", filepath.Join(dir, "Failing")}}, ">>> RUN echo some words; exit 9"},
		{"a file that is not there", buildJob{flags: []string{"-f", filepath.Join(dir, "Wrong")}}, "not found"},
		{"an unknown stage", buildJob{flags: []string{"--target", "none"}}, "none"},
	} {
		t.Run(c.what, func(t *testing.T) {
			j := c.job
			j.tag = "tagged"
			if j.context == "" {
				j.context = dir
			}
			build := func(cmd *exec.Cmd, iid string) *built {
				r, err := j.run(cmd, iid)
				if err != nil {
					t.Fatal(err)
				}
				if !strings.Contains(r.out, c.words) {
					t.Errorf("%q is not in:\n%s", c.words, r.out)
				}
				return r
			}
			iid := filepath.Join(t.TempDir(), "iid")
			got := build(b.docker(append([]string{"buildx"}, j.args(iid)...)...), iid)
			want := build(b.keg(j.args(iid)...), iid)
			if got.code != want.code || got.id != want.id || (want.code == 0) != (want.id != "") {
				t.Errorf("%d %s, keg build: %d %s\n%s\nkeg build: %s", got.code, got.id, want.code, want.id, got.out, want.out)
			}
			if want.code == 0 && strings.Contains(want.out, "exporting") && strings.Contains(want.out, "RUN") && !strings.Contains(want.out, "CACHED") {
				t.Errorf("keg build ran the steps again:\n%s", want.out)
			}
		})
	}
}
