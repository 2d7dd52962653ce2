package engine

// Where the result of a build goes: an image here, a registry, a directory, an archive.

import (
	"context"
	"errors"
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
	"keg/internal/layer"
)

// The types of outputs, as in docker build --output type=.
const (
	OutputImage    = "image"    // kept here; the default
	OutputRegistry = "registry" // kept here and pushed
	OutputLocal    = "local"    // the files of the target in a directory
	OutputTar      = "tar"      // the same as one tar
	OutputOCI      = "oci"      // the image as an OCI layout
	OutputDocker   = "docker"   // the image as docker save writes it; without a destination: kept here
)

// Output is one destination of a build.
type Output struct {
	Type        string
	Dir         string                         // of local, and of oci that is not packed
	Tree        func(Tree) error               // of local: takes the files, in the place of Dir
	Open        func() (io.WriteCloser, error) // where an archive goes
	Names       []image.Reference              // instead of the build's tags
	Push        bool
	Compression image.Compression // of the layers that are pushed
	Merge       bool              // of local: files of all platforms in one directory
}

// tree: the files are wanted, not the image.
func (o Output) tree() bool { return o.Type == OutputLocal || o.Type == OutputTar }

// archive: the image is wanted as a file.
func (o Output) archive() bool {
	return o.Type == OutputOCI || o.Type == OutputDocker && (o.Open != nil || o.Dir != "")
}

// BuildRequest is docker buildx build: one Dockerfile, any number of platforms and destinations.
type BuildRequest struct {
	builder.Options
	Platforms  []image.Platform // none: Options.Platform
	Outputs    []Output         // none: an image
	Provenance string           // "": none, else "min" or "max"
	CacheFrom  []Cache
	CacheTo    []Cache

	// Failed is called with the first RUN that failed, before what it left is taken away.
	Failed func(context.Context, FailedStep)
}

// Built is what came of it.
type Built struct {
	*builder.Result
	Pushed map[string]digest.Digest // name -> digest in its registry
	Each   []*builder.Result        // by platform, in their order
}

// BuildTo builds for all platforms and delivers. Names are set when all platforms are done, pushes come last.
func (e *Engine) BuildTo(ctx context.Context, q BuildRequest, progress func(builder.Event)) (*Built, error) {
	n := &numbering{emit: progress}
	b := &delivery{e: e, q: q, n: n}
	if len(b.q.Outputs) == 0 && !q.NoImage {
		b.q.Outputs = []Output{{Type: OutputImage}}
	}
	if len(b.q.Platforms) == 0 && q.Platform != nil {
		b.q.Platforms = []image.Platform{*q.Platform}
	}
	b.stored = len(q.Tags) > 0
	for _, o := range b.q.Outputs {
		b.image = b.image || !o.tree()
		if !o.tree() && !o.archive() {
			b.stored = true
			b.tags = append(b.tags, o.Names...)
		}
	}
	b.tags = append(b.tags, q.Tags...)
	out, err := b.run(ctx)
	if n.made {
		err = errors.Join(err, e.boundCache(context.WithoutCancel(ctx)))
	}
	return out, err
}

// delivery is a build under way.
type delivery struct {
	e       *Engine
	q       BuildRequest
	tags    []image.Reference
	image   bool // some output wants the image
	stored  bool // it stays here
	n       *numbering
	use     *use
	results []*builder.Result

	elsewhere []builder.Elsewhere
}

// several: an index is made, even of one platform when it carries a provenance.
func (b *delivery) several() bool { return len(b.q.Platforms) > 1 || b.q.Provenance != "" && b.image }

func (b *delivery) run(ctx context.Context) (_ *Built, err error) {
	if b.use, err = b.e.busy(ctx); err != nil {
		return nil, err
	}
	defer b.use.end()
	b.elsewhere = b.imports(ctx)
	platforms := b.q.Platforms
	if len(platforms) == 0 {
		platforms = []image.Platform{image.Host()}
	}
	for _, p := range platforms {
		if err := b.build(ctx, p); err != nil {
			return nil, err
		}
	}
	out := &Built{Result: b.results[0], Pushed: map[string]digest.Digest{}, Each: b.results}
	for _, r := range b.results[1:] {
		out.Warnings, out.Advice = append(out.Warnings, r.Warnings...), append(out.Advice, r.Advice...)
	}
	out.Warnings = append(out.Warnings, unlimited(&b.q.Limits)...)
	if b.image && b.several() {
		if out.Manifest, err = b.index(ctx); err != nil {
			return nil, err
		}
	}
	if err := b.deliver(ctx, out); err != nil {
		return nil, err
	}
	return out, b.exports(ctx)
}

// build makes one platform and writes its tree where one is wanted.
func (b *delivery) build(ctx context.Context, p image.Platform) error {
	o := b.q.Options
	if len(b.q.Platforms) > 0 {
		o.Platform = &p
	}
	o.NoImage = !b.image
	o.InlineCache = slices.ContainsFunc(b.q.CacheTo, func(c Cache) bool { return c.Type == "inline" })
	o.Tags = b.tags
	if b.several() {
		o.Tags = nil
	}
	prefix := ""
	if len(b.q.Platforms) > 1 {
		prefix = image.FormatPlatform(p) + " "
	}
	finish := func(ctx context.Context, r *builder.Result) error {
		if err := b.use.addStack(r.Stack); err != nil {
			return err
		}
		if b.image {
			if err := b.use.add(r.ConfigID, r.Manifest.Digest); err != nil {
				return err
			}
		}
		return b.trees(ctx, r)
	}
	res, err := b.e.build(ctx, o, building{from: b.elsewhere, finish: finish, failed: b.q.Failed, progress: b.n.part(prefix)})
	if err == nil && b.stored && b.image && !b.several() {
		err = b.e.built(res, o.Tags)
	}
	if err != nil {
		return err
	}
	b.results = append(b.results, res)
	return nil
}

