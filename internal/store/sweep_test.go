package store

import (
	"errors"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func TestSweepFreesOnlyWhatNobodyWants(t *testing.T) {
	s, ctx := open(t), t.Context()
	marked, leased, lost, fresh, ended := put(t, s, "marked"), put(t, s, "leased"), put(t, s, "lost"), put(t, s, "fresh"), put(t, s, "ended")
	l, err := s.Lease(ctx, leased)
	if err != nil {
		t.Fatal(err)
	}
	old(t, s, marked, leased, lost, ended)
	over, _ := s.Lease(ctx, ended)
	over.Release() // its hour has just begun
	freed, n, err := s.Sweep(ctx, time.Hour, func() (map[digest.Digest]bool, error) { return map[digest.Digest]bool{marked: true}, nil })
	if err != nil || !slices.Equal(freed, []digest.Digest{lost}) || n != 4 {
		t.Errorf("freed %v, %d bytes, %v", freed, n, err)
	}
	for _, d := range []digest.Digest{marked, leased, fresh, ended} {
		if !s.Has(d) {
			t.Errorf("%s is gone", d)
		}
	}
	l.Release()
	freed, _, err = s.Sweep(ctx, 0, none)
	if err != nil || len(freed) != 4 {
		t.Error(freed, err)
	}
	if left := entries(t, s, "trash"); len(left) != 1 { // the lock
		t.Error(left)
	}
}

func TestSweepStopsWhenMarksFail(t *testing.T) {
	s := open(t)
	d := put(t, s, "x")
	boom := errors.New("boom")
	calls := 0
	for _, failing := range []int{1, 2} {
		calls = 0
		_, _, err := s.Sweep(t.Context(), 0, func() (map[digest.Digest]bool, error) {
			if calls++; calls == failing {
				return nil, boom
			}
			return nil, nil
		})
		if !errors.Is(err, boom) || !s.Has(d) {
			t.Errorf("call %d: %v", failing, err)
		}
	}
}

// Between the two looks: whoever wants a blob then, gets it.
func TestSweepLooksTwice(t *testing.T) {
	for name, want := range map[string]func(*Store, digest.Digest){
		"lease and look": func(s *Store, d digest.Digest) { s.Lease(t.Context(), d); s.Has(d) },
		"look":           func(s *Store, d digest.Digest) { s.Has(d) },
		"open":           func(s *Store, d digest.Digest) { s.Bytes(d, 10) },
		"put":            func(s *Store, _ digest.Digest) { s.Put(t.Context(), []byte("x")) },
	} {
		s := open(t)
		d := put(t, s, "x")
		calls := 0
		freed, _, err := s.Sweep(t.Context(), 0, func() (map[digest.Digest]bool, error) {
			if calls++; calls == 2 {
				if _, err := os.Stat(s.trashPath(d)); err != nil {
					t.Error("not in the trash before the second look")
				}
				want(s, d)
			}
			return nil, nil
		})
		if err != nil || len(freed) != 0 || !s.Has(d) {
			t.Errorf("%s: freed %v, %v", name, freed, err)
		}
	}
	s := open(t)
	d := put(t, s, "x")
	marked := 0
	if freed, _, err := s.Sweep(t.Context(), 0, func() (map[digest.Digest]bool, error) {
		marked++
		return map[digest.Digest]bool{d: marked == 2}, nil
	}); err != nil || len(freed) != 0 || !s.Has(d) {
		t.Errorf("marked in between: freed %v, %v", freed, err)
	}
}

func TestDeadHoldersLeaseEnds(t *testing.T) {
	s := open(t)
	d := put(t, s, "leased")
	holder := other(t, s, "hold")
	says(t, holder, "held")
	if freed, _, err := s.Sweep(t.Context(), 0, none); err != nil || len(freed) != 0 {
		t.Fatal(freed, err)
	}
	holder.Process.Kill()
	holder.Wait()
	if freed, _, err := s.Sweep(t.Context(), 0, none); err != nil || !slices.Equal(freed, []digest.Digest{d}) {
		t.Fatal(freed, err)
	}
	if left := entries(t, s, "leases"); len(left) != 0 {
		t.Error(left)
	}
}

func TestSweepOfHalfWritten(t *testing.T) {
	s, ctx := open(t), t.Context()
	held, _ := s.Ingest(ctx, "held")
	defer held.Abort()
	for _, key := range []string{"left", "recent"} {
		w, _ := s.Ingest(ctx, key)
		w.Write([]byte("x"))
		w.Close()
	}
	past := time.Now().Add(-2 * time.Hour)
	for _, p := range []string{"ingest/left", "ingest/left/data", "ingest/held"} {
		os.Chtimes(s.path(p), past, past)
	}
	if _, _, err := s.Sweep(ctx, time.Hour, none); err != nil {
		t.Fatal(err)
	}
	if left := entries(t, s, "ingest"); !slices.Equal(left, []string{"held", "recent"}) {
		t.Error(left)
	}
}

func TestSweepEndsWhatADeadSweepBegan(t *testing.T) {
	s := open(t)
	kept, lost := put(t, s, "kept"), put(t, s, "lost")
	for _, d := range []digest.Digest{kept, lost} {
		os.Rename(s.blobPath(d), s.trashPath(d))
	}
	freed, _, err := s.Sweep(t.Context(), 0, func() (map[digest.Digest]bool, error) { return map[digest.Digest]bool{kept: true}, nil })
	if err != nil || !slices.Equal(freed, []digest.Digest{lost}) || !s.Has(kept) {
		t.Error(freed, err)
	}
}

// Users and sweepers in several processes: nothing that is named or leased may vanish.
func TestSweepWhileOthersWork(t *testing.T) {
	s := open(t)
	var wg sync.WaitGroup
	for _, role := range []string{"user", "user", "user", "sweeper", "sweeper"} {
		wg.Go(func() {
			if out, err := other(t, s, role).CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", role, err, out)
			}
		})
	}
	wg.Wait()
}
