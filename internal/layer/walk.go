package layer

import (
	"errors"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

// Entry is what Walk comes by. It is valid during the call.
type Entry struct {
	Path string // relative to the root
	Stat unix.Stat_t

	dir  int // the open directory that holds it
	base string
}

// IsDir reports whether it is a directory, Whiteout whether it is overlayfs's mark of a
// deletion.
func (e Entry) IsDir() bool    { return e.Stat.Mode&unix.S_IFMT == unix.S_IFDIR }
func (e Entry) Whiteout() bool { return whiteout(&e.Stat) }

// Xattr returns an extended attribute; "" when it is not there.
func (e Entry) Xattr(name string) (string, error) {
	v, _, err := getXattr(e.dir, e.base, name)
	return v, err
}

// Holds reports whether the directory has an entry of this name, a deletion too.
func (e Entry) Holds(name string) bool {
	fd, err := openat(e.dir, e.base, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.Faccessat(fd, name, unix.F_OK, unix.AT_SYMLINK_NOFOLLOW) == nil
}

// OpaqueXattr is the attribute that makes a directory hide what layers below have in it.
func OpaqueXattr(user bool) string { return opaqueXattr(user) }

// Walk visits what is below root, sorted by name, directories before what they hold;
// visit tells whether to go into one. It follows no link, and what vanishes meanwhile
// is passed over.
func Walk(root *os.File, visit func(Entry) (descend bool, err error)) error {
	return walk(int(root.Fd()), ".", "", visit)
}

func walk(dir int, base, p string, visit func(Entry) (bool, error)) error {
	fd, err := openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: p, Err: err}
	}
	defer unix.Close(fd)
	names, err := readNames(fd)
	if err != nil {
		return &os.PathError{Op: "list", Path: p, Err: err}
	}
	slices.Sort(names)
	for _, n := range names {
		e := Entry{Path: n, dir: fd, base: n}
		if p != "" {
			e.Path = p + "/" + n
		}
		if len(e.Path) > maxPath {
			return fault.Invalidf("path %.60q... is longer than %d bytes", e.Path, maxPath)
		}
		if err := unix.Fstatat(fd, n, &e.Stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			continue
		}
		down, err := visit(e)
		if err != nil {
			return err
		}
		if down && e.IsDir() {
			if err := walk(fd, n, e.Path, visit); err != nil {
				return err
			}
		}
	}
	return nil
}
