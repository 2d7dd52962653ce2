package api

// Streams of programs over a connection that was taken from HTTP.
//
//	raw           the bytes of a terminal
//	multiplexed   u8 stream (1 stdout, 2 stderr) | 3 zero bytes | u32 length, big endian | payload

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

const (
	typeRaw   = "application/vnd.docker.raw-stream"
	typeMulti = "application/vnd.docker.multiplexed-stream"
)

// streamType is the content type of a stream; before 1.42 all were called raw.
func streamType(tty bool, v version) string {
	if tty || v < 42 {
		return typeRaw
	}
	return typeMulti
}

// multiplexer writes frames of one stream; the mutex is shared with the other.
type multiplexer struct {
	w      io.Writer
	mu     *sync.Mutex
	stream byte
	after  func()
}

// multiplex returns the writers of both streams. after is called after each frame.
func multiplex(w io.Writer, after func()) (out, errs io.Writer) {
	mu := &sync.Mutex{}
	return &multiplexer{w, mu, 1, after}, &multiplexer{w, mu, 2, after}
}

func (m *multiplexer) Write(b []byte) (int, error) {
	frame := make([]byte, 8, 8+len(b))
	frame[0] = m.stream
	binary.BigEndian.PutUint32(frame[4:], uint32(len(b)))
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.w.Write(append(frame, b...)); err != nil {
		return 0, err
	}
	if m.after != nil {
		m.after()
	}
	return len(b), nil
}

// wire is a hijacked connection.
type wire struct {
	net.Conn
	in   *bufio.Reader
	head string
}

// accept tells the client that its stream is ready. What it does next, like starting the
// container, relies on that.
func (c *wire) accept() error {
	_, err := io.WriteString(c.Conn, c.head)
	return err
}

func (c *wire) Read(b []byte) (int, error) { return c.in.Read(b) }

// hijack takes the connection; accept says that it is a stream now: 101 when the client asked
// for an upgrade, else 200 as old clients expect.
func hijack(w *reply, r *request, contentType string) (*wire, error) {
	if r.ContentLength > 0 { // a body that says again what the query says is no input of the program
		if _, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxBody)); err != nil {
			return nil, err
		}
	}
	conn, buf, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, fmt.Errorf("take over the connection: %w", err)
	}
	w.begun = true
	_ = conn.SetDeadline(time.Time{})
	head := "HTTP/1.1 200 OK\r\nContent-Type: " + contentType + "\r\n"
	if up := r.Header.Get("Upgrade"); up != "" {
		head = "HTTP/1.1 101 UPGRADED\r\nContent-Type: " + contentType + "\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
	}
	head += "Api-Version: " + MaxVersion + "\r\nDocker-Experimental: false\r\nOstype: linux\r\nServer: " + w.Header().Get("Server") + "\r\n\r\n"
	return &wire{conn, buf.Reader, head}, nil
}

// watched is ctx that also ends when the client is gone for good. A client that only ended
// its own side (no more stdin) still wants the output.
func (c *wire) watched(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	sc, ok := c.Conn.(syscall.Conn)
	if !ok { // TLS: a write will tell
		return ctx, cancel
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return ctx, cancel
	}
	go func() {
		t := time.NewTicker(time.Second)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
			gone := false
			err := raw.Control(func(fd uintptr) {
				p := []unix.PollFd{{Fd: int32(fd)}}
				n, err := unix.Poll(p, 0)
				gone = err == nil && n > 0 && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
			})
			if gone || err != nil {
				cancel()
				return
			}
		}
	}()
	return ctx, cancel
}

// problem tells an error to a client whose stream has begun, as Docker does: on stderr.
func problem(w io.Writer, err error) {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || w == nil {
		return
	}
	fmt.Fprintf(w, "Error response from daemon: %v\r\n", err)
}

// detachKeys parses ctrl-p,ctrl-q or single characters; "" is the default.
func detachKeys(s string) ([]byte, error) {
	if s == "" {
		return []byte{'p' & 0x1f, 'q' & 0x1f}, nil
	}
	var keys []byte
	for word := range strings.SplitSeq(s, ",") {
		ctrl, isCtrl := strings.CutPrefix(word, "ctrl-")
		switch {
		case len(word) == 1:
			keys = append(keys, word[0])
		case isCtrl && len(ctrl) == 1 && (ctrl[0] >= 'a' && ctrl[0] <= 'z' || strings.Contains(`@[\]^_`, ctrl)):
			keys = append(keys, ctrl[0]&0x1f)
		default:
			return nil, fault.Invalidf("Invalid detach keys (%s) provided", s)
		}
	}
	return keys, nil
}
