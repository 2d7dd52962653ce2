package builder

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"keg/internal/dockerfile"
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

// A large file that a later step copies is digested while an earlier step runs; what is small, fresh or matched by a
// pattern is left to its step.
func TestLargeFilesAreDigestedAhead(t *testing.T) {
	w := newWorld(t)
	w.addImage("base", nil, "f=1")
	writeFiles(t, w.dir, "first=1", "small=1", "large="+strings.Repeat("x", largeFile), "fresh="+strings.Repeat("y", largeFile), "not="+strings.Repeat("z", largeFile), ".dockerignore=not")
	time.Sleep(racy + 100*time.Millisecond)
	os.Chmod(filepath.Join(w.dir, "fresh"), 0o600) // its change time is now
	file, err := dockerfile.Parse([]byte("FROM base\nCOPY first /\nCOPY large /a\nCOPY small fresh lar* /d/\nCOPY not /\n"), "Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPlan(file, w.options(""))
	if err != nil {
		t.Fatal(err)
	}
	d := w.deps()
	if err := d.cache.open(); err != nil {
		t.Fatal(err)
	}
	if err := d.loadBases(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	bc, err := openContext(w.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer bc.close()
	if err := d.loadIgnore(p.o, bc); err != nil {
		t.Fatal(err)
	}
	if err := p.evaluate(); err != nil {
		t.Fatal(err)
	}
	s := newSolver(d, p, bc)
	a := s.lookAhead(t.Context(), p.target)
	for _, step := range p.target.steps {
		a.wait(t.Context(), step)
	}
	a.end()
	for name, want := range map[string]bool{"first": false, "small": false, "large": true, "fresh": false, "not": false} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(w.dir, name), &st); err != nil {
			t.Fatal(err)
		}
		if _, known := bc.sums.find(&st); known != want {
			t.Errorf("%s: known %v", name, known)
		}
	}
	s.close()
}
