package snapshot

// Overlays whose layers are seen with other owners: each directory is mounted over itself with shifted
// ids, in a mount namespace that ends with its thread; the overlay keeps the mounts.

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

// A Shift is a map of ids.
type Shift struct {
	NS       *os.File // a user namespace that has it
	UID, GID int      // what 0 becomes
}

func (s *Store) mountShifted(m overlay, active string, to *Shift) (int, error) {
	type result struct {
		fd  int
		err error
	}
	done := make(chan result, 1)
	inThread(func() {
		err := s.shiftAll(m, active, int(to.NS.Fd()))
		if err == nil {
			err = to.become()
		}
		if err != nil {
			done <- result{-1, err}
			return
		}
		fd, err := s.mount(m)
		done <- result{fd, err}
	})
	r := <-done
	return r.fd, r.err
}

// shiftAll works in the calling thread, which is not used again.
func (s *Store) shiftAll(m overlay, active string, userns int) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return noOverlay(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	// Upper and work directory must be on one mount.
	dirs := []string{active}
	for _, l := range topmost(m.lower) {
		if l != active+"/upper" {
			dirs = append(dirs, l)
		}
	}
	for _, d := range dirs {
		if err := shift(d, userns); err != nil {
			return fmt.Errorf("shift the owners of %s: %w", d, err)
		}
	}
	return nil
}

// become makes the thread's files those of the mapped root. An overlay keeps who mounted it, and does with
// his rights what it does on its own: in the shifted upper directory, we are nobody.
func (to *Shift) become() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&hdr, &caps[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	_ = unix.Setfsgid(to.GID)
	_ = unix.Setfsuid(to.UID) // takes the rights over files away
	return os.NewSyscallError("capset", unix.Capset(&hdr, &caps[0]))
}

func shift(dir string, userns int) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns)}
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr)
	if errors.Is(err, unix.EINVAL) {
		return fault.Unsupportedf("the file system cannot be mounted with shifted ids: %w; use ext4, xfs or btrfs on a newer kernel, or leave --userns out", err)
	}
	if err != nil {
		return err
	}
	return unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
}
