package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"testing"
	"time"

	"keg/test/private"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// TestMain runs the tests in a mount namespace of their own, so that nothing they
// mount is seen or left on the host.
func TestMain(m *testing.M) {
	private.Enter()
	os.Exit(m.Run())
}

func needsRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts overlays")
	}
}

var ctx = context.Background()

func open(t testing.TB) *Store {
	t.Helper()
	s, err := OpenWith(t.TempDir(), Options{SingleID: os.Geteuid() != 0, UserXattr: os.Geteuid() != 0})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// entry of a test tar.
type entry struct {
	name, body, link string
	kind             byte // 0: a file, or a directory when the name ends in /
	mode             int64
	uid              int
}

func makeTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Linkname: e.link, Typeflag: e.kind, Mode: e.mode, Uid: e.uid, Gid: e.uid,
			Size: int64(len(e.body)), ModTime: time.Unix(1_000_000_000, 0)}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if e.name[len(e.name)-1] == '/' {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, e.body)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// add commits a layer on top of below and returns the new stack.
func add(t testing.TB, s *Store, below []digest.Digest, entries ...entry) []digest.Digest {
	t.Helper()
	b := makeTar(t, entries...)
	u, err := s.Unpack(ctx, bytes.NewReader(b), digest.FromBytes(b))
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Place(ctx, below); err != nil {
		t.Fatal(err)
	}
	return append(below[:len(below):len(below)], u.DiffID())
}

// in runs f with path of a mount's root: the mount is attached for that time.
func in(t testing.TB, fd int, f func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	defer func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	f(dir)
}

// edit mounts key and runs f in it.
func edit(t testing.TB, s *Store, key string, f func(dir string)) {
	t.Helper()
	fd, err := s.Mount(key, MountOptions{Volatile: true})
	if err != nil {
		t.Fatal(err)
	}
	in(t, fd, f)
}

func prepare(t testing.TB, s *Store, key string, stack []digest.Digest) {
	t.Helper()
	if err := s.Prepare(ctx, key, stack); err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, p, body string) {
	t.Helper()
	if err := os.WriteFile(p, []byte(body), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, p string) string {
	t.Helper()
	b, err := os.ReadFile(p)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}
