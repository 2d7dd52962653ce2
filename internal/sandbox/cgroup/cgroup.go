// Package cgroup makes, limits, freezes, kills and removes control groups, v1 and v2.
//
// A process enters its cgroup itself: on v1 it writes 0 to each tasks file, on v2 it is
// born there (CLONE_INTO_CGROUP). Moving another process costs milliseconds.
//
//	cgroup.go     making, opening, removing        mounts.go  what is mounted where
//	resources.go  limits of a spec, as written     device.go  device rules, v1 and eBPF
//	control.go    freeze, kill, pids, statistics
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
)

// Group is one cgroup: a directory in each hierarchy.
type Group struct {
	path        string // from the top of each hierarchy
	hierarchies []Hierarchy
	unified     bool
	unlimited   []string
}

// Hierarchy is the group's directory in one mounted hierarchy.
type Hierarchy struct {
	Name        string   // of the mount's directory: "memory", "cpu,cpuacct", "unified"
	Links       []string // further names: "cpu" and "cpuacct" for "cpu,cpuacct"
	Controllers []string // v1; nil for v2
	Dir         string   // absolute path of the group
	V2          bool
}

// Create makes the cgroup path ("keg/<id>", from the top of every hierarchy) with the
// limits of r. A hierarchy that does not let us is left out; what was to be limited there
// is said in a warning.
func Create(path string, r *specs.LinuxResources) (_ *Group, warnings []string, err error) {
	g, err := at(path)
	if err != nil {
		return nil, nil, err
	}
	if g.unified && linux.InUserNS() && !linux.DelegatedCgroup().Inside {
		return nil, []string{noDelegation}, nil // a child could not enter it from here
	}
	made := &Group{path: g.path, unified: g.unified}
	undo := &Group{} // what was not there before
	defer func() {
		if err != nil {
			_ = undo.Remove(context.Background())
		}
	}()
	for _, h := range g.hierarchies {
		reused, err := h.make(len(g.path), g.unified)
		if refused(err) {
			warnings = append(warnings, fmt.Sprintf("cannot make a cgroup in %s (%s): its limits do not apply", h.Name, reason(err)))
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		made.hierarchies = append(made.hierarchies, h)
		if !reused {
			undo.hierarchies = append(undo.hierarchies, h)
		}
	}
	if len(made.hierarchies) == 0 && linux.InUserNS() {
		return nil, []string{noDelegation}, nil
	}
	w, err := made.Set(r)
	if err == nil {
		err = made.setDevices(r)
	}
	made.unlimited = w
	return made, append(warnings, w...), err
}

// noDelegation is said once, whatever was asked for.
const noDelegation = "the host gave no cgroup to this user, so limits of memory, processors and processes do not apply; " +
	"with cgroup v2 and systemd, start keg by: systemd-run --user --scope -p Delegate=yes"

// Unlimited are the limits that were asked for and that this host cannot give.
// Without a group they are all.
func (g *Group) Unlimited() []string {
	if g == nil {
		return []string{noDelegation}
	}
	return g.unlimited
}

// Open names an existing cgroup; nothing is looked at.
func Open(path string) (*Group, error) { return at(path) }

// Of returns the cgroup that process pid is in.
func Of(pid int) (*Group, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil, err
	}
	m, err := mounted()
	if err != nil {
		return nil, err
	}
	g := &Group{unified: m.unified}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		for _, h := range m.list {
			if strings.Join(h.Controllers, ",") == f[1] {
				h.Dir = filepath.Join(h.Dir, h.relative(f[2]))
				g.hierarchies = append(g.hierarchies, h.Hierarchy)
				if g.path == "" || h.V2 {
					g.path = f[2]
				}
			}
		}
	}
	return g, nil
}

