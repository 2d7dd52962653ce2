package monitor

// The end of a run: what is recorded, who is told, in which order; restart policy; removal.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	dcontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/sys/signal"
	"golang.org/x/sys/unix"

	"keg/internal/container"
	"keg/internal/fault"
	"keg/internal/volume"
)

// stopSignal of a container: SIGTERM unless it says otherwise.
func stopSignal(c *dcontainer.Config) int {
	if c.StopSignal != "" {
		if s, err := signal.ParseSignal(c.StopSignal); err == nil {
			return int(s)
		}
	}
	return int(unix.SIGTERM)
}

// finish waits for the end of r, records it and tells it. The name of a --rm container
// is free and its ports are closed before anybody hears of the exit; everything that takes
// time comes after. It reports whether the container is to be started again.
func (m *monitor) finish(r *run, p *backoff) (again bool) {
	code, err := r.proc.Wait()
	if err != nil {
		complain(err)
		code = 255
	}
	r.settleOutput(m.ownPids())
	if r.fate = r.lostFiles(code); r.fate != "" {
		complain(errors.New(r.fate))
	}
	oom := false
	if g := r.proc.Cgroup; g != nil && (code == 137 || m.rec.Host.Memory > 0) {
		n, _ := g.OOMKills()
		oom = n > 0
	}
	end := time.Now()
	again = m.goesOn(code, end.Sub(r.started), p)
	r.exit = Exit{Code: code, OOM: oom}
	m.recordExit(r, end, again)
	if r.net != nil {
		r.net.Quiesce()
	}
	for _, l := range r.hub.end() {
		l.sendJSON(frameExit, r.exit)
		l.finish()
	}
	close(r.done)
	if oom {
		m.event(events.ActionOOM, nil)
	}
	m.event(events.ActionDie, map[string]string{"exitCode": strconv.Itoa(code),
		"execDuration": strconv.Itoa(int(end.Sub(r.started).Seconds()))})
	return again
}

// ownPids tells whether the kernel ends all processes with the first one.
func (m *monitor) ownPids() bool { return m.rec.Host.PidMode.IsPrivate() }

// settleOutput sees that all that was printed is in the log, and bounds how long processes that
// outlive the first one can hold that up.
func (r *run) settleOutput(ownPids bool) {
	r.hub.rush()
	if !ownPids && r.proc.Cgroup != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := r.proc.Cgroup.Kill(ctx); err != nil {
			complain(fmt.Errorf("end the remaining processes: %w", err))
		}
	}
	select {
	case <-r.pumps:
	case <-time.After(2 * time.Second):
		for _, f := range append(r.outputs, r.console) {
			if f != nil {
				f.SetReadDeadline(time.Unix(1, 0))
			}
		}
		<-r.pumps
	}
	if r.in != nil {
		r.in.close()
	}
	if r.console != nil {
		r.console.Close()
	}
	if err := r.hub.log.Close(); err != nil {
		complain(fmt.Errorf("close the log: %w", err))
	}
}

// recordExit writes the state, or for the last exit of a --rm container takes it out of sight.
func (m *monitor) recordExit(r *run, end time.Time, again bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.run = nil
	m.st.Status = dcontainer.StateExited
	if again {
		m.st.Status = dcontainer.StateRestarting
		if !m.renewed() {
			m.st.RestartCount++
		}
	}
	m.st.Pid, m.st.StartTime, m.st.SandboxKey = 0, 0, ""
	m.st.ExitCode, m.st.OOMKilled, m.st.Finished = r.exit.Code, r.exit.OOM, end.UTC()
	m.st.ManualStop = m.stopped
	if r.fate != "" {
		m.st.Error = r.fate
	}
	m.st.Networks, m.st.Ports = nil, nil
	if !again && m.rec.Host.AutoRemove {
		if err := m.containers.Retire(m.id); err != nil && !fault.Is(err, fault.NotFound) {
			complain(fmt.Errorf("remove: %w", err))
		}
		return
	}
	if err := m.containers.PutState(m.id, &m.st, again); err != nil {
		complain(fmt.Errorf("write state: %w", err))
	}
}

// release gives back what a run held, slowly where it must.
func (m *monitor) release(r *run) {
	if r.net != nil {
		if err := r.net.Release(); err != nil {
			complain(fmt.Errorf("release the network: %w", err))
		}
	}
	r.freeFiles()
	if g := r.proc.Cgroup; g != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := g.Remove(ctx); err != nil {
			complain(fmt.Errorf("remove the cgroup: %w", err))
		}
	}
}

