// Files of the build context or of a stage, read through descriptors below a root.
package builder

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
	"keg/internal/weakness"
)

// tree is a directory whose names are foreign. A path in it has no leading slash; "."
// is the root.
type tree struct {
	root   *os.File
	ignore *ignore // nil: everything is there
	owned  bool    // false for the context: whose a file is there does not count
	sums   *sums   // nil: digests are not remembered
}

// openContext opens the context directory itself; what is below is never joined to
// its path.
func openContext(dir string) (*buildContext, error) {
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	switch {
	case dir == "" || notExist(err):
		return nil, fault.NotFoundf("unable to prepare context: path %q not found", dir)
	case errors.Is(err, unix.ENOTDIR):
		return nil, fault.Invalidf("unable to prepare context: context must be a directory: %s", dir)
	case err != nil:
		return nil, err
	}
	return &buildContext{tree: tree{root: f}, dir: dir}, nil
}

// buildContext is the tree that COPY reads.
type buildContext struct {
	tree
	dir string
}

func (c *buildContext) close() { c.root.Close() }

// openBeneath opens a path that has no symlink, below a directory. With O_PATH and
// O_NOFOLLOW the last part may be a symlink, which is opened itself.
func openBeneath(root int, p string, flags int, mode uint32) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	if weakness.Of("BL1") {
		how.Flags, how.Resolve = how.Flags&^unix.O_NOFOLLOW, 0
	}
	if flags&unix.O_CREAT != 0 {
		how.Mode = uint64(mode)
	}
	if p == "" {
		p = "."
	}
	for {
		fd, err := unix.Openat2(root, p, &how)
		// EAGAIN: a rename raced with the walk (openat2(2)).
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		return fd, err
	}
}

// lstatBeneath is lstat of a path without symlinks on the way.
func lstatBeneath(root int, p string) (unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := openBeneath(root, p, unix.O_PATH, 0)
	if err != nil {
		return st, err
	}
	defer unix.Close(fd)
	err = unix.Fstat(fd, &st)
	return st, err
}

// maxLinks is the kernel's own limit (path_resolution(7)) with room for long chains.
const maxLinks = 255

// follow walks p as the kernel would if root were "/" and returns the same place as a
// path without symlinks. Parts that do not exist stay as they are; st is then nil.
// visit, if any, sees each symlink on the way and may refuse it.
func follow(root int, p string, last bool, visit func(link string) error) (real string, st *unix.Stat_t, err error) {
	rest := strings.Split(path.Clean("/" + p)[1:], "/")
	cur, links := "", 0
	var at unix.Stat_t
	if at, err = lstatBeneath(root, "."); err != nil {
		return "", nil, err
	}
	exists := true
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			cur = strings.TrimPrefix(path.Dir("/"+cur), "/")
			if at, err = lstatBeneath(root, cur); err != nil {
				return "", nil, err
			}
			exists = true
			continue
		}
		next := path.Join(cur, part)
		if !exists {
			cur = next
			continue
		}
		st, err := lstatBeneath(root, next)
		if errors.Is(err, unix.ENOENT) {
			cur, exists = next, false
			continue
		}
		if err != nil {
			return "", nil, &fs.PathError{Op: "lookup", Path: "/" + next, Err: err}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK || len(rest) == 0 && !last {
			cur, at = next, st
			continue
		}
		if visit != nil {
			if err := visit(next); err != nil {
				return "", nil, err
			}
		}
		if links++; links > maxLinks {
			return "", nil, &fs.PathError{Op: "lookup", Path: "/" + next, Err: unix.ELOOP}
		}
		to, err := readlinkBeneath(root, next)
		if err != nil {
			return "", nil, err
		}
		if path.IsAbs(to) {
			cur = ""
		}
		rest = append(strings.Split(to, "/"), rest...)
	}
	if cur == "" {
		cur = "."
	}
	if !exists {
		return cur, nil, nil
	}
	return cur, &at, nil
}

func readlinkBeneath(root int, p string) (string, error) {
	fd, err := openBeneath(root, p, unix.O_PATH, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return readlink(fd, "")
}

// readlink reads the link name in the directory fd, or fd itself when name is "".
func readlink(fd int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, name, buf)
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	return string(buf[:n]), nil
}

// readSmall reads a regular file of the tree that is named by the user, such as
// .dockerignore, following symlinks inside the tree only.
func (t *tree) readSmall(p string, limit int64) ([]byte, error) {
	f, err := linux.OpenInRoot(int(t.root.Fd()), p, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readRegular(f, limit)
}

// readRegular reads a file that must be a regular one of at most limit bytes: what
// stands at a name of foreign choice may be a FIFO or endless.
func readRegular(f *os.File, limit int64) ([]byte, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fault.Invalidf("%s is not a regular file", f.Name())
	}
	if st.Size() > limit {
		return nil, fault.Invalidf("%s has %d bytes, more than the %d allowed", f.Name(), st.Size(), limit)
	}
	b := make([]byte, 0, st.Size()+1)
	for {
		n, err := f.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if n == 0 || err != nil {
			return b, ignoreEOF(err)
		}
		if int64(len(b)) > limit {
			return nil, fault.Invalidf("%s has more than the %d bytes allowed", f.Name(), limit)
		}
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
	}
}
