package api

// The history of builds through the control protocol: docker buildx history. One file a build and one of what it told, in
// a directory of ours; the last builds are kept.
//
//	<ref>.json   the record
//	<ref>.log    messages of its status, as they went out
//	<ref>.trace  its steps as spans of OpenTelemetry

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/buildcontrol"
	"keg/internal/buildsession"
	"keg/internal/disk"
	"keg/internal/fault"
	"keg/internal/grpc"
)

// Bounds of the history.
const (
	maxRecords   = 50
	maxRecordLog = 4 << 20
	maxFollowers = 100
)

type history struct {
	dir string // "": none is kept

	mu        sync.Mutex
	active    map[string]*buildcontrol.Record
	followers map[chan buildcontrol.HistoryEvent]bool
}

// file of a build. Its name may be foreign.
func (h *history) file(ref, kind string) string {
	sum := sha256.Sum256([]byte(ref))
	return filepath.Join(h.dir, hex.EncodeToString(sum[:16])+kind)
}

// tell hands an event to those who listen. One that does not is let go.
func (h *history) tell(e buildcontrol.HistoryEvent) {
	for f := range h.followers {
		select {
		case f <- e:
		default:
			delete(h.followers, f)
			close(f)
		}
	}
}

// recording is the record of a build under way.
type recording struct {
	h        *history
	record   *buildcontrol.Record
	mu       sync.Mutex
	log      *os.File
	size     int
	warnings int
	vertices map[string]buildsession.Vertex
}

