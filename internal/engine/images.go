package engine

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	dimage "github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/store"
)

// ImageListOptions are those of docker images.
type ImageListOptions struct {
	All    bool
	Ref    string // repository[:tag] pattern, or ""
	Filter Filter
	// Manifests tells of each image what it is for which platform, and how much of it is here.
	Manifests bool
	// Uncounted leaves out how many containers use an image (Containers is -1): that costs a look at each.
	Uncounted bool
}

// Images lists as the Engine API does (newest first).
func (e *Engine) Images(ctx context.Context, o ImageListOptions) ([]dimage.Summary, error) {
	if err := o.Filter.only("dangling", "label", "label!", "before", "since", "reference", "until"); err != nil {
		return nil, err
	}
	a, err := e.album()
	if err != nil {
		return nil, err
	}
	pick, err := e.imagePicker(ctx, o)
	if err != nil {
		return nil, err
	}
	var used map[digest.Digest][]string
	if !o.Uncounted {
		if used, err = e.imageUsers(); err != nil {
			return nil, err
		}
	}
	sums := []dimage.Summary{}
	for _, r := range a.images {
		names, ok := pick(r, a.names[r.ID])
		if !ok {
			continue
		}
		m := r.Manifests[0]
		var manifests []dimage.ManifestSummary
		if o.Manifests {
			manifests = e.manifestSummaries(r, used[r.ID])
		}
		users := int64(len(used[r.ID]))
		if o.Uncounted {
			users = -1
		}
		sums = append(sums, dimage.Summary{
			Containers: users, Created: r.Created.Unix(), ID: string(r.ID), Labels: r.Labels,
			Descriptor: &m, RepoTags: repoTags(names), RepoDigests: repoDigests(names), SharedSize: -1, Size: r.Size, Manifests: manifests,
		})
	}
	return sums, nil
}

// manifestSummaries are the platforms of an image: the one that it has.
func (e *Engine) manifestSummaries(r *imageRecord, users []string) []dimage.ManifestSummary {
	s := dimage.ManifestSummary{ID: string(r.Manifests[0].Digest), Descriptor: r.Manifests[0], Kind: dimage.ManifestKindImage,
		Available: e.snapshots.Has(r.Stack) == len(r.Stack),
		ImageData: &dimage.ImageProperties{Platform: r.Platform, Containers: users}}
	s.ImageData.Size.Unpacked = r.Size
	ds := []digest.Digest{r.ID, r.Manifests[0].Digest}
	if m, _, err := e.manifest(r.Manifests[0].Digest); err == nil {
		for _, l := range m.Layers {
			ds = append(ds, l.Digest)
		}
	}
	for _, d := range ds {
		if n, err := e.store.Stat(d); err == nil { // a built layer is its tree, not a blob
			s.Size.Content += n
		}
	}
	s.Size.Total = s.Size.Content + r.Size
	return []dimage.ManifestSummary{s}
}

// imagePicker turns the options into one question about an image; the answer is the names
// that are shown of it.
func (e *Engine) imagePicker(ctx context.Context, o ImageListOptions) (func(*imageRecord, []store.Named) ([]store.Named, bool), error) {
	dangling, danglingSet, err := o.Filter.boolean("dangling")
	if err != nil {
		return nil, err
	}
	until, err := o.Filter.untilFirst(time.Now())
	if err != nil {
		return nil, err
	}
	edge := func(key string) (time.Time, error) {
		if len(o.Filter[key]) == 0 {
			return time.Time{}, nil
		}
		f, err := e.lookup(ctx, o.Filter[key][0])
		if err != nil {
			return time.Time{}, err
		}
		return f.Created, nil
	}
	before, err := edge("before")
	if err != nil {
		return nil, err
	}
	since, err := edge("since")
	if err != nil {
		return nil, err
	}
	patterns := slices.Clone(o.Filter["reference"])
	if o.Ref != "" {
		patterns = append(patterns, o.Ref)
	}
	for _, p := range patterns {
		if _, err := path.Match(p, ""); err != nil {
			return nil, fault.Invalidf("invalid filter 'reference=%s': %w", p, err)
		}
	}
	return func(r *imageRecord, names []store.Named) ([]store.Named, bool) {
		// What only a digest names is dangling when asked so, and not when asked otherwise.
		if danglingSet && dangling && len(repoTags(names)) > 0 || danglingSet && !dangling && len(names) == 0 ||
			!o.Filter.labels(r.Labels) ||
			!before.IsZero() && !r.Created.Before(before) ||
			!since.IsZero() && !r.Created.After(since) ||
			!until.IsZero() && !r.Created.Before(until) {
			return nil, false
		}
		if len(patterns) == 0 {
			return names, true
		}
		names = slices.DeleteFunc(slices.Clone(names), func(n store.Named) bool { return !matchesAny(patterns, n.Ref) })
		return names, len(names) > 0
	}, nil
}

