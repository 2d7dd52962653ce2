package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	ctr "keg/internal/container"
	"keg/internal/fault"
	"keg/internal/layer"
	"keg/internal/sandbox"
	"keg/internal/snapshot"
	"keg/internal/weakness"
)

// CopyOptions are those of docker cp.
type CopyOptions struct {
	Archive  bool        // into a container: files belong to the container's user
	Follow   bool        // a source that is a link stands for what it points at
	Progress func(int64) // bytes so far
}

// Copied tells how much went where.
type Copied struct {
	Bytes int64  // of the tar
	To    string // as the destination was understood
}

// HostError is what is wrong with the caller's own files: no engine is to blame.
type HostError struct{ Err error }

func (h *HostError) Error() string { return h.Err.Error() }
func (h *HostError) Unwrap() error { return h.Err }

// Docker's words (moby/go-archive).
var (
	errDirNotExists  = errors.New("no such directory")
	errCannotCopyDir = errors.New("cannot copy directory")
	errNotDirectory  = errors.New("not a directory")
)

// CopyOut copies a path of a container to a path of the host, absolute, with its
// trailing slash or dot.
func (e *Engine) CopyOut(ctx context.Context, ref, src, dst string, o CopyOptions) (Copied, error) {
	host, err := hostRoot()
	if err != nil {
		return Copied{}, err
	}
	defer host.Close()
	from, err := e.openSource(ctx, ref, src, o.Follow)
	if err != nil {
		return Copied{}, err
	}
	defer from.close()
	to, err := layer.Look(host, dst, true)
	if err != nil {
		return Copied{}, &HostError{err}
	}
	defer to.Close()
	name, dir, err := place(from.At, from.name, to, dst)
	if err != nil {
		return Copied{}, &HostError{err}
	}
	defer dir.Close()
	// Files become the caller's own, as every file that he makes.
	own := &layer.Owner{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	n, err := transfer(ctx, from.At, name, dir, layer.Options{Whiteouts: layer.Plain, Owner: own, SingleID: os.Geteuid() != 0, Shown: dir.Name()}, o.Progress)
	return Copied{n, dst}, err
}

// CopyIn copies a path of the host, absolute, to a path of a container.
func (e *Engine) CopyIn(ctx context.Context, src, ref, dst string, o CopyOptions) (Copied, error) {
	host, err := hostRoot()
	if err != nil {
		return Copied{}, err
	}
	defer host.Close()
	from, err := layer.Look(host, src, o.Follow)
	if err == nil && !from.Exists {
		from.Close()
		err = &fs.PathError{Op: "lstat", Path: src, Err: syscall.ENOENT}
	} else if err == nil && layer.AssertsDir(src) && !from.IsDir() {
		from.Close()
		err = &fs.PathError{Op: "lstat", Path: src, Err: errNotDirectory}
	}
	if err != nil {
		return Copied{}, &HostError{err}
	}
	defer from.Close()
	c, to, err := e.openTarget(ctx, ref, dst)
	if err != nil {
		return Copied{}, err
	}
	defer c.close()
	defer to.Close()
	name, dir, err := place(from, entryName(src), to, dst)
	if errors.Is(err, fs.ErrNotExist) {
		return Copied{}, noFile(path.Dir(to.Path), ref)
	}
	if err != nil {
		return Copied{}, &HostError{err}
	}
	defer dir.Close()
	own, err := c.owner(o.Archive)
	if err != nil {
		return Copied{}, err
	}
	n, err := transfer(ctx, from, name, dir, layer.Options{Whiteouts: layer.Plain, Owner: own, Shown: dir.Name()}, o.Progress)
	return Copied{n, ref + ":" + to.Path}, readOnly(err)
}

// StatPath describes a path of a container, as the Engine API does.
func (e *Engine) StatPath(ctx context.Context, ref, p string) (container.PathStat, error) {
	from, err := e.openSource(ctx, ref, p, false)
	if err != nil {
		return container.PathStat{}, err
	}
	defer from.close()
	return pathStat(from.At, orElse(from.name, "/")), nil
}

// CopyFrom writes a path of a container as a tar.
func (e *Engine) CopyFrom(ctx context.Context, ref, p string, follow bool, w io.Writer) (container.PathStat, error) {
	from, err := e.openSource(ctx, ref, p, follow)
	if err != nil {
		return container.PathStat{}, err
	}
	defer from.close()
	name := from.name
	if p == "/" {
		name = p // Docker's name for it; "/." is "./"
	}
	_, err = layer.PackAt(ctx, from.At, name, layer.DiffOptions{Tar: w, NoDigest: true})
	return pathStat(from.At, orElse(from.name, "/")), err
}

// CopyTo unpacks a tar, compressed or not, in a directory of a container.
func (e *Engine) CopyTo(ctx context.Context, ref, dst string, in io.Reader, o CopyOptions) error {
	c, to, err := e.openTarget(ctx, ref, dst)
	if err != nil {
		return err
	}
	defer c.close()
	defer to.Close()
	if !to.IsDir() {
		return &HostError{fmt.Errorf("destination \"%s:%s\" must be a directory", ref, dst)}
	}
	dir, err := to.OpenDir()
	if err != nil {
		return err
	}
	defer dir.Close()
	own, err := c.owner(o.Archive)
	if err != nil {
		return err
	}
	plain, err := layer.Inflate(in)
	if err != nil {
		return err
	}
	defer plain.Close()
	_, err = layer.Apply(ctx, plain, dir, layer.Options{Whiteouts: layer.Plain, Owner: own, Shown: to.Path, NoDigest: true})
	return readOnly(err)
}

// place applies the rules of cp: under which name an entry goes into which directory.
// The name "" means that the contents of a directory go, without it.
func place(from *layer.At, name string, to *layer.At, dst string) (string, *os.File, error) {
	switch {
	case to.IsDir():
		dir, err := to.OpenDir()
		return name, dir, err
	case from.IsDir() && to.Exists:
		return "", nil, errCannotCopyDir
	case !from.IsDir() && !to.Exists && layer.AssertsDir(dst):
		return "", nil, errDirNotExists
	case to.Exists && layer.AssertsDir(dst):
		return "", nil, errNotDirectory
	}
	dir, err := (&layer.At{Dir: to.Dir, Base: ".", Path: path.Dir(to.Path)}).OpenDir()
	return to.Base, dir, err
}

// entryName is the name that the source has by itself; "" for "/", "." and "dir/.",
// which stand for what is in them.
func entryName(p string) string {
	base := path.Base(path.Clean("/" + p))
	if base == "/" || p == "." || len(p) > 1 && p[len(p)-2:] == "/." {
		return ""
	}
	return base
}

// transfer copies one entry into a directory through a tar that is nowhere.
func transfer(ctx context.Context, from *layer.At, name string, dir *os.File, o layer.Options, progress func(int64)) (int64, error) {
	if weakness.Of("CP1") {
		weakness.Spawn()
	}
	pr, pw := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		_, err := layer.PackAt(ctx, from, name, layer.DiffOptions{Tar: pw, NoDigest: true})
		pw.CloseWithError(err)
		packed <- err
	}()
	if progress == nil {
		progress = func(int64) {}
	}
	o.NoDigest = true
	res, err := layer.Apply(ctx, &watched{r: pr, ctx: ctx, step: progress}, dir, o)
	pr.CloseWithError(errStopped)
	if perr := <-packed; perr != nil && !errors.Is(perr, errStopped) {
		err = perr
	}
	return res.Size, err
}

