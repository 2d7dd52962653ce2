package engine

// Images of several platforms, and what is attested of them, as one index.

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
)

// BuildKit's annotations of an attestation's entry in an index (moby/buildkit, docs/attestations).
const (
	attestationType   = "vnd.docker.reference.type"
	attestationDigest = "vnd.docker.reference.digest"
	attestationKind   = "attestation-manifest"
)

// index writes the index of all platforms that were built and points the tags at it.
func (b *delivery) index(ctx context.Context) (desc image.Descriptor, err error) {
	v := b.n.vertex("exporting manifest list")
	defer func() { v.done(err) }()
	x := image.Index{MediaType: image.MediaIndex}
	x.SchemaVersion = 2
	var attested []image.Descriptor
	for _, r := range b.results {
		d := r.Manifest
		d.Platform = &r.Platform
		x.Manifests = append(x.Manifests, d)
		if b.q.Provenance != "" {
			a, err := b.attest(ctx, r, d)
			if err != nil {
				return desc, err
			}
			attested = append(attested, a)
		}
	}
	x.Manifests = append(x.Manifests, attested...)
	if desc, err = b.e.putIndex(ctx, &x, b.use); err != nil {
		return desc, err
	}
	v.status("exporting manifest list " + desc.Digest.String() + " done")
	for _, ref := range b.tags {
		if err := b.e.store.Tag(ref, desc); err != nil {
			return desc, err
		}
		v.status("naming to " + ref.String() + " done")
	}
	if !b.stored {
		return desc, nil
	}
	r, err := b.e.remember(desc)
	if err != nil {
		return desc, err
	}
	b.e.imageEvent("create", string(r.ID), string(r.ID), r.Labels)
	return desc, nil
}

func (e *Engine) putIndex(ctx context.Context, x *image.Index, use *use) (image.Descriptor, error) {
	doc, err := json.Marshal(x)
	if err != nil {
		return image.Descriptor{}, err
	}
	d := image.Descriptor{MediaType: image.MediaIndex, Digest: digest.FromBytes(doc), Size: int64(len(doc))}
	if err := use.add(d.Digest); err != nil {
		return d, err
	}
	_, err = e.store.Put(ctx, doc)
	return d, err
}

// readIndex reads an index of the store.
func (e *Engine) readIndex(d digest.Digest) (*image.Index, error) {
	b, err := e.store.Bytes(d, image.MaxManifest)
	if err != nil {
		return nil, err
	}
	return image.ParseIndex(b)
}

// member is one image of an index, as far as moving it needs.
func (e *Engine) member(d image.Descriptor) (found, error) {
	m, _, err := e.manifest(d.Digest)
	if err != nil {
		return found{}, err
	}
	r := &imageRecord{ID: m.Config.Digest}
	if d.Platform != nil {
		r.Platform = *d.Platform
	}
	if d.Annotations[attestationType] == "" {
		c, err := e.config(m.Config.Digest)
		if err != nil {
			return found{}, err
		}
		r.Stack = c.RootFS.DiffIDs
	}
	return found{imageRecord: r, Desc: d}, nil
}

// index pushes all images of an index, then the index. What is attested follows: its subject is the manifest as the
// registry has it, whose layers are compressed.
func (p *push) index(ctx context.Context, d image.Descriptor) (image.Descriptor, error) {
	x, err := p.e.readIndex(d.Digest)
	if err != nil {
		return d, err
	}
	there := map[string]digest.Digest{} // ours -> the registry's
	for i, m := range x.Manifests {
		if m.Annotations[attestationType] != "" {
			continue
		}
		f, err := p.e.member(m)
		if err != nil {
			return d, err
		}
		r, err := p.byDigest().image(ctx, f)
		if err != nil {
			return d, err
		}
		there[m.Digest.String()] = r.Digest
		x.Manifests[i].MediaType, x.Manifests[i].Digest, x.Manifests[i].Size = r.MediaType, r.Digest, r.Size
	}
	for i, m := range x.Manifests {
		if m.Annotations[attestationType] == "" {
			continue
		}
		r, err := p.attestation(ctx, m, there[m.Annotations[attestationDigest]])
		if err != nil {
			return d, err
		}
		x.Manifests[i] = r
	}
	doc, err := json.Marshal(x)
	if err != nil {
		return d, err
	}
	got, err := p.e.remote.PushManifest(ctx, p.ref, image.MediaIndex, doc)
	return image.Descriptor{MediaType: image.MediaIndex, Digest: got, Size: int64(len(doc))}, err
}

// byDigest is the same push of what gets no tag.
func (p *push) byDigest() *push {
	q := *p
	q.ref = image.Reference{Registry: p.ref.Registry, Repository: p.ref.Repository}
	return &q
}

// addDesc plans an image or an index under a name, or without any.
func (s *saving) addDesc(d image.Descriptor, ref image.Reference) error {
	if !image.IsIndex(d.MediaType) {
		f, err := s.e.member(d)
		if err != nil {
			return err
		}
		f.Ref = ref
		if f.Platform.OS == "" {
			c, err := s.e.config(f.ID)
			if err != nil {
				return err
			}
			f.Platform = configPlatform(c)
		}
		return s.add(f)
	}
	x, err := s.e.readIndex(d.Digest)
	if err != nil {
		return err
	}
	there := map[string]digest.Digest{}
	for i, m := range x.Manifests {
		if m.Annotations[attestationType] != "" {
			continue
		}
		f, err := s.e.member(m)
		if err != nil {
			return err
		}
		got, _, err := s.manifest(f)
		if err != nil {
			return err
		}
		there[m.Digest.String()] = got.Digest
		x.Manifests[i].Digest, x.Manifests[i].Size = got.Digest, got.Size
	}
	for i, m := range x.Manifests {
		if m.Annotations[attestationType] == "" {
			continue
		}
		docs, r, err := s.e.restate(m, there[m.Annotations[attestationDigest]])
		if err != nil {
			return err
		}
		for _, doc := range docs {
			s.document(doc.Descriptor.Digest, doc.bytes)
		}
		x.Manifests[i] = r
	}
	doc, err := json.Marshal(x)
	if err != nil {
		return err
	}
	entry := image.Descriptor{MediaType: image.MediaIndex, Digest: digest.FromBytes(doc), Size: int64(len(doc))}
	s.document(entry.Digest, doc)
	s.named(&entry, ref)
	s.index.Manifests = append(s.index.Manifests, entry)
	return nil
}

// writeDir writes an OCI layout as a directory, which is new or holds a layout already.
func (s *saving) writeDir(ctx context.Context, dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return &HostError{err}
	}
	for d, src := range s.blobs {
		if err := s.writeFile(ctx, filepath.Join(dir, filepath.FromSlash(blobName(d))), src); err != nil {
			return err
		}
	}
	for _, doc := range s.documents() {
		b, err := json.Marshal(doc.v)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, doc.name), b, 0o644); err != nil {
			return &HostError{err}
		}
	}
	return nil
}

func (s *saving) writeFile(ctx context.Context, name string, src blobSource) (err error) {
	if st, serr := os.Stat(name); serr == nil && st.Size() == src.size {
		return nil // content-addressed: it is there
	}
	r, err := src.open()
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return &HostError{err}
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			_ = os.Remove(name)
		}
	}()
	n, err := io.Copy(f, &watched{r: r, ctx: ctx, step: func(int64) {}})
	if err == nil && n != src.size {
		err = fault.Unavailablef("write %s: got %d bytes instead of %d", name, n, src.size)
	}
	return err
}
