package layer

import (
	"errors"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"keg/internal/linux"
)

// entryPath names an entry of an open directory for system calls that take only a
// path. The last element is for calls that do not follow links (l*xattr).
func entryPath(dirFd int, base string) string { return linux.FDPath(dirFd) + "/" + base }

func setXattr(dirFd int, base, name, value string) error {
	return unix.Lsetxattr(entryPath(dirFd, base), name, []byte(value), 0)
}

func removeXattr(dirFd int, base, name string) error {
	err := unix.Lremovexattr(entryPath(dirFd, base), name)
	if errors.Is(err, unix.ENODATA) {
		return nil
	}
	return err
}

// listXattrs returns the names of an entry's attributes, sorted. File systems without
// them have none.
func listXattrs(dirFd int, base string) ([]string, error) {
	p := entryPath(dirFd, base)
	var small [256]byte
	buf := small[:]
	for {
		n, err := unix.Llistxattr(p, buf)
		switch {
		case errors.Is(err, unix.ERANGE):
			buf = make([]byte, 64<<10) // XATTR_LIST_MAX
			continue
		case errors.Is(err, unix.ENOTSUP):
			return nil, nil
		case err != nil:
			return nil, err
		case n == 0:
			return nil, nil
		}
		names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
		slices.Sort(names)
		return names, nil
	}
}

// getXattr returns one attribute; ok is false when it is not there.
func getXattr(dirFd int, base, name string) (value string, ok bool, err error) {
	p := entryPath(dirFd, base)
	var small [256]byte
	buf := small[:]
	for {
		n, err := unix.Lgetxattr(p, name, buf)
		switch {
		case errors.Is(err, unix.ERANGE):
			buf = make([]byte, 64<<10) // XATTR_SIZE_MAX
			continue
		case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP):
			return "", false, nil
		case err != nil:
			return "", false, err
		}
		return string(buf[:n]), true, nil
	}
}
