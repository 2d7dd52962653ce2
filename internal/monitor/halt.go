package monitor

// Stopping, and the restart of a container that is removed when it has ended.

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	dcontainer "github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

// halt is docker stop.
func (m *monitor) halt(sig, timeout int) error {
	m.markStopped()
	r, _ := m.current()
	if r == nil {
		<-m.over // between two starts: the wait ends at once
		return nil
	}
	return m.end(r, sig, timeout, m.kill)
}

// end asks a run to end, and after timeout seconds (negative: never) makes it. send delivers a signal.
func (m *monitor) end(r *run, sig, timeout int, send func(int) error) error {
	if sig == 0 {
		sig = stopSignal(m.rec.Config)
	}
	if err := send(sig); err != nil && fault.KindOf(err) != fault.Conflict {
		return err
	}
	m.thaw(r)
	var late <-chan time.Time
	if timeout >= 0 {
		late = time.After(time.Duration(timeout) * time.Second)
	}
	select {
	case <-r.done:
		return nil
	case <-late:
	}
	if err := send(int(unix.SIGKILL)); err != nil && fault.KindOf(err) != fault.Conflict {
		return err
	}
	select {
	case <-r.done:
		return nil
	case <-time.After(10 * time.Second):
		return fault.Unavailablef("cannot stop container %s: its process did not end within 10 s of SIGKILL (it may hang in the kernel)", m.id)
	}
}

// renew is docker restart of a --rm container, whose monitor would take it away after a stop: the
// same monitor ends the run and starts the next one. It returns when that runs.
func (m *monitor) renew(sig, timeout int) error {
	r, err := m.running()
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.reviving = true
	m.mu.Unlock()
	err = m.end(r, sig, timeout, func(sig int) error {
		if sig == int(unix.SIGKILL) {
			r.loosen()
		}
		r.awaitHandler(sig)
		if err := r.proc.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		return nil
	})
	if err != nil {
		m.mu.Lock()
		m.reviving = false
		m.mu.Unlock()
		return err
	}
	for {
		if now, _ := m.current(); now != nil && now != r {
			return nil
		}
		select {
		case <-m.over:
			m.mu.Lock()
			defer m.mu.Unlock()
			return fault.Conflictf("container %s did not start again: %s", m.id, m.st.Error)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// handlerPatience is how old a program may be that is given time for its handlers.
const handlerPatience = 100 * time.Millisecond

// awaitHandler returns when a program that has only begun can hear a signal, or is old enough to hear it now if ever. The first
// process of a namespace does not die of a signal that it has no handler for (pid_namespaces(7)): whoever stops a container right
// after its start would wait for the end of the patience, where an engine that starts programs slowly has no such trouble.
func (r *run) awaitHandler(sig int) {
	for time.Since(r.started) < handlerPatience && r.deafTo(sig) {
		select {
		case <-r.done:
			return
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// deafTo: neither caught nor ignored on purpose, nor kept for later, and so lost.
func (r *run) deafTo(sig int) bool {
	switch {
	case sig < 1, sig > 64, r.proc == nil:
		return false
	case sig == int(unix.SIGKILL), sig == int(unix.SIGSTOP), sig == int(unix.SIGCHLD), sig == int(unix.SIGCONT), sig == int(unix.SIGURG), sig == int(unix.SIGWINCH):
		return false // these need no handler, or do nothing without one
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.proc.Pid))
	if err != nil {
		return false
	}
	return !hears(string(b), sig)
}

// hears reads the masks of proc_pid_status(5).
func hears(status string, sig int) bool {
	for line := range strings.Lines(status) {
		name, mask, _ := strings.Cut(line, ":")
		if name != "SigBlk" && name != "SigIgn" && name != "SigCgt" {
			continue
		}
		if n, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64); err == nil && n>>(sig-1)&1 != 0 {
			return true
		}
	}
	return false
}

// goesOn decides whether a run that ended is followed by another.
func (m *monitor) goesOn(code int, ran time.Duration, b *backoff) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.reviving && !m.stopped {
		b.delay = 0
		return true
	}
	return b.next(m.rec.Host.RestartPolicy, code, ran, m.stopped)
}

// renewed tells of a run that ends whether a person restarts it: that is no restart of the policy's.
func (m *monitor) renewed() bool {
	was := m.reviving
	m.reviving = false
	return was
}

func (m *monitor) thaw(r *run) {
	if _, status := m.current(); status == dcontainer.StatePaused {
		m.pause(false)
	}
}