// matchesAny: a pattern names a repository, with tag or digest or without; "*" stays
// within one part of the path, as everywhere in Docker.
func matchesAny(patterns []string, ref image.Reference) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		for _, s := range []string{ref.Familiar(), ref.FamiliarName(), ref.String(), ref.Name()} {
			if ok, _ := path.Match(p, s); ok {
				return true
			}
		}
		return false
	})
}

// imageUsers tells which containers use an image.
func (e *Engine) imageUsers() (map[digest.Digest][]string, error) {
	ids, err := e.containers.List()
	if err != nil {
		return nil, err
	}
	type user struct {
		id    string
		image digest.Digest
	}
	users, _ := readAll(ids, func(id string) (user, error) {
		image, err := e.containers.ImageID(id)
		if err != nil {
			return user{}, fault.As(fault.NotFound, err) // what cannot be read uses none
		}
		return user{id, image}, nil
	})
	used := map[digest.Digest][]string{}
	for _, u := range users {
		used[u.image] = append(used[u.image], u.id)
	}
	return used, nil
}

// InspectImage finds by name, id or unique id prefix.
func (e *Engine) InspectImage(ctx context.Context, ref string) (dimage.InspectResponse, error) {
	f, err := e.lookup(ctx, ref)
	if err != nil {
		return dimage.InspectResponse{}, err
	}
	c, err := e.config(f.ID)
	if err != nil {
		return dimage.InspectResponse{}, err
	}
	a, err := e.album()
	if err != nil {
		return dimage.InspectResponse{}, err
	}
	names := a.names[f.ID]
	res := dimage.InspectResponse{
		ID: string(f.ID), RepoTags: repoTags(names), RepoDigests: repoDigests(names), Author: c.Author,
		Config: &c.Config, Architecture: c.Architecture, Variant: c.Variant, Os: c.OS, OsVersion: c.OSVersion,
		Size: f.Size, RootFS: dimage.RootFS{Type: "layers"}, Metadata: dimage.Metadata{LastTagTime: lastTagged(names)},
		Descriptor: &f.Desc,
	}
	if c.Created != nil {
		res.Created = c.Created.Format(time.RFC3339Nano)
	}
	for _, d := range f.Stack {
		res.RootFS.Layers = append(res.RootFS.Layers, string(d))
	}
	if n := len(c.History); n > 0 {
		res.Comment = c.History[n-1].Comment
	}
	return res, nil
}

// OnPlatform is an error unless the image is for the platform; nil is any.
func (e *Engine) OnPlatform(ctx context.Context, ref string, p *image.Platform) error {
	if p == nil {
		return nil
	}
	f, err := e.lookup(ctx, ref)
	if err != nil {
		return err
	}
	if !image.Matches(*p, f.Platform) {
		return fault.NotFoundf("image with reference %s was found but its platform (%s) does not match the specified platform (%s)",
			ref, image.FormatPlatform(f.Platform), image.FormatPlatform(*p))
	}
	return nil
}

// InspectRemote describes an image of a registry as InspectImage does one that is here. Only its
// manifest and its config are fetched. Size is that of the layers as they travel.
func (e *Engine) InspectRemote(ctx context.Context, ref image.Reference, p *image.Platform) (dimage.InspectResponse, error) {
	var res dimage.InspectResponse
	root, doc, err := e.RemoteManifest(ctx, ref)
	if err != nil {
		return res, err
	}
	desc := root
	if image.IsIndex(desc.MediaType) {
		x, err := image.ParseIndex(doc)
		if err != nil {
			return res, fmt.Errorf("%s: %w", ref.Familiar(), err)
		}
		want := image.Host()
		if p != nil {
			want = *p
		}
		if desc, err = image.Select(x, want); err != nil {
			return res, fmt.Errorf("%s: %w", ref.Familiar(), err)
		}
		if doc, err = e.remote.Manifest(ctx, ref, desc); err != nil {
			return res, err
		}
	}
	im, err := e.remoteImage(ctx, ref, desc, doc)
	if err != nil {
		return res, err
	}
	c := im.Config
	if c == nil {
		return res, fault.Unsupportedf("%s is not an image: its config is of type %q", ref.Familiar(), im.Manifest.Config.MediaType)
	}
	if have := configPlatform(c); p != nil && !image.Matches(*p, have) {
		return res, wrongPlatform(ref.Familiar(), *p, have)
	}
	res = dimage.InspectResponse{
		ID: string(im.Manifest.Config.Digest), RepoDigests: []string{ref.FamiliarName() + "@" + string(root.Digest)}, Author: c.Author,
		Config: &c.Config, Architecture: c.Architecture, Variant: c.Variant, Os: c.OS, OsVersion: c.OSVersion,
		RootFS: dimage.RootFS{Type: "layers"}, Descriptor: &im.Desc,
	}
	if ref.Tag != "" && ref.Digest == "" {
		res.RepoTags = []string{ref.Familiar()}
	}
	if c.Created != nil {
		res.Created = c.Created.Format(time.RFC3339Nano)
	}
	for _, d := range c.RootFS.DiffIDs {
		res.RootFS.Layers = append(res.RootFS.Layers, string(d))
	}
	for _, l := range im.Manifest.Layers {
		res.Size += l.Size
	}
	if n := len(c.History); n > 0 {
		res.Comment = c.History[n-1].Comment
	}
	return res, nil
}

