// COPY and ADD at work: lists of entries become files below a root, by descriptors.
package builder

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/snapshot"
)

// copier writes below root. Symlinks on the way to a destination are followed inside
// the root; below the destination none is.
type copier struct {
	ctx    context.Context
	from   *tree
	root   int
	chown  *owner
	chmod  *modeSpec
	epoch  *time.Time // time of directories made on the way; nil: now
	buffer []byte

	inodes map[inode]string // first copy of a file with several links
	upper  int              // the writable directory below the mount, or 0
	dir    string           // the directory opened last
	dirFd  *os.File
}

type inode struct{ dev, ino uint64 }

func (o *copyOp) perform(ctx context.Context, s *solver, w *work) error {
	// Volatile: ending the mount must not flush the file system; Sync does, once.
	fd, err := s.snaps.Mount(w.key, snapshot.MountOptions{Volatile: true})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	chown, err := o.chown.resolve(fd)
	if err != nil {
		return err
	}
	upper, err := unix.Open(s.snaps.Upper(w.key), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: s.snaps.Upper(w.key), Err: err}
	}
	defer unix.Close(upper)
	c := copier{ctx: ctx, root: fd, upper: upper, chown: chown, chmod: o.chmod, epoch: w.epoch, buffer: make([]byte, 256<<10)}
	defer c.close()
	for i, src := range o.sources {
		switch {
		case src.content != nil:
			err = c.data(src.content.Path, strings.NewReader(src.content.Data), 0o644, time.Now(), o.dest)
		case src.git != nil:
			err = o.gitFiles(ctx, s, &c, src)
		case src.url != "":
			err = o.download(ctx, s, &c, src.url)
		default:
			err = o.files(ctx, s, &c, src.sel, o.found[i])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// gitFiles copies what a commit has. Its directory is resolved below the repository.
func (o *copyOp) gitFiles(ctx context.Context, s *solver, c *copier, src copySource) error {
	var undo cleanup
	defer undo.run()
	g := src.git
	if o.checksum != "" && o.checksum.Encoded() != g.commit {
		return fault.Invalidf("commit mismatch for %s: %s (expected: %s)", g.remote, g.commit, o.checksum.Encoded())
	}
	t, err := s.gitTree(ctx, g.gitRef, g.commit, g.name, &undo)
	if err != nil {
		return err
	}
	found, err := t.find(ctx, src.sel)
	if err != nil {
		return err
	}
	c.from = t
	for i := range found {
		if err := c.copy(&found[i], o.dest); err != nil {
			return err
		}
	}
	return nil
}

func (o *copyOp) files(ctx context.Context, s *solver, c *copier, sel selector, known []source) error {
	t, found, err := s.source(ctx, o.from, sel, known)
	if err != nil {
		return err
	}
	c.from = t
	for i := range found {
		if o.unpack && found[i].entries[0].is(unix.S_IFREG) {
			done, err := c.unpack(&found[i], o.dest)
			if err != nil {
				return err
			}
			if done {
				continue
			}
		}
		if err := c.copy(&found[i], o.dest); err != nil {
			return err
		}
	}
	return nil
}

func (c *copier) close() {
	if c.dirFd != nil {
		c.dirFd.Close()
		c.dirFd = nil
	}
}

// place decides where a source goes and makes the directories on the way: a directory
// gives its contents to dest, a file becomes dest, or is put into it when dest is a
// directory.
func (c *copier) place(name string, isDir bool, dest string) (string, error) {
	if strings.HasSuffix(dest, "/") {
		if err := c.mkdirAll(dest); err != nil {
			return "", err
		}
	} else if err := c.mkdirAll(path.Dir(dest)); err != nil {
		return "", err
	}
	at, st, err := follow(c.root, dest, true, nil)
	if err != nil {
		return "", err
	}
	destIsDir := st != nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case isDir && st == nil:
		return at, c.mkdirAll("/" + at)
	case isDir && !destIsDir:
		return "", fault.Invalidf("cannot copy to non-directory: %s", path.Join("/", at))
	case !isDir && destIsDir:
		return join(at, name), nil
	}
	return at, nil
}

// mkdirAll makes the missing directories of p with the copy's owner and mode.
func (c *copier) mkdirAll(p string) error {
	at, st, err := follow(c.root, p, true, nil)
	if err != nil {
		return err
	}
	if st != nil {
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return &fs.PathError{Op: "mkdir", Path: "/" + at, Err: unix.ENOTDIR}
		}
		return nil
	}
	if err := c.mkdirAll(path.Dir("/" + at)); err != nil {
		return err
	}
	parent, name, err := c.parent(at)
	if err != nil {
		return err
	}
	if err := unix.Mkdirat(parent, name, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return &fs.PathError{Op: "mkdir", Path: "/" + at, Err: err}
	}
	if o := c.chown; o != nil {
		if err := unix.Fchownat(parent, name, o.uid, o.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &fs.PathError{Op: "chown", Path: "/" + at, Err: err}
		}
	}
	if err := chmodAt(parent, name, c.chmod.directory()); err != nil {
		return err
	}
	if c.epoch != nil {
		return setTimes(parent, name, unix.NsecToTimespec(c.epoch.UnixNano()), unix.NsecToTimespec(c.epoch.UnixNano()))
	}
	return nil
}

