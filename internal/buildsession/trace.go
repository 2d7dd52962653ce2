package buildsession

import (
	"strings"
	"time"

	"keg/internal/grpc"
)

// Trace is progress of a build (moby.buildkit.v1.StatusResponse, api/services/control/control.proto).
type Trace struct {
	Vertices []Vertex
	Statuses []Status
	Logs     []Log
	Warnings []Warning
}

// Vertex is one step. Each of its messages tells all that is known.
type Vertex struct {
	Digest, Name, Error string
	Cached              bool
	Started, Completed  *time.Time
}

// Status is a line about what a vertex does.
type Status struct {
	ID, Vertex         string
	Current            int64 // bytes
	At                 time.Time
	Started, Completed *time.Time
}

// Log is output of a vertex.
type Log struct {
	Vertex string
	At     time.Time
	Data   []byte
}

// Warning is one about the Dockerfile. Lines count from 1.
type Warning struct {
	Vertex, Short, URL string
	File               string
	Text               []byte // of the file
	First, Last        int
}

// Encode is the message as it travels.
func (t Trace) Encode() []byte {
	var b []byte
	for _, v := range t.Vertices {
		m := grpc.AppendText(nil, 1, v.Digest)
		m = grpc.AppendText(m, 3, strings.ToValidUTF8(v.Name, "\uFFFD"))
		if v.Cached {
			m = grpc.AppendNumber(m, 4, 1)
		}
		m = grpc.AppendTime(grpc.AppendTime(m, 5, v.Started), 6, v.Completed)
		b = grpc.AppendMessage(b, 1, grpc.AppendText(m, 7, strings.ToValidUTF8(v.Error, "\uFFFD")))
	}
	for _, s := range t.Statuses {
		m := grpc.AppendText(grpc.AppendText(nil, 1, strings.ToValidUTF8(s.ID, "\uFFFD")), 2, s.Vertex)
		m = grpc.AppendTime(grpc.AppendNumber(m, 4, uint64(s.Current)), 6, &s.At)
		b = grpc.AppendMessage(b, 2, grpc.AppendTime(grpc.AppendTime(m, 7, s.Started), 8, s.Completed))
	}
	for _, l := range t.Logs {
		m := grpc.AppendNumber(grpc.AppendTime(grpc.AppendText(nil, 1, l.Vertex), 2, &l.At), 3, 1)
		b = grpc.AppendMessage(b, 3, grpc.AppendText(m, 4, l.Data))
	}
	for _, w := range t.Warnings {
		m := grpc.AppendText(grpc.AppendNumber(grpc.AppendText(nil, 1, w.Vertex), 2, 1), 3, strings.ToValidUTF8(w.Short, "\uFFFD"))
		info := grpc.AppendText(grpc.AppendText(grpc.AppendText(nil, 1, w.File), 2, w.Text), 4, "Dockerfile")
		m = grpc.AppendMessage(grpc.AppendText(m, 5, w.URL), 6, info)
		line := func(n int) []byte { return grpc.AppendNumber(nil, 1, uint64(n)) }
		b = grpc.AppendMessage(b, 4, grpc.AppendMessage(m, 7, grpc.AppendMessage(grpc.AppendMessage(nil, 1, line(w.First)), 2, line(w.Last))))
	}
	return b
}
