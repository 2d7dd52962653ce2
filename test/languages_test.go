package test

import (
	"archive/tar"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

var languages struct {
	once sync.Once
	err  error
}

// languageBases adds the images that Dockerfiles of programs stand on: Python and Node of
// Debian's packages, the Go that runs this test, and one with triggers.
func languageBases(t *testing.T) {
	t.Helper()
	languages.once.Do(func() {
		for _, b := range []func() (string, v1.Image, error){onbuildImage, pythonImage, pythonSlim, pythonFull, nodeImage, golangImage} {
			ref, img, err := b()
			if err == nil {
				dst, e := name.ParseReference(hub.addr+"/library/"+ref, name.Insecure)
				if err = e; err == nil {
					err = remote.Write(dst, img)
				}
			}
			if err != nil {
				languages.err = fmt.Errorf("%s: %w", ref, err)
				return
			}
		}
	})
	if languages.err != nil {
		t.Fatalf("make base images: %v (scripts/install-test-deps installs what they need)", languages.err)
	}
}

// copyDir adds the files below from that keep admits.
func (t tree) copyDir(p, from string, keep func(rel string, dir bool) bool) error {
	return filepath.WalkDir(from, func(at string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(from, at)
		if rel != "." && !keep(rel, d.IsDir()) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		to := filepath.Join(p, rel)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			t.dir(to, 0o755)
		case d.Type()&fs.ModeSymlink != 0:
			link, err := os.Readlink(at)
			if err != nil {
				return err
			}
			t.link(to, link)
		case d.Type().IsRegular():
			b, err := os.ReadFile(at)
			if err != nil {
				return err
			}
			t[to] = node{mode: int64(info.Mode().Perm()), kind: tar.TypeReg, data: b}
		}
		return nil
	})
}

func onbuildImage() (string, v1.Image, error) {
	const ref = "onbuild:latest"
	t, err := busyboxTree()
	if err != nil {
		return ref, nil, err
	}
	return t.image(ref, func(c *v1.Config) {
		c.Cmd = []string{"sh"}
		c.OnBuild = []string{"WORKDIR /app", "COPY . /app/", "RUN ls /app > /listed", "ENV TRIGGERED=yes"}
		c.Labels = map[string]string{"base": "onbuild"}
	})
}

func pythonImage() (string, v1.Image, error) {
	const ref = "python:latest"
	t, err := pythonTree()
	if err != nil {
		return ref, nil, err
	}
	return t.python(ref)
}

func (t tree) python(ref string) (string, v1.Image, error) {
	return t.image(ref, func(c *v1.Config) {
		c.Env = append(c.Env, "PYTHONDONTWRITEBYTECODE=1")
		c.Cmd = []string{"python3"}
	})
}

// pythonSlim and pythonFull are one Python, alone and with what a large base brings along.
func pythonSlim() (string, v1.Image, error) {
	t, err := pythonTree()
	if err != nil {
		return "", nil, err
	}
	return t.python("python:3-slim")
}

func pythonFull() (string, v1.Image, error) {
	t, err := pythonTree()
	for _, p := range []string{"git", "curl", "xz", "strace"} {
		if err == nil {
			err = t.program("usr/bin/"+p, "/usr/bin/"+p)
		}
	}
	if err != nil {
		return "", nil, err
	}
	return t.python("python:3")
}

func pythonTree() (tree, error) {
	t, err := busyboxTree()
	if err != nil {
		return nil, err
	}
	real, err := filepath.EvalSymlinks("/usr/bin/python3")
	if err != nil {
		return nil, err
	}
	version := filepath.Base(real)
	if err := t.program("usr/bin/"+version, real); err != nil {
		return nil, err
	}
	t.link("usr/bin/python3", version)
	want := map[string]bool{"encodings": true, "collections": true, "json": true, "importlib": true, "re": true, "lib-dynload": false}
	err = t.copyDir("usr/lib/"+version, "/usr/lib/"+version, func(rel string, dir bool) bool {
		if dir {
			return want[rel]
		}
		return strings.HasSuffix(rel, ".py")
	})
	if err != nil {
		return nil, err
	}
	return t, nil
}

