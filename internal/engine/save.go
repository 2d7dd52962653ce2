package engine

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"keg/internal/fault"
	"keg/internal/image"
)

// Names in an archive of images, which is an OCI layout and a docker-archive in one
// (image-spec image-layout.md; Docker since 25 writes the same).
const (
	layoutFile       = "oci-layout"
	indexFile        = "index.json"
	dockerFile       = "manifest.json"
	repositoriesFile = "repositories"

	// annotationName is where containerd and Docker keep the full name in index.json.
	annotationName = "io.containerd.image.name"
)

// dockerItem is one image in manifest.json.
type dockerItem struct {
	Config       string
	RepoTags     []string
	Layers       []string
	LayerSources map[digest.Digest]image.Descriptor `json:",omitempty"`
}

// SaveOptions are those of docker save.
type SaveOptions struct{ Platform *image.Platform }

// Save writes images to w as one tar. A name without a tag means all tags of its
// repository. Layers go as they are kept: compressed as pulled, or plain as built.
func (e *Engine) Save(ctx context.Context, names []string, w io.Writer, o SaveOptions) error {
	use, err := e.use(ctx)
	if err != nil {
		return err
	}
	defer use.end()
	s := newSaving(e)
	for _, name := range names {
		found, err := e.savable(ctx, name, o.Platform)
		if err != nil {
			return err
		}
		for _, f := range found {
			if err := use.add(f.ID, f.Desc.Digest); err != nil {
				return err
			}
			if err := s.add(f); err != nil {
				return err
			}
		}
	}
	if err := e.snapshots.Sync(ctx); err != nil {
		return err
	}
	if err := s.write(ctx, w); err != nil {
		return err
	}
	for _, id := range s.ids() {
		e.imageEvent("save", string(id), string(id), nil)
	}
	return nil
}

// savable finds what a name means: one image, or all tags of a repository.
func (e *Engine) savable(ctx context.Context, name string, p *image.Platform) ([]found, error) {
	fs, err := e.repositoryTags(name)
	if err != nil {
		return nil, err
	}
	if len(fs) == 0 {
		f, err := e.lookup(ctx, name)
		if fault.Is(err, fault.NotFound) {
			if ref, perr := image.ParseReference(name); perr == nil {
				if c, ok, cerr := e.carry(ctx, ref, p); ok {
					f, err = c, cerr
				}
			}
		}
		if err != nil {
			return nil, err
		}
		fs = []found{f}
	}
	for _, f := range fs {
		if p != nil && !image.Matches(*p, f.Platform) {
			return nil, wrongPlatform(name, *p, f.Platform)
		}
	}
	return fs, nil
}

// repositoryTags are all tags of a repository that is named without one.
func (e *Engine) repositoryTags(name string) (fs []found, err error) {
	repo, err := image.ParseRepository(name)
	if err != nil || repo.Tag != "" || repo.Digest != "" {
		return nil, nil //nolint:nilerr // an id, or a full name: it is looked up
	}
	names, err := e.store.Names()
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if n.Ref.Name() != repo.Name() || n.Ref.Tag == "" {
			continue
		}
		f, err := e.named(n.Ref)
		if err != nil {
			return nil, err
		}
		fs = append(fs, f)
	}
	return fs, nil
}

// saving is an archive being planned: what it holds is known before the first byte.
type saving struct {
	e            *Engine
	blobs        map[digest.Digest]blobSource
	index        image.Index
	items        []*dockerItem
	repositories map[string]map[string]string
	ociOnly      bool // without docker-archive's files
}

func newSaving(e *Engine) *saving {
	return &saving{e: e, blobs: map[digest.Digest]blobSource{}, repositories: map[string]map[string]string{}}
}

type blobSource struct {
	size int64
	open func() (io.ReadCloser, error)
}

func (s *saving) ids() (ids []digest.Digest) {
	for _, it := range s.items {
		ids = append(ids, digest.NewDigestFromEncoded(digest.SHA256, it.Config[len("blobs/sha256/"):]))
	}
	return ids
}

// add plans one image under one name, or without any.
func (s *saving) add(f found) error {
	desc, m, err := s.manifest(f)
	if err != nil {
		return err
	}
	item := s.item(m, f)
	entry := image.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size, Platform: &f.Platform}
	if s.named(&entry, f.Ref) {
		if name := f.Ref.Familiar(); !slices.Contains(item.RepoTags, name) {
			item.RepoTags = append(item.RepoTags, name)
		}
		repo := f.Ref.FamiliarName()
		if s.repositories[repo] == nil {
			s.repositories[repo] = map[string]string{}
		}
		s.repositories[repo][f.Ref.Tag] = f.Stack[max(0, len(f.Stack)-1):][0].Encoded()
	}
	for _, have := range s.index.Manifests {
		if have.Digest == entry.Digest && have.Annotations[annotationName] == entry.Annotations[annotationName] {
			return nil
		}
	}
	s.index.Manifests = append(s.index.Manifests, entry)
	return nil
}

