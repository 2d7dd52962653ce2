package volume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

var ctx = context.Background()

func TestCreateGetListRemove(t *testing.T) {
	s := Open(t.TempDir())
	v, err := s.Create(ctx, CreateOptions{Name: "data", Labels: map[string]string{"a": "b"}})
	if err != nil || v.Name != "data" || v.Driver != "local" || v.Scope != "local" || v.Labels["a"] != "b" || !filepath.IsAbs(v.Mountpoint) {
		t.Fatalf("%+v, %v", v, err)
	}
	if fi, err := os.Stat(v.Mountpoint); err != nil || fi.Mode().Perm() != 0o755 {
		t.Errorf("data: %v, %v", fi, err)
	}
	anon, err := s.Create(ctx, CreateOptions{})
	if _, marked := anon.Labels[AnonymousLabel]; err != nil || len(anon.Name) != 64 || !marked {
		t.Errorf("anonymous: %+v, %v", anon, err)
	}
	if again, err := s.Create(ctx, CreateOptions{Name: "data"}); err != nil || again.CreatedAt != v.CreatedAt {
		t.Errorf("again: %+v, %v", again, err)
	}
	if l, err := s.List(); err != nil || len(l) != 2 {
		t.Errorf("list: %v, %v", l, err)
	}
	if err := s.Remove(ctx, "data"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get("data"); !fault.Is(err, fault.NotFound) || err.Error() != "get data: no such volume" {
		t.Errorf("after removal: %v", err)
	}
	if err := s.Remove(ctx, "data"); !fault.Is(err, fault.NotFound) {
		t.Errorf("twice: %v", err)
	}
	for _, d := range []string{".new", ".trash"} {
		if ents, _ := os.ReadDir(filepath.Join(s.dir(), d)); len(ents) != 0 {
			t.Errorf("%s: %v", d, ents)
		}
	}
}

func TestNamesAndDrivers(t *testing.T) {
	s := Open(t.TempDir())
	for _, n := range []string{"a/b", "..", ".x", "-x", "a b", "x\n"} {
		if _, err := s.Create(ctx, CreateOptions{Name: n}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", n, err)
		}
	}
	_, err := s.Create(ctx, CreateOptions{Name: "a/b"})
	if !strings.HasPrefix(err.Error(), `create a/b: "a/b" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed`) {
		t.Error(err)
	}
	if _, err := s.Create(ctx, CreateOptions{Name: "ok", Driver: "nfs"}); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if _, err := s.Create(ctx, CreateOptions{Name: "ok", Options: map[string]string{"x": "y"}}); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	opts := map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}
	if _, err := s.Create(ctx, CreateOptions{Name: "ok", Options: opts}); err != nil {
		t.Error(err)
	}
	if _, err := s.Create(ctx, CreateOptions{Name: "ok", Options: map[string]string{"type": "tmpfs", "device": "tmpfs"}}); !fault.Is(err, fault.Conflict) {
		t.Error(err)
	}
}

