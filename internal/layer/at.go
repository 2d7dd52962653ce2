package layer

// Paths as cp names them: an entry below a root, with the directory that holds it open.

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
)

// At is an entry below a root, or the place of one that is not there yet.
type At struct {
	Dir    *os.File // O_PATH, holds Base
	Base   string   // "." when the entry is Dir itself
	Path   string   // absolute below the root, links of the last element followed when asked for
	Exists bool
	Stat   unix.Stat_t // of the entry itself, not of what a link points at
	Link   string      // target, when it is a symlink
}

// maxLinks is how many links one path may lead through (the kernel's own limit).
const maxLinks = 40

// Look finds p below root, which is as "/" to all links on the way. The last element
// is followed when follow is set or p ends in "/" or "/.". Its directory must be
// there, it itself need not. Whoever writes below the root meanwhile can change what
// is found, never lead out.
func Look(root *os.File, p string, follow bool) (*At, error) {
	follow = follow || AssertsDir(p)
	p = path.Clean("/" + p)
	for range maxLinks {
		a, err := look(root, p)
		if err != nil || !follow || a.Link == "" {
			return a, err
		}
		a.Close()
		dir, _ := path.Split(p)
		if p = dir + a.Link; path.IsAbs(a.Link) {
			p = a.Link
		}
	}
	return nil, &fs.PathError{Op: "open", Path: p, Err: unix.ELOOP}
}

// look does not clean p: "link/.." is where the link leads, and one up.
func look(root *os.File, p string) (_ *At, err error) {
	dir, base := path.Split(strings.TrimRight(p, "/"))
	if base == "" || base == "." || base == ".." {
		dir, base = p, "."
	}
	a := &At{Base: base, Path: p}
	if a.Dir, err = linux.OpenInRoot(int(root.Fd()), dir, unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		return nil, &fs.PathError{Op: "open", Path: p, Err: bare(err)}
	}
	defer func() {
		if err != nil {
			a.Close()
		}
	}()
	err = unix.Fstatat(int(a.Dir.Fd()), base, &a.Stat, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return a, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: p, Err: err}
	}
	a.Exists = true
	if a.Stat.Mode&unix.S_IFMT == unix.S_IFLNK {
		if a.Link, err = readlinkat(int(a.Dir.Fd()), base); err != nil {
			return nil, &fs.PathError{Op: "readlink", Path: p, Err: err}
		}
	}
	return a, nil
}

func bare(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// AssertsDir reports whether a path says itself that it names a directory.
func AssertsDir(p string) bool {
	return strings.HasSuffix(p, "/") || p == "." || strings.HasSuffix(p, "/.")
}

// Close closes Dir.
func (a *At) Close() { a.Dir.Close() }

// IsDir and IsRegular tell the kind of the entry.
func (a *At) IsDir() bool     { return a.Exists && a.Stat.Mode&unix.S_IFMT == unix.S_IFDIR }
func (a *At) IsRegular() bool { return a.Exists && a.Stat.Mode&unix.S_IFMT == unix.S_IFREG }

// IsSpecial reports a device or what is no kind of file that is known.
func (a *At) IsSpecial() bool {
	k := a.Stat.Mode & unix.S_IFMT
	return a.Exists && (k == unix.S_IFCHR || k == unix.S_IFBLK)
}

// OpenDir opens the entry, a directory, to be given to Apply.
func (a *At) OpenDir() (*os.File, error) {
	fd, err := openat(int(a.Dir.Fd()), a.Base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: a.Path, Err: err}
	}
	return os.NewFile(uintptr(fd), a.Path), nil
}

// PackAt writes the tar of one entry with all below it, under the name as; "" leaves
// the directory's own name out: "./" and what is in it; the root may be called "/". Nothing is followed, and what
// others put in the way meanwhile is an error or left out, never read.
func PackAt(ctx context.Context, a *At, as string, o DiffOptions) (Diffed, error) {
	d := newDiffer(ctx, o, false)
	return d.finish(d.at(a, as))
}

func (d *differ) at(a *At, as string) error {
	if as != "" && a.Base != "." {
		_, err := d.entry(int(a.Dir.Fd()), a.Base, as, false)
		return err
	}
	f, err := a.OpenDir()
	if err != nil {
		return err
	}
	defer f.Close()
	if as == "" {
		as = "."
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	h := tarHeader(&st, d.time(&st))
	h.Typeflag, h.Name = '5', strings.TrimSuffix(as, "/")+"/"
	if _, err := d.xattrs(int(f.Fd()), ".", h); err != nil {
		return err
	}
	if err := d.header(h); err != nil {
		return err
	}
	_, err = d.children(int(f.Fd()), as, false)
	return err
}

// same refuses a file that is another one than was looked at: a device that a program
// put in its place would otherwise be read with our rights.
func same(fd int, looked *unix.Stat_t) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Dev != looked.Dev || st.Ino != looked.Ino || st.Mode&unix.S_IFMT != looked.Mode&unix.S_IFMT {
		return fault.Conflictf("it was replaced while it was read")
	}
	return nil
}

// Mode is the entry's mode as Go writes it.
func (a *At) Mode() fs.FileMode {
	m := fs.FileMode(a.Stat.Mode & 0o777)
	switch a.Stat.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		m |= fs.ModeDir
	case unix.S_IFLNK:
		m |= fs.ModeSymlink
	case unix.S_IFIFO:
		m |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		m |= fs.ModeSocket
	case unix.S_IFCHR:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFBLK:
		m |= fs.ModeDevice
	}
	for bit, mode := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if a.Stat.Mode&bit != 0 {
			m |= mode
		}
	}
	return m
}
