package engine

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/go-digest"

	"keg/internal/builder"
	ctr "keg/internal/container"
	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/snapshot"
)

// CommitOptions are those of docker commit.
type CommitOptions struct {
	Repository string // name[:tag], or ""
	Author     string
	Message    string
	Changes    []string // Dockerfile instructions
	NoPause    bool     // let the program go on writing meanwhile
}

// Commit makes an image of a container: its image, a layer of what it changed, and its
// config.
func (e *Engine) Commit(ctx context.Context, ref string, o CommitOptions) (digest.Digest, error) {
	name, err := newName(o.Repository)
	if err != nil {
		return "", err
	}
	r, st, err := e.view(ctx, ref)
	if err != nil {
		return "", err
	}
	if st.Status == container.StateRemoving {
		return "", fault.Conflictf("You cannot commit container %s which is being removed", r.ID)
	}
	use, err := e.busy(ctx, r.ImageID, r.Manifest)
	if err != nil {
		return "", err
	}
	defer use.end()
	cfg, m, err := e.committed(r, o)
	if err != nil {
		return "", err
	}
	c, err := e.freeze(ctx, r.ID, st.Status == container.StateRunning && !o.NoPause)
	if err != nil {
		return "", err
	}
	stack := slices.Clone(r.Stack)
	if !c.Empty {
		stack = append(stack, c.DiffID)
		m.Layers = append(m.Layers, image.Descriptor{MediaType: image.MediaLayer, Digest: c.DiffID, Size: c.Size})
	}
	if err := use.addStack(stack); err != nil {
		return "", err
	}
	if n := e.snapshots.Has(stack); n < len(stack) {
		return "", fault.Unavailablef("layer %s was removed during the commit; commit again", stack[n])
	}
	now := time.Now().UTC()
	cfg.Created, cfg.Author = &now, o.Author
	cfg.RootFS.Type, cfg.RootFS.DiffIDs = "layers", stack
	cfg.History = append(cfg.History, image.History{Created: &now, Author: o.Author, Comment: o.Message,
		CreatedBy: strings.Join(append(slices.Clone([]string(r.Config.Entrypoint)), r.Config.Cmd...), " "), EmptyLayer: c.Empty})
	id, err := e.finishImage(ctx, cfg, m, use, name, "commit")
	if err == nil {
		e.containerEvent("commit", r, map[string]string{"comment": o.Message, "imageID": string(id), "imageRef": o.Repository})
	}
	return id, err
}

// committed is the config and the manifest of the container's image with the
// container's own settings and the changes on top.
func (e *Engine) committed(r *ctr.Record, o CommitOptions) (*image.Config, *image.Manifest, error) {
	base, err := e.config(r.ImageID)
	if err != nil {
		return nil, nil, err
	}
	desc, err := e.pick(image.Descriptor{MediaType: image.MediaManifest, Digest: r.Manifest}, image.Host())
	if err != nil {
		return nil, nil, err
	}
	m, _, err := e.manifest(desc.Digest)
	if err != nil {
		return nil, nil, err
	}
	m.MediaType, m.Annotations, m.Subject = image.MediaManifest, nil, nil
	for i := range m.Layers { // one manifest speaks one dialect
		m.Layers[i].MediaType = ociLayer(m.Layers[i].MediaType)
	}
	from, to := r.Config, base.Config
	to.User, to.Env, to.Cmd, to.Entrypoint = from.User, from.Env, from.Cmd, from.Entrypoint
	to.WorkingDir, to.Labels, to.StopSignal, to.Shell = from.WorkingDir, from.Labels, from.StopSignal, from.Shell
	to.Volumes, to.Healthcheck = from.Volumes, from.Healthcheck
	to.ExposedPorts = nil
	for p := range from.ExposedPorts {
		if to.ExposedPorts == nil {
			to.ExposedPorts = map[string]struct{}{}
		}
		to.ExposedPorts[p.String()] = struct{}{}
	}
	base.Config = to
	cfg, err := builder.Change(base, o.Changes)
	return cfg, m, err
}

func ociLayer(media string) string {
	switch media {
	case image.MediaDockerLayer:
		return image.MediaLayerGzip
	case image.MediaDockerLayerTar:
		return image.MediaLayer
	}
	return media
}

// freeze copies what the container changed, with its program kept still if asked for.
func (e *Engine) freeze(ctx context.Context, id string, still bool) (c snapshot.Committed, err error) {
	if still {
		resume, serr := e.stillness(ctx, id)
		if serr != nil {
			return c, serr
		}
		defer func() { err = errors.Join(err, resume()) }()
	}
	return e.snapshots.Commit(ctx, id, snapshot.CommitOptions{Copy: true, Omit: ownMounts()})
}

// stillness pauses a container and returns what lets it go on.
func (e *Engine) stillness(ctx context.Context, id string) (resume func() error, err error) {
	c, err := e.monitors.Dial(ctx, id)
	if fault.Is(err, fault.Conflict) { // it ended meanwhile
		return func() error { return nil }, nil
	}
	if err != nil {
		return nil, err
	}
	if err := c.Pause(ctx); err != nil {
		c.Close()
		// A host without a freezer cannot keep a program still: better than no commit.
		if fault.Is(err, fault.Unsupported) || fault.Is(err, fault.Conflict) {
			return func() error { return nil }, nil
		}
		return nil, err
	}
	return func() error {
		defer c.Close()
		err := c.Unpause(context.WithoutCancel(ctx))
		if fault.Is(err, fault.Conflict) {
			return nil
		}
		return err
	}, nil
}
