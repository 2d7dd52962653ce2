// Package buildsession speaks with a client that has BuildKit's session open: on that
// connection the client is the server, of gRPC over HTTP/2, and offers its files,
// secrets and agents. What it sends is hostile.
//
//	client                                   engine
//	POST /session, Upgrade: h2c      ->
//	                                 <-      101
//	                                 <-      HTTP/2: POST /moby.filesync.v1.FileSync/DiffCopy ...
//	POST /build?version=2&session=ID ->
//	                                 <-      lines of JSON: Trace, the image's id
package buildsession

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"keg/internal/fault"
	"keg/internal/grpc"
)

// Headers of POST /session.
const (
	HeaderID     = "X-Docker-Expose-Session-Uuid"
	HeaderName   = "X-Docker-Expose-Session-Name"
	HeaderMethod = "X-Docker-Expose-Session-Grpc-Method"
)

// Session is one client's. Its methods may be called from several goroutines.
type Session struct {
	ID      string
	methods map[string]bool
	cc      *http.ClientConn
	conn    *watchedConn
}

// Open begins a session on a connection that was taken from POST /session with the header h.
// The connection belongs to the session from now on.
func Open(ctx context.Context, conn net.Conn, h http.Header) (*Session, error) {
	s := &Session{ID: h.Get(HeaderID), methods: map[string]bool{}, conn: &watchedConn{Conn: conn, gone: make(chan struct{})}}
	for _, m := range h[HeaderMethod] {
		s.methods[strings.ToLower(m)] = true
	}
	t := &http.Transport{
		DialContext:        func(context.Context, string, string) (net.Conn, error) { return s.conn, nil },
		DisableCompression: true, Protocols: new(http.Protocols), MaxResponseHeaderBytes: 64 << 10,
	}
	t.Protocols.SetUnencryptedHTTP2(true)
	var err error
	if s.cc, err = t.NewClientConn(ctx, "http", "session:80"); err != nil {
		conn.Close()
		return nil, fmt.Errorf("begin session %s: %w", s.ID, err)
	}
	return s, nil
}

// Gone is closed when the client has left.
func (s *Session) Gone() <-chan struct{} { return s.conn.gone }

// Close ends the session.
func (s *Session) Close() error {
	_ = s.cc.Close()
	return s.conn.Close()
}

// offers tells whether the client has a method: "/moby.filesync.v1.FileSync/DiffCopy".
func (s *Session) offers(method string) bool { return s.methods[strings.ToLower(method)] }

// watchedConn tells when there is nothing more to read.
type watchedConn struct {
	net.Conn
	once sync.Once
	gone chan struct{}
}

func (c *watchedConn) end() { c.once.Do(func() { close(c.gone) }) }

func (c *watchedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		c.end()
	}
	return n, err
}

func (c *watchedConn) Close() error {
	c.end()
	return c.Conn.Close()
}

// refusal is a call that the client answered with an error.
type refusal struct {
	code    int
	message string
}

func (r *refusal) Error() string { return r.message }

func hasCode(err error, code int) bool {
	var r *refusal
	return errors.As(err, &r) && r.code == code
}

// stream is one call under way: messages both ways, and the status in the trailer. One goroutine may send while another receives.
type stream struct {
	w      *io.PipeWriter
	cancel context.CancelFunc
	begun  chan struct{} // resp and err are set
	resp   *http.Response
	err    error
}

// call begins a method. The stream has to be closed.
func (s *Session) call(ctx context.Context, method string, metadata http.Header) *stream {
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	st := &stream{w: w, cancel: cancel, begun: make(chan struct{})}
	h := http.Header{}
	for k, v := range metadata {
		h[http.CanonicalHeaderKey(k)] = v
	}
	h.Set("Content-Type", "application/grpc")
	h.Set("Te", "trailers")
	q := (&http.Request{Method: http.MethodPost, URL: &url.URL{Scheme: "http", Host: "session", Path: method},
		Header: h, Body: r, ContentLength: -1}).WithContext(ctx)
	// The client answers the header with its first message, which may want one of ours.
	go func() {
		defer close(st.begun)
		if st.resp, st.err = s.cc.RoundTrip(q); st.err != nil {
			r.CloseWithError(st.err)
		}
	}()
	return st
}

// abort gives the call up, which ends a receive under way. The transport sees neither while it waits for the other.
func (st *stream) abort() {
	st.cancel()
	st.w.CloseWithError(context.Canceled)
}

// close ends the call, whatever state it is in.
func (st *stream) close() {
	st.abort()
	<-st.begun
	if st.resp != nil {
		st.resp.Body.Close()
	}
}

// endSending tells the client that no message of ours follows.
func (st *stream) endSending() { st.w.Close() }

func (st *stream) send(message []byte) error {
	_, err := st.w.Write(grpc.Frame(message))
	return err
}

// receive returns the next message in a buffer of its own; io.EOF after the last one.
func (st *stream) receive() ([]byte, error) {
	<-st.begun
	if st.err != nil {
		return nil, fmt.Errorf("ask the client's session: %w", st.err)
	}
	if st.resp.StatusCode != http.StatusOK {
		return nil, fault.Invalidf("the client's session answers %s", st.resp.Status)
	}
	b, err := grpc.ReadFrame(st.resp.Body)
	if errors.Is(err, io.EOF) {
		return nil, st.status()
	}
	if err != nil {
		return nil, fmt.Errorf("the client's session: %w", err)
	}
	return b, nil
}

// status is the end of a call: io.EOF when it is well. A call without messages has it in
// its header.
func (st *stream) status() error {
	h := st.resp.Trailer
	if h.Get("Grpc-Status") == "" {
		h = st.resp.Header
	}
	code, err := strconv.Atoi(h.Get("Grpc-Status"))
	if err != nil {
		return fault.Invalidf("the client's session ended a call without a status")
	}
	if code == 0 {
		return io.EOF
	}
	text, err := url.PathUnescape(h.Get("Grpc-Message"))
	if err != nil {
		text = h.Get("Grpc-Message")
	}
	return &refusal{code, text}
}

// ask makes a call of one message each way.
func (s *Session) ask(ctx context.Context, method string, message []byte) ([]byte, error) {
	st := s.call(ctx, method, nil)
	defer st.close()
	if err := st.send(message); err != nil {
		return nil, err
	}
	st.endSending()
	answer, err := st.receive()
	if errors.Is(err, io.EOF) {
		return nil, fault.Invalidf("the client's session does not answer %s", method)
	}
	if err != nil {
		return nil, err
	}
	return answer, st.end()
}

// end expects that nothing more comes, and all is well.
func (st *stream) end() error {
	switch _, err := st.receive(); {
	case err == nil:
		return fault.Invalidf("the client's session sends more than it was asked for")
	case !errors.Is(err, io.EOF):
		return err
	}
	return nil
}
