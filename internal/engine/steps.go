package engine

import (
	"path/filepath"

	"keg/internal/builder"
)

// stepsDir is the build cache.
func (e *Engine) stepsDir() string { return filepath.Join(e.opt.Root, "steps") }

func (e *Engine) steps() ([]builder.CacheEntry, error) { return builder.Cache(e.stepsDir()) }
