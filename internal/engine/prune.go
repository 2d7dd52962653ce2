package engine

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/events"
	dimage "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/mount"
	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	vol "keg/internal/volume"
)

// PruneOptions are those of docker system prune and of the prunes of one kind.
type PruneOptions struct {
	All, Volumes bool
	Filter       Filter
	// Bytes that the build cache may keep, that are to be free on the disk, that it keeps in any case. All 0: what is
	// not kept by an image goes.
	MaxUsed, MinFree, Reserved int64
	// What to prune; all of them for system prune.
	Containers, Networks, Images, BuildCache bool
}

// Pruned lists what went.
type Pruned struct {
	Containers, Networks, Volumes []string
	Images                        []dimage.DeleteResponse
	BuildCache                    []string
	CacheEntries                  []CacheEntry // of BuildCache, with reasons
	Reclaimed                     int64        // bytes
}

// Prune removes what nobody uses, in Docker's order: containers first, since they hold
// the rest.
func (e *Engine) Prune(ctx context.Context, o PruneOptions) (Pruned, error) {
	if err := o.checkFilter(); err != nil {
		return Pruned{}, err
	}
	until, err := o.Filter.until(time.Now())
	if err != nil {
		return Pruned{}, err
	}
	if o.Volumes && !until.IsZero() {
		return Pruned{}, fault.Invalidf(`The "until" filter is not supported with "--volumes"`)
	}
	p := pruning{e: e, o: o, until: until}
	if err := e.awaitRemovals(ctx); err != nil {
		return Pruned{}, err
	}
	if o.Containers {
		if err := errors.Join(e.monitors.ReapAll(ctx), e.sweepOrphans()); err != nil {
			return p.done, err
		}
		if err := p.containers(ctx); err != nil {
			return p.done, err
		}
		p.tell(events.ContainerEventType)
	}
	if o.Networks {
		if err := p.networks(ctx); err != nil {
			return p.done, err
		}
		p.tell(events.NetworkEventType)
	}
	if o.Volumes {
		if err := p.volumes(ctx); err != nil {
			return p.done, err
		}
		p.tell(events.VolumeEventType)
	}
	if o.Images {
		if err := p.images(ctx); err != nil {
			return p.done, err
		}
	}
	if o.BuildCache {
		if err := p.buildCache(); err != nil {
			return p.done, err
		}
	}
	if o.Images || o.BuildCache {
		stacks := p.stacks
		f, err := e.collect(ctx)
		p.done.Reclaimed += f.bytes
		for _, stack := range stacks {
			p.done.Images = append(p.done.Images, deletedLayers(stack, f.layers)...)
		}
		if err != nil {
			return p.done, err
		}
	}
	if o.Images {
		p.tell(events.ImageEventType)
	}
	if o.BuildCache {
		p.tell(events.BuilderEventType)
	}
	return p.done, nil
}

// tell reports that what nobody uses of one kind is gone, and how many bytes that gave since the last kind. Images and the build
// cache are collected together: the bytes are the images' when both were asked for.
func (p *pruning) tell(t events.Type) {
	freed := p.done.Reclaimed - p.told
	p.told = p.done.Reclaimed
	p.e.report(t, events.ActionPrune, "", map[string]string{"reclaimed": strconv.FormatInt(freed, 10)})
}

// checkFilter: each kind has filters of its own when it is pruned alone; "dangling=false" and
// "all=true" are other words for All.
func (o *PruneOptions) checkFilter() error {
	known := []string{"until", "label", "label!"}
	switch {
	case o.Images && !o.Containers:
		known = append(known, "dangling")
	case o.Volumes && !o.Containers:
		known = append(known, "all")
	case o.BuildCache && !o.Images:
		known = append(known, cacheFilters...)
	}
	if err := o.Filter.only(known...); err != nil {
		return err
	}
	if v := o.Filter["unused-for"]; len(v) > 0 && len(o.Filter["until"]) == 0 {
		o.Filter["until"] = v
	}
	dangling, given, err := o.Filter.boolean("dangling")
	if err != nil {
		return err
	}
	all, _, err := o.Filter.boolean("all")
	o.All = o.All || given && !dangling || all
	return err
}

// pruning is one Prune under way.
type pruning struct {
	e      *Engine
	o      PruneOptions
	until  time.Time
	stacks [][]digest.Digest // of the images that went
	done   Pruned
	told   int64 // of done.Reclaimed, in events
}

// old reports whether something made at t falls under the "until" filter.
func (p *pruning) old(t time.Time) bool { return p.until.IsZero() || t.Before(p.until) }

