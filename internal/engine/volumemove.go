package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path"

	"github.com/moby/moby/api/types/volume"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/layer"
	vol "keg/internal/volume"
)

// ExportVolume writes the data of a volume as a tar: owners, modes, times, links, extended
// attributes.
func (e *Engine) ExportVolume(ctx context.Context, name string, w io.Writer) error {
	return e.withData(name, func(dir *os.File) error {
		_, err := layer.Pack(ctx, dir, layer.DiffOptions{Tar: w, Root: &layer.Attr{}})
		return err
	})
}

// withData opens the data of a volume, mounted if it has driver options.
func (e *Engine) withData(name string, do func(dir *os.File) error) error {
	release, err := e.volumes.Use(name)
	if err != nil {
		return err
	}
	defer release()
	v, err := e.volumes.Get(name)
	if err != nil {
		return err
	}
	dir, err := os.OpenFile(v.Mountpoint, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	return do(dir)
}

// ImportVolume unpacks a tar, compressed or not, into a volume, which is made when it does not
// exist. Files that the tar names replace those of the volume. A volume that a running container
// writes to is refused: the tar is not trusted, nor is that container.
func (e *Engine) ImportVolume(ctx context.Context, name string, r io.Reader) (err error) {
	if err := e.idleVolume(ctx, name, "import into"); err != nil {
		return err
	}
	_, err = e.volumes.Get(name)
	fresh := fault.Is(err, fault.NotFound)
	if _, err := e.CreateVolume(ctx, vol.CreateOptions{Name: name}); err != nil {
		return err
	}
	defer func() {
		if err != nil && fresh {
			err = errors.Join(err, e.RemoveVolume(context.WithoutCancel(ctx), name, true))
		}
	}()
	text, err := plain(r)
	if err != nil {
		return err
	}
	defer text.Close()
	top, in, err := firstEntry(text)
	if err != nil {
		return err
	}
	return e.withData(name, func(dir *os.File) error {
		if _, err := layer.Apply(ctx, in, dir, layer.Options{Whiteouts: layer.Plain}); err != nil {
			return err
		}
		return setTop(dir, top)
	})
}

// firstEntry looks at the first entry of a tar, which is the directory itself if any is.
func firstEntry(r io.Reader) (*tar.Header, io.Reader, error) {
	var ahead bytes.Buffer
	h, err := tar.NewReader(io.TeeReader(r, &ahead)).Next()
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, fault.Invalidf("the input is not a tar: %w", err)
	}
	if h == nil || path.Clean(h.Name) != "." || h.Typeflag != tar.TypeDir {
		h = nil
	}
	return h, io.MultiReader(&ahead, r), nil
}

// setTop gives the data directory the owner and mode that the tar has for it.
func setTop(dir *os.File, h *tar.Header) error {
	if h == nil {
		return nil
	}
	return errors.Join(dir.Chown(h.Uid, h.Gid), dir.Chmod(h.FileInfo().Mode()))
}

// plain inflates what is compressed.
func plain(r io.Reader) (io.ReadCloser, error) {
	head := make([]byte, 8)
	n, err := io.ReadFull(r, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if n == 0 {
		return nil, fault.Invalidf("there is no tar to import: the input is empty")
	}
	return layer.Decompress(io.MultiReader(bytes.NewReader(head[:n]), r), layer.Sniff(head[:n]))
}

// CloneVolume copies a volume under a new name, with its labels. What containers write
// meanwhile may or may not be in the copy.
func (e *Engine) CloneVolume(ctx context.Context, from, to string) (_ volume.Volume, err error) {
	src, err := e.volumes.Get(from)
	if err != nil {
		return src, err
	}
	if to == "" {
		return src, fault.Invalidf("the copy of volume %s needs a name", from)
	}
	if _, err := e.volumes.Get(to); err == nil {
		return src, fault.Conflictf("a volume named %s exists already", to)
	}
	labels := map[string]string{}
	for k, v := range src.Labels {
		if k != vol.AnonymousLabel {
			labels[k] = v
		}
	}
	dst, err := e.CreateVolume(ctx, vol.CreateOptions{Name: to, Labels: labels})
	if err != nil {
		return dst, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.RemoveVolume(context.WithoutCancel(ctx), to, true))
		}
	}()
	return dst, e.withData(from, func(src *os.File) error {
		return e.withData(to, func(dst *os.File) error { return layer.CopyTree(ctx, src, dst) })
	})
}

// RenameVolume gives a volume another name. Containers know it by its name: one that is
// referred to keeps it.
func (e *Engine) RenameVolume(ctx context.Context, from, to string) error {
	v, err := e.volumes.Get(from)
	if err != nil {
		return err
	}
	used, err := e.volumeUsers()
	if err != nil {
		return err
	}
	if ids := used[from]; len(ids) > 0 {
		return fault.Conflictf("rename %s: volume is in use - %v", from, ids)
	}
	if err := e.volumes.Rename(ctx, from, to); err != nil {
		return err
	}
	e.report("volume", "rename", to, map[string]string{"driver": v.Driver, "oldName": from})
	return nil
}

// idleVolume refuses a volume that a running container has.
func (e *Engine) idleVolume(ctx context.Context, name, what string) error {
	used, err := e.volumeUsers()
	if err != nil {
		return err
	}
	for _, id := range used[name] {
		r, st, err := e.view(ctx, id)
		if err == nil && isLive(st.Status) {
			return fault.Conflictf("cannot %s volume %s: container \"/%s\" is running with it; stop it first", what, name, r.Name)
		}
	}
	return nil
}
