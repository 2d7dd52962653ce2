package api

// Attach over a WebSocket, for programs in browsers' languages.

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"

	"golang.org/x/net/websocket"

	"keg/internal/fault"
	"keg/internal/monitor"
)

// late is a connection that is there a little later than what writes to it.
type late struct {
	there chan struct{} // closed once conn is set
	conn  *websocket.Conn
}

func (l *late) Write(b []byte) (int, error) { <-l.there; return l.conn.Write(b) }
func (l *late) Read(b []byte) (int, error)  { <-l.there; return l.conn.Read(b) }

func (s *Server) attachWebSocket(w *reply, r *request) error {
	c, keys, err := s.attachable(r)
	if err != nil {
		return err
	}
	if r.Header.Get("Sec-WebSocket-Key") == "" {
		return fault.Invalidf("attach/ws is for WebSockets: the request asks for none")
	}
	has := func(key string) bool { return r.version < 42 || r.flag(key) }
	l := &late{there: make(chan struct{})}
	var stdio monitor.Stdio
	if has("stdin") && c.Config.OpenStdin {
		stdio.In = l
	}
	if has("stdout") {
		stdio.Out = l
	}
	if has("stderr") && !c.Config.Tty {
		stdio.Err = l
	}
	if c.Config.Tty {
		stdio.DetachKeys = keys
		if stdio.Out == nil && has("stderr") {
			stdio.Out = l
		}
	}
	var v *vigil
	defer func() {
		if v != nil {
			s.vigils.leave(c.ID, v)
		}
	}()
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	defer cancel()
	w.begun = true
	websocket.Server{
		// Before the client hears from us: it starts the container then.
		Handshake: func(*websocket.Config, *http.Request) error {
			if r.flag("stream") && !c.State.Running {
				v = s.vigils.join(c.ID, &stdio)
			}
			return nil
		},
		Handler: func(conn *websocket.Conn) {
			if r.version >= 28 {
				conn.PayloadType = websocket.BinaryFrame
			}
			l.conn = conn
			close(l.there)
			if stdio.In == nil { // so that we hear when the client goes
				go func() { _, _ = io.Copy(io.Discard, conn); cancel() }()
			}
			s.serveAttach(ctx, r, c, stdio, v)
		},
	}.ServeHTTP(hijacker{w}, r.Request)
	return nil
}

// hijacker is a reply as the WebSocket library wants one.
type hijacker struct{ *reply }

func (h hijacker) Hijack() (c net.Conn, b *bufio.ReadWriter, err error) {
	c, b, err = http.NewResponseController(h.reply.ResponseWriter).Hijack()
	if err != nil {
		err = fmt.Errorf("take over the connection: %w", err)
	}
	return c, b, err
}
