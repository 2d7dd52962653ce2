package api

// What becomes of a build: the exporters and caches of Control/Solve.

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"keg/internal/buildcontrol"
	"keg/internal/buildsession"
	"keg/internal/engine"
	"keg/internal/fault"
	"keg/internal/image"
)

type delivery struct {
	*reference
	outs     []engine.Output
	layouts  []layout // directories whose blobs go to the client
	response map[string]string
}

// layout is an OCI layout in our scratch that belongs into a store of the client's.
type layout struct {
	dir, store string
	tells      string // the key of the response that has its manifest; "": none
}

// delivery reads exporters and caches, and completes the request.
func (r *reference) delivery(ctx context.Context, q *engine.BuildRequest) (*delivery, error) {
	d := &delivery{reference: r, response: map[string]string{}}
	annotations := map[string]string{}
	for i, x := range r.solve.Exporters {
		o, err := d.output(ctx, i, x)
		if err == nil {
			err = annotate(annotations, x.Attrs, len(q.Platforms))
		}
		if err != nil {
			return nil, err
		}
		d.outs = append(d.outs, o)
	}
	if len(annotations) > 0 {
		q.Annotations = annotations
	}
	var err error
	if q.CacheFrom, err = r.cachesFrom(ctx); err != nil {
		return nil, err
	}
	for i, x := range r.solve.CacheTo {
		c, err := cache(x)
		if err != nil {
			return nil, err
		}
		if c.Type == "local" {
			c.Dir = filepath.Join(r.dir, "cache-to"+strconv.Itoa(i))
			d.layouts = append(d.layouts, layout{c.Dir, "local:" + x.Attrs["dest"], "cache.manifest"})
		}
		q.CacheTo = append(q.CacheTo, c)
	}
	return d, nil
}

func flagOf(attrs map[string]string, key string, def bool) (bool, error) {
	v, ok := attrs[key]
	if !ok || v == "" {
		return def, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, fault.Invalidf("non-bool value specified for %s", key)
	}
	return b, nil
}

