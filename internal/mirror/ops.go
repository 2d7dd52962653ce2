package mirror

// What names and attributes are asked for.

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// forever is how long the kernel may remember what only it can change, in seconds.
const forever = 1 << 20

// entry answers with the file at fd, which becomes the table's, and its name.
func (w *worker) entry(fd int, dir *node, name string) (int, error) {
	out, n := put[entryOut](w.payload())
	return n, w.fill(out, fd, dir, name)
}

func (w *worker) fill(out *entryOut, fd int, dir *node, name string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return err
	}
	n := w.s.nodes.enter(fd, &st, dir, name)
	out.Node, out.AttrValid = n.id, w.validity(&st)
	if !w.s.shared {
		out.EntryValid = forever
	}
	out.Attr.set(&st)
	return nil
}

// validity is for how long attributes hold. Of files with several names, of which the kernel may know one as another, it is never.
func (w *worker) validity(st *unix.Stat_t) uint64 {
	if w.s.shared || st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return 0
	}
	return forever
}

func (a *attr) set(st *unix.Stat_t) {
	*a = attr{Ino: st.Ino, Size: uint64(st.Size), Blocks: uint64(st.Blocks), Atime: uint64(st.Atim.Sec), Mtime: uint64(st.Mtim.Sec), Ctime: uint64(st.Ctim.Sec),
		AtimeNsec: uint32(st.Atim.Nsec), MtimeNsec: uint32(st.Mtim.Nsec), CtimeNsec: uint32(st.Ctim.Nsec),
		Mode: st.Mode, Nlink: uint32(st.Nlink), UID: st.Uid, GID: st.Gid, Rdev: newDev(st.Rdev), Blksize: uint32(st.Blksize)}
}

func (w *worker) lookup(h *inHeader, body []byte) (int, error) {
	dir, name, _, err := w.dir(h.Node, body)
	if err != nil {
		return 0, err
	}
	fd, err := openEntry(dir.fd, name, unix.O_PATH, 0)
	if err == unix.ENOENT && !w.s.shared {
		out, n := put[entryOut](w.payload())
		out.EntryValid = forever // that it is not there
		return n, nil
	}
	if err != nil {
		return 0, err
	}
	return w.entry(fd, dir, name)
}

func (w *worker) getattr(h *inHeader, _ []byte) (int, error) {
	n, err := w.node(h.Node)
	if err != nil {
		return 0, err
	}
	return w.attr(n)
}

func (w *worker) attr(n *node) (int, error) {
	var st unix.Stat_t
	if err := unix.Fstat(n.fd, &st); err != nil {
		return 0, err
	}
	w.s.nodes.changed(n, &st)
	out, size := put[attrOut](w.payload())
	out.Valid = w.validity(&st)
	out.Attr.set(&st)
	return size, nil
}

func (w *worker) setattr(h *inHeader, body []byte) (int, error) {
	in, _, err := take[setattrIn](body)
	if err != nil {
		return 0, err
	}
	n, err := w.node(h.Node)
	if err != nil {
		return 0, err
	}
	if err := setattr(n, in); err != nil {
		return 0, err
	}
	return w.attr(n)
}

