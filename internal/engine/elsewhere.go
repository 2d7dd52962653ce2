package engine

// Build caches that travel: --cache-to and --cache-from. A cache is an OCI manifest whose config lists the records of
// steps and whose layers are theirs; an image can carry the records of its own steps in its config (inline).

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"keg/internal/builder"
	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/registry"
)

// mediaCache is the config of a cache's manifest.
const mediaCache = "application/vnd.keg.buildcache.v1+json"

// Cache is one --cache-to or --cache-from.
type Cache struct {
	Type        string // "registry", "local", "inline"
	Ref         image.Reference
	Dir         string
	Shown       string // in the place of Dir, when that is a copy
	Max         bool   // the steps of all stages, not only those of the image
	Compression image.Compression
	IgnoreError bool
}

// elsewhere is an imported cache.
type elsewhere struct {
	records map[string]*builder.Record
	blobs   map[digest.Digest]image.Descriptor // diffID -> blob
	open    func(ctx context.Context, d image.Descriptor) (io.ReadCloser, error)
}

func (c *elsewhere) Step(key string) (*builder.Record, func(context.Context) (io.ReadCloser, error)) {
	r := c.records[key]
	if r == nil {
		return nil, nil
	}
	d, ok := c.blobs[r.Layer]
	if !ok {
		return nil, nil
	}
	return r, func(ctx context.Context) (io.ReadCloser, error) { return c.open(ctx, d) }
}

// imports reads the caches that a build may use. One that is not there is told, and left out.
func (b *delivery) imports(ctx context.Context) (all []builder.Elsewhere) {
	for _, c := range b.q.CacheFrom {
		what := orElse(c.Shown, c.Dir)
		if c.Type != "local" {
			what = c.Ref.Familiar()
		}
		v := b.n.vertex("importing cache manifest from " + what)
		x, err := b.e.importCache(ctx, c)
		if err != nil {
			v.status(fmt.Sprintf("%v: built without it", err))
		} else {
			v.status(fmt.Sprintf("%d steps", len(x.records)))
			all = append(all, x)
		}
		v.done(nil)
	}
	return all
}

func (e *Engine) importCache(ctx context.Context, c Cache) (*elsewhere, error) {
	x := &elsewhere{}
	var read func(d image.Descriptor) ([]byte, error)
	var desc image.Descriptor
	if c.Type == "local" {
		x.open = func(_ context.Context, d image.Descriptor) (io.ReadCloser, error) {
			if err := d.Digest.Validate(); err != nil {
				return nil, err
			}
			return os.Open(filepath.Join(c.Dir, filepath.FromSlash(blobName(d.Digest))))
		}
		var err error
		if desc, err = localCache(c.Dir); err != nil {
			return nil, err
		}
		read = func(d image.Descriptor) ([]byte, error) { return verified(ctx, x.open, d) }
	} else {
		x.open = func(ctx context.Context, d image.Descriptor) (io.ReadCloser, error) {
			r, _, err := e.remote.Blob(ctx, c.Ref, d, 0)
			return r, err
		}
		target, err := e.remote.Resolve(ctx, c.Ref)
		if err != nil {
			return nil, err
		}
		desc = registry.Unsized(target)
		read = func(d image.Descriptor) ([]byte, error) {
			if image.IsIndex(d.MediaType) || image.IsManifest(d.MediaType) {
				return e.remote.Manifest(ctx, c.Ref, d)
			}
			return verified(ctx, x.open, d)
		}
	}
	return x, x.read(desc, read)
}

// read follows a manifest, or the one for this host in an index, to the records.
func (c *elsewhere) read(d image.Descriptor, read func(image.Descriptor) ([]byte, error)) error {
	doc, err := read(d)
	if err != nil {
		return err
	}
	if image.IsIndex(d.MediaType) {
		x, err := image.ParseIndex(doc)
		if err != nil {
			return err
		}
		m, err := image.Select(x, image.Host())
		if err != nil {
			return err
		}
		if image.IsIndex(m.MediaType) {
			return fault.Invalidf("a build cache is not an index of indexes")
		}
		return c.read(m, read)
	}
	m, err := image.ParseManifest(doc)
	if err != nil {
		return err
	}
	config, err := read(m.Config)
	if err != nil {
		return err
	}
	var list struct {
		Steps  []*builder.Record `json:"steps"`
		Inline []*builder.Record `json:"keg.buildcache.v1"`
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &list); err != nil {
		return fault.Invalidf("read the build cache: %w", err)
	}
	if len(m.Layers) != len(list.RootFS.DiffIDs) {
		return fault.Invalidf("the build cache has %d layers in its manifest and %d in its config", len(m.Layers), len(list.RootFS.DiffIDs))
	}
	c.records, c.blobs = map[string]*builder.Record{}, map[digest.Digest]image.Descriptor{}
	for i, id := range list.RootFS.DiffIDs {
		c.blobs[id] = m.Layers[i]
	}
	for _, r := range append(list.Steps, list.Inline...) {
		if r != nil && r.Layer.Validate() == nil {
			c.records[r.Key] = r
		}
	}
	if len(c.records) == 0 {
		return fault.NotFoundf("there are no build steps in it (was it exported by keg with --cache-to?)")
	}
	return nil
}

