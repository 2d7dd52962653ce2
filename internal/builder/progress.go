// Progress of a build as numbered vertices.
package builder

import (
	"sync"
	"time"
)

type progress struct {
	mu   sync.Mutex
	emit func(Event)
	n    int
}

// vertex is one numbered line of work. It is an io.Writer for the output of its process.
type vertex struct {
	p     *progress
	id    int
	start time.Time
}

func (p *progress) send(e Event) {
	if p.emit != nil {
		p.emit(e)
	}
}

func (p *progress) start(name string) *vertex {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n++
	v := &vertex{p, p.n, time.Now()}
	p.send(Event{Vertex: v.id, Name: name, Started: &v.start})
	return v
}

func (v *vertex) send(e Event) {
	v.p.mu.Lock()
	defer v.p.mu.Unlock()
	e.Vertex = v.id
	v.p.send(e)
}

func (v *vertex) Write(b []byte) (int, error) {
	v.send(Event{Log: append([]byte(nil), b...)})
	return len(b), nil
}

func (v *vertex) status(s string) { v.send(Event{Status: s}) }
func (v *vertex) reason(s string) { v.send(Event{Reason: s}) }

func (v *vertex) cached() {
	now := time.Now()
	v.send(Event{Finished: &now, Cached: true})
}

func (v *vertex) done(err error) {
	now := time.Now()
	v.send(Event{Finished: &now, Err: err})
}