// leave ends the monitor's ownership: everything is given back, the lock last.
func (m *monitor) leave(r *run) error {
	defer close(m.over)
	if r != nil {
		r.freeFiles() // the root, before its layer is removed
		m.release(r)
	}
	if !m.rec.Host.AutoRemove {
		return nil
	}
	err := discard(context.Background(), m.roots, m.rec)
	m.event(events.ActionDestroy, nil)
	return err
}

// discard removes what a container leaves: its record, writable layer and anonymous volumes.
func discard(ctx context.Context, roots Roots, rec *container.Record) error {
	s := container.Open(roots.Root)
	err := s.Retire(rec.ID)
	if fault.Is(err, fault.NotFound) {
		err = nil // retired already
	}
	return errors.Join(err, removeActive(roots, rec.ID), removeAnonymous(ctx, roots, rec), s.Purge(rec.ID))
}

// removeAnonymous removes the volumes that nobody named and no other container has.
func removeAnonymous(ctx context.Context, roots Roots, rec *container.Record) error {
	volumes := volume.Open(roots.Root)
	var errs []error
	for _, p := range rec.Mounts {
		if p.Type != mount.TypeVolume || p.Name == "" {
			continue
		}
		v, err := volumes.Get(p.Name)
		if err != nil {
			continue
		}
		if _, anonymous := v.Labels[volume.AnonymousLabel]; !anonymous || shared(roots, rec.ID, p.Name) {
			continue
		}
		if err := volumes.Remove(ctx, p.Name); !fault.Is(err, fault.NotFound) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func shared(roots Roots, self, name string) bool {
	s := container.Open(roots.Root)
	ids, err := s.List()
	if err != nil {
		return true // when in doubt it stays
	}
	for _, id := range ids {
		r, err := s.Get(id)
		if err != nil || id == self {
			continue
		}
		for _, p := range r.Mounts {
			if p.Name == name {
				return true
			}
		}
	}
	return false
}

// failed records a start that did not work: the container stays as created, with the reason.
func (m *monitor) failed(err error) {
	code := 128
	var x interface{ ExitCode() int }
	if errors.As(err, &x) {
		code = x.ExitCode()
	}
	if m.rec.Host.AutoRemove {
		if e := discard(context.Background(), m.roots, m.rec); e != nil {
			complain(fmt.Errorf("remove: %w", e))
		}
	} else {
		m.settle(func(st *container.State) {
			st.Status, st.Pid, st.StartTime = dcontainer.StateCreated, 0, 0
			st.ExitCode, st.Error, st.Finished = code, err.Error(), time.Now().UTC()
			st.Networks, st.Ports, st.SandboxKey = nil, nil, ""
		})
	}
	m.event(events.ActionDie, map[string]string{"exitCode": strconv.Itoa(code)})
	if m.rec.Host.AutoRemove {
		m.event(events.ActionDestroy, nil)
	}
	close(m.over)
}

// backoff is Docker's: 100 ms, doubled up to a minute, started anew after a run of 10 s.
type backoff struct {
	delay time.Duration
	count int // restarts so far
}

const (
	firstDelay = 100 * time.Millisecond
	lastDelay  = time.Minute
	goodRun    = 10 * time.Second
)

// next decides by the policy whether there is a restart, and after which delay.
func (b *backoff) next(p dcontainer.RestartPolicy, code int, ran time.Duration, stopped bool) bool {
	if ran >= goodRun {
		b.delay = 0
	}
	again := false
	switch p.Name {
	case dcontainer.RestartPolicyAlways, dcontainer.RestartPolicyUnlessStopped:
		again = !stopped
	case dcontainer.RestartPolicyOnFailure:
		again = !stopped && code != 0 && (p.MaximumRetryCount == 0 || b.count < p.MaximumRetryCount)
	}
	if !again {
		return false
	}
	b.count++
	if b.delay = min(2*b.delay, lastDelay); b.delay == 0 {
		b.delay = firstDelay
	}
	return true
}

// rest reads what is in a pipe without waiting for more.
func rest(f *os.File, put func([]byte)) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		buf := make([]byte, chunk)
		for {
			n, err := unix.Read(int(fd), buf)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if n <= 0 || err != nil {
				return
			}
			put(buf[:n])
		}
	})
}
