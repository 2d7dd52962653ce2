// What connects a terminal, or a pipe, to a program in a container.

package cli

import (
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"keg/internal/monitor"
)

// session is the front end of one attached process.
type session struct {
	stdio   monitor.Stdio
	signals chan int
	undo    []func()
}

// sessionOptions say what to connect.
type sessionOptions struct {
	stdin, stdout, stderr bool
	tty                   bool
	signals               bool   // pass on what this process receives
	detachKeys            string // "" is Docker's ctrl-p,ctrl-q
}

// session prepares stdio. The terminal is raw until close.
func (a *app) session(o sessionOptions) (*session, error) {
	keys, err := parseKeys(firstOf(o.detachKeys, a.clientConfig().DetachKeys))
	if err != nil {
		return nil, err
	}
	if o.stdin && o.tty && !a.inTTY {
		return nil, failf("the input device is not a TTY")
	}
	s := &session{}
	s.stdio.DetachKeys = keys
	if o.stdin {
		s.stdio.In = a.in
	}
	if o.stdout {
		s.stdio.Out = a.rawOut
	}
	if o.stderr {
		s.stdio.Err = a.rawErr
	}
	if o.tty {
		s.stdio.Err = nil // a terminal has one stream
		if o.stderr && s.stdio.Out == nil {
			s.stdio.Out = a.rawOut
		}
		s.terminal(a, o.stdin)
	}
	if o.signals {
		s.stdio.Signals = s.later()
		s.forwardNow()
	}
	return s, nil
}

// terminal makes the caller's terminal raw and follows its size.
func (s *session) terminal(a *app, stdin bool) {
	if stdin && a.inTTY && a.inFile != nil {
		fd := int(a.inFile.Fd())
		if old, err := term.MakeRaw(fd); err == nil {
			s.undo = append(s.undo, func() { _ = term.Restore(fd, old) })
		}
	}
	if _, _, ok := a.size(); !ok {
		return
	}
	sizes := make(chan [2]uint16, 1)
	changed := make(chan os.Signal, 1)
	done := make(chan struct{})
	signal.Notify(changed, unix.SIGWINCH)
	s.undo = append(s.undo, func() { signal.Stop(changed); close(done) })
	go func() {
		for {
			if rows, cols, ok := a.size(); ok {
				select {
				case sizes <- [2]uint16{rows, cols}:
				case <-done:
					return
				}
			}
			select {
			case <-changed:
			case <-done:
				return
			}
		}
	}()
	s.stdio.Resize = sizes
}

// size of the terminal, of stdout if it is one, else of stdin.
func (a *app) size() (rows, cols uint16, ok bool) {
	for _, w := range []any{a.rawOut, a.inFile} {
		f, isFile := w.(*os.File)
		if !isFile || f == nil {
			continue
		}
		if w, h, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			return uint16(h), uint16(w), true
		}
	}
	return 0, 0, false
}

// later is the channel of signals to pass on, before any is caught.
func (s *session) later() <-chan int {
	s.signals = make(chan int, 128)
	return s.signals
}

// forwardNow catches all signals and passes them on, but for those that concern this
// process: SIGCHLD, SIGPIPE, the Go runtime's SIGURG, and SIGWINCH where the terminal
// has a size.
func (s *session) forwardNow() {
	in := make(chan os.Signal, 128)
	done := make(chan struct{})
	signal.Notify(in)
	s.undo = append(s.undo, func() { signal.Stop(in); close(done) })
	resized := s.stdio.Resize != nil
	go func() {
		for {
			select {
			case sig := <-in:
				n, ok := sig.(syscall.Signal)
				if !ok || n == unix.SIGCHLD || n == unix.SIGPIPE || n == unix.SIGURG || resized && n == unix.SIGWINCH {
					continue
				}
				select {
				case s.signals <- int(n):
				case <-done:
					return
				}
			case <-done:
				return
			}
		}
	}()
}

func (s *session) close() {
	for i := len(s.undo) - 1; i >= 0; i-- {
		s.undo[i]()
	}
	s.undo = nil
}

// parseKeys reads "ctrl-p,ctrl-q" and single characters; "" is no override.
func parseKeys(spec string) ([]byte, error) {
	if spec == "" {
		return nil, nil
	}
	var keys []byte
	for k := range strings.SplitSeq(spec, ",") {
		switch {
		case len(k) == 1:
			keys = append(keys, k[0])
		case len(k) == 6 && strings.HasPrefix(k, "ctrl-") && k[5] >= 'a' && k[5] <= 'z':
			keys = append(keys, k[5]-'a'+1)
		case len(k) == 6 && strings.HasPrefix(k, "ctrl-") && strings.IndexByte(`@[\]^_`, k[5]) >= 0:
			keys = append(keys, k[5]&0x1f)
		case k == "DEL":
			keys = append(keys, 0x7f)
		default:
			return nil, failf("invalid detach keys (%s): unknown character: '%s'", spec, k)
		}
	}
	return keys, nil
}
