package engine

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/disk"
	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/snapshot"
	"keg/internal/store"
)

// What nobody refers to is deleted at once, unless somebody is just making things that
// have no name yet: then only what is older than this goes.
const busyGrace = time.Hour

// use is the claim of a running act on digests and stacks: gc leaves them alone.
type use struct {
	lease  store.Lease
	stacks snapshot.Lease // of an act that makes layers, as dir; nil otherwise
	dir    *disk.Dir
}

// use leases what an act relies on.
func (e *Engine) use(ctx context.Context, ds ...digest.Digest) (*use, error) {
	l, err := e.store.Lease(ctx, ds...)
	if err != nil {
		return nil, err
	}
	return &use{lease: l}, nil
}

// busy is use for acts that make layers: pulls, builds, a served registry. While one is
// under way gc spares everything young.
func (e *Engine) busy(ctx context.Context, ds ...digest.Digest) (*use, error) {
	if err := os.MkdirAll(e.busyDir(), 0o700); err != nil {
		return nil, err
	}
	dir, err := disk.HoldDir(e.busyDir(), "")
	if err != nil {
		return nil, err
	}
	u, err := e.use(ctx, ds...)
	if err != nil {
		return nil, errors.Join(err, dir.Remove())
	}
	u.dir = dir
	if u.stacks, err = e.snapshots.Lease(ctx); err != nil {
		u.end()
		return nil, err
	}
	return u, nil
}

func (u *use) add(ds ...digest.Digest) error        { return u.lease.Add(ds...) }
func (u *use) addStack(stack []digest.Digest) error { return u.stacks.Add(stack) }

func (u *use) end() {
	_ = u.lease.Release()
	if u.stacks != nil {
		_ = u.stacks.Release()
	}
	if u.dir != nil {
		_ = u.dir.Remove()
	}
}

func (e *Engine) busyDir() string { return filepath.Join(e.opt.Root, "busy") }

// grace is how young a thing must be to be spared.
func (e *Engine) grace() (time.Duration, error) {
	if err := disk.Sweep(e.busyDir()); err != nil {
		return 0, err
	}
	ents, err := os.ReadDir(e.busyDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	if len(ents) > 0 {
		return busyGrace, nil
	}
	return 0, nil
}

// freed is what a collection deleted.
type freed struct {
	layers, blobs []digest.Digest
	bytes         int64
}

// collect deletes the layers and blobs that no name, image, container, build step or
// lease refers to.
func (e *Engine) collect(ctx context.Context) (freed, error) {
	grace, err := e.grace()
	if err != nil {
		return freed{}, err
	}
	if err := e.sweepBuilds(ctx); err != nil {
		return freed{}, err
	}
	var f freed
	layers, n, err := e.snapshots.Sweep(ctx, grace, e.stacksInUse)
	if err != nil {
		return f, err
	}
	f.layers, f.bytes = layers, n
	blobs, n, err := e.store.Sweep(ctx, grace, e.blobsInUse)
	f.blobs, f.bytes = blobs, f.bytes+n
	return f, errors.Join(err, e.store.DropLinks(ctx, grace), e.dropDerived())
}

// sweepOrphans removes writable layers whose container was never written down: its
// creation was killed. A creation under way is younger than the grace.
func (e *Engine) sweepOrphans() error {
	keys, err := e.snapshots.Keys()
	if err != nil {
		return err
	}
	var errs []error
	for _, key := range keys {
		if _, err := e.containers.Get(key); len(key) != 64 || !fault.Is(err, fault.NotFound) {
			continue
		}
		st, err := os.Stat(e.snapshots.Upper(key))
		if err == nil && time.Since(st.ModTime()) > busyGrace {
			errs = append(errs, e.snapshots.Remove(key))
		}
	}
	return errors.Join(errs...)
}

// stacksInUse are the stacks of all images, containers and build steps.
func (e *Engine) stacksInUse() ([][]digest.Digest, error) {
	a, err := e.album()
	if err != nil {
		return nil, err
	}
	var stacks [][]digest.Digest
	for _, r := range a.images {
		stacks = append(stacks, r.Stack)
	}
	names, err := e.store.Names()
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		stacks = append(stacks, e.memberStacks(n.Desc, 0)...)
	}
	ids, err := e.containers.List()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		if r, err := e.containers.Get(id); err == nil {
			stacks = append(stacks, r.Stack)
			stacks = slices.AppendSeq(stacks, maps.Values(r.ImageMounts))
		}
	}
	steps, err := e.steps()
	if err != nil {
		return nil, err
	}
	for _, s := range steps {
		stacks = append(stacks, s.stack)
	}
	return stacks, nil
}

// memberStacks are the stacks of all images of an index: only that of this host has a record. What cannot be
// read has none.
func (e *Engine) memberStacks(d image.Descriptor, depth int) (stacks [][]digest.Digest) {
	if !image.IsIndex(d.MediaType) || depth > maxIndexDepth {
		return nil
	}
	x, err := e.readIndex(d.Digest)
	if err != nil {
		return nil
	}
	for _, m := range x.Manifests {
		if image.IsIndex(m.MediaType) {
			stacks = append(stacks, e.memberStacks(m, depth+1)...)
		} else if f, err := e.member(m); err == nil {
			stacks = append(stacks, f.Stack)
		}
	}
	return stacks
}

// blobsInUse are the documents and layers of all names, images and containers. What
// cannot be read marks only itself: one damaged manifest must not stop the collection of
// the others, nor may it delete anything of theirs.
func (e *Engine) blobsInUse() (map[digest.Digest]bool, error) {
	marks := map[digest.Digest]bool{}
	names, err := e.store.Names()
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		e.mark(marks, n.Desc, 0)
	}
	a, err := e.album()
	if err != nil {
		return nil, err
	}
	for _, r := range a.images {
		marks[r.ID] = true
		for _, d := range r.Manifests {
			e.mark(marks, d, 0)
		}
	}
	ids, err := e.containers.List()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		r, err := e.containers.Get(id)
		if err != nil {
			continue
		}
		marks[r.ImageID] = true
		e.mark(marks, image.Descriptor{MediaType: image.MediaManifest, Digest: r.Manifest}, 0)
	}
	return marks, nil
}

// mark marks a document and what it refers to.
func (e *Engine) mark(marks map[digest.Digest]bool, d image.Descriptor, depth int) {
	if marks[d.Digest] || d.Digest == "" || depth > maxIndexDepth {
		return
	}
	marks[d.Digest] = true
	b, err := e.store.Bytes(d.Digest, image.MaxManifest)
	if err != nil {
		return
	}
	if image.IsIndex(d.MediaType) {
		if x, err := image.ParseIndex(b); err == nil {
			for _, m := range x.Manifests {
				e.mark(marks, m, depth+1)
			}
		}
		return
	}
	if m, err := image.ParseManifest(b); err == nil {
		marks[m.Config.Digest] = true
		for _, l := range m.Layers {
			marks[l.Digest] = true
		}
	}
}
