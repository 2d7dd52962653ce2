package layer

import (
	"errors"
	"strconv"

	"golang.org/x/sys/unix"
)

// RemoveAt deletes the entry base of an open directory with all below it, following
// no link. What is not there is no error. However deep the tree, few descriptors are
// open: what lies too deep is moved up first.
func RemoveAt(dirFd int, base string) error {
	err := unix.Unlinkat(dirFd, base, 0)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM):
		return err
	}
	if unix.Unlinkat(dirFd, base, unix.AT_REMOVEDIR) == nil {
		return nil
	}
	r := remover{top: dirFd, base: base}
	return r.dir(dirFd, base, 0)
}

type remover struct {
	top   int
	base  string
	moved int
}

const removeDepth = 64

func (r *remover) dir(parent int, name string, depth int) error {
	fd, err := openDirAt(parent, name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// What another process adds meanwhile is found by the next round.
	for range 8 {
		if err := r.entries(fd, depth); err != nil {
			return err
		}
		err = unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
		if !errors.Is(err, unix.ENOTEMPTY) {
			break
		}
	}
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// openDirAt opens a directory for listing; one that forbids it is opened up, since it
// is to go anyway.
func openDirAt(parent int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW
	fd, err := openat(parent, name, flags, 0)
	if errors.Is(err, unix.EACCES) && chmodNoFollow(parent, name, 0o700) == nil {
		return openat(parent, name, flags, 0)
	}
	return fd, err
}

func (r *remover) entries(fd, depth int) error {
	names, err := readNames(fd)
	if errors.Is(err, unix.ENOENT) {
		return nil // somebody else removed the directory meanwhile
	}
	if err != nil {
		return err
	}
	for _, n := range names {
		err := unix.Unlinkat(fd, n, 0)
		if errors.Is(err, unix.EACCES) { // a directory without w or x, when not root
			if err = unix.Fchmod(fd, 0o700); err == nil {
				err = unix.Unlinkat(fd, n, 0)
			}
		}
		switch {
		case err == nil, errors.Is(err, unix.ENOENT):
		case errors.Is(err, unix.EISDIR), errors.Is(err, unix.EPERM):
			if err := r.subdir(fd, n, depth+1); err != nil {
				return err
			}
		default:
			return err
		}
	}
	return nil
}

func (r *remover) subdir(fd int, n string, depth int) error {
	if depth < removeDepth {
		return r.dir(fd, n, depth)
	}
	r.moved++
	up := r.base + ".deep" + strconv.Itoa(r.moved)
	if err := unix.Renameat(fd, n, r.top, up); err != nil {
		return err
	}
	return r.dir(r.top, up, 0)
}

// readNames lists an open directory from its beginning, unsorted.
func readNames(fd int) ([]string, error) {
	if _, err := unix.Seek(fd, 0, 0); err != nil {
		// A handle that only names the directory (O_PATH): open it for reading.
		rd, err := openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, err
		}
		defer unix.Close(rd)
		fd = rd
	}
	var names []string
	buf := make([]byte, 16<<10)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			return names, nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}
