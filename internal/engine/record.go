package engine

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/disk"
	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/store"
)

// An image that this engine holds has a record, images/<hex of its config>: so it is
// found by id, outlives its last name until somebody removes it ("dangling"), and is
// listed without opening a blob. Everything in it can be made again from the manifest.
type imageRecord struct {
	Version   int                `json:"version"`
	ID        digest.Digest      `json:"id"` // of the config
	Manifests []image.Descriptor `json:"manifests"`
	Stack     []digest.Digest    `json:"stack"` // diffIDs, bottom first
	Created   time.Time          `json:"created"`
	Known     time.Time          `json:"known"` // since when this engine holds it
	Size      int64              `json:"size"`  // of the files of all layers
	Labels    map[string]string  `json:"labels,omitempty"`
	Platform  image.Platform     `json:"platform"`
}

func (r *imageRecord) has(manifest digest.Digest) bool {
	return slices.ContainsFunc(r.Manifests, func(d image.Descriptor) bool { return d.Digest == manifest })
}

func (e *Engine) imageDir() string { return filepath.Join(e.opt.Root, "images") }

func (e *Engine) imageFile(id digest.Digest) string {
	return filepath.Join(e.imageDir(), id.Encoded())
}

// manifest reads and parses a manifest of the store.
func (e *Engine) manifest(d digest.Digest) (*image.Manifest, []byte, error) {
	b, err := e.store.Bytes(d, image.MaxManifest)
	if err != nil {
		return nil, nil, err
	}
	m, err := image.ParseManifest(b)
	return m, b, err
}

// config reads and parses an image config of the store.
func (e *Engine) config(id digest.Digest) (*image.Config, error) {
	b, err := e.store.Bytes(id, image.MaxConfig)
	if err != nil {
		return nil, err
	}
	return image.ParseConfig(b)
}

// pick follows an index of the store to the manifest for the platform.
func (e *Engine) pick(desc image.Descriptor, p image.Platform) (image.Descriptor, error) {
	for depth := 0; image.IsIndex(desc.MediaType); depth++ {
		b, err := e.store.Bytes(desc.Digest, image.MaxManifest)
		if err != nil {
			return desc, err
		}
		x, err := image.ParseIndex(b)
		if err != nil {
			return desc, err
		}
		if depth == maxIndexDepth {
			return desc, fault.Invalidf("read index %s: more than %d levels of indexes", desc.Digest, maxIndexDepth)
		}
		d, err := image.Select(x, p)
		if fault.Is(err, fault.NotFound) && first(x).Digest != "" {
			d, err = first(x), nil // built here for other platforms only
		}
		if err != nil {
			return desc, err
		}
		desc = d
	}
	return desc, nil
}

// first is the first image of an index.
func first(x *image.Index) image.Descriptor {
	for _, m := range x.Manifests {
		if m.Annotations[attestationType] == "" {
			return m
		}
	}
	return image.Descriptor{}
}

// maxIndexDepth bounds indexes of indexes.
const maxIndexDepth = 4

// remember writes or completes the record of the image whose manifest is desc.
func (e *Engine) remember(desc image.Descriptor) (*imageRecord, error) {
	desc, err := e.pick(desc, image.Host())
	if err != nil {
		return nil, err
	}
	m, _, err := e.manifest(desc.Digest)
	if err != nil {
		return nil, err
	}
	r, err := e.imageByID(m.Config.Digest)
	if fault.Is(err, fault.NotFound) {
		r, err = e.newRecord(m.Config.Digest)
	}
	if err != nil {
		return nil, err
	}
	if r.has(desc.Digest) {
		return r, nil
	}
	r.Manifests = append(r.Manifests, image.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size})
	if err := os.MkdirAll(e.imageDir(), 0o700); err != nil {
		return nil, err
	}
	return r, disk.PutJSON(e.imageFile(r.ID), r)
}

func (e *Engine) newRecord(id digest.Digest) (*imageRecord, error) {
	if id.Algorithm() != digest.SHA256 {
		return nil, fault.Unsupportedf("image id %s: keg names images by sha256", id)
	}
	c, err := e.config(id)
	if err != nil {
		return nil, err
	}
	r := &imageRecord{Version: 1, ID: id, Stack: c.RootFS.DiffIDs, Known: time.Now().UTC(),
		Labels: c.Config.Labels, Platform: image.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}}
	if c.Created != nil {
		r.Created = *c.Created
	}
	for i := range r.Stack {
		_, files, err := e.snapshots.LayerSize(r.Stack[:i+1])
		if err != nil {
			return nil, err
		}
		r.Size += files
	}
	return r, nil
}

// imageByID reads the record of a full id.
func (e *Engine) imageByID(id digest.Digest) (*imageRecord, error) {
	if err := id.Validate(); err != nil {
		return nil, fault.Invalidf("image id %q: %w", id, err)
	}
	var r imageRecord
	return &r, disk.GetJSON(e.imageFile(id), &r)
}

