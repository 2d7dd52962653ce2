package disk

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"keg/internal/fault"
)

func TestPutReplacesWholeAndLeavesNoTemp(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "r")
	for _, v := range []string{"one", "two"} {
		if err := PutJSON(p, v); err != nil {
			t.Fatal(err)
		}
	}
	var got string
	if err := GetJSON(p, &got); err != nil || got != "two" {
		t.Fatalf("got %q, %v", got, err)
	}
	ents, _ := os.ReadDir(dir)
	if len(ents) != 1 {
		t.Fatalf("temp files left: %v", ents)
	}
}

func TestPutFailsWhole(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "d")
	if err := os.MkdirAll(filepath.Join(target, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Put(target, []byte("x"), 0o600); err == nil {
		t.Fatal("replaced a directory")
	}
	ents, _ := os.ReadDir(dir)
	if len(ents) != 1 {
		t.Fatalf("temp files left: %v", ents)
	}
}

func TestGetJSONKinds(t *testing.T) {
	p := filepath.Join(t.TempDir(), "r")
	if err := GetJSON(p, new(int)); !fault.Is(err, fault.NotFound) {
		t.Fatal(err)
	}
	os.WriteFile(p, []byte(`{"torn`), 0o600)
	if err := GetJSON(p, new(int)); err == nil || fault.Is(err, fault.NotFound) {
		t.Fatal(err)
	}
}

func TestLockExcludes(t *testing.T) {
	p := filepath.Join(t.TempDir(), "lock")
	l, err := LockFile(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if _, err := LockFile(ctx, p); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("second lock: %v", err)
	}
	if l, err := TryLock(p); l != nil || err != nil {
		t.Fatalf("try on a held lock: %v, %v", l, err)
	}
	l.Unlock()
	l2, err := LockFile(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	l2.Unlock()
}

func TestSweepSparesWhatIsHeld(t *testing.T) {
	parent := t.TempDir()
	held, err := HoldDir(parent, "h-")
	if err != nil {
		t.Fatal(err)
	}
	os.MkdirAll(filepath.Join(parent, "garbage/sub"), 0o700)
	if err := Sweep(parent); err != nil {
		t.Fatal(err)
	}
	ents, _ := os.ReadDir(parent)
	if len(ents) != 1 || filepath.Join(parent, ents[0].Name()) != held.Path {
		t.Fatalf("left: %v", ents)
	}
	held.Release()
	Sweep(parent)
	if ents, _ := os.ReadDir(parent); len(ents) != 0 {
		t.Fatalf("left: %v", ents)
	}
}

// A try that failed leaves nobody behind who waits and takes the lock for a moment when it is free.
func TestTryLockDoesNotWait(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	for range 500 {
		held, err := LockFile(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if l, err := TryLock(path); l != nil || err != nil {
			t.Fatalf("while it is held: %v, %v", l, err)
		}
		held.Unlock()
		l, err := TryLock(path)
		if l == nil || err != nil {
			t.Fatalf("when it is free: %v, %v", l, err)
		}
		l.Unlock()
	}
}
