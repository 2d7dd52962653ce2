package api

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"keg/internal/builder"
	"keg/internal/buildsession"
)

// trace turns what a build tells into what BuildKit's clients show.
type trace struct {
	tell     func(buildsession.Trace)
	build    string // makes the names of vertices unique
	vertices map[int]buildsession.Vertex
}

func newTrace(build string, tell func(buildsession.Trace)) *trace {
	return &trace{tell, build, map[int]buildsession.Vertex{}}
}

func (t *trace) digest(vertex int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", t.build, vertex))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// event is called from one goroutine at a time.
func (t *trace) event(e builder.Event) {
	v, known := t.vertices[e.Vertex]
	v.Digest = t.digest(e.Vertex)
	changed := !known || e.Started != nil || e.Finished != nil
	if e.Name != "" {
		v.Name = e.Name
	}
	if e.Started != nil {
		v.Started = e.Started
	}
	if e.Finished != nil {
		v.Completed, v.Cached = e.Finished, e.Cached
		if e.Err != nil {
			v.Error = e.Err.Error()
		}
	}
	t.vertices[e.Vertex] = v
	var m buildsession.Trace
	now := time.Now()
	if changed {
		m.Vertices = []buildsession.Vertex{v}
	}
	if e.Status != "" {
		text, done := strings.CutSuffix(e.Status, " done")
		s := buildsession.Status{ID: text, Vertex: v.Digest, At: now, Started: v.Started}
		if done {
			s.Completed = &now
		}
		m.Statuses = []buildsession.Status{s}
	}
	for log := range slices.Chunk(e.Log, 32<<10) {
		m.Logs = append(m.Logs, buildsession.Log{Vertex: v.Digest, At: now, Data: log})
	}
	t.tell(m)
}

// transfer is the vertex of the context on its way, which comes before the builder's own.
func (t *trace) transfer() (progress func(int64), finish func(error)) {
	start, last := time.Now(), int64(0)
	t.event(builder.Event{Name: "[internal] receive build context", Started: &start})
	progress = func(n int64) {
		last = n
		t.status(start, n, nil)
	}
	return progress, func(err error) {
		now := time.Now()
		if last > 0 {
			t.status(start, last, &now)
		}
		t.event(builder.Event{Finished: &now, Err: err})
	}
}

func (t *trace) status(start time.Time, n int64, completed *time.Time) {
	t.tell(buildsession.Trace{Statuses: []buildsession.Status{{ID: "transferring context", Vertex: t.digest(0),
		Current: n, At: time.Now(), Started: &start, Completed: completed}}})
}
