// ADD of a local archive: its entries are unpacked below the destination, which is
// their root: no name and no link in it leads out.
package builder

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

// unpack reports whether the source is an archive; then it is unpacked below dest.
func (c *copier) unpack(s *source, dest string) (bool, error) {
	e := &s.entries[0]
	in, err := openBeneath(int(c.from.root.Fd()), s.path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, &fs.PathError{Op: "open", Path: "/" + s.path, Err: err}
	}
	f := os.NewFile(uintptr(in), s.path)
	defer f.Close()
	r, plain, done, err := archive(f)
	if err != nil || r == nil {
		return false, err
	}
	defer done()
	first, err := r.Next()
	if err != nil {
		return false, nil // compressed, but no tar: it is copied as it is
	}
	if err := c.mkdirAll(dest); err != nil {
		return false, err
	}
	at, _, err := follow(c.root, dest, true, nil)
	if err != nil {
		return false, err
	}
	root, err := openBeneath(c.root, at, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(root)
	// Below, dest is the root; modes of an archive are its own.
	u := unpacker{copier: copier{ctx: c.ctx, root: root, upper: c.upper, chown: c.chown, epoch: c.epoch, buffer: c.buffer}, at: at, plain: plain}
	defer u.close()
	if err := u.all(first, r); err != nil {
		return false, fmt.Errorf("unpack %s: %w", s.path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(in, &st); err != nil {
		return false, err
	}
	if !c.from.owned && sumKeyOf(&st) != sumKeyOf(&e.st) {
		return false, fault.Conflictf("%q changed while it was unpacked: the context must not change during a build", s.path)
	}
	return true, nil
}

// magics are the compressions that are read.
var magics = [...]struct {
	magic string
	open  func(io.Reader) (io.Reader, func(), error)
}{
	{"\x1f\x8b", func(r io.Reader) (io.Reader, func(), error) {
		z, err := gzip.NewReader(r)
		return z, func() {}, err
	}},
	{"BZh", func(r io.Reader) (io.Reader, func(), error) { return bzip2.NewReader(r), func() {}, nil }},
	{"\x28\xb5\x2f\xfd", func(r io.Reader) (io.Reader, func(), error) {
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxMemory(128<<20))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}},
	{"\xfd7zXZ\x00", func(r io.Reader) (io.Reader, func(), error) {
		z, err := xz.NewReader(r)
		return z, func() {}, err
	}},
}

// archive opens a tar, compressed or not; r is nil when f is none, plain when f is no file or compressed.
func archive(f io.Reader) (r *tar.Reader, plain *plainFile, done func(), err error) {
	b := bufio.NewReaderSize(f, 256<<10)
	head, err := b.Peek(b.Size()) // the first header of an archive may stand behind records of its own
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, nil, err
	}
	for _, m := range magics {
		if bytes.HasPrefix(head, []byte(m.magic)) {
			z, done, err := m.open(b)
			if err != nil {
				return nil, nil, nil, nil
			}
			return tar.NewReader(z), nil, done, nil
		}
	}
	if _, err := tar.NewReader(bytes.NewReader(head)).Next(); err != nil {
		return nil, nil, nil, nil
	}
	file, ok := f.(*os.File)
	if !ok {
		return tar.NewReader(b), nil, func() {}, nil
	}
	plain = &plainFile{file, b}
	return tar.NewReader(plain), plain, func() {}, nil
}

// plainFile is a file read through a buffer, which tells its position and passes over what was copied inside the kernel.
type plainFile struct {
	f *os.File
	b *bufio.Reader
}

func (p *plainFile) Read(b []byte) (int, error) { return p.b.Read(b) }

// Seek goes forward from where it is.
func (p *plainFile) Seek(n int64, whence int) (int64, error) {
	at, err := p.f.Seek(0, io.SeekCurrent)
	if err != nil || whence != io.SeekCurrent || n < 0 {
		return 0, errors.Join(err, errors.ErrUnsupported)
	}
	at -= int64(p.b.Buffered())
	if n <= int64(p.b.Buffered()) {
		_, err := p.b.Discard(int(n))
		return at + n, err
	}
	p.b.Reset(p.f)
	return p.f.Seek(at+n, io.SeekStart)
}

// copyTo copies the next size bytes without passing over them. It reports whether it could.
func (p *plainFile) copyTo(out int, size int64) bool {
	at, err := p.Seek(0, io.SeekCurrent)
	for err == nil && size > 0 {
		var n int
		if n, err = unix.CopyFileRange(int(p.f.Fd()), &at, out, nil, int(min(size, 1<<30)), 0); errors.Is(err, unix.EINTR) {
			err = nil
			continue
		}
		if n == 0 {
			break
		}
		size -= int64(n)
	}
	return err == nil && size == 0
}

type unpacker struct {
	copier
	at    string        // root, below the root of upper
	plain *plainFile    // nil: the archive is compressed
	dirs  []*tar.Header // times at the end
}

func (u *unpacker) all(h *tar.Header, r *tar.Reader) error {
	for {
		if u.ctx.Err() != nil {
			return context.Cause(u.ctx)
		}
		if err := u.entry(h, r); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
		var err error
		h, err = r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	for _, h := range u.dirs {
		if err := u.times(h); err != nil && !notExist(err) {
			return err
		}
	}
	return nil
}

// locate finds the directory of an entry; symlinks in it lead inside the root only.
func (u *unpacker) locate(name string) (at string, err error) {
	clean := path.Clean("/" + name)
	if clean == "/" {
		return ".", nil
	}
	dir := path.Dir(clean)
	if err := u.mkdirAll(dir); err != nil {
		return "", err
	}
	real, _, err := follow(u.root, dir, true, nil)
	if err != nil {
		return "", err
	}
	return join(real, path.Base(clean)), nil
}

func (u *unpacker) entry(h *tar.Header, r io.Reader) error {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	}
	at, err := u.locate(h.Name)
	if err != nil {
		return err
	}
	if at == "." {
		u.dirs = append(u.dirs, h)
		return nil // the destination keeps its own mode and owner
	}
	parent, name, err := u.parent(at)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		if err := u.directory(parent, name, at); err != nil {
			return err
		}
		u.dirs = append(u.dirs, h)
		return u.attributes(h, parent, name)
	}
	if err := u.clear(parent, name, at); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		err = u.regular(parent, name, at, h, r)
	case tar.TypeSymlink:
		err = unix.Symlinkat(h.Linkname, parent, name)
	case tar.TypeLink:
		return u.link(h.Linkname, parent, name)
	case tar.TypeChar:
		err = unix.Mknodat(parent, name, unix.S_IFCHR|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	case tar.TypeBlock:
		err = unix.Mknodat(parent, name, unix.S_IFBLK|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	case tar.TypeFifo:
		err = unix.Mkfifoat(parent, name, 0o600)
	default:
		return fault.Unsupportedf("entry type %q of the archive is not known", h.Typeflag)
	}
	if err != nil {
		return err
	}
	return u.attributes(h, parent, name)
}

func (u *unpacker) directory(parent int, name, at string) error {
	err := unix.Mkdirat(parent, name, 0o700)
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil
	}
	if err := removeFile(parent, name, at); err != nil {
		return err
	}
	return unix.Mkdirat(parent, name, 0o700)
}

