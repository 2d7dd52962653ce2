package engine

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"keg/internal/disk"
	"keg/internal/fault"
	"keg/internal/image"
)

// parallelPushes is Docker's default of concurrent uploads.
const parallelPushes = 5

// PushOptions say how an image leaves.
type PushOptions struct {
	// Compression of layers that are kept as trees. "" = as this image was pushed last, at first gzip.
	Compression image.Compression
	Progress    func(PullEvent)
}

// Push uploads what the registry lacks and then the manifest. Built layers are compressed on the way out.
func (e *Engine) Push(ctx context.Context, ref image.Reference, progress func(PullEvent)) (image.Descriptor, error) {
	return e.PushWith(ctx, ref, PushOptions{Progress: progress})
}

// PushWith is Push with a choice of compression.
func (e *Engine) PushWith(ctx context.Context, ref image.Reference, o PushOptions) (image.Descriptor, error) {
	if ref.Tag == "" {
		return image.Descriptor{}, fault.Invalidf("cannot push a digest reference")
	}
	f, err := e.named(ref)
	if fault.Is(err, fault.NotFound) {
		return image.Descriptor{}, fault.NotFoundf("An image does not exist locally with the tag: %s", ref.FamiliarName())
	}
	if err != nil {
		return image.Descriptor{}, err
	}
	use, err := e.busy(ctx, f.ID, f.Desc.Digest)
	if err != nil {
		return image.Descriptor{}, err
	}
	defer use.end()
	if err := e.snapshots.Sync(ctx); err != nil {
		return image.Descriptor{}, err
	}
	c := o.Compression
	if c == "" {
		c = e.compressedBefore(f.Desc.Digest)
	}
	p := &push{e: e, ref: ref, compression: c, say: serial(o.Progress)}
	send := func() (image.Descriptor, error) { return p.image(ctx, f) }
	if image.IsIndex(f.Desc.MediaType) {
		send = func() (image.Descriptor, error) { return p.index(ctx, f.Desc) }
	}
	desc, err := send()
	if err != nil {
		return image.Descriptor{}, err
	}
	if desc.Digest == f.Desc.Digest { // or it is a new document, which nothing refers to yet
		p.referrers(ctx, desc)
	}
	// What the registry calls it, and what it is here.
	if err := e.store.Tag(ref.WithDigest(desc.Digest), f.Desc); err != nil {
		return desc, err
	}
	e.imageEvent("push", ref.Familiar(), ref.FamiliarName(), f.Labels)
	return desc, nil
}

// push is one image on its way to one repository.
type push struct {
	e   *Engine
	ref image.Reference
	say func(PullEvent)

	compression image.Compression
}

func (p *push) image(ctx context.Context, f found) (image.Descriptor, error) {
	local, doc, err := p.e.manifest(f.Desc.Digest)
	if err != nil {
		return image.Descriptor{}, err
	}
	known, err := p.e.derived(f.Desc.Digest, p.compression)
	if err != nil {
		return image.Descriptor{}, err
	}
	remote := *local
	remote.Layers = make([]image.Descriptor, len(local.Layers))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelPushes)
	for i, l := range local.Layers {
		p.say(PullEvent{ID: image.ShortID(string(f.Stack[i])), Status: "Preparing"})
		g.Go(func() (err error) {
			var before image.Descriptor
			if known != nil {
				before = known.Layers[i]
			}
			remote.Layers[i], err = p.layer(gctx, l, before, f.Stack[:i+1])
			return err
		})
	}
	g.Go(func() error { return p.document(gctx, local.Config) })
	if err := g.Wait(); err != nil {
		return image.Descriptor{}, err
	}
	if changed(local, &remote) {
		if doc, err = json.Marshal(remote); err != nil {
			return image.Descriptor{}, err
		}
		if err := p.e.rememberDerived(f.Desc.Digest, p.compression, &remote); err != nil {
			return image.Descriptor{}, err
		}
	}
	media := orElse(remote.MediaType, f.Desc.MediaType)
	d, err := p.e.remote.PushManifest(ctx, p.ref, media, doc)
	return image.Descriptor{MediaType: media, Digest: d, Size: int64(len(doc))}, err
}

// referrersFor bounds how long the registry that an image came from is asked what refers to it.
const referrersFor = 10 * time.Second

