// Images as a registry describes them, looked at without pulling, and indexes put together
// by hand: docker manifest.

package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"

	"keg/internal/disk"
	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/registry"
)

// RemoteImage is one image of what a name in a registry points at.
type RemoteImage struct {
	Ref      image.Reference // with the digest
	Desc     image.Descriptor
	Raw      []byte // the manifest
	Manifest *image.Manifest
	Config   *image.Config
}

// RemoteManifest returns the document that a name in a registry points at.
func (e *Engine) RemoteManifest(ctx context.Context, ref image.Reference) (image.Descriptor, []byte, error) {
	desc, err := e.remote.Resolve(ctx, ref)
	if err != nil {
		return desc, nil, err
	}
	doc, err := e.remote.Manifest(ctx, ref, registry.Unsized(desc))
	desc.Size = int64(len(doc))
	return desc, doc, err
}

// RemoteImages returns the images behind a name in a registry, with their configs and without
// their layers: one, or those of an index.
func (e *Engine) RemoteImages(ctx context.Context, ref image.Reference) ([]RemoteImage, error) {
	desc, doc, err := e.RemoteManifest(ctx, ref)
	if err != nil {
		return nil, err
	}
	if !image.IsIndex(desc.MediaType) {
		im, err := e.remoteImage(ctx, ref, desc, doc)
		return []RemoteImage{im}, err
	}
	x, err := image.ParseIndex(doc)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref.Familiar(), err)
	}
	var all []RemoteImage
	for _, d := range x.Manifests {
		if image.IsIndex(d.MediaType) {
			continue
		}
		doc, err := e.remote.Manifest(ctx, ref, d)
		if err != nil {
			return nil, err
		}
		im, err := e.remoteImage(ctx, ref, d, doc)
		if err != nil {
			return nil, err
		}
		all = append(all, im)
	}
	return all, nil
}

func (e *Engine) remoteImage(ctx context.Context, ref image.Reference, d image.Descriptor, doc []byte) (RemoteImage, error) {
	im := RemoteImage{Ref: ref.WithDigest(d.Digest), Desc: d, Raw: doc}
	var err error
	if im.Manifest, err = image.ParseManifest(doc); err != nil {
		return im, fmt.Errorf("%s: %w", ref.Familiar(), err)
	}
	if t := im.Manifest.Config.MediaType; t != image.MediaConfig && t != image.MediaDockerConfig {
		return im, nil // an artifact: no config to read
	}
	im.Config, err = e.remoteConfig(ctx, im.Ref, im.Manifest.Config)
	if err == nil && im.Desc.Platform == nil {
		p := configPlatform(im.Config)
		im.Desc.Platform = &p
	}
	return im, err
}

// remoteConfig reads a config past the store: nothing is going to refer to it.
func (e *Engine) remoteConfig(ctx context.Context, ref image.Reference, d image.Descriptor) (*image.Config, error) {
	if d.Size > image.MaxConfig {
		return nil, fault.Invalidf("image config %s has %d bytes; %d are allowed", d.Digest, d.Size, image.MaxConfig)
	}
	r, _, err := e.remote.Blob(ctx, ref, d, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, image.MaxConfig+1))
	if err != nil {
		return nil, err
	}
	if got := d.Digest.Algorithm().FromBytes(b); got != d.Digest {
		return nil, fault.Invalidf("registry %s sent image config %s with digest %s", ref.Registry, d.Digest, got)
	}
	return image.ParseConfig(b)
}

// manifestList is an index that is being put together, in manifests/<hex of its name>.
type manifestList struct {
	Version int          `json:"version"`
	Name    string       `json:"name"`
	Members []listMember `json:"members"`
}

type listMember struct {
	Name string           `json:"name"` // as it was given
	Desc image.Descriptor `json:"descriptor"`
}

const manifestListVersion = 1

func (e *Engine) listFile(list image.Reference) string {
	return filepath.Join(e.opt.Root, "manifests", digest.FromString(list.String()).Encoded())
}

// ManifestList returns the index that was put together here under a name, as it would be
// pushed; fault.NotFound when there is none.
func (e *Engine) ManifestList(list image.Reference) (*image.Index, error) {
	l, err := e.readList(list)
	if err != nil {
		return nil, err
	}
	return l.index(), nil
}

func (e *Engine) readList(list image.Reference) (manifestList, error) {
	var l manifestList
	err := disk.GetJSON(e.listFile(list), &l)
	if fault.Is(err, fault.NotFound) {
		return l, fault.NotFoundf("No such manifest: %s", list.Familiar())
	}
	if err == nil && l.Version > manifestListVersion {
		return l, fault.Unsupportedf("manifest list %s has version %d; this program knows %d: use a newer one", list.Familiar(), l.Version, manifestListVersion)
	}
	return l, err
}

// index is Docker's list when all members are Docker's, else OCI's.
func (l manifestList) index() *image.Index {
	x := &image.Index{MediaType: image.MediaDockerList, Manifests: []image.Descriptor{}}
	x.SchemaVersion = 2
	for _, m := range l.Members {
		if m.Desc.MediaType != image.MediaDockerManifest {
			x.MediaType = image.MediaIndex
		}
		x.Manifests = append(x.Manifests, m.Desc)
	}
	return x
}

