package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

func TestApplyKeepsEverything(t *testing.T) {
	needsRoot(t)
	b := newBox(t)
	own := func(i item, uid, gid int) item { i.h.Uid, i.h.Gid = uid, gid; return i }
	at := func(i item, tm time.Time) item { i.h.ModTime = tm; i.h.Format = tar.FormatPAX; return i }
	long := "d/" + strings.Repeat("long-name-", 20)
	caps := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	data := []item{
		at(mode(folder("d/"), 0o2775), time.Unix(1_000_000_000, 123)),
		at(own(mode(file("d/suid", "x"), 0o4755), 3, 4), time.Unix(5, 987654321)),
		own(mode(file("d/sgid", "x"), 0o2711), 5, 6),
		mode(file("d/open", "x"), 0o666),
		own(file(long, "long"), 4_000_000_000, 3_000_000),
		pax(file("d/cap", "cap"), "SCHILY.xattr.security.capability", caps, "SCHILY.xattr.user.k", "v\x00w"),
		symlink("d/link", "../../../etc/passwd"),
		mode(node("d/null", tar.TypeChar, 1, 3), 0o666), node("d/blk", tar.TypeBlock, 0, 0), node("d/fifo", tar.TypeFifo, 0, 0),
		hard("d/hard", "d/suid"), hard("d/hardlink", "/d/link"),
		mode(folder("sticky"), 0o1777),
		mode(folder("closed/"), 0), file("closed/in", "in"),
		file("d/ü\n", "odd"),
	}
	tarball := pack(t, data...)
	res, err := b.apply(tarball, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if res.DiffID != digest.FromBytes(tarball) || res.Size != int64(len(tarball)) || res.Entries != int64(len(data)) || !res.Leans.None() || res.Root {
		t.Errorf("%+v", res)
	}
	st := b.stat("d/suid")
	if st.Mode&0o7777 != 0o4755 || st.Uid != 3 || st.Gid != 4 || st.Mtim.Nano() != 5_987654321 || st.Nlink != 2 || st.Ino != b.stat("d/hard").Ino {
		t.Errorf("suid: %+v", st)
	}
	if st := b.stat("d/sgid"); st.Mode&0o7777 != 0o2711 || st.Uid != 5 || st.Gid != 6 {
		t.Errorf("sgid: %+v", st)
	}
	// Below a setgid directory the group must still be the tar's.
	if st := b.stat("d/open"); st.Mode&0o7777 != 0o666 || st.Gid != 0 {
		t.Errorf("open: %+v", st)
	}
	if st := b.stat(long); st.Uid != 4_000_000_000 || st.Gid != 3_000_000 {
		t.Errorf("owner: %+v", st)
	}
	if b.xattr("d/cap", "security.capability") != caps || b.xattr("d/cap", "user.k") != "v\x00w" {
		t.Error("attributes are lost")
	}
	if l, _ := os.Readlink(b.dir + "/d/link"); l != "../../../etc/passwd" || b.stat("d/link").Ino != b.stat("d/hardlink").Ino {
		t.Error("link", l)
	}
	if st := b.stat("d/null"); st.Mode != unix.S_IFCHR|0o666 || st.Rdev != unix.Mkdev(1, 3) {
		t.Errorf("null: %+v", st)
	}
	if b.stat("d/blk").Mode != unix.S_IFBLK|0o600 || b.stat("d/fifo").Mode != unix.S_IFIFO|0o600 || b.stat("sticky").Mode != unix.S_IFDIR|0o1777 {
		t.Error("kinds are wrong")
	}
	if st := b.stat("d"); st.Mode&0o7777 != 0o2775 || st.Mtim.Nano() != 1_000_000_000_000_000_123 {
		t.Errorf("d: %+v", st)
	}
	if b.stat("closed").Mode&0o7777 != 0 || b.read("closed/in") != "in" || b.read("d/ü\n") != "odd" {
		t.Error("closed directory")
	}
}

func TestApplyAsAnOrdinaryUser(t *testing.T) {
	b := newBox(t)
	own := file("f", "x")
	own.h.Uid, own.h.Gid = 12, 34
	o := options()
	o.SingleID, o.UserXattr = true, true
	if _, err := b.apply(pack(t, mode(folder("ro/"), 0o555), own, file("ro/x", "x"), node("null", tar.TypeChar, 1, 3), file(".wh.gone", "")), o); err != nil {
		t.Fatal(err)
	}
	if st := b.stat("f"); int(st.Uid) != os.Geteuid() || b.has("null") || b.stat("ro").Mode&0o777 != 0o555 || b.read("ro/x") != "x" {
		t.Errorf("%+v", st)
	}
	if st := b.stat("gone"); !whiteout(&st) {
		t.Error("no whiteout")
	}
	os.Chmod(b.dir+"/ro", 0o755)
}

// Later entries win, whatever they replace.
func TestApplyReplaces(t *testing.T) {
	b := newBox(t)
	b.must(file("a", "1"), file("a", "2"), folder("b/"), file("b/x", "x"), file("b", "file"), file("c", "c"), folder("c/"), file("c/y", "y"),
		symlink("d", "c"), file("d", "d"), folder("e/"), file("e/keep", "k"), mode(folder("e/"), 0o700), symlink("s", "nowhere"), folder("s/"), file("s/in", "in"))
	if b.read("a") != "2" || b.read("b") != "file" || b.read("c/y") != "y" || b.read("d") != "d" || b.read("e/keep") != "k" || b.read("s/in") != "in" {
		t.Error(tree(t, b.dir))
	}
	if b.stat("e").Mode&0o777 != 0o700 || b.stat("d").Mode&unix.S_IFMT != unix.S_IFREG {
		t.Error(tree(t, b.dir))
	}
}

// The twin of the refusals: what well-meant images contain must work.
func TestApplyMergedUsrLayer(t *testing.T) {
	b := newBox(t)
	res := b.must(folder("./"), folder("./usr/"), folder("./usr/bin/"), symlink("./bin", "usr/bin"), file("./bin/sh", "sh"), folder("./var/"),
		symlink("./var/run", "/run"), folder("./run/"), file("./var/run/pid", "1"), hard("./bin/dash", "/bin/sh"), hard("./usr/bin/bash", "./usr/bin/sh"),
		symlink("./etc", "/b"), file("./etc/conf", "c"), file("a/./b//c/../d", "d"))
	if b.read("usr/bin/sh") != "sh" || b.read("run/pid") != "1" || b.read("usr/bin/dash") != "sh" || b.read("b/conf") != "c" || b.read("a/b/d") != "d" {
		t.Error(tree(t, b.dir))
	}
	if !res.Root || b.stat("usr/bin/bash").Nlink != 3 {
		t.Error(res)
	}
	if !slices.Equal(res.Leans.Dirs, []string{"a", "a/b", "b"}) {
		t.Error("leans on", res.Leans)
	}
}

func TestApplyTellsWhatItLeansOn(t *testing.T) {
	b := newBox(t)
	res := b.must(file("a/b/c", "c"), folder("a/"), folder("x/"), hard("x/l", "usr/bin/tool"), symlink("x/y", "/z"), file("x/y/f", "f"))
	if !slices.Equal(res.Leans.Dirs, []string{"a/b", "z"}) || !slices.Equal(res.Leans.Links, []Link{{"x/l", "usr/bin/tool"}}) {
		t.Errorf("%+v", res.Leans)
	}
	if b.stat("a/b").Mode&0o777 != 0o755 || b.stat("a/b").Mtim != (unix.Timespec{}) {
		t.Error("an unlisted directory must look the same each time")
	}
	// What comes later after all is not leant on.
	if res := newBox(t).must(hard("l", "t"), file("l", "own"), file("t", "")); !res.Leans.None() {
		t.Errorf("%+v", res.Leans)
	}
}

func TestWhiteouts(t *testing.T) {
	b := newBox(t)
	res := b.must(folder("d/"), file("d/.wh.gone", ""), folder("o/"), file("o/.wh..wh..opq", ""), file("o/new", "n"),
		file(".wh.f", ""), file("f", "back"), file("g", "g"), file(".wh.g", ""),
		file(".wh.dir", ""), folder("dir/"), file("dir/x", "x"), folder("dir2/"), file(".wh.dir2", ""),
		file(".wh.deep", ""), file("deep/in", "in"), file(".wh..wh.plnk/1.2", "aufs"), file(".wh..wh.aufs", ""))
	for _, w := range []string{"d/gone"} {
		if st := b.stat(w); !whiteout(&st) {
			t.Errorf("%s is no whiteout", w)
		}
	}
	for name, want := range map[string]string{"o": "y", "d": "", "dir": "y", "dir2": "y", "deep": "y"} {
		if got := b.xattr(name, opaqueName()); got != want {
			t.Errorf("opaque of %s: %q, want %q", name, got, want)
		}
	}
	if b.read("f") != "back" || b.read("g") != "g" || b.read("dir/x") != "x" || b.read("deep/in") != "in" || b.has(".wh..wh.plnk") || b.has(".wh..wh.aufs") {
		t.Error(tree(t, b.dir))
	}
	if !res.Leans.None() {
		t.Errorf("%+v", res.Leans)
	}
}

func TestWhiteoutsRemove(t *testing.T) {
	b := newBox(t)
	b.must(folder("d/"), file("d/a", "a"), file("d/b", "b"), folder("o/"), file("o/old", "o"), folder("o/sub/"), file("o/sub/x", "x"), file("same", "1"))
	o := options()
	o.Whiteouts = Remove
	if _, err := b.apply(pack(t, file("d/.wh.a", ""), file("o/sub/y", "y"), file("o/.wh..wh..opq", ""), file("o/new", "n"), file("same", "2"), file(".wh.same", ""), file(".wh.nothing", "")), o); err != nil {
		t.Fatal(err)
	}
	if b.has("d/a") || !b.has("d/b") || b.has("o/old") || !b.has("o/sub/y") || !b.has("o/new") || b.read("same") != "2" || b.has("nothing") {
		t.Error(tree(t, b.dir))
	}
}

func TestPlainArchive(t *testing.T) {
	b := newBox(t)
	b.must(folder("usr/"), folder("usr/lib/"), symlink("lib", "usr/lib"), mode(folder("tmp/"), 0o1777), file("f", "old"), symlink("out", "../../.."))
	o := options()
	o.Whiteouts = Plain
	if _, err := b.apply(pack(t, mode(folder("./"), 0o700), folder("lib/"), file("lib/so", "so"), mode(folder("tmp/"), 0o700), file("f", "new"), file(".wh.x", "w"), file("out/canary", "in"), file("new/dir/f", "f")), o); err != nil {
		t.Fatal(err)
	}
	if b.read("usr/lib/so") != "so" || b.stat("lib").Mode&unix.S_IFMT != unix.S_IFLNK || b.read("f") != "new" || b.read(".wh.x") != "w" || b.read("canary") != "in" || b.read("new/dir/f") != "f" {
		t.Error(tree(t, b.dir))
	}
	if b.stat("tmp").Mode&0o7777 != 0o1777 || b.stat("").Mode&0o777 != 0o755 {
		t.Error("an archive changed directories that were there")
	}
	for _, bad := range [][]item{{file("usr", "x")}, {folder("f/")}} {
		if _, err := b.apply(pack(t, bad...), o); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "cannot overwrite") {
			t.Errorf("%v", err)
		}
	}
	if os.Geteuid() == 0 {
		o.Owner = &Owner{7, 8}
		if _, err := b.apply(pack(t, file("mine/x", "x")), o); err != nil {
			t.Fatal(err)
		}
		if b.stat("mine").Uid != 7 || b.stat("mine/x").Gid != 8 {
			t.Error("owner was not replaced")
		}
	}
}