// referrers copies what refers to an image (signatures, attestations) from where it was pulled.
// What cannot be had is told, and is no reason not to push the image.
func (p *push) referrers(ctx context.Context, d image.Descriptor) {
	names, err := p.e.store.Names()
	if err != nil {
		return
	}
	seen := map[string]bool{p.ref.Name(): true}
	for _, n := range names {
		from := n.Ref
		if n.Desc.Digest != d.Digest || from.Digest == "" || seen[from.Name()] {
			continue
		}
		seen[from.Name()] = true
		if err := p.referrersFrom(ctx, from, d); err != nil {
			p.say(PullEvent{Status: fmt.Sprintf("What refers to the image in %s was not copied: %v", from.FamiliarName(), err)})
		}
	}
}

func (p *push) referrersFrom(ctx context.Context, from image.Reference, d image.Descriptor) error {
	brief, cancel := context.WithTimeout(ctx, referrersFor)
	defer cancel()
	refs, err := p.e.remote.Referrers(brief, from, d.Digest)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, r := range refs {
		if !image.IsManifest(r.MediaType) {
			continue
		}
		if err := p.e.copyImage(ctx, p.ref, from, r, 1); err != nil {
			return err
		}
		p.say(PullEvent{Status: fmt.Sprintf("Pushed %s, which refers to the image: %s", orElse(r.ArtifactType, "an artifact"), r.Digest)})
	}
	return nil
}

func changed(a, b *image.Manifest) bool {
	for i := range a.Layers {
		if a.Layers[i].Digest != b.Layers[i].Digest {
			return true
		}
	}
	return false
}

// document uploads a config.
func (p *push) document(ctx context.Context, d image.Descriptor) error {
	if ok, err := p.e.remote.HasBlob(ctx, p.ref, d.Digest); ok || err != nil {
		return err
	}
	return p.e.remote.PushBlob(ctx, p.ref, d, func() (io.ReadCloser, error) { return p.e.store.Blob(d.Digest) }, nil)
}

// layer makes sure that the repository has a layer and returns what it is called there.
// A blob that we keep goes as it is; a tree is compressed, the same way each time. before
// is what an earlier push made of it.
func (p *push) layer(ctx context.Context, local, before image.Descriptor, stack []digest.Digest) (image.Descriptor, error) {
	id := image.ShortID(string(stack[len(stack)-1]))
	kept := p.e.store.Has(local.Digest)
	c, err := image.LayerCompression(local.MediaType)
	if err != nil {
		return local, err
	}
	known := local
	if !kept && before.Digest != "" {
		known = before
	}
	// Uncompressed layers do not leave the machine: only a compressed one can be there.
	if kept || c != image.Uncompressed || before.Digest != "" {
		if there, how, err := p.there(ctx, known.Digest); err != nil {
			return local, err
		} else if there {
			p.say(PullEvent{ID: id, Status: how})
			return known, nil
		}
	}
	if kept {
		open := func() (io.ReadCloser, error) { return p.e.store.Blob(local.Digest) }
		return local, p.upload(ctx, id, local, open)
	}
	spool, d, err := p.compress(ctx, id, stack)
	if err != nil {
		return local, err
	}
	defer spool.Remove()
	if there, how, err := p.there(ctx, d.Digest); err != nil || there {
		p.say(PullEvent{ID: id, Status: how})
		return d, err
	}
	open := func() (io.ReadCloser, error) { return os.Open(filepath.Join(spool.Path, "layer")) }
	return d, p.upload(ctx, id, d, open)
}

// there asks for a blob in the repository and, failing that, for a mount of it from
// another repository of the same registry that we know to hold the image.
func (p *push) there(ctx context.Context, d digest.Digest) (bool, string, error) {
	ok, err := p.e.remote.HasBlob(ctx, p.ref, d)
	if ok || err != nil {
		return ok, "Layer already exists", err
	}
	from, err := p.e.siblings(p.ref, d)
	if err != nil {
		return false, "", err
	}
	for _, repo := range from {
		if ok, err := p.e.remote.MountBlob(ctx, p.ref, d, repo); ok && err == nil {
			return true, "Mounted from " + repo, nil
		}
	}
	return false, "", nil
}

func (p *push) upload(ctx context.Context, id string, d image.Descriptor, open func() (io.ReadCloser, error)) error {
	var sent int64
	err := p.e.remote.PushBlob(ctx, p.ref, d, open, func(n int64) {
		sent = n
		p.say(PullEvent{ID: id, Status: "Pushing", Current: sent, Total: d.Size})
	})
	if err != nil {
		return err
	}
	p.say(PullEvent{ID: id, Status: "Pushed", Current: d.Size, Total: d.Size})
	return nil
}