func at(path string) (*Group, error) {
	m, err := mounted()
	if err != nil {
		return nil, err
	}
	clean := filepath.Clean("/" + path)
	if clean == "/" || strings.Contains(path, "..") || strings.ContainsAny(path, "\x00\n") {
		return nil, fault.Invalidf("invalid cgroup path %q", path)
	}
	g := &Group{path: clean, unified: m.unified}
	below := ""
	if m.unified && linux.InUserNS() {
		below = linux.DelegatedCgroup().Path
	}
	for _, h := range m.list {
		h.Dir = filepath.Join(h.Dir, below, clean)
		g.hierarchies = append(g.hierarchies, h.Hierarchy)
	}
	return g, nil
}

// Exists tells whether the group was made, in one hierarchy at least.
func (g *Group) Exists() bool {
	for _, h := range g.hierarchies {
		if unix.Access(h.Dir, unix.F_OK) == nil {
			return true
		}
	}
	return false
}

// Path is what Open takes.
func (g *Group) Path() string { return g.path }

// Unified tells whether the host has cgroup v2 only.
func (g *Group) Unified() bool { return g.unified }

// Hierarchies lists the group's directories.
func (g *Group) Hierarchies() []Hierarchy { return g.hierarchies }

// dir returns the group's directory for a v1 controller, or the v2 one, or "".
func (g *Group) dir(controller string) string {
	for _, h := range g.hierarchies {
		if h.V2 && g.unified {
			return h.Dir
		}
		for _, c := range h.Controllers {
			if c == controller {
				return h.Dir
			}
		}
	}
	return ""
}

// v2 returns the group's directory in the v2 hierarchy, on a hybrid host too, or "".
func (g *Group) v2() string {
	for _, h := range g.hierarchies {
		if h.V2 {
			return h.Dir
		}
	}
	return ""
}

// make creates the directory and what is missing above it, n bytes of its path being ours. It
// reports whether the directory was there already.
func (h *Hierarchy) make(n int, unified bool) (reused bool, err error) {
	err = unix.Mkdir(h.Dir, 0o755)
	switch {
	case err == nil && h.has("cpuset"):
		return false, fillCpuset(h.Dir)
	case err == nil:
		return false, nil
	case errors.Is(err, unix.EEXIST):
		return true, h.reuse()
	case !errors.Is(err, unix.ENOENT):
		return false, &fs.PathError{Op: "make cgroup", Path: h.Dir, Err: err}
	}
	// Another process may tidy a parent away between two steps: then once more.
	for range 10 {
		if err = h.descend(n, unified); !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
			break
		}
	}
	return false, err
}

// descend makes the directories of the last n bytes of h's path, from the top down.
func (h *Hierarchy) descend(n int, unified bool) error {
	top := h.Dir[:len(h.Dir)-n]
	at := top
	for _, name := range strings.Split(strings.Trim(h.Dir[len(top):], "/"), "/") {
		if err := h.prepare(at, unified); err != nil {
			return err
		}
		next := filepath.Join(at, name)
		err := unix.Mkdir(next, 0o755)
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return &fs.PathError{Op: "make cgroup", Path: next, Err: err}
		}
		if err == nil && next != h.Dir && h.has("cpuset") {
			if err := inheritCpuset(at, next); err != nil {
				return err
			}
		}
		at = next
	}
	if h.has("cpuset") {
		return fillCpuset(h.Dir)
	}
	return nil
}

// fillCpuset gives a group its parent's processors when the parent does not do so by itself: it
// is the top of the hierarchy, or another engine made it.
func fillCpuset(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "cpuset.mems"))
	if err != nil || len(strings.TrimSpace(string(b))) > 0 {
		return err
	}
	parent := filepath.Dir(dir)
	if b, err = os.ReadFile(filepath.Join(parent, "cpuset.mems")); err == nil && len(strings.TrimSpace(string(b))) == 0 {
		if err := fillCpuset(parent); err != nil {
			return err
		}
	}
	return inheritCpuset(parent, dir)
}

