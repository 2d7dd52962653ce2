package builtin

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"keg/internal/image"
)

// The test binary is the applets when called with their name in KEG_TEST_APPLET.
func TestMain(m *testing.M) {
	if name := os.Getenv("KEG_TEST_APPLET"); name != "" {
		code, ok := Applet(name, os.Args[1:])
		if !ok {
			os.Exit(99)
		}
		os.Exit(code)
	}
	// The shell starts tools by re-executing this binary under their names.
	if name := filepath.Base(os.Args[0]); !strings.HasSuffix(name, ".test") {
		if code, ok := Applet(name, os.Args[1:]); ok {
			os.Exit(code)
		}
	}
	os.Exit(m.Run())
}

type result struct {
	out, err string
	code     int
}

func run(t *testing.T, stdin string, argv ...string) result {
	t.Helper()
	cmd := exec.Command(os.Args[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "KEG_TEST_APPLET="+argv[0])
	if argv[0] == "sh" { // children must not see the variable: they have names of their own
		cmd.Env = os.Environ()
		cmd.Args[0] = "sh"
	}
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

func TestTools(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "f")
	os.WriteFile(file, []byte("b 2\na 10\nb 2\n"), 0o644)
	for _, c := range []struct {
		stdin string
		argv  []string
		want  string
		code  int
	}{
		{"", []string{"cat", file}, "b 2\na 10\nb 2\n", 0},
		{"", []string{"head", "-n1", file}, "b 2\n", 0},
		{"", []string{"ls", dir}, "f\n", 0},
		{"", []string{"ls", "-d", dir}, dir + "\n", 0},
		{"", []string{"ls", "-la", filepath.Join(dir, "none")}, "", 1},
		{"", []string{"tail", "-2", file}, "a 10\nb 2\n", 0},
		{"", []string{"tail", "-n", "+3", file}, "b 2\n", 0},
		{"", []string{"head", "-c", "3", file}, "b 2", 0},
		{"", []string{"wc", "-l", file}, "3 " + file + "\n", 0},
		{"one two\n", []string{"wc"}, "1 2 8\n", 0},
		{"", []string{"sort", "-u", file}, "a 10\nb 2\n", 0},
		{"10\n9\n", []string{"sort", "-rn"}, "10\n9\n", 0},
		{"x\nx\ny\n", []string{"uniq", "-c"}, "      2 x\n      1 y\n", 0},
		{"a:b:c\n", []string{"cut", "-d:", "-f2-"}, "b:c\n", 0},
		{"hello\n", []string{"cut", "-c1,3-4"}, "hll\n", 0},
		{"abc\n", []string{"tr", "a-c", "A-C"}, "ABC\n", 0},
		{"a b\n", []string{"tr", "-d", " "}, "ab\n", 0},
		{"a\nb\n", []string{"grep", "-v", "a"}, "b\n", 0},
		{"a\n", []string{"grep", "-q", "z"}, "", 1},
		{"a+b\naab\n", []string{"grep", "a+b"}, "a+b\n", 0},
		{"a+b\naab\n", []string{"grep", "-E", "^a+b$"}, "aab\n", 0},
		{"Foo\nbar\n", []string{"grep", "-in", "foo"}, "1:Foo\n", 0},
		{"x\n", []string{"grep", "-E", "("}, "", 2},
		{"foo bar foo\n", []string{"sed", "s/foo/[&]/g"}, "[foo] bar [foo]\n", 0},
		{"a/b\n", []string{"sed", `s|\(a\)/\(b\)|\2/\1|`}, "b/a\n", 0},
		{"1\n2\n3\n", []string{"sed", "-n", "2,$p"}, "2\n3\n", 0},
		{"1\n2\n3\n", []string{"sed", "/2/d"}, "1\n3\n", 0},
		{"x\n", []string{"sed", "y/a/b/"}, "", 2},
		{"", []string{"seq", "2", "4"}, "2\n3\n4\n", 0},
		{"", []string{"basename", "/a/b.txt", ".txt"}, "b\n", 0},
		{"", []string{"dirname", "/a/b"}, "/a\n", 0},
		{"", []string{"date", "-u", "+%%Y"}, "%Y\n", 0},
		{"", []string{"true"}, "", 0},
		{"", []string{"false"}, "", 1},
		{"", []string{"echo", "-n", "a b", "*"}, "a b *", 0},
		{"", []string{"test", "a", "=", "b"}, "", 1},
		{"in\n", []string{"tee", filepath.Join(dir, "copy")}, "in\n", 0},
	} {
		got := run(t, c.stdin, c.argv...)
		if got.out != c.want || got.code != c.code {
			t.Errorf("%q: %q, exit %d (%s); want %q, exit %d", c.argv, got.out, got.code, got.err, c.want, c.code)
		}
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "copy")); string(b) != "in\n" {
		t.Errorf("tee wrote %q", b)
	}
	if r := run(t, "", "head", "-n", "x"); r.code == 0 || r.err == "" {
		t.Errorf("head takes a bad number: %+v", r)
	}
}

