package engine

// What a server remembers of records: it is asked for the list again and again. The file is the truth: a record is read
// anew when its file is another one.

import (
	"sync"
	"time"

	ctr "keg/internal/container"
)

// keptRecords are records by container. A nil one keeps nothing.
type keptRecords struct {
	mu sync.Mutex
	m  map[string]keptRecord
}

type keptRecord struct {
	stamp ctr.Stamp
	*ctr.Record
}

// settled is more than the clock of file times advances at once: a file that changed just now may change again unseen.
const settled = 100 * time.Millisecond

// KeepRecords makes an engine that lists containers often remember what it read.
func (e *Engine) KeepRecords() { e.kept = &keptRecords{m: map[string]keptRecord{}} }

// readRecord reads one that nobody may change.
func (e *Engine) readRecord(id string) (*ctr.Record, error) {
	if e.kept == nil {
		return e.containers.Get(id)
	}
	stamp, err := e.containers.Stamp(id)
	if err != nil {
		return nil, err
	}
	e.kept.mu.Lock()
	k, ok := e.kept.m[id]
	e.kept.mu.Unlock()
	if ok && k.stamp == stamp {
		return k.Record, nil
	}
	r, err := e.containers.Get(id)
	if err != nil || time.Since(stamp.Changed()) < settled {
		return r, err
	}
	e.kept.mu.Lock()
	e.kept.m[id] = keptRecord{stamp, r}
	e.kept.mu.Unlock()
	return r, nil
}

// forget drops what is not in the list.
func (k *keptRecords) forget(ids []string) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.m) <= len(ids) {
		return
	}
	there := make(map[string]bool, len(ids))
	for _, id := range ids {
		there[id] = true
	}
	for id := range k.m {
		if !there[id] {
			delete(k.m, id)
		}
	}
}