// imageByPrefix finds the one image whose id begins so.
func (e *Engine) imageByPrefix(prefix string) (*imageRecord, error) {
	prefix = strings.TrimPrefix(prefix, "sha256:")
	if prefix == "" || strings.Trim(prefix, "0123456789abcdef") != "" || len(prefix) > 64 {
		return nil, noSuchImage(prefix)
	}
	ents, err := os.ReadDir(e.imageDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	found := ""
	for _, ent := range ents {
		if !strings.HasPrefix(ent.Name(), prefix) {
			continue
		}
		if found != "" {
			return nil, fault.Invalidf("ambiguous image id prefix: %s", prefix)
		}
		found = ent.Name()
	}
	if found == "" {
		return nil, noSuchImage(prefix)
	}
	return e.imageByID(digest.NewDigestFromEncoded(digest.SHA256, found))
}

// album is all images with their names, read once for one act.
type album struct {
	images []*imageRecord                  // newest first
	byID   map[digest.Digest]*imageRecord  // config -> image
	names  map[digest.Digest][]store.Named // config -> names, sorted
}

// album reads all names and records. Names that came without a record (a build that was
// killed after its tag, a registry that serves this store) get theirs.
func (e *Engine) album() (*album, error) {
	a := &album{byID: map[digest.Digest]*imageRecord{}, names: map[digest.Digest][]store.Named{}}
	ents, err := os.ReadDir(e.imageDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	byManifest := map[digest.Digest]*imageRecord{}
	add := func(r *imageRecord) {
		if a.byID[r.ID] == nil {
			a.images = append(a.images, r)
		}
		a.byID[r.ID] = r
		for _, m := range r.Manifests {
			byManifest[m.Digest] = r
		}
	}
	ents = slices.DeleteFunc(ents, func(ent fs.DirEntry) bool { return disk.IsTemp(ent.Name()) || len(ent.Name()) != 64 })
	records, err := readAll(ents, func(ent fs.DirEntry) (*imageRecord, error) {
		return e.imageByID(digest.NewDigestFromEncoded(digest.SHA256, ent.Name()))
	})
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		add(r)
	}
	names, err := e.store.Names()
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		r := byManifest[n.Desc.Digest]
		if r == nil {
			if r, err = e.remember(n.Desc); err != nil {
				continue // of another platform or kind, or without its layers: not an image to run here
			}
			add(r)
		}
		a.names[r.ID] = append(a.names[r.ID], n)
	}
	slices.SortStableFunc(a.images, func(x, y *imageRecord) int {
		if c := y.Created.Compare(x.Created); c != 0 {
			return c
		}
		return y.Known.Compare(x.Known)
	})
	return a, nil
}

// repoTags and repoDigests are the names of an image as Docker prints them.
func repoTags(names []store.Named) []string {
	tags := []string{}
	for _, n := range names {
		if n.Ref.Tag != "" {
			tags = append(tags, n.Ref.Familiar())
		}
	}
	return tags
}

func repoDigests(names []store.Named) []string {
	ds := []string{}
	for _, n := range names {
		if n.Ref.Digest != "" {
			ds = append(ds, n.Ref.Familiar())
		}
	}
	return ds
}

// found is an image that a reference led to.
type found struct {
	*imageRecord
	Ref  image.Reference  // zero when it was found by id
	Desc image.Descriptor // of the manifest
}

// lookup finds a local image by name, name@digest, id or unique id prefix.
func (e *Engine) lookup(_ context.Context, s string) (found, error) {
	if strings.HasPrefix(s, "sha256:") || len(s) == 64 && strings.Trim(s, "0123456789abcdef") == "" {
		r, err := e.imageByPrefix(s)
		return byID(r, err, s)
	}
	ref, perr := image.ParseReference(s)
	if perr == nil {
		f, err := e.named(ref)
		if !fault.Is(err, fault.NotFound) {
			return f, err
		}
	}
	r, err := e.imageByPrefix(s)
	if err == nil {
		return byID(r, nil, s)
	}
	if perr != nil {
		return found{}, perr
	}
	if fault.Is(err, fault.NotFound) {
		return found{}, noSuchImage(ref.Familiar())
	}
	return found{}, err
}

func byID(r *imageRecord, err error, s string) (found, error) {
	if fault.Is(err, fault.NotFound) {
		return found{}, noSuchImage(s)
	}
	if err != nil {
		return found{}, err
	}
	return found{r, image.Reference{}, r.Manifests[0]}, nil
}

// named finds what a full reference points at.
func (e *Engine) named(ref image.Reference) (found, error) {
	desc, err := e.store.Resolve(ref)
	if err != nil {
		return found{}, err
	}
	r, err := e.remember(desc)
	return found{r, ref, desc}, err
}

func noSuchImage(name string) error { return fault.NotFoundf("No such image: %s", name) }
