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
	"time"

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

func TestCommitMakesALayerThatIsItsTar(t *testing.T) {
	needsRoot(t)
	s := open(t)
	base := add(t, s, nil, entry{name: "etc/"}, entry{name: "etc/a", body: "old"}, entry{name: "dir/"}, entry{name: "dir/x", body: "x"},
		entry{name: "dir/y", body: "y"}, entry{name: "gone", body: "g"})
	prepare(t, s, "k", base)
	edit(t, s, "k", func(d string) {
		write(t, d+"/etc/a", "new")
		os.Remove(d + "/gone")
		os.RemoveAll(d + "/dir")
		os.MkdirAll(d+"/dir/sub", 0o755)
		write(t, d+"/dir/z", "z")
		os.MkdirAll(d+"/fresh/sub", 0o755)
		write(t, d+"/fresh/f", strings.Repeat("f", 300_000))
		os.Link(d+"/fresh/f", d+"/fresh/g")
		os.Symlink("f", d+"/fresh/l")
		unix.Mkfifo(d+"/fresh/p", 0o600)
		unix.Mknod(d+"/fresh/sock", unix.S_IFSOCK|0o600, 0)
		unix.Setxattr(d+"/fresh/f", "user.note", []byte("n"), 0)
		// A file made and deleted again leaves no trace.
		write(t, d+"/fresh/tmp", "t")
		os.Remove(d + "/fresh/tmp")
	})
	c, err := s.Commit(ctx, "k", CommitOptions{})
	if err != nil || c.Empty {
		t.Fatal(c, err)
	}
	if keys, _ := s.Keys(); len(keys) != 0 {
		t.Errorf("keys left: %v", keys)
	}
	stack := append(base, c.DiffID)
	found, size, err := s.Find(c.DiffID)
	if err != nil || size != c.Size {
		t.Fatal(found, size, err)
	}
	b := readTar(t, s, found)
	if int64(len(b)) != c.Size || digest.FromBytes(b) != c.DiffID {
		t.Fatalf("tar has %d bytes, %s; want %d, %s", len(b), digest.FromBytes(b), c.Size, c.DiffID)
	}
	want := []string{"dir/", "dir/.wh..wh..opq", "dir/sub/", "dir/z", "etc/", "etc/a", "fresh/", "fresh/f", "fresh/g", "fresh/l", "fresh/p", "fresh/sub/", ".wh.gone"}
	if got := tarNames(t, b); !slices.Equal(got, want) {
		t.Errorf("tar lists %v", got)
	}
	var xs []string
	filepath.WalkDir(s.layers(sharedName(c.DiffID))+"/diff", func(p string, _ os.DirEntry, _ error) error {
		buf := make([]byte, 1024)
		n, _ := unix.Llistxattr(p, buf)
		for x := range strings.SplitSeq(string(buf[:max(n, 0)]), "\x00") {
			if strings.HasPrefix(x, "trusted.") {
				xs = append(xs, filepath.Base(p)+":"+x)
			}
		}
		return nil
	})
	if !slices.Equal(xs, []string{"dir:trusted.overlay.opaque"}) {
		t.Errorf("overlayfs's attributes in the layer: %v", xs)
	}
	// The same tar, pulled elsewhere, shows the same tree.
	other := open(t)
	obase := add(t, other, nil, entry{name: "etc/"}, entry{name: "etc/a", body: "old"}, entry{name: "dir/"}, entry{name: "dir/x", body: "x"},
		entry{name: "dir/y", body: "y"}, entry{name: "gone", body: "g"})
	u, err := other.Unpack(ctx, bytes.NewReader(b), c.DiffID)
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Place(ctx, obase); err != nil {
		t.Fatal(err)
	}
	if a, b := tree(t, s, stack), tree(t, other, stack); a != b {
		t.Errorf("committed:\n%s\nunpacked:\n%s", a, b)
	}
	if !strings.Contains(tree(t, s, stack), "dir/z") || strings.Contains(tree(t, s, stack), "dir/x") {
		t.Error(tree(t, s, stack))
	}
}

