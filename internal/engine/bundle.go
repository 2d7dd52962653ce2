package engine

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/layer"
	"keg/internal/weakness"
)

// A bundle is an archive of images, opened: its members by name. Names are keys of a
// map and nothing else. To a pull it is a registry.
type bundle struct {
	remote  // what an archive cannot be asked for
	f       *os.File
	ours    bool
	members map[string]member
	known   map[digest.Digest]string // docker-archive: blobs by what they were found to be
}

// member is where the contents of one entry are.
type member struct {
	off, size int64
	kind      byte
}

// maxMembers bounds what an archive can make us remember.
const maxMembers = 1 << 20

// openBundle reads the table of contents. A plain tar in a file is read in place, all
// else is written to dir first.
func openBundle(ctx context.Context, in io.Reader, dir string) (*bundle, error) {
	b := &bundle{members: map[string]member{}, known: map[digest.Digest]string{}}
	if f, ok := in.(*os.File); ok && isPlain(f) {
		b.f = f
	} else {
		f, err := spool(ctx, in, dir)
		if err != nil {
			return nil, err
		}
		b.f, b.ours = f, true
	}
	if err := b.list(ctx); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

// isPlain reports whether a file can be read anywhere and is not compressed.
func isPlain(f *os.File) bool {
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return false
	}
	if at, err := f.Seek(0, io.SeekCurrent); err != nil || at != 0 {
		return false
	}
	head := make([]byte, 512)
	n, _ := f.ReadAt(head, 0)
	return n == 512 && string(head[257:262]) == "ustar"
}

func (b *bundle) close() {
	if b.ours {
		b.f.Close()
	}
}

func (b *bundle) list(ctx context.Context) error {
	st, err := b.f.Stat()
	if err != nil {
		return err
	}
	r := io.NewSectionReader(b.f, 0, st.Size()) // seekable: contents are skipped, not read
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fault.Invalidf("read archive: %w", err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if len(b.members) >= maxMembers {
			return fault.Invalidf("archive has more than %d members", maxMembers)
		}
		off, err := r.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		if h.Typeflag == tar.TypeDir {
			continue
		}
		kind := h.Typeflag
		for k := range h.PAXRecords {
			if strings.HasPrefix(k, "GNU.sparse.") {
				kind = tar.TypeGNUSparse
			}
		}
		b.members[clean(h.Name)] = member{off, h.Size, kind}
	}
}

func (b *bundle) has(name string) bool { _, ok := b.members[clean(name)]; return ok }

// open opens a member, which must be an ordinary file: what a link in an archive points
// at is nobody's business here.
func (b *bundle) open(name string) (*io.SectionReader, error) {
	m, ok := b.members[clean(name)]
	if !ok {
		return nil, fault.NotFoundf("invalid archive: %q is missing", name)
	}
	if weakness.Of("IM8") {
		m.kind = tar.TypeReg
	}
	switch m.kind {
	//lint:ignore SA1019 old archives have it
	case tar.TypeReg, tar.TypeRegA:
		return io.NewSectionReader(b.f, m.off, m.size), nil
	case tar.TypeSymlink, tar.TypeLink:
		return nil, fault.Invalidf("invalid archive: %q is a link; links in archives are not followed", name)
	}
	return nil, fault.Invalidf("invalid archive: %q is not an ordinary file", name)
}

// small reads a document.
func (b *bundle) small(name string, limit int64) ([]byte, error) {
	r, err := b.open(name)
	if err != nil {
		return nil, err
	}
	if r.Size() > limit {
		return nil, fault.Invalidf("invalid archive: %q has %d bytes; at most %d are accepted", name, r.Size(), limit)
	}
	doc, err := io.ReadAll(r)
	if err == nil && int64(len(doc)) != r.Size() {
		err = fault.Invalidf("invalid archive: %q ends early", name)
	}
	return doc, err
}

// where is the member that holds a blob.
func (b *bundle) where(d digest.Digest) string {
	if name, ok := b.known[d]; ok {
		return name
	}
	return blobName(d)
}

// Manifest is a manifest or index of the archive, verified.
func (b *bundle) Manifest(_ context.Context, _ image.Reference, d image.Descriptor) ([]byte, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, fault.Invalidf("invalid archive: digest %q: %w", d.Digest, err)
	}
	doc, err := b.small(b.where(d.Digest), image.MaxManifest)
	if err != nil {
		return nil, err
	}
	if got := d.Digest.Algorithm().FromBytes(doc); got != d.Digest {
		return nil, fault.Invalidf("invalid archive: %s has digest %s", b.where(d.Digest), got)
	}
	return doc, nil
}

// Blob is a blob of the archive; whoever reads it verifies it.
func (b *bundle) Blob(_ context.Context, _ image.Reference, d image.Descriptor, offset int64) (io.ReadCloser, int64, error) {
	r, err := b.open(b.where(d.Digest))
	if err != nil {
		return nil, 0, err
	}
	if r.Size() != d.Size {
		return nil, 0, fault.Invalidf("invalid archive: %s has %d bytes, its manifest says %d", b.where(d.Digest), r.Size(), d.Size)
	}
	if _, err := r.Seek(offset, io.SeekStart); err != nil {
		return nil, 0, err
	}
	return io.NopCloser(r), offset, nil
}

// layerOf describes a layer of a docker-archive. A plain one is what the config says
// it is, or unpacking will tell; a compressed one has a digest of its own.
func (b *bundle) layerOf(ctx context.Context, name string, diffID digest.Digest) (image.Descriptor, error) {
	r, err := b.open(name)
	if err != nil {
		return image.Descriptor{}, err
	}
	buf := bufio.NewReader(r)
	head, err := buf.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return image.Descriptor{}, err
	}
	d := image.Descriptor{Digest: diffID, Size: r.Size()}
	switch layer.Sniff(head) {
	case image.Gzip:
		d.MediaType = image.MediaLayerGzip
	case image.Zstd:
		d.MediaType = image.MediaLayerZstd
	default:
		d.MediaType = image.MediaLayer
		b.known[diffID] = clean(name)
		return d, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, &watched{r: buf, ctx: ctx, step: func(int64) {}}); err != nil {
		return d, err
	}
	d.Digest = digest.NewDigest(digest.SHA256, h)
	b.known[d.Digest] = clean(name)
	return d, nil
}

// present follows an index to what the archive holds of it: for this machine if it
// can, else the first image that is there.
func (b *bundle) present(d image.Descriptor) image.Descriptor {
	for depth := 0; image.IsIndex(d.MediaType) && depth < maxIndexDepth; depth++ {
		doc, err := b.Manifest(context.Background(), image.Reference{}, d)
		if err != nil {
			return d
		}
		x, err := image.ParseIndex(doc)
		if err != nil {
			return d
		}
		if s, err := image.Select(x, image.Host()); err == nil && b.has(blobName(s.Digest)) {
			d = s
			continue
		}
		next := d
		for _, m := range x.Manifests {
			if (m.Platform == nil || m.Platform.OS != "unknown") && b.has(blobName(m.Digest)) {
				next = m
				break
			}
		}
		if next.Digest == d.Digest {
			return d
		}
		d = next
	}
	return d
}

func newReader(b []byte) io.Reader { return bytes.NewReader(b) }