func lastTagged(names []store.Named) (t time.Time) {
	for _, n := range names {
		if n.Ref.Tag != "" && n.Updated.After(t) {
			t = n.Updated
		}
	}
	return t
}

// Tag points target at the image source.
func (e *Engine) Tag(ctx context.Context, source, target string) error {
	ref, err := image.ParseRepository(target)
	if err != nil {
		return fault.Invalidf("Error parsing reference: %q is not a valid repository/tag: %w", target, err)
	}
	if ref.Digest != "" {
		return fault.Invalidf("refusing to create a tag with a digest reference")
	}
	if ref.FamiliarName() == digest.Canonical.String() {
		return fault.Invalidf("refusing to create an ambiguous tag using digest algorithm as name")
	}
	ref.Tag = orElse(ref.Tag, image.DefaultTag)
	f, err := e.lookup(ctx, source)
	if fault.Is(err, fault.NotFound) { // a carried image may be tagged before its first use
		if src, perr := image.ParseReference(source); perr == nil {
			if c, ok, cerr := e.carry(ctx, src, nil); ok {
				f, err = c, cerr
			}
		}
	}
	if err != nil {
		return err
	}
	if err := e.store.Tag(ref, f.Desc); err != nil {
		return err
	}
	e.imageEvent("tag", string(f.ID), ref.Familiar(), f.Labels)
	return nil
}

// History lists the steps of an image, newest first. Only the top has an id: the layers
// below belong to no image of their own.
func (e *Engine) History(ctx context.Context, ref string) ([]dimage.HistoryResponseItem, error) {
	f, err := e.lookup(ctx, ref)
	if err != nil {
		return nil, err
	}
	c, err := e.config(f.ID)
	if err != nil {
		return nil, err
	}
	a, err := e.album()
	if err != nil {
		return nil, err
	}
	items := []dimage.HistoryResponseItem{}
	layer := 0
	for _, h := range c.History {
		item := dimage.HistoryResponseItem{ID: "<missing>", CreatedBy: h.CreatedBy, Comment: h.Comment}
		if h.Created != nil {
			item.Created = h.Created.Unix()
		}
		if !h.EmptyLayer {
			if layer == len(f.Stack) {
				return nil, fault.Invalidf("image %s tells of more layers in its history than it has", image.ShortID(string(f.ID)))
			}
			layer++
			if _, item.Size, err = e.snapshots.LayerSize(f.Stack[:layer]); err != nil {
				return nil, err
			}
		}
		items = append(items, item)
	}
	slices.Reverse(items)
	if len(items) > 0 {
		items[0].ID = string(f.ID)
		items[0].Tags = repoTags(a.names[f.ID])
	}
	return items, nil
}

// Base tells which image here another one stands on, and how many lines of its history, from the oldest
// on, are the base's. "" when that is not known.
func (e *Engine) Base(ctx context.Context, ref string) (name string, lines int, err error) {
	f, err := e.lookup(ctx, ref)
	if err != nil {
		return "", 0, err
	}
	a, err := e.album()
	if err != nil {
		return "", 0, err
	}
	base := a.baseOf(f.imageRecord)
	if base == nil {
		return "", 0, nil
	}
	c, err := e.config(base.ID)
	if err != nil {
		return "", 0, err
	}
	return repoTags(a.names[base.ID])[0], len(c.History), nil
}

// isIDPrefix reports whether what the user typed is (the beginning of) the id itself.
func isIDPrefix(id digest.Digest, typed string) bool {
	return strings.HasPrefix(string(id), typed) || strings.HasPrefix(id.Encoded(), typed)
}