func (p *pruning) containers(ctx context.Context) error {
	list, err := p.e.all(ctx)
	if err != nil {
		return err
	}
	for _, c := range list {
		if isLive(c.st.Status) || !p.old(c.Created) || !p.o.Filter.labels(c.Config.Labels) {
			continue
		}
		size, err := p.e.snapshots.Usage(c.ID)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		// One that was started since the look, or that another process removes, stays.
		if err := p.e.Remove(ctx, c.ID, RemoveOptions{}); fault.Is(err, fault.Conflict) || fault.Is(err, fault.NotFound) {
			continue
		} else if err != nil {
			return err
		}
		p.done.Containers = append(p.done.Containers, c.ID)
		p.done.Reclaimed += size
	}
	return nil
}

func (p *pruning) networks(ctx context.Context) error {
	nets, err := p.e.networks.List()
	if err != nil {
		return err
	}
	list, err := p.e.all(ctx)
	if err != nil {
		return err
	}
	for _, n := range nets {
		if predefined(n.Name) || !p.old(n.Created) || !p.o.Filter.labels(n.Labels) ||
			slices.ContainsFunc(list, func(c one) bool { return c.Networks[n.Name] != nil }) {
			continue
		}
		if err := p.e.RemoveNetwork(ctx, n.Name); fault.Is(err, fault.Denied) || fault.Is(err, fault.NotFound) {
			continue
		} else if err != nil {
			return err
		}
		p.done.Networks = append(p.done.Networks, n.Name)
	}
	// The bridge and rules that nobody uses any more, too.
	return p.e.networks.Teardown(ctx)
}

// volumes removes those that no container refers to: anonymous ones, with All named ones too.
func (p *pruning) volumes(ctx context.Context) error {
	vols, err := p.e.volumes.List()
	if err != nil {
		return err
	}
	used, err := p.e.volumeUsers()
	if err != nil {
		return err
	}
	for _, v := range vols {
		_, anonymous := v.Labels[vol.AnonymousLabel]
		if len(used[v.Name]) > 0 || !anonymous && !p.allVolumes() || !p.o.Filter.labels(v.Labels) {
			continue
		}
		size, err := p.e.volumes.Size(v.Name)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		if err := p.e.RemoveVolume(ctx, v.Name, false); fault.Is(err, fault.Conflict) || fault.Is(err, fault.NotFound) {
			continue
		} else if err != nil {
			return err
		}
		p.done.Volumes = append(p.done.Volumes, v.Name)
		p.done.Reclaimed += size
	}
	return nil
}

// allVolumes: -a of system prune speaks of images, that of volume prune of volumes.
func (p *pruning) allVolumes() bool { return p.o.All && !p.o.Images }

// images removes dangling images and carried ones that no container uses (they come back
// by themselves); with All every image that no container uses.
func (p *pruning) images(ctx context.Context) error {
	a, err := p.e.album()
	if err != nil {
		return err
	}
	used, err := p.e.imageUsers()
	if err != nil {
		return err
	}
	grace, err := p.e.grace()
	if err != nil {
		return err
	}
	for _, r := range a.images {
		if time.Since(r.Known) < grace {
			continue // perhaps just pulled or built, and about to be named
		}
		names := a.names[r.ID]
		dangling := len(repoTags(names)) == 0
		if len(used[r.ID]) > 0 || !p.old(r.Created) || !p.o.Filter.labels(r.Labels) ||
			!dangling && !p.o.All && !isCarried(references(names)) {
			continue
		}
		gone, err := p.e.remove(r, removal{untag: references(names), delete: true})
		p.done.Images = append(p.done.Images, gone...)
		p.stacks = append(p.stacks, r.Stack)
		if err != nil {
			return err
		}
	}
	return nil
}

// volumeUsers tells which containers refer to a volume.
func (e *Engine) volumeUsers() (map[string][]string, error) {
	ids, err := e.containers.List()
	if err != nil {
		return nil, err
	}
	used := map[string][]string{}
	for _, id := range ids {
		r, err := e.containers.Get(id)
		if err != nil {
			continue
		}
		for _, m := range r.Mounts {
			if m.Type == mount.TypeVolume {
				used[m.Name] = append(used[m.Name], id)
			}
		}
	}
	return used, nil
}

// awaitRemovals waits, at most settleTime, for removals that are under way: what a --rm container
// held is garbage from the moment that its exit was told.
func (e *Engine) awaitRemovals(ctx context.Context) error {
	for end := time.Now().Add(settleTime); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(settleStep) {
		busy, err := e.removing()
		if err != nil || !busy {
			return err
		}
	}
	return ctx.Err()
}

// removing reports whether a living process is deleting what is left of a container.
func (e *Engine) removing() (bool, error) {
	ids, err := e.containers.Retired()
	if err != nil {
		return false, err
	}
	for _, id := range ids {
		lock, err := e.containers.LockRetired(id)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return false, err
		}
		if lock == nil {
			return true, nil
		}
		lock.Close() // its remover is dead; ReapAll cleans up
	}
	return false, nil
}
