// The image: config, manifest, names.
package builder

import (
	"context"
	"encoding/json"

	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
)

// result is the image, or with NoImage the tree alone, handed on while it is kept.
func (s *solver) result(ctx context.Context, r *result) (res *Result, err error) {
	if s.plan.o.NoImage {
		res = &Result{Config: finishConfig(s.plan.target.config, r, s.plan.epoch)}
		err = s.keep(ctx, r.stack)
	} else {
		res, err = s.export(ctx, r)
	}
	if err != nil {
		return nil, err
	}
	c := s.plan.target.config
	res.Stack, res.Epoch = r.stack, s.plan.epoch
	res.Platform = image.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}
	res.Made = s.made()
	res.Bases, res.Steps, res.AllSteps = s.plan.bases(), r.record, s.allSteps()
	if s.finish != nil {
		err = s.finish(ctx, res)
	}
	return res, err
}

// InlineKey is where an image's config carries the records of its steps.
const InlineKey = "keg.buildcache.v1"

func inlineCache(config []byte, records []*Record) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(config, &fields); err != nil {
		return nil, err
	}
	text, err := json.Marshal(records)
	if err != nil {
		return nil, err
	}
	fields[InlineKey] = text
	return json.Marshal(fields)
}

// made lists the steps of all stages that the target needs; one of FROM an earlier stage has that stage's first.
func (s *solver) made() (all []Made) {
	for _, st := range s.plan.reach() {
		r := s.results[st]
		if r == nil || len(r.record) < len(st.steps) {
			continue
		}
		own := r.record[len(r.record)-len(st.steps):]
		for i, step := range st.steps {
			m := Made{Step: own[i].Step, Layers: r.stack[:len(r.stack)-len(st.steps)+i+1]}
			if len(step.at) > 0 {
				m.Line = step.at[0].Start.Line
			}
			all = append(all, m)
		}
	}
	return all
}

// bases are the images of the stages that the target needs, each once.
func (p *plan) bases() (all []Base) {
	for _, st := range p.reach() {
		if st.image != nil && !slices.ContainsFunc(all, func(b Base) bool { return b.Digest == st.image.Digest && b.Ref == st.image.Ref }) {
			all = append(all, *st.image)
		}
	}
	return all
}

// export writes config and manifest and points the tags at them, last of all. When
// every name points there already, nothing is written.
func (s *solver) export(ctx context.Context, r *result) (_ *Result, err error) {
	v := s.progress.start("exporting to image")
	defer func() { v.done(err) }()
	t := s.plan.target
	config, err := json.Marshal(finishConfig(t.config, r, s.plan.epoch))
	if err == nil && s.plan.o.InlineCache {
		config, err = inlineCache(config, r.record)
	}
	if err != nil {
		return nil, err
	}
	v.status("exporting layers done")
	manifest, err := s.manifest(t, config, r)
	if err != nil {
		return nil, err
	}
	desc := manifestOf(manifest)
	res := &Result{Manifest: desc, ConfigID: digest.FromBytes(config)}
	if !s.named(desc) {
		if desc, err = s.write(ctx, t, config, r); err != nil {
			return nil, err
		}
		res.Manifest = desc
	}
	v.status("writing image " + res.ConfigID.String() + " done")
	for _, ref := range s.plan.o.Tags {
		if have, err := s.blobs.Resolve(ref); err != nil || have.Digest != desc.Digest {
			if err := s.blobs.Tag(ref, desc); err != nil {
				return nil, err
			}
		}
		v.status("naming to " + ref.String() + " done")
	}
	return res, nil
}

// named reports whether all tags point at the manifest, which keeps it and all that it
// names from collection.
func (s *solver) named(desc image.Descriptor) bool {
	for _, ref := range s.plan.o.Tags {
		if have, err := s.blobs.Resolve(ref); err != nil || have.Digest != desc.Digest {
			return false
		}
	}
	return len(s.plan.o.Tags) > 0
}

func manifestOf(doc []byte) image.Descriptor {
	return image.Descriptor{MediaType: image.MediaManifest, Digest: digest.FromBytes(doc), Size: int64(len(doc))}
}

// write stores the image. First all that it names is kept from collection; then the
// manifest is made again, since until now a blob of the base could go.
func (s *solver) write(ctx context.Context, t *stage, config []byte, r *result) (desc image.Descriptor, err error) {
	if err := s.keep(ctx, r.stack); err != nil {
		return desc, err
	}
	if n := s.snaps.Has(r.stack); n < len(r.stack) {
		return desc, fault.Unavailablef("layer %s was removed during the build; build again", r.stack[n])
	}
	if s.held, err = s.blobs.Lease(ctx, s.baseBlobs(t)...); err != nil {
		return desc, err
	}
	manifest, err := s.manifest(t, config, r)
	if err != nil {
		return desc, err
	}
	if err := s.snaps.Sync(ctx); err != nil {
		return desc, err
	}
	if _, err := s.blobs.Put(ctx, config); err != nil {
		return desc, err
	}
	if _, err := s.blobs.Put(ctx, manifest); err != nil {
		return desc, err
	}
	return manifestOf(manifest), nil
}

