package monitor

// What a run mounts beside its root: volumes, parts of volumes, images.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	"golang.org/x/sys/unix"

	"keg/internal/container"
	"keg/internal/fault"
	"keg/internal/linux"
	"keg/internal/snapshot"
)

// prepareVolumes makes the sources of the mounts available for as long as the run lasts.
func (m *monitor) prepareVolumes(ctx context.Context, r *run) error {
	asked := map[string]mount.Mount{}
	for _, x := range m.rec.Host.Mounts {
		asked[path.Clean(x.Target)] = x
	}
	r.sources = map[string]string{}
	for i := range m.rec.Mounts {
		p := &m.rec.Mounts[i]
		var err error
		switch {
		case p.Type == mount.TypeVolume && p.Name != "":
			x := asked[p.Destination].VolumeOptions
			noCopy := x != nil && x.NoCopy || slices.Contains(strings.Split(p.Mode, ","), "nocopy")
			if err = m.prepareVolume(ctx, r, p.Name, p.Destination, noCopy); err == nil {
				m.volumeEvent(events.ActionMount, p.Name, map[string]string{"destination": p.Destination,
					"read/write": strconv.FormatBool(p.RW), "propagation": string(p.Propagation)})
			}
		case p.Type == mount.TypeImage:
			err = m.prepareImage(r, p.Destination, i)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (m *monitor) prepareVolume(ctx context.Context, r *run, name, dest string, noCopy bool) error {
	release, err := m.volumes.Use(name)
	if err != nil {
		return err
	}
	r.volumes = append(r.volumes, func() { release(); m.volumeEvent(events.ActionUnmount, name, nil) })
	sub := m.rec.Subpaths[dest]
	mirrored := r.ids != nil && r.ids.mirrored
	if mirrored {
		f, err := m.volumes.Open(name, sub)
		if err != nil {
			return subpathError(name, sub, err)
		}
		r.shown = append(r.shown, shownVolume{dest, f})
	} else if sub != "" {
		// Held open, and named by descriptor: what others do in the volume meanwhile
		// cannot lead the mount out of it.
		f, err := m.volumes.Open(name, sub)
		if err != nil {
			return subpathError(name, sub, err)
		}
		r.use(dest, f)
	}
	if noCopy {
		return nil
	}
	if r.ids.shift() == nil {
		return m.volumes.CopyUp(ctx, r.root, dest, name, sub)
	}
	// The volume is mounted with shifted owners, too: it gets those on disk.
	fd, err := m.snapshots.Mount(m.id, snapshot.MountOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return m.volumes.CopyUp(ctx, fd, dest, name, sub)
}

// prepareImage mounts an image's tree in the run directory, where a mount can be bound from.
func (m *monitor) prepareImage(r *run, dest string, i int) error {
	stack, ok := m.rec.ImageMounts[dest]
	if !ok {
		return fmt.Errorf("the record of container %s names no layers for the image on %s", m.id, dest)
	}
	fd, err := m.snapshots.View(stack)
	if err != nil {
		return fmt.Errorf("mount the image on %s: %w", dest, err)
	}
	defer unix.Close(fd)
	dir := filepath.Join(m.roots.dir(m.id), "image-"+strconv.Itoa(i))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount the image on %s: %w", dest, err)
	}
	r.volumes = append(r.volumes, func() { unix.Unmount(dir, unix.MNT_DETACH); os.Remove(dir) })
	sub := m.rec.Subpaths[dest]
	if sub == "" {
		r.sources[dest] = dir
		return nil
	}
	top, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer top.Close()
	f, err := linux.OpenBeneath(int(top.Fd()), sub, unix.O_PATH)
	if err != nil {
		return subpathError(dest, sub, err)
	}
	r.use(dest, f)
	return nil
}

func subpathError(of, sub string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return fault.Invalidf("cannot access path %s/%s: no such file or directory; a subpath must exist before it is mounted", of, sub)
	case errors.Is(err, unix.EXDEV):
		return fault.Invalidf("path concatenation escapes the base directory, base: %s, subpath: %s", of, sub)
	}
	return fmt.Errorf("open %s in %s: %w", sub, of, err)
}

// use makes an open file the source of a mount.
func (r *run) use(dest string, f *os.File) {
	r.files = append(r.files, f)
	r.sources[dest] = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
}

// withSources is the record as this run mounts it.
func (r *run) withSources(rec *container.Record) *container.Record {
	if len(r.sources) == 0 {
		return rec
	}
	c := *rec
	c.Mounts = slices.Clone(rec.Mounts)
	for i := range c.Mounts {
		if s, ok := r.sources[c.Mounts[i].Destination]; ok {
			c.Mounts[i].Source = s
		}
	}
	return &c
}
