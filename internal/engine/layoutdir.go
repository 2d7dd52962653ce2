package engine

// An OCI layout in a directory, as a base of a build: --build-context NAME=oci-layout://DIR[:TAG|@DIGEST].

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"keg/internal/builder"
	"keg/internal/fault"
	"keg/internal/image"
)

// layoutDir is to a pull a registry. Links in it lead nowhere else.
type layoutDir struct {
	remote // what a directory cannot be asked for
	root   *os.Root
}

func (l *layoutDir) Manifest(_ context.Context, _ image.Reference, d image.Descriptor) ([]byte, error) {
	f, err := l.open(d.Digest)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	doc, err := io.ReadAll(io.LimitReader(f, image.MaxManifest+1))
	if err == nil && (len(doc) > image.MaxManifest || d.Digest.Algorithm().FromBytes(doc) != d.Digest) {
		err = fault.Invalidf("OCI layout %s: %s is damaged", l.root.Name(), blobName(d.Digest))
	}
	return doc, err
}

// Blob is verified by whoever reads it.
func (l *layoutDir) Blob(_ context.Context, _ image.Reference, d image.Descriptor, offset int64) (io.ReadCloser, int64, error) {
	f, err := l.open(d.Digest)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && st.Size() != d.Size {
		err = fault.Invalidf("OCI layout %s: %s has %d bytes, its manifest says %d", l.root.Name(), blobName(d.Digest), st.Size(), d.Size)
	}
	if err == nil {
		_, err = f.Seek(offset, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, offset, nil
}

func (l *layoutDir) open(d digest.Digest) (*os.File, error) {
	if err := d.Validate(); err != nil {
		return nil, fault.Invalidf("OCI layout %s: digest %q: %w", l.root.Name(), d, err)
	}
	f, err := l.root.Open(blobName(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.NotFoundf("OCI layout %s has no %s", l.root.Name(), blobName(d))
	}
	return f, err
}

// find is what the index names by a tag ("": its only image), or the document with a digest.
func (l *layoutDir) find(tag string, d digest.Digest) (image.Descriptor, error) {
	if _, err := l.root.Stat(layoutFile); err != nil {
		return image.Descriptor{}, fault.Invalidf("%s is no OCI layout: %w", l.root.Name(), err)
	}
	f, err := l.root.Open(indexFile)
	if err != nil {
		return image.Descriptor{}, fault.Invalidf("%s is no OCI layout: %w", l.root.Name(), err)
	}
	defer f.Close()
	doc, err := io.ReadAll(io.LimitReader(f, image.MaxManifest))
	if err != nil {
		return image.Descriptor{}, err
	}
	x, err := image.ParseIndex(doc)
	if err != nil {
		return image.Descriptor{}, fault.Invalidf("%s: %w", filepath.Join(l.root.Name(), indexFile), err)
	}
	var tags []string
	for _, m := range x.Manifests {
		name := m.Annotations[ocispec.AnnotationRefName]
		switch {
		case d != "" && m.Digest == d, d == "" && name == tag, tag == "" && d == "" && len(x.Manifests) == 1:
			return m, nil
		case d == "" && strings.HasSuffix(m.Annotations[annotationName], ":"+tag) && tag != "":
			return m, nil
		}
		tags = append(tags, name)
	}
	if d != "" {
		return l.document(d)
	}
	return image.Descriptor{}, fault.NotFoundf("OCI layout %s has no image %q; it has %q", l.root.Name(), tag, tags)
}

// document describes a manifest or index that no index names.
func (l *layoutDir) document(d digest.Digest) (image.Descriptor, error) {
	doc, err := l.Manifest(context.Background(), image.Reference{}, image.Descriptor{Digest: d})
	if err != nil {
		return image.Descriptor{}, err
	}
	desc := image.Descriptor{MediaType: image.MediaManifest, Digest: d, Size: int64(len(doc))}
	if _, err := image.ParseManifest(doc); err != nil {
		desc.MediaType = image.MediaIndex
	}
	return desc, nil
}

// layoutImage is where the image of a made-up name is.
type layoutImage struct {
	dir  *layoutDir
	desc image.Descriptor
}

// layouts gives the named contexts that are OCI layouts names that only this build knows.
func layouts(o *builder.Options) (known map[string]layoutImage, done func(), err error) {
	known = map[string]layoutImage{}
	done = func() {
		for _, l := range known {
			l.dir.root.Close()
		}
	}
	contexts := maps.Clone(o.Contexts)
	for name, c := range contexts {
		if c.Layout == "" {
			continue
		}
		dir, tag, d := splitLayout(c.Layout)
		root, err := os.OpenRoot(dir)
		if err != nil {
			return known, done, fault.Invalidf("--build-context %s: %w", name, err)
		}
		l := &layoutDir{root: root}
		desc, err := l.find(tag, d)
		if err != nil {
			root.Close()
			return known, done, err
		}
		ref, err := image.ParseReference("oci-layout/" + desc.Digest.Encoded()[:12] + "@" + desc.Digest.String())
		if err != nil {
			root.Close()
			return known, done, err
		}
		if other, ok := known[ref.String()]; ok {
			other.dir.root.Close()
		}
		known[ref.String()] = layoutImage{l, desc}
		contexts[name] = builder.Context{Image: ref.String()}
	}
	o.Contexts = contexts
	return known, done, nil
}

// splitLayout reads DIR[:TAG|@DIGEST].
func splitLayout(s string) (dir, tag string, d digest.Digest) {
	if at := strings.LastIndex(s, "@sha256:"); at >= 0 {
		return s[:at], "", digest.Digest(s[at+1:])
	}
	if at := strings.LastIndexByte(s, ':'); at > strings.LastIndexByte(s, '/') {
		return s[:at], s[at+1:], ""
	}
	return s, "", ""
}

// fromLayout brings an image of a layout here, without a name.
func (e *Engine) fromLayout(ctx context.Context, use *use, ref image.Reference, l layoutImage, p image.Platform) (found, error) {
	from := *e
	from.remote = l.dir
	desc, err := from.fetch(ctx, use, ref, l.desc, &p, serial(nil))
	if err != nil {
		return found{}, err
	}
	f, err := from.member(desc)
	f.Ref = ref
	return f, err
}