// verified reads a small document and checks its digest.
func verified(ctx context.Context, open func(context.Context, image.Descriptor) (io.ReadCloser, error), d image.Descriptor) ([]byte, error) {
	r, err := open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, image.MaxConfig+1))
	if err == nil && (len(b) > image.MaxConfig || d.Digest.Validate() != nil || d.Digest.Algorithm().FromBytes(b) != d.Digest) {
		err = fault.Invalidf("build cache: document %s is damaged", d.Digest)
	}
	return b, err
}

func localCache(dir string) (image.Descriptor, error) {
	b, err := os.ReadFile(filepath.Join(dir, indexFile))
	if err != nil {
		return image.Descriptor{}, err
	}
	x, err := image.ParseIndex(b)
	if err != nil {
		return image.Descriptor{}, err
	}
	if len(x.Manifests) == 0 {
		return image.Descriptor{}, fault.NotFoundf("%s holds no build cache", dir)
	}
	return x.Manifests[len(x.Manifests)-1], nil
}

// exports writes the caches that were asked for. What is inline went with the image.
func (b *delivery) exports(ctx context.Context) error {
	for _, c := range b.q.CacheTo {
		if c.Type == "inline" {
			continue
		}
		v := b.n.vertex("exporting cache to " + c.Type)
		err := b.export(ctx, c, v)
		v.done(err)
		if err != nil && !c.IgnoreError {
			return fmt.Errorf("export the build cache: %w", err)
		}
	}
	return nil
}

// steps are the records to be exported, sorted by key, and their layers, each once.
func (b *delivery) steps(all bool) (records []*builder.Record, layers []*builder.Record) {
	keys, ids := map[string]bool{}, map[digest.Digest]bool{}
	for _, r := range b.results {
		list := r.Steps
		if all {
			list = r.AllSteps
		}
		for _, s := range list {
			if !keys[s.Key] {
				keys[s.Key] = true
				records = append(records, s)
			}
		}
	}
	slices.SortFunc(records, func(a, b *builder.Record) int { return strings.Compare(a.Key, b.Key) })
	for _, s := range records {
		if !ids[s.Layer] {
			ids[s.Layer] = true
			layers = append(layers, s)
		}
	}
	return records, layers
}

func (b *delivery) export(ctx context.Context, c Cache, v *numbered) error {
	records, layers := b.steps(c.Max)
	if err := b.e.snapshots.Sync(ctx); err != nil {
		return err
	}
	var out cacheWriter = &cacheFiles{s: newSaving(b.e), dir: c.Dir}
	if c.Type == "registry" {
		out = &cachePush{p: &push{e: b.e, ref: c.Ref, compression: orElse(c.Compression, image.Zstd), say: func(PullEvent) {}}}
	}
	m := image.Manifest{MediaType: image.MediaManifest, Layers: []image.Descriptor{}}
	m.SchemaVersion = 2
	var ids []digest.Digest
	for _, s := range layers {
		d, err := out.layer(ctx, image.Descriptor{MediaType: image.MediaLayer, Digest: s.Layer, Size: s.Size}, s.Layers())
		if err != nil {
			return err
		}
		m.Layers, ids = append(m.Layers, d), append(ids, s.Layer)
	}
	config, err := json.Marshal(map[string]any{"steps": records, "rootfs": map[string]any{"type": "layers", "diff_ids": ids}})
	if err != nil {
		return err
	}
	doc := rawOf(mediaCache, config)
	m.Config = doc.Descriptor
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	v.status(fmt.Sprintf("%d steps, %d layers", len(records), len(layers)))
	return out.finish(ctx, doc, rawOf(image.MediaManifest, text))
}

// cacheWriter is where a cache is written.
type cacheWriter interface {
	layer(ctx context.Context, d image.Descriptor, stack []digest.Digest) (image.Descriptor, error)
	finish(ctx context.Context, config, manifest rawDocument) error
}

type cachePush struct{ p *push }

func (c *cachePush) layer(ctx context.Context, d image.Descriptor, stack []digest.Digest) (image.Descriptor, error) {
	return c.p.layer(ctx, d, image.Descriptor{}, stack)
}

func (c *cachePush) finish(ctx context.Context, config, manifest rawDocument) error {
	there, err := c.p.e.remote.HasBlob(ctx, c.p.ref, config.Digest)
	if err == nil && !there {
		err = c.p.e.remote.PushBlob(ctx, c.p.ref, config.Descriptor, config.open, nil)
	}
	if err != nil {
		return err
	}
	_, err = c.p.e.remote.PushManifest(ctx, c.p.ref, manifest.MediaType, manifest.bytes)
	return err
}

// cacheFiles is an OCI layout; layers are plain tars.
type cacheFiles struct {
	s   *saving
	dir string
}

func (c *cacheFiles) layer(_ context.Context, d image.Descriptor, stack []digest.Digest) (image.Descriptor, error) {
	return c.s.layer(d, stack)
}

func (c *cacheFiles) finish(ctx context.Context, config, manifest rawDocument) error {
	c.s.ociOnly = true
	c.s.document(config.Digest, config.bytes)
	c.s.document(manifest.Digest, manifest.bytes)
	c.s.index.Manifests = []image.Descriptor{manifest.Descriptor}
	return c.s.writeDir(ctx, c.dir)
}
