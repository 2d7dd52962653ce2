package snapshot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"keg/internal/disk"
	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/layer"
)

// Unpacked is a layer whose tar was read but which has no place yet.
type Unpacked interface {
	// DiffID and Size (of the uncompressed tar) as read.
	DiffID() digest.Digest
	Size() int64
	// Recorded reports whether Tar will re-create the layer's tar from its tree
	// (UnpackRecorded).
	Recorded() bool
	// Place commits it on top of the layers below (bottom first), which must be
	// committed. A layer that leans on nothing below is shared by all.
	Place(ctx context.Context, below []digest.Digest) error
	// Discard removes it; harmless after Place.
	Discard() error
}

// record is layer.json: written once, before the layer appears.
type record struct {
	Version int             `json:"version"`
	DiffID  digest.Digest   `json:"diffID"`
	Stack   []digest.Digest `json:"stack"` // up to and with this layer, as first placed
	Size    int64           `json:"size"`  // of the tar
	Files   int64           `json:"files"` // bytes of file contents
	Recipe  bool            `json:"recipe,omitempty"`
	Created time.Time       `json:"created"`
}

// Unpack reads an uncompressed layer tar into a new directory. Layers are unpacked in
// parallel, each alone. want, when not "", is the diffID that the tar must have.
func (s *Store) Unpack(ctx context.Context, tar io.Reader, want digest.Digest) (Unpacked, error) {
	return s.unpack(ctx, tar, want, false)
}

// UnpackRecorded is Unpack for a tar whose blob is not kept: it also writes the recipe
// that Tar re-creates it from. See Unpacked.Recorded.
func (s *Store) UnpackRecorded(ctx context.Context, tar io.Reader, want digest.Digest) (Unpacked, error) {
	return s.unpack(ctx, tar, want, true)
}

func (s *Store) unpack(ctx context.Context, tar io.Reader, want digest.Digest, recorded bool) (_ Unpacked, err error) {
	hold, err := disk.HoldDir(s.layers(".new"), "")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			hold.Remove()
		}
	}()
	root, err := makeRoot(hold.Path + "/diff")
	if err != nil {
		return nil, err
	}
	defer root.Close()
	o := layer.Options{UserXattr: s.opt.UserXattr, SingleID: s.opt.SingleID}
	rec := recipeFile{path: hold.Path + "/recipe"}
	if recorded {
		if o.Recipe, err = rec.create(); err != nil {
			return nil, err
		}
		defer rec.close()
	}
	res, err := layer.Apply(ctx, tar, root, o)
	if err != nil {
		return nil, err
	}
	if want != "" && res.DiffID != want {
		return nil, fault.Invalidf("layer tar has digest %s, its image says %s", res.DiffID, want)
	}
	if !res.Root {
		if err := markUnlisted(root); err != nil {
			return nil, err
		}
	}
	if err := rec.close(); err != nil {
		return nil, fmt.Errorf("write recipe: %w", err)
	}
	if recorded && !res.Recorded {
		os.Remove(rec.path)
	}
	return &unpacked{s: s, hold: hold, res: res}, nil
}

// makeRoot makes the root directory of a layer; 0755 whatever the umask.
func makeRoot(p string) (*os.File, error) {
	if err := os.Mkdir(p, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Open(p)
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(0o755); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func markUnlisted(root *os.File) error {
	return unix.UtimesNanoAt(int(root.Fd()), "", []unix.Timespec{unlisted, unlisted}, unix.AT_EMPTY_PATH)
}

// recipeFile is a recipe being written.
type recipeFile struct {
	path string
	f    *os.File
	w    *bufio.Writer
}

func (r *recipeFile) create() (io.Writer, error) {
	f, err := os.OpenFile(r.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	r.f, r.w = f, bufio.NewWriterSize(f, 128<<10)
	return r.w, nil
}

func (r *recipeFile) close() error {
	if r.f == nil {
		return nil
	}
	err := errors.Join(r.w.Flush(), r.f.Close())
	r.f = nil
	return err
}

type unpacked struct {
	s    *Store
	hold *disk.Dir // nil once placed or discarded
	res  layer.Result
}

func (u *unpacked) DiffID() digest.Digest { return u.res.DiffID }
func (u *unpacked) Size() int64           { return u.res.Size }
func (u *unpacked) Recorded() bool        { return u.res.Recorded }

func (u *unpacked) Discard() error {
	if u.hold == nil {
		return nil
	}
	hold := u.hold
	u.hold = nil
	return hold.Remove()
}

func (u *unpacked) Place(ctx context.Context, below []digest.Digest) error {
	if u.hold == nil {
		return errors.New("layer has been placed or discarded")
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := u.s.all(below); err != nil {
		return err
	}
	stack := append(slices.Clone(below), u.res.DiffID)
	name := sharedName(u.res.DiffID)
	if !u.res.Leans.None() {
		name = chainName(image.ChainID(stack))
		if err := u.finish(below); err != nil {
			return err
		}
	}
	err := u.s.place(u.hold, name, record{DiffID: u.res.DiffID, Stack: stack, Size: u.res.Size, Files: u.res.Files, Recipe: u.res.Recorded})
	if err == nil {
		u.hold = nil
	}
	return err
}

// finish completes a layer that leans on those below.
func (u *unpacked) finish(below []digest.Digest) error {
	if len(below) == 0 && len(u.res.Leans.Links) == 0 {
		return nil
	}
	fd, err := u.s.View(below)
	if err != nil {
		return err
	}
	view := os.NewFile(uintptr(fd), "layers below")
	defer view.Close()
	root, err := os.Open(u.hold.Path + "/diff")
	if err != nil {
		return err
	}
	defer root.Close()
	changed, err := layer.Finish(root, view, u.res.Leans)
	if err != nil {
		return err
	}
	if !u.res.Root {
		if err := markUnlisted(root); err != nil {
			return err
		}
	}
	if changed && u.res.Recorded {
		u.res.Recorded = false
		return os.Remove(u.hold.Path + "/recipe")
	}
	return nil
}

// place gives a finished layer its name. Of several that do so at once one directory
// wins and all succeed, since they are equal.
func (s *Store) place(hold *disk.Dir, name string, r record) error {
	r.Version, r.Created = 1, time.Now().UTC()
	if err := disk.PutJSONVolatile(hold.Path+"/layer.json", r); err != nil {
		return err
	}
	unlock, err := s.lock(unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer unlock()
	mark, err := s.markUnsynced(name)
	if err != nil {
		return err
	}
	now := time.Now()
	for range 3 {
		err = unix.Rename(hold.Path, s.layers(name))
		if !exists(err) {
			break
		}
		if !s.damaged(name) {
			// Used now: Sweep's grace starts anew.
			if err := os.Chtimes(s.layers(name), now, now); err != nil && !notExist(err) {
				return err
			}
			return hold.Remove()
		}
		if _, err := s.trash(s.layers(name)); err != nil {
			return err
		}
	}
	if err != nil {
		return fmt.Errorf("place layer %s: %w", r.DiffID, err)
	}
	hold.Release()
	return mark()
}
