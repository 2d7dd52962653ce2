// Package sandbox is the OCI runtime: it puts one process into its box.
//
// A pure function turns an OCI spec into a list of system calls; a raw-cloned child
// that never re-enters the Go runtime walks the list and ends in execve.
//
//	sandbox.go    what callers use: Start, Exec, Process
//	plan.go       spec -> program of a container's first process; process.go its last stage
//	exec.go       the same for one more process in a running container
//	program.go    programs as data; child.go walks them after the clone; spawn.go clones
//	furnish.go    what the parent makes first: detached mounts, targets (tree.go), devices
//	user.go       names in an image's etc/passwd and etc/group
package sandbox

import (
	"context"
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"keg/internal/fault"
	"keg/internal/sandbox/cgroup"
	"keg/internal/sandbox/seccomp"
)

// Options is what a spec cannot say.
type Options struct {
	Root  int         // descriptor of the (detached) mount that becomes "/"; -1: Spec.Root.Path
	Stdio [3]*os.File // of the process; ignored with Process.Terminal; nil is /dev/null
	// NetNS is a descriptor of a prepared network namespace, or -1: by the spec.
	NetNS int
	// UserNS, when not nil, is the user namespace that the spec's maps describe (Namespaces); the
	// process joins it instead of making one, and NetNS may belong to it.
	UserNS *os.File
	Cgroup string     // cgroup path below the engine's own parent, such as "keg/<id>"; "": stay where the engine is
	Files  []*os.File // further descriptors, 3 and up (preserve-fds)
	// Private are files that no child may hold, not even before its execve: locks.
	Private []*os.File
	// Cache is a directory (0700) for compiled seccomp filters; "" compiles each time.
	Cache string
	// DefaultSeccomp applies the built-in profile when the spec has none.
	DefaultSeccomp bool
	// Recorded, when not nil, is called with pid and start time after the clone and
	// before execve: what it writes is on disk before the program can do anything.
	Recorded func(pid int, startTime uint64) error
	// Strict makes an error of a limit that this host cannot give (runtime-spec runtime.md "Create");
	// without, it is a warning.
	Strict bool
	// Hold stops before execve until Process.Release.
	Hold bool
	// Go, when not nil, is a listening Unix socket (SOCK_SEQPACKET): the process stops before execve
	// until somebody calls Go on its address. It outlives this process.
	Go *os.File
	// Outlive lets the process go on when this one ends.
	Outlive bool
	// Hooks, when not nil, is called once the namespaces are there and before the root is entered.
	Hooks func(pid int) error
}

// Process is a started process, a child of this one.
type Process struct {
	Pid     int
	PidFD   *os.File
	Console *os.File // pty master when the spec asks for a terminal
	// Cgroup is what Start made, nil without Options.Cgroup. Whoever waits removes it.
	Cgroup *cgroup.Group
	// Warnings are what could not be had: limits, capabilities, controllers.
	Warnings []string
	// ExecStep is the number of the step that executes the program, for Go.
	ExecStep int

	held *held
}

// ExecError: the box is made but the program cannot be executed. Code is 126 or 127.
type ExecError struct {
	Code int
	Err  error
}

func (e *ExecError) Error() string { return e.Err.Error() }
func (e *ExecError) Unwrap() error { return e.Err }

// ExitCode is the status that a command line ends with because of e.
func (e *ExecError) ExitCode() int { return e.Code }

var (
	errNoCommand = fault.Invalidf("the spec has no command")
	errNul       = fault.Invalidf("the command, its environment or its working directory holds a NUL byte")
)

// Start makes the cgroup, namespaces and mounts of spec and executes its process. It must be
// called from the process that will wait for it. Errors name the operation and the
// object; *ExecError tells a program that is missing or cannot be executed.
func Start(ctx context.Context, spec *specs.Spec, o Options) (_ *Process, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if spec.Linux == nil {
		return nil, fault.Invalidf("the spec has no linux section")
	}
	s := &start{box: newBox(spec, &o)}
	defer func() {
		if err != nil {
			s.box.close()
			return
		}
		// A mount that found no place, such as a mask for what this kernel has not, is dissolved when its
		// descriptor is closed, and that waits for all processors: a tenth of a millisecond each.
		go s.box.close()
	}()
	if err := s.decide(); err != nil {
		return nil, err
	}
	if o.Cgroup != "" {
		var warnings []string
		if s.box.group, warnings, err = cgroup.Create(o.Cgroup, spec.Linux.Resources); err != nil {
			return nil, err
		}
		s.layout.warn(warnings...)
		defer func() {
			if err != nil {
				_ = s.box.group.Remove(context.WithoutCancel(ctx))
			}
		}()
		if w := s.box.group.Unlimited(); o.Strict && len(w) > 0 {
			return nil, fault.Unsupportedf("%s", strings.Join(w, "; "))
		}
	}
	if err := onSpawner(s.box.furnish); err != nil {
		return nil, err
	}
	return s.run(ctx)
}

// LoadSeccomp reads a profile in Docker's JSON format for a process with these capabilities.
func LoadSeccomp(profile []byte, caps []string) (*specs.LinuxSeccomp, error) {
	return seccomp.Load(profile, caps)
}
