package monitor

// The front end's side of the protocol.

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
)

// Conn is a connection to a monitor, over its socket or a socketpair. One request is under way
// at a time.
type Conn struct {
	c  net.Conn
	in *frames
	mu sync.Mutex // of writing
	id string

	session *session // of Spawn's attachment or StartExec
}

// errGone: the monitor ended without a word.
var errGone = errors.New("monitor ended unexpectedly")

// Dial connects to the monitor of a running container; fault.Conflict ("container x is not running").
func Dial(ctx context.Context, r Roots, id string) (*Conn, error) {
	c, err := dialSocket(ctx, r.socket(id))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, fault.Conflictf("container %s is not running", id)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to the monitor of container %s: %w", id, err)
	}
	k := newConn(c, id)
	if err := k.hello(ctx); err != nil {
		c.Close()
		if errors.Is(err, errGone) { // it was just leaving
			err = fault.Conflictf("container %s is not running", id)
		}
		return nil, err
	}
	return k, nil
}

// dialSocket connects by way of the directory, since a socket's path may have 107 bytes only.
func dialSocket(ctx context.Context, path string) (net.Conn, error) {
	dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var d net.Dialer
	return d.DialContext(ctx, "unix", linux.FDPath(int(dir.Fd()))+"/"+filepath.Base(path))
}

func newConn(c net.Conn, id string) *Conn { return &Conn{c: c, in: newFrames(c), id: id} }

// hello checks the version that the monitor speaks.
func (c *Conn) hello(ctx context.Context) error {
	defer c.until(ctx)()
	kind, b, err := c.in.next()
	if err != nil {
		return c.lost(ctx, err)
	}
	if kind != frameHello || len(b) < 2 {
		return errors.New("monitor does not say hello")
	}
	if v := int(binary.BigEndian.Uint16(b)); v != version && v != version-1 {
		c.c.Close()
		return fault.Unsupportedf("the monitor of container %s speaks version %d of the protocol, this keg %d; stop and start the container with the keg that fits", c.id, v, version)
	}
	return nil
}

// until makes ctx's end end blocked reads and writes.
func (c *Conn) until(ctx context.Context) func() bool {
	return context.AfterFunc(ctx, func() { c.c.SetDeadline(time.Unix(1, 0)) })
}

func (c *Conn) lost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errGone
	}
	return err
}

func (c *Conn) send(kind byte, payload []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.c.Write(appendFrame(make([]byte, 0, 5+len(payload)), kind, payload))
	return err
}

func (c *Conn) request(r request) error {
	r.Version = version
	b, err := r.encode()
	if err != nil {
		return err
	}
	return c.send(frameRequest, b)
}

// reply waits for the answer to a request.
func (c *Conn) reply(ctx context.Context, v any) error {
	defer c.until(ctx)()
	for {
		kind, b, err := c.in.next()
		if err != nil {
			return c.lost(ctx, err)
		}
		switch kind {
		case frameHello:
		case frameReply:
			if v == nil {
				return nil
			}
			return json.Unmarshal(b, v)
		case frameError:
			return decodeError(b)
		default:
			return fmt.Errorf("monitor sent frame %q where an answer belongs", kind)
		}
	}
}

func (c *Conn) call(ctx context.Context, r request, v any) error {
	if err := c.request(r); err != nil {
		return c.lost(ctx, err)
	}
	return c.reply(ctx, v)
}

// Close ends the connection, not the container.
func (c *Conn) Close() error { return c.c.Close() }

// Kill sends a signal to the container's init.
func (c *Conn) Kill(ctx context.Context, sig int) error {
	return c.call(ctx, request{Op: "kill", Signal: sig}, nil)
}

// Stop sends the stop signal (0: the container's own), waits, kills, and returns when the exit is
// recorded. timeout < 0 waits for ever. It marks the stop as a person's.
func (c *Conn) Stop(ctx context.Context, sig, timeout int) error {
	return c.call(ctx, request{Op: "stop", Signal: sig, Timeout: timeout}, nil)
}

// Renew is Stop and a start by the same monitor, for a container that goes when it has stopped.
func (c *Conn) Renew(ctx context.Context, sig, timeout int) error {
	return c.call(ctx, request{Op: "renew", Signal: sig, Timeout: timeout}, nil)
}

