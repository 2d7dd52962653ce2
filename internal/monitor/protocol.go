package monitor

// The protocol between a front end and a monitor, over monitor.sock or a socketpair.
//
//	frame:  type u8 | length u32, big endian | payload
//
//	front end                               monitor
//	                            <--- hello  version u16
//	request  JSON                --->
//	                            <--- reply  JSON     done, or: it runs
//	                            <--- error  JSON     {Kind, Code, Message}
//
//	start, attach, exec and run go on after the reply:
//
//	stdin    bytes               --->
//	                            <--- taken  u32      so many bytes of stdin were consumed
//	stdinEnd                     --->
//	size     rows u16, cols u16  --->
//	signal   u32                 --->
//	                            <--- stdout, stderr  bytes
//	detach                       --->                the front end leaves, the process stays
//	                            <--- exit   JSON     {Code, OOM}, the last frame
//
// At most window bytes of stdin are under way, so that a program which does not read its input
// cannot keep a signal from being delivered. Versions N and N-1 are spoken.

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"keg/internal/fault"
	"keg/internal/network"
	"keg/internal/sandbox"
)

const version = 1

// Types of frames.
const (
	frameHello    = 'H'
	frameRequest  = 'R'
	frameReply    = 'O'
	frameError    = 'E'
	frameStdin    = 'i'
	frameTaken    = 'a'
	frameStdinEnd = 'e'
	frameSize     = 'w'
	frameSignal   = 's'
	frameStdout   = 'o'
	frameStderr   = 'r'
	frameDetach   = 'd'
	frameExit     = 'X'
)

const (
	maxFrame = 1 << 20
	window   = 256 << 10 // of stdin
	chunk    = 32 << 10  // of stdin and output
)

// request is what a front end asks for.
type request struct {
	Version    int
	Op         string
	Attach     *attachment  `json:",omitempty"` // start, attach
	Exec       *ExecRequest `json:"-"`
	Step       *Step        `json:"-"`
	ID         string       `json:",omitempty"` // of an exec
	Signal     int          `json:",omitempty"`
	Timeout    int          `json:",omitempty"`
	Rows, Cols uint16       `json:",omitempty"`

	Endpoint *network.Endpoint `json:"-"` // connect; of disconnect only the network
}

// wire is a request under way. Its large parts are JSON of their own, so that encoding/json learns the types only of
// those that are there, not all of them at every start.
type wire struct {
	request
	Exec     json.RawMessage `json:",omitempty"`
	Step     json.RawMessage `json:",omitempty"`
	Endpoint json.RawMessage `json:",omitempty"`
}

func (q *request) encode() ([]byte, error) {
	w := wire{request: *q}
	err := errors.Join(encodePart(&w.Exec, q.Exec), encodePart(&w.Step, q.Step), encodePart(&w.Endpoint, q.Endpoint))
	if err != nil {
		return nil, err
	}
	return json.Marshal(w)
}

func encodePart[T any](to *json.RawMessage, v *T) (err error) {
	if v != nil {
		*to, err = json.Marshal(v)
	}
	return err
}

func decodeRequest(b []byte) (*request, error) {
	var w wire
	if err := json.Unmarshal(b, &w); err != nil {
		return nil, err
	}
	q := &w.request
	return q, errors.Join(decodePart(w.Exec, &q.Exec), decodePart(w.Step, &q.Step), decodePart(w.Endpoint, &q.Endpoint))
}

func decodePart[T any](b json.RawMessage, to **T) error {
	if len(b) == 0 {
		return nil
	}
	return json.Unmarshal(b, to)
}

// attachment tells which streams a front end wants.
type attachment struct {
	Stdin, Stdout, Stderr bool
	Rows, Cols            uint16
}

// problem is an error on the wire.
type problem struct {
	Kind    fault.Kind
	Code    int // 126, 127 of a program that cannot be executed; else 0
	Message string
}

func encodeError(err error) []byte {
	p := problem{Kind: fault.KindOf(err), Message: err.Error()}
	var x *sandbox.ExecError
	if errors.As(err, &x) {
		p.Code = x.Code
	}
	b, _ := json.Marshal(p)
	return b
}

func decodeError(b []byte) error {
	var p problem
	if err := json.Unmarshal(b, &p); err != nil {
		return fmt.Errorf("monitor sent a broken error: %w", err)
	}
	err := errors.New(p.Message)
	switch {
	case p.Code != 0:
		return coded{&sandbox.ExecError{Code: p.Code, Err: err}}
	case p.Kind != fault.Unknown:
		return fault.As(p.Kind, err)
	}
	return err
}

// appendFrame appends one frame.
func appendFrame(dst []byte, kind byte, payload []byte) []byte {
	dst = append(dst, kind)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(payload)))
	return append(dst, payload...)
}

// frames reads frames; the payload is valid until the next read.
type frames struct {
	r   io.Reader
	buf []byte
	lo  int // unread bytes are buf[lo:hi]
	hi  int
}