// compress writes a layer's tar, compressed, to a file that lives as long as this push: its
// digest must be known before the first byte is sent.
func (p *push) compress(ctx context.Context, id string, stack []digest.Digest) (_ *disk.Dir, d image.Descriptor, err error) {
	tar, err := p.e.snapshots.Tar(stack)
	if err != nil {
		return nil, d, err
	}
	defer tar.Close()
	dir, err := disk.HoldDir(p.e.busyDir(), "push-")
	if err != nil {
		return nil, d, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, dir.Remove())
		}
	}()
	f, err := os.OpenFile(filepath.Join(dir.Path, "layer"), os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return nil, d, err
	}
	defer f.Close()
	h := sha256.New()
	in := &watched{r: tar, ctx: ctx, step: func(n int64) {
		p.say(PullEvent{ID: id, Status: "Compressing", Current: n, Total: tar.Size()})
	}}
	if err := deflate(io.MultiWriter(f, h), in, p.compression); err != nil {
		return nil, d, fmt.Errorf("push layer %s: %w", id, err)
	}
	n, err := f.Seek(0, io.SeekCurrent)
	media := image.MediaLayerGzip
	if p.compression == image.Zstd {
		media = image.MediaLayerZstd
	}
	return dir, image.Descriptor{MediaType: media, Digest: digest.NewDigest(digest.SHA256, h), Size: n}, err
}

// watched reads until ctx ends and tells how far it is.
type watched struct {
	r        io.Reader
	ctx      context.Context
	at, told int64
	step     func(int64)
}

func (w *watched) Read(b []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, context.Cause(w.ctx)
	}
	n, err := w.r.Read(b)
	if w.at += int64(n); w.at-w.told >= 1<<20 {
		w.told = w.at
		w.step(w.at)
	}
	return n, err
}

// siblings are other repositories of the registry that hold images with this blob, as
// far as our own names tell.
func (e *Engine) siblings(ref image.Reference, d digest.Digest) ([]string, error) {
	names, err := e.store.Names()
	if err != nil {
		return nil, err
	}
	var repos []string
	seen := map[string]bool{ref.Repository: true}
	for _, n := range names {
		if n.Ref.Registry != ref.Registry || n.Ref.Digest == "" || seen[n.Ref.Repository] {
			continue
		}
		if e.holds(n.Desc.Digest, d) {
			seen[n.Ref.Repository] = true
			repos = append(repos, n.Ref.Repository)
		}
	}
	return repos, nil
}

// holds reports whether a manifest, or what a push derived from it, names the blob.
func (e *Engine) holds(manifest, d digest.Digest) bool {
	ms := make([]*image.Manifest, 0, 2)
	if m, _, err := e.manifest(manifest); err == nil {
		ms = append(ms, m)
	}
	for _, c := range compressions {
		if m, err := e.derived(manifest, c); err == nil && m != nil {
			ms = append(ms, m)
		}
	}
	for _, m := range ms {
		for _, l := range m.Layers {
			if l.Digest == d {
				return true
			}
		}
	}
	return false
}

// A manifest of uncompressed layers is pushed as one of compressed layers, remembered in
// derived/<manifest>/<compression>: the next push knows the digests without compressing, and
// the choice.

var compressions = [...]image.Compression{image.Gzip, image.Zstd}

func (e *Engine) derivedFile(manifest digest.Digest, c image.Compression) string {
	return filepath.Join(e.opt.Root, "derived", manifest.Encoded(), string(c))
}

// compressedBefore is the compression of an image's last push.
func (e *Engine) compressedBefore(manifest digest.Digest) image.Compression {
	best, last := image.Gzip, time.Time{}
	for _, c := range compressions {
		if st, err := os.Stat(e.derivedFile(manifest, c)); err == nil && st.ModTime().After(last) {
			best, last = c, st.ModTime()
		}
	}
	return best
}

// derived returns nil when nothing was derived yet.
func (e *Engine) derived(manifest digest.Digest, c image.Compression) (*image.Manifest, error) {
	var m image.Manifest
	err := disk.GetJSON(e.derivedFile(manifest, c), &m)
	if fault.Is(err, fault.NotFound) {
		return nil, nil
	}
	return &m, err
}

func (e *Engine) rememberDerived(manifest digest.Digest, c image.Compression, m *image.Manifest) error {
	file := e.derivedFile(manifest, c)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return disk.PutJSON(file, m)
}

// dropDerived forgets what was derived from manifests that are gone.
func (e *Engine) dropDerived() error {
	dir := filepath.Join(e.opt.Root, "derived")
	ents, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	var errs []error
	for _, ent := range ents {
		d := digest.NewDigestFromEncoded(digest.SHA256, ent.Name())
		if d.Validate() == nil && !e.store.Has(d) {
			errs = append(errs, os.RemoveAll(filepath.Join(dir, ent.Name())))
		}
	}
	return errors.Join(errs...)
}
