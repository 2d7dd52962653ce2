package engine

import (
	"context"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
)

// Usage is one row of docker system df.
type Usage struct {
	Type              string // Images, Containers, Local Volumes, Build Cache
	Total, Active     int
	Size, Reclaimable int64
}

// DiskUsage counts every layer and blob once, wherever it is used.
func (e *Engine) DiskUsage(ctx context.Context) ([]Usage, error) {
	a, err := e.album()
	if err != nil {
		return nil, err
	}
	list, err := e.all(ctx)
	if err != nil {
		return nil, err
	}
	images, err := e.imagesUsage(a, list)
	if err != nil {
		return nil, err
	}
	containers, err := e.containersUsage(list)
	if err != nil {
		return nil, err
	}
	volumes, err := e.volumesUsage()
	if err != nil {
		return nil, err
	}
	cache, err := e.cacheUsage()
	return []Usage{images, containers, volumes, cache}, err
}

// imagesUsage sums layers and blobs; reclaimable is what only unused images hold.
func (e *Engine) imagesUsage(a *album, list []one) (Usage, error) {
	u := Usage{Type: "Images", Total: len(a.images)}
	used := map[digest.Digest]bool{}
	for _, c := range list {
		used[c.ImageID] = true
	}
	counted, held := map[digest.Digest]bool{}, map[digest.Digest]bool{}
	for _, active := range []bool{true, false} {
		for _, r := range a.images {
			if used[r.ID] != active {
				continue
			}
			n, err := e.ownBytes(r, counted, held)
			if err != nil {
				return u, err
			}
			u.Size += n
			if active {
				u.Active++
			} else {
				u.Reclaimable += n
			}
		}
	}
	return u, nil
}

// ownBytes is the size of the layers and blobs of an image that were not counted yet.
func (e *Engine) ownBytes(r *imageRecord, layers, blobs map[digest.Digest]bool) (sum int64, err error) {
	for i, chain := range image.ChainIDs(r.Stack) {
		if layers[chain] {
			continue
		}
		layers[chain] = true
		_, files, err := e.snapshots.LayerSize(r.Stack[:i+1])
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return 0, err
		}
		sum += files
	}
	marks := map[digest.Digest]bool{}
	for _, d := range r.Manifests {
		e.mark(marks, d, 0)
	}
	for d := range marks {
		if blobs[d] {
			continue
		}
		blobs[d] = true
		if n, err := e.store.Stat(d); err == nil {
			sum += n
		}
	}
	return sum, nil
}

func (e *Engine) containersUsage(list []one) (Usage, error) {
	u := Usage{Type: "Containers", Total: len(list)}
	for _, c := range list {
		n, err := e.snapshots.Usage(c.ID)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return u, err
		}
		u.Size += n
		if isLive(c.st.Status) {
			u.Active++
		} else {
			u.Reclaimable += n
		}
	}
	return u, nil
}

func (e *Engine) volumesUsage() (Usage, error) {
	u := Usage{Type: "Local Volumes"}
	vols, err := e.volumes.List()
	if err != nil {
		return u, err
	}
	used, err := e.volumeUsers()
	if err != nil {
		return u, err
	}
	for _, v := range vols {
		n, err := e.volumes.Size(v.Name)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return u, err
		}
		u.Total++
		u.Size += n
		if len(used[v.Name]) > 0 {
			u.Active++
		} else {
			u.Reclaimable += n
		}
	}
	return u, nil
}