// finishConfig fills in what only the finished steps tell: layers and times. Times are
// those of the steps, so an unchanged build gives an unchanged config.
func finishConfig(c *image.Config, r *result, epoch *time.Time) *image.Config {
	c = cloneConfig(c)
	c.RootFS.Type = "layers"
	c.RootFS.DiffIDs = r.stack
	if c.RootFS.DiffIDs == nil {
		c.RootFS.DiffIDs = []digest.Digest{}
	}
	fillTimes(c, r.record)
	if epoch != nil {
		for i := range c.History {
			h := &c.History[i]
			if h.Comment == historyComment && (h.Created == nil || h.Created.After(*epoch)) {
				h.Created = epoch
			}
		}
	}
	for _, h := range c.History {
		if h.Created != nil {
			c.Created = h.Created
		}
	}
	return c
}

// fillTimes gives our history entries a time: a step that of its layer, an entry
// without layer that of the layer before it, or of our first one.
func fillTimes(c *image.Config, records []*Record) {
	layers := 0
	for _, h := range c.History {
		if !h.EmptyLayer {
			layers++
		}
	}
	next := layers - len(records) // entries of the base come first
	n := 0
	for i := range c.History {
		h := &c.History[i]
		if h.EmptyLayer {
			continue
		}
		if k := n - next; k >= 0 && k < len(records) && h.Created == nil {
			h.Created = &records[k].Created
		}
		n++
	}
	var created *time.Time
	gap := false
	for _, h := range c.History {
		if h.Created != nil {
			created = h.Created
			if gap {
				break
			}
		} else {
			gap = true
		}
	}
	gap = false
	for i := range c.History {
		h := &c.History[i]
		if h.Created != nil {
			if gap {
				created = h.Created
			}
		} else {
			gap = true
			h.Created = created
		}
	}
}

// manifest names the base's layers as its own manifest does, as long as their blobs
// are here, so that a push finds them in the registry; built ones are plain tars.
func (s *solver) manifest(t *stage, config []byte, r *result) ([]byte, error) {
	m := image.Manifest{MediaType: image.MediaManifest,
		Config: image.Descriptor{MediaType: image.MediaConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers: []image.Descriptor{}, Annotations: s.plan.o.Annotations}
	m.SchemaVersion = 2
	n := len(r.stack) - len(r.record)
	below, err := s.baseLayers(t.bottom().image, r.stack[:n])
	if err != nil {
		return nil, err
	}
	m.Layers = append(m.Layers, below...)
	for _, rec := range r.record {
		m.Layers = append(m.Layers, image.Descriptor{MediaType: image.MediaLayer, Digest: rec.Layer, Size: rec.Size})
	}
	return json.Marshal(m)
}

// bottom is the stage at the lowest end of a chain of FROMs.
func (s *stage) bottom() *stage {
	for s.base != nil {
		s = s.base
	}
	return s
}

// theirs are the layers as the base's own manifest names them; nil when it cannot tell.
func (s *solver) theirs(b *Base) []image.Descriptor {
	if b == nil {
		return nil
	}
	doc, err := s.blobs.Bytes(b.Digest, image.MaxManifest)
	if err != nil {
		return nil
	}
	m, err := image.ParseManifest(doc)
	if err != nil || len(m.Layers) != len(b.Config.RootFS.DiffIDs) {
		return nil
	}
	return m.Layers
}

func (s *solver) baseBlobs(t *stage) []digest.Digest {
	var ds []digest.Digest
	for _, l := range s.theirs(t.bottom().image) {
		ds = append(ds, l.Digest)
	}
	return ds
}

func (s *solver) baseLayers(b *Base, stack []digest.Digest) ([]image.Descriptor, error) {
	if len(stack) == 0 {
		return nil, nil
	}
	theirs := s.theirs(b)
	layers := make([]image.Descriptor, len(stack))
	for i, diffID := range stack {
		if theirs != nil && s.blobs.Has(theirs[i].Digest) {
			layers[i] = image.Descriptor{MediaType: ociMedia(theirs[i].MediaType), Digest: theirs[i].Digest, Size: theirs[i].Size}
			continue
		}
		n, _, err := s.snaps.LayerSize(stack[:i+1])
		if err != nil {
			return nil, fmt.Errorf("layer %s of the base image: %w", diffID, err)
		}
		layers[i] = image.Descriptor{MediaType: image.MediaLayer, Digest: diffID, Size: n}
	}
	return layers, nil
}

// ociMedia turns Docker's names of layer types into OCI's, which an OCI manifest wants.
func ociMedia(m string) string {
	switch m {
	case image.MediaDockerLayer:
		return image.MediaLayerGzip
	case image.MediaDockerLayerTar:
		return image.MediaLayer
	}
	return m
}
