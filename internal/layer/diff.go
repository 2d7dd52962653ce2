package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/weakness"
)

// DiffOptions of Diff and Pack.
type DiffOptions struct {
	UserXattr bool       // as in Options
	Epoch     *time.Time // newer times are set back to it
	// Below tells what the layers below show at a path. Deletions of what is not there
	// are dropped. Nil keeps every deletion.
	Below func(path string) (exists, isDir bool, err error)
	// Root is what the root directory's attributes were; the root is listed when they
	// changed. Nil: never.
	Root   *Attr
	Recipe io.Writer // receives the recipe, when set
	Tar    io.Writer // receives the tar itself, when set

	NoDigest bool // DiffID is not asked for; with Recipe it always is
}

// Attr of a directory.
type Attr struct{ Mode, UID, GID uint32 }

// Diffed describes a tar made from a tree.
type Diffed struct {
	DiffID  digest.Digest
	Size    int64 // of the tar
	Files   int64 // bytes of file contents, hard links once
	Entries int64
	Empty   bool // nothing changed: the tar has no entry
}

// Diff makes the writable directory of an overlay equal to the layer tar that
// describes it, and that tar: sorted, numeric owners, whole seconds, PAX where needed,
// the same bytes for the same tree. In the tree sockets and overlayfs's own
// attributes are removed and times cut, so that unpacking the tar gives the tree.
// Nobody else may be using the directory.
func Diff(ctx context.Context, upper *os.File, o DiffOptions) (Diffed, error) {
	return newDiffer(ctx, o, true).all(upper)
}

// Pack writes the tar of a tree as it is (docker export): no deletions, nothing in the
// tree is touched.
func Pack(ctx context.Context, tree *os.File, o DiffOptions) (Diffed, error) {
	return newDiffer(ctx, o, false).all(tree)
}

type differ struct {
	ctx   context.Context
	o     DiffOptions
	layer bool // deletions mean something, and the tree is normalised
	out   *sink
	rec   *recorder
	first map[inode]string // the name under which a file with several was written
	head  bytes.Buffer
	sum   hash.Hash
	res   Diffed
}

type inode struct{ dev, ino uint64 }

func newDiffer(ctx context.Context, o DiffOptions, layer bool) *differ {
	d := &differ{ctx: ctx, o: o, layer: layer, out: newSink(o.Tar, o.NoDigest), first: map[inode]string{}, sum: sha256.New()}
	if o.Recipe != nil {
		d.rec = newRecorder(o.Recipe)
	}
	return d
}

func (d *differ) all(root *os.File) (Diffed, error) { return d.finish(d.root(root)) }

// finish ends the archive after its entries were written, or could not be.
func (d *differ) finish(err error) (Diffed, error) {
	if err == nil {
		d.literal(make([]byte, 1024)) // two zero blocks end an archive
	}
	d.res.DiffID, d.res.Size = d.out.close()
	if err == nil {
		err = d.out.err
	}
	if err == nil && d.rec != nil {
		_, err = d.rec.close(d.res.DiffID, d.res.Size)
	}
	d.res.Empty = d.res.Entries == 0
	return d.res, err
}