// Pause and Unpause freeze and thaw the cgroup.
func (c *Conn) Pause(ctx context.Context) error   { return c.call(ctx, request{Op: "pause"}, nil) }
func (c *Conn) Unpause(ctx context.Context) error { return c.call(ctx, request{Op: "unpause"}, nil) }

// Update makes the monitor read the record again and apply limits and restart policy.
func (c *Conn) Update(ctx context.Context) error { return c.call(ctx, request{Op: "update"}, nil) }

// Resize sets the size of the container's terminal.
func (c *Conn) Resize(ctx context.Context, rows, cols uint16) error {
	return c.call(ctx, request{Op: "resize", Rows: rows, Cols: cols}, nil)
}

// ResizeExec sets the size of the terminal of a process started by Exec.
func (c *Conn) ResizeExec(ctx context.Context, id string, rows, cols uint16) error {
	return c.call(ctx, request{Op: "resize", ID: id, Rows: rows, Cols: cols}, nil)
}

// Info tells what only the monitor knows.
func (c *Conn) Info(ctx context.Context) (Info, error) {
	var i Info
	err := c.call(ctx, request{Op: "info"}, &i)
	return i, err
}

// Attach copies stdio both ways until the process exits or the user detaches. On a connection that
// Spawn attached it waits for that attachment.
func (c *Conn) Attach(ctx context.Context, s Stdio) (Exit, error) {
	if c.session != nil {
		return c.session.wait(ctx)
	}
	a := wants(s)
	if err := c.call(ctx, request{Op: "attach", Attach: &a}, nil); err != nil {
		return Exit{}, err
	}
	return c.begin(s).wait(ctx)
}

// Wait waits for the exit of the container's process as Spawn's attach does.
func (c *Conn) Wait(ctx context.Context) (Exit, error) { return c.Attach(ctx, Stdio{}) }

// Exec runs a process in the container; with Detach it returns once it was started.
func (c *Conn) Exec(ctx context.Context, r ExecRequest, s Stdio) (Exit, error) {
	if err := c.StartExec(ctx, r, s); err != nil || r.Detach {
		return Exit{}, err
	}
	return c.session.wait(ctx)
}

// StartExec is Exec up to the moment when the program runs; Wait then waits for its end.
func (c *Conn) StartExec(ctx context.Context, r ExecRequest, s Stdio) error {
	a := wants(s)
	a.Rows, a.Cols = r.Rows, r.Cols
	r.Stdin = r.Stdin && s.In != nil
	if err := c.call(ctx, request{Op: "exec", Exec: &r, Attach: &a}, nil); err != nil {
		return err
	}
	if !r.Detach {
		c.session = c.begin(s)
	}
	return nil
}

func wants(s Stdio) attachment {
	return attachment{Stdin: s.In != nil, Stdout: s.Out != nil, Stderr: s.Err != nil}
}

// A session is an attachment under way: three goroutines, for input, sizes and signals, output. The one
// that reads Stdio.In ends with the next byte or the end of In; all others with the session.
type session struct {
	c      *Conn
	s      Stdio
	over   chan struct{}
	exit   Exit
	err    error
	free   atomic.Int64  // of the window for stdin
	more   chan struct{} // free has grown
	detach chan struct{}
	left   atomic.Bool
}

func (c *Conn) begin(s Stdio) *session {
	n := &session{c: c, s: s, over: make(chan struct{}), more: make(chan struct{}, 1), detach: make(chan struct{})}
	n.free.Store(window)
	select { // a size that is known comes before what is typed
	case size, ok := <-s.Resize:
		if ok {
			n.resize(size)
		}
	default:
	}
	if s.In != nil {
		go n.stdin()
	}
	if s.Resize != nil || s.Signals != nil {
		go n.control()
	}
	go n.output()
	return n
}

func (n *session) wait(ctx context.Context) (Exit, error) {
	select {
	case <-n.over:
		if n.err != nil && n.left.Load() {
			return Exit{Detached: true}, nil
		}
		return n.exit, n.err
	case <-n.detach:
		return Exit{Detached: true}, nil
	case <-ctx.Done():
		n.c.c.Close()
		return Exit{}, context.Cause(ctx)
	}
}

