package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
	"keg/internal/weakness"
)

const (
	permBits = 0o7777
	setBits  = 0o6000
)

// create runs make, and again once what stands in its way was removed: a later entry
// of a name wins.
func (a *applier) create(d *dir, base string, make func() error) error {
	err := make()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(d.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if a.o.Whiteouts == Plain {
			return a.inTheWay("cannot overwrite directory %q with non-directory %q", d, base)
		}
		a.dirs.forgetBut(d)
		if err := RemoveAt(d.fd, base); err != nil {
			return err
		}
	case unix.S_IFLNK:
		a.dirs.forgetBut(d)
		fallthrough
	default:
		if err := unix.Unlinkat(d.fd, base, 0); err != nil {
			return err
		}
	}
	if a.rec != nil && !whiteout(&st) {
		a.rec.lost = true // the tar holds contents that the tree does not keep
	}
	return make()
}

func (a *applier) file(d *dir, base, name string, h *tar.Header, own Owner, r io.Reader, f *feed) error {
	if h.Size < 0 || h.Size > a.lim.Bytes-a.res.Files {
		return fault.Invalidf("layer holds more than %d bytes of files", a.lim.Bytes)
	}
	mode := uint32(h.Mode) & permBits
	// Nobody may run a half-written file with its set-id bits; they come last.
	perm := mode &^ setBits
	fd := -1
	err := a.create(d, base, func() (err error) {
		fd, err = openat(d.fd, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW, perm)
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := a.body(fd, name, h, r, f); err != nil {
		return err
	}
	a.res.Files += h.Size
	if !a.o.SingleID && (own != a.self || d.setgid) {
		if err := unix.Fchown(fd, int(own.UID), int(own.GID)); err != nil {
			return err
		}
	}
	if mode&a.umask != 0 || mode&setBits != 0 {
		if err := unix.Fchmod(fd, mode); err != nil {
			return err
		}
	}
	if err := a.xattrs(h, func(k, v string) error { return unix.Fsetxattr(fd, k, []byte(v), 0) }); err != nil {
		return err
	}
	return utimes(fd, timespec(h.ModTime))
}

func openat(dirFd int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(dirFd, name, flags|unix.O_CLOEXEC, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// body writes the contents. A sparse file keeps its holes: archive/tar reads them as
// zeros, and an entry of a few bytes may claim terabytes of these.
func (a *applier) body(fd int, name string, h *tar.Header, r io.Reader, f *feed) error {
	sparse := isSparse(h)
	if a.rec != nil {
		if sparse {
			a.rec.lost = true
		} else {
			f.keep = a.rec.begin(name, h.Size)
			defer func() { f.keep = a.rec.literal }()
			defer a.rec.end()
		}
	}
	var done int64
	for done < h.Size {
		n, err := io.ReadFull(r, a.buf[:min(int64(len(a.buf)), h.Size-done)])
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if err := a.ctx.Err(); err != nil {
			return err
		}
		if !sparse || !zeros(a.buf[:n]) {
			if err := writeAt(fd, a.buf[:n], done, sparse); err != nil {
				return err
			}
		}
		done += int64(n)
	}
	if sparse {
		return unix.Ftruncate(fd, h.Size)
	}
	return nil
}

func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

func zeros(p []byte) bool {
	return len(p) > 0 && p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1])
}

func writeAt(fd int, p []byte, off int64, seek bool) error {
	for len(p) > 0 {
		var n int
		var err error
		if seek {
			n, err = unix.Pwrite(fd, p, off)
		} else {
			n, err = unix.Write(fd, p)
		}
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func (a *applier) directory(d *dir, base, name string, h *tar.Header, own Owner) error {
	err := unix.Mkdirat(d.fd, base, 0o700)
	fresh, hides := err == nil, false
	if errors.Is(err, unix.EEXIST) {
		fresh, hides, err = a.overExisting(d, base)
	}
	if err != nil {
		return err
	}
	if len(a.implied) > 0 {
		delete(a.implied, a.dirs.realName(d, base))
	}
	if a.o.Whiteouts == Plain && !fresh {
		return nil // an archive adds to the directories that are there
	}
	fd, err := openat(d.fd, base, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if hides {
		if err := unix.Setxattr(linux.FDPath(fd), opaqueXattr(a.o.UserXattr), []byte("y"), 0); err != nil {
			return err
		}
	}
	return a.dirAttrs(fd, name, h, own)
}

// overExisting makes way for a directory. One that is there already stays; a whiteout
// of the same layer means that the directory hides what was below.
func (a *applier) overExisting(d *dir, base string) (fresh, hides bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstatat(d.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, false, err
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return false, false, nil
	case a.o.Whiteouts == Plain:
		if st.Mode&unix.S_IFMT == unix.S_IFLNK && a.leadsToDir(d, base) {
			return false, false, nil
		}
		return false, false, a.inTheWay("cannot overwrite non-directory %q with directory %q", d, base)
	}
	err = a.create(d, base, func() error { return unix.Mkdirat(d.fd, base, 0o700) })
	return err == nil, whiteout(&st) && a.o.Whiteouts == Overlay, err
}

// inTheWay is Docker's refusal to replace one kind of file by another.
func (a *applier) inTheWay(format string, d *dir, base string) error {
	top := orElse(a.o.Shown, "/")
	return &refusal{fault.Invalidf(format, path.Join(top, a.dirs.realName(d, base)), top)}
}

// refusal is an error that says all by itself.
type refusal struct{ error }

func (r *refusal) Unwrap() error { return r.error }

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// leadsToDir: on merged-usr systems an archive's lib/ goes to where /lib points.
func (a *applier) leadsToDir(d *dir, base string) bool {
	fd, err := linux.OpenFdInRoot(a.dirs.root.fd, a.dirs.realName(d, base), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

func (a *applier) dirAttrs(fd int, name string, h *tar.Header, own Owner) error {
	self := linux.FDPath(fd)
	if !a.o.SingleID {
		if err := unix.Chown(self, int(own.UID), int(own.GID)); err != nil {
			return err
		}
	}
	mode := uint32(h.Mode) & permBits
	s := stamp{name: name, mtime: timespec(h.ModTime)}
	if mode&0o700 != 0o700 && a.self.UID != 0 {
		s.mode = mode | modeWaits // it would keep us out until all is in it
	} else if err := unix.Chmod(self, mode); err != nil {
		return err
	}
	if mode&unix.S_ISGID != 0 {
		a.dirs.forget() // what is remembered of this directory says otherwise
		a.dirs.root.setgid = a.dirs.root.setgid || name == ""
	}
	a.stamps = append(a.stamps, s)
	return a.xattrs(h, func(k, v string) error { return unix.Setxattr(self, k, []byte(v), 0) })
}

func (a *applier) device(d *dir, base string, h *tar.Header, own Owner) error {
	kind := uint32(unix.S_IFIFO)
	var dev uint64
	if h.Typeflag != tar.TypeFifo {
		kind = unix.S_IFBLK
		if h.Typeflag == tar.TypeChar {
			kind = unix.S_IFCHR
		}
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return fault.Invalidf("device number %d:%d is out of range", h.Devmajor, h.Devminor)
		}
		// To overlayfs 0:0 is a deletion, which a tar says by .wh. names only.
		if kind == unix.S_IFCHR && h.Devmajor == 0 && h.Devminor == 0 {
			return fault.Invalidf("character device 0:0 is not allowed in a layer")
		}
		if a.o.UserXattr {
			return nil
		}
		dev = unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	}
	mode := kind | uint32(h.Mode)&permBits
	if err := a.create(d, base, func() error { return unix.Mknodat(d.fd, base, mode, int(dev)) }); err != nil {
		return err
	}
	return a.special(d, base, h, own, kind)
}

// special sets the attributes of what cannot be opened: by name, not followed.
func (a *applier) special(d *dir, base string, h *tar.Header, own Owner, kind uint32) error {
	if err := a.chown(d, base, own); err != nil {
		return err
	}
	if weakness.Of("CP4") {
		_ = unix.Fchmodat(d.fd, base, uint32(h.Mode)&permBits, 0)
	} else if kind != unix.S_IFLNK {
		if err := chmodNoFollow(d.fd, base, uint32(h.Mode)&permBits); err != nil {
			return err
		}
	}
	if err := a.xattrs(h, func(k, v string) error { return setXattr(d.fd, base, k, v) }); err != nil {
		return err
	}
	ts := timespec(h.ModTime)
	return unix.UtimesNanoAt(d.fd, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

func (a *applier) chown(d *dir, base string, own Owner) error {
	if a.o.SingleID || own == a.self && !d.setgid {
		return nil
	}
	return unix.Fchownat(d.fd, base, int(own.UID), int(own.GID), unix.AT_SYMLINK_NOFOLLOW)
}

func chmodNoFollow(dirFd int, base string, mode uint32) error {
	fd, err := openat(dirFd, base, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Chmod(linux.FDPath(fd), mode)
}

func utimes(fd int, ts unix.Timespec) error {
	return unix.UtimesNanoAt(fd, "", []unix.Timespec{ts, ts}, unix.AT_EMPTY_PATH)
}

// hardLink links to a file inside the root; its last element is not followed, so that
// a link to a symlink is that.
func (a *applier) hardLink(name string, h *tar.Header) error {
	target, err := cleanName(h.Linkname)
	if err != nil {
		return err
	}
	if target == "" {
		return fault.Invalidf("hard link to the root directory")
	}
	if target == name {
		return fault.Invalidf("hard link to itself")
	}
	dirName, base := splitPath(name)
	if _, err = a.dirs.ensure(dirName); err != nil {
		return err
	}
	a.dirs.room(2)
	d, err := a.dirs.get(dirName)
	if err != nil {
		return err
	}
	targetDir, targetBase := splitPath(target)
	td, err := a.dirs.get(targetDir)
	if err == nil {
		if isWhiteout(td.fd, targetBase) {
			return fault.Invalidf("hard link to %q, which the layer deletes", h.Linkname)
		}
		if sameFile(td.fd, targetBase, d.fd, base) {
			return nil
		}
		err = a.create(d, base, func() error { return unix.Linkat(td.fd, targetBase, d.fd, base, 0) })
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		if a.o.Whiteouts != Overlay {
			return fmt.Errorf("hard link to %q: %w", h.Linkname, err)
		}
		real := a.dirs.realName(d, base)
		if err := RemoveAt(d.fd, base); err != nil {
			return err
		}
		a.res.Leans.Links = append(a.res.Leans.Links, Link{real, target})
		return nil
	}
	return err
}

func sameFile(d1 int, n1 string, d2 int, n2 string) bool {
	var a, b unix.Stat_t
	return unix.Fstatat(d1, n1, &a, unix.AT_SYMLINK_NOFOLLOW) == nil &&
		unix.Fstatat(d2, n2, &b, unix.AT_SYMLINK_NOFOLLOW) == nil && a.Dev == b.Dev && a.Ino == b.Ino
}

// whiteout performs .wh.NAME and .wh..wh..opq. They are about lower layers only: what
// this tar itself wrote stays.
func (a *applier) whiteout(name string) error {
	dirName, base := splitPath(name)
	d, err := a.dirs.ensure(dirName)
	if err != nil {
		return err
	}
	if base == whOpaque {
		return a.opaque(d, dirName)
	}
	base = strings.TrimPrefix(base, whPrefix)
	if a.o.Whiteouts == Remove {
		if a.made[path.Join(dirName, base)] {
			return nil
		}
		a.dirs.forgetBut(d)
		return RemoveAt(d.fd, base)
	}
	err = unix.Mknodat(d.fd, base, unix.S_IFCHR, 0)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(d.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		delete(a.implied, a.dirs.realName(d, base))
		return setXattr(d.fd, base, opaqueXattr(a.o.UserXattr), "y")
	}
	return nil
}

func (a *applier) opaque(d *dir, dirName string) error {
	if a.o.Whiteouts == Overlay {
		return unix.Setxattr(linux.FDPath(d.fd), opaqueXattr(a.o.UserXattr), []byte("y"), 0)
	}
	names, err := readNames(d.fd)
	if err != nil {
		return err
	}
	a.dirs.forgetBut(d)
	for _, n := range names {
		if !a.madeBelow(path.Join(dirName, n)) {
			if err := RemoveAt(d.fd, n); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *applier) madeBelow(p string) bool {
	if a.made[p] {
		return true
	}
	for m := range a.made {
		if strings.HasPrefix(m, p+"/") {
			return true
		}
	}
	return false
}

// xattrs sets those attributes of an entry that are a layer's to set. A file system
// or a kind of file that takes none of them goes without, as with Docker.
func (a *applier) xattrs(h *tar.Header, set func(k, v string) error) error {
	for k, v := range h.PAXRecords {
		k, ok := strings.CutPrefix(k, "SCHILY.xattr.")
		if !ok || !keepsXattr(k) {
			continue
		}
		err := set(k, v)
		if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) && (strings.HasPrefix(k, "user.") || a.o.UserXattr) {
			continue
		}
		if err != nil {
			return fmt.Errorf("set attribute %s: %w", k, err)
		}
	}
	return nil
}
