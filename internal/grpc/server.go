package grpc

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"

	"keg/internal/fault"
)

// Codes of a status (grpc.github.io/grpc/core/md_doc_statuscodes.html).
const (
	CodeOK            = 0
	CodeCanceled      = 1
	CodeUnknown       = 2
	CodeInvalid       = 3
	CodeDeadline      = 4
	CodeNotFound      = 5
	CodeAlreadyExists = 6
	CodeDenied        = 7
	CodeInternal      = 13
	CodeUnimplemented = 12
	CodeUnavailable   = 14
	CodeUnauthorized  = 16
)

// Status is how a call ends that did not go well.
type Status struct {
	Code    int
	Message string
	Details [][]byte // messages google.protobuf.Any that say more
}

func (s *Status) Error() string { return s.Message }

// codes is the one table from kinds of failure to codes. Unknown is shown without its code by clients.
var codes = [...]int{
	fault.Unknown:      CodeUnknown,
	fault.NotFound:     CodeUnknown,
	fault.Conflict:     CodeUnknown,
	fault.Invalid:      CodeUnknown,
	fault.Denied:       CodeDenied,
	fault.Unauthorized: CodeUnauthorized,
	fault.Unavailable:  CodeUnavailable,
	fault.Unsupported:  CodeUnknown,
	fault.NotModified:  CodeUnknown,
}

// StatusOf makes a status of an error.
func StatusOf(err error) *Status {
	var s *Status
	switch {
	case errors.As(err, &s):
		return s
	case errors.Is(err, context.Canceled):
		return &Status{Code: CodeCanceled, Message: "context canceled"}
	case errors.Is(err, context.DeadlineExceeded):
		return &Status{Code: CodeDeadline, Message: err.Error()}
	}
	return &Status{Code: codes[fault.KindOf(err)], Message: err.Error()}
}

// Encode is the message google.rpc.Status.
func (s *Status) Encode() []byte {
	b := AppendText(AppendNumber(nil, 1, uint64(s.Code)), 2, strings.ToValidUTF8(s.Message, "\uFFFD"))
	for _, d := range s.Details {
		b = AppendMessage(b, 3, d)
	}
	return b
}

// ParseStatus reads google.rpc.Status.
func ParseStatus(b []byte) (*Status, error) {
	s := &Status{}
	err := Each(b, func(f Field) error {
		switch {
		case f.Number == 1 && f.Kind == Varint:
			s.Code = int(int32(f.Value))
		case f.Number == 2 && f.Kind == Delimited:
			s.Message = string(f.Data)
		case f.Number == 3 && f.Kind == Delimited && len(s.Details) < 64:
			s.Details = append(s.Details, f.Data)
		}
		return nil
	})
	return s, err
}

// Method answers one call. What it returns is the status of the call.
type Method func(*Stream) error

// Unary is a method with one message each way.
func Unary(answer func(s *Stream, message []byte) ([]byte, error)) Method {
	return func(s *Stream) error {
		b, err := s.Receive()
		if errors.Is(err, io.EOF) {
			err = fault.Invalidf("a message is missing")
		}
		if err != nil {
			return err
		}
		if b, err = answer(s, b); err != nil {
			return err
		}
		return s.Send(b)
	}
}

// Stream is one call under way. One goroutine may send while another receives.
type Stream struct {
	r *http.Request
	w http.ResponseWriter
}

// Context ends when the client gives the call up, or has left.
func (s *Stream) Context() context.Context { return s.r.Context() }

// Metadata is what the call's header says.
func (s *Stream) Metadata() http.Header { return s.r.Header }

// Receive returns the next message; io.EOF after the last one.
func (s *Stream) Receive() ([]byte, error) { return ReadFrame(s.r.Body) }

// Send hands a message to the client.
func (s *Stream) Send(message []byte) error {
	if _, err := s.w.Write(Frame(message)); err != nil {
		return err
	}
	return http.NewResponseController(s.w).Flush()
}

