package mirror

// Open files. A handle is the number of the descriptor.

import (
	"golang.org/x/sys/unix"
)

// notOurs are flags of a caller's that the kernel does itself, or that would lead astray.
const notOurs = unix.O_CREAT | unix.O_EXCL | unix.O_TRUNC | unix.O_APPEND | unix.O_DIRECT | unix.O_NOFOLLOW | unix.O_DIRECTORY | unix.O_NOCTTY | unix.O_ASYNC

// flagsFor are those of our own descriptor. It never waits: what is opened is a regular file, whatever it was when the kernel looked.
func flagsFor(flags uint32) int { return int(flags)&^notOurs | unix.O_NONBLOCK }

func (w *worker) opened(out *openOut, fd int) {
	out.Fh = uint64(fd)
	if !w.s.shared {
		out.OpenFlags = fopenKeepCache
	}
}

func (w *worker) open(h *inHeader, body []byte) (int, error) {
	in, _, err := take[openIn](body)
	if err != nil {
		return 0, err
	}
	n, err := w.node(h.Node)
	if err != nil {
		return 0, err
	}
	if n.mode&unix.S_IFMT != unix.S_IFREG {
		return 0, unix.EINVAL
	}
	fd := -1
	err = withoutFSETID(in.OpenFlags&openKill != 0, func() (err error) {
		fd, err = reopen(n.fd, flagsFor(in.Flags))
		return err
	})
	if err != nil {
		return 0, err
	}
	if in.Flags&unix.O_ACCMODE != unix.O_RDONLY { // an overlay has copied it
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil {
			w.s.nodes.changed(n, &st)
		}
	}
	out, size := put[openOut](w.payload())
	w.opened(out, fd)
	return size, nil
}

func (w *worker) create(h *inHeader, body []byte) (int, error) {
	in, rest, err := take[createIn](body)
	if err != nil {
		return 0, err
	}
	dir, name, _, err := w.dir(h.Node, rest)
	if err != nil {
		return 0, err
	}
	defer as(h, in.Umask)()
	fd, err := openEntry(dir.fd, name, flagsFor(in.Flags)|unix.O_CREAT|int(in.Flags)&(unix.O_EXCL|unix.O_TRUNC), in.Mode&0o7777)
	if err != nil {
		return 0, err
	}
	return w.created(fd, dir, name)
}

// tmpfile makes a file without a name (O_TMPFILE).
func (w *worker) tmpfile(h *inHeader, body []byte) (int, error) {
	in, _, err := take[createIn](body)
	if err != nil {
		return 0, err
	}
	dir, err := w.node(h.Node)
	if err != nil {
		return 0, err
	}
	defer as(h, in.Umask)()
	fd, err := unix.Openat(dir.fd, ".", flagsFor(in.Flags)|unix.O_TMPFILE|unix.O_CLOEXEC, in.Mode&0o7777)
	if err != nil {
		return 0, err
	}
	return w.created(fd, dir, "")
}

// created answers with a file and its handle.
func (w *worker) created(fd int, dir *node, name string) (int, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = unix.EEXIST
	}
	at := -1
	if err == nil {
		at, err = reopen(fd, unix.O_PATH)
	}
	var n int
	if err == nil {
		n, err = w.entry(at, dir, name)
	}
	if err != nil {
		unix.Close(fd)
		return 0, err
	}
	out, size := put[openOut](w.payload()[n:])
	w.opened(out, fd)
	return n + size, nil
}

func (w *worker) close(_ *inHeader, body []byte) (int, error) {
	in, _, err := take[releaseIn](body)
	if err != nil {
		return 0, err
	}
	return 0, unix.Close(int(in.Fh))
}

func (w *worker) read(_ *inHeader, body []byte) (int, error) {
	in, _, err := take[readIn](body)
	if err != nil {
		return 0, err
	}
	b := w.payload()[:min(int(in.Size), maxIO)]
	for n := 0; ; { // a short answer would be the file's end
		m, err := unix.Pread(int(in.Fh), b[n:], int64(in.Offset)+int64(n))
		if err == unix.EINTR {
			continue
		}
		if err != nil && n == 0 {
			return 0, err
		}
		if n += max(m, 0); m <= 0 || n == len(b) {
			return n, nil
		}
	}
}

func (w *worker) write(_ *inHeader, body []byte) (int, error) {
	in, data, err := take[writeIn](body)
	if err != nil {
		return 0, err
	}
	if len(data) < int(in.Size) {
		return 0, unix.EINVAL
	}
	data = data[:in.Size]
	n := 0
	err = withoutFSETID(in.WriteFlags&writeKill != 0, func() (err error) {
		if in.Flags&unix.O_APPEND != 0 && in.WriteFlags&writeCache == 0 {
			n, err = unix.Pwritev2(int(in.Fh), [][]byte{data}, int64(in.Offset), rwfAppend)
		} else {
			n, err = unix.Pwrite(int(in.Fh), data, int64(in.Offset))
		}
		return err
	})
	out, size := put[sizeOut](w.payload())
	out.Size = uint32(max(n, 0))
	return size, err
}

const rwfAppend = 0x10 // RWF_APPEND of linux/fs.h

func (w *worker) fsync(_ *inHeader, body []byte) (int, error) {
	in, _, err := take[fsyncIn](body)
	if err != nil {
		return 0, err
	}
	if in.Flags&1 != 0 {
		return 0, unix.Fdatasync(int(in.Fh))
	}
	return 0, unix.Fsync(int(in.Fh))
}

func (w *worker) fallocate(_ *inHeader, body []byte) (int, error) {
	in, _, err := take[fallocateIn](body)
	if err != nil {
		return 0, err
	}
	return 0, unix.Fallocate(int(in.Fh), in.Mode, int64(in.Offset), int64(in.Length))
}

// lseek finds data and holes; positions are the kernel's.
func (w *worker) lseek(_ *inHeader, body []byte) (int, error) {
	in, _, err := take[lseekIn](body)
	if err != nil {
		return 0, err
	}
	off, err := unix.Seek(int(in.Fh), int64(in.Offset), int(in.Whence))
	out, size := put[lseekOut](w.payload())
	out.Offset = uint64(off)
	return size, err
}

func (w *worker) copyFileRange(_ *inHeader, body []byte) (int, error) {
	in, _, err := take[copyFileRangeIn](body)
	if err != nil {
		return 0, err
	}
	from, to := int64(in.OffIn), int64(in.OffOut)
	n, err := unix.CopyFileRange(int(in.FhIn), &from, int(in.FhOut), &to, int(min(in.Len, 1<<30)), int(in.Flags))
	out, size := put[sizeOut](w.payload())
	out.Size = uint32(max(n, 0))
	return size, err
}
