package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

func TestStackIsMountedAndWritable(t *testing.T) {
	needsRoot(t)
	s := open(t)
	stack := add(t, s, nil, entry{name: "etc/"}, entry{name: "etc/a", body: "one"}, entry{name: "etc/b", body: "gone"})
	stack = add(t, s, stack, entry{name: "etc/"}, entry{name: "etc/.wh.b"}, entry{name: "etc/c", body: "two"})
	if n := s.Has(stack); n != 2 {
		t.Fatalf("Has = %d", n)
	}
	if n := s.Has(append(stack[:1:1], digest.FromString("x"), stack[1])); n != 1 {
		t.Fatalf("Has of a broken stack = %d", n)
	}
	prepare(t, s, "c1", stack)
	edit(t, s, "c1", func(d string) {
		if read(t, d+"/etc/a") != "one" || read(t, d+"/etc/c") != "two" {
			t.Error("lower files do not show")
		}
		if _, err := os.Lstat(d + "/etc/b"); !os.IsNotExist(err) {
			t.Errorf("deleted file shows: %v", err)
		}
		write(t, d+"/new", "three")
	})
	if read(t, s.Upper("c1")+"/new") != "three" {
		t.Error("write did not reach the upper directory")
	}
	if got, err := s.Stack("c1"); err != nil || !slices.Equal(got, stack) {
		t.Fatal(got, err)
	}
	if n, err := s.Usage("c1"); err != nil || n != 5 {
		t.Fatal(n, err)
	}
	if keys, err := s.Keys(); err != nil || !slices.Equal(keys, []string{"c1"}) {
		t.Fatal(keys, err)
	}
	if err := s.Remove("c1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove("c1"); err != nil {
		t.Fatal("second remove:", err)
	}
	left, _ := os.ReadDir(s.layers(".trash"))
	if keys, _ := s.Keys(); len(keys) != 0 || len(left) != 0 {
		t.Fatal(keys, left)
	}
}

func TestSmallStacksAndManyLayers(t *testing.T) {
	needsRoot(t)
	s := open(t)
	var stack []digest.Digest
	for n := range 128 {
		switch n {
		case 0, 1, 2, 44, 127:
			checkStack(t, s, stack, n)
			s.noAppend.Store(true)
			checkStack(t, s, stack, n)
			s.noAppend.Store(false)
		}
		stack = add(t, s, stack, entry{name: fmt.Sprint("f", n), body: fmt.Sprint(n)}, entry{name: "last", body: fmt.Sprint(n)})
	}
}

func checkStack(t *testing.T, s *Store, stack []digest.Digest, n int) {
	t.Helper()
	look := func(d string) {
		ents, err := os.ReadDir(d)
		want := n
		if n > 0 {
			want++
			if got := read(t, d+"/last"); got != fmt.Sprint(n-1) {
				t.Errorf("%d layers: last is %q", n, got)
			}
		}
		if err != nil || len(ents) != want {
			t.Errorf("%d layers: %d entries, %v", n, len(ents), err)
		}
	}
	fd, err := s.View(stack)
	if err != nil {
		t.Fatalf("view of %d layers: %v", n, err)
	}
	in(t, fd, func(d string) {
		look(d)
		if err := os.WriteFile(d+"/w", nil, 0o600); !errors.Is(err, unix.EROFS) {
			t.Errorf("write to a view: %v", err)
		}
	})
	prepare(t, s, "k", stack)
	edit(t, s, "k", func(d string) {
		look(d)
		write(t, d+"/w", "x")
	})
	// What volatile leaves behind must not keep the next mount out.
	fd, err = s.Mount("k", MountOptions{})
	if err != nil {
		t.Fatalf("second mount of %d layers: %v", n, err)
	}
	in(t, fd, func(d string) {
		if read(t, d+"/w") != "x" {
			t.Error("write was lost")
		}
	})
	fd, err = s.Mount("k", MountOptions{ReadOnly: true})
	if err != nil {
		t.Fatalf("read-only mount of %d layers: %v", n, err)
	}
	in(t, fd, func(d string) {
		if read(t, d+"/w") != "x" {
			t.Error("a read-only mount lacks what the key changed")
		}
		if err := os.WriteFile(d+"/v", nil, 0o600); !errors.Is(err, unix.EROFS) {
			t.Errorf("write to a read-only mount: %v", err)
		}
	})
	if err := s.Remove("k"); err != nil {
		t.Fatal(err)
	}
}