// names reads a list of names with commas.
func names(list string) (refs []image.Reference, err error) {
	for name := range strings.SplitSeq(list, ",") {
		if name == "" {
			continue
		}
		ref, err := image.ParseReference(name)
		if err != nil {
			return nil, fault.Invalidf("invalid tag %q: %w", name, err)
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

// output is the i-th exporter.
func (d *delivery) output(ctx context.Context, i int, x buildcontrol.Entry) (o engine.Output, err error) {
	switch o.Type = x.Type; x.Type {
	case "moby", "image":
		o.Type = engine.OutputImage
		if byDigest, _ := flagOf(x.Attrs, "push-by-digest", false); byDigest {
			return o, fault.Unsupportedf("push-by-digest is not supported: push by a tag")
		}
	case "local":
		if x.Attrs["mode"] == "delete" && strings.Contains(d.front.Attrs["platform"], ",") {
			return o, fault.Unsupportedf("mode=delete is possible with one platform")
		}
		o.Tree = func(t engine.Tree) error { return d.session.SendTree(ctx, i, t.Root, t.Dir) }
	case "tar", "oci", "docker":
		o.Open = func() (io.WriteCloser, error) { return d.session.SendFile(ctx, i) }
		packed, err := flagOf(x.Attrs, "tar", true)
		if err != nil {
			return o, err
		}
		if !packed && x.Type != "tar" {
			o.Type, o.Dir, o.Open = engine.OutputOCI, filepath.Join(d.dir, "layout"+strconv.Itoa(i)), nil
			d.layouts = append(d.layouts, layout{dir: o.Dir, store: "export"})
		}
	default:
		return o, fault.Unsupportedf("exporter %q could not be found", x.Type)
	}
	if o.Names, err = names(x.Attrs["name"]); err != nil {
		return o, err
	}
	if o.Push, err = flagOf(x.Attrs, "push", false); err != nil {
		return o, err
	}
	split, err := flagOf(x.Attrs, "platform-split", true)
	if err != nil {
		return o, err
	}
	o.Merge = !split
	switch c := x.Attrs["compression"]; c {
	case "gzip", "zstd":
		o.Compression = image.Compression(c)
	case "", "uncompressed":
	default:
		return o, fault.Invalidf("unsupported layer compression type %q: want gzip or zstd", c)
	}
	return o, nil
}

// annotate reads annotation.KEY, annotation-manifest.KEY and annotation-manifest[PLATFORM].KEY.
func annotate(annotations, attrs map[string]string, platforms int) error {
	for k, v := range attrs {
		rest, ok := strings.CutPrefix(k, "annotation")
		if !ok {
			continue
		}
		kind, key, ok := strings.Cut(rest, ".")
		if !ok {
			continue
		}
		kind, _, limited := strings.Cut(kind, "[")
		if kind != "" && kind != "-manifest" || limited && platforms > 1 {
			return fault.Unsupportedf("annotation %q is not supported: all manifests can have annotations, their descriptors and an index cannot", k)
		}
		annotations[key] = v
	}
	return nil
}

// cache reads an importer or exporter of caches.
func cache(x buildcontrol.Entry) (c engine.Cache, err error) {
	c.Type = x.Type
	switch x.Type {
	case "registry":
		if c.Ref, err = image.ParseReference(x.Attrs["ref"]); err != nil {
			return c, fault.Invalidf("cache %q: %w", x.Attrs["ref"], err)
		}
	case "inline", "local":
	default:
		return c, fault.Unsupportedf("unknown cache type %q: want registry, local or inline", x.Type)
	}
	c.Max = x.Attrs["mode"] == "max"
	if comp := x.Attrs["compression"]; comp == "gzip" || comp == "zstd" {
		c.Compression = image.Compression(comp)
	}
	c.IgnoreError, err = flagOf(x.Attrs, "ignore-error", false)
	return c, err
}

// cachesFrom are the caches that the build may use, as the frontend or Control/Solve names them.
func (r *reference) cachesFrom(ctx context.Context) (all []engine.Cache, err error) {
	list := r.solve.CacheFrom
	if text := r.front.Attrs["cache-imports"]; len(list) == 0 && text != "" {
		if err := json.Unmarshal([]byte(text), &list); err != nil {
			return nil, fault.Invalidf("failed to unmarshal cache-imports: %w", err)
		}
	}
	for i, x := range list {
		c, err := cache(x)
		if err != nil {
			return nil, err
		}
		if c.Type == "local" {
			c.Dir, c.Shown = filepath.Join(r.dir, "cache-from"+strconv.Itoa(i)), x.Attrs["src"]
			blobs := buildsession.Blobs{Session: r.session, Store: "local:" + x.Attrs["src"]}
			// One that is not there is told by the build, which goes on without it.
			if err := stage(ctx, blobs, c.Dir, digest.Digest(x.Attrs["digest"]), nil); err != nil && ctx.Err() != nil {
				return nil, err
			}
		}
		all = append(all, c)
	}
	return all, nil
}

// finish brings what was made to the client, and makes the response: what buildx writes to --metadata-file and --iidfile. An
// image is known by its id, as in docker images; what a registry has by its digest there.
func (d *delivery) finish(ctx context.Context, made *engine.Built) error {
	for _, l := range d.layouts {
		desc, err := unstage(ctx, buildsession.Blobs{Session: d.session, Store: l.store}, l.dir)
		if err != nil {
			return err
		}
		if l.tells != "" {
			text, err := json.Marshal(desc)
			if err != nil {
				return err
			}
			d.response[l.tells] = string(text)
		}
	}
	if made.ConfigID == "" {
		return nil
	}
	desc, err := json.Marshal(made.Manifest)
	if err != nil {
		return err
	}
	d.response["containerimage.descriptor"] = base64.StdEncoding.EncodeToString(desc)
	d.response["containerimage.config.digest"] = made.ConfigID.String()
	d.response["containerimage.digest"] = made.ConfigID.String()
	for _, name := range slices.Sorted(maps.Keys(made.Pushed)) {
		d.response["containerimage.digest"] = made.Pushed[name].String()
	}
	var all []string
	for _, o := range d.outs {
		for _, ref := range o.Names {
			if name := ref.String(); !slices.Contains(all, name) {
				all = append(all, name)
			}
		}
	}
	if len(all) > 0 {
		d.response["image.name"] = strings.Join(all, ",")
	}
	return nil
}

// stage copies a layout from a store of the client's: what d names, of the platforms that are wanted (nil: all). What comes is
// verified by who reads it.
func stage(ctx context.Context, from buildsession.Blobs, dir string, d digest.Digest, wanted []image.Platform) error {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o700); err != nil {
		return err
	}
	s := &stager{ctx: ctx, from: from, blobs: blobs, wanted: wanted, seen: map[digest.Digest]bool{}}
	doc, err := s.document(d)
	if err != nil {
		return err
	}
	desc := image.Descriptor{MediaType: image.MediaManifest, Digest: d, Size: int64(len(doc))}
	if x, err := image.ParseIndex(doc); err == nil && len(x.Manifests) > 0 {
		desc.MediaType = image.MediaIndex
	}
	if err := s.follow(desc, doc, 0); err != nil {
		return err
	}
	index := image.Index{MediaType: image.MediaIndex, Manifests: []image.Descriptor{desc}}
	index.SchemaVersion = 2
	text, err := json.Marshal(index)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "index.json"), text, 0o600)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o600)
	}
	return err
}

