package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/registry"
	"keg/internal/snapshot"
	"keg/internal/store"
)

// PullEvent is progress of one layer or a sentence about the whole.
type PullEvent struct {
	ID             string // short digest of the layer; "" for a sentence
	Status         string // Docker's words: "Pulling fs layer", "Downloading", "Pull complete"...
	Current, Total int64
}

// PullOptions are those of docker pull.
type PullOptions struct {
	Platform *image.Platform
	Progress func(PullEvent)
}

// Pulled is the answer to Pull.
type Pulled struct {
	Ref    image.Reference
	Digest digest.Digest // of what the registry's name points at
	Newer  bool          // false: "Image is up to date for"
	// Was and Is are the manifests, of this platform, that the name led to before and leads to now; Was
	// is "" when it led nowhere.
	Was, Is digest.Digest
}

// Moved says from which manifest to which a name has moved; "" when it has not.
func (p Pulled) Moved() string {
	if p.Was == "" {
		return ""
	}
	return fmt.Sprintf("%s has moved: it was %s, it is %s", p.Ref.Familiar(), p.Was, p.Is)
}

// parallelLayers is how many layers of an image travel at once, which is all of nearly every image: each
// takes some ten megabytes of memory at most.
const parallelLayers = 16

// Pull fetches an image: layers in parallel, each verified, unpacked and kept in one pass; the name last.
func (e *Engine) Pull(ctx context.Context, ref image.Reference, o PullOptions) (Pulled, error) {
	say := serial(o.Progress)
	if f, ok, err := e.carry(ctx, ref, o.Platform); ok || err != nil {
		if err == nil {
			say(PullEvent{Status: "Status: Image is up to date for " + ref.Familiar()})
		}
		return Pulled{Ref: ref, Digest: f.Desc.Digest}, err
	}
	target, err := e.remote.Resolve(ctx, ref)
	if err != nil {
		return Pulled{}, err
	}
	use, err := e.busy(ctx, target.Digest)
	if err != nil {
		return Pulled{}, err
	}
	defer use.end()
	what := ref.Tag
	if ref.Digest != "" {
		what = string(ref.Digest)
	}
	say(PullEvent{ID: what, Status: "Pulling from " + ref.Repository})
	before, _ := e.store.Resolve(ref)
	desc, err := e.fetch(ctx, use, ref, registry.Unsized(target), o.Platform, say)
	if err != nil {
		return Pulled{}, err
	}
	if err := e.name(ref, target.Digest, desc); err != nil {
		return Pulled{}, err
	}
	// What was pushed from here comes back compressed: another manifest of the same image.
	newer := before.Digest != desc.Digest && !e.sameImage(before, desc)
	say(PullEvent{Status: "Digest: " + string(target.Digest)})
	if newer {
		say(PullEvent{Status: "Status: Downloaded newer image for " + ref.Familiar()})
	} else {
		say(PullEvent{Status: "Status: Image is up to date for " + ref.Familiar()})
	}
	e.imageEvent("pull", ref.Familiar(), ref.Familiar(), nil)
	p := Pulled{Ref: ref, Digest: target.Digest, Newer: newer, Is: desc.Digest}
	if newer {
		p.Was = before.Digest
	}
	return p, nil
}

// PullAll is Pull of every tag of a repository.
func (e *Engine) PullAll(ctx context.Context, repo image.Reference, o PullOptions) ([]Pulled, error) {
	tags, err := e.remote.Tags(ctx, repo)
	if err != nil {
		return nil, err
	}
	if len(tags) == 0 {
		return nil, fault.NotFoundf("repository %s has no tags", repo.FamiliarName())
	}
	var all []Pulled
	for _, tag := range tags {
		repo.Tag, repo.Digest = tag, ""
		p, err := e.Pull(ctx, repo, o)
		if err != nil {
			return all, fmt.Errorf("pull %s: %w", repo.Familiar(), err)
		}
		all = append(all, p)
	}
	return all, nil
}

// name points ref and the registry's own name for it at what was fetched, last of all.
func (e *Engine) name(ref image.Reference, remote digest.Digest, desc image.Descriptor) error {
	if err := e.store.Tag(ref.WithDigest(remote), desc); err != nil {
		return err
	}
	if ref.Digest != "" { // name:tag@digest asks for the digest and moves no tag
		return nil
	}
	return e.store.Tag(ref, desc)
}

