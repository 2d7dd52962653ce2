package engine

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"

	"keg/internal/builtin"
	"keg/internal/image"
	"keg/internal/snapshot"
)

// carry materialises the carried image of that name, if there is one: its layers are
// unpacked and its config, manifest and name stored. It is an image like any other then.
func (e *Engine) carry(ctx context.Context, ref image.Reference, p *image.Platform) (f found, ok bool, err error) {
	img, ok := builtin.Find(ref)
	if !ok {
		return found{}, false, nil
	}
	if have := configPlatform(img.Config); p != nil && !image.Matches(*p, have) {
		return found{}, true, wrongPlatform(ref.Familiar(), *p, have)
	}
	use, err := e.busy(ctx)
	if err != nil {
		return found{}, true, err
	}
	defer use.end()
	desc, err := e.materialise(ctx, img, use)
	if err != nil {
		return found{}, true, err
	}
	if err := e.snapshots.Sync(ctx); err != nil {
		return found{}, true, err
	}
	if err := e.store.Tag(ref, desc); err != nil {
		return found{}, true, err
	}
	f, err = e.named(ref)
	return f, true, err
}

func (e *Engine) materialise(ctx context.Context, img builtin.Image, use *use) (image.Descriptor, error) {
	cfg := *img.Config
	cfg.RootFS.Type = "layers"
	cfg.RootFS.DiffIDs = nil
	m := image.Manifest{MediaType: image.MediaManifest}
	m.SchemaVersion = 2
	for _, l := range img.Layers {
		u, err := e.unpackCarried(ctx, l)
		if err != nil {
			return image.Descriptor{}, err
		}
		defer u.Discard()
		if err := use.add(u.DiffID()); err != nil {
			return image.Descriptor{}, err
		}
		stack := append(slices.Clone(cfg.RootFS.DiffIDs), u.DiffID())
		if err := use.addStack(stack); err != nil {
			return image.Descriptor{}, err
		}
		if err := u.Place(ctx, cfg.RootFS.DiffIDs); err != nil {
			return image.Descriptor{}, err
		}
		cfg.RootFS.DiffIDs = stack
		if err := e.keepTar(ctx, l, u); err != nil {
			return image.Descriptor{}, err
		}
		cfg.History = append(cfg.History, image.History{Created: cfg.Created, CreatedBy: l.CreatedBy})
		m.Layers = append(m.Layers, image.Descriptor{MediaType: image.MediaLayer, Digest: u.DiffID(), Size: u.Size()})
	}
	return e.putImage(ctx, &cfg, &m, use)
}

func (e *Engine) unpackCarried(ctx context.Context, l builtin.Layer) (snapshot.Unpacked, error) {
	tar := l.Tar()
	defer tar.Close()
	return e.snapshots.UnpackRecorded(ctx, tar, "")
}

// keepTar keeps the tar of a layer that cannot be re-created from its tree.
func (e *Engine) keepTar(ctx context.Context, l builtin.Layer, u snapshot.Unpacked) error {
	if u.Recorded() || e.store.Has(u.DiffID()) {
		return nil
	}
	ing, err := e.store.Ingest(ctx, u.DiffID().String())
	if err != nil {
		return err
	}
	tar := l.Tar()
	defer tar.Close()
	if err = ing.Truncate(0); err == nil {
		_, err = io.Copy(ing, tar)
	}
	if err != nil {
		return errors.Join(err, ing.Abort())
	}
	_, err = ing.Commit(ctx, u.Size(), u.DiffID())
	return err
}

// putImage stores a config and the manifest that names it.
func (e *Engine) putImage(ctx context.Context, cfg *image.Config, m *image.Manifest, use *use) (image.Descriptor, error) {
	b, err := json.Marshal(cfg)
	if err != nil {
		return image.Descriptor{}, err
	}
	if err := use.add(digest.FromBytes(b)); err != nil {
		return image.Descriptor{}, err
	}
	id, err := e.store.Put(ctx, b)
	if err != nil {
		return image.Descriptor{}, err
	}
	m.Config = image.Descriptor{MediaType: image.MediaConfig, Digest: id, Size: int64(len(b))}
	if b, err = json.Marshal(m); err != nil {
		return image.Descriptor{}, err
	}
	if err := use.add(digest.FromBytes(b)); err != nil {
		return image.Descriptor{}, err
	}
	d, err := e.store.Put(ctx, b)
	return image.Descriptor{MediaType: image.MediaManifest, Digest: d, Size: int64(len(b))}, err
}

// isCarried reports whether all names of an image are those of a carried one: what can
// be made again at any time, without a network.
func isCarried(tags []image.Reference) bool {
	for _, ref := range tags {
		if _, ok := builtin.Find(ref); !ok {
			return false
		}
	}
	return len(tags) > 0
}