// CreateManifestList makes a local index of images in registries. With amend it adds to one
// that is there.
func (e *Engine) CreateManifestList(ctx context.Context, list image.Reference, members []image.Reference, amend bool) error {
	l, err := e.readList(list)
	switch {
	case err == nil && !amend:
		return fault.Conflictf("refusing to amend an existing manifest list with no --amend flag")
	case err != nil && !fault.Is(err, fault.NotFound):
		return err
	}
	l.Version, l.Name = manifestListVersion, list.String()
	for _, ref := range members {
		all, err := e.RemoteImages(ctx, ref)
		if err != nil {
			return err
		}
		for _, im := range all {
			l.put(listMember{im.Ref.String(), image.Descriptor{MediaType: im.Desc.MediaType, Digest: im.Desc.Digest, Size: int64(len(im.Raw)), Platform: im.Desc.Platform}})
		}
	}
	return e.writeList(list, l)
}

func (l *manifestList) put(m listMember) {
	i := slices.IndexFunc(l.Members, func(old listMember) bool { return old.Desc.Digest == m.Desc.Digest })
	if i < 0 {
		l.Members = append(l.Members, m)
	} else {
		l.Members[i] = m
	}
}

func (e *Engine) writeList(list image.Reference, l manifestList) error {
	file := e.listFile(list)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return disk.PutJSON(file, l)
}

// Annotation is what AnnotateManifestList changes of a member; what is empty stays.
type Annotation struct {
	OS, Architecture, Variant, OSVersion string
	OSFeatures                           []string
}

// AnnotateManifestList changes what a local index says of one of its images.
func (e *Engine) AnnotateManifestList(ctx context.Context, list, member image.Reference, a Annotation) error {
	l, err := e.readList(list)
	if err != nil {
		return err
	}
	d := member.Digest
	if d == "" {
		desc, err := e.remote.Resolve(ctx, member)
		if err != nil {
			return err
		}
		d = desc.Digest
	}
	i := slices.IndexFunc(l.Members, func(m listMember) bool { return m.Desc.Digest == d })
	if i < 0 {
		return fault.NotFoundf("manifest for image %s does not exist in %s", member.Familiar(), list.Familiar())
	}
	p := image.Platform{}
	if old := l.Members[i].Desc.Platform; old != nil {
		p = *old
	}
	p.OS, p.Architecture = orElse(a.OS, p.OS), orElse(a.Architecture, p.Architecture)
	p.Variant, p.OSVersion = orElse(a.Variant, p.Variant), orElse(a.OSVersion, p.OSVersion)
	if len(a.OSFeatures) > 0 {
		p.OSFeatures = a.OSFeatures
	}
	l.Members[i].Desc.Platform = &p
	return e.writeList(list, l)
}

// PushManifestList puts a local index into its registry, its images first where the
// repository lacks them. With purge the local one is removed.
func (e *Engine) PushManifestList(ctx context.Context, list image.Reference, purge bool) (digest.Digest, error) {
	l, err := e.readList(list)
	if err != nil {
		return "", err
	}
	for _, m := range l.Members {
		from, err := image.ParseReference(m.Name)
		if err != nil {
			return "", err
		}
		if from.Name() != list.Name() {
			if err := e.copyImage(ctx, list, from, m.Desc, 0); err != nil {
				return "", err
			}
		}
	}
	x := l.index()
	doc, err := json.Marshal(x)
	if err != nil {
		return "", err
	}
	d, err := e.remote.PushManifest(ctx, list, x.MediaType, doc)
	if err == nil && purge {
		err = e.RemoveManifestList(list)
	}
	return d, err
}

// copyImage brings an image from one repository to another: by mounts where both are of
// one registry, else through this process without touching the disk. What refers to it
// (signatures, attestations) goes along.
func (e *Engine) copyImage(ctx context.Context, to, from image.Reference, d image.Descriptor, depth int) error {
	doc, err := e.remote.Manifest(ctx, from, d)
	if err != nil {
		return err
	}
	m, err := image.ParseManifest(doc)
	if err != nil {
		return fmt.Errorf("%s: %w", from.Familiar(), err)
	}
	for _, b := range append([]image.Descriptor{m.Config}, m.Layers...) {
		if err := e.copyBlob(ctx, to, from, b); err != nil {
			return err
		}
	}
	if _, err = e.remote.PushManifest(ctx, image.Reference{Registry: to.Registry, Repository: to.Repository, Digest: d.Digest}, d.MediaType, doc); err != nil {
		return err
	}
	if depth == maxIndexDepth {
		return nil
	}
	refs, err := e.remote.Referrers(ctx, from, d.Digest)
	if err != nil {
		return err
	}
	for _, r := range refs {
		if !image.IsManifest(r.MediaType) {
			continue
		}
		if err := e.copyImage(ctx, to, from, r, depth+1); err != nil {
			return fmt.Errorf("copy what refers to %s: %w", d.Digest, err)
		}
	}
	return nil
}

func (e *Engine) copyBlob(ctx context.Context, to, from image.Reference, b image.Descriptor) error {
	if ok, err := e.remote.HasBlob(ctx, to, b.Digest); ok || err != nil {
		return err
	}
	if to.Registry == from.Registry {
		if ok, err := e.remote.MountBlob(ctx, to, b.Digest, from.Repository); ok || err != nil {
			return err
		}
	}
	return e.remote.PushBlob(ctx, to, b, func() (io.ReadCloser, error) {
		r, _, err := e.remote.Blob(ctx, from, b, 0)
		return r, err
	}, nil)
}

// RemoveManifestList forgets a local index.
func (e *Engine) RemoveManifestList(list image.Reference) error {
	if _, err := e.readList(list); err != nil {
		return err
	}
	return os.Remove(e.listFile(list))
}
