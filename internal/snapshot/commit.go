package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"keg/internal/disk"
	"keg/internal/layer"
)

// CommitOptions for Commit.
type CommitOptions struct {
	Epoch *time.Time // newer file times are clamped to it
	Copy  bool       // leave the active directory usable (commit of a container)
	Omit  []string   // places for mounts, without links on the way: left out while they are empty
}

// Committed describes a layer made by Commit.
type Committed struct {
	DiffID digest.Digest
	Size   int64 // of its tar
	Empty  bool  // nothing changed: there is no layer, DiffID is ""
}

// Commit turns the changes of key into a layer on top of its stack: normalise, record
// the recipe, rename into place. Without Copy the key is gone afterwards, and must not
// be mounted any more; with it a program may go on writing, and the layer has what was
// there when its turn came. Until a name, a key or a lease refers to the layer, only
// Sweep's grace protects it.
func (s *Store) Commit(ctx context.Context, key string, o CommitOptions) (c Committed, err error) {
	p, err := s.parents(key)
	if err != nil {
		return c, err
	}
	hold, err := disk.HoldDir(s.layers(".new"), "")
	if err != nil {
		return c, err
	}
	placed := false
	defer func() {
		if !placed {
			hold.Remove()
		}
	}()
	dir := s.Upper(key)
	if o.Copy {
		dir = hold.Path + "/diff"
		if err := copyUpper(ctx, s.Upper(key), dir); err != nil {
			return c, fmt.Errorf("commit %s: %w", key, err)
		}
	}
	if err := s.omit(p, dir, o.Omit); err != nil {
		return c, fmt.Errorf("commit %s: %w", key, err)
	}
	d, err := s.diff(ctx, p, dir, hold.Path+"/recipe", o.Epoch)
	if err != nil {
		return c, fmt.Errorf("commit %s: %w", key, err)
	}
	if d.Empty {
		if !o.Copy {
			err = s.Remove(key)
		}
		return Committed{Empty: true}, err
	}
	if !o.Copy {
		if err := os.Rename(dir, hold.Path+"/diff"); err != nil {
			return c, err
		}
	}
	err = s.place(hold, sharedName(d.DiffID), record{DiffID: d.DiffID, Stack: append(slices.Clone(p.Stack), d.DiffID),
		Size: d.Size, Files: d.Files, Recipe: true})
	if err != nil {
		return c, err
	}
	placed = true
	if !o.Copy {
		err = s.Remove(key)
	}
	return Committed{DiffID: d.DiffID, Size: d.Size}, err
}

func copyUpper(ctx context.Context, from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := makeRoot(to)
	if err != nil {
		return err
	}
	defer dst.Close()
	return layer.CopyTree(ctx, src, dst)
}

// omit takes empty places for mounts out of a layer to be, and the directories that are only
// there for them.
func (s *Store) omit(p parents, dir string, paths []string) error {
	if len(paths) == 0 {
		return nil
	}
	root, err := openRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	below := belowView{s: s, stack: p.Stack, fd: -1}
	defer below.close()
	for _, at := range paths {
		for at = strings.Trim(at, "/"); at != ""; at = at[:max(0, strings.LastIndexByte(at, '/'))] {
			if gone, err := s.omitOne(root, &below, at); err != nil {
				return err
			} else if !gone {
				break
			}
		}
	}
	return nil
}

// omitOne removes an entry that says nothing: new and empty, or an empty directory that
// looks as the one below.
func (s *Store) omitOne(root *os.File, below *belowView, p string) (gone bool, err error) {
	if !bare(root, p) {
		return false, nil
	}
	a, err := layer.Look(root, p, false)
	if err != nil {
		return false, err
	}
	defer a.Close()
	exists, isDir, err := below.look(p)
	if err != nil {
		return false, err
	}
	if exists {
		var st unix.Stat_t
		if !isDir || !a.IsDir() {
			return false, nil
		}
		if _, err := lookAt(below.fd, p, &st); err != nil || st.Mode != a.Stat.Mode || st.Uid != a.Stat.Uid || st.Gid != a.Stat.Gid {
			return false, err
		}
		d, err := a.OpenDir()
		if err != nil {
			return false, err
		}
		defer d.Close()
		if n, err := unix.Fgetxattr(int(d.Fd()), layer.OpaqueXattr(s.opt.UserXattr), make([]byte, 1)); err == nil && n > 0 {
			return false, nil
		}
	}
	flags := 0
	if a.IsDir() {
		flags = unix.AT_REMOVEDIR
	}
	return true, unix.Unlinkat(int(a.Dir.Fd()), a.Base, flags)
}

// diff makes dir the layer on top of p, and writes its recipe.
func (s *Store) diff(ctx context.Context, p parents, dir, recipe string, epoch *time.Time) (d layer.Diffed, err error) {
	root, err := os.Open(dir)
	if err != nil {
		return d, err
	}
	defer root.Close()
	below := belowView{s: s, stack: p.Stack, fd: -1}
	defer below.close()
	rec := recipeFile{path: recipe}
	w, err := rec.create()
	if err != nil {
		return d, err
	}
	defer rec.close()
	var before, after unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &before); err != nil {
		return d, err
	}
	d, err = layer.Diff(ctx, root, layer.DiffOptions{UserXattr: s.opt.UserXattr, Epoch: epoch, Below: below.look, Root: &p.Root, Recipe: w})
	if err != nil {
		return d, err
	}
	if err := rec.close(); err != nil {
		return d, fmt.Errorf("write recipe: %w", err)
	}
	if err := unix.Fstat(int(root.Fd()), &after); err != nil {
		return d, err
	}
	if (layer.Attr{Mode: after.Mode & 0o7777, UID: after.Uid, GID: after.Gid}) != p.Root {
		ts := unix.Timespec{Sec: before.Mtim.Sec}
		if epoch != nil && ts.Sec > epoch.Unix() {
			ts.Sec = epoch.Unix()
		}
		return d, unix.UtimesNanoAt(int(root.Fd()), "", []unix.Timespec{ts, ts}, unix.AT_EMPTY_PATH)
	}
	return d, markUnlisted(root)
}

// belowView looks into the layers below a key. Most steps never ask, so the mount is
// made on the first question.
type belowView struct {
	s     *Store
	stack []digest.Digest
	fd    int
}

func (b *belowView) look(p string) (exists, isDir bool, err error) {
	if len(b.stack) == 0 {
		return false, false, nil
	}
	if b.fd < 0 {
		if b.fd, err = b.s.View(b.stack); err != nil {
			return false, false, err
		}
	}
	var st unix.Stat_t
	found, err := lookAt(b.fd, p, &st)
	return found, found && st.Mode&unix.S_IFMT == unix.S_IFDIR, err
}

// lookAt stats a path of a merged view without following any link: where a layer has a
// link, nothing of a directory above it shows through.
func lookAt(view int, p string, st *unix.Stat_t) (bool, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(view, p, &how)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at %q in the layers below: %w", p, err)
	}
	defer unix.Close(fd)
	return true, unix.Fstat(fd, st)
}

func (b *belowView) close() {
	if b.fd >= 0 {
		unix.Close(b.fd)
	}
}

// openRoot opens a directory of a layer for reading its files.
func openRoot(p string) (*os.File, error) {
	fd, err := unix.Open(p, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: p, Err: err}
	}
	return os.NewFile(uintptr(fd), p), nil
}
