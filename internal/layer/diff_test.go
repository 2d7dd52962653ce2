package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
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
	"keg/internal/image"
)

func diffOptions() DiffOptions { return DiffOptions{UserXattr: os.Geteuid() != 0} }

// openTar opens the tar of dir by a recipe in memory.
func openTar(t testing.TB, dir string, recipe []byte) (*Tar, error) {
	t.Helper()
	p := filepath.Join(t.TempDir(), "recipe")
	if err := os.WriteFile(p, recipe, 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	return OpenTar(root, f)
}

func recreate(t testing.TB, dir string, recipe []byte) ([]byte, error) {
	t.Helper()
	r, err := openTar(t, dir, recipe)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// grow makes a random tree as a container might leave it.
func grow(t *testing.T, dir string, r *rand.Rand) {
	t.Helper()
	root := os.Geteuid() == 0
	dirs, files := []string{dir}, []string{}
	for i := range 60 {
		p := filepath.Join(dirs[r.IntN(len(dirs))], fmt.Sprintf("%d%s", i, strings.Repeat("n", r.IntN(120))))
		switch r.IntN(10) {
		case 0, 1:
			os.Mkdir(p, 0o755)
			dirs = append(dirs, p)
			if r.IntN(3) == 0 {
				if err := unix.Lsetxattr(p, opaqueName(), []byte("y"), 0); err != nil {
					t.Fatal(err)
				}
			}
		case 2:
			os.Symlink(strings.Repeat("../x", r.IntN(60)), p)
		case 3:
			if len(files) > 0 {
				os.Link(files[r.IntN(len(files))], p)
			}
		case 4:
			unix.Mknod(p, unix.S_IFCHR, 0) // a deletion
		case 5:
			unix.Mkfifo(p, 0o640)
		case 6:
			if root {
				unix.Mknod(p, unix.S_IFBLK|0o600, int(unix.Mkdev(8, uint32(i))))
			}
		default:
			body := make([]byte, r.IntN(4)*r.IntN(300_000))
			for n := range body {
				body[n] = byte(r.Uint32() >> 28)
			}
			os.WriteFile(p, body, 0o644)
			os.Chmod(p, os.FileMode(r.IntN(0o1000))|0o400)
			if r.IntN(3) == 0 {
				unix.Lsetxattr(p, "user.x", fmt.Append(nil, i), 0)
			}
			files = append(files, p)
		}
		if root && r.IntN(2) == 0 {
			os.Lchown(p, r.IntN(1<<22), r.IntN(70000))
		}
		var st unix.Stat_t
		if unix.Lstat(p, &st) == nil && !whiteout(&st) {
			ts := unix.Timespec{Sec: r.Int64N(1 << 31), Nsec: r.Int64N(1e9)}
			unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
		}
	}
}

// The property: what Diff describes, Apply makes; and the recipe gives the same tar.
func TestApplyOfDiffIsTheTree(t *testing.T) {
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 7))
		dir := t.TempDir()
		grow(t, dir, r)
		root, _ := os.Open(dir)
		var tarball, recipe bytes.Buffer
		o := diffOptions()
		o.Tar, o.Recipe = &tarball, &recipe
		d, err := Diff(ctx, root, o)
		if err != nil {
			t.Fatal(seed, err)
		}
		if d.DiffID != digest.FromBytes(tarball.Bytes()) || d.Size != int64(tarball.Len()) || d.Empty {
			t.Fatalf("%d: %+v", seed, d)
		}
		b := newBox(t)
		res, err := b.apply(tarball.Bytes(), options())
		if err != nil {
			t.Fatal(seed, err)
		}
		if want, got := tree(t, dir), tree(t, b.dir); want != got {
			t.Fatalf("%d: tree\n%s\nbecame\n%s", seed, want, got)
		}
		if !res.Leans.None() || res.Files != d.Files {
			t.Errorf("%d: %+v, %+v", seed, res, d)
		}
		if got, err := recreate(t, dir, recipe.Bytes()); err != nil || !bytes.Equal(got, tarball.Bytes()) {
			t.Errorf("%d: tar from the recipe has %d bytes, %v", seed, len(got), err)
		}
		// Again, from the unpacked tree: the same bytes.
		again, err := Diff(ctx, b.root, diffOptions())
		if err != nil || again.DiffID != d.DiffID {
			t.Errorf("%d: second diff %s, %v", seed, again.DiffID, err)
		}
		root.Close()
	}
}

