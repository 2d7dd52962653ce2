package builder

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"
)

// names lists a directory tree, sorted: directories end with a slash, links show their
// target.
func names(t testing.TB, root string) []string {
	t.Helper()
	var out []string
	filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			t.Fatal(err)
		}
		rel, _ := filepath.Rel(root, p)
		switch {
		case rel == ".":
		case d.IsDir():
			out = append(out, rel+"/")
		case d.Type() == fs.ModeSymlink:
			to, _ := os.Readlink(p)
			out = append(out, rel+"->"+to)
		default:
			out = append(out, rel)
		}
		return nil
	})
	slices.Sort(out)
	return out
}

func TestCopyPlaces(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"file to file":              {"COPY a /x", "x"},
		"file to dir":               {"COPY a /x/", "x/ x/a"},
		"file to existing dir":      {"COPY dir /x\nCOPY a /x", "x/ x/a x/b x/sub/ x/sub/c"},
		"dir gives contents":        {"COPY dir /x", "x/ x/b x/sub/ x/sub/c"},
		"dir with slash":            {"COPY dir/ /x/", "x/ x/b x/sub/ x/sub/c"},
		"dir and dot":               {"COPY dir/. /x", "x/ x/b x/sub/ x/sub/c"},
		"dot":                       {"COPY dir .", "b sub/ sub/c"},
		"workdir":                   {"WORKDIR /w\nCOPY a .\nCOPY a b/", "w/ w/a w/b/ w/b/a"},
		"several":                   {"COPY a dir/b /x/", "x/ x/a x/b"},
		"json":                      {`COPY ["a", "/x y"]`, "x y"},
		"wildcard":                  {"COPY di*/* /x/", "x/ x/b x/c"},
		"wildcard of dirs":          {"COPY [d]i[r] /x/", "x/ x/b x/sub/ x/sub/c"},
		"wildcard without match":    {"COPY nope* a /x/", "x/ x/a"},
		"link is followed":          {"COPY link /x", "x"},
		"link to dir is followed":   {"COPY dirlink /x", "x/ x/b x/sub/ x/sub/c"},
		"link inside stays":         {"COPY links /x", "x/ x/abs->/etc/shadow x/l->../a"},
		"through a link":            {"COPY dirlink/b /x", "x"},
		"dest link to dir":          {"COPY dest /\nCOPY a /to/", "real/ real/a to->real"},
		"dest link out":             {"COPY dest2 /\nCOPY a /out/y", "out->/../../etc2 etc2/ etc2/y"},
		"exclude":                   {"COPY --exclude=sub dir /x", "x/ x/b"},
		"exclude but":               {"COPY --exclude=sub --exclude=!sub/c dir /x", "x/ x/b x/sub/ x/sub/c"},
		"exclude with wildcard":     {"COPY --exclude=a* a* k /x/", "x/ x/k"},
		"parents":                   {"COPY --parents dir/sub/c a /x/", "x/ x/a x/dir/ x/dir/sub/ x/dir/sub/c"},
		"parents pivot":             {"COPY --parents dir/./sub/c /x/", "x/ x/sub/ x/sub/c"},
		"parents wildcard":          {"COPY --parents */*/c /x/", "x/ x/dir/ x/dir/sub/ x/dir/sub/c"},
		"heredoc":                   {"COPY <<one <<\"two\" /x/\nA\none\nB\ntwo", "x/ x/one x/two"},
		"heredoc to file":           {"COPY <<EOF /x\nA\nEOF", "x"},
		"link flag":                 {"COPY --link a /x", "x"},
		"replace file":              {"COPY a /x\nCOPY k /x", "x"},
		"up and out of the context": {"COPY ../../dir/b /x", "x"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			writeFiles(t, w.dir, "a=1", "k=2", "dir/b=3", "dir/sub/c=4", "link->a", "dirlink->dir", "links/abs->/etc/shadow",
				"links/l->../a", "dest/real/", "dest/to->real", "dest2/out->/../../etc2")
			r, err := w.build(w.options("FROM scratch\n" + c.text))
			if err != nil {
				t.Fatal(err)
			}
			want := strings.Fields(c.want)
			if name == "json" {
				want = []string{"x y"}
			}
			slices.Sort(want)
			if got := names(t, w.root(r)); !slices.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
}

func TestCopyKeepsTimesAndModesAndLinks(t *testing.T) {
	w := newWorld(t)
	writeFiles(t, w.dir, "d/f=1", "d/s/g=2")
	when := time.Unix(1234567890, 5000)
	os.Link(filepath.Join(w.dir, "d/f"), filepath.Join(w.dir, "d/h"))
	unix.Chmod(filepath.Join(w.dir, "d/f"), 0o4751)
	os.Chmod(filepath.Join(w.dir, "d/s"), 0o700)
	os.Chtimes(filepath.Join(w.dir, "d/f"), when, when)
	os.Chtimes(filepath.Join(w.dir, "d/s"), when, when)
	unix.Setxattr(filepath.Join(w.dir, "d/f"), "user.color", []byte("red"), 0)
	r := w.mustBuild("FROM scratch\nCOPY d /d\nCOPY --chmod=740 d /e\nCOPY --chmod=u=rwX,go= d /s")
	f, _ := os.Stat(filepath.Join(w.root(r), "d/f"))
	h, _ := os.Stat(filepath.Join(w.root(r), "d/h"))
	s, _ := os.Stat(filepath.Join(w.root(r), "d/s"))
	d, _ := os.Stat(filepath.Join(w.root(r), "d"))
	if !f.ModTime().Equal(when) || !s.ModTime().Equal(when) || f.Mode() != 0o751|fs.ModeSetuid || !os.SameFile(f, h) || s.Mode().Perm() != 0o700 || d.Mode().Perm() != 0o755 {
		t.Errorf("%v %v %v %v same=%v", f.ModTime(), f.Mode(), s.Mode(), d.Mode(), os.SameFile(f, h))
	}
	buf := make([]byte, 16)
	if n, err := unix.Getxattr(filepath.Join(w.root(r), "d/f"), "user.color", buf); err == nil && string(buf[:n]) != "red" {
		t.Errorf("xattr %q", buf[:n])
	}
	e, _ := os.Stat(filepath.Join(w.root(r), "e/f"))
	x, _ := os.Stat(filepath.Join(w.root(r), "s/f"))
	g, _ := os.Stat(filepath.Join(w.root(r), "s/s/g"))
	if e.Mode() != 0o740 || x.Mode().Perm() != 0o700 || g.Mode().Perm() != 0o600 {
		t.Errorf("chmod: %v %v %v", e.Mode(), x.Mode(), g.Mode())
	}
}

func TestSymbolicModes(t *testing.T) {
	for spec, c := range map[string][2]uint32{
		"u+x": {0o644, 0o744}, "go-w": {0o666, 0o644}, "a=rX": {0o640, 0o444}, "+X": {0o744, 0o755}, "u=rw,go=r": {0o777, 0o644},
		"g=u": {0o740, 0o770}, "o+t": {0o755, 0o1755}, "ug+s": {0o755, 0o6755}, "u-s": {0o4755, 0o755}, "=": {0o777, 0}, "u+rw-x": {0o100, 0o600},
	} {
		m, err := parseMode(spec)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.apply(unix.S_IFREG | c[0]); got != c[1] {
			t.Errorf("%s on %o: %o, want %o", spec, c[0], got, c[1])
		}
	}
	for _, bad := range []string{"10000", "8", "u", "u+z", "x+r", "-1", "u+r,,g+r"} {
		if _, err := parseMode(bad); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}

func TestOwners(t *testing.T) {
	root := t.TempDir()
	writeFiles(t, root, "etc/passwd=root:x:0:0::/:/bin/sh\nweb:x:33:44::/:/bin/sh\n1000:x:0:0::/:/bin/sh\n", "etc/group=adm:x:4:\n")
	fd, _ := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	defer unix.Close(fd)
	for spec, want := range map[string]owner{
		"1": {1, 1}, "1:2": {1, 2}, "web": {33, 44}, "web:adm": {33, 4}, "web:7": {33, 7}, "root": {0, 0}, ":adm": {0, 4}, "1000": {1000, 1000}, "5:": {5, 5},
	} {
		o, err := parseOwner(spec)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := o.resolve(fd); err != nil || *got != want {
			t.Errorf("%s: %v %v", spec, got, err)
		}
	}
	for _, bad := range []string{"2147483648", "4294967296", "-1", "1:-2", ":"} {
		if _, err := parseOwner(bad); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
	for _, bad := range []string{"nobody", "web:nope", "0x0"} {
		o, err := parseOwner(bad)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.resolve(fd); err == nil {
			t.Errorf("%q found", bad)
		}
	}
	// A passwd that is no file must not block or be read without end.
	os.Remove(filepath.Join(root, "etc/passwd"))
	unix.Mkfifo(filepath.Join(root, "etc/passwd"), 0o600)
	o, _ := parseOwner("web")
	if _, err := o.resolve(fd); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Error(err)
	}
}

// tarball makes an archive of headers; regular files contain their name.
func tarball(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.Name))
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		h.Uid, h.Gid = os.Getuid(), os.Getgid()
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			w.Write([]byte(h.Name))
		}
	}
	w.Close()
	return b.Bytes()
}

