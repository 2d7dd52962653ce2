package builder

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseGit(t *testing.T) {
	for in, want := range map[string]gitRef{
		"https://h/r.git":                 {"https://h/r.git", "", "/"},
		"https://h/r.git#v1":              {"https://h/r.git", "v1", "/"},
		"https://h/r.git#v1:sub/dir":      {"https://h/r.git", "v1", "/sub/dir"},
		"https://h/r.git#:sub":            {"https://h/r.git", "", "/sub"},
		"github.com/o/r#main":             {"https://github.com/o/r", "main", "/"},
		"file:///srv/r#refs/heads/x":      {"file:///srv/r", "refs/heads/x", "/"},
		"https://h/r.git#feature/a.b+c_d": {"https://h/r.git", "feature/a.b+c_d", "/"},
	} {
		if got, err := parseGit(in); err != nil || got != want {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
	}
	for _, bad := range []string{"ssh://h/r.git", "git@h:r.git", "ext::sh -c id", "git://h/r.git", "https:///r.git", "file://h/r", "file:r",
		"https://h/r.git#--upload-pack=id", "https://h/r.git#a..b", "https://h/r.git#a b", "https://h/r.git#a\nb", "https://h/r.git#+refs/x", "https://h/r.git#a@{1}",
		"https://h/r.git#a:../x", "https://h/r.git#a:x/../../y", "https://h/r .git"} {
		if got, err := parseGit(bad); err == nil {
			t.Errorf("%q is taken: %+v", bad, got)
		}
	}
}

// repository makes one with two commits, a tag on the first and a link that leads out.
func repository(t *testing.T, dir string) (address string) {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("needs git")
	}
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"}, args...)...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	put := func(name, text string) {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("sub/file", "one")
	if err := os.Symlink("/etc", filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	git("init", "-q", "-b", "main")
	git("add", ".")
	git("commit", "-qm", "one")
	git("tag", "-am", "first", "v1")
	put("sub/file", "two")
	git("commit", "-qam", "two")
	return "file://" + dir
}

func TestFetchGitContext(t *testing.T) {
	address := repository(t, t.TempDir())
	for ref, want := range map[string]string{"": "two", "#main": "two", "#v1": "one"} {
		f, err := FetchContext(t.Context(), address+ref, t.TempDir(), nil)
		if err != nil {
			t.Fatal(ref, err)
		}
		if b, err := os.ReadFile(f.Dir + "/sub/file"); string(b) != want {
			t.Errorf("%q: %q %v", ref, b, err)
		}
		if _, err := os.Stat(f.Dir + "/.git"); err == nil {
			t.Error(".git is in the context")
		}
	}
	f, err := FetchContext(t.Context(), address+"#v1:sub", t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(f.Dir + "/file"); err != nil || filepath.Base(f.Dir) != "sub" {
		t.Error(f.Dir, err)
	}
	for ref, want := range map[string]string{"#nope": "does not contain ref nope", "#main:out": "directory", "#main:nope": "directory"} {
		if _, err := FetchContext(t.Context(), address+ref, t.TempDir(), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

func TestAddGit(t *testing.T) {
	w := newWorld(t)
	address := repository(t, filepath.Join(w.dir, makeDir(t, w.dir, "repo")))
	o := w.options("FROM scratch\nADD " + address + "#v1:sub /a/\nADD --keep-git-dir=true " + address + " /b/\n")
	if _, err := w.build(o); err != nil {
		t.Fatal(err)
	}
	o = w.options("FROM scratch\nADD file://" + t.TempDir() + " /a/\n")
	if _, err := w.build(o); err == nil || !strings.Contains(err.Error(), "outside of the build context") {
		t.Errorf("a repository outside of the context: %v", err)
	}
	alternates := filepath.Join(w.dir, "repo/.git/objects/info/alternates")
	if err := os.WriteFile(alternates, []byte("/elsewhere/objects\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	o = w.options("FROM scratch\nADD " + address + " /c/\n")
	if _, err := w.build(o); err == nil || !strings.Contains(err.Error(), "outside of itself") {
		t.Errorf("a repository with objects from elsewhere: %v", err)
	}
}

func makeDir(t *testing.T, parent, name string) string {
	t.Helper()
	if err := os.Mkdir(filepath.Join(parent, name), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestReadContext(t *testing.T) {
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	for _, h := range []*tar.Header{
		{Name: "Dockerfile", Mode: 0o644, Size: 12, Typeflag: tar.TypeReg},
		{Name: "link", Linkname: "/etc/passwd", Typeflag: tar.TypeSymlink},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			io.WriteString(w, "FROM scratch")
		}
	}
	w.Close()
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write(plain.Bytes())
	z.Close()
	for name, in := range map[string][]byte{"tar": plain.Bytes(), "tar.gz": packed.Bytes()} {
		f, err := ReadContext(t.Context(), bytes.NewReader(in), t.TempDir())
		if err != nil || f.Text != nil {
			t.Fatal(name, f, err)
		}
		if b, err := f.ReadDockerfile("Dockerfile"); string(b) != "FROM scratch" {
			t.Errorf("%s: %q %v", name, b, err)
		}
		if b, err := f.ReadDockerfile("link"); err == nil {
			t.Errorf("%s: a link led out of the context: %q", name, b)
		}
	}
	f, err := ReadContext(t.Context(), strings.NewReader("FROM scratch\n"), t.TempDir())
	if err != nil || string(f.Text) != "FROM scratch\n" {
		t.Errorf("%q %v", f.Text, err)
	}
	if _, err := ReadContext(t.Context(), strings.NewReader(""), t.TempDir()); err == nil {
		t.Error("nothing is a context")
	}
	// Names that lead out stay below.
	var evil bytes.Buffer
	w = tar.NewWriter(&evil)
	w.WriteHeader(&tar.Header{Name: "d", Linkname: "/", Typeflag: tar.TypeSymlink})
	w.WriteHeader(&tar.Header{Name: "d/tmp/../../../canary-of-keg", Mode: 0o644, Size: 1, Typeflag: tar.TypeReg})
	io.WriteString(w, "x")
	w.Close()
	parent := t.TempDir()
	ReadContext(t.Context(), &evil, filepath.Join(parent, makeDir(t, parent, "d")))
	for _, p := range []string{"/canary-of-keg", filepath.Join(parent, "canary-of-keg")} {
		if _, err := os.Lstat(p); err == nil {
			t.Errorf("%s was written", p)
		}
	}
}

func TestRedirectsAreNotTrusted(t *testing.T) {
	for _, to := range []string{"file:///etc/passwd", "http://169.254.169.254/latest/meta-data", "http://[fe80::1]/", "http://[::ffff:169.254.1.1]/"} {
		srv := httptest.NewServer(http.RedirectHandler(to, http.StatusFound))
		_, err := FetchContext(t.Context(), srv.URL+"/x.tar", t.TempDir(), nil)
		srv.Close()
		if err == nil || !strings.Contains(err.Error(), "is not followed") {
			t.Errorf("redirect to %s: %v", to, err)
		}
	}
	end := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "FROM scratch\n") }))
	defer end.Close()
	srv := httptest.NewServer(http.RedirectHandler(end.URL, http.StatusFound))
	defer srv.Close()
	if f, err := FetchContext(t.Context(), srv.URL, t.TempDir(), nil); err != nil || string(f.Text) != "FROM scratch\n" {
		t.Errorf("an honest redirect: %q, %v", f.Text, err)
	}
}