func TestSparseFilesKeepTheirHoles(t *testing.T) {
	for _, format := range []string{"gnu", "posix"} {
		dir := t.TempDir()
		f, _ := os.Create(dir + "/s")
		f.WriteAt([]byte("begin"), 0)
		f.WriteAt([]byte("end"), 64<<20)
		f.Close()
		out, err := command(dir, "tar", "--sparse", "--format="+format, "-cf", "s.tar", "s")
		if err != nil {
			t.Skipf("needs GNU tar: %s", out)
		}
		tarball, _ := os.ReadFile(dir + "/s.tar")
		if len(tarball) > 1<<20 {
			t.Skip("needs a file system with holes")
		}
		b := newBox(t)
		var recipe bytes.Buffer
		o := options()
		o.Recipe = &recipe
		res, err := b.apply(tarball, o)
		if err != nil {
			t.Fatal(format, err)
		}
		st := b.stat("s")
		if st.Size != 64<<20+3 || st.Blocks > 4096 || !strings.HasPrefix(b.read("s"), "begin\x00") || !strings.HasSuffix(b.read("s"), "\x00end") {
			t.Errorf("%s: %d bytes in %d blocks", format, st.Size, st.Blocks)
		}
		if res.Recorded {
			t.Error("a recipe cannot give a sparse tar")
		}
		o.Limits.Bytes, o.Recipe = 1<<20, nil
		if _, err := newBox(t).apply(tarball, o); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: limit on bytes: %v", format, err)
		}
	}
}