func TestAddUnpacksLocalArchives(t *testing.T) {
	when := time.Unix(1e9, 0)
	plain := tarball(t, tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o711, ModTime: when}, tar.Header{Name: "d/f", ModTime: when},
		tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "d/f"}, tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "d/f"})
	var gz, zs bytes.Buffer
	g := gzip.NewWriter(&gz)
	g.Write(plain)
	g.Close()
	z, _ := zstd.NewWriter(&zs)
	z.Write(plain)
	z.Close()
	var notTar bytes.Buffer
	g = gzip.NewWriter(&notTar)
	g.Write([]byte("only compressed"))
	g.Close()
	var xzs bytes.Buffer
	x, _ := xz.NewWriter(&xzs)
	x.Write(plain)
	x.Close()
	for name, data := range map[string][]byte{"a.tar": plain, "a.tgz": gz.Bytes(), "a.zst": zs.Bytes(), "a.txz": xzs.Bytes()} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			os.WriteFile(filepath.Join(w.dir, name), data, 0o644)
			r := w.mustBuild("FROM scratch\nADD " + name + " /x/\nCOPY " + name + " /copied")
			want := []string{"copied", "x/", "x/d/", "x/d/f", "x/h", "x/l->d/f"}
			if got := names(t, w.root(r)); !slices.Equal(got, want) {
				t.Errorf("%q", got)
			}
			d, _ := os.Stat(filepath.Join(w.root(r), "x/d"))
			if d.Mode().Perm() != 0o711 || !d.ModTime().Equal(when) {
				t.Errorf("%v %v", d.Mode(), d.ModTime())
			}
		})
	}
	w := newWorld(t)
	os.WriteFile(filepath.Join(w.dir, "n.gz"), notTar.Bytes(), 0o644)
	writeFiles(t, w.dir, "text=no archive")
	if r := w.mustBuild("FROM scratch\nADD n.gz text /x/"); !slices.Equal(names(t, w.root(r)), []string{"x/", "x/n.gz", "x/text"}) {
		t.Errorf("%q", names(t, w.root(r)))
	}
}