func (n *session) output() {
	defer close(n.over)
	for {
		kind, b, err := n.c.in.next()
		if err != nil {
			n.err = n.c.lost(context.Background(), err)
			return
		}
		switch kind {
		case frameStdout:
			err = writeTo(n.s.Out, b)
		case frameStderr:
			err = writeTo(n.s.Err, b)
		case frameTaken:
			if len(b) == 4 {
				n.free.Add(int64(binary.BigEndian.Uint32(b)))
				poke(n.more)
			}
		case frameError:
			n.err = decodeError(b)
			return
		case frameExit:
			n.err = json.Unmarshal(b, &n.exit)
			return
		}
		if err != nil {
			n.err = err
			return
		}
	}
}

func writeTo(w io.Writer, b []byte) error {
	if w == nil {
		return nil
	}
	_, err := w.Write(b)
	return err
}

// stdin sends what comes from In, never more than the window ahead of the program.
func (n *session) stdin() {
	keys := detachKeys{seq: n.s.DetachKeys}
	if n.s.Stay {
		keys.seq = nil
	} else if len(keys.seq) == 0 && n.s.Resize != nil {
		keys.seq = []byte{'p' & 0x1f, 'q' & 0x1f}
	}
	buf := make([]byte, chunk)
	for {
		k, err := n.s.In.Read(buf)
		out, left := keys.feed(buf[:k])
		for n.free.Load() < int64(len(out)) {
			select {
			case <-n.more:
			case <-n.over:
				return
			}
		}
		n.free.Add(-int64(len(out)))
		if len(out) > 0 && n.c.send(frameStdin, out) != nil {
			return
		}
		if left {
			n.left.Store(true) // the monitor's hanging up is the answer
			n.c.send(frameDetach, nil)
			close(n.detach)
			return
		}
		if err != nil {
			n.c.send(frameStdinEnd, nil)
			return
		}
	}
}

func (n *session) control() {
	for {
		select {
		case s, ok := <-n.s.Resize:
			if !ok {
				n.s.Resize = nil
				continue
			}
			n.resize(s)
		case sig, ok := <-n.s.Signals:
			if !ok {
				n.s.Signals = nil
				continue
			}
			n.c.send(frameSignal, binary.BigEndian.AppendUint32(nil, uint32(sig)))
		case <-n.over:
			return
		case <-n.detach:
			return
		}
	}
}

func (n *session) resize(size [2]uint16) {
	n.c.send(frameSize, binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, size[0]), size[1]))
}

// detachKeys finds the sequence in what is typed. A beginning that turns out to be no
// sequence is passed on.
type detachKeys struct {
	seq []byte
	pos int
}

func (d *detachKeys) feed(b []byte) (out []byte, detached bool) {
	if len(d.seq) == 0 {
		return b, false
	}
	if d.pos == 0 && bytes.IndexByte(b, d.seq[0]) < 0 {
		return b, false
	}
	for _, c := range b {
		if c != d.seq[d.pos] && d.pos > 0 {
			out = append(out, d.seq[:d.pos]...)
			d.pos = 0
		}
		if c != d.seq[d.pos] {
			out = append(out, c)
			continue
		}
		if d.pos++; d.pos == len(d.seq) {
			return out, true
		}
	}
	return out, false
}

// Root opens the root directory of the container's program, with all that is mounted
// below it, as the program sees it. Reach files through linux.OpenInRoot only: links in
// there are the container's.
func (c *Conn) Root(ctx context.Context) (*os.File, error) {
	before, err := c.Info(ctx)
	if err != nil {
		return nil, err
	}
	if before.Pid == 0 {
		return nil, fault.Conflictf("container %s is not running", c.id)
	}
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", before.Pid), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("open the root of container %s: %w", c.id, err)
	}
	// Only the monitor reaps its child: when it still has it, the number meant it.
	after, err := c.Info(ctx)
	if err != nil || after.Pid != before.Pid {
		f.Close()
		return nil, errors.Join(err, fault.Conflictf("container %s is not running", c.id))
	}
	return f, nil
}
