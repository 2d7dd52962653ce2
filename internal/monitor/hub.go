package monitor

// Where the bytes of a container go: its log first, then whoever is attached.

import (
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"keg/internal/container"
)

// A hub spreads the output of one run and gathers its input.
type hub struct {
	mu      sync.Mutex
	log     *container.LogWriter
	peers   map[*link]attachment
	over    bool          // the process has ended: its last output is queued without waiting
	hurry   chan struct{} // closed with over
	logFail func(error)
}

func newHub(log *container.LogWriter) *hub {
	return &hub{log: log, peers: map[*link]attachment{}, hurry: make(chan struct{})}
}

// join adds a peer, which gets what is printed from now on; false when it is all over.
func (h *hub) join(l *link, a attachment) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.peers == nil {
		return false
	}
	h.peers[l] = a
	return true
}

func (h *hub) leave(l *link) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.peers, l)
}

// put writes bytes of a stream to the log and to the peers that want it.
func (h *hub) put(stream int, b []byte) {
	h.mu.Lock()
	if err := h.log.Append(stream, time.Now(), b); err != nil && h.logFail != nil {
		h.logFail(err)
	}
	var to []*link
	for l, a := range h.peers {
		if stream == container.Stdout && a.Stdout || stream == container.Stderr && a.Stderr {
			to = append(to, l)
		}
	}
	h.mu.Unlock()
	kind := byte(frameStdout)
	if stream == container.Stderr {
		kind = frameStderr
	}
	for _, l := range to {
		l.deliver(kind, b, h.hurry)
	}
}

// rush ends the waiting for slow peers: the process is gone, its exit must be recorded.
func (h *hub) rush() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.over {
		h.over = true
		close(h.hurry)
	}
}

// end takes all peers out, after the last output was put.
func (h *hub) end() (peers []*link) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for l := range h.peers {
		peers = append(peers, l)
	}
	h.peers = nil
	return peers
}

// pump copies a stream until it ends.
func (h *hub) pump(f *os.File, stream int) {
	defer f.Close()
	drain(f, func(b []byte) { h.put(stream, b) })
}

// drain reads f until its end, EIO being the end of a terminal, or its deadline.
func drain(f *os.File, put func([]byte)) {
	// Small at first: most containers print little, and a monitor should be small.
	buf := make([]byte, 4<<10)
	for {
		n, err := f.Read(buf)
		if n > 0 {
			put(buf[:n])
		}
		if err != nil {
			return
		}
		if n == len(buf) && n < chunk {
			buf = make([]byte, chunk)
		}
	}
}

// outPipe returns a pipe whose read end is ours and does not block, whose write end is
// an ordinary blocking one for a program.
func outPipe() (r, w *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	unix.SetNonblock(p[0], true)
	return os.NewFile(uintptr(p[0]), "pipe"), os.NewFile(uintptr(p[1]), "pipe"), nil
}

// inPipe is outPipe for a program's input.
func inPipe() (r, w *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	unix.SetNonblock(p[1], true)
	return os.NewFile(uintptr(p[0]), "pipe"), os.NewFile(uintptr(p[1]), "pipe"), nil
}

// pollable returns f as a file that the runtime polls, so that reading it costs no thread.
func pollable(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	f.Close()
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "terminal"), nil
}

// A sink is a program's standard input: what peers send is queued and written by one goroutine.
type sink struct {
	mu     sync.Mutex
	f      *os.File
	queue  []input
	ended  bool
	closed bool
	wake   chan struct{}
	tty    bool
}

type input struct {
	b     []byte
	taken func(n int)
}

func newSink(f *os.File, tty bool) *sink {
	s := &sink{f: f, tty: tty, wake: make(chan struct{}, 1)}
	go s.run()
	return s
}

// errFlood: a peer sent more than its window allows.
var errFlood = errors.New("more stdin than the window allows")

func (s *sink) put(b []byte, taken func(int)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.ended {
		taken(len(b)) // nobody will read it
		return nil
	}
	if len(s.queue) > 2*window/64 && s.size() > 4*window {
		return errFlood
	}
	s.queue = append(s.queue, input{append([]byte(nil), b...), taken})
	poke(s.wake)
	return nil
}

func (s *sink) size() (n int) {
	for _, i := range s.queue {
		n += len(i.b)
	}
	return n
}

// end closes the input after what is queued; a terminal has no end.
func (s *sink) end() {
	if s.tty {
		return
	}
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	poke(s.wake)
}

// close ends the sink when its process has ended.
func (s *sink) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.f.SetWriteDeadline(time.Unix(1, 0))
	poke(s.wake)
}

func (s *sink) run() {
	if !s.tty {
		defer s.f.Close()
	}
	for {
		s.mu.Lock()
		q, ended, closed := s.queue, s.ended, s.closed
		s.queue = nil
		s.mu.Unlock()
		for _, i := range q {
			if _, err := s.f.Write(i.b); err != nil {
				// The program closed its input: what comes is thrown away.
				closed = true
				s.mu.Lock()
				s.closed = true
				s.mu.Unlock()
			}
			i.taken(len(i.b))
		}
		if closed || len(q) == 0 && ended {
			s.mu.Lock()
			rest := s.queue
			s.queue, s.closed = nil, true
			s.mu.Unlock()
			for _, i := range rest {
				i.taken(len(i.b))
			}
			return
		}
		if len(q) == 0 {
			<-s.wake
		}
	}
}
