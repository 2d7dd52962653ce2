package engine

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/sys/signal"

	ctr "keg/internal/container"
	"keg/internal/fault"
	"keg/internal/linux"
	vol "keg/internal/volume"
)

// settleStep is the time between two looks at something that is about to change.
const settleStep = 5 * time.Millisecond

// view finds a container and what it does now. What a dead monitor or an earlier boot
// left as running is cleaned up first.
func (e *Engine) view(ctx context.Context, ref string) (*ctr.Record, *ctr.State, error) {
	r, err := e.containers.Find(ref)
	if err != nil {
		return nil, nil, err
	}
	st, err := e.now(ctx, r.ID)
	return r, st, err
}

// now is the state of a container, decided with its lock.
func (e *Engine) now(ctx context.Context, id string) (*ctr.State, error) {
	for range 3 {
		st, err := e.containers.State(id)
		if err != nil || !isLive(st.Status) {
			return st, err
		}
		held, err := e.containers.Running(id)
		if err != nil || held && sameBoot(st) {
			return st, err
		}
		// The state is written before the lock is given up: look again before judging.
		if again, err := e.containers.State(id); err != nil || !isLive(again.Status) {
			return again, err
		}
		if err := e.monitors.Reap(ctx, id); err != nil {
			return st, err
		}
	}
	return e.containers.State(id)
}

func sameBoot(st *ctr.State) bool {
	boot, err := linux.BootID()
	return err != nil || st.BootID == "" || st.BootID == boot
}

// StopOptions are those of Stop and Restart: signal "" is the container's stop signal,
// timeout nil its stop timeout (10 s).
type StopOptions struct {
	Signal  string
	Timeout *int // seconds; negative: for ever
}

// defaultStopTimeout is Docker's, in seconds.
const defaultStopTimeout = 10

// stopping returns the signal and timeout that a stop of r uses.
func stopping(r *ctr.Record, o StopOptions) (sig, timeout int, err error) {
	name := orElse(o.Signal, orElse(r.Config.StopSignal, "SIGTERM"))
	s, err := signal.ParseSignal(name)
	if err != nil {
		return 0, 0, fault.Invalidf("invalid signal: %s", name)
	}
	timeout = defaultStopTimeout
	if t := r.Config.StopTimeout; t != nil {
		timeout = *t
	}
	if o.Timeout != nil {
		timeout = *o.Timeout
	}
	return int(s), timeout, nil
}

// Stop ends a container: its stop signal first, SIGKILL when it does not heed it. A
// container that does not run is no error.
func (e *Engine) Stop(ctx context.Context, ref string, o StopOptions) error {
	r, st, err := e.view(ctx, ref)
	if err != nil {
		return err
	}
	if !isLive(st.Status) {
		return nil
	}
	return e.stop(ctx, r, o)
}

func (e *Engine) stop(ctx context.Context, r *ctr.Record, o StopOptions) error {
	sig, timeout, err := stopping(r, o)
	if err != nil {
		return err
	}
	c, err := e.monitors.Dial(ctx, r.ID)
	if fault.Is(err, fault.Conflict) { // it ended meanwhile
		return nil
	}
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Stop(ctx, sig, timeout); err != nil {
		return err
	}
	e.containerEvent("stop", r, nil)
	return nil
}

// Restart is Stop, when it runs, and Start.
func (e *Engine) Restart(ctx context.Context, ref string, o StopOptions) error {
	r, st, err := e.view(ctx, ref)
	if err != nil {
		return err
	}
	if isLive(st.Status) && r.Host.AutoRemove {
		return e.renew(ctx, r, o)
	}
	if isLive(st.Status) {
		if err := e.stop(ctx, r, o); err != nil {
			return err
		}
	}
	if _, err := e.start(ctx, r, nil); err != nil {
		return withStatus(err)
	}
	e.containerEvent("restart", r, nil)
	return nil
}

// renew restarts a container that would be removed by a stop.
func (e *Engine) renew(ctx context.Context, r *ctr.Record, o StopOptions) error {
	sig, timeout, err := stopping(r, o)
	if err != nil {
		return err
	}
	c, err := e.monitors.Dial(ctx, r.ID)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Renew(ctx, sig, timeout); err != nil {
		return err
	}
	e.containerEvent("restart", r, nil)
	return nil
}

// Kill sends a signal ("" = KILL) to a running container.
func (e *Engine) Kill(ctx context.Context, ref, name string) error {
	sig, err := signal.ParseSignal(orElse(name, "SIGKILL"))
	if err != nil {
		return fault.Invalidf("invalid signal: %s", name)
	}
	r, st, err := e.view(ctx, ref)
	if err != nil {
		return err
	}
	if !isLive(st.Status) {
		return fault.Conflictf("cannot kill container: %s: %w", ref, notRunning(r.ID))
	}
	c, err := e.monitors.Dial(ctx, r.ID)
	if err != nil {
		return fault.Errorf(fault.KindOf(err), "cannot kill container: %s: %w", ref, err)
	}
	defer c.Close()
	if err := c.Kill(ctx, int(sig)); err != nil || sig != syscall.SIGKILL {
		return err
	}
	// Like Docker, KILL returns when the container is dead. That it cannot be waited for any more
	// says the same.
	ctx, cancel := context.WithTimeout(ctx, killPatience)
	defer cancel()
	_, _ = c.Wait(ctx)
	return nil
}