func TestAddNeverLeavesTheDestination(t *testing.T) {
	canary := t.TempDir()
	writeFiles(t, canary, "keep=safe")
	before, _ := listTree(canary)
	for name, headers := range map[string][]tar.Header{
		"dots":     {{Name: "../../../../../../../.." + canary + "/keep"}},
		"absolute": {{Name: canary + "/keep"}},
		"link":     {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: canary}, {Name: "l/keep"}},
		"hard":     {{Name: "h", Typeflag: tar.TypeLink, Linkname: canary + "/keep"}, {Name: "h"}},
		"two step": {{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "/"}, {Name: "b", Typeflag: tar.TypeSymlink, Linkname: "a/" + canary}, {Name: "b/keep"}},
		"replaced": {{Name: "d/", Typeflag: tar.TypeDir}, {Name: "d", Typeflag: tar.TypeSymlink, Linkname: canary}, {Name: "d/keep"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			os.WriteFile(filepath.Join(w.dir, "a.tar"), tarball(t, headers...), 0o644)
			w.build(w.options("FROM scratch\nADD a.tar /x/"))
			if after, _ := listTree(canary); after != before {
				t.Errorf("the canary changed:\n%s\n%s", before, after)
			}
		})
	}
}

func TestCopyNeverLeavesContextOrStage(t *testing.T) {
	canary := t.TempDir()
	writeFiles(t, canary, "keep=secret canary bytes")
	before, _ := listTree(canary)
	up := strings.Repeat("../", 20)
	for name, text := range map[string]string{
		"absolute link":    "COPY abs /x",
		"relative link":    "COPY rel /x",
		"link in the way":  "COPY dirabs/keep /x",
		"wildcard":         "COPY dirabs/k* /x/",
		"link of a link":   "COPY chain /x",
		"from stage":       "COPY --from=s /abs /x",
		"stage wildcard":   "COPY --from=s /dirabs/* /x/",
		"dest link":        "COPY links /\nCOPY own /dirabs/keep",
		"dest parent link": "COPY links /\nCOPY own /dirabs/new/deep/",
		"workdir link":     "COPY links /\nWORKDIR /dirabs/new",
		"parents":          "COPY --parents dirabs/keep /x/",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			links := []string{"abs->" + canary + "/keep", "rel->" + up + canary + "/keep", "dirabs->" + canary, "chain->abs"}
			writeFiles(t, w.dir, append(links, "own=mine")...)
			for _, l := range links {
				writeFiles(t, w.dir, "links/"+l)
			}
			w.addImage("s", nil, links...)
			r, err := w.build(w.options("FROM s AS s\nFROM scratch\n" + text))
			if after, _ := listTree(canary); after != before {
				t.Errorf("the canary changed")
			}
			if err == nil {
				filepath.WalkDir(w.root(r), func(p string, d fs.DirEntry, err error) error {
					if d != nil && d.Type().IsRegular() {
						if b, _ := os.ReadFile(p); bytes.Contains(b, []byte("secret canary")) {
							t.Errorf("%s has the canary's bytes", p)
						}
					}
					return nil
				})
			}
		})
	}
}

