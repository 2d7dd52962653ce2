package engine

import (
	"strings"
	"sync"
	"time"

	"keg/internal/builder"
)

// numbering makes one list of numbered vertices from those of several builds and of what comes after.
type numbering struct {
	emit func(builder.Event)

	mu   sync.Mutex
	used int
	made bool // some step was not cached
}

// part is the listener of one build. prefix names its platform in front of the steps.
func (n *numbering) part(prefix string) func(builder.Event) {
	first := n.used
	return func(ev builder.Event) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.made = n.made || ev.Reason != ""
		ev.Vertex += first
		n.used = max(n.used, ev.Vertex)
		if rest, ok := strings.CutPrefix(ev.Name, "["); ok && prefix != "" && !strings.HasPrefix(rest, "internal]") {
			ev.Name = "[" + prefix + rest
		}
		if n.emit != nil {
			n.emit(ev)
		}
	}
}

// numbered is one vertex of the engine's own.
type numbered struct {
	n  *numbering
	id int
}

func (n *numbering) vertex(name string) *numbered {
	n.mu.Lock()
	n.used++
	v := &numbered{n, n.used}
	n.mu.Unlock()
	now := time.Now()
	v.send(builder.Event{Name: name, Started: &now})
	return v
}

func (v *numbered) send(ev builder.Event) {
	v.n.mu.Lock()
	defer v.n.mu.Unlock()
	ev.Vertex = v.id
	if v.n.emit != nil {
		v.n.emit(ev)
	}
}

func (v *numbered) status(s string) { v.send(builder.Event{Status: s}) }

func (v *numbered) done(err error) {
	now := time.Now()
	v.send(builder.Event{Finished: &now, Err: err})
}