// begin opens the record of a build; nil when none is kept.
func (h *history) begin(q *buildcontrol.Solve) *recording {
	if h.dir == "" || q.Internal {
		return nil
	}
	r := &recording{h: h, record: &buildcontrol.Record{Ref: q.Ref, Frontend: q.Frontend, Attrs: q.Attrs, Exporters: q.Exporters, Created: time.Now()},
		vertices: map[string]buildsession.Vertex{}}
	if err := os.MkdirAll(h.dir, 0o700); err == nil {
		r.log, _ = os.OpenFile(h.file(q.Ref, ".log"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.active == nil {
		h.active = map[string]*buildcontrol.Record{}
	}
	h.active[q.Ref] = r.record
	h.tell(buildcontrol.HistoryEvent{Record: *r.record})
	return r
}

// told keeps what the build tells. A build does not fail for its history.
func (r *recording) told(t buildsession.Trace, message []byte) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range t.Vertices {
		if len(r.vertices) < maxReferences {
			r.vertices[v.Digest] = v
		}
	}
	r.warnings += len(t.Warnings)
	if b := grpc.Frame(message); r.log != nil && r.size+len(b) <= maxRecordLog {
		r.size += len(b)
		_, _ = r.log.Write(b)
	}
}

// front is what the frontend was given, which the record shows.
func (r *recording) front(f *buildcontrol.Frontend) {
	if r == nil {
		return
	}
	r.h.mu.Lock()
	defer r.h.mu.Unlock()
	r.record.Frontend, r.record.Attrs = f.Name, f.Attrs
}

// end writes the record.
func (r *recording) end(response map[string]string, err error) {
	if r == nil {
		return
	}
	r.mu.Lock()
	now := time.Now()
	rec := *r.record
	rec.Completed, rec.Response, rec.Warnings = &now, response, r.warnings
	if err != nil {
		s := grpc.StatusOf(err)
		rec.Code, rec.Error, rec.Status = s.Code, s.Message, s.Encode()
	}
	for _, v := range r.vertices {
		rec.Total++
		if v.Completed != nil {
			rec.Done++
		}
		if v.Cached {
			rec.Cached++
		}
	}
	if r.log != nil {
		r.log.Close()
	}
	spans := traceSpans(&rec, r.vertices)
	r.mu.Unlock()
	rec.Trace = buildcontrol.Blob{MediaType: "application/vnd.buildkit.otlp.json.v0", Digest: digest.FromBytes(spans).String(), Size: int64(len(spans))}
	r.h.mu.Lock()
	defer r.h.mu.Unlock()
	delete(r.h.active, rec.Ref)
	if os.WriteFile(r.h.file(rec.Ref, ".trace"), spans, 0o600) == nil {
		_ = disk.PutJSONVolatile(r.h.file(rec.Ref, ".json"), &rec)
	}
	r.h.trim()
	r.h.tell(buildcontrol.HistoryEvent{Kind: buildcontrol.HistoryComplete, Record: rec})
}

// records lists those that are complete, the newest first.
func (h *history) records() (list []buildcontrol.Record) {
	if h.dir == "" {
		return nil
	}
	files, _ := filepath.Glob(filepath.Join(h.dir, "*.json"))
	for _, f := range files {
		var r buildcontrol.Record
		if err := disk.GetJSON(f, &r); err == nil && h.file(r.Ref, ".json") == f {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b buildcontrol.Record) int {
		return cmp.Or(b.Created.Compare(a.Created), strings.Compare(a.Ref, b.Ref))
	})
	return list
}

// trim lets the oldest go.
func (h *history) trim() {
	n := 0
	for _, r := range h.records() {
		if n++; n > maxRecords && !r.Pinned {
			h.remove(r.Ref)
		}
	}
}

func (h *history) remove(ref string) {
	for _, kind := range []string{".json", ".log", ".trace"} {
		_ = os.Remove(h.file(ref, kind))
	}
}

// update pins or removes a record.
func (c *control) updateHistory(_ *grpc.Stream, b []byte) ([]byte, error) {
	q, err := buildcontrol.ParseHistoryUpdate(b)
	if err != nil {
		return nil, err
	}
	h := &c.s.history
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.active[q.Ref] != nil {
		return nil, fault.Conflictf("build %s is under way", q.Ref)
	}
	var r buildcontrol.Record
	if h.dir == "" || disk.GetJSON(h.file(q.Ref, ".json"), &r) != nil {
		return nil, fault.NotFoundf("no build record for ref %s", q.Ref)
	}
	switch {
	case q.Finalize: // it is
		return nil, nil
	case q.Delete:
		h.remove(q.Ref)
		h.tell(buildcontrol.HistoryEvent{Kind: buildcontrol.HistoryDeleted, Record: buildcontrol.Record{Ref: q.Ref}})
		return nil, nil
	}
	r.Pinned = q.Pinned
	return nil, disk.PutJSONVolatile(h.file(q.Ref, ".json"), &r)
}

// listenHistory tells the records that are there and, unless that is all, what comes.
func (c *control) listenHistory(st *grpc.Stream) error {
	b, err := st.Receive()
	if err != nil {
		return err
	}
	q, err := buildcontrol.ParseHistoryRequest(b)
	if err != nil {
		return err
	}
	past, events, leave, err := c.s.history.follow(q)
	if err != nil {
		return err
	}
	defer leave()
	st.SetHeader("Buildkit-Current-Timestamp", time.Now().UTC().Format(time.RFC3339Nano))
	if err := st.Header(); err != nil {
		return err
	}
	for _, e := range past {
		if err := st.Send(e.Encode()); err != nil {
			return err
		}
	}
	if q.EarlyExit {
		return nil
	}
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return fault.Unavailablef("the client does not listen to the history of builds")
			}
			if q.Ref == "" || q.Ref == e.Record.Ref {
				if err := st.Send(e.Encode()); err != nil {
					return err
				}
			}
		case <-st.Context().Done():
			return st.Context().Err()
		}
	}
}

func (h *history) follow(q buildcontrol.HistoryRequest) (past []buildcontrol.HistoryEvent, events chan buildcontrol.HistoryEvent, leave func(), err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	wanted := func(ref string) bool { return q.Ref == "" || q.Ref == ref }
	for _, r := range h.active {
		if wanted(r.Ref) {
			past = append(past, buildcontrol.HistoryEvent{Record: *r})
		}
	}
	if !q.ActiveOnly {
		for _, r := range h.records() {
			if wanted(r.Ref) && (q.Limit <= 0 || len(past) < q.Limit) {
				past = append(past, buildcontrol.HistoryEvent{Kind: buildcontrol.HistoryComplete, Record: r})
			}
		}
	}
	if q.EarlyExit {
		return past, nil, func() {}, nil
	}
	if len(h.followers) >= maxFollowers {
		return nil, nil, nil, fault.Unavailablef("%d clients listen to the history of builds already", maxFollowers)
	}
	events = make(chan buildcontrol.HistoryEvent, 64)
	if h.followers == nil {
		h.followers = map[chan buildcontrol.HistoryEvent]bool{}
	}
	h.followers[events] = true
	return past, events, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.followers, events)
	}, nil
}

// has tells whether a build is over and known.
func (h *history) has(ref string) bool {
	if h.dir == "" {
		return false
	}
	_, err := os.Stat(h.file(ref, ".json"))
	return err == nil
}

