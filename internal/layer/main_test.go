package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

var ctx = context.Background()

func needsRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: sets owners, makes devices and trusted attributes")
	}
}

// options let the same tests run as an ordinary user.
func options() Options {
	return Options{SingleID: os.Geteuid() != 0, UserXattr: os.Geteuid() != 0}
}

func opaqueName() string { return OpaqueXattr(os.Geteuid() != 0) }

// header helpers: each makes one entry of a tar.
type item struct {
	h    tar.Header
	body string
	kind byte // overrides the header's type, past what archive/tar would write
}

func file(name, body string) item {
	return item{h: tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, body: body}
}
func folder(name string) item {
	return item{h: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}, body: ""}
}
func symlink(name, to string) item {
	return item{h: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777}, body: ""}
}
func hard(name, to string) item {
	return item{h: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to}, body: ""}
}
func node(name string, kind byte, major, minor int64) item {
	return item{h: tar.Header{Name: name, Typeflag: kind, Mode: 0o600, Devmajor: major, Devminor: minor}, body: ""}
}
func mode(i item, m int64) item { i.h.Mode = m; return i }
func pax(i item, kv ...string) item {
	i.h.PAXRecords = map[string]string{}
	for n := 0; n < len(kv); n += 2 {
		i.h.PAXRecords[kv[n]] = kv[n+1]
	}
	return i
}

// rawPAX is an extended header with any record, for the entry that follows.
func rawPAX(k, v string) item {
	rec := " " + k + "=" + v + "\n"
	n := len(rec)
	for n != len(rec)+len(fmt.Sprint(n)) {
		n = len(rec) + len(fmt.Sprint(n))
	}
	i := file("pax", fmt.Sprint(n)+rec)
	i.kind = tar.TypeXHeader
	return i
}

// retype changes the type of a header block and its checksum.
func retype(block []byte, kind byte) {
	block[156] = kind
	copy(block[148:156], "        ")
	sum := 0
	for _, c := range block[:512] {
		sum += int(c)
	}
	copy(block[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

var someTime = time.Unix(1_000_000_000, 0)

func pack(t testing.TB, items ...item) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, i := range items {
		h := i.h
		h.Size = int64(len(i.body))
		if h.ModTime.IsZero() {
			h.ModTime = someTime
		}
		w.Flush()
		at := buf.Len()
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%s: %v", h.Name, err)
		}
		if i.kind != 0 {
			retype(buf.Bytes()[at:], i.kind)
		}
		if _, err := io.WriteString(w, i.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// box is a directory to unpack into, with canaries around it.
type box struct {
	t       testing.TB
	outside string
	dir     string
	root    *os.File
	before  string
}

func newBox(t testing.TB) *box {
	t.Helper()
	b := &box{t: t, outside: t.TempDir()}
	for _, f := range []string{"canary", "etc/passwd", "dir/file"} {
		os.MkdirAll(filepath.Dir(filepath.Join(b.outside, f)), 0o755)
		if err := os.WriteFile(filepath.Join(b.outside, f), []byte("canary "+f), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b.dir = filepath.Join(b.outside, "store", "diff")
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var err error
	if b.root, err = os.Open(b.dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.root.Close() })
	b.before = b.canaries()
	return b
}

// canaries describes everything around the box.
func (b *box) canaries() string {
	var out strings.Builder
	filepath.WalkDir(b.outside, func(p string, e os.DirEntry, err error) error {
		if p == b.dir {
			return filepath.SkipDir
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			b.t.Error(err)
			return nil
		}
		body, _ := os.ReadFile(p)
		fmt.Fprintf(&out, "%s %o %d:%d %d %d %s\n", p, st.Mode, st.Uid, st.Gid, st.Nlink, st.Mtim.Nano(), digest.FromBytes(body))
		return nil
	})
	return out.String()
}

func (b *box) check() {
	b.t.Helper()
	if now := b.canaries(); now != b.before {
		b.t.Errorf("outside has changed:\n%s\nwas:\n%s", now, b.before)
	}
}

func (b *box) apply(tarball []byte, o Options) (Result, error) {
	b.t.Helper()
	defer b.check()
	return Apply(ctx, bytes.NewReader(tarball), b.root, o)
}

// must applies what has to work.
func (b *box) must(items ...item) Result {
	b.t.Helper()
	res, err := b.apply(pack(b.t, items...), options())
	if err != nil {
		b.t.Fatal(err)
	}
	return res
}

func (b *box) read(name string) string {
	b.t.Helper()
	body, err := os.ReadFile(filepath.Join(b.dir, name))
	if err != nil {
		b.t.Error(err)
	}
	return string(body)
}

func (b *box) stat(name string) (st unix.Stat_t) {
	b.t.Helper()
	if err := unix.Lstat(filepath.Join(b.dir, name), &st); err != nil {
		b.t.Errorf("%s: %v", name, err)
	}
	return st
}

func (b *box) has(name string) bool {
	_, err := os.Lstat(filepath.Join(b.dir, name))
	return err == nil
}

func (b *box) xattr(name, key string) string {
	buf := make([]byte, 256)
	n, err := unix.Lgetxattr(filepath.Join(b.dir, name), key, buf)
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

// tree describes a directory with all that a layer keeps.
func tree(t testing.TB, dir string) string {
	t.Helper()
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var out strings.Builder
	first := map[uint64]string{}
	err = Walk(root, func(e Entry) (bool, error) {
		fmt.Fprintf(&out, "%q %o", e.Path, e.Stat.Mode)
		if e.Whiteout() {
			out.WriteString(" whiteout\n")
			return false, nil
		}
		fmt.Fprintf(&out, " %d:%d %d %x", e.Stat.Uid, e.Stat.Gid, e.Stat.Mtim.Nano(), e.Stat.Rdev)
		p := filepath.Join(dir, e.Path)
		switch e.Stat.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			body, err := os.ReadFile(p)
			if err != nil {
				return false, err
			}
			fmt.Fprintf(&out, " %d %s", len(body), digest.FromBytes(body))
		case unix.S_IFLNK:
			l, _ := os.Readlink(p)
			fmt.Fprintf(&out, " -> %q", l)
		}
		if !e.IsDir() && e.Stat.Nlink > 1 {
			if first[e.Stat.Ino] == "" {
				first[e.Stat.Ino] = e.Path
			}
			fmt.Fprintf(&out, " = %q", first[e.Stat.Ino])
		}
		names, err := listXattrs(e.dir, e.base)
		if err != nil {
			return false, err
		}
		for _, n := range names {
			v, _ := e.Xattr(n)
			fmt.Fprintf(&out, " %s=%q", n, v)
		}
		out.WriteByte('\n')
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}
