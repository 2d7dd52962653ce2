package engine

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
)

// TestKeptRecordsAreTrue: what a server remembers is what the disk says, whoever wrote it.
func TestKeptRecordsAreTrue(t *testing.T) {
	e, _ := withImage(t)
	id := createNamed(t, e, "web").ID
	e.KeepRecords()
	other := *e // another process
	other.kept = nil
	list := func() (names string) {
		t.Helper()
		sums, err := e.Containers(t.Context(), ListOptions{All: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range sums {
			names += fmt.Sprint(s.Names[0], " ")
		}
		return names
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(e.containers.Dir(id)+"/config.json", old, old); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if got := list(); got != "/web " {
			t.Errorf("%q", got)
		}
		<-time.After(settled) // old enough to be kept
	}
	if len(e.kept.m) != 1 {
		t.Fatalf("%d records are kept", len(e.kept.m))
	}
	for i := range 20 { // each at once after the one before
		name := fmt.Sprint("web", i)
		if err := other.Rename(t.Context(), id, name); err != nil {
			t.Fatal(err)
		}
		if got := list(); got != "/"+name+" " {
			t.Errorf("after a rename to %s: %q", name, got)
		}
	}
	if _, err := other.Update(t.Context(), id, container.UpdateConfig{Resources: container.Resources{CPUShares: 7}}); err != nil {
		t.Fatal(err)
	}
	if c, err := e.one(t.Context(), id); err != nil || c.Host.CPUShares != 7 {
		t.Errorf("%+v, %v", c, err)
	}
	if err := other.Remove(t.Context(), id, RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := list(); got != "" || len(e.kept.m) != 0 {
		t.Errorf("after removal: %q, %d kept", got, len(e.kept.m))
	}
}
