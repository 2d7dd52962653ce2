package monitor

// Stopping, and the restart of a container that is removed when it has ended.

import (
	"errors"
	"os"
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
