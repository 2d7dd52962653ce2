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
	"sync"
	"time"

	"golang.org/x/net/netutil"
)

const (
	maxConns    = 4096
	maxHeaders  = 64 << 10
	headerTime  = 10 * time.Second
	idleTime    = 2 * time.Minute
	goodbyeTime = 10 * time.Second
)

// Serve answers on l until ctx ends, then lets running requests finish for a while.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    maxHeaders,
		ErrorLog:          log.New(io.Discard, "", 0), // strangers' broken handshakes
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(netutil.LimitListener(l, maxConns)) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve registry on %s: %w", l.Addr(), err)
	case <-ctx.Done():
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

// start wraps w to count and returns what writes the line.
func (l *accessLog) start(w *http.ResponseWriter, r *http.Request) func(user string) {
	if l.w == io.Discard {
		return func(string) {}
	}
	began := time.Now()
	c := &counted{ResponseWriter: *w}
	*w = c
	return func(user string) {
		fmt.Fprintf(l, "%s remote=%s user=%q method=%q path=%q status=%d bytes=%d seconds=%.4f agent=%q\n",
			began.UTC().Format(time.RFC3339Nano), r.RemoteAddr, user, r.Method, r.URL.EscapedPath(), max(c.status, 200), c.n,
			time.Since(began).Seconds(), r.UserAgent())
	}
}

// counted is a ResponseWriter that knows its status and length; sendfile still works.
type counted struct {
	http.ResponseWriter
	status int
	n      int64
}

func (c *counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (c *counted) WriteHeader(status int) {
	if c.status == 0 {
		c.status = status
	}
	c.ResponseWriter.WriteHeader(status)
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n += int64(n)
	return n, err
}

func (c *counted) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(c.ResponseWriter, r)
	c.n += n
	return n, err
}