// named gives an entry of index.json its name; false when it has none.
func (s *saving) named(entry *image.Descriptor, ref image.Reference) bool {
	if ref.Tag == "" || ref.Digest != "" {
		return false
	}
	entry.Annotations = map[string]string{annotationName: ref.String(), ocispec.AnnotationRefName: ref.Tag}
	return true
}

// item is the image in manifest.json, once whatever its names.
func (s *saving) item(m *image.Manifest, f found) *dockerItem {
	config := blobName(m.Config.Digest)
	for _, it := range s.items {
		if it.Config == config {
			return it
		}
	}
	it := &dockerItem{Config: config, LayerSources: map[digest.Digest]image.Descriptor{}}
	for i, l := range m.Layers {
		it.Layers = append(it.Layers, blobName(l.Digest))
		it.LayerSources[f.Stack[i]] = image.Descriptor{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size}
	}
	s.items = append(s.items, it)
	return it
}

func blobName(d digest.Digest) string { return "blobs/" + d.Algorithm().String() + "/" + d.Encoded() }

// manifest plans the blobs of an image. A layer whose blob is not kept, since another
// image brought its tree, goes plain; the manifest says so then.
func (s *saving) manifest(f found) (image.Descriptor, *image.Manifest, error) {
	desc, err := s.e.pick(f.Desc, f.Platform)
	if err != nil {
		return desc, nil, err
	}
	m, doc, err := s.e.manifest(desc.Digest)
	if err != nil {
		return desc, nil, err
	}
	changed := false
	for i := range m.Layers {
		l, err := s.layer(m.Layers[i], f.Stack[:i+1])
		if err != nil {
			return desc, nil, err
		}
		changed = changed || l.Digest != m.Layers[i].Digest
		m.Layers[i] = l
	}
	if changed {
		if doc, err = json.Marshal(m); err != nil {
			return desc, nil, err
		}
		desc = image.Descriptor{MediaType: desc.MediaType, Digest: digest.FromBytes(doc), Size: int64(len(doc))}
	}
	config, err := s.e.store.Bytes(m.Config.Digest, image.MaxConfig)
	if err != nil {
		return desc, nil, err
	}
	s.document(m.Config.Digest, config)
	s.document(desc.Digest, doc)
	return desc, m, nil
}

func (s *saving) document(d digest.Digest, b []byte) {
	s.blobs[d] = blobSource{int64(len(b)), func() (io.ReadCloser, error) { return io.NopCloser(newReader(b)), nil }}
}

func (s *saving) layer(l image.Descriptor, stack []digest.Digest) (image.Descriptor, error) {
	if size, err := s.e.store.Stat(l.Digest); err == nil {
		s.blobs[l.Digest] = blobSource{size, func() (io.ReadCloser, error) { return s.e.store.Blob(l.Digest) }}
		return l, nil
	}
	diffID := stack[len(stack)-1]
	if _, _, err := s.e.snapshots.Find(diffID); err != nil {
		return l, err
	}
	t, err := s.e.snapshots.Tar(stack)
	if err != nil {
		return l, err
	}
	size := t.Size()
	t.Close()
	s.blobs[diffID] = blobSource{size, func() (io.ReadCloser, error) { return s.e.snapshots.Tar(stack) }}
	return image.Descriptor{MediaType: image.MediaLayer, Digest: diffID, Size: size}, nil
}

// write writes the tar: blobs first, sorted, then what tells what they are.
func (s *saving) write(ctx context.Context, w io.Writer) error {
	tw := tar.NewWriter(w)
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			return err
		}
	}
	for _, d := range slices.Sorted(maps.Keys(s.blobs)) {
		if err := s.blob(ctx, tw, d); err != nil {
			return fmt.Errorf("write %s: %w", d, err)
		}
	}
	for _, doc := range s.documents() {
		b, err := json.Marshal(doc.v)
		if err != nil {
			return err
		}
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: doc.name, Mode: 0o644, Size: int64(len(b))}); err != nil {
			return err
		}
		if _, err := tw.Write(b); err != nil {
			return err
		}
	}
	return tw.Close()
}

// savedDocument is a file that tells what the blobs are.
type savedDocument struct {
	name string
	v    any
}

func (s *saving) documents() []savedDocument {
	s.index.SchemaVersion, s.index.MediaType = 2, image.MediaIndex
	docs := []savedDocument{{indexFile, s.index}, {layoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}}}
	if !s.ociOnly {
		docs = append(docs, savedDocument{dockerFile, s.items}, savedDocument{repositoriesFile, s.repositories})
	}
	return docs
}

func (s *saving) blob(ctx context.Context, tw *tar.Writer, d digest.Digest) error {
	src := s.blobs[d]
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: blobName(d), Mode: 0o644, Size: src.size}); err != nil {
		return err
	}
	r, err := src.open()
	if err != nil {
		return err
	}
	defer r.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{tw}, &watched{r: r, ctx: ctx, step: func(int64) {}}, make([]byte, 1<<20))
	if err == nil && n != src.size {
		err = errors.Join(io.ErrUnexpectedEOF, os.ErrInvalid)
	}
	return err
}
