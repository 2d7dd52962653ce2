package engine

import (
	"testing"
	"time"

	ctr "keg/internal/container"
)

// A removal under way is seen as long as its remover lives, and waited for.
func TestPruneAwaitsRemovals(t *testing.T) {
	e := &Engine{containers: ctr.Open(t.TempDir())}
	r := &ctr.Record{ID: ctr.NewID(), Name: "leaving"}
	if err := e.containers.Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	lock, err := e.containers.Lock(r.ID)
	if err != nil || lock == nil {
		t.Fatal(lock, err)
	}
	if err := e.containers.Retire(r.ID); err != nil {
		t.Fatal(err)
	}
	if busy, err := e.removing(); !busy || err != nil {
		t.Fatal(busy, err)
	}
	const late = 50 * time.Millisecond
	start := time.Now()
	time.AfterFunc(late, func() { lock.Close() })
	if err := e.awaitRemovals(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < late || took > settleTime {
		t.Fatalf("waited %v", took)
	}
	if busy, err := e.removing(); busy || err != nil {
		t.Fatal("a dead remover is waited for:", busy, err)
	}
}
