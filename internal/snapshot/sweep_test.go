package snapshot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
)

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
