package builder

import (
	"encoding/pem"
	"errors"
	"io"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Stages that do not wait for one another run at once: each of these steps goes on when the other has begun.
func TestStagesRunAtOnce(t *testing.T) {
	w := newWorld(t)
	w.addImage("base", nil, "f=1")
	begun := map[string]chan struct{}{"one": make(chan struct{}), "two": make(chan struct{})}
	other := map[string]string{"one": "two", "two": "one"}
	w.runner = func(s Step, _ io.Writer) (int, error) {
		name := s.Args[2]
		if begun[name] == nil {
			return 0, nil
		}
		close(begun[name])
		select {
		case <-begun[other[name]]:
			return 0, os.WriteFile(filepath.Join(w.snaps.Upper(s.Key), name), nil, 0o644)
		case <-time.After(20 * time.Second):
			return 0, errors.New(other[name] + " has not begun")
		}
	}
	r := w.mustBuild("FROM base AS a\nRUN one\nFROM base AS b\nRUN two\nFROM base\nCOPY --from=a /one /\nCOPY --from=b /two /\n")
	if !w.has(r, "one") || !w.has(r, "two") {
		t.Error("not both were copied")
	}
}

// The cache is keyed by content: another project, another directory, another Dockerfile of the same words share it.
func TestCacheIsSharedBetweenProjects(t *testing.T) {
	w := newWorld(t)
	w.addImage("base", nil, "f=1")
	w.runner = func(s Step, _ io.Writer) (int, error) {
		return 0, os.WriteFile(filepath.Join(w.snaps.Upper(s.Key), "made"), nil, 0o644)
	}
	writeFiles(t, w.dir, "src/a=1", "src/b=2", "other=3")
	w.mustBuild("FROM base\nCOPY src /src\nRUN make\n")
	w.dir = t.TempDir()
	writeFiles(t, w.dir, "src/a=1", "src/b=2", "another=4")
	w.runs = nil
	w.mustBuild("# other words\nFROM base AS name\nCOPY src/ /src\nRUN make\nRUN more\n")
	if len(w.runs) != 1 || w.runs[0].Args[2] != "more" {
		t.Errorf("ran %+v", w.runs)
	}
	// A file of other content is not mistaken.
	w.dir = t.TempDir()
	writeFiles(t, w.dir, "src/a=1", "src/b=3")
	w.runs = nil
	w.mustBuild("FROM base\nCOPY src /src\nRUN make\n")
	if len(w.runs) != 1 {
		t.Errorf("ran %+v", w.runs)
	}
}

// Git over https, from a server whose certificate the caller trusts; an unknown one is refused.
func TestGitOverHTTPS(t *testing.T) {
	parent := t.TempDir()
	repository(t, filepath.Join(parent, makeDir(t, parent, "repo")))
	path, err := exec.Command("git", "--exec-path").Output()
	backend := filepath.Join(strings.TrimSpace(string(path)), "git-http-backend")
	if _, serr := os.Stat(backend); err != nil || serr != nil {
		t.Skip("needs git's http-backend")
	}
	srv := httptest.NewTLSServer(&cgi.Handler{Path: backend, Env: []string{"GIT_PROJECT_ROOT=" + parent, "GIT_HTTP_EXPORT_ALL=1",
		"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"}, Stderr: io.Discard})
	defer srv.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o644)
	address := srv.URL + "/repo/.git"
	env := map[string]string{"GIT_SSL_CAINFO": ca}
	f, err := FetchContext(t.Context(), address+"#v1:sub", t.TempDir(), env)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(f.Dir, "file")); string(b) != "one" {
		t.Errorf("%q %v", b, err)
	}
	if _, err := FetchContext(t.Context(), address, t.TempDir(), nil); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an unknown certificate: %v", err)
	}
	w := newWorld(t)
	o := w.options("FROM scratch\nADD " + address + "#main:sub /sub/\nADD --keep-git-dir=true " + address + "#v1 /all/\n")
	o.Env = env
	r, err := w.build(o)
	if err != nil {
		t.Fatal(err)
	}
	if w.file(r, "sub/file") != "two" || w.file(r, "all/sub/file") != "one" || !w.has(r, "all/.git/HEAD") || w.has(r, "sub/.git") {
		t.Error("the wrong files were added")
	}
}