// killPatience bounds the wait for a process that KILL does not end at once (in a system call).
const killPatience = 10 * time.Second

// Pause freezes all processes of a container.
func (e *Engine) Pause(ctx context.Context, ref string) error {
	r, st, err := e.view(ctx, ref)
	if err != nil {
		return err
	}
	if st.Status == container.StatePaused {
		return fault.Conflictf("container %s is already paused", r.ID)
	}
	c, err := e.running(ctx, r.ID, "")
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Pause(ctx)
}

// Unpause thaws them.
func (e *Engine) Unpause(ctx context.Context, ref string) error {
	r, st, err := e.view(ctx, ref)
	if err != nil {
		return err
	}
	if st.Status != container.StatePaused {
		return fault.Conflictf("container %s is not paused", r.ID)
	}
	c, err := e.monitors.Dial(ctx, r.ID)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Unpause(ctx)
}

// Rename gives a container another name.
func (e *Engine) Rename(ctx context.Context, ref, name string) error {
	if ref == "" || name == "" {
		return fault.Invalidf("Neither old nor new names may be empty")
	}
	r, err := e.containers.Find(ref)
	if err != nil {
		return err
	}
	old := r.Name
	if old == name || "/"+old == name {
		return fault.Invalidf("Renaming a container with the same name as its current name")
	}
	if ctr.CheckName(strings.TrimPrefix(name, "/")) != nil {
		err = ctr.CheckName("/" + strings.TrimPrefix(name, "/")) // Docker shows the name with its slash
	} else {
		err = e.containers.Rename(r, name)
	}
	if err != nil {
		return fault.Errorf(fault.KindOf(err), "Error when allocating new name: %w", err)
	}
	e.containerEvent("rename", r, map[string]string{"oldName": "/" + old})
	return e.tellMonitor(ctx, r.ID, live.Renamed)
}

// RemoveOptions are those of docker rm.
type RemoveOptions struct{ Force, Volumes bool }

// Remove deletes a container. It waits (up to 5 s) for one that is just exiting.
func (e *Engine) Remove(ctx context.Context, ref string, o RemoveOptions) error {
	r, st, err := e.view(ctx, ref)
	if err != nil {
		return err
	}
	if isLive(st.Status) {
		if !o.Force {
			return refuseRemoval(r, st)
		}
		if err := e.killForRemoval(ctx, r, st); err != nil {
			return err
		}
	}
	lock, err := e.lock(ctx, r.ID)
	if fault.Is(err, fault.NotFound) {
		return nil // --rm was faster
	}
	if err != nil {
		return fault.Errorf(fault.KindOf(err), "cannot remove container \"/%s\": %w", r.Name, err)
	}
	defer lock.Close()
	return e.erase(ctx, r, o.Volumes)
}

// Unlink removes a legacy link, named by the container that has it and the alias: "web/db".
func (e *Engine) Unlink(ctx context.Context, name string) error {
	consumer, alias, ok := strings.Cut(strings.Trim(name, "/"), "/")
	if !ok {
		return fault.Conflictf("Conflict, cannot remove the default link name of the container")
	}
	r, _, err := e.view(ctx, consumer)
	if err != nil {
		return fault.NotFoundf("Cannot get parent /%s for name /%s", consumer, strings.Trim(name, "/"))
	}
	return e.containers.Edit(r.ID, func(r *ctr.Record) error {
		n := len(r.Host.Links)
		r.Host.Links = slices.DeleteFunc(r.Host.Links, func(l string) bool { return linkAlias(l) == alias })
		if len(r.Host.Links) == n {
			return fault.NotFoundf("Could not get container for /%s", strings.Trim(name, "/"))
		}
		return nil
	})
}

// linkAlias is the name by which a link ("container" or "container:alias") is known inside.
func linkAlias(l string) string {
	to, alias, ok := strings.Cut(l, ":")
	if !ok {
		alias = to
	}
	return strings.TrimPrefix(alias[strings.LastIndexByte(alias, '/')+1:], "/")
}

func refuseRemoval(r *ctr.Record, st *ctr.State) error {
	if st.Status == container.StatePaused {
		return fault.Conflictf("cannot remove container \"/%s\": container is paused and must be unpaused first", r.Name)
	}
	return fault.Conflictf("cannot remove container \"/%s\": container is %s: stop the container before removing or force remove", r.Name, st.Status)
}