func TestAddURL(t *testing.T) {
	w := newWorld(t)
	content, asked := "one", 0
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		asked++
		switch r.URL.Path {
		case "/away":
			http.Redirect(rw, r, "file:///etc/passwd", http.StatusFound)
		case "/f.txt":
			etag := fmt.Sprintf("%q", content)
			rw.Header().Set("ETag", etag)
			rw.Header().Set("Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT")
			if r.Header.Get("If-None-Match") == etag {
				rw.WriteHeader(http.StatusNotModified)
				return
			}
			rw.Write([]byte(content))
		default:
			http.NotFound(rw, r)
		}
	}))
	defer srv.Close()
	text := "FROM scratch\nADD " + srv.URL + "/f.txt /d/\n"
	r := w.mustBuild(text)
	st, err := os.Stat(filepath.Join(w.root(r), "d/f.txt"))
	if err != nil || st.Mode().Perm() != 0o600 || st.ModTime().Year() != 2006 || w.file(r, "d/f.txt") != "one" {
		t.Fatalf("%v %v", st, err)
	}
	if r2 := w.mustBuild(text); r2.ConfigID != r.ConfigID {
		t.Error("unchanged URL built anew")
	}
	content = "two"
	if r3 := w.mustBuild(text); w.file(r3, "d/f.txt") != "two" {
		t.Error("changed URL not noticed")
	}
	sum := "sha256:3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3" // of "two"
	if r4 := w.mustBuild("FROM scratch\nADD --checksum=" + sum + " " + srv.URL + "/f.txt /x"); w.file(r4, "x") != "two" {
		t.Error("checksum")
	}
	asked = 0
	w.mustBuild("FROM scratch\nADD --checksum=" + sum + " " + srv.URL + "/f.txt /x")
	if asked != 0 {
		t.Error("asked the server though the checksum is known")
	}
	content = "three"
	for _, bad := range []string{"--checksum=" + sum + " " + srv.URL + "/f.txt /y", srv.URL + "/away /y", srv.URL + "/missing /y", "git://x/y /z", srv.URL + "/r.git /z"} {
		if _, err := w.build(w.options("FROM scratch\nADD " + bad)); err == nil {
			t.Errorf("ADD %s succeeded", bad)
		}
	}
}