// parent opens the directory that holds a path without symlinks, and keeps it open.
func (c *copier) parent(at string) (int, string, error) {
	dir, name := path.Split(at)
	dir = path.Clean("/" + dir)[1:]
	if c.dirFd != nil && c.dir == dir {
		return int(c.dirFd.Fd()), name, nil
	}
	fd, err := openBeneath(c.root, dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return -1, "", &fs.PathError{Op: "open", Path: "/" + dir, Err: err}
	}
	c.close()
	c.dir, c.dirFd = dir, os.NewFile(uintptr(fd), dir)
	return fd, name, nil
}

func (c *copier) copy(s *source, dest string) error {
	at, err := c.place(s.name, s.dir(), dest)
	if err != nil {
		return err
	}
	c.inodes = map[inode]string{}
	// Times of directories last: what is put into them changes them.
	type stamp struct {
		at string
		st *unix.Stat_t
	}
	var dirs []stamp
	for i := range s.entries {
		if i%256 == 0 && c.ctx.Err() != nil {
			return context.Cause(c.ctx)
		}
		e := &s.entries[i]
		to := at
		if e.rel != "" {
			to = join(at, e.rel)
		}
		if e.is(unix.S_IFDIR) {
			if err := c.copyDir(s, e, to); err != nil {
				return err
			}
			dirs = append(dirs, stamp{to, &e.st})
			continue
		}
		if err := c.copyFile(s, e, to); err != nil {
			return err
		}
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		if dirs[i].at == "." {
			continue
		}
		parent, name, err := c.parent(dirs[i].at)
		if err != nil {
			return err
		}
		if err := setTimes(parent, name, dirs[i].st.Atim, dirs[i].st.Mtim); err != nil {
			return err
		}
	}
	return nil
}

// copyDir makes one directory, or merges into one that is there: the destination
// itself keeps its own mode and owner, directories below take the source's.
func (c *copier) copyDir(s *source, e *entry, to string) error {
	if e.rel == "" {
		return nil // place made it
	}
	parent, name, err := c.parent(to)
	if err != nil {
		return err
	}
	err = unix.Mkdirat(parent, name, 0o700)
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &fs.PathError{Op: "stat", Path: "/" + to, Err: err}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return fault.Invalidf("cannot copy to non-directory: /%s", to)
		}
		if e.parent {
			return chmodAt(parent, name, e.st.Mode&allModes)
		}
	} else if err != nil {
		return &fs.PathError{Op: "mkdir", Path: "/" + to, Err: err}
	}
	return c.attributes(s, e, parent, name)
}

