// What a copied file consists of: data, owner, mode, attributes, times.
package builder

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// bigFile is the size from which the kernel is asked to copy, past the overlay.
const bigFile = 64 << 10

// content copies a file's data. Overlayfs neither shares blocks with nor copies from
// another file system inside the kernel; the file below it does, and a new file has
// its data there. Nobody reads it through this mount.
func (c *copier) content(out, in int, size int64, to string) error {
	if c.upper > 0 && size >= bigFile {
		below, err := openBeneath(c.upper, to, unix.O_WRONLY, 0)
		if err == nil {
			defer unix.Close(below)
			defer startWriting(below, size)
			return copyData(below, in, size, c.buffer)
		}
	}
	return copyData(out, in, size, c.buffer)
}

// startWriting has a large new file written to the disk while more is copied: it will be waited for at the end.
func startWriting(fd int, size int64) {
	if size >= largeFile {
		_ = unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
}

// copyData copies size bytes or to the end: by sharing blocks, inside the kernel, or by
// reading and writing, whichever both file systems can.
func copyData(out, in int, size int64, buffer []byte) error {
	big := size >= bigFile // for small files two refusals cost more than the copy
	if big && unix.IoctlFileClone(out, in) == nil {
		return nil
	}
	for big && size > 0 {
		n, err := unix.CopyFileRange(in, nil, out, nil, int(min(size, 1<<30)), 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n == 0 || err != nil {
			break // another way, from where this one came to
		}
		size -= int64(n)
	}
	for {
		n, err := unix.Read(in, buffer)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n <= 0 || err != nil {
			return err
		}
		for b := buffer[:n]; len(b) > 0; {
			m, err := unix.Write(out, b)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return err
			}
			b = b[m:]
		}
	}
}

func (c *copier) ownerOf(e *entry) (uid, gid int) {
	switch {
	case c.chown != nil:
		return c.chown.uid, c.chown.gid
	case c.from == nil || !c.from.owned:
		return 0, 0 // what comes from the context is root's
	}
	return int(e.st.Uid), int(e.st.Gid)
}

// openAttributes gives a new file owner, mode, attributes and times. The owner first:
// changing it clears set-id bits and capabilities.
func (c *copier) openAttributes(e *entry, in, out int) error {
	uid, gid := c.ownerOf(e)
	if err := chown(func() error { return unix.Fchown(out, uid, gid) }, uid, gid); err != nil {
		return err
	}
	if err := unix.Fchmod(out, c.chmod.apply(e.st.Mode)); err != nil {
		return err
	}
	if err := copyXattrs(in, out); err != nil {
		return err
	}
	return unix.UtimesNanoAt(out, "", []unix.Timespec{e.st.Atim, e.st.Mtim}, unix.AT_EMPTY_PATH)
}

// chown is skipped where it would change nothing and is not ours to do.
func chown(do func() error, uid, gid int) error {
	err := do()
	if errors.Is(err, unix.EPERM) && os.Geteuid() != 0 && (uid == 0 && gid == 0 || uid == os.Geteuid()) {
		return nil
	}
	return err
}

// attributes is openAttributes for what is not opened: directories, links, devices.
func (c *copier) attributes(s *source, e *entry, parent int, name string) error {
	uid, gid := c.ownerOf(e)
	err := chown(func() error { return unix.Fchownat(parent, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW) }, uid, gid)
	if err != nil {
		return &fs.PathError{Op: "chown", Path: name, Err: err}
	}
	if !e.is(unix.S_IFLNK) {
		if err := chmodAt(parent, name, c.chmod.apply(e.st.Mode)); err != nil {
			return err
		}
	}
	if e.is(unix.S_IFDIR) && e.sum != noXattrs() {
		in, err := openBeneath(int(c.from.root.Fd()), s.at(e), unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer unix.Close(in)
		out, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(out)
		if err := copyXattrs(in, out); err != nil {
			return err
		}
	}
	return setTimes(parent, name, e.st.Atim, e.st.Mtim)
}

// copyXattrs carries the kept attributes over, as far as the file system takes them.
func copyXattrs(in, out int) error {
	names, err := xattrNames(in)
	if err != nil {
		return err
	}
	for _, n := range names {
		v, err := xattrValue(in, n)
		if err != nil {
			return err
		}
		err = unix.Fsetxattr(out, n, v, 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("set attribute %s: %w", n, err)
		}
	}
	return nil
}

// chmodAt changes a mode without following a symlink: through an O_PATH descriptor,
// since fchmodat2 is younger than the kernels we run on (Linux 6.6).
func chmodAt(parent int, name string, mode uint32) error {
	fd, err := unix.Openat(parent, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	if err := unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), mode); err != nil {
		return &fs.PathError{Op: "chmod", Path: name, Err: err}
	}
	return nil
}

func setTimes(parent int, name string, atime, mtime unix.Timespec) error {
	err := unix.UtimesNanoAt(parent, name, []unix.Timespec{atime, mtime}, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return &fs.PathError{Op: "set times of", Path: name, Err: err}
	}
	return nil
}
