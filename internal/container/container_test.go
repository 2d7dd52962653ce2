package container

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"

	"keg/internal/fault"
)

func newRecord(name string) *Record {
	return &Record{Name: name, Config: &container.Config{Cmd: []string{"sh"}}, Host: &container.HostConfig{}}
}

func create(t *testing.T, s *Store, name string) *Record {
	t.Helper()
	r := newRecord(name)
	if err := s.Create(context.Background(), r); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestCreateFindRemove(t *testing.T) {
	s := Open(t.TempDir())
	r := create(t, s, "/web")
	for _, ref := range []string{"web", "/web", r.ID, r.ID[:12], r.ID[:1]} {
		got, err := s.Find(ref)
		if err != nil || got.ID != r.ID || got.Name != "web" {
			t.Errorf("Find(%q) = %+v, %v", ref, got, err)
		}
	}
	for _, ref := range []string{"nope", "../" + r.ID, "names", "", ".", strings.Repeat("0", 64)} {
		_, err := s.Find(ref)
		if !fault.Is(err, fault.NotFound) || err.Error() != "No such container: "+ref {
			t.Errorf("Find(%q) = %v", ref, err)
		}
	}
	if st, err := s.State(r.ID); err != nil || st.Status != container.StateCreated {
		t.Errorf("state of a new container: %+v, %v", st, err)
	}
	if err := s.Remove(r.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Find("web"); !fault.Is(err, fault.NotFound) {
		t.Errorf("found after removal: %v", err)
	}
	for _, dir := range []string{s.names(), s.trash(), s.fresh()} {
		if ents, _ := os.ReadDir(dir); len(ents) != 0 {
			t.Errorf("%s is not empty: %v", dir, ents)
		}
	}
}

func TestConflictSpeaksDocker(t *testing.T) {
	s := Open(t.TempDir())
	r := create(t, s, "web")
	err := s.Create(context.Background(), newRecord("web"))
	want := fmt.Sprintf("Conflict. The container name \"/web\" is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", r.ID)
	if !fault.Is(err, fault.Conflict) || err.Error() != want {
		t.Errorf("got %v", err)
	}
}

func TestNameGrammar(t *testing.T) {
	for name, ok := range map[string]bool{"web": true, "a1": true, "A_b.c-d": true, "a": false, "": false, "_a": false,
		"a/b": false, "..": false, "a b": false, "é1": false, strings.Repeat("a", 256): false} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("CheckName(%q) = %v", name, err)
		}
	}
}

func TestOneWinnerPerName(t *testing.T) {
	s := Open(t.TempDir())
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for range 20 {
		wg.Go(func() {
			err := Open(s.root).Create(context.Background(), newRecord("one"))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if !fault.Is(err, fault.Conflict) {
				t.Errorf("loser got %v", err)
			}
		})
	}
	wg.Wait()
	if ids, _ := s.List(); won != 1 || len(ids) != 1 {
		t.Errorf("%d winners, %d records", won, len(ids))
	}
}

func TestNameOfLeavingContainerIsWaitedFor(t *testing.T) {
	s := Open(t.TempDir())
	old := newRecord("web")
	old.Host.AutoRemove = true
	if err := s.Create(context.Background(), old); err != nil {
		t.Fatal(err)
	}
	if err := s.PutState(old.ID, &State{Status: container.StateRunning}, true); err != nil {
		t.Fatal(err)
	}
	if err := s.Create(context.Background(), newRecord("web")); !fault.Is(err, fault.Conflict) {
		t.Fatalf("running owner: %v", err)
	}
	if err := s.PutState(old.ID, &State{Status: container.StateExited}, true); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- s.Create(context.Background(), newRecord("web")) }()
	select {
	case err := <-done:
		t.Fatalf("did not wait: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	if err := s.Remove(old.ID); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("after the removal: %v", err)
	}
}

