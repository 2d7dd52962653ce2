// Package sandbox is the OCI runtime: it puts one process into its box.
//
// A pure function turns an OCI spec into a list of system calls; a raw-cloned child
// that never re-enters the Go runtime walks the list and ends in execve.
package sandbox

import (
	"context"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Options is what a spec cannot say.
type Options struct {
	Root  int         // descriptor of the (detached) mount that becomes "/"; -1: Spec.Root.Path
	Stdio [3]*os.File // of the process; ignored with Process.Terminal
	// NetNS is a descriptor of a prepared network namespace, or -1: by the spec.
	NetNS  int
	Cgroup string     // cgroup path below the engine's own parent, such as "keg/<id>"
	Files  []*os.File // further descriptors, 3 and up (preserve-fds)
	// Cache is a directory (0700) for compiled seccomp filters; "" compiles each time.
	Cache string
	// Recorded, when not nil, is called with pid and start time after the clone and
	// before execve: what it writes is on disk before the program can do anything.
	Recorded func(pid int, startTime uint64) error
	// Hold stops before execve until Process.Release (OCI create/start).
	Hold bool
}

// Process is a started process, a child of this one.
type Process struct {
	Pid     int
	PidFD   *os.File
	Console *os.File // pty master when the spec asks for a terminal
}

// Start makes the cgroup, namespaces and mounts of spec and executes its process. It must be
// called from the process that will wait for it. Errors name the operation and the
// object; *ExecError tells a program that is missing or cannot be executed.
func Start(ctx context.Context, spec *specs.Spec, o Options) (*Process, error) { panic("unwritten") }

// ExecError: the box is made but the program cannot be executed. Code is 126 or 127.
type ExecError struct {
	Code int
	Err  error
}

func (e *ExecError) Error() string { return e.Err.Error() }
func (e *ExecError) Unwrap() error { return e.Err }

// Exec runs p in the namespaces, cgroup and confinement of the running container
// whose init is pid; spec is the container's spec (seccomp, capabilities default).
func Exec(ctx context.Context, pid int, spec *specs.Spec, p *specs.Process, o Options) (*Process, error) {
	panic("unwritten")
}

// Wait reaps the process and returns its exit code (128+n for signal n).
func (p *Process) Wait() (code int, err error) { panic("unwritten") }

// Signal goes through the pidfd.
func (p *Process) Signal(sig int) error { panic("unwritten") }

// Release lets a held process go on to execve.
func (p *Process) Release() error { panic("unwritten") }
