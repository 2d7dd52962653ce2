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
	own      int // how many vertices are ours, not the builder's: 0, -1, -2 ...
}

func newTrace(build string, tell func(buildsession.Trace)) *trace {
	return &trace{tell: tell, build: build, vertices: map[int]buildsession.Vertex{}}
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

// vertex begins one of ours. None of them is told while the builder is at work.
func (t *trace) vertex(name string) (done func(error)) {
	id := -t.own
	t.own++
	start := time.Now()
	t.event(builder.Event{Vertex: id, Name: name, Started: &start})
	return func(err error) {
		now := time.Now()
		t.event(builder.Event{Vertex: id, Finished: &now, Err: err})
	}
}

// warnings tells what is to be said of the Dockerfile.
func (t *trace) warnings(c *builder.Checked) {
	if c == nil || len(c.Warnings) == 0 {
		return
	}
	var m buildsession.Trace
	for _, w := range c.Warnings {
		m.Warnings = append(m.Warnings, buildsession.Warning{Vertex: t.digest(1), Short: w.String(), URL: w.URL,
			File: c.Name, Text: c.Text, First: w.Line, Last: max(w.Line, w.LastLine)})
	}
	t.tell(m)
}

// transfer is files on their way.
type transfer struct {
	t      *trace
	vertex string
	start  time.Time
	last   int64
	done   func(error)
}

func (t *trace) transfer(name string) *transfer {
	return &transfer{t: t, vertex: t.digest(-t.own), start: time.Now(), done: t.vertex(name)}
}

func (x *transfer) progress(n int64) {
	x.last = n
	x.status(nil)
}

func (x *transfer) finish(err error) {
	if now := time.Now(); x.last > 0 {
		x.status(&now)
	}
	x.done(err)
}

func (x *transfer) status(completed *time.Time) {
	x.t.tell(buildsession.Trace{Statuses: []buildsession.Status{{ID: "transferring context", Vertex: x.vertex,
		Current: x.last, At: time.Now(), Started: &x.start, Completed: completed}}})
}
