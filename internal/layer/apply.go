package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
)

// Apply writes an uncompressed tar below root, which nobody else may be changing, and
// reads the stream to its end. The layer is taken alone: Result.Leans tells what it
// needs from layers below (see Finish). A root that the tar does not list is left as
// it is. After an error the directory is to be thrown away.
func Apply(ctx context.Context, r io.Reader, root *os.File, o Options) (Result, error) {
	a, err := newApplier(ctx, int(root.Fd()), o)
	if err != nil {
		return Result{}, err
	}
	defer a.dirs.forget()
	f := newFeed(ctx, r, o.NoDigest)
	err = a.all(f)
	f.stop()
	if err != nil {
		return Result{}, err
	}
	a.res.DiffID, a.res.Size = f.sum.digest(), f.size
	if a.rec != nil {
		if a.res.Recorded, err = a.rec.close(a.res.DiffID, a.res.Size); err != nil {
			return Result{}, fmt.Errorf("write recipe: %w", err)
		}
	}
	a.lean()
	return a.res, nil
}

type applier struct {
	ctx   context.Context
	o     Options
	lim   Limits
	dirs  *dirs
	umask uint32
	self  Owner
	buf   []byte
	res   Result
	rec   *recorder

	implied map[string]bool // made for an entry below, not listed (yet)
	stamps  []stamp         // directories get their times last
	made    map[string]bool // Remove: names of this tar
}

// stamp is what a directory gets once all entries are in it.
type stamp struct {
	name  string
	mtime unix.Timespec
	mode  uint32 // set with the times when it would keep us out; else 0
}

func newApplier(ctx context.Context, root int, o Options) (*applier, error) {
	ds, err := newDirs(root)
	if err != nil {
		return nil, err
	}
	a := &applier{ctx: ctx, o: o, lim: o.Limits.orDefault(), dirs: ds, umask: umask(),
		self: Owner{uint32(unix.Geteuid()), uint32(unix.Getegid())},
		buf:  make([]byte, blockSize), implied: map[string]bool{}}
	if o.Whiteouts == Remove {
		a.made = map[string]bool{}
	}
	if o.Recipe != nil {
		a.rec = newRecorder(o.Recipe)
	}
	ds.made = a.imply
	return a, nil
}

// umask reads the process's file mode mask, which proc(5) shows without changing it.
func umask() uint32 {
	b, _ := os.ReadFile("/proc/self/status")
	_, rest, ok := strings.Cut(string(b), "\nUmask:")
	line, _, _ := strings.Cut(rest, "\n")
	m, err := strconv.ParseUint(strings.TrimSpace(line), 8, 32)
	if !ok || err != nil {
		return 0o777 // set every mode explicitly
	}
	return uint32(m)
}

func (a *applier) all(f *feed) error {
	if a.rec != nil {
		f.keep = a.rec.literal
	}
	tr := tar.NewReader(onlyReader{f})
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return a.readError("read layer tar", err)
		}
		if err := a.ctx.Err(); err != nil {
			return context.Cause(a.ctx)
		}
		if a.res.Entries++; a.res.Entries > a.lim.Entries {
			return fault.Invalidf("layer has more than %d entries", a.lim.Entries)
		}
		if err := a.entry(h, tr, f); err != nil {
			return a.readError(fmt.Sprintf("layer entry %q", h.Name), err)
		}
	}
	if err := a.stamp(); err != nil {
		return err
	}
	if err := f.drain(); err != nil {
		return a.readError("read layer tar", err)
	}
	return nil
}

// readError tells a broken tar, which is the image's fault, from our own troubles.
func (a *applier) readError(what string, err error) error {
	var r *refusal
	if errors.As(err, &r) {
		return err
	}
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fault.Invalidf("%s: %w", what, err)
	}
	if fault.KindOf(err) != fault.Unknown && strings.HasPrefix(err.Error(), "layer ") {
		return err
	}
	return fmt.Errorf("%s: %w", what, err)
}

// entry writes one entry. Its directory is resolved inside the root, its last element
// is never followed.
func (a *applier) entry(h *tar.Header, r io.Reader, f *feed) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if name == "" {
		return a.rootEntry(h)
	}
	if a.o.Whiteouts != Plain {
		if skip, err := checkMeta(name); skip || err != nil {
			return err
		}
		if base := path.Base(name); strings.HasPrefix(base, whPrefix) {
			return a.whiteout(name)
		}
	}
	own, err := a.owner(h)
	if err != nil {
		return err
	}
	if a.made != nil {
		a.made[name] = true
	}
	if h.Typeflag == tar.TypeLink {
		return a.hardLink(name, h)
	}
	dirName, base := splitPath(name)
	d, err := a.dirs.ensure(dirName)
	if err != nil {
		return err
	}
	return a.node(d, base, name, h, own, r, f)
}

