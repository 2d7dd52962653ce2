package monitor

// monitor.sock: who may connect, and what is answered.

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	dcontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"golang.org/x/sys/unix"

	"keg/internal/container"
	"keg/internal/fault"
	"keg/internal/linux"
	"keg/internal/rootless"
	"keg/internal/sandbox/cgroup"
	"keg/internal/weakness"
)

// server answers on the container's socket.
type server struct {
	m  *monitor
	ln *net.UnixListener

	mu    sync.Mutex
	links map[*link]bool
	shut  bool
}

// listen makes the socket: a path socket, 0600 in a directory 0700, since an abstract one is
// reachable from containers in the host's network (CVE-2020-15257).
func (m *monitor) listen() (*server, error) {
	dir := m.roots.dir(m.id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	os.Remove(m.roots.socket(m.id)) // of a predecessor that died; the lock is ours
	d, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	// By way of the descriptor: a socket's path may have 107 bytes only.
	ln, err := listenAt(linux.FDPath(int(d.Fd())) + "/monitor.sock")
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", m.roots.socket(m.id), err)
	}
	mode := os.FileMode(0o600)
	if weakness.Of("RT18") {
		mode = 0o666
	}
	return &server{m: m, ln: ln, links: map[*link]bool{}}, os.Chmod(m.roots.socket(m.id), mode)
}

// listenAt is net.ListenUnix without its look at the system's longest queue, for which it reads 64 KB.
func listenAt(path string) (*net.UnixListener, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close() // the listener has a descriptor of its own
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, err
	}
	const queue = 128
	if err := unix.Listen(fd, queue); err != nil {
		return nil, err
	}
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	u, ok := ln.(*net.UnixListener)
	if !ok {
		ln.Close()
		return nil, errors.New("descriptor is not a unix socket")
	}
	return u, nil
}

func (s *server) serve() {
	for {
		c, err := s.ln.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors: what runs goes on
			continue
		}
		if !trusted(c) {
			c.Close()
			continue
		}
		l := newLink(c)
		if !s.add(l) {
			l.drop()
			continue
		}
		go func() {
			s.m.answer(l)
			l.finish()
			<-l.done
			s.forget(l)
			s.m.quiet.Reset(quietFor)
		}()
	}
}

func (s *server) add(l *link) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.shut {
		s.links[l] = true
	}
	return !s.shut
}

func (s *server) forget(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.links, l)
}

// close ends listening; linger waits until what was said has arrived.
func (s *server) close() {
	s.mu.Lock()
	s.shut = true
	s.mu.Unlock()
	s.ln.Close()
}

func (s *server) linger() {
	s.mu.Lock()
	var all []*link
	for l := range s.links {
		all = append(all, l)
	}
	s.mu.Unlock()
	for _, l := range all {
		l.finish()
		<-l.done
	}
}

// trusted: the peer is root or who runs this monitor.
func trusted(c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	ok := false
	raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		ok = err == nil && (cred.Uid == 0 || int(cred.Uid) == os.Geteuid())
	})
	return ok
}

// request reads the next request; other frames in between are late ones of a session that ended.
func (l *link) request() (*request, error) {
	for {
		kind, b, err := l.in.next()
		if err != nil {
			return nil, err
		}
		if kind != frameRequest {
			continue
		}
		q, err := decodeRequest(b)
		if err != nil {
			return nil, err
		}
		if q.Version != version && q.Version != version-1 {
			return nil, fault.Unsupportedf("protocol version %d is not spoken", q.Version)
		}
		return q, nil
	}
}

// answer serves one connection until it ends.
func (m *monitor) answer(l *link) {
	for {
		q, err := l.request()
		if err != nil {
			if fault.KindOf(err) != fault.Unknown {
				l.send(frameError, encodeError(err))
			}
			return
		}
		if !m.dispatch(l, q) {
			return
		}
	}
}

