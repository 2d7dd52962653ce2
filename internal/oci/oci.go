// Package oci makes an OCI runtime of the sandbox: containers by id in a directory, created
// and started by different processes, as containerd and Docker drive one.
//
//	oci.go     containers as written down, their status    spec.go   bundles, checked
//	create.go  create, start, run                          exec.go   one more process
//	end.go     kill, delete, pause, update                 hooks.go  programs of the caller
//
// The process of a created container waits in accept(2) on <root>/<id>/start.sock. Nobody
// else of ours lives while it does, nor while it runs.
package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
	"keg/internal/sandbox/cgroup"
)

// Runtime is a directory of containers.
type Runtime struct {
	Root    string // such as /run/keg/oci
	Systemd bool   // cgroupsPath is "slice:prefix:name"
	// Warn is told what could not be had; nil: nobody wants to know.
	Warn func(string)
}

// record is state.json.
type record struct {
	ID      string      `json:"id"`
	Bundle  string      `json:"bundle"`
	Pid     int         `json:"pid,omitempty"`
	Started uint64      `json:"startTime,omitempty"` // of the process, since boot
	Boot    string      `json:"boot,omitempty"`
	Created time.Time   `json:"created"`
	Cgroup  string      `json:"cgroup"`
	Exec    int         `json:"execStep,omitempty"`
	Spec    *specs.Spec `json:"spec"` // as it was when the container was created
}

// State is what "state" and "list" print: the specification's, and runc's additions.
type State struct {
	Version     string               `json:"ociVersion"`
	ID          string               `json:"id"`
	Pid         int                  `json:"pid"`
	Status      specs.ContainerState `json:"status"`
	Bundle      string               `json:"bundle"`
	Rootfs      string               `json:"rootfs"`
	Created     time.Time            `json:"created"`
	Annotations map[string]string    `json:"annotations,omitempty"`
	Owner       string               `json:"owner"`
}

// Paused is a status of runc's that the specification does not know.
const Paused specs.ContainerState = "paused"

const (
	recordFile = "state.json"
	startFile  = "start.sock"
)

// container is one that exists.
type container struct {
	r   *Runtime
	dir string
	rec record
}

func (r *Runtime) warn(ws ...string) {
	for _, w := range ws {
		if r.Warn != nil {
			r.Warn(w)
		}
	}
}

// checkID: an id is a name of a directory.
func checkID(id string) error {
	bad := strings.IndexFunc(id, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("_+-.", c))
	})
	if id == "" || id == "." || id == ".." || bad >= 0 || len(id) > 255 {
		return fault.Invalidf("invalid container ID %q: letters, digits and _+-. are allowed", id)
	}
	return nil
}

func (r *Runtime) load(id string) (*container, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	c := &container{r: r, dir: filepath.Join(r.Root, id)}
	b, err := os.ReadFile(filepath.Join(c.dir, recordFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fault.NotFoundf("container %q does not exist", id)
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &c.rec); err != nil || c.rec.Spec == nil {
		return nil, fmt.Errorf("%s cannot be read: %v; remove the directory when the container is gone", filepath.Join(c.dir, recordFile), err)
	}
	return c, nil
}

func (c *container) save() error {
	b, err := json.Marshal(&c.rec)
	if err != nil {
		return err
	}
	// /run is a tmpfs: rename is all the safety that there is.
	tmp := filepath.Join(c.dir, recordFile+".new")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(c.dir, recordFile))
}

// alive tells whether the container's process lives. A zombie does not.
func (c *container) alive() bool {
	if c.rec.Pid <= 0 {
		return false
	}
	if boot, err := linux.BootID(); err == nil && boot != c.rec.Boot {
		return false
	}
	fd, err := unix.PidfdOpen(c.rec.Pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	if at, err := linux.StartTime(c.rec.Pid); err != nil || at != c.rec.Started {
		return false
	}
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n == 0
}

// awaitEnd returns when the process has ended, or after a while.
func (c *container) awaitEnd() {
	for range 2000 {
		if !c.alive() {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func (c *container) status() specs.ContainerState {
	switch {
	case c.rec.Pid == 0:
		return specs.StateCreating
	case !c.alive():
		return specs.StateStopped
	case c.waits():
		return specs.StateCreated
	case c.frozen():
		return Paused
	}
	return specs.StateRunning
}

// waits: it was created and not yet started.
func (c *container) waits() bool {
	_, err := os.Lstat(filepath.Join(c.dir, startFile))
	return err == nil
}

func (c *container) frozen() bool {
	g, err := c.group()
	if err != nil {
		return false
	}
	frozen, _ := g.Frozen()
	return frozen
}

func (c *container) group() (*cgroup.Group, error) { return cgroup.Open(c.rec.Cgroup) }

func (c *container) state() State {
	s := State{Version: specs.Version, ID: c.rec.ID, Status: c.status(), Bundle: c.rec.Bundle, Created: c.rec.Created,
		Annotations: c.rec.Spec.Annotations, Owner: "root"}
	if c.rec.Spec.Root != nil {
		s.Rootfs = rootOf(c.rec.Spec, c.rec.Bundle)
	}
	if s.Status != specs.StateStopped {
		s.Pid = c.rec.Pid
	}
	return s
}

// hookState is what hooks read.
func (c *container) hookState(status specs.ContainerState) ([]byte, error) {
	s := specs.State{Version: specs.Version, ID: c.rec.ID, Status: status, Bundle: c.rec.Bundle, Annotations: c.rec.Spec.Annotations}
	if status != specs.StateStopped {
		s.Pid = c.rec.Pid
	}
	return json.Marshal(s)
}

// State tells how a container is.
func (r *Runtime) State(id string) (State, error) {
	c, err := r.load(id)
	if err != nil {
		return State{}, err
	}
	return c.state(), nil
}

// List tells of all containers, by age. What cannot be read is left out.
func (r *Runtime) List() (out []State, err error) {
	names, err := os.ReadDir(r.Root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if c, err := r.load(n.Name()); err == nil {
			out = append(out, c.state())
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Created.Before(out[j].Created) })
	return out, nil
}

// Pids lists the processes of a container.
func (r *Runtime) Pids(id string) ([]int, error) {
	c, err := r.load(id)
	if err != nil {
		return nil, err
	}
	g, err := c.group()
	if err != nil {
		return nil, err
	}
	return g.Pids()
}