func (d *differ) root(root *os.File) error {
	fd, err := openat(int(root.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if d.o.Root != nil && *d.o.Root != (Attr{st.Mode & permBits, st.Uid, st.Gid}) {
		if err := d.header(&tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: int64(st.Mode & permBits),
			Uid: int(st.Uid), Gid: int(st.Gid), ModTime: d.time(&st)}); err != nil {
			return err
		}
	}
	if d.layer {
		// overlayfs writes its own on the root, too.
		opaque, err := d.xattrs(fd, ".", &tar.Header{})
		if err == nil && opaque {
			err = removeXattr(fd, ".", opaqueXattr(d.o.UserXattr))
		}
		if err != nil {
			return err
		}
	}
	_, err = d.children(fd, "", false)
	return err
}

// children writes the entries of an open directory. fresh: nothing of the layers below
// shows through here. It reports whether it removed any.
func (d *differ) children(fd int, dir string, fresh bool) (removed bool, err error) {
	names, err := readNames(fd)
	if err != nil {
		return false, err
	}
	slices.Sort(names)
	for _, base := range names {
		if err := d.ctx.Err(); err != nil {
			return removed, err
		}
		name := base
		if dir != "" {
			name = strings.TrimSuffix(dir, "/") + "/" + base
		}
		if len(name) > maxPath {
			return removed, fault.Invalidf("path %.60q... is longer than %d bytes", name, maxPath)
		}
		gone, err := d.entry(fd, base, name, fresh)
		if err != nil {
			return removed, fmt.Errorf("layer file %q: %w", name, err)
		}
		removed = removed || gone
	}
	return removed, nil
}

func (d *differ) entry(fd int, base, name string, fresh bool) (removed bool, err error) {
	var st unix.Stat_t
	follow := unix.AT_SYMLINK_NOFOLLOW
	if weakness.Of("CP2") {
		follow = 0
	}
	if err := unix.Fstatat(fd, base, &st, follow); err != nil {
		return false, err
	}
	kind := st.Mode & unix.S_IFMT
	switch {
	case d.layer && whiteout(&st):
		return d.whiteout(fd, base, name, fresh)
	case kind == unix.S_IFSOCK:
		if !d.layer {
			return false, nil
		}
		return true, unix.Unlinkat(fd, base, 0)
	case d.layer && strings.HasPrefix(base, whPrefix):
		return false, fault.Invalidf("a name that begins with %q cannot be kept in a layer, where it means a deletion", whPrefix)
	}
	h := tarHeader(&st, d.time(&st))
	h.Name = name
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		key := inode{uint64(st.Dev), st.Ino}
		if first, ok := d.first[key]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return false, d.header(h)
		}
		d.first[key] = name
	}
	opaque, err := d.xattrs(fd, base, h)
	if err != nil {
		return false, err
	}
	switch kind {
	case unix.S_IFDIR:
		return false, d.dir(fd, base, name, h, &st, opaque, fresh)
	case unix.S_IFREG:
		return false, d.file(fd, base, h, &st)
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = readlinkat(fd, base); err != nil {
			return false, err
		}
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeBlock
		if kind == unix.S_IFCHR {
			h.Typeflag = tar.TypeChar
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	if err := d.header(h); err != nil {
		return false, err
	}
	return false, d.settime(fd, base, h.ModTime, &st)
}

func tarHeader(st *unix.Stat_t, t time.Time) *tar.Header {
	return &tar.Header{Mode: int64(st.Mode & permBits), Uid: int(st.Uid), Gid: int(st.Gid), ModTime: t}
}

// time is the modification time as the tar has it.
func (d *differ) time(st *unix.Stat_t) time.Time {
	t := time.Unix(st.Mtim.Sec, 0)
	if d.o.Epoch != nil && t.After(*d.o.Epoch) {
		t = d.o.Epoch.Truncate(time.Second)
	}
	return t
}

// settime makes the tree's time that of the tar.
func (d *differ) settime(fd int, base string, t time.Time, st *unix.Stat_t) error {
	if !d.layer || st.Mtim.Nsec == 0 && st.Mtim.Sec == t.Unix() {
		return nil
	}
	ts := timespec(t)
	return unix.UtimesNanoAt(fd, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// xattrs adds an entry's attributes to its header. In a layer it removes those that
// are overlayfs's or the host's.
func (d *differ) xattrs(fd int, base string, h *tar.Header) (opaque bool, err error) {
	names, err := listXattrs(fd, base)
	if err != nil {
		return false, err
	}
	mark := opaqueXattr(d.o.UserXattr)
	for _, n := range names {
		if keepsXattr(n) {
			v, ok, err := getXattr(fd, base, n)
			if err != nil {
				return false, err
			}
			if ok {
				if h.PAXRecords == nil {
					h.PAXRecords = map[string]string{}
				}
				h.PAXRecords["SCHILY.xattr."+n] = v
			}
			continue
		}
		if !d.layer {
			continue
		}
		if n == mark {
			v, _, err := getXattr(fd, base, n)
			if err != nil {
				return false, err
			}
			if opaque = v == "y"; opaque {
				continue
			}
		}
		if strings.HasPrefix(n, "trusted.") || strings.HasPrefix(n, "user.") {
			if err := removeXattr(fd, base, n); err != nil {
				return false, err
			}
		}
	}
	return opaque, nil
}

// below asks about a path; without an answer everything may be there.
func (d *differ) below(name string) (exists, isDir bool, err error) {
	if d.o.Below == nil {
		return true, true, nil
	}
	return d.o.Below(name)
}

func (d *differ) whiteout(fd int, base, name string, fresh bool) (removed bool, err error) {
	exists := false
	if !fresh {
		if exists, _, err = d.below(name); err != nil {
			return false, err
		}
	}
	if !exists {
		return true, unix.Unlinkat(fd, base, 0)
	}
	dir, base := splitPath(name)
	if dir != "" {
		dir += "/"
	}
	return false, d.header(&tar.Header{Typeflag: tar.TypeReg, Name: dir + whPrefix + base, ModTime: time.Unix(0, 0)})
}

func (d *differ) dir(fd int, base, name string, h *tar.Header, st *unix.Stat_t, opaque, fresh bool) error {
	h.Typeflag, h.Name = tar.TypeDir, name+"/"
	if err := d.header(h); err != nil {
		return err
	}
	sub, err := openat(fd, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer unix.Close(sub)
	if opaque {
		hides := false
		if !fresh {
			exists, isDir, err := d.below(name)
			if err != nil {
				return err
			}
			hides = exists && isDir
		}
		// overlayfs marks each directory that it makes; the mark stays where it hides
		// something.
		if !hides {
			err = removeXattr(fd, base, opaqueXattr(d.o.UserXattr))
		} else {
			err = d.header(&tar.Header{Typeflag: tar.TypeReg, Name: name + "/" + whOpaque, ModTime: time.Unix(0, 0)})
		}
		if err != nil {
			return err
		}
		fresh = true
	}
	removed, err := d.children(sub, name, fresh)
	if err != nil {
		return err
	}
	if removed {
		st.Mtim = unix.Timespec{Nsec: 1} // the removal touched it
	}
	return d.settime(fd, base, h.ModTime, st)
}

func (d *differ) file(fd int, base string, h *tar.Header, st *unix.Stat_t) error {
	h.Typeflag, h.Size = tar.TypeReg, st.Size
	f, err := openat(fd, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(f)
	if err := same(f, st); err != nil {
		return err
	}
	if err := d.header(h); err != nil {
		return err
	}
	if err := d.contents(f, h.Name, h.Size); err != nil {
		return err
	}
	d.res.Files += h.Size
	return d.settime(fd, base, h.ModTime, st)
}

func (d *differ) contents(f int, name string, size int64) error {
	d.sum.Reset()
	for left := size; left > 0; {
		p := d.out.space()
		p = p[:min(int64(len(p)), left)]
		n, err := unix.Read(f, p)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return fault.Conflictf("file became shorter while it was read: something still writes to it")
		}
		if d.rec != nil {
			d.sum.Write(p[:n])
		}
		if err := d.out.advance(n); err != nil {
			return err
		}
		if left -= int64(n); d.ctx.Err() != nil {
			return d.ctx.Err()
		}
	}
	if d.rec != nil {
		d.rec.file(name, size, d.sum.Sum(nil))
	}
	d.literal(make([]byte, -size&511)) // padding to whole blocks
	return d.out.err
}

// header writes a header. Each comes from a writer of its own, since contents go past
// archive/tar.
func (d *differ) header(h *tar.Header) error {
	d.head.Reset()
	if err := tar.NewWriter(&d.head).WriteHeader(h); err != nil {
		return fault.Invalidf("make tar header: %w", err)
	}
	d.res.Entries++
	d.literal(d.head.Bytes())
	return d.out.err
}

func (d *differ) literal(p []byte) {
	if d.rec != nil {
		d.rec.literal(p)
	}
	d.out.write(p)
}

// sink assembles the tar in blocks; one goroutine hashes them.
type sink struct {
	free blocks
	cur  *block
	used int
	sum  *sum
	w    io.Writer
	size int64
	err  error
}

func newSink(w io.Writer, noDigest bool) *sink {
	free := newBlocks()
	return &sink{free: free, sum: newSum(free, noDigest), w: w}
}

// space is room for the next bytes, to be filled and given over with advance.
func (s *sink) space() []byte {
	if s.cur == nil {
		s.cur, s.used = (<-s.free).ready(), 0
	}
	return s.cur.data[s.used:]
}

func (s *sink) advance(n int) error {
	s.used += n
	s.size += int64(n)
	if s.used == len(s.cur.data) {
		s.flush()
	}
	return s.err
}

func (s *sink) write(p []byte) {
	for len(p) > 0 {
		n := copy(s.space(), p)
		s.advance(n)
		p = p[n:]
	}
}

func (s *sink) flush() {
	if s.cur == nil {
		return
	}
	s.cur.data = s.cur.data[:s.used]
	s.cur.uses.Store(1)
	if s.w != nil && s.err == nil {
		_, s.err = s.w.Write(s.cur.data)
	}
	s.sum.in <- s.cur
	s.cur = nil
}

func (s *sink) close() (digest.Digest, int64) {
	s.flush()
	s.sum.end()
	return s.sum.digest(), s.size
}
