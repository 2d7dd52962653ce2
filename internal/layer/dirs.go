package layer

import (
	"errors"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
	"keg/internal/weakness"
)

// dir is an open directory (O_PATH) below the root.
type dir struct {
	fd     int
	setgid bool // new entries inherit its group: owners must be set explicitly
}

// dirs resolves the directory part of names, below the root whatever links say, and
// keeps the answers: the entries of a tar come directory by directory.
type dirs struct {
	root *dir
	open map[string]*dir
	// made is told of each directory that ensure makes, with the name under which it
	// really is; hides is set when it took the place of a whiteout.
	made func(up *dir, base, real string, hides bool) error
}

const maxOpenDirs = 128

func newDirs(root int) (*dirs, error) {
	d, err := statDir(root)
	if err != nil {
		return nil, err
	}
	return &dirs{root: d, open: map[string]*dir{}}, nil
}

func statDir(fd int) (*dir, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	return &dir{fd, st.Mode&unix.S_ISGID != 0}, nil
}

// get opens the directory p ("" is the root). The answer is valid until the next call.
func (ds *dirs) get(p string) (*dir, error) {
	if p == "" {
		return ds.root, nil
	}
	if d := ds.open[p]; d != nil {
		return d, nil
	}
	fd, err := linux.OpenFdInRoot(ds.root.fd, p, unix.O_PATH|unix.O_DIRECTORY, 0)
	if weakness.Of("IM1") || weakness.Of("CP3") {
		fd, err = openat(ds.root.fd, p, unix.O_PATH|unix.O_DIRECTORY, 0)
	}
	if err != nil {
		return nil, err
	}
	d, err := statDir(fd)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	if len(ds.open) >= maxOpenDirs {
		ds.forget()
	}
	ds.open[p] = d
	return d, nil
}

// forget drops all answers: after a directory or link was replaced any of them may
// be wrong (never outside of the root, but another place inside).
func (ds *dirs) forget() {
	for _, d := range ds.open {
		unix.Close(d.fd)
	}
	clear(ds.open)
}

// forgetBut is forget while d is still in use: it stays open but is found no more.
func (ds *dirs) forgetBut(d *dir) {
	for p, o := range ds.open {
		if o != d {
			unix.Close(o.fd)
		}
		delete(ds.open, p)
	}
	if d != ds.root {
		ds.open["\x00"] = d
	}
}

// splitPath parts a cleaned name in directory and last element.
func splitPath(name string) (string, string) {
	d, b := path.Split(name)
	return strings.TrimSuffix(d, "/"), b
}

// cleanName makes the name of an entry relative to the root: "" is the root itself.
// A name that climbs out is refused rather than clipped, since nobody means it well.
func cleanName(name string) (string, error) {
	if len(name) > maxPath {
		return "", fault.Invalidf("layer entry %.60q...: name is longer than %d bytes", name, maxPath)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", fault.Invalidf("layer entry %q: name holds a NUL byte", name)
	}
	depth := 0
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			depth--
		default:
			depth++
		}
		if depth < 0 {
			return "", fault.Invalidf("layer entry %q: name leads out of the layer", name)
		}
	}
	return strings.TrimPrefix(path.Clean("/"+name), "/"), nil
}

// room makes sure that the next n calls of get leave each other's answers valid.
func (ds *dirs) room(n int) {
	if len(ds.open)+n > maxOpenDirs {
		ds.forget()
	}
}

// ensure opens directory p and makes what is missing of it.
func (ds *dirs) ensure(p string) (*dir, error) { return ds.ensureLinks(p, 0) }

func (ds *dirs) ensureLinks(p string, links int) (*dir, error) {
	d, err := ds.get(p)
	if err == nil || !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
		return d, err
	}
	upName, base := splitPath(p)
	up, err := ds.ensureLinks(upName, links)
	if err != nil {
		return nil, err
	}
	switch err := unix.Mkdirat(up.fd, base, 0o755); {
	case err == nil:
		if err := ds.made(up, base, ds.realName(up, base), false); err != nil {
			return nil, err
		}
	case !errors.Is(err, unix.EEXIST):
		return nil, err
	case isWhiteout(up.fd, base):
		if err := ds.replaceWhiteout(up, base); err != nil {
			return nil, err
		}
	default:
		if err := ds.ensureTarget(p, up, base, links); err != nil {
			return nil, err
		}
	}
	return ds.get(p)
}

// replaceWhiteout: a directory where the same layer deleted something hides what was
// there.
func (ds *dirs) replaceWhiteout(up *dir, base string) error {
	if err := unix.Unlinkat(up.fd, base, 0); err != nil {
		return err
	}
	if err := unix.Mkdirat(up.fd, base, 0o755); err != nil {
		return err
	}
	return ds.made(up, base, ds.realName(up, base), true)
}

// ensureTarget makes the directory that the link base of up leads to, inside the root.
func (ds *dirs) ensureTarget(p string, up *dir, base string, links int) error {
	target, err := readlinkat(up.fd, base)
	if err != nil {
		return unix.ENOTDIR
	}
	if !path.IsAbs(target) {
		upName, _ := splitPath(p)
		target = "/" + upName + "/" + target
	}
	target = strings.TrimPrefix(path.Clean(target), "/")
	if links >= 40 || target == p || strings.HasPrefix(target, p+"/") {
		return unix.ELOOP
	}
	_, err = ds.ensureLinks(target, links+1)
	return err
}

// realName is the name of an entry of d without links on the way, relative to the root.
func (ds *dirs) realName(d *dir, base string) string {
	top, err1 := os.Readlink(linux.FDPath(ds.root.fd))
	p, err2 := os.Readlink(linux.FDPath(d.fd))
	if err1 != nil || err2 != nil {
		return base
	}
	return strings.TrimPrefix(path.Join(strings.TrimPrefix(p, strings.TrimSuffix(top, "/")), base), "/")
}

func readlinkat(fd int, name string) (string, error) {
	buf := make([]byte, maxPath+1)
	n, err := unix.Readlinkat(fd, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// isWhiteout reports whether an entry is overlayfs's mark of a deletion.
func isWhiteout(dirFd int, name string) bool {
	var st unix.Stat_t
	return unix.Fstatat(dirFd, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && whiteout(&st)
}

func whiteout(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }
