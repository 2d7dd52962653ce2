package oci

// Making containers and starting them.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
	"keg/internal/sandbox"
)

// Launch is what create, run and exec have in common.
type Launch struct {
	ConsoleSocket string // where the terminal's master goes
	PidFile       string
	PreserveFDs   int
	Stdio         [3]*os.File
	// Listen are descriptors that a manager passes by LISTEN_FDS, from 3 on.
	Listen int
}

// Create is the operation of that name: everything but the program. Nobody waits for the
// process: it becomes the child of whoever adopts it.
func (r *Runtime) Create(ctx context.Context, id, bundle string, l Launch) error {
	c, p, err := r.create(ctx, id, bundle, l, true)
	if err != nil {
		return err
	}
	p.PidFD.Close()
	_ = c
	return nil
}

// create makes the container. detached: the terminal goes to the console socket and the process
// outlives us.
func (r *Runtime) create(ctx context.Context, id, bundle string, l Launch, detached bool) (_ *container, _ *sandbox.Process, err error) {
	if err := checkID(id); err != nil {
		return nil, nil, err
	}
	if bundle, err = filepath.Abs(bundle); err != nil {
		return nil, nil, err
	}
	spec, err := loadSpec(bundle)
	if err != nil {
		return nil, nil, err
	}
	if spec.Process == nil {
		return nil, nil, fault.Invalidf("the spec has no process")
	}
	if err := checkTerminal(spec.Process.Terminal, detached, l.ConsoleSocket); err != nil {
		return nil, nil, err
	}
	c := &container{r: r, dir: filepath.Join(r.Root, id)}
	c.rec = record{ID: id, Bundle: bundle, Spec: spec, Created: time.Now().UTC()}
	if c.rec.Cgroup, err = r.cgroupPath(spec, id); err != nil {
		return nil, nil, err
	}
	if c.rec.Boot, err = linux.BootID(); err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(r.Root, 0o700); err != nil {
		return nil, nil, err
	}
	if err := os.Mkdir(c.dir, 0o711); errors.Is(err, os.ErrExist) {
		return nil, nil, fault.Conflictf("container with id exists: %s", id)
	} else if err != nil {
		return nil, nil, err
	}
	resolve(spec, bundle)
	p, err := c.begin(ctx, l, detached)
	if err != nil {
		_ = os.RemoveAll(c.dir)
		return nil, nil, err
	}
	return c, p, nil
}

func checkTerminal(terminal, detached bool, socket string) error {
	switch {
	case socket != "" && !detached:
		return fault.Invalidf("cannot use console socket if the container is not detached")
	case terminal && detached && socket == "":
		return fault.Invalidf("cannot allocate tty without setting console socket")
	case !terminal && socket != "":
		return fault.Invalidf("cannot use console socket if no terminal is asked for (process.terminal is false)")
	}
	return nil
}

