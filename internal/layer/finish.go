package layer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
)

// Finish completes a layer that leans on others, in its directory root, with below
// showing them merged: directories that its tar does not list get the attributes that
// they have below, those that are links below move to where the links lead, and hard
// links out of the layer get a copy of their target. changed reports that entries are
// no longer where the tar has them, so that a recipe is of no use.
func Finish(root, below *os.File, l Leans) (changed bool, err error) {
	f := finisher{int(root.Fd()), int(below.Fd())}
	for _, p := range l.Dirs {
		moved, err := f.dir(p)
		if err != nil {
			return false, fmt.Errorf("layer directory %q: %w", p, err)
		}
		changed = changed || moved
	}
	for _, k := range l.Links {
		if err := f.link(k); err != nil {
			return false, fmt.Errorf("layer hard link %q to %q: %w", k.Name, k.Target, err)
		}
	}
	return changed, nil
}

type finisher struct{ root, below int }

func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// dir gives a directory of the layer the attributes of the one below.
func (f finisher) dir(p string) (moved bool, err error) {
	under, err := linux.OpenFdInRoot(f.below, p, unix.O_PATH|unix.O_DIRECTORY, 0)
	if absent(err) {
		return false, nil // new here: it keeps what Apply gave it
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(under)
	real, err := f.realName(under)
	if err != nil {
		return false, err
	}
	if real != p {
		return true, f.move(p, real)
	}
	mine, err := linux.OpenFdInRoot(f.root, p, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if absent(err) {
		return false, nil // moved with a directory above it
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(mine)
	return false, copyAttrs(under, mine)
}

// realName is where an open directory of the view is, without links.
func (f finisher) realName(fd int) (string, error) {
	top, err := os.Readlink(linux.FDPath(f.below))
	if err != nil {
		return "", err
	}
	p, err := os.Readlink(linux.FDPath(fd))
	return strings.TrimPrefix(strings.TrimPrefix(p, strings.TrimSuffix(top, "/")), "/"), err
}

// move takes the entries of directory p of the layer to the directory real, so that
// the link at p below is not covered by a directory.
func (f finisher) move(p, real string) error {
	src, err := linux.OpenFdInRoot(f.root, p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(src)
	dst, err := f.mkdirs(real)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	if err := merge(src, dst); err != nil {
		return err
	}
	up, base := splitPath(p)
	upFd, err := linux.OpenFdInRoot(f.root, up, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(upFd)
	return unix.Unlinkat(upFd, base, unix.AT_REMOVEDIR)
}

// merge moves entries; of two files of a name the one that is in place stays.
func merge(src, dst int) error {
	names, err := readNames(src)
	if err != nil {
		return err
	}
	for _, n := range names {
		err := unix.Renameat2(src, n, dst, n, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EEXIST) {
			err = mergeOne(src, dst, n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func mergeOne(src, dst int, n string) error {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW
	s, err1 := openat(src, n, flags, 0)
	if err1 == nil {
		defer unix.Close(s)
	}
	d, err2 := openat(dst, n, flags, 0)
	if err2 == nil {
		defer unix.Close(d)
	}
	if err1 == nil && err2 == nil {
		if err := merge(s, d); err != nil {
			return err
		}
	}
	return RemoveAt(src, n)
}

// mkdirs makes a directory of the layer, and those above it, like the ones below.
func (f finisher) mkdirs(p string) (int, error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY
	fd, err := linux.OpenFdInRoot(f.root, p, flags, 0)
	if err == nil || !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	up, base := splitPath(p)
	upFd, err := f.mkdirs(up)
	if err != nil {
		return -1, err
	}
	defer unix.Close(upFd)
	if err := unix.Mkdirat(upFd, base, 0o755); err != nil {
		return -1, err
	}
	if fd, err = openat(upFd, base, flags|unix.O_NOFOLLOW, 0); err != nil {
		return -1, err
	}
	under, err := linux.OpenFdInRoot(f.below, p, flags, 0)
	if err == nil {
		err = copyAttrs(under, fd)
		unix.Close(under)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// link copies the target of a hard link up into the layer and links to it.
func (f finisher) link(k Link) error {
	tdir, tbase := splitPath(k.Target)
	under, err := linux.OpenFdInRoot(f.below, tdir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if absent(err) {
		return missingTarget()
	}
	if err != nil {
		return err
	}
	defer unix.Close(under)
	if tdir, err = f.realName(under); err != nil {
		return err
	}
	td, err := f.mkdirs(tdir)
	if err != nil {
		return err
	}
	defer unix.Close(td)
	if unix.Faccessat(td, tbase, 0, unix.AT_SYMLINK_NOFOLLOW) != nil {
		c := copier{first: map[inode]string{}, keep: keepsXattr}
		err := c.entry(under, td, tbase)
		if errors.Is(err, fs.ErrNotExist) {
			return missingTarget()
		}
		if err != nil {
			return err
		}
	}
	dir, base := splitPath(k.Name)
	d, err := linux.OpenFdInRoot(f.root, dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(d)
	if path.Join(tdir, tbase) == k.Name {
		return nil
	}
	return unix.Linkat(td, tbase, d, base, 0)
}

func missingTarget() error {
	return fault.Invalidf("neither the layer nor those below it have the target")
}

// copyAttrs gives dst owner, mode, attributes and time of src; both are O_PATH handles
// of directories.
func copyAttrs(src, dst int) error {
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return err
	}
	to := linux.FDPath(dst)
	if err := unix.Chown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(to, st.Mode&permBits); err != nil {
		return err
	}
	if err := copyXattrs(src, ".", dst, ".", keepsXattr); err != nil {
		return err
	}
	return utimes(dst, st.Mtim)
}