func TestConcurrentCreate(t *testing.T) {
	s := Open(t.TempDir())
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := Open(s.root).Create(ctx, CreateOptions{Name: "one"}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestMountPlan(t *testing.T) {
	p, err := mountPlan(map[string]string{"type": "none", "o": "bind,ro,addr=1.2.3.4", "device": "/x"})
	if err != nil || p.flags != unix.MS_BIND|unix.MS_RDONLY || p.data != "addr=1.2.3.4" || p.fstype != "none" {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestSizeCountsLinksOnce(t *testing.T) {
	s := Open(t.TempDir())
	v, _ := s.Create(ctx, CreateOptions{Name: "data"})
	os.WriteFile(v.Mountpoint+"/a", make([]byte, 1<<20), 0o644)
	os.Link(v.Mountpoint+"/a", v.Mountpoint+"/b")
	if n, err := s.Size("data"); err != nil || n < 1<<20 || n > 1<<20+64<<10 {
		t.Error(n, err)
	}
}

func TestCopyUp(t *testing.T) {
	s := Open(t.TempDir())
	root := t.TempDir()
	outside := filepath.Join(t.TempDir(), "canary")
	os.WriteFile(outside, []byte("secret"), 0o600)
	dir := filepath.Join(root, "var/lib/data")
	os.MkdirAll(filepath.Join(dir, "sub"), 0o750)
	os.WriteFile(dir+"/f", []byte("hello"), 0o640)
	os.Link(dir+"/f", dir+"/sub/same")
	os.Symlink(outside, dir+"/out")
	unix.Mkfifo(dir+"/fifo", 0o600)
	os.Chmod(dir, 0o2775|os.ModeSetgid)
	os.Symlink("/var/lib", root+"/abs") // resolved inside the root
	rootFd, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer rootFd.Close()
	v, _ := s.Create(ctx, CreateOptions{Name: "data"})
	if err := s.CopyUp(ctx, int(rootFd.Fd()), "/abs/data", "data", ""); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(v.Mountpoint + "/f"); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	a, _ := os.Stat(v.Mountpoint + "/f")
	b, err := os.Stat(v.Mountpoint + "/sub/same")
	if err != nil || !os.SameFile(a, b) || a.Mode().Perm() != 0o640 {
		t.Errorf("hard link or mode lost: %v", err)
	}
	want, _ := os.Stat(dir + "/f")
	if !a.ModTime().Equal(want.ModTime()) {
		t.Errorf("time: %v, want %v", a.ModTime(), want.ModTime())
	}
	if l, err := os.Readlink(v.Mountpoint + "/out"); err != nil || l != outside {
		t.Errorf("link: %q, %v", l, err)
	}
	if fi, _ := os.Stat(v.Mountpoint); fi.Mode().Perm() != 0o775 {
		t.Errorf("mode of the volume: %v", fi.Mode())
	}
	// A volume with content is left alone, a missing place in the image is fine.
	os.Remove(v.Mountpoint + "/f")
	if err := s.CopyUp(ctx, int(rootFd.Fd()), "/abs/data", "data", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(v.Mountpoint + "/f"); err == nil {
		t.Error("copied twice")
	}
	os.Mkdir(v.Mountpoint+"/part", 0o755)
	if err := s.CopyUp(ctx, int(rootFd.Fd()), "/abs/data", "data", "part"); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(v.Mountpoint + "/part/f"); err != nil || string(b) != "hello" {
		t.Errorf("an empty directory of the volume: %q, %v", b, err)
	}
	if err := s.CopyUp(ctx, int(rootFd.Fd()), "/abs/data", "data", "part/f"); err != nil {
		t.Errorf("a file of the volume: %v", err)
	}
	s.Create(ctx, CreateOptions{Name: "other"})
	if err := s.CopyUp(ctx, int(rootFd.Fd()), "/nope", "other", ""); err != nil {
		t.Error(err)
	}
}

func TestSubpathStaysInside(t *testing.T) {
	s := Open(t.TempDir())
	v, _ := s.Create(ctx, CreateOptions{Name: "data"})
	os.MkdirAll(v.Mountpoint+"/a/b", 0o755)
	os.Symlink("/", v.Mountpoint+"/out")
	if f, err := s.Open("data", "a/b"); err != nil {
		t.Error(err)
	} else {
		f.Close()
	}
	os.Symlink("a/../a", v.Mountpoint+"/in")
	if f, err := s.Open("data", "in/b"); err != nil {
		t.Error("a link that stays inside: ", err)
	} else {
		f.Close()
	}
	for _, p := range []string{"out/etc", "out", "a/../../x", "../x"} {
		if f, err := s.Open("data", p); err == nil {
			f.Close()
			t.Errorf("%s led out of the volume", p)
		} else if !errors.Is(err, unix.EXDEV) {
			t.Errorf("%s: %v", p, err)
		}
	}
}