func TestLongRootAndOddNames(t *testing.T) {
	needsRoot(t)
	dir := t.TempDir()
	for range 2 {
		dir = filepath.Join(dir, strings.Repeat("long:comma,", 12))
	}
	s, err := OpenWith(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	stack := add(t, s, nil, entry{name: "f0"})
	stack = add(t, s, stack, entry{name: "f1"}, entry{name: "last", body: "1"})
	for _, old := range []bool{false, true} {
		s.noAppend.Store(old)
		checkStack(t, s, stack, 2)
	}
}

func TestPrepareRefuses(t *testing.T) {
	s := open(t)
	stack := add(t, s, nil, entry{name: "a", body: "1"})
	gone := digest.FromString("gone")
	if err := s.Prepare(ctx, "k", append(stack, gone)); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), gone.String()) {
		t.Errorf("missing layer: %v", err)
	}
	prepare(t, s, "k", stack)
	if err := s.Prepare(ctx, "k", stack); !fault.Is(err, fault.Conflict) {
		t.Errorf("same key twice: %v", err)
	}
	for _, key := range []string{"", ".", "..", "a/b", ".hidden", "a\x00", strings.Repeat("k", 129)} {
		if err := s.Prepare(ctx, key, stack); !fault.Is(err, fault.Invalid) {
			t.Errorf("key %q: %v", key, err)
		}
		if s.Upper(key) != "" {
			t.Errorf("key %q has a path", key)
		}
		if err := s.Remove(key); !fault.Is(err, fault.Invalid) {
			t.Errorf("remove key %q: %v", key, err)
		}
	}
	for _, d := range []digest.Digest{"sha256:../../etc", "sha512:" + digest.Digest(strings.Repeat("a", 128)), "x"} {
		if err := s.Prepare(ctx, "bad", []digest.Digest{d}); !fault.Is(err, fault.Invalid) {
			t.Errorf("digest %q: %v", d, err)
		}
		if s.Has([]digest.Digest{d}) != 0 {
			t.Errorf("has %q", d)
		}
	}
	if _, err := s.Stack("nobody"); !fault.Is(err, fault.NotFound) {
		t.Errorf("stack of nobody: %v", err)
	}
	if _, err := s.Mount("nobody", MountOptions{}); !fault.Is(err, fault.NotFound) {
		t.Errorf("mount of nobody: %v", err)
	}
	ents, _ := os.ReadDir(s.active(""))
	if len(ents) != 1 {
		t.Errorf("left: %v", ents)
	}
}

func TestRootDirectoryIsThatOfTheLayerThatListsIt(t *testing.T) {
	needsRoot(t)
	s := open(t)
	stack := add(t, s, nil, entry{name: "./", mode: 0o555, uid: 7}, entry{name: "a"})
	stack = add(t, s, stack, entry{name: "b"})
	prepare(t, s, "k", stack)
	edit(t, s, "k", func(d string) {
		var st unix.Stat_t
		if err := unix.Stat(d, &st); err != nil || st.Mode&0o7777 != 0o555 || st.Uid != 7 || st.Mtim.Sec != 1_000_000_000 {
			t.Errorf("root is %o of %d at %d, %v", st.Mode, st.Uid, st.Mtim.Sec, err)
		}
	})
	if c, err := s.Commit(ctx, "k", CommitOptions{}); err != nil || !c.Empty {
		t.Fatal(c, err)
	}
	prepare(t, s, "k", stack)
	edit(t, s, "k", func(d string) { os.Chmod(d, 0o711) })
	c, err := s.Commit(ctx, "k", CommitOptions{})
	if err != nil || c.Empty {
		t.Fatal(c, err)
	}
	prepare(t, s, "k", append(stack, c.DiffID))
	edit(t, s, "k", func(d string) {
		if st, _ := os.Stat(d); st.Mode().Perm() != 0o711 {
			t.Errorf("changed root is %o", st.Mode())
		}
	})
}

