package builder

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestSumsTrustOnlyWhatHasRested(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir, "f=1")
	path := filepath.Join(t.TempDir(), "sums")
	var st unix.Stat_t
	unix.Stat(filepath.Join(dir, "f"), &st)
	s := loadSums(path)
	s.add(&st, [32]byte{1}, time.Unix(0, st.Ctim.Nano()).Add(time.Second))
	if _, ok := s.find(&st); ok {
		t.Error("a file changed one second before is trusted")
	}
	s.add(&st, [32]byte{2}, time.Unix(0, st.Ctim.Nano()).Add(3*time.Second))
	if err := s.save(); err != nil {
		t.Fatal(err)
	}
	s = loadSums(path)
	if sum, ok := s.find(&st); !ok || sum != [32]byte{2} {
		t.Error("not remembered")
	}
	st.Ctim.Nsec++
	if _, ok := s.find(&st); ok {
		t.Error("a later change time is trusted")
	}
	b, _ := os.ReadFile(path)
	b[len(b)-1] ^= 1
	os.WriteFile(path, b, 0o600)
	st.Ctim.Nsec--
	if _, ok := loadSums(path).find(&st); ok {
		t.Error("a damaged file is trusted")
	}
}

// A context of 50,000 files is checked without reading one again. A byte changed in the last
// of them, with size and modification time put back, is noticed, since the change time cannot
// be put back.
func TestHiddenChangeIsNoticed(t *testing.T) {
	const files = 50_000
	dir := t.TempDir()
	for i := range 100 {
		os.Mkdir(filepath.Join(dir, fmt.Sprintf("d%02d", i)), 0o755)
	}
	for i := range files {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("d%02d/f%05d", i/(files/100), i)), fmt.Append(nil, i), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	bc, err := openContext(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer bc.close()
	sumsFile := filepath.Join(t.TempDir(), "s")
	digest := func() string {
		bc.sums = loadSums(sumsFile)
		found, err := bc.find(context.Background(), selector{Path: "/"})
		if err != nil {
			t.Fatal(err)
		}
		if err := bc.fill(context.Background(), found); err != nil {
			t.Fatal(err)
		}
		for i := range found[0].entries {
			// As if the hashing had been long after the change.
			e := &found[0].entries[i]
			bc.sums.add(&e.st, e.sum, time.Now().Add(time.Hour))
		}
		bc.sums.save()
		return digestOf(found, false)
	}
	first := digest()
	start := time.Now()
	if digest() != first {
		t.Fatal("digest is not stable")
	}
	t.Logf("unchanged: %v", time.Since(start))
	if got := len(loadSums(sumsFile).old) / sumRecord; got < files {
		t.Errorf("%d digests are remembered, not %d", got, files)
	}
	f := filepath.Join(dir, "d99/f49999")
	st, _ := os.Stat(f)
	time.Sleep(10 * time.Millisecond)
	b, _ := os.ReadFile(f)
	b[0] ^= 1
	os.WriteFile(f, b, 0o644)
	os.Chtimes(f, st.ModTime(), st.ModTime())
	if digest() == first {
		t.Error("the change was not noticed")
	}
}
