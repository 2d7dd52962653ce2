// Package monitor is the process that owns one running container, or the RUN steps of
// one build: mounts, namespaces, ports, terminal, log, health, restart.
package monitor

import (
	"context"
	"io"
)

// Argv0 is the name under which keg starts itself as a monitor.
const Argv0 = "keg-monitor"

// Main is the second door of the binary: argv[0] is Argv0, args[0] "container" or "build".
// It returns the exit status of the monitor process.
func Main(args []string) int { panic("unwritten") }

// Roots are the directories of one engine.
type Roots struct{ Root, Run string }

// Stdio is what a front end connects to a process. Nil members are not attached.
type Stdio struct {
	In       io.Reader
	Out, Err io.Writer
	// Resize delivers terminal sizes (rows, columns); nil without a terminal.
	Resize <-chan [2]uint16
	// Signals delivers signals to pass on (sig-proxy).
	Signals <-chan int
	// DetachKeys end the attachment, not the process ("" = ctrl-p,ctrl-q; only with a terminal).
	DetachKeys []byte
}

// Conn is a connection to a monitor, over its socket or a socketpair.
type Conn struct{ rw io.ReadWriteCloser }

// Spawn starts the monitor of container id in its own session and cgroup and waits until the
// program was executed or an error came back. With attach set the stdio is connected
// before the program starts, so that not a byte is missed.
func Spawn(ctx context.Context, r Roots, id string, attach *Stdio) (*Conn, error) { panic("unwritten") }

// Dial connects to the monitor of a running container; fault.Conflict ("container x is not running").
func Dial(ctx context.Context, r Roots, id string) (*Conn, error) { panic("unwritten") }

// Exit is the end of a process.
type Exit struct {
	Code     int
	Detached bool // the detach keys were typed; the process goes on
	OOM      bool
}

// Attach copies stdio both ways until the process exits or the user detaches.
func (c *Conn) Attach(ctx context.Context, s Stdio) (Exit, error) { panic("unwritten") }

// Wait waits for the exit of the container's process as Spawn's attach does.
func (c *Conn) Wait(ctx context.Context) (Exit, error) { panic("unwritten") }

// ExecRequest is docker exec.
type ExecRequest struct {
	ID         string // exec id, 64 hex; "" picks one
	Cmd        []string
	Env        []string
	User, Dir  string
	TTY, Stdin bool
	Privileged bool
	Detach     bool
	Rows, Cols uint16
}

// Exec runs a process in the container; with Detach it returns once it was started.
func (c *Conn) Exec(ctx context.Context, r ExecRequest, s Stdio) (Exit, error) { panic("unwritten") }

// Kill sends a signal to the container's init.
func (c *Conn) Kill(ctx context.Context, sig int) error { panic("unwritten") }

// Stop sends the stop signal, waits, kills. timeout < 0 waits for ever. It marks the stop as a person's.
func (c *Conn) Stop(ctx context.Context, sig, timeout int) error { panic("unwritten") }

// Pause and Unpause freeze and thaw the cgroup.
func (c *Conn) Pause(ctx context.Context) error   { panic("unwritten") }
func (c *Conn) Unpause(ctx context.Context) error { panic("unwritten") }

// Resize sets the size of the container's terminal.
func (c *Conn) Resize(ctx context.Context, rows, cols uint16) error { panic("unwritten") }

// Close ends the connection, not the container.
func (c *Conn) Close() error { panic("unwritten") }

// Reap cleans up after a monitor that died: takes the lock, kills the cgroup until it is
// empty, releases network and mounts, records exit 137 "monitor lost". Harmless when
// the monitor lives.
func Reap(ctx context.Context, r Roots, id string) error { panic("unwritten") }

// Step is one RUN of a build.
type Step struct {
	Key        string   // active snapshot to run in
	Args       []string // argv
	Env        []string
	Dir, User  string
	Hostname   string
	Network    string // bridge, host, none
	ExtraHosts []string
	ShmSize    int64
	Stdin      []byte
	Mounts     []Mount
	Privileged bool
}

// Mount of a build step: a bind of a path of the host (opened by the caller's rules) or a tmpfs.
type Mount struct {
	Type, Source, Target string
	ReadOnly             bool
	Size                 int64
	Mode                 uint32
}

// Builder is the monitor of one build: a small process that forks the RUN steps.
type Builder struct{ c *Conn }

// StartBuilder starts it; it ends with Close or with its parent.
func StartBuilder(ctx context.Context, r Roots) (*Builder, error) { panic("unwritten") }

// Run executes one step; out gets its stdout and stderr. Several may run at once.
func (b *Builder) Run(ctx context.Context, s Step, out io.Writer) (code int, err error) {
	panic("unwritten")
}

func (b *Builder) Close() error { panic("unwritten") }