func TestDiffNormalises(t *testing.T) {
	b := newBox(t)
	b.must(folder("d/"), file("d/f", "x"), folder("hides/"), folder("fresh/"))
	unix.Lsetxattr(b.dir+"/hides", opaqueName(), []byte("y"), 0)
	unix.Lsetxattr(b.dir+"/fresh", opaqueName(), []byte("y"), 0)
	unix.Lsetxattr(b.dir+"/d/f", strings.Replace(opaqueName(), "opaque", "origin", 1), []byte("junk"), 0)
	unix.Mknod(b.dir+"/fresh/pointless", unix.S_IFCHR, 0)
	unix.Mknod(b.dir+"/d/gone", unix.S_IFCHR, 0)
	unix.Mknod(b.dir+"/d/never", unix.S_IFCHR, 0)
	unix.Mknod(b.dir+"/d/sock", unix.S_IFSOCK|0o600, 0)
	now := time.Now()
	os.Chtimes(b.dir+"/d/f", now, now)
	epoch := time.Unix(1_500_000_000, 0)
	o := diffOptions()
	var tarball bytes.Buffer
	o.Tar, o.Epoch = &tarball, &epoch
	o.Below = func(p string) (bool, bool, error) {
		return p == "hides" || p == "d" || p == "d/gone", p != "d/gone", nil
	}
	d, err := Diff(ctx, b.root, o)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(&tarball); ; {
		h, err := r.Next()
		if err != nil {
			break
		}
		names = append(names, h.Name)
		if h.ModTime.After(epoch) || h.ModTime.Nanosecond() != 0 || h.Uname != "" {
			t.Errorf("%+v", h)
		}
	}
	if want := []string{"d/", "d/f", "d/.wh.gone", "fresh/", "hides/", "hides/.wh..wh..opq"}; !slices.Equal(names, want) {
		t.Error(names)
	}
	if b.has("d/sock") || b.has("d/never") || b.has("fresh/pointless") || !b.has("d/gone") || b.xattr("fresh", opaqueName()) != "" || b.xattr("hides", opaqueName()) != "y" {
		t.Error(tree(t, b.dir))
	}
	if b.stat("d/f").Mtim != (unix.Timespec{Sec: epoch.Unix()}) || b.stat("d").Mtim != (unix.Timespec{Sec: epoch.Unix()}) {
		t.Error("times in the tree differ from the tar's")
	}
	if again, _ := Diff(ctx, b.root, o); again.DiffID != d.DiffID {
		t.Error("a second diff differs")
	}
}

func TestDiffOfNothing(t *testing.T) {
	b := newBox(t)
	st := b.stat("")
	o := diffOptions()
	o.Root = &Attr{st.Mode & 0o7777, st.Uid, st.Gid}
	if d, err := Diff(ctx, b.root, o); err != nil || !d.Empty {
		t.Error(d, err)
	}
	os.Chmod(b.dir, 0o700)
	if d, err := Diff(ctx, b.root, o); err != nil || d.Empty || d.Entries != 1 {
		t.Error(d, err)
	}
}

