// Steps that another machine did: --cache-from.
package builder

import (
	"context"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"keg/internal/layer"
)

// bring takes a step's layer from another machine's cache; nil when none has it. A cache that fails costs the
// step, not the build: it says so and the step is done here.
func (s *solver) bring(ctx context.Context, step *step, key string, below []digest.Digest, v *vertex) *Record {
	if step.noCache {
		return nil
	}
	for _, from := range s.elsewhere {
		rec, open := from.Step(key)
		if rec == nil {
			continue
		}
		rec, err := s.take(ctx, rec, open, below, v)
		if err == nil {
			return rec
		}
		v.status(fmt.Sprintf("the imported cache could not be used: %v", err))
	}
	return nil
}

func (s *solver) take(ctx context.Context, theirs *Record, open func(context.Context) (io.ReadCloser, error), below []digest.Digest, v *vertex) (*Record, error) {
	rec := *theirs
	rec.Stack = below
	stack := rec.Layers()
	if err := s.keep(ctx, stack); err != nil {
		return nil, err
	}
	if s.snaps.Has(stack) == len(stack) {
		return &rec, nil
	}
	v.status("importing layer " + rec.Layer.String())
	in, err := open(ctx)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	tar, err := layer.Inflate(in)
	if err != nil {
		return nil, err
	}
	defer tar.Close()
	u, err := s.snaps.UnpackRecorded(ctx, tar, rec.Layer) // the digest is checked: a layer cannot be another one
	if err != nil {
		return nil, err
	}
	defer u.Discard()
	rec.Size = u.Size()
	return &rec, u.Place(ctx, below)
}

// allSteps are the records of all steps that were done or found, once each.
func (s *solver) allSteps() (all []*Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.keys {
		all = append(all, r.record...)
	}
	return all
}