// trees writes the files of one platform to the outputs that want them.
func (b *delivery) trees(ctx context.Context, r *builder.Result) error {
	for _, o := range b.q.Outputs {
		if !o.tree() {
			continue
		}
		if o.Type == OutputTar && len(b.q.Platforms) > 1 {
			return fault.Unsupportedf("a tar has the files of one platform; use type=local, which makes a directory of each")
		}
		if o.Tree != nil {
			if err := b.tree(o, r); err != nil {
				return err
			}
			continue
		}
		dir := o.Dir
		if len(b.q.Platforms) > 1 && !o.Merge {
			dir = filepath.Join(dir, platformDir(r.Platform))
		}
		if err := b.e.writeTree(ctx, r.Stack, o, dir); err != nil {
			return err
		}
	}
	return nil
}

// Tree are the files of one platform. Root is open while they are taken.
type Tree struct {
	Root *os.File
	Dir  string // where they belong: one of each platform's, or ""
}

func (b *delivery) tree(o Output, r *builder.Result) error {
	fd, err := b.e.snapshots.View(r.Stack)
	if err != nil {
		return err
	}
	root := os.NewFile(uintptr(fd), "/")
	defer root.Close()
	t := Tree{Root: root}
	if len(b.q.Platforms) > 1 && !o.Merge {
		t.Dir = platformDir(r.Platform)
	}
	return o.Tree(t)
}

func platformDir(p image.Platform) string {
	return strings.ReplaceAll(image.FormatPlatform(p), "/", "_")
}

func (e *Engine) writeTree(ctx context.Context, stack []digest.Digest, o Output, dir string) (err error) {
	fd, err := e.snapshots.View(stack)
	if err != nil {
		return err
	}
	root := os.NewFile(uintptr(fd), "/")
	defer root.Close()
	if o.Type == OutputTar {
		return toArchive(o, func(w io.Writer) error {
			_, err := layer.Pack(ctx, root, layer.DiffOptions{Tar: w, NoDigest: true})
			return err
		})
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return &HostError{err}
	}
	to, err := os.Open(dir)
	if err != nil {
		return &HostError{err}
	}
	defer to.Close()
	at, err := layer.Look(root, "/", true)
	if err != nil {
		return err
	}
	defer at.Close()
	own := &layer.Owner{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	_, err = transfer(ctx, at, "", to, layer.Options{Whiteouts: layer.Plain, Owner: own, SingleID: os.Geteuid() != 0, Shown: dir}, nil)
	return err
}

func toArchive(o Output, write func(io.Writer) error) error {
	w, err := o.Open()
	if err != nil {
		return &HostError{err}
	}
	if err := write(w); err != nil {
		if half, ok := w.(interface{ CloseWithError(error) error }); ok {
			return errors.Join(err, half.CloseWithError(err))
		}
		return errors.Join(err, w.Close())
	}
	return w.Close()
}

// deliver writes the archives and pushes.
func (b *delivery) deliver(ctx context.Context, out *Built) error {
	for _, o := range b.q.Outputs {
		if o.archive() {
			if err := b.archive(ctx, o, out); err != nil {
				return err
			}
		}
	}
	for _, o := range b.q.Outputs {
		if !o.Push && o.Type != OutputRegistry {
			continue
		}
		names := append(o.Names[:len(o.Names):len(o.Names)], b.q.Tags...)
		if len(names) == 0 {
			return fault.Invalidf("tag is needed when pushing to registry")
		}
		for _, ref := range names {
			d, err := b.push(ctx, ref, o)
			if err != nil {
				return fmt.Errorf("failed to push %s: %w", ref.Familiar(), err)
			}
			out.Pushed[ref.String()] = d
		}
	}
	return nil
}

// push shows a push as a vertex of the build.
func (b *delivery) push(ctx context.Context, ref image.Reference, o Output) (_ digest.Digest, err error) {
	v := b.n.vertex("pushing " + ref.String())
	defer func() { v.done(err) }()
	desc, err := b.e.PushWith(ctx, ref, PushOptions{Compression: o.Compression, Progress: func(ev PullEvent) {
		if ev.Status == "Pushed" || ev.Status == "Layer already exists" {
			v.status(ev.ID + ": " + ev.Status)
		}
	}})
	if err == nil {
		v.status(fmt.Sprintf("%s: digest: %s size: %d", ref.Tag, desc.Digest, desc.Size))
	}
	return desc.Digest, err
}

// archive writes the image, of all platforms, as one file or directory.
func (b *delivery) archive(ctx context.Context, o Output, out *Built) error {
	if o.Type == OutputDocker && b.several() {
		return fault.Unsupportedf("type=docker has an image of one platform without attestations; use type=oci")
	}
	s := newSaving(b.e)
	s.ociOnly = o.Type == OutputOCI
	names := append(o.Names[:len(o.Names):len(o.Names)], b.q.Tags...)
	if len(names) == 0 {
		names = []image.Reference{{}}
	}
	for _, ref := range names {
		if err := s.addDesc(out.Manifest, ref); err != nil {
			return err
		}
	}
	if err := b.e.snapshots.Sync(ctx); err != nil {
		return err
	}
	if o.Dir != "" {
		return s.writeDir(ctx, o.Dir)
	}
	return toArchive(o, func(w io.Writer) error { return s.write(ctx, w) })
}
