package engine

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"time"

	"github.com/moby/moby/api/types/container"
	dimage "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/volume"
	"github.com/opencontainers/go-digest"

	"keg/internal/builder"
	"keg/internal/fault"
	"keg/internal/image"
)

// DiskDetail is docker system df -v: every object with what it takes.
type DiskDetail struct {
	Images     []dimage.Summary
	Containers []container.Summary
	Volumes    []volume.Volume // with UsageData
	BuildCache []CacheUse
}

// CacheUse is one step of the build cache.
type CacheUse struct {
	ID, Type, Text string // Type "regular" or "internal"
	Size           int64  // of the layer that it made
	Created, Used  time.Time
	Uses           int
	InUse, Shared  bool // an image holds the layer too
}

// DiskDetail measures everything. A layer's bytes are shared when two images have it.
func (e *Engine) DiskDetail(ctx context.Context) (d DiskDetail, err error) {
	if d.Images, err = e.Images(ctx, ImageListOptions{All: true}); err != nil {
		return d, err
	}
	a, err := e.album()
	if err != nil {
		return d, err
	}
	shared := e.sharedSizes(a)
	for i := range d.Images {
		d.Images[i].SharedSize = shared[digest.Digest(d.Images[i].ID)]
	}
	if d.Containers, err = e.Containers(ctx, ListOptions{All: true, Size: true}); err != nil {
		return d, err
	}
	if d.Volumes, err = e.volumesWithUse(); err != nil {
		return d, err
	}
	d.BuildCache, err = e.cacheDetail(a)
	return d, err
}

// sharedSizes are the bytes of each image's layers that another image has, too.
func (e *Engine) sharedSizes(a *album) map[digest.Digest]int64 {
	holders := map[digest.Digest]int{}
	for _, r := range a.images {
		for _, chain := range image.ChainIDs(r.Stack) {
			holders[chain]++
		}
	}
	sums := map[digest.Digest]int64{}
	for _, r := range a.images {
		for i, chain := range image.ChainIDs(r.Stack) {
			if holders[chain] < 2 {
				continue
			}
			if _, files, err := e.snapshots.LayerSize(r.Stack[:i+1]); err == nil {
				sums[r.ID] += files
			}
		}
	}
	return sums
}

func (e *Engine) volumesWithUse() ([]volume.Volume, error) {
	vols, err := e.volumes.List()
	if err != nil {
		return nil, err
	}
	used, err := e.volumeUsers()
	if err != nil {
		return nil, err
	}
	out := []volume.Volume{}
	for _, v := range vols {
		n, err := e.volumes.Size(v.Name)
		if fault.Is(err, fault.NotFound) || errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		v.UsageData = &volume.UsageData{RefCount: int64(len(used[v.Name])), Size: n}
		out = append(out, v)
	}
	return out, nil
}

// cacheDetail lists the steps of builds, the last used first.
func (e *Engine) cacheDetail(a *album) ([]CacheUse, error) {
	rs, err := builder.Records(e.stepsDir())
	if err != nil {
		return nil, err
	}
	held := map[digest.Digest]bool{}
	for _, r := range a.images {
		for _, chain := range image.ChainIDs(r.Stack) {
			held[chain] = true
		}
	}
	out := []CacheUse{}
	for _, r := range rs {
		s := step{r.Key, r.Layers(), r.Used}
		c := CacheUse{ID: r.Key, Type: "regular", Text: r.Step, Created: r.Created, Used: r.Used, Uses: holding(s, a.images)}
		c.InUse = c.Uses > 0
		if n := len(s.stack); n > 0 {
			if _, files, err := e.snapshots.LayerSize(s.stack); err == nil {
				c.Size = files
			}
			c.Shared = held[image.ChainIDs(s.stack)[n-1]]
		}
		out = append(out, c)
	}
	slices.SortStableFunc(out, func(x, y CacheUse) int { return y.Used.Compare(x.Used) })
	return out, nil
}

// holding counts the images that were built through a step.
func holding(s step, images []*imageRecord) (n int) {
	for _, r := range images {
		if len(r.Stack) >= len(s.stack) && slices.Equal(r.Stack[:len(s.stack)], s.stack) {
			n++
		}
	}
	return n
}
