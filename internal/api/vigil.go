package api

// What clients wait for about a container that does not run yet. docker run attaches,
// waits and only then starts, so that not a byte and no exit code is missed.

import (
	"context"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"keg/internal/engine"
	"keg/internal/monitor"
)

// vigil is the wait of all clients of this server for one start of one container.
type vigil struct {
	refs   int
	stdios []monitor.Stdio
	ended  chan struct{} // the program ended, or its start failed
	left   chan struct{} // all who waited have their answer
	exit   monitor.Exit
	err    error
}

type vigils struct {
	mu sync.Mutex
	m  map[string]*vigil // by full id
}

// join waits for the next start of a container, with streams to attach or without.
func (s *vigils) join(id string, stdio *monitor.Stdio) *vigil {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[string]*vigil{}
	}
	v := s.m[id]
	if v == nil {
		v = &vigil{ended: make(chan struct{}), left: make(chan struct{})}
		s.m[id] = v
	}
	v.refs++
	if stdio != nil {
		v.stdios = append(v.stdios, *stdio)
	}
	return v
}

// leave gives up waiting. Streams of who left swallow what is written to them.
func (s *vigils) leave(id string, v *vigil) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.refs--; v.refs > 0 {
		return
	}
	close(v.left)
	if s.m[id] == v {
		delete(s.m, id)
	}
}

// take returns what waits for the start that is about to be made, nil when nothing does.
func (s *vigils) take(id string) *vigil {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.m[id]
	delete(s.m, id)
	return v
}

// attachment joins the streams of all who wait: one program, one stdin, output for all.
func (v *vigil) attachment() *monitor.Stdio {
	if len(v.stdios) == 0 {
		return nil
	}
	all := v.stdios[0]
	for _, s := range v.stdios[1:] {
		if all.In == nil {
			all.In, all.DetachKeys = s.In, s.DetachKeys
		}
		all.Out, all.Err = both(all.Out, s.Out), both(all.Err, s.Err)
	}
	return &all
}

// end tells all what became of the start.
func (v *vigil) end(exit monitor.Exit, err error) {
	v.exit, v.err = exit, err
	close(v.ended)
}

// follow waits for the end of the program that was started.
func (v *vigil) follow(s engine.Session) {
	defer s.Close()
	v.end(s.Wait(context.Background()))
}

// attachments are the streams that clients of this server get, by container.
type attachments struct {
	mu sync.Mutex
	m  map[string]map[chan struct{}]bool
}

// begin notes a stream; the answer ends it.
func (a *attachments) begin(id string) (end func()) {
	done := make(chan struct{})
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.m == nil {
		a.m = map[string]map[chan struct{}]bool{}
	}
	if a.m[id] == nil {
		a.m[id] = map[chan struct{}]bool{}
	}
	a.m[id][done] = true
	return func() {
		close(done)
		a.mu.Lock()
		defer a.mu.Unlock()
		if delete(a.m[id], done); len(a.m[id]) == 0 {
			delete(a.m, id)
		}
	}
}

// drained waits until the streams of a container that ended are written, for a moment at most: programs expect the
// output before they hear of the end.
func (a *attachments) drained(ctx context.Context, id string) {
	a.mu.Lock()
	open := slices.Collect(maps.Keys(a.m[id]))
	a.mu.Unlock()
	late := time.After(drainPatience)
	for _, done := range open {
		select {
		case <-done:
		case <-late:
			return
		case <-ctx.Done():
			return
		}
	}
}

const drainPatience = 200 * time.Millisecond

func both(a, b io.Writer) io.Writer {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	return &tee{a, b}
}

// tee writes to both and goes on with one when the other is gone.
type tee struct{ a, b io.Writer }

func (t *tee) Write(p []byte) (int, error) {
	if t.a != nil {
		if _, err := t.a.Write(p); err != nil {
			t.a = nil
		}
	}
	if t.b != nil {
		if _, err := t.b.Write(p); err != nil {
			t.b = nil
		}
	}
	if t.a == nil && t.b == nil {
		return 0, io.ErrClosedPipe
	}
	return len(p), nil
}
