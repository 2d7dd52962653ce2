package volume

// The first use of an empty volume copies what the image has at its place: files,
// owners, modes, times, xattrs. The image is hostile and so may be the volume, which other
// containers write to meanwhile: everything goes through descriptors.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"keg/internal/disk"
	"keg/internal/linux"
)

// CopyUp copies the directory path below rootFd into the volume, or the directory subpath of it, when that is empty and
// path exists in the image. Two containers that start at once copy once.
func (s *Store) CopyUp(ctx context.Context, rootFd int, path, name, subpath string) error {
	src, err := linux.OpenInRoot(rootFd, path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer src.Close()
	l, err := disk.LockFile(ctx, filepath.Join(s.volume(name), "copy.lock"))
	if err != nil {
		return err
	}
	defer l.Unlock()
	dst, err := s.open(name, subpath, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOTDIR) && subpath != "" {
		return nil // a file is mounted
	}
	if err != nil {
		return err
	}
	defer dst.Close()
	if names, err := dst.Readdirnames(1); len(names) > 0 || err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	c := copier{links: map[inode]string{}, top: dst}
	if err := c.dir(src, dst, "."); err != nil {
		return fmt.Errorf("copy %s into volume %s: %w", path, name, err)
	}
	return nil
}

type inode struct{ dev, ino uint64 }

type copier struct {
	links map[inode]string // of files with several names: where the first one went
	top   *os.File
	depth int
}

const maxDepth = 1000 // PATH_MAX/2 is the most that a path can name

// dir copies the entries of src, then src's own attributes.
func (c *copier) dir(src, dst *os.File, rel string) error {
	if c.depth++; c.depth > maxDepth {
		return fmt.Errorf("%s: too deep", rel)
	}
	defer func() { c.depth-- }()
	ents, err := src.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, e := range ents {
		if err := c.entry(src, dst, e.Name(), rel+"/"+e.Name()); err != nil {
			return err
		}
	}
	return copyAttributes(int(src.Fd()), int(dst.Fd()))
}

func (c *copier) entry(src, dst *os.File, name, rel string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(src.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "stat", Path: rel, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
		k := inode{st.Dev, st.Ino}
		if first, ok := c.links[k]; ok {
			return c.link(first, dst, name)
		}
		c.links[k] = rel
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		err = c.subdir(src, dst, name, rel)
	case unix.S_IFREG:
		err = copyFile(src, dst, name)
	case unix.S_IFLNK:
		err = copyLink(src, dst, name, &st)
	case unix.S_IFSOCK:
		return nil // nobody listens on a copy
	default:
		err = copyNode(dst, name, &st)
	}
	if err != nil {
		return &fs.PathError{Op: "copy", Path: rel, Err: err}
	}
	return nil
}

func (c *copier) link(first string, dst *os.File, name string) error {
	// first was made by us; a peer that swapped a parent for a link stays inside.
	f, err := linux.OpenInRoot(int(c.top.Fd()), first, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Linkat(unix.AT_FDCWD, linux.FDPath(int(f.Fd())), int(dst.Fd()), name, unix.AT_SYMLINK_FOLLOW)
}

func openChild(dir *os.File, name string, flags int, mode uint32) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (c *copier) subdir(src, dst *os.File, name, rel string) error {
	s, err := openChild(src, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := unix.Mkdirat(int(dst.Fd()), name, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	d, err := openChild(dst, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	return c.dir(s, d, rel)
}

func copyFile(src, dst *os.File, name string) error {
	// O_NONBLOCK: what became a FIFO since the stat must not hang us.
	s, err := openChild(src, name, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer s.Close()
	d, err := openChild(dst, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer d.Close()
	if _, err := io.Copy(d, s); err != nil { // reflink or copy_file_range where they work
		return err
	}
	return copyAttributes(int(s.Fd()), int(d.Fd()))
}

func copyLink(src, dst *os.File, name string, st *unix.Stat_t) error {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(src.Fd()), name, buf)
	if err != nil {
		return err
	}
	if err := unix.Symlinkat(string(buf[:n]), int(dst.Fd()), name); err != nil {
		return err
	}
	if err := unix.Fchownat(int(dst.Fd()), name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	return unix.UtimesNanoAt(int(dst.Fd()), name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// copyNode makes a FIFO or device with its owner and mode.
func copyNode(dst *os.File, name string, st *unix.Stat_t) error {
	if err := unix.Mknodat(int(dst.Fd()), name, st.Mode&unix.S_IFMT, int(st.Rdev)); err != nil {
		return err
	}
	if err := unix.Fchownat(int(dst.Fd()), name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	return unix.Fchmodat(int(dst.Fd()), name, st.Mode&0o7777, 0)
}

// copyAttributes: owner before mode, since chown clears set-id bits; times last.
func copyAttributes(src, dst int) error {
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return err
	}
	if err := unix.Fchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := copyXattrs(src, dst); err != nil {
		return err
	}
	if err := unix.Fchmod(dst, st.Mode&0o7777); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, linux.FDPath(dst), []unix.Timespec{st.Atim, st.Mtim}, 0)
}

func copyXattrs(src, dst int) error {
	names := make([]byte, 64<<10)
	n, err := unix.Flistxattr(src, names)
	if err != nil || n == 0 {
		if errors.Is(err, unix.ENOTSUP) {
			return nil
		}
		return err
	}
	value := make([]byte, 64<<10)
	for _, name := range splitNames(names[:n]) {
		k, err := unix.Fgetxattr(src, name, value)
		if err != nil {
			return err
		}
		if err := unix.Fsetxattr(dst, name, value[:k], 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// splitNames cuts a list of NUL-terminated names. Those of overlay itself are no content.
func splitNames(b []byte) (out []string) {
	for name := range strings.SplitSeq(string(b), "\x00") {
		if name != "" && !strings.HasPrefix(name, "trusted.overlay.") && !strings.HasPrefix(name, "user.overlay.") {
			out = append(out, name)
		}
	}
	return out
}