// reuse accepts a group that nobody is in: the rest of a crash.
func (h *Hierarchy) reuse() error {
	b, err := os.ReadFile(filepath.Join(h.Dir, "cgroup.procs"))
	if err != nil {
		return err
	}
	if len(b) > 0 {
		return fault.Conflictf("cgroup %s is in use", h.Dir)
	}
	return nil
}

// prepare makes a v2 directory pass its controllers on to its children.
func (h *Hierarchy) prepare(dir string, unified bool) error {
	if !h.V2 || !unified {
		return nil
	}
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	on, _ := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	for _, c := range strings.Fields(string(have)) {
		if containsWord(string(on), c) {
			continue
		}
		// One by one: a controller that cannot be had must not cost us the others.
		if err := write(dir, "cgroup.subtree_control", "+"+c); err != nil && !refused(err) &&
			!errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// inheritCpuset gives a new v1 directory its parent's processors, and its children
// theirs by themselves: in an empty cpuset nothing can run.
func inheritCpuset(parent, dir string) error {
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
		b, err := os.ReadFile(filepath.Join(parent, f))
		if err != nil {
			return err
		}
		if err := write(dir, f, strings.TrimSpace(string(b))); err != nil {
			return err
		}
	}
	return write(dir, "cgroup.clone_children", "1")
}

func (h *Hierarchy) has(controller string) bool {
	for _, c := range h.Controllers {
		if c == controller {
			return true
		}
	}
	return false
}

// Tasks opens the files that a single-threaded process writes "0" to in order to join, v1.
func (g *Group) Tasks() (files []*os.File, err error) {
	for _, h := range g.hierarchies {
		if h.V2 {
			continue
		}
		f, err := os.OpenFile(filepath.Join(h.Dir, "tasks"), os.O_WRONLY, 0)
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// Directory opens the v2 directory for CLONE_INTO_CGROUP; nil where there is none.
func (g *Group) Directory() (*os.File, error) {
	dir := g.v2()
	if dir == "" {
		return nil, nil
	}
	return os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
}

// Remove deletes the group and groups made inside of it. Processes that are just ending keep one
// busy for a moment; five seconds are allowed for that.
func (g *Group) Remove(ctx context.Context) error {
	if g == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var errs []error
	for _, h := range g.hierarchies {
		errs = append(errs, retry(ctx, func() error { return remove(h.Dir) }))
	}
	return errors.Join(errs...)
}

// Tidy removes the parent directory of groups, such as "keg", wherever it is empty by now.
func Tidy(parent string) {
	g, err := at(parent)
	if err != nil {
		return
	}
	for _, h := range g.hierarchies {
		_ = unix.Rmdir(h.Dir) // EBUSY: there are others
	}
}

// Leave takes this process to the top of the v2 hierarchy and removes dir, the group that it
// was in, if nobody else is there.
func Leave(dir string) {
	top := filepath.Dir(dir)
	if os.WriteFile(filepath.Join(top, "cgroup.procs"), []byte("0"), 0) == nil {
		_ = unix.Rmdir(dir)
	}
}

func remove(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	inner, _ := os.ReadDir(dir)
	for _, e := range inner {
		if e.IsDir() {
			if err := remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err = unix.Rmdir(dir); err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return &fs.PathError{Op: "remove cgroup", Path: dir, Err: err}
}

// retry repeats f while what it works on is busy.
func retry(ctx context.Context, f func() error) error {
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := f()
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

func write(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(value); err != nil {
		return fmt.Errorf("set %s to %q: %w", filepath.Join(dir, file), value, errors.Unwrap(err))
	}
	return nil
}

// refused: we may not, in one of the kernel's ways to say so.
func refused(err error) bool {
	return errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EROFS)
}

func reason(err error) string {
	var e syscall.Errno
	if errors.As(err, &e) {
		return e.Error()
	}
	return err.Error()
}

func containsWord(s, word string) bool {
	for _, f := range strings.Fields(s) {
		if f == word {
			return true
		}
	}
	return false
}
