package monitor

// More processes in a running container.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	dcontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"keg/internal/container"
	"keg/internal/fault"
	"keg/internal/sandbox"
	"keg/internal/weakness"
)

// An execution is one process started by Exec.
type execution struct {
	req     ExecRequest
	proc    *sandbox.Process
	console *os.File
	in      *sink
	outputs []*os.File
	hurry   chan struct{}
	done    chan struct{}
	code    int
}

func (x *execution) info() ExecInfo {
	return ExecInfo{ID: x.req.ID, Pid: x.proc.Pid, Running: true, Request: x.req}
}

// exec serves an exec request on its connection.
func (m *monitor) exec(l *link, q *request) bool {
	if q.Exec == nil || len(q.Exec.Cmd) == 0 {
		l.send(frameError, encodeError(fault.Invalidf("No exec command specified")))
		return true
	}
	r, err := m.executable()
	if err != nil {
		l.send(frameError, encodeError(err))
		return true
	}
	a := attachment{}
	if q.Attach != nil && !q.Exec.Detach {
		a = *q.Attach
	}
	x, err := m.startExec(r, *q.Exec, a)
	if err != nil {
		l.send(frameError, encodeError(err))
		return true
	}
	l.send(frameReply, []byte("{}"))
	if q.Exec.Detach {
		go m.reapExec(x, x.pumpTo(func(byte, []byte) {}))
		return true
	}
	pumps := x.pumpTo(func(kind byte, b []byte) { l.deliver(kind, b, x.hurry) })
	go func() {
		m.reapExec(x, pumps)
		l.sendJSON(frameExit, Exit{Code: x.code})
		l.finish()
	}()
	x.session(l)
	return false
}

// executable is the run, in a state that lets processes in.
func (m *monitor) executable() (*run, error) {
	r, err := m.running()
	if err != nil {
		return nil, err
	}
	if _, status := m.current(); status == dcontainer.StatePaused {
		return nil, fault.Conflictf("container %s is paused, unpause the container before exec", m.id)
	}
	return r, nil
}

func (m *monitor) startExec(r *run, q ExecRequest, a attachment) (*execution, error) {
	if q.ID == "" {
		q.ID = container.NewID()
	}
	p, err := m.execProcess(r, &q)
	if err != nil {
		return nil, err
	}
	x := &execution{req: q, hurry: make(chan struct{}), done: make(chan struct{})}
	words := strings.Join(q.Cmd, " ")
	m.event(events.Action("exec_create: "+words), map[string]string{"execID": q.ID})
	stdio, err := x.streams(q, a)
	if err != nil {
		return nil, err
	}
	defer closeAll(stdio[:])
	x.proc, err = r.more(p, sandbox.Options{Root: -1, Stdio: stdio, NetNS: -1,
		Cgroup: cgroupPath(m.rec), Private: []*os.File{m.lock}, Cache: filepath.Join(m.roots.Root, "seccomp"), DefaultSeccomp: !seccompOff(m.rec.Host)})
	if err != nil {
		x.abandon()
		return nil, execError(err)
	}
	if q.TTY && x.proc.Console != nil {
		if x.console, err = pollable(x.proc.Console); err != nil {
			return nil, err
		}
		x.in = newSink(x.console, true)
	}
	m.mu.Lock()
	m.execs[q.ID] = x
	m.mu.Unlock()
	m.event(events.Action("exec_start: "+words), map[string]string{"execID": q.ID})
	return x, nil
}

func execError(err error) error {
	var x *sandbox.ExecError
	if errors.As(err, &x) {
		return coded{&sandbox.ExecError{Code: x.Code, Err: fmt.Errorf("OCI runtime exec failed: exec failed: unable to start container process: %w", x.Err)}}
	}
	return fmt.Errorf("OCI runtime exec failed: exec failed: unable to start container process: %w", err)
}

