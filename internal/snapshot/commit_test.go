package snapshot

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

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
