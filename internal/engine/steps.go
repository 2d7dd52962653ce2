package engine

import (
	"context"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/builder"
)

// step is one entry of the build cache, as gc and prune see it.
type step struct {
	key   string
	stack []digest.Digest // of its result
	used  time.Time
}

// stepsDir is the build cache; its files are the builder's.
func (e *Engine) stepsDir() string { return filepath.Join(e.opt.Root, "steps") }

func (e *Engine) steps() ([]step, error) {
	rs, err := builder.Records(e.stepsDir())
	if err != nil {
		return nil, err
	}
	steps := make([]step, len(rs))
	for i, r := range rs {
		steps[i] = step{r.Key, r.Layers(), r.Used}
	}
	return steps, nil
}

// sweepBuilds removes what killed builds left.
func (e *Engine) sweepBuilds(ctx context.Context) error {
	return builder.Sweep(ctx, builder.Deps{Snapshots: e.snapshots, Steps: e.stepsDir(), Run: e.opt.Run})
}
