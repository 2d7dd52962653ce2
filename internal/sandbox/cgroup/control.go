package cgroup

// Freeze, kill, list, measure.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

// Freeze stops every process of the group; it returns when they have stopped.
func (g *Group) Freeze(ctx context.Context) error { return g.freeze(ctx, true) }

// Thaw lets them go on.
func (g *Group) Thaw(ctx context.Context) error { return g.freeze(ctx, false) }

func (g *Group) freeze(ctx context.Context, on bool) error {
	if dir := g.dir("freezer"); dir != "" && !g.unified {
		want := map[bool]string{true: "FROZEN", false: "THAWED"}[on]
		// Processes that fork meanwhile keep v1 in FREEZING; asking again finishes it.
		return poll(ctx, func() (bool, error) {
			if err := write(dir, "freezer.state", want); err != nil {
				return false, err
			}
			b, err := os.ReadFile(filepath.Join(dir, "freezer.state"))
			return strings.TrimSpace(string(b)) == want, err
		})
	}
	dir := g.v2()
	if dir == "" {
		return fault.Unsupportedf("the freezer cgroup controller is not available: the container cannot be paused")
	}
	n := map[bool]string{true: "1", false: "0"}[on]
	if err := write(dir, "cgroup.freeze", n); err != nil {
		return err
	}
	return poll(ctx, func() (bool, error) {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
		return err == nil && strings.Contains(string(b), "frozen "+n), err
	})
}

// poll asks until done, with growing pauses.
func poll(ctx context.Context, done func() (bool, error)) error {
	for wait := 50 * time.Microsecond; ; wait = min(2*wait, 20*time.Millisecond) {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// Kill ends every process of the group and returns when it is empty. A group that is gone is empty.
func (g *Group) Kill(ctx context.Context) error {
	if dir := g.v2(); dir != "" {
		if err := killAll(dir); err == nil || !errors.Is(err, os.ErrNotExist) && !refused(err) {
			if err != nil {
				return err
			}
			_ = g.Thaw(ctx) // what is frozen by v1 does not die
			if err := g.empty(ctx); err != nil {
				return err
			}
		}
	}
	return poll(ctx, func() (bool, error) {
		pids, err := g.Pids()
		if err != nil || len(pids) == 0 {
			return err == nil, err
		}
		// Frozen, none of them can fork away from the list.
		fctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		_ = g.Freeze(fctx)
		cancel()
		if pids, err = g.Pids(); err != nil {
			return false, err
		}
		for _, p := range pids {
			if e := unix.Kill(p, unix.SIGKILL); e != nil && !errors.Is(e, unix.ESRCH) {
				err = fmt.Errorf("kill process %d: %w", p, e)
			}
		}
		_ = g.Thaw(ctx)
		return false, err
	})
}

// killAll uses cgroup.kill (Linux 5.14), which reaches what forks meanwhile.
func killAll(dir string) error {
	err := write(dir, "cgroup.kill", "1")
	if errors.Is(err, os.ErrNotExist) {
		if _, e := os.Stat(dir); errors.Is(e, os.ErrNotExist) {
			return nil
		}
	}
	return err
}

func (g *Group) empty(ctx context.Context) error {
	dir := g.v2()
	return poll(ctx, func() (bool, error) {
		pids, err := tree(dir)
		return len(pids) == 0, err
	})
}

// Pids lists the processes of the group and of groups inside of it.
func (g *Group) Pids() (out []int, err error) {
	seen := map[int]bool{}
	for _, h := range g.hierarchies {
		pids, err := tree(h.Dir)
		if err != nil {
			return nil, err
		}
		for _, p := range pids {
			if !seen[p] {
				seen[p] = true
				out = append(out, p)
			}
		}
		if len(h.Controllers) > 0 && h.Controllers[0] != "name=systemd" && len(pids) > 0 {
			break // all hierarchies agree, unless a process was moved out of one
		}
	}
	return out, nil
}

func tree(dir string) (out []int, err error) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, f := range strings.Fields(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
			out = append(out, pid)
		}
	}
	inner, err := os.ReadDir(dir)
	if err != nil {
		return out, nil
	}
	for _, e := range inner {
		if e.IsDir() {
			pids, err := tree(filepath.Join(dir, e.Name()))
			if err != nil {
				return nil, err
			}
			out = append(out, pids...)
		}
	}
	return out, nil
}

// Stats measures memory, cpu, pids and block I/O.
func (g *Group) Stats() (*cgroups.Stats, error) {
	o := &cgroups.StatsOptions{Controllers: cgroups.Memory | cgroups.CPU | cgroups.Pids | cgroups.IO}
	if g.unified {
		m, err := fs2.NewManager(&cgroups.Cgroup{Resources: &cgroups.Resources{}}, g.v2())
		if err != nil {
			return nil, err
		}
		return m.Stats(o)
	}
	paths := map[string]string{}
	for _, c := range []string{"memory", "cpu", "cpuacct", "pids", "blkio"} {
		if dir := g.dir(c); dir != "" {
			paths[c] = dir
		}
	}
	m, err := fs.NewManager(&cgroups.Cgroup{Resources: &cgroups.Resources{}}, paths)
	if err != nil {
		return nil, err
	}
	return m.Stats(o)
}

// OOMKills counts the processes of the group that the kernel killed for lack of memory.
func (g *Group) OOMKills() (uint64, error) {
	dir, file := g.dir("memory"), "memory.oom_control"
	if g.unified {
		file = "memory.events"
	}
	if dir == "" {
		return 0, nil
	}
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
			return strconv.ParseUint(v, 10, 64)
		}
	}
	return 0, nil
}

// Frozen tells whether the group is frozen.
func (g *Group) Frozen() (bool, error) {
	dir, file, want := g.dir("freezer"), "freezer.state", "FROZEN"
	if dir == "" || g.unified {
		dir, file, want = g.v2(), "cgroup.freeze", "1"
	}
	if dir == "" {
		return false, nil
	}
	b, err := os.ReadFile(filepath.Join(dir, file))
	return strings.TrimSpace(string(b)) == want, err
}
