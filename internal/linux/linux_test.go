package linux

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpenInRootStaysInside(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "canary")
	os.WriteFile(outside, []byte("outside"), 0o600)
	root := t.TempDir()
	os.MkdirAll(filepath.Join(root, filepath.Dir(outside)), 0o700)
	os.WriteFile(filepath.Join(root, outside), []byte("inside"), 0o600)
	os.Symlink(outside, filepath.Join(root, "abs"))
	os.Symlink("../../../../../../.."+outside, filepath.Join(root, "dots"))
	os.Symlink("/proc/self/root"+outside, filepath.Join(root, "magic"))
	d, _ := os.Open(root)
	defer d.Close()
	for _, p := range []string{"abs", "/abs", "dots", "../../" + outside} {
		f, err := OpenInRoot(int(d.Fd()), p, unix.O_RDONLY, 0)
		if err != nil {
			t.Fatalf("%s: %v", p, err)
		}
		b := make([]byte, 16)
		n, _ := f.Read(b)
		f.Close()
		if string(b[:n]) != "inside" {
			t.Errorf("%s reads %q", p, b[:n])
		}
	}
	if f, err := OpenInRoot(int(d.Fd()), "magic", unix.O_RDONLY, 0); err == nil {
		f.Close()
		t.Error("magic link was followed")
	}
}

func TestMkdirAllInRoot(t *testing.T) {
	root := t.TempDir()
	os.Symlink("/made", filepath.Join(root, "link"))
	os.Mkdir(filepath.Join(root, "made"), 0o700)
	d, _ := os.Open(root)
	defer d.Close()
	f, err := MkdirAllInRoot(int(d.Fd()), "/link/a/b", 0o755)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if st, err := os.Stat(filepath.Join(root, "made/a/b")); err != nil || !st.IsDir() {
		t.Fatal(err)
	}
}

func TestOFDLockIsSeenNotTaken(t *testing.T) {
	p := filepath.Join(t.TempDir(), "lock")
	a, _ := os.Create(p)
	b, _ := os.OpenFile(p, os.O_RDWR, 0)
	defer b.Close()
	if held, err := HeldOFD(b); held || err != nil {
		t.Fatal(held, err)
	}
	if ok, err := LockOFD(a); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if held, err := HeldOFD(b); !held || err != nil {
		t.Fatal(held, err)
	}
	if ok, _ := LockOFD(b); ok {
		t.Fatal("two holders")
	}
	a.Close()
	if ok, err := LockOFD(b); !ok || err != nil {
		t.Fatal(ok, err)
	}
}

func TestStartTime(t *testing.T) {
	a, err := StartTime(os.Getpid())
	if err != nil || a == 0 {
		t.Fatal(a, err)
	}
	if id, err := BootID(); err != nil || len(id) != 36 {
		t.Fatal(id, err)
	}
}