// replay tells the status of a build that is over.
func (h *history) replay(ctx context.Context, ref string, yield func([]byte) error) error {
	if h.dir == "" {
		return fault.NotFoundf("no such job %s", ref)
	}
	f, err := os.Open(h.file(ref, ".log"))
	if errors.Is(err, fs.ErrNotExist) {
		return fault.NotFoundf("no such job %s", ref)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for r := bufio.NewReader(f); ctx.Err() == nil; {
		m, err := grpc.ReadFrame(r)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = yield(m)
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// blob finds a document that records name.
func (h *history) blob(d string) ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.records() {
		if r.Trace.Digest == d {
			return os.ReadFile(h.file(r.Ref, ".trace"))
		}
		if s := digest.FromBytes(r.Status); len(r.Status) > 0 && s.String() == d {
			return r.Status, nil
		}
	}
	return nil, &grpc.Status{Code: 5, Message: "content " + d + ": not found"}
}

func (c *control) contentInfo(_ *grpc.Stream, b []byte) ([]byte, error) {
	d, err := buildcontrol.ParseRef(b)
	if err != nil {
		return nil, err
	}
	doc, err := c.s.history.blob(d)
	return grpc.AppendMessage(nil, 1, grpc.AppendNumber(grpc.AppendText(nil, 1, d), 2, uint64(len(doc)))), err
}

func (c *control) contentRead(st *grpc.Stream) error {
	b, err := st.Receive()
	if err != nil {
		return err
	}
	q, err := buildcontrol.ParseContentRead(b)
	if err != nil {
		return err
	}
	doc, err := c.s.history.blob(q.Digest)
	if err != nil {
		return err
	}
	from := min(max(q.Offset, 0), int64(len(doc)))
	doc = doc[from:]
	if q.Size > 0 && q.Size < int64(len(doc)) {
		doc = doc[:q.Size]
	}
	for piece := range slices.Chunk(doc, 1<<20) {
		if err := st.Send(grpc.AppendText(grpc.AppendNumber(nil, 1, uint64(from)), 2, piece)); err != nil {
			return err
		}
		from += int64(len(piece))
	}
	return st.Header()
}

// traceSpans are the steps of a build as spans, one JSON document each.
func traceSpans(r *buildcontrol.Record, vertices map[string]buildsession.Vertex) []byte {
	type spanContext struct {
		TraceID, SpanID, TraceFlags, TraceState string
		Remote                                  bool
	}
	type value struct{ Type, Value string }
	type attribute struct {
		Key   string
		Value value
	}
	type status struct{ Code, Description string }
	type span struct {
		Name                string
		SpanContext, Parent spanContext
		SpanKind            int
		StartTime, EndTime  time.Time
		Attributes          []attribute
		Status              status
		ChildSpanCount      int
		Resource            []attribute
	}
	id := sha256.Sum256([]byte(r.Ref))
	trace := hex.EncodeToString(id[:16])
	context := func(s string) spanContext {
		sum := sha256.Sum256([]byte(r.Ref + s))
		return spanContext{TraceID: trace, SpanID: hex.EncodeToString(sum[:8]), TraceFlags: "01"}
	}
	state := func(text string) status {
		if text == "" {
			return status{Code: "Unset"}
		}
		return status{"Error", text}
	}
	resource := []attribute{{"service.name", value{"STRING", "keg"}}}
	spans := []span{{Name: "build", SpanContext: context(""), Parent: spanContext{strings.Repeat("0", 32), strings.Repeat("0", 16), "00", "", false}, SpanKind: 1,
		StartTime: r.Created, EndTime: *r.Completed, Status: state(r.Error), ChildSpanCount: len(vertices), Resource: resource}}
	for d, v := range vertices {
		if v.Started == nil || v.Completed == nil {
			continue
		}
		spans = append(spans, span{Name: v.Name, SpanContext: context(d), Parent: context(""), SpanKind: 1, StartTime: *v.Started, EndTime: *v.Completed,
			Attributes: []attribute{{"vertex", value{"STRING", d}}}, Status: state(v.Error), Resource: resource})
	}
	slices.SortStableFunc(spans[1:], func(a, b span) int { return cmp.Or(a.StartTime.Compare(b.StartTime), strings.Compare(a.Name, b.Name)) })
	var b bytes.Buffer
	for _, s := range spans {
		_ = json.NewEncoder(&b).Encode(s)
	}
	return b.Bytes()
}
