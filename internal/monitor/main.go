package monitor

// The second door of the binary.

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"
	"unsafe"

	dcontainer "github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"

	"keg/internal/container"
	"keg/internal/event"
	"keg/internal/fault"
	"keg/internal/launch"
	"keg/internal/network"
	"keg/internal/rootless"
	"keg/internal/snapshot"
	"keg/internal/volume"
)

// starterSocket is the descriptor on which whoever started a monitor talks to it.
const starterSocket = 3

// Main is the second door of the binary: argv[0] is Argv0, args[0] "container" or "build".
// It returns the exit status of the monitor process.
func Main(args []string) int {
	unix.CloseOnExec(starterSocket)
	unix.Close(launch.RoomSlot)
	// Nothing is collected before the container runs: there is no garbage worth it.
	debug.SetGCPercent(-1)
	var err error
	switch {
	case len(args) == 4 && args[0] == "container":
		err = containerMain(Roots{args[1], args[2]}, args[3])
	case len(args) == 3 && args[0] == "build":
		err = buildMain(Roots{args[1], args[2]})
	default:
		err = fmt.Errorf("%s is started by keg, not by people", Argv0)
	}
	if err != nil {
		complain(err)
		return 1
	}
	return 0
}

// complain writes to the error file of the container (stderr).
func complain(err error) {
	fmt.Fprintf(os.Stderr, "%s %v\n", time.Now().Format(time.RFC3339), err)
}

// slim makes the process small once it only waits. Not at once: most containers that live shorter never need it.
//
// What a start allocated, less than a megabyte, is not collected: what a first collection needs for itself is more
// than it gives back. The next one comes when the heap has 4 MB.
//
// And again when it has waited for a while: a start that was late, an exec (6 MB) or a new thread touched pages which count
// whole for the only process that has them.
func (m *monitor) slim() {
	time.AfterFunc(time.Second, func() {
		debug.SetGCPercent(100)
		dropText()
		m.keepWords()
	})
	m.quiet = time.AfterFunc(quietFor, dropText)
}

// quietFor is how long nobody has asked anything when a monitor becomes small again.
const quietFor = 10 * time.Second

// dropText gives back the mapped pages of the binary that starting touched; the few that waiting
// needs come back by themselves. Only mappings that cannot be written and of which nothing was
// changed, as relocated data is: their contents are the file's.
func dropText() {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer f.Close()
	var lo, hi uintptr
	// Lines as bytes: what this allocates stays.
	for r := bufio.NewReaderSize(f, 1<<10); ; {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		if from, to, ok := mapping(line); ok {
			lo, hi = from, to
		} else if n, ok := bytes.CutPrefix(line, []byte("Anonymous:")); ok && hi > lo && string(bytes.TrimSpace(n)) == "0 kB" {
			unix.Syscall(unix.SYS_MADVISE, lo, hi-lo, unix.MADV_DONTNEED)
		}
	}
}

// mapping reads the first line of a mapping, "00400000-0052c000 r-xp 00000000 fe:00 12345 /usr/bin/keg"; the range is
// empty when the mapping can be written or has no file.
func mapping(line []byte) (lo, hi uintptr, ok bool) {
	span, rest, _ := bytes.Cut(line, []byte(" "))
	from, to, ok := bytes.Cut(span, []byte("-"))
	if !ok || len(rest) < 4 {
		return 0, 0, false
	}
	if rest[1] == 'w' || bytes.IndexByte(rest, '/') < 0 {
		return 0, 0, true
	}
	return hexadecimal(from), hexadecimal(to), true
}

func hexadecimal(b []byte) (n uintptr) {
	for _, c := range b {
		d := uintptr(c - '0')
		if c >= 'a' {
			d = uintptr(c-'a') + 10
		}
		n = n<<4 | d
	}
	return n
}

