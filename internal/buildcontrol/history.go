package buildcontrol

import (
	"time"

	"keg/internal/grpc"
)

// Record is a build in the history.
type Record struct {
	Ref, Frontend       string
	Attrs               map[string]string
	Exporters           []Entry
	Created             time.Time
	Completed           *time.Time
	Code                int // of the error
	Error               string
	Status              []byte // the same as google.rpc.Status, with its details
	Response            map[string]string
	Pinned              bool
	Cached, Total, Done int // steps
	Warnings            int
	Trace               Blob
}

// Blob is a document that can be read by its digest.
type Blob struct {
	MediaType, Digest string
	Size              int64
}

func (d Blob) encode() []byte {
	return grpc.AppendNumber(grpc.AppendText(grpc.AppendText(nil, 1, d.MediaType), 2, d.Digest), 3, uint64(d.Size))
}

// Kinds of events; zero: it has begun.
const (
	HistoryComplete = 1
	HistoryDeleted  = 2
)

// HistoryEvent is a message of Control/ListenBuildHistory.
type HistoryEvent struct {
	Kind   int
	Record Record
}

// Encode writes it.
func (e HistoryEvent) Encode() []byte {
	r := e.Record
	b := appendMap(grpc.AppendText(grpc.AppendText(nil, 1, r.Ref), 2, r.Frontend), 3, r.Attrs)
	for _, x := range r.Exporters {
		b = grpc.AppendMessage(b, 4, appendMap(grpc.AppendText(nil, 1, x.Type), 2, x.Attrs))
	}
	if r.Code != 0 {
		b = grpc.AppendMessage(b, 5, (&grpc.Status{Code: r.Code, Message: r.Error}).Encode())
	}
	if !r.Created.IsZero() {
		b = grpc.AppendTime(b, 6, &r.Created)
	}
	b = appendMap(grpc.AppendTime(b, 7, r.Completed), 9, r.Response)
	if r.Trace.Digest != "" {
		b = grpc.AppendMessage(b, 13, r.Trace.encode())
	}
	b = grpc.AppendNumber(grpc.AppendNumber(b, 14, flag(r.Pinned)), 15, uint64(r.Cached))
	b = grpc.AppendNumber(grpc.AppendNumber(b, 16, uint64(r.Total)), 17, uint64(r.Done))
	if len(r.Status) > 0 {
		b = grpc.AppendMessage(b, 18, Blob{"application/vnd.googeapis.google.rpc.status+proto", digestOf(r.Status), int64(len(r.Status))}.encode())
	}
	return grpc.AppendMessage(grpc.AppendNumber(nil, 1, uint64(e.Kind)), 2, grpc.AppendNumber(b, 19, uint64(r.Warnings)))
}

// HistoryRequest is the message of Control/ListenBuildHistory. Filters are left to clients, which apply them, too.
type HistoryRequest struct {
	ActiveOnly, EarlyExit bool
	Ref                   string
	Limit                 int
}

// ParseHistoryRequest reads it.
func ParseHistoryRequest(b []byte) (q HistoryRequest, err error) {
	var limit int64
	err = fields(b, map[int]decoder{1: toFlag(&q.ActiveOnly), 2: toText(&q.Ref), 3: toFlag(&q.EarlyExit), 5: toNumber(&limit)})
	q.Limit = int(int32(limit))
	return q, err
}

// HistoryUpdate is the message of Control/UpdateBuildHistory.
type HistoryUpdate struct {
	Ref                      string
	Pinned, Delete, Finalize bool
}

// ParseHistoryUpdate reads it.
func ParseHistoryUpdate(b []byte) (q HistoryUpdate, err error) {
	err = fields(b, map[int]decoder{1: toText(&q.Ref), 2: toFlag(&q.Pinned), 3: toFlag(&q.Delete), 4: toFlag(&q.Finalize)})
	return q, err
}

// ContentRead is the message of Content/Read.
type ContentRead struct {
	Digest       string
	Offset, Size int64
}

// ParseContentRead reads it.
func ParseContentRead(b []byte) (q ContentRead, err error) {
	err = fields(b, map[int]decoder{1: toText(&q.Digest), 2: toNumber(&q.Offset), 3: toNumber(&q.Size)})
	return q, err
}