func TestShell(t *testing.T) {
	for script, want := range map[string]result{
		`for i in 1 2; do echo $i; done`:                    {"1\n2\n", "", 0},
		`printf 'b\na\n' | sort | head -n 1`:                {"a\n", "", 0},
		`x=$(echo hi | tr a-z A-Z); echo "$x!"`:             {"HI!\n", "", 0},
		`exit 7`:                                            {"", "", 7},
		`PATH=/none; seq 1 3 | tail -n 1`:                   {"3\n", "", 0},
		`set -e; false; echo no`:                            {"", "", 1},
		`grep -q x /nonexistent 2>/dev/null || echo absent`: {"absent\n", "", 0},
		`V=1 env | grep ^V=`:                                {"V=1\n", "", 0},
	} {
		if got := run(t, "", "sh", "-c", script); got.out != want.out || got.code != want.code {
			t.Errorf("%s: %+v, want %+v", script, got, want)
		}
	}
	if got := run(t, "", "sh", "-c", "nosuchtool"); got.code != 127 {
		t.Errorf("unknown command: %+v", got)
	}
	if got := run(t, "echo from stdin\n", "sh"); got.out != "from stdin\n" {
		t.Errorf("script on stdin: %+v", got)
	}
	if got := run(t, "", "sh", "-c", `echo "$0 $1"`, "name", "arg"); !strings.HasSuffix(got.out, "arg\n") {
		t.Errorf("arguments: %+v", got)
	}
}

func TestApplets(t *testing.T) {
	for _, n := range toolNames() {
		if _, ok := applets(n); !ok {
			t.Errorf("link %s leads to no applet", n)
		}
	}
	if !slices.IsSorted(toolNames()) {
		t.Error("tool names are not sorted")
	}
	if _, ok := applets("keg"); ok {
		t.Error("keg is no applet")
	}
}

func TestImagesAreReproducibleAndShareLayers(t *testing.T) {
	sums := map[string][][32]byte{}
	for _, name := range Names() {
		ref, err := image.ParseReference(name)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			im, ok := Find(ref)
			if !ok {
				t.Fatalf("%s is not found", name)
			}
			for _, l := range im.Layers {
				r := l.Tar()
				h := sha256.New()
				names := map[string]bool{}
				tr := tar.NewReader(io.TeeReader(r, h))
				for {
					hd, err := tr.Next()
					if err == io.EOF {
						break
					}
					if err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					if names[hd.Name] {
						t.Errorf("%s: %s twice in one layer", name, hd.Name)
					}
					names[hd.Name] = true
				}
				io.Copy(h, r)
				r.Close()
				sums[name] = append(sums[name], [32]byte(h.Sum(nil)))
			}
		}
		n := len(sums[name]) / 2
		if !slices.Equal(sums[name][:n], sums[name][n:]) {
			t.Errorf("%s differs between two makings", name)
		}
	}
	if sums["keg/web"][0] != sums["keg/hello"][0] || sums["keg/web"][1] != sums["keg/shell"][1] {
		t.Error("layers are not shared")
	}
	for _, no := range []string{"keg/none", "keg/web:2", "localhost:5000/keg/web"} {
		ref, _ := image.ParseReference(no)
		if _, ok := Find(ref); ok {
			t.Errorf("%s is carried", no)
		}
	}
}

func TestWebLogsQuoted(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "index.html"), []byte("page"), 0o644)
	root, _ := os.OpenRoot(dir)
	defer root.Close()
	srv := httptest.NewServer(logged(http.FileServerFS(root.FS())))
	defer srv.Close()
	resp, err := http.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	if string(b) != "page" {
		t.Fatalf("served %q", b)
	}
	if r := run(t, "", "wget", "-qO", "-", srv.URL); r.out != "page" {
		t.Fatalf("wget: %+v", r)
	}
	if r := run(t, "", "wget", "-q", srv.URL+"/none"); r.code == 0 {
		t.Fatal("wget succeeds on 404")
	}
}

func TestNetcat(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err == nil {
			io.Copy(c, c)
			c.Close()
		}
	}()
	host, port, _ := net.SplitHostPort(l.Addr().String())
	if r := run(t, "ping\n", "nc", host, port); r.out != "ping\n" || r.code != 0 {
		t.Fatalf("%+v", r)
	}
	if r := run(t, "", "nc", "127.0.0.1", "1"); r.code == 0 || r.err == "" {
		t.Fatalf("a closed port: %+v", r)
	}
}

func TestListLong(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "file"), []byte("12345"), 0o644)
	os.Mkdir(filepath.Join(dir, "dir"), 0o755)
	os.Chmod(filepath.Join(dir, "dir"), 0o777|os.ModeSticky)
	os.Symlink("file", filepath.Join(dir, "link"))
	r := run(t, "", "ls", "-l", dir)
	for _, want := range []string{`(?m)^drwxrwxrwt +\d+ .* dir$`, `(?m)^-rw-r--r-- +1 .* 5 .* file$`, `(?m)^lrwxrwxrwx +1 .* link -> file$`} {
		if !regexp.MustCompile(want).MatchString(r.out) {
			t.Errorf("%s is not in\n%s", want, r.out)
		}
	}
	if r := run(t, "", "ls", "-R", dir); !strings.Contains(r.out, dir+"/dir:\n") {
		t.Errorf("-R: %q", r.out)
	}
}

func TestHello(t *testing.T) {
	if r := run(t, "", "hello"); !strings.Contains(r.out, "Hello from keg!") || r.code != 0 {
		t.Fatalf("%+v", r)
	}
}
