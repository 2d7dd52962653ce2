// The HTTP server around the handler: limits on what strangers may hold open, an orderly
// end, and the access log.

package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"keg/internal/weakness"
)

const (
	maxConns    = 4096
	maxHeaders  = 64 << 10
	headerTime  = 10 * time.Second
	idleTime    = 2 * time.Minute
	goodbyeTime = 10 * time.Second

	// slowest is the rate in bytes a second below which a reader is cut off.
	slowest = 16 << 10
)

// Serve answers on l until ctx ends, then lets running requests finish for a while. A handler of
// NewServer is served with its certificate, and keeps house meanwhile.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeaders,
		ErrorLog:          log.New(io.Discard, "", 0), // strangers' broken handshakes
	}
	s, _ := h.(*server)
	conns := maxConns
	if s != nil && s.opt.MaxConns > 0 {
		conns = s.opt.MaxConns
	}
	serve := srv.Serve
	if s != nil && s.opt.Cert != "" {
		pair, err := newKeyPair(s.opt.Cert, s.opt.Key, func(err error) { fmt.Fprintf(s.log, "error tls err=%q\n", err.Error()) })
		if err != nil {
			return err
		}
		srv.TLSConfig = pair.config()
		serve = func(l net.Listener) error { return srv.ServeTLS(l, "", "") }
	}
	house, leave := context.WithCancel(ctx)
	var housekeeping sync.WaitGroup
	if s != nil {
		housekeeping.Go(func() { s.keepHouse(house) })
	}
	defer housekeeping.Wait()
	defer leave()
	done := make(chan error, 1)
	go func() { done <- serve(netutil.LimitListener(l, conns)) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve registry on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	if s != nil {
		s.leaving.Store(true)
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), goodbyeTime)
	defer cancel()
	if srv.Shutdown(end) != nil {
		srv.Close()
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// accessLog writes one line for each request. What clients chose is quoted, so that a line
// stays a line (security.md RS7); credentials are never part of it.
type accessLog struct {
	mu sync.Mutex
	w  io.Writer
}

func newAccessLog(w io.Writer) *accessLog {
	if w == nil {
		w = io.Discard
	}
	return &accessLog{w: w}
}

func (l *accessLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// request writes the line of a request that was answered.
func (l *accessLog) request(r *request, c *counted, received int64, began time.Time) {
	if l.w == io.Discard {
		return
	}
	quoted := strconv.Quote
	if weakness.Of("RS7") {
		quoted = func(s string) string { return s }
	}
	fmt.Fprintf(l, "%s remote=%s user=%q method=%q path=%q status=%d bytes=%d received=%d seconds=%.4f agent=%s\n",
		began.UTC().Format(time.RFC3339Nano), r.RemoteAddr, r.user, r.Method, r.URL.EscapedPath(), max(c.status, 200), c.n, received,
		time.Since(began).Seconds(), quoted(r.UserAgent()))
}

// countedBody counts what a client sent.
type countedBody struct {
	io.ReadCloser
	n     int64
	ended bool
}

func (c *countedBody) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n += int64(n)
	c.ended = c.ended || err != nil
	return n, err
}

// counted is a ResponseWriter that knows its status and length, and has deadlines; sendfile still works.
type counted struct {
	http.ResponseWriter
	status int
	n      int64
	body   *countedBody // nil: there is none
}

func (c *counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// begin gives the client time to send a body: little where it has no business in the request.
func (c *counted) begin(r *http.Request, body *countedBody) {
	if r.ContentLength == 0 || weakness.Of("RS5") {
		return // a deadline would end the request's context: net/http reads ahead already
	}
	c.body = body
	wait := bodyStall
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodDelete:
		wait = leftoverWait
	}
	http.NewResponseController(c.ResponseWriter).SetReadDeadline(time.Now().Add(wait))
}

// answer comes before the first byte of an answer: it has to be read at some rate, and what the
// client may still be sending is not waited for.
func (c *counted) answer() {
	rc := http.NewResponseController(c.ResponseWriter)
	size, _ := strconv.ParseInt(c.Header().Get("Content-Length"), 10, 64)
	rc.SetWriteDeadline(time.Now().Add(bodyStall + time.Duration(size/slowest)*time.Second))
	if c.body != nil && !c.body.ended {
		rc.SetReadDeadline(time.Now().Add(leftoverWait))
	}
}

func (c *counted) WriteHeader(status int) {
	if c.status == 0 {
		c.status = status
		c.answer()
	}
	c.ResponseWriter.WriteHeader(status)
}

func (c *counted) Write(p []byte) (int, error) {
	if c.status == 0 {
		c.status = http.StatusOK
		c.answer()
	}
	n, err := c.ResponseWriter.Write(p)
	c.n += int64(n)
	return n, err
}

func (c *counted) ReadFrom(r io.Reader) (int64, error) {
	if c.status == 0 {
		c.status = http.StatusOK
		c.answer()
	}
	n, err := io.Copy(c.ResponseWriter, r)
	c.n += n
	return n, err
}
