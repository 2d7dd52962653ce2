package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/layer"
	"keg/internal/snapshot"
)

// LoadOptions are those of docker load.
type LoadOptions struct {
	Platform *image.Platform
	Progress func(PullEvent)
}

// Loaded is one image of an archive, under one of its names or without any.
type Loaded struct {
	Ref   image.Reference // zero without a name
	ID    digest.Digest
	Moved digest.Digest // the image that had the name before; "" when none or the same
}

// Load brings the images of an archive: an OCI layout or a docker-archive, compressed
// or not. All names in it are words for us, never paths of the host; every blob is
// verified before anything is visible; names come last.
func (e *Engine) Load(ctx context.Context, in io.Reader, o LoadOptions) ([]Loaded, error) {
	use, err := e.busy(ctx)
	if err != nil {
		return nil, err
	}
	defer use.end()
	b, err := openBundle(ctx, in, use.dir.Path)
	if err != nil {
		return nil, err
	}
	defer b.close()
	from := *e
	from.remote = b
	wanted, err := from.contents(ctx, b, use)
	if err != nil {
		return nil, err
	}
	if len(wanted) == 0 {
		return nil, fault.Invalidf("the archive holds no image")
	}
	var loaded []Loaded
	for _, w := range wanted {
		ls, err := from.bring(ctx, b, use, w, o)
		if err != nil {
			return loaded, err
		}
		loaded = append(loaded, ls...)
	}
	return loaded, nil
}

// wanted is an image of an archive.
type wantedImage struct {
	desc  image.Descriptor
	names []image.Reference
}

// bring loads one image and then gives it its names.
func (e *Engine) bring(ctx context.Context, b *bundle, use *use, w wantedImage, o LoadOptions) ([]Loaded, error) {
	if err := use.add(w.desc.Digest); err != nil {
		return nil, err
	}
	shown := image.Reference{Registry: "archive", Repository: image.ShortID(string(w.desc.Digest))}
	if len(w.names) > 0 {
		shown = w.names[0]
	}
	if o.Platform == nil {
		w.desc = b.present(w.desc)
	}
	desc, err := e.fetch(ctx, use, shown, w.desc, o.Platform, serial(o.Progress))
	if err != nil {
		return nil, err
	}
	r, err := e.remember(desc)
	if err != nil {
		return nil, err
	}
	if len(w.names) == 0 {
		e.imageEvent("load", string(r.ID), string(r.ID), r.Labels)
		return []Loaded{{ID: r.ID}}, nil
	}
	var all []Loaded
	for _, ref := range w.names {
		l := Loaded{Ref: ref, ID: r.ID}
		if before, err := e.named(ref); err == nil && before.ID != r.ID {
			l.Moved = before.ID
		}
		if err := e.store.Tag(ref, desc); err != nil {
			return all, err
		}
		e.imageEvent("load", string(r.ID), ref.Familiar(), r.Labels)
		all = append(all, l)
	}
	return all, nil
}

// contents lists the images of an archive. A layout is read by its index; names that
// it lacks are looked up in manifest.json beside it, as Docker 25 wrote some.
func (e *Engine) contents(ctx context.Context, b *bundle, use *use) ([]wantedImage, error) {
	items, err := b.dockerItems()
	if err != nil {
		return nil, err
	}
	if b.has(layoutFile) && b.has(indexFile) {
		return b.layout(items)
	}
	if items == nil {
		return nil, fault.Invalidf("invalid archive: does not contain a manifest.json")
	}
	var all []wantedImage
	for i, it := range items {
		w, err := e.dockerImage(ctx, b, use, it)
		if err != nil {
			return nil, fmt.Errorf("image %d of %s: %w", i+1, dockerFile, err)
		}
		all = append(all, w)
	}
	return all, nil
}