// begin starts the process, which then waits for "start".
func (c *container) begin(ctx context.Context, l Launch, detached bool) (_ *sandbox.Process, err error) {
	dir, err := os.Open(c.dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	door, err := sandbox.Listen(dir, startFile)
	if err != nil {
		return nil, err
	}
	defer door.Close()
	files, err := passed(l)
	if err != nil {
		return nil, err
	}
	defer closeAll(files)
	spec := *c.rec.Spec
	if err := c.checkControllers(); err != nil {
		return nil, err
	}
	hooks := hooksOf(&spec)
	o := sandbox.Options{Root: -1, NetNS: -1, Stdio: l.Stdio, Cgroup: c.rec.Cgroup, Files: files, Go: door, Outlive: detached, Strict: true}
	o.Recorded = func(pid int, at uint64) error {
		c.rec.Pid, c.rec.Started = pid, at
		return c.save()
	}
	if spec.Hooks != nil {
		o.Hooks = func(pid int) error { return c.createHooks(ctx, &hooks, pid) }
	}
	p, err := sandbox.Start(ctx, &spec, o)
	if err != nil {
		return nil, err
	}
	c.r.warn(p.Warnings...)
	c.rec.Exec = p.ExecStep
	if err = c.save(); err == nil {
		err = deliver(p, l, detached)
	}
	if err != nil {
		_ = p.Signal(int(unix.SIGKILL))
		_, _ = p.Wait()
		_ = p.Cgroup.Remove(context.WithoutCancel(ctx))
		tidy(c.rec.Cgroup)
		return nil, err
	}
	return p, nil
}

func (c *container) createHooks(ctx context.Context, h *specs.Hooks, pid int) error {
	// Prestart hooks are from before "creating": to them a container that is not started is created.
	//lint:ignore SA1019 still asked for
	err := c.runHooks(ctx, "prestart", h.Prestart, specs.StateCreated, 0)
	if err == nil {
		err = c.runHooks(ctx, "createRuntime", h.CreateRuntime, specs.StateCreating, 0)
	}
	if err == nil {
		err = c.runHooks(ctx, "createContainer", h.CreateContainer, specs.StateCreating, pid)
	}
	return err
}

// deliver tells the caller the pid and gives it the terminal.
func deliver(p *sandbox.Process, l Launch, detached bool) error {
	if p.Console != nil && detached {
		err := sendConsole(p.Console, l.ConsoleSocket)
		p.Console.Close()
		if err != nil {
			return err
		}
	}
	if l.PidFile == "" {
		return nil
	}
	// By rename: who waits for the file finds a number in it.
	tmp := filepath.Join(filepath.Dir(l.PidFile), "."+filepath.Base(l.PidFile))
	if err := os.WriteFile(tmp, []byte(strconv.Itoa(p.Pid)), 0o666); err != nil {
		return fmt.Errorf("write the pid file: %w", err)
	}
	return os.Rename(tmp, l.PidFile)
}

// passed are the further descriptors that the program inherits, LISTEN_FDS first.
func passed(l Launch) (files []*os.File, err error) {
	for fd := 3; fd < 3+l.Listen+l.PreserveFDs; fd++ {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3+l.Listen+l.PreserveFDs)
		if err != nil {
			closeAll(files)
			return nil, fault.Invalidf("--preserve-fds %d: descriptor %d is not open", l.PreserveFDs, fd)
		}
		files = append(files, os.NewFile(uintptr(n), "fd"+strconv.Itoa(fd)))
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Start is the operation of that name.
func (r *Runtime) Start(ctx context.Context, id string) error {
	c, err := r.load(id)
	if err != nil {
		return err
	}
	return c.start(ctx)
}

func (c *container) start(ctx context.Context) error {
	switch s := c.status(); s {
	case specs.StateCreated:
	case specs.StateStopped:
		return fault.Conflictf("cannot start a container that has stopped")
	case specs.StateRunning, Paused:
		return fault.Conflictf("cannot start an already running container")
	default:
		return fault.Conflictf("cannot start a container in the %s state", s)
	}
	hooks := hooksOf(c.rec.Spec)
	if err := c.runHooks(ctx, "startContainer", hooks.StartContainer, specs.StateCreated, c.rec.Pid); err != nil {
		return errors.Join(err, c.abandon(ctx))
	}
	dir, err := os.Open(c.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := sandbox.Go(linux.FDPath(int(dir.Fd()))+"/"+startFile, c.rec.Spec, c.rec.Exec); err != nil {
		c.awaitEnd() // a process that could not become the program has ended when we say so
		return err
	}
	if err := os.Remove(filepath.Join(c.dir, startFile)); err != nil {
		return err
	}
	if err := c.runHooks(ctx, "poststart", hooks.Poststart, specs.StateRunning, 0); err != nil {
		// Since version 1.0.2 of the specification a failed poststart hook stops the container.
		return errors.Join(err, c.abandon(ctx))
	}
	return nil
}

// abandon ends a container that a hook gave up: it is stopped, deleted, and its poststop hooks run.
func (c *container) abandon(ctx context.Context) error {
	return c.remove(context.WithoutCancel(ctx), true)
}

// Run creates, starts and, unless detached, waits, with the exit code of the program.
func (r *Runtime) Run(ctx context.Context, id, bundle string, l Launch, detached, keep bool) (code int, err error) {
	c, p, err := r.create(ctx, id, bundle, l, detached)
	if err != nil {
		return 1, err
	}
	if err := c.start(ctx); err != nil {
		_ = c.remove(context.WithoutCancel(ctx), true)
		return 1, err
	}
	if detached {
		return 0, p.PidFD.Close()
	}
	code, err = attend(p, l)
	if err == nil && !keep {
		err = c.remove(context.WithoutCancel(ctx), true)
	}
	return code, err
}