func nodeImage() (string, v1.Image, error) {
	const ref = "node:latest"
	t, err := busyboxTree()
	if err != nil {
		return ref, nil, err
	}
	if err := t.program("usr/bin/node", "/usr/bin/node"); err != nil {
		return ref, nil, err
	}
	for _, dir := range []string{"acorn", "acorn-walk", "cjs-module-lexer", "undici"} { // Debian's node reads these
		if from := "/usr/share/nodejs/" + dir; exists(from) {
			if err := t.copyDir(from[1:], from, func(string, bool) bool { return true }); err != nil {
				return ref, nil, err
			}
		}
	}
	return t.image(ref, func(c *v1.Config) { c.Cmd = []string{"node"} })
}

func exists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}

// golangImage has the compiler and what a program without imports needs, with a warm
// build cache.
func golangImage() (string, v1.Image, error) {
	const ref = "golang:latest"
	t, err := busyboxTree()
	if err != nil {
		return ref, nil, err
	}
	out, err := exec.Command("go", "env", "GOROOT", "GOVERSION").Output()
	if err != nil {
		return ref, nil, err
	}
	goroot := strings.Fields(string(out))[0]
	dir, err := os.MkdirTemp("", "keg-go-")
	if err != nil {
		return ref, nil, err
	}
	defer os.RemoveAll(dir)
	os.WriteFile(filepath.Join(dir, "main.go"), []byte("package main\n\nfunc main() { println() }\n"), 0o644)
	cache := filepath.Join(dir, "cache")
	env := append(os.Environ(), "GOCACHE="+cache, "GOFLAGS=-trimpath", "CGO_ENABLED=0", "GO111MODULE=off", "GOTOOLCHAIN=local")
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "main"), filepath.Join(dir, "main.go"))
	build.Env = env
	if out, err := build.CombinedOutput(); err != nil {
		return ref, nil, fmt.Errorf("%w\n%s", err, out)
	}
	list := exec.Command("go", "list", "-deps", "runtime")
	list.Env = env
	deps, err := list.Output()
	if err != nil {
		return ref, nil, err
	}
	for pkg := range strings.FieldsSeq(string(deps)) {
		err := t.copyDir("usr/local/go/src/"+pkg, filepath.Join(goroot, "src", pkg), func(rel string, dir bool) bool {
			return !dir && !strings.HasSuffix(rel, "_test.go")
		})
		if err != nil {
			return ref, nil, err
		}
	}
	for _, p := range []string{"bin/go", "pkg/tool/linux_amd64/compile", "pkg/tool/linux_amd64/link", "pkg/tool/linux_amd64/asm"} {
		if err := t.program("usr/local/go/"+p, filepath.Join(goroot, p)); err != nil {
			return ref, nil, err
		}
	}
	for _, p := range []string{"VERSION", "go.env"} {
		b, err := os.ReadFile(filepath.Join(goroot, p))
		if err != nil {
			return ref, nil, err
		}
		t.file("usr/local/go/"+p, string(b))
	}
	if err := t.copyDir("usr/local/go/pkg/include", filepath.Join(goroot, "pkg/include"), func(string, bool) bool { return true }); err != nil {
		return ref, nil, err
	}
	if err := t.copyDir("root/.cache/go-build", cache, func(string, bool) bool { return true }); err != nil {
		return ref, nil, err
	}
	return t.image(ref, func(c *v1.Config) {
		c.Env = []string{"PATH=/usr/local/go/bin:/usr/bin:/bin", "GOFLAGS=-trimpath", "CGO_ENABLED=0", "GO111MODULE=off", "GOTOOLCHAIN=local"}
		c.Cmd = []string{"sh"}
		c.WorkingDir = "/go"
	})
}