// SetHeader adds to the header, before it is sent.
func (s *Stream) SetHeader(key, value string) { s.w.Header().Set(key, value) }

// Header sends the header before there is a message.
func (s *Stream) Header() error { return http.NewResponseController(s.w).Flush() }

// Bounds of one connection.
const (
	maxStreams = 100
	maxHeader  = 1 << 20
)

// Serve answers calls on a connection, by HTTP/2, until the client leaves or ctx ends; then it waits for those under way.
// Panics are told to logs. The connection is closed when it returns.
func Serve(ctx context.Context, conn net.Conn, methods map[string]Method, logs io.Writer) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var calls sync.WaitGroup
	srv := &http.Server{
		Protocols: new(http.Protocols), MaxHeaderBytes: maxHeader, ErrorLog: log.New(io.Discard, "", 0),
		HTTP2:       &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		BaseContext: func(net.Listener) context.Context { return ctx },
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			defer calls.Done()
			Answer(w, r, methods, logs)
		}),
	}
	srv.Protocols.SetUnencryptedHTTP2(true)
	ln := &single{conn: &closing{Conn: conn, gone: make(chan struct{})}}
	ln.next = make(chan net.Conn, 1)
	ln.next <- ln.conn
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	_ = srv.Serve(ln)
	_ = srv.Close()
	cancel()
	calls.Wait()
}

// Is tells a call from other requests by HTTP/2.
func Is(r *http.Request) bool {
	return r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc")
}

// Answer answers one call. Panics are told to logs.
func Answer(w http.ResponseWriter, r *http.Request, methods map[string]Method, logs io.Writer) {
	m, h := methods[r.URL.Path], w.Header()
	h.Set("Content-Type", "application/grpc")
	var err error = &Status{Code: CodeUnimplemented, Message: fmt.Sprintf("method %q is not supported", r.URL.Path)}
	if m != nil {
		err = call(m, &Stream{r, w}, logs)
	}
	h.Set(http.TrailerPrefix+"Grpc-Status", strconv.Itoa(CodeOK))
	if err == nil {
		return
	}
	s := StatusOf(err)
	h.Set(http.TrailerPrefix+"Grpc-Status", strconv.Itoa(s.Code))
	h.Set(http.TrailerPrefix+"Grpc-Message", escape(s.Message))
	if len(s.Details) > 0 {
		h.Set(http.TrailerPrefix+"Grpc-Status-Details-Bin", base64.RawStdEncoding.EncodeToString(s.Encode()))
	}
}

func call(m Method, s *Stream, logs io.Writer) (err error) {
	defer func() {
		if p := recover(); p != nil {
			fmt.Fprintf(logs, "panic while answering %q: %v\n%s", s.r.URL.Path, p, debug.Stack())
			err = &Status{Code: CodeInternal, Message: "keg made a mistake while answering this call; please report what its log says"}
		}
	}()
	return m(s)
}

// maxStatus bounds the text of a status: it travels in a header.
const maxStatus = 16 << 10

// escape writes a text as a header has it: what is not printable ASCII as %XX.
func escape(s string) string {
	if len(s) > maxStatus {
		s = strings.ToValidUTF8(s[:maxStatus], "") + "..."
	}
	return strings.ReplaceAll(url.PathEscape(s), "%20", " ")
}

// single is a listener of one connection that is there already.
type single struct {
	conn *closing
	next chan net.Conn
}

// Accept returns the connection, and then nothing until it was closed.
func (l *single) Accept() (net.Conn, error) {
	select {
	case c := <-l.next:
		return c, nil
	case <-l.conn.gone:
		return nil, net.ErrClosed
	}
}

func (l *single) Close() error   { return nil }
func (l *single) Addr() net.Addr { return l.conn.LocalAddr() }

// closing tells when it was closed.
type closing struct {
	net.Conn
	once sync.Once
	gone chan struct{}
}

func (c *closing) Close() error {
	c.once.Do(func() { close(c.gone) })
	return c.Conn.Close()
}
