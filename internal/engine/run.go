package engine

import (
	"context"
	"errors"
	"sync"

	"github.com/moby/moby/api/types/container"

	ctr "keg/internal/container"
	"keg/internal/fault"
	"keg/internal/monitor"
)

// ExitError is an error with the exit status that the command ends with.
type ExitError struct {
	Code int
	Err  error
}

func (e *ExitError) Error() string { return e.Err.Error() }
func (e *ExitError) Unwrap() error { return e.Err }

// Docker's exit statuses for what is not the program's own: keg failed, the program
// cannot be executed, the program does not exist.
const (
	exitEngine   = 125
	exitNotExec  = 126
	exitNotFound = 127
)

// withStatus gives an error of a start the exit status of the command: the one it
// carries, else that of the engine.
func withStatus(err error) error {
	var own *ExitError
	if err == nil || errors.As(err, &own) {
		return err
	}
	var coded interface{ ExitCode() int }
	if errors.As(err, &coded) {
		return &ExitError{coded.ExitCode(), err}
	}
	return &ExitError{exitEngine, err}
}

// Run is Create and Start: one record, one monitor, nothing else. created is called with
// the id once the record exists (--cidfile, and printing the id with -d).
func (e *Engine) Run(ctx context.Context, o CreateOptions, attach *monitor.Stdio, created func(Created) error) (monitor.Exit, error) {
	e.Expect()
	spawn, done := e.expected()
	defer done()
	c, err := e.Create(ctx, o)
	if err != nil {
		return monitor.Exit{Code: exitEngine}, withStatus(err)
	}
	if created != nil {
		if err := created(c); err != nil {
			return monitor.Exit{Code: exitEngine}, withStatus(errors.Join(err, e.Remove(context.WithoutCancel(ctx), c.ID, RemoveOptions{Force: true, Volumes: true})))
		}
	}
	r, err := e.containers.Get(c.ID)
	if err != nil {
		return monitor.Exit{Code: exitEngine}, withStatus(err)
	}
	exit, err := e.startWith(ctx, spawn, r, attach)
	if err != nil && r.Host.AutoRemove {
		rerr := e.Remove(context.WithoutCancel(ctx), r.ID, RemoveOptions{Force: true, Volumes: true})
		if rerr != nil && !fault.Is(rerr, fault.NotFound) {
			err = errors.Join(err, rerr)
		}
	}
	return exit, withStatus(err)
}

// Expect starts the monitor that the next Run will use, in the background: its own start, milliseconds of it,
// passes while the record is made. Whoever knows earlier that a Run will follow calls it earlier.
func (e *Engine) Expect() {
	c := make(chan spare, 1)
	if e.spare.CompareAndSwap(nil, &c) {
		go func() { c <- e.monitors.Prepare() }()
	}
}

// expected is what Expect started; done ends a monitor that was not used.
func (e *Engine) expected() (_ spawner, done func()) {
	c := e.spare.Swap(nil)
	if c == nil { // another Run was quicker
		return e.monitors.Spawn, func() {}
	}
	ready := sync.OnceValue(func() spare { return <-*c })
	spawn := func(ctx context.Context, id string, attach *monitor.Stdio) (live, error) {
		if p := ready(); p != nil {
			return p.Spawn(ctx, id, attach)
		}
		return e.monitors.Spawn(ctx, id, attach)
	}
	return spawn, func() {
		if p := ready(); p != nil {
			p.Close()
		}
	}
}

// Start starts a created or exited container. With attach its stdio is connected before
// the program runs and Start returns when the program ended or the user detached;
// without, when the program was executed. Errors of the start carry Docker's exit
// codes (125, 126, 127) as *ExitError.
func (e *Engine) Start(ctx context.Context, ref string, attach *monitor.Stdio) (monitor.Exit, error) {
	r, st, err := e.view(ctx, ref)
	if err != nil {
		return monitor.Exit{Code: exitEngine}, withStatus(err)
	}
	switch st.Status {
	case container.StatePaused:
		return monitor.Exit{Code: exitEngine}, withStatus(fault.Conflictf("cannot start a paused container, try unpause instead"))
	case container.StateRemoving, container.StateDead:
		return monitor.Exit{Code: exitEngine}, withStatus(fault.Conflictf("container is marked for removal and cannot be started"))
	case container.StateRunning, container.StateRestarting:
		if attach == nil {
			return monitor.Exit{}, nil
		}
		return e.Attach(ctx, r.ID, *attach)
	}
	exit, err := e.start(ctx, r, attach)
	return exit, withStatus(err)
}