// keepWords turns the error file, until now only in memory, into one in the container's
// directory, so that what a monitor says at its end is found there.
func (m *monitor) keepWords() {
	f, err := os.OpenFile(filepath.Join(m.containers.Dir(m.id), "monitor.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return // removed meanwhile
	}
	defer f.Close()
	if b, err := os.ReadFile("/proc/self/fd/2"); err == nil && len(b) > 0 {
		f.Write(b)
	}
	unix.Dup3(int(f.Fd()), 2, 0)
}

// monitor owns one container while it runs and between restarts.
type monitor struct {
	quiet      *time.Timer // set when it runs; reset by who was answered
	roots      Roots
	id         string
	containers *container.Store
	networks   *network.Store
	volumes    *volume.Store
	events     *event.Journal
	snapshots  *snapshot.Store
	lock       *os.File

	mu       sync.Mutex // of all below
	rec      *container.Record
	st       container.State
	run      *run // nil while nothing runs
	execs    map[string]*execution
	stopped  bool          // by a person: no restart
	stop     chan struct{} // closed with stopped
	reviving bool          // a person restarts it: the end of this run is not the end
	over     chan struct{} // closed when the monitor has recorded the last exit
	inFlight sync.WaitGroup
}

// idLength of a container's id.
const idLength = 64

func containerMain(r Roots, place string) error {
	rootless.Hold(r.Run)
	c, err := fileConn(starterSocket)
	if err != nil {
		return err
	}
	starter := newLink(c)
	starter.patience = patienceForeground
	id, attach, err := startRequest(starter)
	if err != nil {
		if errors.Is(err, io.EOF) {
			return nil // the starter had no use for us
		}
		return err
	}
	rename(place, id)
	m := &monitor{roots: r, id: id, containers: container.Open(r.Root), networks: network.Open(r.Root, r.Run),
		volumes: volume.Open(r.Root), events: event.Open(r.Root), execs: map[string]*execution{},
		stop: make(chan struct{}), over: make(chan struct{})}
	if err := m.own(); err != nil {
		return m.refuse(starter, err)
	}
	err = m.live(starter, attach)
	m.lock.Close()
	// The last one out takes bridge and rules down. The lock is given up first: this lingers.
	err = errors.Join(err, m.networks.Settle(context.Background()))
	farewell()
	return err
}

// startRequest reads what the starter asks for.
func startRequest(l *link) (id string, a *attachment, err error) {
	q, err := l.request()
	if err != nil {
		return "", nil, err
	}
	if q.Op != "start" || len(q.ID) != idLength {
		return "", nil, fmt.Errorf("first request is %q for %q, not start for an id", q.Op, q.ID)
	}
	return q.ID, q.Attach, nil
}

// rename puts the id where ps shows it: over the placeholder among the arguments, whose memory
// is the process's own.
func rename(place, id string) {
	if len(place) == len(id) {
		copy(unsafe.Slice(unsafe.StringData(place), len(place)), id)
	}
}

// refuse tells the starter why nothing was started. That is no fault of the monitor.
func (m *monitor) refuse(l *link, err error) error {
	l.send(frameError, encodeError(err))
	l.finish()
	<-l.done
	return nil
}

// own takes the lock, waiting for a predecessor that is just leaving, and cleans up
// after one that died.
func (m *monitor) own() error {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		l, err := m.containers.Lock(m.id)
		if err != nil {
			return err
		}
		if m.lock = l; l != nil {
			break
		}
		st, err := m.containers.State(m.id)
		if err != nil {
			return err
		}
		if st.Status != dcontainer.StateExited || time.Now().After(end) {
			return fault.Errorf(fault.NotModified, "container %s is already running", m.id)
		}
	}
	rec, err := m.containers.Get(m.id)
	if err != nil {
		return err
	}
	st, err := m.containers.State(m.id)
	if err != nil {
		return err
	}
	if unclean(m.roots, m.id, st) {
		if err := sweepRemains(context.Background(), m.roots, m.id); err != nil {
			return fmt.Errorf("clean up after the last run: %w", err)
		}
	}
	m.rec = rec
	m.st = container.State{ExitCode: st.ExitCode}
	m.snapshots, err = snapshot.Open(m.roots.Root)
	return err
}

// live runs the container until it is not to be started again.
func (m *monitor) live(starter *link, attach *attachment) error {
	srv, err := m.listen()
	if err != nil {
		return m.refuse(starter, err)
	}
	defer func() {
		srv.close()
		os.RemoveAll(m.roots.dir(m.id))
		m.lock.Close() // the container is others' now; what is left is talk
		m.inFlight.Wait()
		starter.finish()
		srv.linger()
		<-starter.done
	}()
	r, err := m.start(starter, attach)
	if err != nil {
		m.failed(err)
		return m.refuse(starter, err)
	}
	m.slim()
	go srv.serve()
	policy := backoff{}
	for {
		again := m.finish(r, &policy)
		if !again {
			return m.leave(r)
		}
		m.release(r)
		if r = m.restart(&policy); r == nil {
			return m.leave(nil)
		}
	}
}

// restart waits and starts again until that works or somebody stops it; nil when it is over.
func (m *monitor) restart(p *backoff) *run {
	for {
		select {
		case <-m.stop:
			m.settle(func(st *container.State) { st.Status = dcontainer.StateExited })
			return nil
		case <-time.After(p.delay):
		}
		r, err := m.start(nil, nil)
		if err == nil {
			return r
		}
		code := 127
		var x interface{ ExitCode() int }
		if errors.As(err, &x) {
			code = x.ExitCode()
		}
		m.settle(func(st *container.State) { st.Error, st.ExitCode, st.Finished = err.Error(), code, time.Now() })
		if !m.goesOn(code, 0, p) {
			m.settle(func(st *container.State) { st.Status = dcontainer.StateExited })
			return nil
		}
	}
}

// settle changes the state and writes it, for good.
func (m *monitor) settle(change func(*container.State)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(&m.st)
	if err := m.containers.PutState(m.id, &m.st, m.rec.Host.AutoRemove); err != nil {
		complain(fmt.Errorf("write state: %w", err))
	}
}
