package engine

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"keg/internal/builder"
)

// The build cache is bounded without anybody's care: after a build that made something
// what was used least recently goes, until the quota holds.

const (
	quotaShare = 10      // one part of so many of the file system
	quotaLeast = 2 << 30 // and no less than this
	quotaEvery = time.Minute
)

// quota is the number of bytes that the build cache may keep.
func (e *Engine) quota() (int64, error) {
	if e.opt.BuildQuota > 0 {
		return e.opt.BuildQuota, nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(e.opt.Root, &st); err != nil {
		return 0, err
	}
	return max(quotaLeast, int64(st.Blocks)*st.Bsize/quotaShare), nil
}

// boundCache enforces the quota. A default one is looked at once a minute: sizing the cache
// must not slow down those who build all the time.
func (e *Engine) boundCache(ctx context.Context) error {
	every := quotaEvery
	if e.opt.BuildQuota > 0 {
		every = 0
	}
	if due, err := builder.Due(e.stepsDir(), every); err != nil || !due {
		return err
	}
	quota, err := e.quota()
	if err != nil {
		return err
	}
	p := pruning{e: e, o: PruneOptions{BuildCache: true, MaxUsed: quota}}
	if err := p.buildCache(); err != nil {
		return err
	}
	if len(p.done.BuildCache) > 0 {
		_, err = e.collect(ctx)
	}
	return err
}