func TestUnpackChecksDigestAndLeavesNothing(t *testing.T) {
	s := open(t)
	b := makeTar(t, entry{name: "a", body: "1"})
	if _, err := s.Unpack(ctx, bytes.NewReader(b), digest.FromString("other")); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), digest.FromBytes(b).String()) {
		t.Errorf("wrong digest: %v", err)
	}
	if _, err := s.Unpack(ctx, bytes.NewReader(b[:512]), ""); !fault.Is(err, fault.Invalid) {
		t.Errorf("cut tar: %v", err)
	}
	boom := errors.New("boom")
	if _, err := s.Unpack(ctx, io.MultiReader(bytes.NewReader(b[:600]), errReader{boom}), ""); !errors.Is(err, boom) {
		t.Errorf("broken source: %v", err)
	}
	stop, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Unpack(stop, bytes.NewReader(b), ""); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	u, err := s.Unpack(ctx, bytes.NewReader(b), digest.FromBytes(b))
	if err != nil || u.Size() != int64(len(b)) {
		t.Fatal(err)
	}
	if err := u.Place(ctx, []digest.Digest{digest.FromString("gone")}); !fault.Is(err, fault.NotFound) {
		t.Errorf("place on nothing: %v", err)
	}
	u.Discard()
	if ents, _ := os.ReadDir(s.layers(".new")); len(ents) != 0 {
		t.Errorf("left: %v", ents)
	}
	if s.Has([]digest.Digest{digest.FromBytes(b)}) != 0 {
		t.Error("a discarded layer is there")
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestSameLayerUnpackedByManyAtOnce(t *testing.T) {
	root := t.TempDir()
	b := makeTar(t, entry{name: "d/"}, entry{name: "d/a", body: strings.Repeat("x", 100_000)})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			s, err := OpenWith(root, Options{SingleID: os.Geteuid() != 0, UserXattr: os.Geteuid() != 0})
			if err != nil {
				t.Error(err)
				return
			}
			u, err := s.Unpack(ctx, bytes.NewReader(b), digest.FromBytes(b))
			if err != nil {
				t.Error(err)
				return
			}
			defer u.Discard()
			if err := u.Place(ctx, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s, _ := OpenWith(root, Options{})
	if ents, _ := os.ReadDir(s.layers(".new")); len(ents) != 0 {
		t.Errorf("left: %v", ents)
	}
	all, err := s.Layers()
	if err != nil || len(all) != 1 || !all[0].Shared || all[0].Files != 100_000 {
		t.Fatal(all, err)
	}
}

// A layer whose tar does not list its directories takes them from below; alone it
// would make /tmp 0755 and cover the link /bin.
func TestLayerThatLeansOnItsParents(t *testing.T) {
	needsRoot(t)
	s := open(t)
	base := add(t, s, nil, entry{name: "tmp/", mode: 0o1777, uid: 5}, entry{name: "usr/"}, entry{name: "usr/bin/", mode: 0o750},
		entry{name: "usr/bin/sh", body: "shell", mode: 0o755}, entry{name: "bin", kind: tar.TypeSymlink, link: "usr/bin"})
	lean := []entry{{name: "tmp/x", body: "x"}, {name: "bin/tool", body: "tool"}, {name: "opt/deep/er", body: "e"},
		{name: "shell", kind: tar.TypeLink, link: "bin/sh"}}
	stack := add(t, s, base, lean...)
	if all, _ := s.Layers(); len(all) != 2 {
		t.Fatal(all)
	}
	if s.Has(stack) != 2 || s.Has([]digest.Digest{stack[1]}) != 0 {
		t.Error("a layer that leans must be found on its own parents only")
	}
	fd, err := s.View(stack)
	if err != nil {
		t.Fatal(err)
	}
	in(t, fd, func(d string) {
		var tmp, bin, sh, hard unix.Stat_t
		unix.Lstat(d+"/tmp", &tmp)
		unix.Lstat(d+"/usr/bin", &bin)
		unix.Lstat(d+"/usr/bin/sh", &sh)
		unix.Lstat(d+"/shell", &hard)
		if tmp.Mode&0o7777 != 0o1777 || tmp.Uid != 5 || tmp.Mtim.Sec != 1_000_000_000 {
			t.Errorf("/tmp is %o of %d", tmp.Mode, tmp.Uid)
		}
		if l, _ := os.Readlink(d + "/bin"); l != "usr/bin" {
			t.Errorf("/bin is covered: %q", l)
		}
		if bin.Mode&0o7777 != 0o750 || read(t, d+"/bin/tool") != "tool" || read(t, d+"/bin/sh") != "shell" {
			t.Error("/usr/bin is wrong")
		}
		if read(t, d+"/opt/deep/er") != "e" {
			t.Error("a new directory is missing")
		}
		if sh.Ino != hard.Ino || sh.Nlink != 2 || hard.Mode&0o777 != 0o755 {
			t.Errorf("hard link: inodes %d %d, %d links", sh.Ino, hard.Ino, sh.Nlink)
		}
	})
	bad := makeTar(t, entry{name: "x", kind: tar.TypeLink, link: "nowhere"})
	u, err := s.Unpack(ctx, bytes.NewReader(bad), "")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Discard()
	for _, below := range [][]digest.Digest{nil, base} {
		if err := u.Place(ctx, below); !fault.Is(err, fault.Invalid) {
			t.Errorf("link to nowhere: %v", err)
		}
	}
}

// A layer must not bring back what a later one deleted, whatever attributes it carries
// and whatever the host's overlay module prefers.
func TestSmuggledOverlayAttributes(t *testing.T) {
	needsRoot(t)
	s := open(t)
	base := add(t, s, nil, entry{name: "secret/"}, entry{name: "secret/key", body: "k"})
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	w.WriteHeader(&tar.Header{Name: ".wh.secret", Typeflag: tar.TypeReg})
	w.WriteHeader(&tar.Header{Name: "loot/", Typeflag: tar.TypeDir, Mode: 0o755, PAXRecords: map[string]string{
		"SCHILY.xattr.trusted.overlay.redirect": "/secret", "SCHILY.xattr.user.overlay.redirect": "/secret"}})
	w.Close()
	u, err := s.Unpack(ctx, &buf, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Place(ctx, base); err != nil {
		t.Fatal(err)
	}
	// Past Apply, too: the mount alone must hold.
	dir := s.layers(sharedName(u.DiffID())) + "/diff/loot"
	if n, err := unix.Lgetxattr(dir, "trusted.overlay.redirect", nil); err == nil {
		t.Errorf("attribute of %d bytes came through", n)
	}
	if err := unix.Lsetxattr(dir, "trusted.overlay.redirect", []byte("/secret"), 0); err != nil {
		t.Fatal(err)
	}
	for _, old := range []bool{false, true} {
		s.noAppend.Store(old)
		fd, err := s.View(append(base, u.DiffID()))
		if err != nil {
			t.Fatal(err)
		}
		in(t, fd, func(d string) {
			if _, err := os.Stat(d + "/loot/key"); err == nil {
				t.Error("a redirect was followed")
			}
		})
	}
}

// BenchmarkRun is what every container pays: prepare, mount, remove.
func BenchmarkRun(b *testing.B) {
	needsRoot(b)
	s := open(b)
	var stack []digest.Digest
	for i := range 5 {
		stack = add(b, s, stack, entry{name: fmt.Sprint("f", i)})
	}
	for b.Loop() {
		prepare(b, s, "k", stack)
		fd, err := s.Mount("k", MountOptions{Volatile: true})
		if err != nil {
			b.Fatal(err)
		}
		unix.Close(fd)
		if err := s.Remove("k"); err != nil {
			b.Fatal(err)
		}
	}
}

// Two steps that change nothing give the same empty layer; many images have it twice.
func TestStackThatNamesALayerTwice(t *testing.T) {
	needsRoot(t)
	s := open(t)
	stack := add(t, s, nil, entry{name: "a", body: "one"})
	stack = add(t, s, stack, entry{name: "b", body: "two"})
	stack = append(stack, stack[0], stack[1])
	prepare(t, s, "c1", stack)
	edit(t, s, "c1", func(d string) {
		if read(t, d+"/a") != "one" || read(t, d+"/b") != "two" {
			t.Error("files do not show")
		}
	})
	fd, err := s.View(stack)
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
}
