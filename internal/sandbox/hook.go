package sandbox

// What others do to a process that waits: hooks in its namespaces, and the go-ahead.

import (
	"context"
	"errors"
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
)

// RunIn executes args in the namespaces of process pid that spec does not share with us, as root
// and unconfined (runtime-spec config.md "POSIX-platform Hooks"). file is resolved there. It
// returns once the program runs.
func RunIn(ctx context.Context, pid int, spec *specs.Spec, file string, args, env []string, stdio [3]*os.File) (*Process, error) {
	init, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("container process %d: %w", pid, notRunning(err))
	}
	o := &Options{Stdio: stdio}
	b := newBox(spec, o)
	defer b.close()
	b.keepFD("init", init)
	l := &layout{process: process{args: args, env: env}}
	if err := b.stdio(l); err != nil {
		return nil, err
	}
	// Hooks are trusted, and the pid namespace would take a second child.
	flags := 0
	for _, ns := range spec.Linux.Namespaces {
		if f, ok := namespaceFlag(ns.Type); ok && f != unix.CLONE_NEWPID && f != cloneNewTime {
			flags |= f
		}
	}
	p := planHook(&l.process, file, flags)
	t := &talk{o: o, c: &l.process, program: p, exec: true}
	return t.begin(ctx, &birth{program: p, fds: b.fds, keepBelow: 3, cgroup: -1, pidns: -1})
}

func planHook(c *process, file string, flags int) *program {
	p := &program{}
	p.dieWithParent(c)
	p.signals()
	p.add("join", "the container's namespaces", unix.SYS_SETNS, fd("init"), num(flags))
	for i, name := range stdio {
		p.add("connect", stdio[i], unix.SYS_DUP3, fd(name), num(i), num(0))
	}
	p.barrier("the go-ahead")
	p.add("set umask", "0022", unix.SYS_UMASK, num(0o022))
	p.add("mark", "the rest close-on-exec", unix.SYS_CLOSE_RANGE, num(3), num(0xffffffff), num(unix.CLOSE_RANGE_CLOEXEC))
	p.add("exec", file, unix.SYS_EXECVE, text(file), vector(c.args), vector(c.env))
	return p
}

// Go lets a process that was started with Options.Go execute its program. socket is the address that
// Options.Go listens on, execStep what Process said.
func Go(socket string, spec *specs.Spec, execStep int) error {
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(s), "control socket")
	defer f.Close()
	if err := unix.Connect(s, &unix.SockaddrUnix{Name: socket}); err != nil {
		if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
			return fault.Conflictf("the container's process does not wait to be started")
		}
		return fmt.Errorf("talk to the container's process: %w", err)
	}
	c, _, err := newProcess(spec.Process, &Options{}, false)
	if err != nil {
		return err
	}
	t := &talk{c: c, sock: f}
	if err := t.goAhead(); err != nil {
		return err
	}
	r, err := t.read()
	if err != nil || r == nil {
		return err
	}
	if int(r.step) < execStep {
		return fmt.Errorf("confine the process: %w", unix.Errno(r.value))
	}
	return t.lateFailure(r)
}

// lateFailure: the plan is not at hand any more, only its last steps can fail.
func (t *talk) lateFailure(r *report) error {
	e := unix.Errno(r.value)
	last := step{nr: unix.SYS_EXECVE, object: t.c.args[0]}
	if files := candidates(t.c.args[0], t.c.env); len(files) != 1 || files[0] != t.c.args[0] {
		last.nr = opFail
	}
	return execError(t.c, &last, e, false)
}

// Listen makes the socket for Options.Go in the directory dir.
func Listen(dir *os.File, name string) (*os.File, error) {
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	// By descriptor: an address has 107 bytes, a directory's name may have more.
	if err = unix.Bind(s, &unix.SockaddrUnix{Name: linux.FDPath(int(dir.Fd())) + "/" + name}); err == nil {
		err = unix.Listen(s, 1)
	}
	if err != nil {
		unix.Close(s)
		return nil, fmt.Errorf("make the socket %s/%s: %w", dir.Name(), name, err)
	}
	return os.NewFile(uintptr(s), name), nil
}