func (a *applier) node(d *dir, base, name string, h *tar.Header, own Owner, r io.Reader, f *feed) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return a.file(d, base, name, h, own, r, f)
	case tar.TypeDir:
		return a.directory(d, base, name, h, own)
	case tar.TypeSymlink:
		if err := a.create(d, base, func() error { return unix.Symlinkat(h.Linkname, d.fd, base) }); err != nil {
			return err
		}
		return a.special(d, base, h, own, unix.S_IFLNK)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return a.device(d, base, h, own)
	}
	return fault.Invalidf("unknown type %q", h.Typeflag)
}

// rootEntry sets the attributes of the root itself; it can be nothing but a directory.
func (a *applier) rootEntry(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return fault.Invalidf("layer entry %q: the root of a layer must be a directory", h.Name)
	}
	if a.o.Whiteouts == Plain {
		return nil // the place where an archive is unpacked keeps its own attributes
	}
	own, err := a.owner(h)
	if err != nil {
		return err
	}
	a.res.Root = true
	return a.dirAttrs(a.dirs.root.fd, "", h, own)
}

// checkMeta refuses names that only look like whiteouts and skips what aufs left.
func checkMeta(name string) (skip bool, err error) {
	if !strings.Contains(name, whPrefix) {
		return false, nil
	}
	d, base := splitPath(name)
	for part := range strings.SplitSeq(d, "/") {
		switch {
		case strings.HasPrefix(part, whMeta):
			return true, nil
		case strings.HasPrefix(part, whPrefix):
			return false, fault.Invalidf("layer entry %q: a whiteout cannot be a directory", name)
		}
	}
	if strings.HasPrefix(base, whMeta) && base != whOpaque {
		return true, nil
	}
	switch strings.TrimPrefix(base, whPrefix) {
	case "", ".", "..":
		if strings.HasPrefix(base, whPrefix) {
			return false, fault.Invalidf("layer entry %q: a whiteout must name a file", name)
		}
	}
	return false, nil
}

func (a *applier) owner(h *tar.Header) (Owner, error) {
	if a.o.Owner != nil {
		return *a.o.Owner, nil
	}
	const max = 1<<32 - 2 // the last one means "leave unchanged" to chown(2)
	if h.Uid < 0 || h.Uid > max || h.Gid < 0 || h.Gid > max {
		return Owner{}, fault.Invalidf("owner %d:%d is out of range", h.Uid, h.Gid)
	}
	return Owner{uint32(h.Uid), uint32(h.Gid)}, nil
}

// imply notes a directory that no entry has listed so far.
func (a *applier) imply(up *dir, base, real string, hides bool) error {
	if hides && a.o.Whiteouts == Overlay {
		if err := setXattr(up.fd, base, opaqueXattr(a.o.UserXattr), "y"); err != nil {
			return err
		}
	}
	own := Owner{}
	if a.o.Owner != nil {
		own = *a.o.Owner
	}
	if err := a.chown(up, base, own); err != nil {
		return err
	}
	if a.umask&0o755 != 0 || up.setgid {
		if err := chmodNoFollow(up.fd, base, 0o755); err != nil {
			return err
		}
	}
	if a.o.Whiteouts == Overlay {
		if !hides {
			a.implied[real] = true
		}
		a.stamps = append(a.stamps, stamp{name: real})
	}
	return nil
}

// lean sums up what the layer takes from below: what a later entry made good is out.
func (a *applier) lean() {
	a.res.Leans.Dirs = slices.Sorted(maps.Keys(a.implied))
	a.res.Leans.Links = slices.DeleteFunc(a.res.Leans.Links, func(l Link) bool {
		fd, err := linux.OpenFdInRoot(a.dirs.root.fd, l.Name, unix.O_PATH|unix.O_NOFOLLOW, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err == nil
	})
}

// stamp gives directories their times and those modes that had to wait. A name that
// was replaced by something else meanwhile is passed over.
func (a *applier) stamp() error {
	for _, s := range a.stamps {
		fd, err := linux.OpenFdInRoot(a.dirs.root.fd, s.name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err != nil {
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
				continue
			}
			return fmt.Errorf("set time of directory %q: %w", s.name, err)
		}
		err = utimes(fd, s.mtime)
		if err == nil && s.mode != 0 {
			err = unix.Chmod(linux.FDPath(fd), s.mode&^modeWaits)
		}
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("set attributes of directory %q: %w", s.name, err)
		}
	}
	return nil
}

// modeWaits marks a stamp whose mode is to be set, as a mode may be 0.
const modeWaits = 1 << 31

func timespec(t time.Time) unix.Timespec {
	if t.IsZero() {
		return unix.Timespec{}
	}
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}