func readTar(t *testing.T, s *Store, stack []digest.Digest) []byte {
	t.Helper()
	r, err := s.Tar(stack)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func tarNames(t *testing.T, b []byte) (names []string) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
}

// tree describes what a stack shows.
func tree(t *testing.T, s *Store, stack []digest.Digest) string {
	t.Helper()
	fd, err := s.View(stack)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	in(t, fd, func(d string) {
		filepath.WalkDir(d, func(p string, e os.DirEntry, err error) error {
			if err != nil {
				t.Error(err)
				return nil
			}
			if p == d {
				return nil
			}
			var st unix.Stat_t
			unix.Lstat(p, &st)
			fmt.Fprintf(&out, "%s %o %d:%d %d", p[len(d)+1:], st.Mode, st.Uid, st.Gid, st.Mtim.Nano())
			if st.Mode&unix.S_IFMT == unix.S_IFREG {
				fmt.Fprintf(&out, " %d %s", st.Nlink, digest.FromString(read(t, p)))
			}
			buf := make([]byte, 100)
			if n, err := unix.Lgetxattr(p, "user.note", buf); err == nil {
				fmt.Fprintf(&out, " note=%s", buf[:n])
			}
			out.WriteByte('\n')
			return nil
		})
	})
	return out.String()
}

func TestCommitOfNothing(t *testing.T) {
	needsRoot(t)
	s := open(t)
	base := add(t, s, nil, entry{name: "a", body: "1"})
	prepare(t, s, "k", base)
	edit(t, s, "k", func(string) {})
	c, err := s.Commit(ctx, "k", CommitOptions{})
	if err != nil || !c.Empty || c.DiffID != "" {
		t.Fatal(c, err)
	}
	all, _ := s.Layers()
	if keys, _ := s.Keys(); len(keys) != 0 || len(all) != 1 {
		t.Fatal(keys, all)
	}
}

func TestCommitTwiceGivesTheSameLayer(t *testing.T) {
	needsRoot(t)
	s := open(t)
	epoch := time.Unix(1_200_000_000, 0)
	var got []digest.Digest
	for range 2 {
		prepare(t, s, "k", nil)
		edit(t, s, "k", func(d string) {
			os.Mkdir(d+"/d", 0o755)
			write(t, d+"/d/f", "x")
			time.Sleep(5 * time.Millisecond) // other times than before
		})
		c, err := s.Commit(ctx, "k", CommitOptions{Epoch: &epoch})
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, c.DiffID)
	}
	if got[0] != got[1] {
		t.Errorf("digests differ: %v", got)
	}
	st, err := os.Stat(s.layers(sharedName(got[0])) + "/diff/d/f")
	if err != nil || !st.ModTime().Equal(epoch) {
		t.Errorf("time in the tree is %v, %v", st.ModTime(), err)
	}
	if ents, _ := os.ReadDir(s.layers(".new")); len(ents) != 0 {
		t.Errorf("left: %v", ents)
	}
}

func TestCommitCopyLeavesTheContainer(t *testing.T) {
	needsRoot(t)
	s := open(t)
	base := add(t, s, nil, entry{name: "a", body: "1"}, entry{name: "b", body: "2"})
	prepare(t, s, "k", base)
	edit(t, s, "k", func(d string) {
		os.Remove(d + "/a")
		write(t, d+"/c", "3")
		os.Link(d+"/c", d+"/c2")
		c, err := s.Commit(ctx, "k", CommitOptions{Copy: true})
		if err != nil {
			t.Fatal(err)
		}
		if got := tree(t, s, append(base, c.DiffID)); strings.Contains(got, "a 100644") || !strings.Contains(got, "c2 100644 0:0") {
			t.Errorf("layer shows:\n%s", got)
		}
		if read(t, d+"/c") != "3" {
			t.Error("container lost its file")
		}
		write(t, d+"/more", "4")
	})
	if _, err := s.Stack("k"); err != nil {
		t.Error(err)
	}
}