func TestChangeWhileCopyingIsNoticed(t *testing.T) {
	w := newWorld(t)
	writeFiles(t, w.dir, "f=before")
	bc, err := openContext(w.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer bc.close()
	found, err := bc.find(context.Background(), selector{Path: "/f", Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := bc.fill(context.Background(), found); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(w.dir, "f"), []byte("after it was digested"), 0o644)
	to := t.TempDir()
	fd, _ := unix.Open(to, unix.O_PATH|unix.O_DIRECTORY, 0)
	defer unix.Close(fd)
	c := copier{ctx: context.Background(), from: &bc.tree, root: fd, buffer: make([]byte, 4096)}
	defer c.close()
	if err := c.copy(&found[0], "/f"); err == nil || !strings.Contains(err.Error(), "changed while it was copied") {
		t.Error(err)
	}
}

// Large files of a plain archive are copied inside the kernel, at any place and of any size; one that ends early is an error.
func TestAddUnpacksLargeFiles(t *testing.T) {
	w := newWorld(t)
	content := map[string][]byte{}
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for i, size := range []int{bigFile, 1, bigFile + 511, 0, 3 << 20, 100, 300<<10 + 7, 512 << 10} {
		name := fmt.Sprint("f", i)
		data := bytes.Repeat(fmt.Appendf(nil, "%d,", i), size)[:size]
		content[name] = data
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(size), ModTime: time.Unix(1e9, 0)}); err != nil {
			t.Fatal(err)
		}
		tw.Write(data)
	}
	tw.Close()
	os.WriteFile(filepath.Join(w.dir, "a.tar"), b.Bytes(), 0o644)
	r := w.mustBuild("FROM scratch\nADD a.tar /d/\n")
	for name, want := range content {
		if got := w.file(r, "d/"+name); got != string(want) {
			t.Errorf("%s: %d bytes, want %d; equal %v", name, len(got), len(want), got == string(want))
		}
	}
	for _, cut := range []int{2 << 20, b.Len() - 300<<10} {
		os.WriteFile(filepath.Join(w.dir, "a.tar"), b.Bytes()[:cut], 0o644)
		if _, err := w.build(w.options("FROM scratch\nADD a.tar /d/\n")); err == nil || !strings.Contains(err.Error(), "unexpected EOF") {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
	// GNU tar's sparse files: what is in the archive are their parts and a map of them.
	sparse := filepath.Join(t.TempDir(), "sparse")
	f, err := os.Create(sparse)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt(bytes.Repeat([]byte("s"), 128<<10), 1<<20)
	f.Truncate(4 << 20)
	f.Close()
	if out, err := exec.Command("tar", "--format=pax", "-C", filepath.Dir(sparse), "-Scf", filepath.Join(w.dir, "s.tar"), "sparse").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want, _ := os.ReadFile(sparse)
	if got := w.file(w.mustBuild("FROM scratch\nADD s.tar /d/\n"), "d/sparse"); got != string(want) {
		t.Errorf("the sparse file has %d bytes, want %d; equal %v", len(got), len(want), got == string(want))
	}
}
