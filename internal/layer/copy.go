package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"keg/internal/linux"
)

// CopyTree copies what is below src into the empty directory dst, with all attributes,
// hard links, device nodes and overlayfs's marks. Others may be writing below src:
// nothing outside of it is ever read.
func CopyTree(ctx context.Context, src, dst *os.File) error {
	c := copier{ctx: ctx, first: map[inode]string{}, keep: func(string) bool { return true }}
	from, err := openat(int(src.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	to, err := openat(int(dst.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	c.top = to
	return c.into(from, to, "")
}

type copier struct {
	ctx   context.Context
	top   int              // of the copy; hard links are made from it
	first map[inode]string // the first name of a file with several
	keep  func(xattr string) bool
}

// into copies the entries of one open directory and then its attributes.
func (c *copier) into(from, to int, dir string) error {
	names, err := readNames(from)
	if err != nil {
		return err
	}
	for _, n := range names {
		if c.ctx != nil && c.ctx.Err() != nil {
			return c.ctx.Err()
		}
		if err := c.linked(from, to, n, dir+"/"+n); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("copy %q: %w", dir+"/"+n, err)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return err
	}
	if err := copyXattrs(from, ".", to, ".", c.keep); err != nil {
		return err
	}
	if err := unix.Fchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(to, st.Mode&permBits); err != nil {
		return err
	}
	return unix.UtimesNanoAt(to, "", []unix.Timespec{st.Mtim, st.Mtim}, unix.AT_EMPTY_PATH)
}

// linked copies an entry, or links to the copy of a file that has another name too.
func (c *copier) linked(from, to int, n, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(from, n, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return c.dir(from, to, n, name)
	}
	key := inode{uint64(st.Dev), st.Ino}
	if st.Nlink > 1 {
		if first, ok := c.first[key]; ok {
			d, base := splitPath(first[1:])
			fd, err := linux.OpenFdInRoot(c.top, d, unix.O_PATH|unix.O_DIRECTORY, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Linkat(fd, base, to, n, 0)
		}
	}
	if err := c.entry(from, to, n); err != nil {
		return err
	}
	if st.Nlink > 1 {
		c.first[key] = name
	}
	return nil
}

func (c *copier) dir(from, to int, n, name string) error {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW
	src, err := openat(from, n, flags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	if err := unix.Mkdirat(to, n, 0o700); err != nil {
		return err
	}
	dst, err := openat(to, n, flags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	return c.into(src, dst, name)
}

// entry copies anything but a directory.
func (c *copier) entry(from, to int, n string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(from, n, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if err := copyFile(from, to, n); err != nil {
			return err
		}
	case unix.S_IFLNK:
		target, err := readlinkat(from, n)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(target, to, n); err != nil {
			return err
		}
	default:
		if err := unix.Mknodat(to, n, st.Mode, int(st.Rdev)); err != nil {
			return err
		}
		if whiteout(&st) {
			return nil
		}
	}
	if err := unix.Fchownat(to, n, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := chmodNoFollow(to, n, st.Mode&permBits); err != nil {
			return err
		}
	}
	if err := copyXattrs(from, n, to, n, c.keep); err != nil {
		return err
	}
	return unix.UtimesNanoAt(to, n, []unix.Timespec{st.Mtim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// copyFile shares the blocks where the file system can, else copies in the kernel.
func copyFile(from, to int, n string) error {
	src, err := openat(from, n, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	in := os.NewFile(uintptr(src), n)
	defer in.Close()
	dst, err := openat(to, n, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	out := os.NewFile(uintptr(dst), n)
	defer out.Close()
	if st, err := in.Stat(); err != nil || !st.Mode().IsRegular() {
		return errors.Join(err, unix.ENOENT) // replaced since it was looked at
	}
	if unix.IoctlFileClone(dst, src) == nil {
		return nil
	}
	_, err = io.Copy(out, in) // copy_file_range(2)
	return err
}

func copyXattrs(from int, n string, to int, m string, keep func(string) bool) error {
	names, err := listXattrs(from, n)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !keep(name) {
			continue
		}
		v, ok, err := getXattr(from, n, name)
		if err != nil {
			return err
		}
		if ok {
			if err := setXattr(to, m, name, v); err != nil && !errors.Is(err, unix.ENOTSUP) {
				return fmt.Errorf("set attribute %s: %w", name, err)
			}
		}
	}
	return nil
}
