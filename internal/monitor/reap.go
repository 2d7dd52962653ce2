package monitor

// Cleaning up after monitors that died: nothing of a container outlives them for long.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	dcontainer "github.com/moby/moby/api/types/container"

	"golang.org/x/sys/unix"

	"keg/internal/container"
	"keg/internal/delegate"
	"keg/internal/fault"
	"keg/internal/linux"
	"keg/internal/network"
	"keg/internal/sandbox/cgroup"
	"keg/internal/snapshot"
)

// lostCode is the exit code of a container whose monitor died: the kernel killed it.
const lostCode = 137

// unclean tells, for a container whose lock is free, that its monitor died.
func unclean(r Roots, id string, st *container.State) bool {
	switch st.Status {
	case dcontainer.StateRunning, dcontainer.StatePaused, dcontainer.StateRestarting:
		return true
	}
	_, err := os.Lstat(r.dir(id))
	return err == nil
}

// Reap cleans up after a monitor that died: takes the lock, kills the cgroup until it is
// empty, releases network and mounts, records exit 137 "monitor lost". Harmless when
// the monitor lives.
func Reap(ctx context.Context, r Roots, id string) error {
	s := container.Open(r.Root)
	lock, err := s.Lock(id)
	if fault.Is(err, fault.NotFound) {
		return reapRetired(ctx, r, s, id)
	}
	if err != nil || lock == nil {
		return err
	}
	defer lock.Close()
	st, err := s.State(id)
	if err != nil {
		return err
	}
	rec, err := s.Get(id)
	if err != nil {
		return err
	}
	// A --rm container that has exited only lacks its removal; its monitor holds the lock
	// until then.
	half := rec.Host.AutoRemove && st.Status == dcontainer.StateExited
	if !half && !unclean(r, id, st) {
		return nil
	}
	if err := sweepRemains(ctx, r, id); err != nil {
		return fmt.Errorf("clean up after the monitor of container %s: %w", id, err)
	}
	if rec.Host.AutoRemove {
		return discard(ctx, r, rec)
	}
	return s.PutState(id, lostState(st), false)
}

// lostState is what is known of a run whose monitor died: not its exit code.
func lostState(st *container.State) *container.State {
	out := *st
	switch st.Status {
	case dcontainer.StateRunning, dcontainer.StatePaused:
		out.ExitCode, out.Error, out.Finished = lostCode, "monitor lost", time.Now().UTC()
		if boot, err := linux.BootID(); err == nil && boot != st.BootID {
			out.Error = "monitor lost: the host was restarted"
		}
	case dcontainer.StateRestarting:
		out.Error = "monitor lost"
	}
	out.Status = dcontainer.StateExited
	if st.Started.IsZero() {
		out.Status = dcontainer.StateCreated
	}
	out.Pid, out.StartTime, out.SandboxKey, out.Networks, out.Ports = 0, 0, "", nil, nil
	return &out
}

// reapRetired finishes a removal that died half-way.
func reapRetired(ctx context.Context, r Roots, s *container.Store, id string) error {
	lock, err := s.LockRetired(id)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil || lock == nil {
		return err
	}
	defer lock.Close()
	if err := sweepRemains(ctx, r, id); err != nil {
		return err
	}
	return errors.Join(removeActive(r, id), s.Purge(id))
}

// ReapAll reaps every container whose monitor died, and every removal. It looks at locks
// and states only; what lives is not touched.
func ReapAll(ctx context.Context, r Roots) error {
	s := container.Open(r.Root)
	ids, err := s.List()
	if err != nil {
		return err
	}
	gone, err := s.Retired()
	errs := []error{err, s.Sweep()}
	for _, id := range append(ids, gone...) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := Reap(ctx, r, id); err != nil && !fault.Is(err, fault.NotFound) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// sweepRemains takes away the live things of container id, whose lock the caller holds. No process is
// found by its number: only the container's own cgroup is emptied.
func sweepRemains(ctx context.Context, r Roots, id string, groups ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	paths := []string{"keg/" + id}
	s := container.Open(r.Root)
	if st, err := s.State(id); err == nil && st.CgroupPath != "" && st.CgroupPath != paths[0] {
		paths = append(paths, st.CgroupPath)
	}
	for _, p := range append(paths, groups...) {
		if p == "" {
			continue
		}
		g, err := cgroup.Open(p)
		if err != nil {
			return err
		}
		if err := g.Kill(ctx); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("end the processes of cgroup %s: %w", p, err)
		}
		if err := g.Remove(ctx); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove cgroup %s: %w", p, err)
		}
	}
	if err := network.Open(r.Root, r.Run).Clean(id); err != nil {
		return fmt.Errorf("clean up the network: %w", err)
	}
	for unix.Unmount(r.shm(id), unix.MNT_DETACH) == nil { // once for each start that died
	}
	delegate.Unmount(filepath.Join(r.dir(id), "bundle"))
	return os.RemoveAll(r.dir(id))
}

// removeActive removes the writable layer.
func removeActive(r Roots, id string) error {
	s, err := snapshot.Open(r.Root)
	if err != nil {
		return err
	}
	return s.Remove(id)
}