func TestPackLeavesTheTreeAlone(t *testing.T) {
	b := newBox(t)
	b.must(folder("d/"), file("d/.x", "x"))
	os.WriteFile(b.dir+"/.wh.file", []byte("real"), 0o644)
	unix.Mknod(b.dir+"/sock", unix.S_IFSOCK|0o600, 0)
	before := tree(t, b.dir)
	var out bytes.Buffer
	d, err := Pack(ctx, b.root, DiffOptions{Tar: &out})
	if err != nil || d.Entries != 3 || digest.FromBytes(out.Bytes()) != d.DiffID {
		t.Fatal(d, err)
	}
	if tree(t, b.dir) != before {
		t.Error("tree changed")
	}
	boom := errors.New("boom")
	if _, err := Pack(ctx, b.root, DiffOptions{Tar: failing{boom}}); !errors.Is(err, boom) {
		t.Error(err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// sample is a tree of several chunks with its tar and recipe.
func sample(t *testing.T) (dir string, tarball, recipe []byte) {
	t.Helper()
	b := newBox(t)
	items := []item{folder("d/")}
	for i := range 700 {
		items = append(items, file(fmt.Sprintf("d/%03d-%s", i, strings.Repeat("p", 80)), strings.Repeat(fmt.Sprint(i), i*7%900)))
	}
	items = append(items, file("big", strings.Repeat("0123456789abcdef", 60_000)), file("last", "end"))
	b.must(items...)
	var tb, rc bytes.Buffer
	o := diffOptions()
	o.Tar, o.Recipe = &tb, &rc
	if _, err := Diff(ctx, b.root, o); err != nil {
		t.Fatal(err)
	}
	return b.dir, tb.Bytes(), rc.Bytes()
}

func TestTarSeeks(t *testing.T) {
	dir, want, recipe := sample(t)
	r, err := openTar(t, dir, recipe)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.Size() != int64(len(want)) || r.Digest() != digest.FromBytes(want) {
		t.Fatal(r.Size(), r.Digest())
	}
	if len(r.index) < 4 || len(recipe) > len(want)/2 {
		t.Errorf("%d chunks, recipe of %d bytes for %d", len(r.index)-1, len(recipe), len(want))
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		off, n := rnd.Int64N(r.Size()), rnd.IntN(200_000)
		end := min(off+int64(n), r.Size())
		p := make([]byte, n)
		m, err := r.ReadAt(p, off)
		if !bytes.Equal(p[:m], want[off:end]) || (err == nil) != (m == n) {
			t.Fatalf("ReadAt %d+%d: %d, %v", off, n, m, err)
		}
		r.Seek(off, io.SeekStart)
		if m, err = io.ReadFull(r, p[:end-off]); err != nil || !bytes.Equal(p[:m], want[off:end]) {
			t.Fatalf("Read at %d+%d: %d, %v", off, n, m, err)
		}
	}
	if end, err := r.Seek(-10, io.SeekEnd); err != nil || end != r.Size()-10 {
		t.Fatal(end, err)
	}
	if _, err := r.Seek(-1, io.SeekStart); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	var wg sync.WaitGroup
	for i := range int64(8) {
		wg.Go(func() {
			p := make([]byte, r.Size()/8)
			if _, err := r.ReadAt(p, i*int64(len(p))); err != nil || !bytes.Equal(p, want[i*int64(len(p)):(i+1)*int64(len(p))]) {
				t.Error(i, err)
			}
		})
	}
	wg.Wait()
}

// A reader never gets to the end of a tar that is not the recorded one, and is told
// which file is to blame.
func TestTarWithholdsWhatChanged(t *testing.T) {
	changes := map[string]func(p string){
		"contents": func(p string) { b, _ := os.ReadFile(p); b[len(b)/2] ^= 1; os.WriteFile(p, b, 0o644) },
		"longer":   func(p string) { b, _ := os.ReadFile(p); os.WriteFile(p, append(b, 'x'), 0o644) },
		"shorter":  func(p string) { b, _ := os.ReadFile(p); os.WriteFile(p, b[:len(b)-1], 0o644) },
		"gone":     func(p string) { os.Remove(p) },
		"a link":   func(p string) { os.Rename(p, p+"2"); os.Symlink(filepath.Base(p)+"2", p) },
		"a fifo":   func(p string) { os.Remove(p); unix.Mkfifo(p, 0o644) },
	}
	dir, want, recipe := sample(t)
	for _, victim := range []string{"big", "last"} {
		whole, _ := os.ReadFile(filepath.Join(dir, victim))
		for how, change := range changes {
			change(filepath.Join(dir, victim))
			r, err := openTar(t, dir, recipe)
			if err != nil {
				t.Fatal(err)
			}
			check := func(what string, n int, err error) {
				t.Helper()
				if !errors.Is(err, ErrChanged) || !strings.Contains(err.Error(), `"`+victim+`"`) || n >= len(want) {
					t.Errorf("%s %s, %s: %d bytes, %v", victim, how, what, n, err)
				}
			}
			b, err := io.ReadAll(r)
			check("read", len(b), err)
			if !bytes.Equal(b, want[:len(b)]) && how != "contents" {
				t.Errorf("%s %s: wrong bytes were handed out", victim, how)
			}
			r.Seek(600_000, io.SeekStart) // within big
			b, err = io.ReadAll(r)
			check("read from the middle", len(b), err)
			n, err := r.ReadAt(make([]byte, len(want)), 0)
			check("ReadAt", n, err)
			check("verify", 0, r.Verify(ctx))
			// What is not concerned still reads.
			if _, err := r.ReadAt(make([]byte, 5000), 980_000); err != nil {
				t.Error(err)
			}
			r.Close()
			os.Remove(filepath.Join(dir, victim))
			os.WriteFile(filepath.Join(dir, victim), whole, 0o644)
		}
	}
	if got, err := recreate(t, dir, recipe); err != nil || !bytes.Equal(got, want) {
		t.Error("put right again:", err)
	}
}

func TestDamagedRecipes(t *testing.T) {
	dir, want, recipe := sample(t)
	for i := 0; i < len(recipe); i += 1 + len(recipe)/120 {
		bad := bytes.Clone(recipe)
		bad[i] ^= 0x40
		if got, err := recreate(t, dir, bad); err == nil && !bytes.Equal(got, want) {
			t.Fatalf("byte %d: wrong tar, no error", i)
		} else if err != nil && !errors.Is(err, ErrChanged) {
			t.Fatalf("byte %d: %v", i, err)
		}
	}
	for _, n := range []int{0, 10, len(recipe) / 2, len(recipe) - 1} {
		if _, err := recreate(t, dir, recipe[:n]); !errors.Is(err, ErrChanged) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
}

func FuzzRecipe(f *testing.F) {
	f.Add([]byte(recipeMagic))
	dir := f.TempDir()
	os.WriteFile(dir+"/f", []byte("contents"), 0o644)
	root, _ := os.Open(dir)
	var rc bytes.Buffer
	o := diffOptions()
	o.Recipe = &rc
	if _, err := Diff(ctx, root, o); err != nil {
		f.Fatal(err)
	}
	f.Add(rc.Bytes())
	f.Fuzz(func(t *testing.T, recipe []byte) {
		r, err := openTar(t, dir, recipe)
		if err != nil {
			return
		}
		defer r.Close()
		n, err := io.Copy(io.Discard, io.LimitReader(r, 1<<20))
		if err == nil && n < 1<<20 && n != r.Size() {
			t.Errorf("%d of %d bytes, no error", n, r.Size())
		}
	})
}

func TestRecordedApply(t *testing.T) {
	for name, c := range map[string]struct {
		items []item
		whole bool
	}{
		"files":              {[]item{folder("d/"), file("d/a", strings.Repeat("a", 70_000)), file("d/empty", ""), hard("h", "d/a"), file(".wh.x", "")}, true},
		"through a link":     {[]item{folder("real/"), symlink("l", "real"), file("l/f", "f")}, true},
		"twice":              {[]item{file("a", "1"), file("a", "2")}, false},
		"whiteout first":     {[]item{file(".wh.a", ""), file("a", "2")}, true},
		"body of a whiteout": {[]item{file(".wh.a", "junk")}, true},
	} {
		b := newBox(t)
		tarball := append(pack(t, c.items...), bytes.Repeat([]byte{0}, 9000)...)
		var recipe bytes.Buffer
		o := options()
		o.Recipe = &recipe
		res, err := b.apply(tarball, o)
		if err != nil || res.Recorded != c.whole {
			t.Errorf("%s: %+v, %v", name, res, err)
			continue
		}
		if !c.whole {
			continue
		}
		if got, err := recreate(t, b.dir, recipe.Bytes()); err != nil || !bytes.Equal(got, tarball) {
			t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(tarball), err)
		}
	}
}

func TestCopyTree(t *testing.T) {
	src := t.TempDir()
	grow(t, src, rand.New(rand.NewPCG(3, 4)))
	if os.Geteuid() != 0 {
		unix.Mkfifo(src+"/p", 0o600)
	}
	dst := newBox(t)
	from, _ := os.Open(src)
	defer from.Close()
	if err := CopyTree(ctx, from, dst.root); err != nil {
		t.Fatal(err)
	}
	if a, b := tree(t, src), tree(t, dst.dir); a != b {
		t.Errorf("tree\n%s\nbecame\n%s", a, b)
	}
}

func TestDecompress(t *testing.T) {
	tarball := pack(t, file("f", strings.Repeat("text ", 100_000)))
	for _, kind := range []image.Compression{image.Gzip, image.Zstd, image.Uncompressed} {
		blob := compress(t, kind, tarball)
		if Sniff(blob) != kind {
			t.Errorf("%s is taken for %q", kind, Sniff(blob))
		}
		r, err := Decompress(bytes.NewReader(blob), kind)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, tarball) {
			t.Errorf("%s: %d bytes, %v", kind, len(got), err)
		}
		r.Close()
		if kind == image.Uncompressed {
			continue
		}
		if err := readAll(blob[:len(blob)/2], kind); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s cut: %v", kind, err)
		}
		if err := readAll([]byte("no such thing at all"), kind); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s garbage: %v", kind, err)
		}
		boom := errors.New("boom")
		r, err = Decompress(io.MultiReader(bytes.NewReader(blob[:len(blob)/2]), failingReader{boom}), kind)
		if err == nil {
			_, err = io.ReadAll(r)
			r.Close()
		}
		if !errors.Is(err, boom) || fault.Is(err, fault.Invalid) {
			t.Errorf("%s: the source's error became %v", kind, err)
		}
		// Closed early, in the middle.
		r, _ = Decompress(bytes.NewReader(blob), kind)
		r.Read(make([]byte, 100))
		r.Close()
	}
	if _, err := Decompress(nil, "xz"); !fault.Is(err, fault.Unsupported) {
		t.Error(err)
	}
}

type failingReader struct{ err error }

func (f failingReader) Read([]byte) (int, error) { return 0, f.err }

func readAll(blob []byte, kind image.Compression) error {
	r, err := Decompress(bytes.NewReader(blob), kind)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.ReadAll(r)
	return err
}