// start spawns the monitor of a container that does not run and, when attached, stays
// until the end.
func (e *Engine) start(ctx context.Context, r *ctr.Record, attach *monitor.Stdio) (monitor.Exit, error) {
	return e.startWith(ctx, e.monitors.Spawn, r, attach)
}

type spawner func(ctx context.Context, id string, attach *monitor.Stdio) (live, error)

func (e *Engine) startWith(ctx context.Context, spawn spawner, r *ctr.Record, attach *monitor.Stdio) (monitor.Exit, error) {
	c, err := e.spawn(ctx, spawn, r.ID, attach)
	if fault.Is(err, fault.NotModified) && attach == nil {
		return monitor.Exit{}, nil // somebody else started it just now
	}
	if err != nil {
		return monitor.Exit{Code: exitEngine}, err
	}
	defer c.Close()
	if attach == nil {
		return monitor.Exit{}, nil
	}
	return c.Wait(ctx)
}

func (e *Engine) spawn(ctx context.Context, spawn spawner, id string, attach *monitor.Stdio) (live, error) {
	if err := e.settle(ctx, id); err != nil {
		return nil, err
	}
	return spawn(ctx, id, attach)
}

// settle waits until nobody holds the container's lock: the monitor of an earlier run
// reports the exit before it has given addresses and ports back.
func (e *Engine) settle(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, settleTime,
		fault.Conflictf("container %s is still being cleaned up after its exit; try again", id))
	defer cancel()
	for {
		held, err := e.containers.Running(id)
		if err != nil || !held {
			return err
		}
		if st, err := e.containers.State(id); err == nil && isLive(st.Status) {
			return fault.Errorf(fault.NotModified, "container %s is already running", id)
		}
		if err := pause(ctx, settleStep); err != nil {
			return err
		}
	}
}

// Attach connects to a running container.
func (e *Engine) Attach(ctx context.Context, ref string, s monitor.Stdio) (monitor.Exit, error) {
	r, st, err := e.view(ctx, ref)
	if err != nil {
		return monitor.Exit{}, err
	}
	switch st.Status {
	case container.StateRunning:
	case container.StatePaused:
		return monitor.Exit{}, fault.Conflictf("cannot attach to a paused container, unpause it first")
	case container.StateRestarting:
		return monitor.Exit{}, fault.Conflictf("cannot attach to a restarting container, wait until it is running")
	default:
		return monitor.Exit{}, fault.Conflictf("cannot attach to a stopped container, start it first")
	}
	c, err := e.monitors.Dial(ctx, r.ID)
	if err != nil {
		return monitor.Exit{}, err
	}
	defer c.Close()
	e.containerEvent("attach", r, nil)
	return c.Attach(ctx, s)
}

// Exec runs a command in a running container.
func (e *Engine) Exec(ctx context.Context, ref string, r monitor.ExecRequest, s monitor.Stdio) (monitor.Exit, error) {
	if len(r.Cmd) == 0 {
		return monitor.Exit{Code: exitEngine}, fault.Invalidf("No exec command specified")
	}
	c, err := e.running(ctx, ref, "before exec")
	if err != nil {
		return monitor.Exit{Code: 1}, err
	}
	defer c.Close()
	exit, err := c.Exec(ctx, r, s)
	return exit, withExecStatus(err)
}

// withExecStatus: docker exec ends with 126 or 127 when the program cannot be executed
// and with 1 for errors of the engine.
func withExecStatus(err error) error {
	var coded interface{ ExitCode() int }
	if errors.As(err, &coded) {
		return &ExitError{coded.ExitCode(), err}
	}
	return err
}

// running dials the monitor of a container that must run and not be paused; what says
// what it is for.
func (e *Engine) running(ctx context.Context, ref, what string) (live, error) {
	r, st, err := e.view(ctx, ref)
	if err != nil {
		return nil, err
	}
	switch st.Status {
	case container.StateRunning:
		return e.monitors.Dial(ctx, r.ID)
	case container.StatePaused:
		return nil, fault.Conflictf("Container %s is paused, unpause the container %s", ref, what)
	case container.StateRestarting:
		return nil, fault.Conflictf("container %s is restarting, wait until the container is running", r.ID)
	}
	return nil, notRunning(r.ID)
}

func notRunning(id string) error { return fault.Conflictf("container %s is not running", id) }