func TestCommitRefusesNamesThatMeanDeletions(t *testing.T) {
	needsRoot(t)
	s := open(t)
	prepare(t, s, "k", nil)
	edit(t, s, "k", func(d string) { write(t, d+"/.wh.x", "") })
	if _, err := s.Commit(ctx, "k", CommitOptions{}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), `".wh.x"`) {
		t.Errorf("committed: %v", err)
	}
	if _, err := s.Stack("k"); err != nil {
		t.Error("a failed commit took the key:", err)
	}
	if ents, _ := os.ReadDir(s.layers(".new")); len(ents) != 0 {
		t.Errorf("left: %v", ents)
	}
}

func TestEditKeepsParentDirectories(t *testing.T) {
	needsRoot(t)
	s := open(t)
	base := add(t, s, nil, entry{name: "srv/", mode: 0o2770, uid: 9}, entry{name: "var/"}, entry{name: "var/www", kind: tar.TypeSymlink, link: "/srv"})
	prepare(t, s, "k", base)
	root, err := s.Edit("k")
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Openat2(int(root.Fd()), "var/www/index.html", &unix.OpenHow{Flags: unix.O_CREAT | unix.O_WRONLY, Mode: 0o644, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		t.Fatal(err)
	}
	unix.Write(fd, []byte("hi"))
	unix.Close(fd)
	root.Close()
	c, err := s.Commit(ctx, "k", CommitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := tarNames(t, readTar(t, s, []digest.Digest{c.DiffID})); !slices.Equal(got, []string{"srv/", "srv/index.html"}) {
		t.Error(got)
	}
	if got := tree(t, s, append(base, c.DiffID)); !strings.Contains(got, "srv 42770 9:9") {
		t.Error(got)
	}
}

func TestDamagedLayerIsNamedAndMadeAnew(t *testing.T) {
	needsRoot(t)
	s := open(t)
	build := func() digest.Digest {
		epoch := time.Unix(1_000_000_000, 0)
		prepare(t, s, "k", nil)
		edit(t, s, "k", func(d string) {
			write(t, d+"/good", strings.Repeat("g", 100_000))
			write(t, d+"/victim", "right")
		})
		c, err := s.Commit(ctx, "k", CommitOptions{Epoch: &epoch})
		if err != nil {
			t.Fatal(err)
		}
		return c.DiffID
	}
	d := build()
	stack := []digest.Digest{d}
	write(t, s.layers(sharedName(d))+"/diff/victim", "wrong")
	r, err := s.Tar(stack)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	r.Close()
	if err == nil || !strings.Contains(err.Error(), "victim") || !strings.Contains(err.Error(), "keg system check") || int64(len(b)) >= r.Size() {
		t.Errorf("%d of %d bytes, %v", len(b), r.Size(), err)
	}
	if s.Has(stack) != 0 {
		t.Error("a damaged layer counts")
	}
	if _, _, err := s.Find(d); !fault.Is(err, fault.NotFound) {
		t.Errorf("a damaged layer is served: %v", err)
	}
	if err := s.Prepare(ctx, "x", stack); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("prepare: %v", err)
	}
	if all, _ := s.Layers(); len(all) != 1 || !strings.Contains(all[0].Damaged, "victim") {
		t.Errorf("layers: %+v", all)
	}
	if again := build(); again != d || s.Has(stack) != 1 {
		t.Error("the layer did not heal")
	}
	readTar(t, s, stack)
}

func TestTarOfPulledLayers(t *testing.T) {
	s := open(t)
	b := makeTar(t, entry{name: "a", body: "1"})
	stack := add(t, s, nil, entry{name: "a", body: "1"})
	if _, err := s.Tar(stack); !fault.Is(err, fault.Unsupported) {
		t.Errorf("no recipe: %v", err)
	}
	if _, _, err := s.Find(stack[0]); !fault.Is(err, fault.NotFound) {
		t.Errorf("find: %v", err)
	}
	if tarSize, files, err := s.LayerSize(stack); err != nil || tarSize != int64(len(b)) || files != 1 {
		t.Errorf("sizes %d %d, %v", tarSize, files, err)
	}
	b = append(makeTar(t, entry{name: "d/"}, entry{name: "d/b", body: strings.Repeat("b", 5000)}), make([]byte, 8192)...)
	u, err := s.UnpackRecorded(ctx, bytes.NewReader(b), digest.FromBytes(b))
	if err != nil || !u.Recorded() {
		t.Fatal(err)
	}
	if err := u.Place(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if got := readTar(t, s, []digest.Digest{u.DiffID()}); !bytes.Equal(got, b) {
		t.Error("tar differs")
	}
}

func TestSweep(t *testing.T) {
	s := open(t)
	keepNone := func() ([][]digest.Digest, error) { return nil, nil }
	base := add(t, s, nil, entry{name: "base", body: "12345"})
	named := add(t, s, base, entry{name: "named"})
	activeOne := add(t, s, base, entry{name: "active"})
	leased := add(t, s, base, entry{name: "leased"})
	unused := add(t, s, base, entry{name: "unused", body: "123"})
	prepare(t, s, "k", activeOne)
	l, err := s.Lease(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Add(leased); err != nil {
		t.Fatal(err)
	}
	if freed, _, err := s.Sweep(ctx, time.Hour, keepNone); err != nil || len(freed) != 0 {
		t.Fatalf("within grace: %v, %v", freed, err)
	}
	freed, n, err := s.Sweep(ctx, 0, func() ([][]digest.Digest, error) { return [][]digest.Digest{named}, nil })
	if err != nil || !slices.Equal(freed, unused[1:]) || n != 3 {
		t.Fatal(freed, n, err)
	}
	boom := errors.New("boom")
	if freed, _, err := s.Sweep(ctx, 0, func() ([][]digest.Digest, error) { return nil, boom }); !errors.Is(err, boom) || len(freed) != 0 {
		t.Fatal("marks failed, yet", freed, err)
	}
	l.Release()
	s.Remove("k")
	os.Mkdir(s.layers(".new/garbage"), 0o700)
	old := time.Now().Add(-time.Hour)
	os.Mkdir(s.active(".new-x"), 0o700)
	os.Chtimes(s.active(".new-x"), old, old)
	if freed, n, err := s.Sweep(ctx, 0, keepNone); err != nil || len(freed) != 4 || n != 5 {
		t.Fatal(freed, n, err)
	}
	for _, d := range []string{s.layers(".new"), s.layers(".trash"), s.layers(".leases"), s.active("")} {
		if ents, _ := os.ReadDir(d); len(ents) != 0 {
			t.Errorf("left in %s: %v", d, ents)
		}
	}
}

// Preparing must never succeed on a layer that a sweep is taking away.
func TestSweepBesidePrepare(t *testing.T) {
	s := open(t)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				if _, _, err := s.Sweep(ctx, 0, func() ([][]digest.Digest, error) { return nil, nil }); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	for i := range 200 {
		stack := add(t, s, nil, entry{name: "f", body: fmt.Sprint(i % 3)})
		err := s.Prepare(ctx, "k", stack)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if s.Has(stack) != 1 {
			t.Fatal("prepared on a layer that is gone")
		}
		if err := s.Remove("k"); err != nil {
			t.Fatal(err)
		}
	}
	close(done)
	wg.Wait()
}

func TestSyncAndUnsyncedLayersOfAnotherBoot(t *testing.T) {
	s := open(t)
	kept := add(t, s, nil, entry{name: "kept"})
	marks := func() int {
		all, _ := filepath.Glob(s.layers(".unsynced/*/*"))
		return len(all)
	}
	if marks() == 0 {
		t.Fatal("no mark")
	}
	if err := s.Sync(ctx); err != nil || marks() != 0 {
		t.Fatal(marks(), err)
	}
	torn := add(t, s, nil, entry{name: "torn"})
	boots, _ := os.ReadDir(s.layers(".unsynced"))
	if len(boots) != 1 {
		t.Fatal(boots)
	}
	if err := os.Rename(s.layers(".unsynced/"+boots[0].Name()), s.layers(".unsynced/another-boot")); err != nil {
		t.Fatal(err)
	}
	again, err := OpenWith(s.root, s.opt)
	if err != nil {
		t.Fatal(err)
	}
	if again.Has(torn) != 0 || again.Has(kept) != 1 {
		t.Errorf("torn %d, kept %d", again.Has(torn), again.Has(kept))
	}
	if left, _ := os.ReadDir(s.layers(".unsynced")); len(left) != 0 {
		t.Error(left)
	}
}

func TestChanges(t *testing.T) {
	needsRoot(t)
	s := open(t)
	base := add(t, s, nil, entry{name: "etc/"}, entry{name: "etc/a", body: "1"}, entry{name: "etc/b", body: "2"}, entry{name: "d/"},
		entry{name: "d/x"}, entry{name: "d/y"}, entry{name: "touched/"}, entry{name: "l", kind: tar.TypeSymlink, link: "etc"})
	prepare(t, s, "k", base)
	if c, err := s.Changes("k"); err != nil || len(c) != 0 {
		t.Fatal(c, err)
	}
	edit(t, s, "k", func(d string) {
		write(t, d+"/etc/a", "new")
		os.Remove(d + "/etc/b")
		os.RemoveAll(d + "/d")
		os.Mkdir(d+"/d", 0o755)
		write(t, d+"/d/y", "y")
		os.MkdirAll(d+"/n/m", 0o755)
		os.Chmod(d+"/touched", 0o700)
		os.Remove(d + "/l")
	})
	got, err := s.Changes("k")
	if err != nil {
		t.Fatal(err)
	}
	want := []Change{{Modified, "/d"}, {Deleted, "/d/x"}, {Modified, "/d/y"}, {Modified, "/etc"}, {Modified, "/etc/a"}, {Deleted, "/etc/b"},
		{Deleted, "/l"}, {Added, "/n"}, {Added, "/n/m"}, {Modified, "/touched"}}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
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

func TestStoreIsClosedToOthers(t *testing.T) {
	needsRoot(t)
	s := open(t)
	add(t, s, nil, entry{name: "su", body: "x", mode: 0o4755})
	for _, d := range []string{s.layers(""), s.active("")} {
		if st, err := os.Stat(d); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s is %v, %v", d, st.Mode(), err)
		}
	}
}

func TestNoDescriptorsAreLeft(t *testing.T) {
	needsRoot(t)
	s := open(t)
	stack := add(t, s, nil, entry{name: "a/"}, entry{name: "a/b", body: "1"})
	round := func() {
		prepare(t, s, "k", stack)
		edit(t, s, "k", func(d string) { write(t, d+"/a/c", "c"); os.Remove(d + "/a/b") })
		s.Changes("k")
		c, err := s.Commit(ctx, "k", CommitOptions{})
		if err != nil {
			t.Fatal(err)
		}
		readTar(t, s, append(stack, c.DiffID))
		s.Sweep(ctx, 0, func() ([][]digest.Digest, error) { return [][]digest.Digest{stack}, nil })
	}
	round()
	before, _ := os.ReadDir("/proc/self/fd")
	for range 5 {
		round()
	}
	after, _ := os.ReadDir("/proc/self/fd")
	if len(after) > len(before) {
		t.Errorf("%d descriptors, %d before", len(after), len(before))
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