type stager struct {
	ctx    context.Context
	from   buildsession.Blobs
	blobs  string
	wanted []image.Platform
	seen   map[digest.Digest]bool
}

// maxDepth is how deep indexes may be nested.
const maxDepth = 4

func (s *stager) follow(desc image.Descriptor, doc []byte, depth int) error {
	if depth > maxDepth {
		return fault.Invalidf("the client's index %s is nested too deep", desc.Digest)
	}
	if image.IsIndex(desc.MediaType) {
		x, err := image.ParseIndex(doc)
		if err != nil {
			return err
		}
		for _, m := range x.Manifests {
			if m.Platform != nil && s.wanted != nil && !slices.ContainsFunc(s.wanted, func(p image.Platform) bool { return image.Matches(p, *m.Platform) }) {
				continue
			}
			doc, err := s.document(m.Digest)
			if err == nil {
				err = s.follow(m, doc, depth+1)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	m, err := image.ParseManifest(doc)
	if err != nil {
		return err
	}
	for _, b := range append(m.Layers, m.Config) {
		if err := s.copy(b.Digest, b.Size); err != nil {
			return err
		}
	}
	return nil
}

// document copies a manifest and returns it.
func (s *stager) document(d digest.Digest) ([]byte, error) {
	if err := s.copy(d, image.MaxManifest); err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(s.blobs, d.Encoded()))
}

func (s *stager) copy(d digest.Digest, limit int64) error {
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return fault.Invalidf("the client's layout names the blob %q: want a sha256", d)
	}
	if s.seen[d] {
		return nil
	}
	s.seen[d] = true
	r, err := s.from.Read(s.ctx, d.String())
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := os.OpenFile(filepath.Join(s.blobs, d.Encoded()), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, io.LimitReader(r, limit+1))
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil && n > limit {
		err = fault.Invalidf("the client's blob %s is larger than %d bytes", d, limit)
	}
	return err
}

// unstage copies all blobs of a layout to a store of the client's, and returns what its index names last.
func unstage(ctx context.Context, to buildsession.Blobs, dir string) (desc image.Descriptor, err error) {
	text, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		return desc, err
	}
	x, err := image.ParseIndex(text)
	if err != nil || len(x.Manifests) == 0 {
		return desc, fault.Invalidf("an export without an index: %w", err)
	}
	blobs := filepath.Join(dir, "blobs", "sha256")
	list, err := os.ReadDir(blobs)
	if err != nil {
		return desc, err
	}
	for _, e := range list {
		if err := sendBlob(ctx, to, filepath.Join(blobs, e.Name()), digest.NewDigestFromEncoded(digest.SHA256, e.Name())); err != nil {
			return desc, err
		}
	}
	return x.Manifests[len(x.Manifests)-1], nil
}

func sendBlob(ctx context.Context, to buildsession.Blobs, file string, d digest.Digest) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	return to.Write(ctx, d.String(), st.Size(), f)
}
