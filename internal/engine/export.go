package engine

import (
	"context"
	"io"
	"os"

	ctr "keg/internal/container"
	"keg/internal/layer"
	"keg/internal/snapshot"
)

// Export writes the root file system of a container as a tar: what its image and its
// own changes give, without volumes. It may run meanwhile.
func (e *Engine) Export(ctx context.Context, ref string, w io.Writer) error {
	r, _, err := e.view(ctx, ref)
	if err != nil {
		return err
	}
	fd, err := e.snapshots.Mount(r.ID, snapshot.MountOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	root := os.NewFile(uintptr(fd), "/")
	defer root.Close()
	if _, err := layer.Pack(ctx, root, layer.DiffOptions{Tar: w, NoDigest: true}); err != nil {
		return err
	}
	e.containerEvent("export", r, nil)
	return nil
}

// Change is one path that a container changed.
type Change = snapshot.Change

// Diff lists what a container changed in its root file system, sorted by path.
func (e *Engine) Diff(ctx context.Context, ref string) ([]Change, error) {
	r, _, err := e.view(ctx, ref)
	if err != nil {
		return nil, err
	}
	return e.snapshots.Changes(r.ID, ownMounts()...)
}

// ownMounts are the places that a start makes in the writable layer to mount things
// on: no change of the program's, as in Docker, where they are in a layer of their own.
func ownMounts() []string {
	return []string{"/dev", "/proc", "/sys", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", ctr.InitTarget}
}
