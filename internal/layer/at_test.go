package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

func rootOf(t *testing.T, dir string) *os.File {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// twoTrees is a tree whose links try to reach the other one.
func twoTrees(t *testing.T) (root *os.File, inside, outside string) {
	t.Helper()
	inside, outside = t.TempDir(), t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(outside, "canary"), []byte("secret"), 0o600))
	must(os.MkdirAll(filepath.Join(inside, "d/sub"), 0o755))
	must(os.WriteFile(filepath.Join(inside, "d/file"), []byte("file"), 0o644))
	for name, target := range map[string]string{
		"abs": outside, "up": strings.Repeat("../", 30) + outside[1:], "l": "d/file", "dl": "/d", "chain": "dl",
		"loop": "loop", "dangling": "d/new", "d/back": "../l", "magic": "/proc/self/root",
	} {
		must(os.Symlink(target, filepath.Join(inside, name)))
	}
	return rootOf(t, inside), inside, outside
}

func TestLook(t *testing.T) {
	root, _, _ := twoTrees(t)
	for _, c := range []struct {
		path   string
		follow bool
		base   string
		kind   string // d, f, l, "" for not there
		err    error
	}{
		{"/", false, ".", "d", nil},
		{".", false, ".", "d", nil},
		{"", false, ".", "d", nil},
		{"d", false, "d", "d", nil},
		{"/d/../d/file", false, "file", "f", nil},
		{"../../d", false, "d", "d", nil},
		{"l", false, "l", "l", nil},
		{"l", true, "file", "f", nil},
		{"dl/", false, "d", "d", nil},
		{"dl/.", false, "d", "d", nil},
		{"chain", true, "d", "d", nil},
		{"d/back", true, "file", "f", nil},
		{"dangling", true, "new", "", nil},
		{"nope", false, "nope", "", nil},
		{"nope/x", false, "", "", fs.ErrNotExist},
		{"d/file/x", false, "", "", errNotDir},
		{"loop", true, "", "", errLoop},
		{"loop", false, "loop", "l", nil},
		{"abs/canary", false, "", "", fs.ErrNotExist},
		{"up/canary", false, "", "", fs.ErrNotExist},
		{"magic/etc/passwd", false, "", "", fs.ErrNotExist},
	} {
		a, err := Look(root, c.path, c.follow)
		if !errors.Is(err, c.err) {
			t.Errorf("%q: error %v, want %v", c.path, err, c.err)
		}
		if err != nil {
			continue
		}
		kind := ""
		switch {
		case a.IsDir():
			kind = "d"
		case a.IsRegular():
			kind = "f"
		case a.Link != "":
			kind = "l"
		}
		if a.Base != c.base || kind != c.kind || a.Exists != (c.kind != "") {
			t.Errorf("%q: base %q kind %q", c.path, a.Base, kind)
		}
		a.Close()
	}
}

var errNotDir, errLoop error = unix.ENOTDIR, unix.ELOOP

func packed(t *testing.T, root *os.File, p, as string) (names []string, err error) {
	t.Helper()
	a, err := Look(root, p, false)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	var b bytes.Buffer
	if _, err := PackAt(t.Context(), a, as, DiffOptions{Tar: &b}); err != nil {
		return nil, err
	}
	for tr := tar.NewReader(&b); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return names, nil
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
}

func TestPackAt(t *testing.T) {
	root, _, _ := twoTrees(t)
	for _, c := range []struct {
		path, as string
		want     []string
	}{
		{"d/file", "other", []string{"other"}},
		{"l", "l", []string{"l"}},
		{"d", "e", []string{"e/", "e/back", "e/file", "e/sub/"}},
		{"d", "", []string{"./", "./back", "./file", "./sub/"}},
		{"d/sub", "x/y", []string{"x/y/"}},
	} {
		if got, err := packed(t, root, c.path, c.as); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s as %q: %q, %v", c.path, c.as, got, err)
		}
	}
	if got, err := packed(t, root, "/", "top"); err != nil || got[0] != "top/" || !slices.Contains(got, "top/d/file") {
		t.Errorf("root: %q, %v", got, err)
	}
}

// A file that turns into a link, or is moved away, between the look and the copy is
// never followed out of the tree.
func TestPackAtDoesNotFollowWhatWasSwapped(t *testing.T) {
	root, inside, outside := twoTrees(t)
	a, err := Look(root, "d/file", false)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	os.Remove(filepath.Join(inside, "d/file"))
	os.Symlink(filepath.Join(outside, "canary"), filepath.Join(inside, "d/file"))
	var b bytes.Buffer
	_, err = PackAt(t.Context(), a, "file", DiffOptions{Tar: &b})
	if err != nil || bytes.Contains(b.Bytes(), []byte("secret")) {
		t.Errorf("err %v, leaked %v", err, bytes.Contains(b.Bytes(), []byte("secret")))
	}
}

func TestPlainRefusesInDockersWords(t *testing.T) {
	for _, c := range []struct {
		there, h tar.Header
		want     string
	}{
		{tar.Header{Name: "a/", Typeflag: tar.TypeDir, Mode: 0o755}, tar.Header{Name: "a", Typeflag: tar.TypeReg, Mode: 0o644},
			`cannot overwrite directory "/dst/a" with non-directory "/dst"`},
		{tar.Header{Name: "a", Typeflag: tar.TypeReg, Mode: 0o644}, tar.Header{Name: "a/", Typeflag: tar.TypeDir, Mode: 0o755},
			`cannot overwrite non-directory "/dst/a" with directory "/dst"`},
	} {
		root := rootOf(t, t.TempDir())
		o := Options{Whiteouts: Plain, SingleID: true, Shown: "/dst"}
		for i, h := range []tar.Header{c.there, c.h} {
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			w.Close()
			_, err := Apply(t.Context(), &b, root, o)
			if i == 0 && err != nil {
				t.Fatal(err)
			}
			if i == 1 && (err == nil || err.Error() != c.want || !fault.Is(err, fault.Invalid)) {
				t.Errorf("got %v", err)
			}
		}
	}
}

func TestInflate(t *testing.T) {
	const text = "what was in it"
	for name, args := range map[string][]string{"plain": {"cat"}, "gzip": {"gzip", "-c"}, "zstd": {"zstd", "-qc"}, "xz": {"xz", "-0c"}, "bzip2": {"bzip2", "-c"}} {
		cmd := exec.CommandContext(context.Background(), args[0], args[1:]...)
		cmd.Stdin = strings.NewReader(text)
		out, err := cmd.Output()
		if err != nil {
			t.Logf("%s: not tried, needs the program: %v", name, err)
			continue
		}
		r, err := Inflate(bytes.NewReader(out))
		if err != nil {
			t.Fatal(name, err)
		}
		if got, err := io.ReadAll(r); err != nil || string(got) != text {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		r.Close()
		if name == "plain" {
			continue
		}
		r, err = Inflate(bytes.NewReader(out[:len(out)-6]))
		if err == nil {
			_, err = io.ReadAll(r)
			r.Close()
		}
		if err == nil {
			t.Errorf("%s: nobody noticed that it ends early", name)
		}
	}
}