// dispatch performs one request and reports whether the connection goes on.
func (m *monitor) dispatch(l *link, q *request) bool {
	switch q.Op {
	case "attach":
		if q.Attach == nil {
			q.Attach = &attachment{}
		}
		return m.attach(l, q.Attach)
	case "exec":
		return m.exec(l, q)
	}
	// The answer is sent before the monitor ends.
	m.inFlight.Add(1)
	defer m.inFlight.Done()
	var err error
	var v any = struct{}{}
	switch q.Op {
	case "kill":
		err = m.kill(q.Signal)
	case "stop":
		err = m.halt(q.Signal, q.Timeout)
	case "renew":
		err = m.renew(q.Signal, q.Timeout)
	case "pause":
		err = m.pause(true)
	case "unpause":
		err = m.pause(false)
	case "resize":
		err = m.resize(q.ID, q.Rows, q.Cols)
	case "update":
		err = m.update()
	case "connect":
		v, err = m.connect(q.Endpoint)
	case "disconnect":
		err = m.disconnect(q.Endpoint)
	case "rename":
		err = m.renamed()
	case "info":
		v = m.info()
	default:
		err = fault.Unsupportedf("monitor does not know %q", q.Op)
	}
	if err != nil {
		l.send(frameError, encodeError(err))
	} else {
		l.sendJSON(frameReply, v)
	}
	return true
}

// current is the run under way.
func (m *monitor) current() (*run, dcontainer.ContainerState) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.run, m.st.Status
}

// startPatience is how long whoever saw the record waits for the rest of a start.
const startPatience = 5 * time.Second

func (m *monitor) running() (*run, error) {
	r, status := m.current()
	// The record says that a program runs a moment before all is in place here.
	for end := time.Now().Add(startPatience); r == nil && status == dcontainer.StateRunning && time.Now().Before(end); r, status = m.current() {
		time.Sleep(time.Millisecond)
	}
	if r == nil && status == dcontainer.StateRestarting {
		return nil, fault.Conflictf("Container %s is restarting, wait until the container is running", m.id)
	}
	if r == nil {
		return nil, fault.Conflictf("container %s is not running", m.id)
	}
	return r, nil
}

// attach joins a peer to the run; who asks for no stream waits for the exit.
func (m *monitor) attach(l *link, a *attachment) bool {
	r, err := m.running()
	if err != nil {
		l.send(frameError, encodeError(err))
		return true
	}
	l.send(frameReply, []byte("{}"))
	if !r.hub.join(l, *a) {
		<-r.done
		l.sendJSON(frameExit, r.exit)
		return false
	}
	m.session(l, r, a)
	return false
}

// converse is what a starter's connection does after the start.
func (m *monitor) converse(l *link, r *run, a *attachment) {
	if a == nil {
		m.answer(l)
	} else {
		m.session(l, r, a)
	}
	l.finish()
}

// session takes the frames of an attached peer until it leaves or the run has ended.
func (m *monitor) session(l *link, r *run, a *attachment) {
	once := m.rec.Config.StdinOnce
	for {
		kind, b, err := l.in.next()
		if err != nil || kind == frameDetach {
			r.hub.leave(l)
			if err != nil && a.Stdin && once && r.in != nil {
				r.in.end()
			}
			return
		}
		switch kind {
		case frameStdin:
			if a.Stdin && r.in != nil {
				err = r.in.put(b, l.taken)
			} else {
				l.taken(len(b))
			}
		case frameStdinEnd:
			if a.Stdin && once && r.in != nil {
				r.in.end()
			}
		case frameSize:
			if len(b) == 4 && r.console != nil {
				setSize(r.console, binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]))
			}
		case frameSignal:
			if len(b) == 4 {
				m.kill(int(binary.BigEndian.Uint32(b)))
			}
		}
		if err != nil {
			l.drop()
		}
	}
}

// taken tells the peer that n bytes of its input were consumed.
func (l *link) taken(n int) {
	l.send(frameTaken, binary.BigEndian.AppendUint32(nil, uint32(n)))
}