// layout reads index.json.
func (b *bundle) layout(items []dockerItem) ([]wantedImage, error) {
	doc, err := b.small(indexFile, image.MaxManifest)
	if err != nil {
		return nil, err
	}
	x, err := image.ParseIndex(doc)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", indexFile, err)
	}
	var all []wantedImage
	at := map[digest.Digest]int{}
	for _, d := range x.Manifests {
		if d.Platform != nil && d.Platform.OS == "unknown" || !image.IsIndex(d.MediaType) && !image.IsManifest(d.MediaType) {
			continue // attestations and artifacts are no images
		}
		i, ok := at[d.Digest]
		if !ok {
			i = len(all)
			at[d.Digest] = i
			all = append(all, wantedImage{desc: image.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Platform: d.Platform}})
		}
		ref, ok, err := layoutName(d.Annotations)
		if err != nil {
			return nil, err
		}
		if ok {
			all[i].names = append(all[i].names, ref)
		}
	}
	for i := range all {
		if len(all[i].names) == 0 {
			if all[i].names, err = b.namesOf(all[i].desc, items); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// layoutName is the name that annotations give: the full one, or a reference name that
// is more than a tag.
func layoutName(annotations map[string]string) (image.Reference, bool, error) {
	if s := annotations[annotationName]; s != "" {
		ref, err := image.ParseReference(s)
		if err != nil || ref.Digest != "" {
			return ref, false, fault.Invalidf("%s: bad image name %q: %w", indexFile, s, orInvalid(err))
		}
		return ref, true, nil
	}
	s := annotations[ocispec.AnnotationRefName]
	ref, err := image.ParseRepository(s)
	if s == "" || err != nil || ref.Tag == "" || ref.Digest != "" {
		return image.Reference{}, false, nil //nolint:nilerr // any text may stand there
	}
	return ref, true, nil
}

func orInvalid(err error) error {
	if err == nil {
		return fault.Invalidf("a digest is not a name")
	}
	return err
}

// namesOf are the names that manifest.json gives to the image of a manifest.
func (b *bundle) namesOf(d image.Descriptor, items []dockerItem) (refs []image.Reference, err error) {
	if !image.IsManifest(d.MediaType) || len(items) == 0 {
		return nil, nil
	}
	doc, err := b.Manifest(context.Background(), image.Reference{}, d)
	if err != nil {
		return nil, err
	}
	m, err := image.ParseManifest(doc)
	if err != nil {
		return nil, err
	}
	for _, it := range items {
		if it.Config == blobName(m.Config.Digest) {
			return repoTagRefs(it.RepoTags)
		}
	}
	return nil, nil
}

func repoTagRefs(tags []string) (refs []image.Reference, err error) {
	for _, t := range tags {
		ref, err := image.ParseReference(t)
		if err != nil || ref.Digest != "" || ref.Tag == "" {
			return nil, fault.Invalidf("%s: bad image name %q: %w", dockerFile, t, orInvalid(err))
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

// dockerItems reads manifest.json; nil when there is none.
func (b *bundle) dockerItems() ([]dockerItem, error) {
	if !b.has(dockerFile) {
		return nil, nil
	}
	doc, err := b.small(dockerFile, image.MaxManifest)
	if err != nil {
		return nil, err
	}
	items := []dockerItem{}
	if err := json.Unmarshal(doc, &items); err != nil {
		return nil, fault.Invalidf("%s: %w", dockerFile, err)
	}
	return items, nil
}

// dockerImage makes a manifest for an image of a docker-archive, which has none.
func (e *Engine) dockerImage(ctx context.Context, b *bundle, use *use, it dockerItem) (wantedImage, error) {
	doc, err := b.small(it.Config, image.MaxConfig)
	if err != nil {
		return wantedImage{}, err
	}
	cfg, err := image.ParseConfig(doc)
	if err != nil {
		return wantedImage{}, err
	}
	if len(it.Layers) != len(cfg.RootFS.DiffIDs) {
		return wantedImage{}, fault.Invalidf("invalid manifest, layers length mismatch: expected %d, got %d", len(cfg.RootFS.DiffIDs), len(it.Layers))
	}
	m := image.Manifest{MediaType: image.MediaManifest}
	m.SchemaVersion = 2
	m.Config = image.Descriptor{MediaType: image.MediaConfig, Digest: digest.FromBytes(doc), Size: int64(len(doc))}
	b.known[m.Config.Digest] = clean(it.Config)
	for i, name := range it.Layers {
		d, err := b.layerOf(ctx, name, cfg.RootFS.DiffIDs[i])
		if err != nil {
			return wantedImage{}, err
		}
		m.Layers = append(m.Layers, d)
	}
	names, err := repoTagRefs(it.RepoTags)
	if err != nil {
		return wantedImage{}, err
	}
	if doc, err = json.Marshal(m); err != nil {
		return wantedImage{}, err
	}
	desc := image.Descriptor{MediaType: image.MediaManifest, Digest: digest.FromBytes(doc), Size: int64(len(doc))}
	if err := use.add(desc.Digest); err != nil {
		return wantedImage{}, err
	}
	if _, err := e.store.PutAs(ctx, desc.Digest, doc); err != nil {
		return wantedImage{}, err
	}
	return wantedImage{desc: desc, names: names}, nil
}

// fetchTar unpacks a plain layer of an archive. Its blob is kept only when the tree
// could not give it back.
func (e *Engine) fetchTar(ctx context.Context, ref image.Reference, d image.Descriptor, diffID digest.Digest, say func(PullEvent)) (snapshot.Unpacked, error) {
	if d.Digest != diffID {
		return nil, fault.Invalidf("layer %s is not compressed, and its image says that it unpacks to %s", d.Digest, diffID)
	}
	body, _, err := e.remote.Blob(ctx, ref, d, 0)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	id := image.ShortID(string(d.Digest))
	u, err := e.snapshots.UnpackRecorded(ctx, &watched{r: body, ctx: ctx, step: func(n int64) {
		say(PullEvent{ID: id, Status: "Loading layer", Current: n, Total: d.Size})
	}}, diffID)
	if err != nil {
		return nil, fmt.Errorf("load layer %s: %w", id, err)
	}
	if !u.Recorded() {
		err = e.keepWhole(ctx, ref, d, say)
	}
	if err != nil {
		u.Discard()
		return nil, err
	}
	return u, nil
}

func (e *Engine) keepWhole(ctx context.Context, ref image.Reference, d image.Descriptor, say func(PullEvent)) error {
	ing, err := e.store.Ingest(ctx, d.Digest.String())
	if err != nil {
		return err
	}
	if e.store.Has(d.Digest) {
		return ing.Abort()
	}
	return e.download(ctx, ref, d, ing, say)
}

// spool writes what cannot be read twice to a file that ends with its directory.
func spool(ctx context.Context, in io.Reader, dir string) (*os.File, error) {
	plain, err := layer.Inflate(in)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	f, err := os.OpenFile(filepath.Join(dir, "archive"), os.O_CREATE|os.O_RDWR|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{f}, &watched{r: plain, ctx: ctx, step: func(int64) {}}, make([]byte, 1<<20)); err != nil {
		f.Close()
		return nil, fmt.Errorf("read archive: %w", err)
	}
	return f, nil
}

func clean(name string) string { return path.Clean("/" + name)[1:] }
