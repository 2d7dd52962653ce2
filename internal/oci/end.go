package oci

// Ending, pausing and changing containers.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
)

// Kill sends a signal to the container's process, with all to every process of its cgroup.
func (r *Runtime) Kill(id string, sig unix.Signal, all bool) error {
	c, err := r.load(id)
	if err != nil {
		return err
	}
	if all {
		return c.killAll(sig)
	}
	if !c.alive() {
		return fault.Conflictf("container not running")
	}
	if err := c.signal(sig); err != nil {
		return err
	}
	if sig == unix.SIGKILL && c.frozen() {
		return r.Resume(context.Background(), id) // frozen processes cannot die on v1
	}
	return nil
}

func (c *container) signal(sig unix.Signal) error {
	fd, err := unix.PidfdOpen(c.rec.Pid, 0)
	if err == nil {
		defer unix.Close(fd)
		var at uint64
		if at, err = linux.StartTime(c.rec.Pid); err == nil && at != c.rec.Started {
			err = unix.ESRCH
		}
	}
	if err == nil {
		err = unix.PidfdSendSignal(fd, sig, nil, 0)
	}
	if errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrNotExist) {
		return fault.Conflictf("container not running")
	}
	if err != nil {
		return fmt.Errorf("signal container %s: %w", c.rec.ID, err)
	}
	return nil
}

func (c *container) killAll(sig unix.Signal) error {
	g, err := c.group()
	if err != nil {
		return err
	}
	if sig == unix.SIGKILL {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		return g.Kill(ctx)
	}
	pids, err := g.Pids()
	for _, p := range pids {
		if e := unix.Kill(p, sig); e != nil && !errors.Is(e, unix.ESRCH) {
			err = errors.Join(err, fmt.Errorf("signal process %d: %w", p, e))
		}
	}
	return err
}

// Delete removes a stopped container, with force a living one and one that does not exist, too.
// One that was created and never started is not stopped (runtime-spec runtime.md "Delete").
func (r *Runtime) Delete(ctx context.Context, id string, force bool) error {
	c, err := r.load(id)
	if fault.Is(err, fault.NotFound) && force {
		_ = os.RemoveAll(filepath.Join(r.Root, id)) // the rest of a create that was killed
		return nil
	}
	if err != nil {
		return err
	}
	return c.remove(ctx, force)
}

func (c *container) remove(ctx context.Context, force bool) error {
	s := c.status()
	if s != specs.StateStopped && !force {
		return fault.Conflictf("cannot delete container %s that is not stopped: %s; kill it first, or use --force", c.rec.ID, s)
	}
	if s != specs.StateStopped && c.rec.Pid > 0 {
		_ = c.signal(unix.SIGKILL)
	}
	g, err := c.group()
	if err != nil {
		return err
	}
	kctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	// What the container left behind: with a pid namespace of its own nothing.
	if err := g.Kill(kctx); err != nil {
		return fmt.Errorf("kill the processes of container %s: %w", c.rec.ID, err)
	}
	if err := g.Remove(kctx); err != nil {
		return err
	}
	tidy(c.rec.Cgroup)
	if err := os.RemoveAll(c.dir); err != nil {
		return err
	}
	// Failures of these are told and do not undo anything (runtime-spec runtime.md "Lifecycle").
	for _, h := range hooksOf(c.rec.Spec).Poststop {
		if err := c.runHooks(ctx, "poststop", []specs.Hook{h}, specs.StateStopped, 0); err != nil {
			c.r.warn(err.Error())
		}
	}
	return nil
}

// Pause freezes a running container.
func (r *Runtime) Pause(ctx context.Context, id string) error {
	return r.freeze(ctx, id, specs.StateRunning, true)
}

// Resume lets a frozen one go on.
func (r *Runtime) Resume(ctx context.Context, id string) error {
	return r.freeze(ctx, id, Paused, false)
}

func (r *Runtime) freeze(ctx context.Context, id string, from specs.ContainerState, on bool) error {
	c, err := r.load(id)
	if err != nil {
		return err
	}
	if s := c.status(); s != from && !(on && s == specs.StateCreated) {
		return fault.Conflictf("container %s is %s, not %s", id, s, from)
	}
	g, err := c.group()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if on {
		return g.Freeze(ctx)
	}
	return g.Thaw(ctx)
}

// Update changes the limits of a living container.
func (r *Runtime) Update(id string, res *specs.LinuxResources) error {
	c, err := r.load(id)
	if err != nil {
		return err
	}
	if !c.alive() {
		return fault.Conflictf("container not running")
	}
	g, err := c.group()
	if err != nil {
		return err
	}
	warnings, err := g.Set(res)
	c.r.warn(warnings...)
	return err
}