func setSize(tty *os.File, rows, cols uint16) error {
	raw, err := tty.SyscallConn()
	if err != nil {
		return err
	}
	var e error
	err = raw.Control(func(fd uintptr) {
		e = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
	return errors.Join(err, e)
}

func (m *monitor) resize(exec string, rows, cols uint16) error {
	r, err := m.running()
	if err != nil {
		return err
	}
	tty := r.console
	if exec != "" {
		m.mu.Lock()
		x := m.execs[exec]
		m.mu.Unlock()
		if x == nil {
			return fault.NotFoundf("No such exec instance: %s", exec)
		}
		tty = x.console
	}
	if tty == nil {
		return fault.Invalidf("cannot resize: there is no terminal")
	}
	return setSize(tty, rows, cols)
}

// kill sends a signal. One that is meant to end the container is a person's stop.
func (m *monitor) kill(sig int) error {
	if sig < 0 || sig > 64 {
		return fault.Invalidf("Invalid signal: %d", sig)
	}
	r, err := m.running()
	if err != nil {
		return err
	}
	deadly := sig == int(unix.SIGKILL) || sig == stopSignal(m.rec.Config)
	if deadly {
		m.markStopped()
	}
	r.awaitHandler(sig)
	if err := r.signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if deadly && sig == int(unix.SIGKILL) {
		m.thaw(r) // what is frozen cannot die on v1
	}
	m.event(events.ActionKill, map[string]string{"signal": strconv.Itoa(sig)})
	return nil
}

// markStopped: no restart after this exit; remembered for unless-stopped.
func (m *monitor) markStopped() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.stopped {
		m.stopped = true
		close(m.stop)
	}
}

// pause freezes or thaws the cgroup.
func (m *monitor) pause(on bool) error {
	r, err := m.running()
	if err != nil {
		return err
	}
	m.mu.Lock()
	status := m.st.Status
	m.mu.Unlock()
	switch {
	case on && status == dcontainer.StatePaused:
		return fault.Conflictf("Container %s is already paused", m.id)
	case !on && status != dcontainer.StatePaused:
		return fault.Conflictf("Container %s is not paused", m.id)
	case r.proc.Cgroup == nil:
		return fault.Unsupportedf("container %s has no cgroup that could be frozen%s", m.id, rootless.HowToLimits())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	act, change, next := events.ActionPause, (*cgroup.Group).Freeze, dcontainer.StatePaused
	if !on {
		act, change, next = events.ActionUnPause, (*cgroup.Group).Thaw, dcontainer.StateRunning
	}
	if err := change(r.proc.Cgroup, ctx); err != nil {
		return fmt.Errorf("cannot %s container %s: %w", act, m.id, err)
	}
	m.mu.Lock()
	if m.run == r {
		m.st.Status = next
		err = m.containers.PutState(m.id, &m.st, true)
	}
	m.mu.Unlock()
	m.event(act, nil)
	return err
}

// update takes over a changed record: limits now, restart policy at the next exit.
func (m *monitor) update() error {
	rec, err := m.containers.Get(m.id)
	if err != nil {
		return err
	}
	res, err := container.Resources(&rec.Host.Resources)
	if err != nil {
		return err
	}
	m.mu.Lock()
	r := m.run
	m.rec = rec
	m.mu.Unlock()
	if r == nil || r.proc.Cgroup == nil {
		return nil
	}
	warnings, err := r.proc.Cgroup.Set(res)
	for _, w := range warnings {
		complain(errors.New("warning: " + w))
	}
	return err
}

func (m *monitor) info() Info {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := Info{Monitor: os.Getpid(), Paused: m.st.Status == dcontainer.StatePaused}
	if m.run != nil {
		i.Pid = m.run.proc.Pid
	}
	for _, x := range m.execs {
		i.Execs = append(i.Execs, x.info())
	}
	return i
}

// volumeEvent tells of a volume that this container uses.
func (m *monitor) volumeEvent(a events.Action, name string, attrs map[string]string) {
	all := map[string]string{"driver": "local", "container": m.id}
	maps.Copy(all, attrs)
	if err := m.events.Append(events.Message{Type: events.VolumeEventType, Action: a, Actor: events.Actor{ID: name, Attributes: all}}); err != nil {
		complain(fmt.Errorf("write event %s of volume %s: %w", a, name, err))
	}
}

// event writes to the journal; nothing depends on it.
func (m *monitor) event(a events.Action, attrs map[string]string) {
	m.mu.Lock()
	rec := m.rec
	m.mu.Unlock()
	all := map[string]string{}
	for k, v := range rec.Config.Labels {
		all[k] = v
	}
	for k, v := range attrs {
		all[k] = v
	}
	all["image"], all["name"] = rec.Config.Image, rec.Name
	if err := m.events.Append(events.Message{Type: events.ContainerEventType, Action: a,
		Actor: events.Actor{ID: m.id, Attributes: all}}); err != nil {
		complain(fmt.Errorf("write event %s: %w", a, err))
	}
}