// A side is the container's end of a copy.
type side struct {
	e    *Engine
	rec  *ctr.Record
	root *os.File
	undo []func()
}

func (s *side) close() {
	for i := len(s.undo) - 1; i >= 0; i-- {
		s.undo[i]()
	}
}

// side opens the root of a container as its program sees it, volumes included. One that
// does not run is assembled for the purpose, and cannot start while it is written to.
func (e *Engine) side(ctx context.Context, ref string, write bool) (_ *side, err error) {
	r, st, err := e.view(ctx, ref)
	if err != nil {
		return nil, err
	}
	s := &side{e: e, rec: r}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if write && r.Host.ReadonlyRootfs && !isLive(st.Status) && len(r.Mounts) == 0 {
		return nil, errReadOnlyRoot()
	}
	// A range of ids of its own is seen in the running root, and not on disk.
	mode, err := ctr.ParseUserns(string(r.Host.UsernsMode))
	if err != nil {
		return nil, err
	}
	if mode.Auto && isLive(st.Status) && write {
		return nil, fault.Unsupportedf("container %s runs with ids of its own (--userns=%s), and files cannot be copied into it meanwhile; stop it first", r.Name, r.Host.UsernsMode)
	}
	if isLive(st.Status) && !mode.Auto {
		c, err := e.monitors.Dial(ctx, r.ID)
		if err == nil {
			defer c.Close()
			s.root, err = c.Root(ctx)
		}
		if err == nil {
			s.undo = append(s.undo, func() { s.root.Close() })
			return s, nil
		}
		if !fault.Is(err, fault.Conflict) {
			return nil, err
		}
		// It ended meanwhile.
	}
	if write {
		lock, err := e.lock(ctx, r.ID)
		if err != nil {
			return nil, err
		}
		s.undo = append(s.undo, func() { lock.Close() })
	}
	a, err := e.snapshots.Assemble(r.ID, binds(r), snapshot.MountOptions{ReadOnly: !write || r.Host.ReadonlyRootfs})
	if err != nil {
		return nil, err
	}
	s.undo = append(s.undo, a.Close)
	s.root = a.Root
	return s, nil
}

