package engine

import (
	"context"
	"slices"

	"github.com/moby/moby/api/types/volume"

	"keg/internal/fault"
	vol "keg/internal/volume"
)

// CreateVolume makes a volume or returns the one of that name.
func (e *Engine) CreateVolume(ctx context.Context, o vol.CreateOptions) (volume.Volume, error) {
	_, err := e.volumes.Get(o.Name)
	isNew := o.Name == "" || fault.Is(err, fault.NotFound)
	v, err := e.volumes.Create(ctx, o)
	if err == nil && isNew {
		e.volumeEvent("create", v.Name, v.Driver)
	}
	return v, err
}

// Volumes lists by name.
func (e *Engine) Volumes(ctx context.Context, f Filter) ([]volume.Volume, error) {
	if err := f.only("dangling", "driver", "label", "label!", "name"); err != nil {
		return nil, err
	}
	dangling, danglingSet, err := f.boolean("dangling")
	if err != nil {
		return nil, err
	}
	all, err := e.volumes.List()
	if err != nil {
		return nil, err
	}
	used, err := e.volumeUsers()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(v volume.Volume) bool {
		return danglingSet && dangling != (len(used[v.Name]) == 0) ||
			!f.exact("driver", v.Driver) || !f.labels(v.Labels) || !f.matches("name", v.Name)
	}), nil
}

// InspectVolume returns one record.
func (e *Engine) InspectVolume(ctx context.Context, name string) (volume.Volume, error) {
	return e.volumes.Get(name)
}

// RemoveVolume deletes a volume that no container refers to; force forgives one that does
// not exist.
func (e *Engine) RemoveVolume(ctx context.Context, name string, force bool) error {
	v, err := e.volumes.Get(name)
	if force && fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	used, err := e.volumeUsers()
	if err != nil {
		return err
	}
	if ids := used[v.Name]; len(ids) > 0 {
		return fault.Conflictf("remove %s: volume is in use - %v", v.Name, ids)
	}
	if err := e.volumes.Remove(ctx, v.Name); err != nil {
		return err
	}
	e.volumeEvent("destroy", v.Name, v.Driver)
	return nil
}