func TestLimits(t *testing.T) {
	o := options()
	o.Limits = Limits{Entries: 3, Bytes: 10}
	if _, err := newBox(t).apply(pack(t, file("a", ""), file("b", ""), file("c", ""), file("d", "")), o); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "more than 3") {
		t.Errorf("entries: %v", err)
	}
	if _, err := newBox(t).apply(pack(t, file("a", "123456"), file("b", "123456")), o); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "more than 10 bytes") {
		t.Errorf("bytes: %v", err)
	}
	if _, err := newBox(t).apply(pack(t, rawPAX("comment", strings.Repeat("x", 2<<20)), file("a", "")), options()); !fault.Is(err, fault.Invalid) {
		t.Errorf("PAX record of 2 MiB: %v", err)
	}
}

func TestApplyStopsWhenAsked(t *testing.T) {
	stop, cancel := context.WithCancel(ctx)
	endless, w := io.Pipe()
	go func() {
		w.Write(pack(t, file("a", "x"))[:1024])
		cancel()
		w.CloseWithError(errors.New("closed"))
	}()
	b := newBox(t)
	if _, err := Apply(stop, endless, b.root, options()); err == nil {
		t.Error("went on")
	}
}

func TestDeepTreesAreRemoved(t *testing.T) {
	b := newBox(t)
	fd := int(b.root.Fd())
	for range 3000 {
		if err := unix.Mkdirat(fd, "d", 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := openat(fd, "d", unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if fd != int(b.root.Fd()) {
			unix.Close(fd)
		}
		fd = next
	}
	unix.Close(fd)
	os.Symlink(b.outside, b.dir+"/d/out")
	if err := RemoveAt(int(b.root.Fd()), "d"); err != nil {
		t.Fatal(err)
	}
	if names, _ := readNames(int(b.root.Fd())); len(names) != 0 {
		t.Error("left:", names)
	}
	b.check()
	if err := RemoveAt(int(b.root.Fd()), "d"); err != nil {
		t.Error("second time:", err)
	}
}

func TestFinishNeedsNoRoot(t *testing.T) {
	below, b := newBox(t), newBox(t)
	below.must(mode(folder("tmp/"), 0o1777), folder("usr/"), mode(folder("usr/lib/"), 0o711), symlink("lib", "usr/lib"), file("usr/lib/so", "so"), file("data", "d"))
	res := b.must(file("tmp/x", "x"), file("lib/so", "new"), file("lib/sub/y", "y"), hard("copy", "data"), hard("so2", "lib/so"))
	changed, err := Finish(b.root, below.root, res.Leans)
	if err != nil || !changed {
		t.Fatal(changed, err)
	}
	if b.stat("tmp").Mode&0o7777 != 0o1777 || b.stat("tmp").Mtim.Sec != someTime.Unix() || b.has("lib") || b.read("usr/lib/so") != "new" || b.read("usr/lib/sub/y") != "y" {
		t.Error(tree(t, b.dir))
	}
	if b.stat("usr/lib").Mode&0o777 != 0o711 || b.read("copy") != "d" || b.stat("copy").Ino != b.stat("data").Ino {
		t.Error(tree(t, b.dir))
	}
	if b.stat("so2").Ino != b.stat("usr/lib/so").Ino {
		t.Error("a link within the layer was cut")
	}
}

func ExampleSniff() {
	fmt.Printf("%q %q %q\n", Sniff([]byte{0x1f, 0x8b, 8, 0}), Sniff([]byte{0x28, 0xb5, 0x2f, 0xfd}), Sniff([]byte("file")))
	// Output: "gzip" "zstd" ""
}