func setattr(n *node, in *setattrIn) error {
	if in.Valid&(fattrUID|fattrGID) != 0 {
		uid, gid := -1, -1
		if in.Valid&fattrUID != 0 {
			uid = int(in.UID)
		}
		if in.Valid&fattrGID != 0 {
			gid = int(in.GID)
		}
		if err := unix.Fchownat(n.fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	if in.Valid&fattrMode != 0 {
		if err := unix.Fchmodat(n.fd, "", in.Mode&0o7777, unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	if in.Valid&fattrSize != 0 {
		if n.mode&unix.S_IFMT != unix.S_IFREG {
			return unix.EINVAL
		}
		err := withoutFSETID(in.Valid&fattrKill != 0, func() error {
			if in.Valid&fattrFh != 0 {
				return unix.Ftruncate(int(in.Fh), int64(in.Size))
			}
			return unix.Truncate(path(n.fd), int64(in.Size))
		})
		if err != nil {
			return err
		}
	}
	if in.Valid&(fattrAtime|fattrMtime) == 0 {
		return nil
	}
	ts := []unix.Timespec{moment(in.Valid&fattrAtime, in.Valid&fattrAtimeNow, in.Atime, in.AtimeNsec),
		moment(in.Valid&fattrMtime, in.Valid&fattrMtimeNow, in.Mtime, in.MtimeNsec)}
	return unix.UtimesNanoAt(n.fd, "", ts, unix.AT_EMPTY_PATH)
}

func moment(given, now uint32, sec uint64, nsec uint32) unix.Timespec {
	switch {
	case given == 0:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	case now != 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	}
	return unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
}

func (w *worker) readlink(h *inHeader, _ []byte) (int, error) {
	n, err := w.node(h.Node)
	if err != nil {
		return 0, err
	}
	return unix.Readlinkat(n.fd, "", w.payload()[:unix.PathMax])
}

// made answers with an entry that was just made.
func (w *worker) made(dir *node, name string, err error) (int, error) {
	if err != nil {
		return 0, err
	}
	fd, err := openEntry(dir.fd, name, unix.O_PATH, 0)
	if err != nil {
		return 0, err
	}
	return w.entry(fd, dir, name)
}

func (w *worker) mknod(h *inHeader, body []byte) (int, error) {
	in, rest, err := take[mknodIn](body)
	if err != nil {
		return 0, err
	}
	dir, name, _, err := w.dir(h.Node, rest)
	if err != nil {
		return 0, err
	}
	defer as(h, in.Umask)()
	return w.made(dir, name, unix.Mknodat(dir.fd, name, in.Mode, oldDev(in.Rdev)))
}

func (w *worker) mkdir(h *inHeader, body []byte) (int, error) {
	in, rest, err := take[mkdirIn](body)
	if err != nil {
		return 0, err
	}
	dir, name, _, err := w.dir(h.Node, rest)
	if err != nil {
		return 0, err
	}
	defer as(h, in.Umask)()
	return w.made(dir, name, unix.Mkdirat(dir.fd, name, in.Mode))
}

func (w *worker) symlink(h *inHeader, body []byte) (int, error) {
	dir, name, rest, err := w.dir(h.Node, body)
	if err != nil {
		return 0, err
	}
	target, _, err := text(rest)
	if err != nil {
		return 0, err
	}
	defer as(h, 0)()
	return w.made(dir, name, unix.Symlinkat(target, dir.fd, name))
}

func (w *worker) link(h *inHeader, body []byte) (int, error) {
	in, rest, err := take[linkIn](body)
	if err != nil {
		return 0, err
	}
	old, err := w.node(in.Node)
	if err != nil {
		return 0, err
	}
	dir, name, _, err := w.dir(h.Node, rest)
	if err != nil {
		return 0, err
	}
	err = unix.Linkat(unix.AT_FDCWD, path(old.fd), dir.fd, name, unix.AT_SYMLINK_FOLLOW)
	if err == nil {
		var st unix.Stat_t
		if unix.Fstat(old.fd, &st) == nil {
			w.s.nodes.changed(old, &st)
		}
	}
	return w.made(dir, name, err)
}

func (w *worker) unlink(h *inHeader, body []byte) (int, error) { return w.remove(h, body, 0) }
func (w *worker) rmdir(h *inHeader, body []byte) (int, error) {
	return w.remove(h, body, unix.AT_REMOVEDIR)
}

func (w *worker) remove(h *inHeader, body []byte, flags int) (int, error) {
	dir, name, _, err := w.dir(h.Node, body)
	if err != nil {
		return 0, err
	}
	w.s.nodes.keep(dir, name)
	return 0, unix.Unlinkat(dir.fd, name, flags)
}

func (w *worker) rename(h *inHeader, body []byte) (int, error) {
	in, rest, err := take[renameIn](body)
	if err != nil {
		return 0, err
	}
	return w.move(h, in.NewDir, 0, rest)
}

func (w *worker) rename2(h *inHeader, body []byte) (int, error) {
	in, rest, err := take[rename2In](body)
	if err != nil {
		return 0, err
	}
	return w.move(h, in.NewDir, in.Flags, rest)
}

func (w *worker) move(h *inHeader, to uint64, flags uint32, names []byte) (int, error) {
	from, old, rest, err := w.dir(h.Node, names)
	if err != nil {
		return 0, err
	}
	dir, now, _, err := w.dir(to, rest)
	if err != nil {
		return 0, err
	}
	w.s.nodes.keep(from, old)
	w.s.nodes.keep(dir, now)
	return 0, unix.Renameat2(from.fd, old, dir.fd, now, uint(flags))
}

func (w *worker) statfs(h *inHeader, _ []byte) (int, error) {
	n, err := w.node(h.Node)
	if err != nil {
		return 0, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(n.fd, &st); err != nil {
		return 0, err
	}
	out, size := put[statfsOut](w.payload())
	*out = statfsOut{Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: uint32(st.Bsize), Namelen: uint32(st.Namelen), Frsize: uint32(st.Frsize)}
	return size, nil
}

// xattr answers with bytes or, when none are wanted, with their number.
func (w *worker) xattr(size uint32, get func(b []byte) (int, error)) (int, error) {
	if size == 0 {
		n, err := get(nil)
		out, m := put[sizeOut](w.payload())
		out.Size = uint32(max(n, 0))
		return m, err
	}
	return get(w.payload()[:min(int(size), maxIO)])
}

func (w *worker) getxattr(h *inHeader, body []byte) (int, error) {
	in, rest, err := take[getxattrIn](body)
	if err != nil {
		return 0, err
	}
	name, _, err := text(rest)
	if err != nil {
		return 0, err
	}
	n, err := w.node(h.Node)
	if err != nil {
		return 0, err
	}
	return w.xattr(in.Size, func(b []byte) (int, error) { return unix.Getxattr(path(n.fd), name, b) })
}

func (w *worker) listxattr(h *inHeader, body []byte) (int, error) {
	in, _, err := take[getxattrIn](body)
	if err != nil {
		return 0, err
	}
	n, err := w.node(h.Node)
	if err != nil {
		return 0, err
	}
	return w.xattr(in.Size, func(b []byte) (int, error) { return unix.Listxattr(path(n.fd), b) })
}

func (w *worker) setxattr(h *inHeader, body []byte) (int, error) {
	in, rest, err := take[setxattrIn](body)
	if err != nil {
		return 0, err
	}
	name, value, err := text(rest)
	if err != nil {
		return 0, err
	}
	if len(value) < int(in.Size) {
		return 0, unix.EINVAL
	}
	n, err := w.node(h.Node)
	if err != nil {
		return 0, err
	}
	if err := unix.Setxattr(path(n.fd), name, value[:in.Size], int(in.Flags)); err != nil {
		return 0, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(n.fd, &st); err != nil {
		return 0, err
	}
	w.s.nodes.changed(n, &st)
	if in.SetxattrFlags&aclKill != 0 && st.Mode&unix.S_ISGID != 0 {
		return 0, unix.Fchmodat(n.fd, "", st.Mode&0o7777&^unix.S_ISGID, unix.AT_EMPTY_PATH)
	}
	return 0, nil
}

func (w *worker) removexattr(h *inHeader, body []byte) (int, error) {
	name, _, err := text(body)
	if err != nil {
		return 0, err
	}
	n, err := w.node(h.Node)
	if err != nil {
		return 0, err
	}
	return 0, unix.Removexattr(path(n.fd), name)
}

// listing is an open directory and what was read of it and not yet told.
type listing struct {
	fd   int
	at   int64 // where the next entry of rest is
	buf  []byte
	rest []byte
}

func (w *worker) opendir(h *inHeader, _ []byte) (int, error) {
	n, err := w.node(h.Node)
	if err != nil {
		return 0, err
	}
	fd, err := unix.Openat(n.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	w.s.mu.Lock()
	w.s.dirs[uint64(fd)] = &listing{fd: fd}
	w.s.mu.Unlock()
	out, size := put[openOut](w.payload())
	out.Fh = uint64(fd)
	if !w.s.shared {
		out.OpenFlags = fopenKeepCache | fopenCacheDir
	}
	return size, nil
}

func (w *worker) closedir(_ *inHeader, body []byte) (int, error) {
	in, _, err := take[releaseIn](body)
	if err != nil {
		return 0, err
	}
	w.s.mu.Lock()
	l := w.s.dirs[in.Fh]
	delete(w.s.dirs, in.Fh)
	w.s.mu.Unlock()
	if l == nil {
		return 0, unix.EBADF
	}
	return 0, unix.Close(l.fd)
}

func (w *worker) readdir(h *inHeader, body []byte) (int, error)     { return w.list(h, body, false) }
func (w *worker) readdirplus(h *inHeader, body []byte) (int, error) { return w.list(h, body, true) }

// list tells what fits. The kernel asks for one part of a directory after the other, each once.
func (w *worker) list(h *inHeader, body []byte, plus bool) (int, error) {
	in, _, err := take[readIn](body)
	if err != nil {
		return 0, err
	}
	dir, err := w.node(h.Node)
	if err != nil {
		return 0, err
	}
	w.s.mu.Lock()
	l := w.s.dirs[in.Fh]
	w.s.mu.Unlock()
	if l == nil {
		return 0, unix.EBADF
	}
	if int64(in.Offset) != l.at {
		l.rest = nil
		if l.at, err = unix.Seek(l.fd, int64(in.Offset), unix.SEEK_SET); err != nil {
			return 0, err
		}
	}
	room := w.payload()[:min(int(in.Size), maxIO)]
	used := 0
	for {
		if len(l.rest) == 0 {
			if l.buf == nil {
				l.buf = make([]byte, 8<<10)
			}
			n, err := unix.Getdents(l.fd, l.buf)
			if err != nil && used == 0 {
				return 0, err
			}
			if n <= 0 {
				return used, nil
			}
			l.rest = l.buf[:n]
		}
		n, err := w.tell(room[used:], l, dir, plus)
		if err != nil || n == 0 {
			return used, err
		}
		used += n
	}
}

// tell writes the next entry; 0 when it does not fit.
func (w *worker) tell(b []byte, l *listing, dir *node, plus bool) (int, error) {
	d, reclen := l.rest, int(binary.NativeEndian.Uint16(l.rest[16:]))
	nameEnd := 19
	for d[nameEnd] != 0 {
		nameEnd++
	}
	entry := string(d[19:nameEnd])
	head := 0
	if plus {
		head = int(unsafe.Sizeof(entryOut{}))
	}
	size := (head + int(unsafe.Sizeof(dirent{})) + len(entry) + 7) &^ 7
	if size > len(b) {
		return 0, nil
	}
	clear(b[:size])
	out, n := put[dirent](b[head:])
	out.Ino, out.Off = binary.NativeEndian.Uint64(d), binary.NativeEndian.Uint64(d[8:])
	out.Namelen, out.Type = uint32(len(entry)), uint32(d[18])
	copy(b[head+n:], entry)
	if plus && entry != "." && entry != ".." {
		// One that is gone meanwhile has no node, and is looked up when somebody wants it.
		if fd, err := openEntry(dir.fd, entry, unix.O_PATH, 0); err == nil {
			e, _ := put[entryOut](b)
			if w.fill(e, fd, dir, entry) != nil {
				clear(b[:head])
			}
		}
	}
	l.at, l.rest = int64(out.Off), l.rest[reclen:]
	return size, nil
}