// binds are the mounts of a container that outlive its runs.
func binds(r *ctr.Record) (bs []snapshot.Bind) {
	for _, m := range r.Mounts {
		if m.Type != mount.TypeVolume && m.Type != mount.TypeBind {
			continue
		}
		if _, err := os.Stat(m.Source); err != nil {
			continue // gone: a start would say so, a copy can do without
		}
		bs = append(bs, snapshot.Bind{Source: m.Source, Target: m.Destination, ReadOnly: !m.RW})
	}
	return bs
}

// owner is whose files become under cp -a; nil leaves them as they are.
func (s *side) owner(archive bool) (*layer.Owner, error) {
	if !archive || s.rec.Config.User == "" {
		return nil, nil
	}
	u, _, err := sandbox.LookupUser(int(s.root.Fd()), s.rec.Config.User, nil)
	if err != nil {
		return nil, err
	}
	return &layer.Owner{UID: u.UID, GID: u.GID}, nil
}

// source is an entry of a container to be read.
type source struct {
	*side
	*layer.At
	name string
}

func (s *source) close() { s.At.Close(); s.side.close() }

func (e *Engine) openSource(ctx context.Context, ref, p string, follow bool) (*source, error) {
	c, err := e.side(ctx, ref, false)
	if err != nil {
		return nil, err
	}
	a, err := layer.Look(c.root, p, follow)
	if err == nil && !a.Exists {
		a.Close()
		err = fs.ErrNotExist
	}
	if err == nil && layer.AssertsDir(p) && !a.IsDir() {
		a.Close()
		err = fault.Invalidf("%s: %w", p, errNotDirectory)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = noFile(p, ref)
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return &source{c, a, entryName(p)}, nil
}

// openTarget finds the destination of a copy, through a link if it is one.
func (e *Engine) openTarget(ctx context.Context, ref, p string) (*side, *layer.At, error) {
	c, err := e.side(ctx, ref, true)
	if err != nil {
		return nil, nil, err
	}
	a, err := layer.Look(c.root, p, true)
	if errors.Is(err, fs.ErrNotExist) {
		err = noFile(path.Dir(path.Clean("/"+p)), ref)
	}
	if err == nil && a.IsSpecial() {
		a.Close()
		err = &HostError{fmt.Errorf("destination \"%s:%s\" must be a directory or a regular file: got a device", ref, p)}
	}
	if err != nil {
		c.close()
		return nil, nil, err
	}
	return c, a, nil
}

func noFile(p, ref string) error {
	return fault.NotFoundf("Could not find the file %s in container %s", p, ref)
}

func errReadOnlyRoot() error { return fault.Deniedf("container rootfs is marked read-only") }

// readOnly says in Docker's words why nothing could be written.
func readOnly(err error) error {
	if errors.Is(err, syscall.EROFS) {
		return fault.Deniedf("container rootfs or mounted volume is marked read-only: %w", err)
	}
	return err
}

func hostRoot() (*os.File, error) { return os.Open("/") }

func pathStat(a *layer.At, name string) container.PathStat {
	st := container.PathStat{Name: name, Size: a.Stat.Size, Mode: a.Mode(), Mtime: time.Unix(a.Stat.Mtim.Sec, a.Stat.Mtim.Nsec)}
	if a.Link != "" {
		st.LinkTarget = a.Link
		if !path.IsAbs(a.Link) {
			st.LinkTarget = path.Join(path.Dir(a.Path), a.Link)
		}
	}
	return st
}
