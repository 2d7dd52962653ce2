// Package monitor is the process that owns one running container, or the RUN steps of
// one build: mounts, namespaces, ports, terminal, log, health, restart.
package monitor

import (
	"io"
	"path/filepath"

	"keg/internal/launch"
)

// Argv0 is the name under which keg starts itself as a monitor.
const Argv0 = launch.Argv0

// Roots are the directories of one engine.
type Roots struct{ Root, Run string }

// dir is what a container has in the run directory, gone at reboot. It exists while a
// monitor owns the container: with a free lock it tells of one that died.
func (r Roots) dir(id string) string    { return filepath.Join(r.Run, id) }
func (r Roots) shm(id string) string    { return filepath.Join(r.Run, id, "shm") }
func (r Roots) socket(id string) string { return filepath.Join(r.Run, id, "monitor.sock") }

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
	Stay       bool // no keys end the attachment
}

// Exit is the end of a process.
type Exit struct {
	Code     int
	Detached bool // the detach keys were typed; the process goes on
	OOM      bool
}

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
	Ulimits    []Ulimit
	Limits     Limits
	Privileged bool
	Terminal   *Size // it has a terminal of this size, and whoever asked for it types there
}

// Size of a terminal.
type Size struct{ Rows, Cols uint16 }

// Limits of a step, as in a HostConfig.
type Limits struct {
	Memory, MemorySwap             int64
	CPUShares, CPUPeriod, CPUQuota int64
	CpusetCpus, CpusetMems         string
	CgroupParent                   string
}

// Ulimit of a step.
type Ulimit struct {
	Name       string
	Soft, Hard int64
}

// Mount of a build step: a bind of a path of the host (opened by the caller's rules) or a tmpfs.
type Mount struct {
	Type, Source, Target string
	ReadOnly             bool
	Size                 int64
	Mode                 uint32
}

// Info is what a running container's monitor knows and no record holds.
type Info struct {
	Pid     int
	Paused  bool
	Monitor int // pid of the monitor
	Execs   []ExecInfo
}

// ExecInfo is one process started by Exec.
type ExecInfo struct {
	ID       string
	Pid      int
	Running  bool
	ExitCode int
	Request  ExecRequest
}