// clear makes room for an entry; a directory in its place goes with all that is in it.
func (u *unpacker) clear(parent int, name, at string) error {
	err := unix.Unlinkat(parent, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	return removeAll(parent, name)
}

// removeAll deletes a directory tree without following a symlink.
func removeAll(parent int, name string) error {
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := unix.Unlinkat(fd, n, 0); errors.Is(err, unix.EISDIR) {
			err = removeAll(fd, n)
			if err != nil {
				return err
			}
		} else if err != nil {
			return err
		}
	}
	return unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
}

func (u *unpacker) regular(parent int, name, at string, h *tar.Header, r io.Reader) error {
	fd, err := unix.Openat(parent, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	if u.upper > 0 && h.Size >= bigFile { // as content does
		if below, err := openBeneath(u.upper, join(u.at, at), unix.O_WRONLY, 0); err == nil {
			unix.Close(fd)
			fd = below
		}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	defer startWriting(fd, h.Size)
	if u.plain != nil && h.Size >= bigFile && !sparse(h) {
		if u.plain.copyTo(fd, h.Size) {
			return nil
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{r}, u.buffer)
	return err
}

// sparse tells an entry whose bytes in the archive are not those of its file (GNU tar, "Storing Sparse Files").
func sparse(h *tar.Header) bool {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// link makes a hard link to a file that is inside.
func (u *unpacker) link(target string, parent int, name string) error {
	clean := path.Clean("/" + target)
	dir, _, err := follow(u.root, path.Dir(clean), true, nil)
	if err != nil {
		return err
	}
	fd, err := openBeneath(u.root, dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", target, err)
	}
	defer unix.Close(fd)
	if err := unix.Linkat(fd, path.Base(clean), parent, name, 0); err != nil {
		return fmt.Errorf("hard link to %q: %w", target, err)
	}
	return nil
}

func (u *unpacker) attributes(h *tar.Header, parent int, name string) error {
	uid, gid := h.Uid, h.Gid
	if u.chown != nil {
		uid, gid = u.chown.uid, u.chown.gid
	}
	if err := chown(func() error { return unix.Fchownat(parent, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW) }, uid, gid); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := chmodAt(parent, name, uint32(h.Mode)&allModes); err != nil {
			return err
		}
		if err := u.xattrs(h, parent, name); err != nil {
			return err
		}
	}
	mtime := unix.NsecToTimespec(h.ModTime.UnixNano())
	return setTimes(parent, name, mtime, mtime)
}

func (u *unpacker) xattrs(h *tar.Header, parent int, name string) error {
	const prefix = "SCHILY.xattr."
	for k, v := range h.PAXRecords {
		x, ok := strings.CutPrefix(k, prefix)
		if !ok || !keptXattr(x) || h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir {
			continue
		}
		fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		err = unix.Fsetxattr(fd, x, []byte(v), 0)
		unix.Close(fd)
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("set attribute %s: %w", x, err)
		}
	}
	return nil
}

func (u *unpacker) times(h *tar.Header) error {
	at, st, err := follow(u.root, h.Name, false, nil)
	if err != nil || st == nil || at == "." || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	parent, name, err := u.parent(at)
	if err != nil {
		return err
	}
	mtime := unix.NsecToTimespec(h.ModTime.UnixNano())
	return setTimes(parent, name, mtime, mtime)
}