// copyFile replaces what stands at the place, unless it is a directory.
func (c *copier) copyFile(s *source, e *entry, to string) error {
	parent, name, err := c.parent(to)
	if err != nil {
		return err
	}
	if err := removeFile(parent, name, to); err != nil {
		return err
	}
	switch e.st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return c.copyRegular(s, e, parent, name, to)
	case unix.S_IFLNK:
		err = unix.Symlinkat(e.link, parent, name)
	case unix.S_IFSOCK:
		// A socket is nothing without its owner; an empty file stands for it.
		err = unix.Mknodat(parent, name, unix.S_IFREG|0o600, 0)
	default:
		err = unix.Mknodat(parent, name, e.st.Mode, int(e.st.Rdev))
	}
	if err != nil {
		return &fs.PathError{Op: "create", Path: "/" + to, Err: err}
	}
	return c.attributes(s, e, parent, name)
}

func removeFile(parent int, name, to string) error {
	err := unix.Unlinkat(parent, name, 0)
	switch {
	case err == nil || errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EISDIR):
		return fault.Invalidf("cannot replace to directory /%s with file", to)
	}
	return &fs.PathError{Op: "replace", Path: "/" + to, Err: err}
}

func (c *copier) copyRegular(s *source, e *entry, parent int, name, to string) error {
	id := inode{uint64(e.st.Dev), e.st.Ino}
	if e.st.Nlink > 1 {
		if first, ok := c.inodes[id]; ok {
			fd, err := openBeneath(c.root, path.Dir(first), unix.O_PATH|unix.O_DIRECTORY, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.Linkat(fd, path.Base(first), parent, name, 0); err != nil {
				return &fs.PathError{Op: "link", Path: "/" + to, Err: err}
			}
			return nil
		}
		c.inodes[id] = to
	}
	in, err := openBeneath(int(c.from.root.Fd()), s.at(e), unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: "/" + s.at(e), Err: err}
	}
	defer unix.Close(in)
	out, err := unix.Openat(parent, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &fs.PathError{Op: "create", Path: "/" + to, Err: err}
	}
	defer unix.Close(out)
	if err := c.content(out, in, e.st.Size, to); err != nil {
		return &fs.PathError{Op: "copy", Path: "/" + to, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(in, &st); err != nil {
		return err
	}
	// The digest in the key must be that of what was copied.
	if !c.from.owned && sumKeyOf(&st) != sumKeyOf(&e.st) {
		return fault.Conflictf("%q changed while it was copied: the context must not change during a build", s.at(e))
	}
	return c.openAttributes(e, in, out)
}

// data writes one file that comes from no tree.
func (c *copier) data(name string, r io.Reader, mode uint32, mtime time.Time, dest string) error {
	at, err := c.place(path.Base(path.Clean("/"+name)), false, dest)
	if err != nil {
		return err
	}
	parent, base, err := c.parent(at)
	if err != nil {
		return err
	}
	if err := removeFile(parent, base, at); err != nil {
		return err
	}
	fd, err := unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &fs.PathError{Op: "create", Path: "/" + at, Err: err}
	}
	f := os.NewFile(uintptr(fd), at)
	defer f.Close()
	if _, err := io.CopyBuffer(struct{ io.Writer }{f}, r, c.buffer); err != nil {
		return err
	}
	if o := c.chown; o != nil {
		if err := unix.Fchown(fd, o.uid, o.gid); err != nil {
			return &fs.PathError{Op: "chown", Path: "/" + at, Err: err}
		}
	}
	if err := unix.Fchmod(fd, c.chmod.apply(unix.S_IFREG|mode)); err != nil {
		return &fs.PathError{Op: "chmod", Path: "/" + at, Err: err}
	}
	ts := unix.NsecToTimespec(mtime.UnixNano())
	return setTimes(parent, base, ts, ts)
}