// fetch brings everything below target into the store and the layers into their places,
// and returns the manifest for the platform. What is here already is not asked for.
func (e *Engine) fetch(ctx context.Context, use *use, ref image.Reference, target image.Descriptor, p *image.Platform, say func(PullEvent)) (image.Descriptor, error) {
	desc, m, err := e.fetchManifest(ctx, ref, target, p)
	if err != nil {
		return desc, err
	}
	want := []digest.Digest{desc.Digest, m.Config.Digest}
	for _, l := range m.Layers {
		want = append(want, l.Digest)
	}
	if err := use.add(want...); err != nil {
		return desc, err
	}
	cfg, err := e.fetchConfig(ctx, ref, m.Config)
	if err != nil {
		return desc, err
	}
	if len(cfg.RootFS.DiffIDs) != len(m.Layers) {
		return desc, fault.Invalidf("image %s has %d layers in its manifest and %d in its config", ref.Familiar(), len(m.Layers), len(cfg.RootFS.DiffIDs))
	}
	if have := configPlatform(cfg); p != nil && !image.Matches(*p, have) {
		return desc, wrongPlatform(ref.Familiar(), *p, have)
	}
	if err := use.addStack(cfg.RootFS.DiffIDs); err != nil {
		return desc, err
	}
	if err := e.fetchLayers(ctx, ref, m.Layers, cfg.RootFS.DiffIDs, say); err != nil {
		return desc, err
	}
	if err := e.snapshots.Sync(ctx); err != nil {
		return desc, err
	}
	_, err = e.remember(desc)
	return desc, err
}

func configPlatform(c *image.Config) image.Platform {
	return image.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}
}

func wrongPlatform(name string, want, have image.Platform) error {
	return fault.NotFoundf("image with reference %s was found but does not match the specified platform: wanted %s, actual: %s",
		name, image.FormatPlatform(want), image.FormatPlatform(have))
}

// fetchManifest follows indexes down to the manifest for the platform.
func (e *Engine) fetchManifest(ctx context.Context, ref image.Reference, d image.Descriptor, p *image.Platform) (image.Descriptor, *image.Manifest, error) {
	want := image.Host()
	if p != nil {
		want = *p
	}
	for range maxIndexDepth {
		doc, err := e.document(ctx, ref, d)
		if err != nil {
			return d, nil, err
		}
		d.Size = int64(len(doc))
		if image.IsManifest(d.MediaType) {
			m, err := image.ParseManifest(doc)
			if err != nil {
				return d, nil, err
			}
			_, err = e.store.PutAs(ctx, d.Digest, doc)
			return d, m, err
		}
		if !image.IsIndex(d.MediaType) {
			return d, nil, fault.Unsupportedf("%s is a document of type %q, not an image; keg reads OCI images and Docker's schema 2", ref.Familiar(), d.MediaType)
		}
		x, err := image.ParseIndex(doc)
		if err != nil {
			return d, nil, err
		}
		if d, err = image.Select(x, want); err != nil {
			return d, nil, err
		}
	}
	return d, nil, fault.Invalidf("index of %s: more than %d levels of indexes", ref.Familiar(), maxIndexDepth)
}

// document is a manifest or index, of the store or of the registry.
func (e *Engine) document(ctx context.Context, ref image.Reference, d image.Descriptor) ([]byte, error) {
	if e.store.Has(d.Digest) {
		if b, err := e.store.Bytes(d.Digest, image.MaxManifest); err == nil {
			return b, nil
		}
	}
	return e.remote.Manifest(ctx, ref, d)
}

func (e *Engine) fetchConfig(ctx context.Context, ref image.Reference, d image.Descriptor) (*image.Config, error) {
	if e.store.Has(d.Digest) {
		if c, err := e.config(d.Digest); err == nil {
			return c, nil
		}
	}
	if d.Size > image.MaxConfig {
		return nil, fault.Invalidf("config of %s has %d bytes; at most %d are accepted", ref.Familiar(), d.Size, image.MaxConfig)
	}
	// As a layer: whoever wants the same one at the same time waits for it instead of asking again.
	ing, err := e.store.Ingest(ctx, d.Digest.String())
	if err != nil {
		return nil, err
	}
	if e.store.Has(d.Digest) {
		err = ing.Abort()
	} else {
		err = e.download(ctx, ref, d, ing, func(PullEvent) {})
	}
	if err != nil {
		return nil, fmt.Errorf("config of %s: %w", ref.Familiar(), err)
	}
	return e.config(d.Digest)
}