func (e *Engine) killForRemoval(ctx context.Context, r *ctr.Record, st *ctr.State) error {
	c, err := e.monitors.Dial(ctx, r.ID)
	if fault.Is(err, fault.Conflict) || fault.Is(err, fault.NotFound) {
		return nil // it ended meanwhile
	}
	if err != nil {
		return err
	}
	defer c.Close()
	if st.Status == container.StatePaused {
		if err := c.Unpause(ctx); err != nil {
			return err
		}
	}
	// A stop without grace: unlike a kill it also keeps the restart policy still.
	return c.Stop(ctx, int(signal.SignalMap["KILL"]), 0)
}

// lock takes the lock of a container that has ended, waiting for its monitor to let go.
func (e *Engine) lock(ctx context.Context, id string) (*os.File, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, settleTime,
		fault.Conflictf("container %s is still being cleaned up after its exit; try again", id))
	defer cancel()
	for {
		f, err := e.containers.Lock(id)
		if err != nil || f != nil {
			return f, err
		}
		if err := pause(ctx, settleStep); err != nil {
			return nil, err
		}
	}
}

// erase deletes what a container left: writable layer, record, name, log and, when asked
// for, the volumes that were made for it alone. The caller holds the lock. Each step may
// be repeated: the record goes last.
func (e *Engine) erase(ctx context.Context, r *ctr.Record, volumes bool) error {
	if err := e.networks.Clean(r.ID); err != nil {
		return err
	}
	if err := e.snapshots.Remove(r.ID); err != nil {
		return err
	}
	if err := e.containers.Remove(r.ID); err != nil {
		return err
	}
	e.containerEvent("destroy", r, nil)
	if !volumes {
		return nil
	}
	return e.removeAnonymous(ctx, r)
}

// removeAnonymous deletes the anonymous volumes of a container that is gone, unless
// another one uses them (--volumes-from).
func (e *Engine) removeAnonymous(ctx context.Context, r *ctr.Record) error {
	var errs []error
	for _, mp := range r.Mounts {
		if mp.Type != mount.TypeVolume {
			continue
		}
		v, err := e.volumes.Get(mp.Name)
		if err != nil {
			continue
		}
		if _, anonymous := v.Labels[vol.AnonymousLabel]; !anonymous {
			continue
		}
		if err := e.RemoveVolume(ctx, v.Name, false); err != nil && !fault.Is(err, fault.Conflict) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Wait waits until the container is not running (condition "not-running"), for its next
// exit ("next-exit") or its removal ("removed") and returns the exit code.
func (e *Engine) Wait(ctx context.Context, ref string, cond container.WaitCondition) (int, error) {
	r, st, err := e.view(ctx, ref)
	if err != nil {
		return 0, err
	}
	switch cond {
	case "", container.WaitConditionNotRunning:
		if !isLive(st.Status) {
			return st.ExitCode, nil
		}
		return e.waitExit(ctx, r.ID, st)
	case container.WaitConditionNextExit:
		return e.waitExit(ctx, r.ID, st)
	case container.WaitConditionRemoved:
		return e.waitRemoved(ctx, r.ID, st)
	}
	return 0, fault.Invalidf("invalid condition: %q", cond)
}

// waitExit waits for an exit later than the one in st: on the monitor while there is one,
// else by looking.
func (e *Engine) waitExit(ctx context.Context, id string, st *ctr.State) (int, error) {
	for wait := settleStep; ; wait = min(2*wait, 250*time.Millisecond) {
		if c, err := e.monitors.Dial(ctx, id); err == nil {
			exit, err := c.Wait(ctx)
			c.Close()
			if err == nil {
				return exit.Code, nil
			}
		}
		if err := ctx.Err(); err != nil {
			return 0, context.Cause(ctx)
		}
		now, err := e.now(ctx, id)
		if err != nil {
			return 0, err
		}
		if now.Finished.After(st.Finished) {
			return now.ExitCode, nil
		}
		if err := pause(ctx, wait); err != nil {
			return 0, err
		}
	}
}

func (e *Engine) waitRemoved(ctx context.Context, id string, st *ctr.State) (int, error) {
	code := st.ExitCode
	if isLive(st.Status) {
		c, err := e.waitExit(ctx, id, st)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return 0, err
		}
		code = c
	}
	for wait := settleStep; ; wait = min(2*wait, 250*time.Millisecond) {
		now, err := e.containers.State(id)
		if fault.Is(err, fault.NotFound) {
			return code, nil
		}
		if err != nil {
			return 0, err
		}
		code = now.ExitCode
		if err := pause(ctx, wait); err != nil {
			return 0, err
		}
	}
}

// Logs yields log entries in order.
func (e *Engine) Logs(ctx context.Context, ref string, o ctr.LogOptions, yield func(ctr.LogEntry) error) error {
	r, err := e.containers.Find(ref)
	if err != nil {
		return err
	}
	if r.Host.LogConfig.Type == "none" {
		return fault.Unsupportedf("configured logging driver does not support reading")
	}
	return e.containers.Logs(ctx, r.ID, o, yield)
}