func newFrames(r io.Reader) *frames { return &frames{r: r, buf: make([]byte, 4<<10)} }

func (f *frames) next() (kind byte, payload []byte, err error) {
	if err := f.need(5); err != nil {
		return 0, nil, err
	}
	kind = f.buf[f.lo]
	n := int(binary.BigEndian.Uint32(f.buf[f.lo+1:]))
	if n > maxFrame {
		return 0, nil, fmt.Errorf("frame %q of %d bytes is too large", kind, n)
	}
	f.lo += 5
	if err := f.need(n); err != nil {
		return 0, nil, unexpected(err)
	}
	payload = f.buf[f.lo : f.lo+n : f.lo+n]
	f.lo += n
	return kind, payload, nil
}

// need makes n bytes available from f.lo on.
func (f *frames) need(n int) error {
	if f.hi-f.lo >= n {
		return nil
	}
	if f.lo > 0 {
		f.hi = copy(f.buf, f.buf[f.lo:f.hi])
		f.lo = 0
	}
	if n > len(f.buf) {
		f.buf = append(f.buf, make([]byte, max(n, 64<<10)-len(f.buf))...)
	}
	for f.hi < n {
		k, err := f.r.Read(f.buf[f.hi:])
		f.hi += k
		if f.hi >= n {
			return nil
		}
		if err != nil {
			if f.hi > 0 {
				return unexpected(err)
			}
			return err
		}
	}
	return nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// A link is the monitor's end of a connection: what is sent is queued, and one goroutine
// writes the queue. A peer that takes nothing for its patience is dropped.
type link struct {
	c        net.Conn
	in       *frames
	patience time.Duration

	mu    sync.Mutex
	out   []byte
	ended bool          // nothing is sent after this
	gone  bool          // the peer is
	wake  chan struct{} // there is something to write
	space chan struct{} // something was written
	done  chan struct{} // the writer has ended
}

// How long a peer may take nothing before it is dropped. Whoever started the container in the
// foreground may hold it up for long (a pager does); others may not.
const (
	patienceForeground = 10 * time.Minute
	patienceOther      = 30 * time.Second
	queueLimit         = 256 << 10
)

func newLink(c net.Conn) *link {
	l := &link{c: c, in: newFrames(c), patience: patienceOther,
		wake: make(chan struct{}, 1), space: make(chan struct{}, 1), done: make(chan struct{})}
	go l.write()
	l.send(frameHello, binary.BigEndian.AppendUint16(nil, version))
	return l
}

// send queues a frame whatever the length of the queue.
func (l *link) send(kind byte, payload []byte) {
	l.mu.Lock()
	if !l.ended && !l.gone {
		l.out = appendFrame(l.out, kind, payload)
	}
	l.mu.Unlock()
	poke(l.wake)
}

func (l *link) sendJSON(kind byte, v any) {
	b, _ := json.Marshal(v)
	l.send(kind, b)
}

// deliver is send for output: it waits while the queue is long, but not for ever and not
// once hurry is closed.
func (l *link) deliver(kind byte, b []byte, hurry <-chan struct{}) {
	l.send(kind, b)
	if l.queued() < queueLimit {
		return
	}
	t := time.NewTimer(l.patience)
	defer t.Stop()
	for l.queued() >= queueLimit {
		select {
		case <-l.space:
			t.Reset(l.patience)
		case <-hurry:
			return
		case <-t.C:
			l.drop()
			return
		}
	}
}

func (l *link) queued() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.out)
}

// finish lets the queue drain and then closes the connection.
func (l *link) finish() {
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	poke(l.wake)
}

// drop closes the connection at once.
func (l *link) drop() {
	l.mu.Lock()
	l.gone, l.out = true, nil
	l.mu.Unlock()
	l.c.Close()
	poke(l.wake)
	poke(l.space)
}

func (l *link) write() {
	defer close(l.done)
	var spare []byte
	for {
		l.mu.Lock()
		b, ended, gone := l.out, l.ended, l.gone
		if len(b) > 0 {
			l.out, spare = spare, nil // one is filled while the other is written
		}
		l.mu.Unlock()
		if gone || len(b) == 0 && ended {
			l.c.Close()
			return
		}
		if len(b) == 0 {
			<-l.wake
			continue
		}
		for rest := b; len(rest) > 0; {
			// Progress counts, not the whole.
			l.c.SetWriteDeadline(time.Now().Add(l.patience))
			n, err := l.c.Write(rest[:min(len(rest), chunk)])
			if err != nil {
				l.drop()
				break
			}
			rest = rest[n:]
			poke(l.space)
		}
		if spare = b[:0]; cap(spare) > 64<<10 {
			spare = nil
		}
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// fileConn makes a connection of an inherited or created socket.
func fileConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("descriptor is not a unix socket")
	}
	return u, nil
}