// fetchLayers brings the layers that are not in place, several at once, and places them
// from the bottom.
func (e *Engine) fetchLayers(ctx context.Context, ref image.Reference, layers []image.Descriptor, stack []digest.Digest, say func(PullEvent)) error {
	have := e.snapshots.Has(stack)
	for i, l := range layers {
		if i < have {
			say(PullEvent{ID: image.ShortID(string(l.Digest)), Status: "Already exists"})
		} else {
			say(PullEvent{ID: image.ShortID(string(l.Digest)), Status: "Pulling fs layer"})
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelLayers + 1) // and the one that places
	ready := make([]chan snapshot.Unpacked, len(layers))
	for i := have; i < len(layers); i++ {
		ready[i] = make(chan snapshot.Unpacked, 1)
	}
	g.Go(func() error {
		for i := have; i < len(layers); i++ {
			select {
			case u := <-ready[i]:
				if err := u.Place(ctx, stack[:i]); err != nil {
					return err
				}
				say(PullEvent{ID: image.ShortID(string(layers[i].Digest)), Status: "Pull complete"})
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	for i := range have {
		g.Go(func() error { return e.keepBlob(ctx, ref, layers[i], stack[i], say) })
	}
	for i := have; i < len(layers); i++ {
		g.Go(func() error {
			u, err := e.fetchLayer(ctx, ref, layers[i], stack[i], say)
			if err != nil {
				return err
			}
			ready[i] <- u
			return nil
		})
	}
	err := g.Wait()
	for i := have; i < len(layers); i++ {
		select {
		case u := <-ready[i]: // unpacked, but an earlier one failed
			err = errors.Join(err, u.Discard())
		default:
		}
	}
	return err
}

// fetchLayer downloads one layer and unpacks it in the same pass. After a cut the rest is
// downloaded and the whole is unpacked from the blob.
func (e *Engine) fetchLayer(ctx context.Context, ref image.Reference, d image.Descriptor, diffID digest.Digest, say func(PullEvent)) (snapshot.Unpacked, error) {
	c, err := image.LayerCompression(d.MediaType)
	if err != nil {
		return nil, err
	}
	id := image.ShortID(string(d.Digest))
	if e.store.Has(d.Digest) {
		return e.unpackBlob(ctx, d, c, diffID, say)
	}
	if _, local := e.remote.(*bundle); local && c == image.Uncompressed {
		return e.fetchTar(ctx, ref, d, diffID, say)
	}
	ing, err := e.store.Ingest(ctx, d.Digest.String())
	if err != nil {
		return nil, err
	}
	if e.store.Has(d.Digest) { // another process was faster
		ing.Abort()
		return e.unpackBlob(ctx, d, c, diffID, say)
	}
	if ing.Offset() > 0 { // an earlier download was cut
		if err := e.download(ctx, ref, d, ing, say); err != nil {
			return nil, err
		}
		say(PullEvent{ID: id, Status: "Download complete"})
		return e.unpackBlob(ctx, d, c, diffID, say)
	}
	body, err := e.openRest(ctx, ref, d, ing)
	if err != nil {
		ing.Close()
		return nil, err
	}
	defer body.Close()
	u, err := e.unpackWhileDownloading(ctx, e.counted(body, d, ing, say), ing, c, diffID)
	if err != nil {
		return nil, fmt.Errorf("download layer %s: %w", id, err)
	}
	say(PullEvent{ID: id, Status: "Download complete"})
	if _, err := ing.Commit(ctx, d.Size, d.Digest); err != nil {
		u.Discard()
		return nil, err
	}
	return u, nil
}

// keepBlob downloads the blob of a layer whose tree is in place, when nothing else could
// give the layer away again: another image brought the tree, in another compression.
func (e *Engine) keepBlob(ctx context.Context, ref image.Reference, d image.Descriptor, diffID digest.Digest, say func(PullEvent)) error {
	if e.store.Has(d.Digest) {
		return nil
	}
	if _, _, err := e.snapshots.Find(diffID); !fault.Is(err, fault.NotFound) {
		return err
	}
	ing, err := e.store.Ingest(ctx, d.Digest.String())
	if err != nil {
		return err
	}
	if e.store.Has(d.Digest) {
		return ing.Abort()
	}
	return e.download(ctx, ref, d, ing, say)
}

// download completes an ingest and makes it a blob.
func (e *Engine) download(ctx context.Context, ref image.Reference, d image.Descriptor, ing store.Ingest, say func(PullEvent)) error {
	body, err := e.openRest(ctx, ref, d, ing)
	if err != nil {
		ing.Close()
		return err
	}
	defer body.Close()
	if _, err := io.Copy(ing, e.counted(body, d, ing, say)); err != nil {
		ing.Close()
		return fmt.Errorf("download layer %s: %w", image.ShortID(string(d.Digest)), err)
	}
	_, err = ing.Commit(ctx, d.Size, d.Digest)
	return err
}

func (e *Engine) counted(body io.Reader, d image.Descriptor, ing store.Ingest, say func(PullEvent)) io.Reader {
	return &counted{r: body, left: d.Size - ing.Offset(), at: ing.Offset(), step: func(n int64) {
		say(PullEvent{ID: image.ShortID(string(d.Digest)), Status: "Downloading", Current: n, Total: d.Size})
	}}
}

// openRest opens what the ingest lacks; it starts anew when the registry cannot resume.
func (e *Engine) openRest(ctx context.Context, ref image.Reference, d image.Descriptor, ing store.Ingest) (io.ReadCloser, error) {
	if ing.Offset() > d.Size {
		if err := ing.Truncate(0); err != nil {
			return nil, err
		}
	}
	if ing.Offset() == d.Size && d.Size > 0 {
		return io.NopCloser(eof{}), nil
	}
	body, got, err := e.remote.Blob(ctx, ref, d, ing.Offset())
	if err != nil {
		return nil, err
	}
	if got != ing.Offset() {
		if got != 0 {
			body.Close()
			return nil, fault.Unavailablef("registry %s answered with bytes from %d on and was asked from %d on", ref.Registry, got, ing.Offset())
		}
		if err := ing.Truncate(0); err != nil {
			body.Close()
			return nil, err
		}
	}
	return body, nil
}

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

// unpackWhileDownloading writes the blob to the ingest and, beside it, its tree. The
// ingest is kept for a later resume when the network failed, and dropped when the bytes
// are wrong.
func (e *Engine) unpackWhileDownloading(ctx context.Context, in io.Reader, ing store.Ingest, c image.Compression, diffID digest.Digest) (snapshot.Unpacked, error) {
	pr, pw := io.Pipe()
	var net error
	var wg sync.WaitGroup
	wg.Go(func() {
		_, net = io.CopyBuffer(io.MultiWriter(ing, pw), in, make([]byte, 1<<18))
		pw.CloseWithError(net)
	})
	u, err := e.unpack(ctx, pr, c, diffID)
	if err == nil {
		_, err = io.Copy(io.Discard, pr) // what follows the end of the archive belongs to the blob
	}
	pr.CloseWithError(errStopped)
	wg.Wait()
	if net != nil && !errors.Is(net, errStopped) {
		err = net
	}
	if err == nil {
		return u, nil
	}
	if u != nil {
		u.Discard()
	}
	if net != nil && !errors.Is(net, errStopped) {
		ing.Close()
	} else {
		ing.Abort()
	}
	return nil, err
}

var errStopped = errors.New("unpacking stopped")

// unpackBlob unpacks a layer whose blob is in the store.
func (e *Engine) unpackBlob(ctx context.Context, d image.Descriptor, c image.Compression, diffID digest.Digest, say func(PullEvent)) (snapshot.Unpacked, error) {
	id := image.ShortID(string(d.Digest))
	say(PullEvent{ID: id, Status: "Extracting", Total: d.Size})
	f, err := e.store.Blob(d.Digest)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	u, err := e.unpack(ctx, f, c, diffID)
	if err != nil {
		return nil, fmt.Errorf("unpack layer %s: %w", id, err)
	}
	return u, nil
}

// unpack inflates and unpacks one layer; the tree must have the diffID that the config names.
func (e *Engine) unpack(ctx context.Context, r io.Reader, c image.Compression, diffID digest.Digest) (snapshot.Unpacked, error) {
	tar, err := inflate(r, c)
	if err != nil {
		return nil, err
	}
	defer tar.Close()
	return e.snapshots.Unpack(ctx, tar, diffID)
}

// counted reports how far a download is and ends one that is longer than promised.
type counted struct {
	r        io.Reader
	left, at int64
	told     int64
	step     func(at int64)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.at += int64(n)
	if c.left -= int64(n); c.left < 0 {
		return 0, fault.Invalidf("the registry sends more bytes than the manifest says")
	}
	if err == io.EOF && c.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if c.at-c.told >= 1<<19 || err != nil {
		c.told = c.at
		c.step(c.at)
	}
	return n, err
}

// serial makes a progress callback that may be nil and is called from one goroutine at a time.
func serial(f func(PullEvent)) func(PullEvent) {
	if f == nil {
		return func(PullEvent) {}
	}
	var mu sync.Mutex
	return func(ev PullEvent) {
		mu.Lock()
		defer mu.Unlock()
		f(ev)
	}
}

// sameImage reports whether two manifests of this store have one config, which is to
// say one image id.
func (e *Engine) sameImage(a, b image.Descriptor) bool {
	ma, _, err := e.manifest(a.Digest)
	if err != nil {
		return false
	}
	mb, _, err := e.manifest(b.Digest)
	return err == nil && ma.Config.Digest == mb.Config.Digest
}