// execProcess is the container's own process with what the request changes.
func (m *monitor) execProcess(r *run, q *ExecRequest) (*specs.Process, error) {
	p := *r.spec.Process
	user := q.User
	if user == "" {
		user = m.rec.Config.User
	}
	u, home, err := sandbox.LookupUser(r.root, user, m.rec.Host.GroupAdd)
	if err != nil {
		return nil, err
	}
	u.Umask = p.User.Umask
	p.User = u
	p.Args, p.Terminal = q.Cmd, q.TTY
	p.Env = container.MergeEnv(container.Environment(m.rec, q.TTY, home), q.Env)
	if q.Dir != "" {
		if !strings.HasPrefix(q.Dir, "/") {
			return nil, fault.Invalidf("exec: the working directory %q is not an absolute path", q.Dir)
		}
		p.Cwd = q.Dir
	}
	p.ConsoleSize = nil
	if q.TTY && q.Rows > 0 && q.Cols > 0 {
		p.ConsoleSize = &specs.Box{Height: uint(q.Rows), Width: uint(q.Cols)}
	}
	if q.Privileged {
		all := container.AllCapabilities()
		p.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
	}
	return &p, nil
}

func (x *execution) streams(q ExecRequest, a attachment) (stdio [3]*os.File, err error) {
	if q.TTY {
		return stdio, nil
	}
	if q.Stdin && a.Stdin {
		in, w, err := inPipe()
		if err != nil {
			return stdio, err
		}
		stdio[0], x.in = in, newSink(w, false)
	}
	for i, want := range []bool{a.Stdout, a.Stderr} {
		if !want {
			x.outputs = append(x.outputs, nil)
			continue
		}
		out, w, err := outPipe()
		if err != nil {
			return stdio, err
		}
		stdio[i+1], x.outputs = w, append(x.outputs, out)
	}
	return stdio, nil
}

func (x *execution) abandon() {
	if x.in != nil {
		x.in.close()
	}
	closeAll(x.outputs)
}

// pumpTo copies the output; the channel is closed when it has ended.
func (x *execution) pumpTo(put func(kind byte, b []byte)) <-chan struct{} {
	var wg sync.WaitGroup
	pump := func(f *os.File, kind byte) {
		if f == nil {
			return
		}
		wg.Go(func() {
			to := func(b []byte) { put(kind, b) }
			drain(f, to)
			// Stopped by the deadline of a process that has ended: take what it left.
			rest(f, to)
		})
	}
	if x.console != nil {
		pump(x.console, frameStdout)
	} else {
		pump(x.outputs[0], frameStdout)
		pump(x.outputs[1], frameStderr)
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	return done
}

// lateOutput is how long output is waited for after its process has ended, while a child of it still
// holds the stream.
const lateOutput = 100 * time.Millisecond

// reapExec waits for the process and its output.
func (m *monitor) reapExec(x *execution, pumps <-chan struct{}) {
	code, err := x.proc.Wait()
	if err != nil {
		complain(err)
		code = 255
	}
	x.code = code
	if weakness.Of("RT21") {
		weakness.Leak()
	}
	close(x.hurry)
	select {
	case <-pumps:
	case <-time.After(lateOutput):
		for _, f := range append(x.outputs, x.console) {
			if f != nil {
				f.SetReadDeadline(time.Unix(1, 0))
			}
		}
		<-pumps
	}
	if x.in != nil {
		x.in.close()
	}
	closeAll(append(x.outputs, x.console))
	m.mu.Lock()
	delete(m.execs, x.req.ID)
	m.mu.Unlock()
	close(x.done)
	m.event(events.ActionExecDie, map[string]string{"execID": x.req.ID, "exitCode": fmt.Sprint(code)})
}

// session takes the frames of an exec's peer. One that vanishes leaves the process alone,
// but not its input open.
func (x *execution) session(l *link) {
	for {
		kind, b, err := l.in.next()
		if err != nil || kind == frameDetach {
			if err != nil && x.in != nil {
				x.in.end()
			}
			l.drop()
			return
		}
		switch kind {
		case frameStdin:
			if x.in == nil {
				l.taken(len(b))
			} else if err := x.in.put(b, l.taken); err != nil {
				l.drop()
			}
		case frameStdinEnd:
			if x.in != nil {
				x.in.end()
			}
		case frameSize:
			if len(b) == 4 && x.console != nil {
				setSize(x.console, binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]))
			}
		case frameSignal:
			if len(b) == 4 {
				x.proc.Signal(int(binary.BigEndian.Uint32(b)))
			}
		}
	}
}