func TestCrashedReservationIsTakenOver(t *testing.T) {
	s := Open(t.TempDir())
	if err := os.MkdirAll(s.names(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../"+NewID(), filepath.Join(s.names(), "web")); err != nil {
		t.Fatal(err)
	}
	create(t, s, "web")
}

func TestRandomNames(t *testing.T) {
	s := Open(t.TempDir())
	for range 50 {
		r := create(t, s, "")
		if strings.Count(r.Name, "_") != 1 || CheckName(r.Name) != nil {
			t.Errorf("name %q", r.Name)
		}
	}
	for _, w := range append(adjectives(), surnames()...) {
		if strings.Trim(w, "abcdefghijklmnopqrstuvwxyz") != "" {
			t.Errorf("word %q", w)
		}
	}
}

func TestNewIDIsNoNumber(t *testing.T) {
	for range 1000 {
		if id := NewID(); !isID(id) || strings.Trim(id[:12], "0123456789") == "" {
			t.Fatal(id)
		}
	}
}

func TestRename(t *testing.T) {
	s := Open(t.TempDir())
	r, other := create(t, s, "web"), create(t, s, "db")
	if err := s.Rename(r, "db"); !fault.Is(err, fault.Conflict) {
		t.Errorf("onto a used name: %v", err)
	}
	if err := s.Rename(r, "front"); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Find("front"); err != nil || got.ID != r.ID || got.Name != "front" {
		t.Errorf("new name: %+v, %v", got, err)
	}
	if _, err := s.Find("web"); !fault.Is(err, fault.NotFound) {
		t.Errorf("old name: %v", err)
	}
	create(t, s, "web")
	if got, _ := s.Find("db"); got.ID != other.ID {
		t.Error("the other's name moved")
	}
}

func TestAmbiguousPrefix(t *testing.T) {
	s := Open(t.TempDir())
	for i := range 17 {
		create(t, s, fmt.Sprintf("c%d", i))
	}
	ids, _ := s.List()
	first := map[byte]int{}
	for _, id := range ids {
		first[id[0]]++
	}
	for c, n := range first {
		_, err := s.Find(string(c))
		if n > 1 && (err == nil || err.Error() != "Multiple IDs found with provided prefix: "+string(c)) {
			t.Errorf("prefix %c of %d: %v", c, n, err)
		}
		if n == 1 && err != nil {
			t.Errorf("prefix %c of one: %v", c, err)
		}
	}
}

func TestLockAndRunning(t *testing.T) {
	s := Open(t.TempDir())
	r := create(t, s, "web")
	if on, err := s.Running(r.ID); on || err != nil {
		t.Fatalf("new: %v, %v", on, err)
	}
	l, err := s.Lock(r.ID)
	if err != nil || l == nil {
		t.Fatal(l, err)
	}
	if on, _ := s.Running(r.ID); !on {
		t.Error("held, but not running")
	}
	if l2, err := s.Lock(r.ID); l2 != nil || err != nil {
		t.Errorf("locked twice: %v, %v", l2, err)
	}
	l.Close()
	if on, _ := s.Running(r.ID); on {
		t.Error("released, but running")
	}
	if err := s.Retire(r.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Lock(r.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("lock of a retired container: %v", err)
	}
	if ids, _ := s.Retired(); len(ids) != 1 || ids[0] != r.ID {
		t.Errorf("retired: %v", ids)
	}
	if l, err := s.LockRetired(r.ID); l == nil || err != nil {
		t.Errorf("lock of what was retired: %v, %v", l, err)
	}
}

func TestUnknownFieldsAreKept(t *testing.T) {
	s := Open(t.TempDir())
	r := create(t, s, "web")
	r.Config.Labels = map[string]string{"gone": "1", "stays": "1"}
	if err := s.Put(r); err != nil {
		t.Fatal(err)
	}
	p := s.configPath(r.ID)
	b, _ := os.ReadFile(p)
	b = []byte(strings.Replace(strings.Replace(string(b), `"Version":1`, `"Version":2,"Future":{"a":[1,2]}`, 1),
		`"Config":{`, `"Config":{"Newer":"x",`, 1))
	if err := os.WriteFile(p, b, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := s.Get(r.ID)
	if err != nil {
		t.Fatal(err)
	}
	delete(got.Config.Labels, "gone")
	if err := s.Put(got); err != nil {
		t.Fatal(err)
	}
	b, _ = os.ReadFile(p)
	for _, want := range []string{`"Future":{"a":[1,2]}`, `"Newer":"x"`, `"Version":2`, `"stays"`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%s is lost: %s", want, b)
		}
	}
	if strings.Contains(string(b), `"gone"`) {
		t.Error("a deleted label came back")
	}
}

func TestTornStateIsNoSuccess(t *testing.T) {
	s := Open(t.TempDir())
	r := create(t, s, "web")
	if err := os.WriteFile(s.statePath(r.ID), []byte(`{"Status":"exi`), 0o600); err != nil {
		t.Fatal(err)
	}
	st, err := s.State(r.ID)
	if err != nil || st.ExitCode == 0 || st.Error == "" {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestThousandAreListedFast(t *testing.T) {
	s := Open(t.TempDir())
	for range 1000 {
		r := newRecord("")
		r.Host.AutoRemove = true // no fsync
		if err := s.Create(context.Background(), r); err != nil {
			t.Fatal(err)
		}
	}
	start := time.Now()
	ids, err := s.List()
	if err != nil || len(ids) != 1000 {
		t.Fatalf("%d, %v", len(ids), err)
	}
	for _, id := range ids {
		if _, err := s.Get(id); err != nil {
			t.Fatal(err)
		}
		if _, err := s.State(id); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Running(id); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("1000 containers read in %v", time.Since(start))
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("too slow: %v", d)
	}
}
