package engine

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"keg/internal/builder"
	"keg/internal/image"
)

// CacheEntry is one row of docker builder du.
type CacheEntry struct {
	ID, Kind, Description string
	Size                  int64 // bytes that only the build cache holds
	Created, Used         time.Time
	Shared                bool   // its layer belongs to an image, too
	Reason                string // why it is here, or why it goes
}

// cached is an entry with what it stands on.
type cached struct {
	builder.Item
	chains []digest.Digest // of a step: its layers, bottom first
	shared bool
}

// BuildCache lists what the build cache keeps, last used first.
func (e *Engine) BuildCache(ctx context.Context, f Filter) ([]CacheEntry, error) {
	o := PruneOptions{BuildCache: true, Filter: f}
	if err := o.checkFilter(); err != nil {
		return nil, err
	}
	until, err := f.until(time.Now())
	if err != nil {
		return nil, err
	}
	c, err := e.openCache()
	if err != nil {
		return nil, err
	}
	rows := []CacheEntry{}
	for _, it := range c.list {
		row := c.entry(it, "last used "+since(it.Used))
		if it.shared {
			row.Reason = "a layer of an image, " + row.Reason
		}
		if f.entry(&row) && (until.IsZero() || it.Used.Before(until)) {
			rows = append(rows, row)
		}
	}
	slices.SortStableFunc(rows, func(a, b CacheEntry) int { return b.Used.Compare(a.Used) })
	return rows, nil
}

// cacheFilters are those of docker buildx prune and du.
var cacheFilters = []string{"unused-for", "id", "type", "description", "shared", "private", "mutable", "immutable", "inuse"}

// Type is the kind of an entry in BuildKit's words.
func (x *CacheEntry) Type() string {
	switch x.Kind {
	case builder.ItemStep:
		return "regular"
	case builder.ItemMount:
		return "exec.cachemount"
	case builder.ItemContext:
		return "source.local"
	}
	return "internal"
}

// entry tells whether an entry of the build cache is meant. A flag of BuildKit's, such as shared, may stand without a value.
func (f Filter) entry(x *CacheEntry) bool {
	flag := func(key string, is bool) bool {
		return !slices.ContainsFunc(f[key], func(v string) bool { return (v == "" || v == "true" || v == "1") != is })
	}
	return f.prefix("id", x.ID) && (f.exact("type", x.Type()) || f.exact("type", x.Kind)) &&
		(len(f["description"]) == 0 || slices.ContainsFunc(f["description"], func(d string) bool { return strings.Contains(x.Description, d) })) &&
		flag("shared", x.Shared) && flag("private", !x.Shared) && flag("inuse", false) &&
		flag("mutable", x.Kind == builder.ItemMount) && flag("immutable", x.Kind != builder.ItemMount)
}

func since(t time.Time) string { return units.HumanDuration(time.Since(t)) + " ago" }

// cacheView is the cache at one moment: its entries and who holds which layer.
type cacheView struct {
	list    []cached
	own     map[digest.Digest]int64 // bytes of the layers that no image has, by chain id
	holders map[digest.Digest]int   // how many steps stand on them
}

func (e *Engine) openCache() (*cacheView, error) {
	items, err := builder.Items(e.stepsDir())
	if err != nil {
		return nil, err
	}
	a, err := e.album()
	if err != nil {
		return nil, err
	}
	images := map[digest.Digest]bool{}
	for _, r := range a.images {
		for _, chain := range image.ChainIDs(r.Stack) {
			images[chain] = true
		}
	}
	c := &cacheView{own: map[digest.Digest]int64{}, holders: map[digest.Digest]int{}}
	for _, it := range items {
		n := cached{Item: it}
		if it.Step != nil {
			stack := it.Step.Layers()
			n.chains = image.ChainIDs(stack)
			n.shared = images[n.chains[len(n.chains)-1]]
			for i, chain := range n.chains {
				if images[chain] {
					continue
				}
				c.holders[chain]++
				if _, known := c.own[chain]; known {
					continue
				}
				if _, files, err := e.snapshots.LayerSize(stack[:i+1]); err == nil {
					c.own[chain] = files
				}
			}
		}
		c.list = append(c.list, n)
	}
	return c, nil
}

// entry shows the step's own layer as its size: the ones below are those of other rows.
func (c *cacheView) entry(it cached, reason string) CacheEntry {
	size := it.Size
	if n := len(it.chains); n > 0 {
		size += c.own[it.chains[n-1]]
	}
	return CacheEntry{ID: it.ID, Kind: it.Kind, Description: it.Description, Size: size, Created: it.Created,
		Used: it.Used, Shared: it.shared, Reason: reason}
}

// total is what goes when all of the cache goes.
func (c *cacheView) total() (sum int64) {
	for _, n := range c.own {
		sum += n
	}
	for _, it := range c.list {
		sum += it.Size
	}
	return sum
}

// drop takes an entry out and returns the bytes that this sets free.
func (c *cacheView) drop(it cached) int64 {
	freed := it.Size
	for _, chain := range it.chains {
		if c.holders[chain]--; c.holders[chain] == 0 {
			freed += c.own[chain]
		}
	}
	return freed
}

// choose picks what goes: what rule names, and with a quota the least recently used until
// the rest fits. Of steps used at the same time the upper ones go first.
func (c *cacheView) choose(quota int64, spare time.Duration, rule func(cached) string) (going []cached, rows []CacheEntry, freed int64) {
	list := slices.Clone(c.list)
	slices.SortStableFunc(list, func(a, b cached) int {
		return cmp.Or(a.Used.Compare(b.Used), cmp.Compare(len(b.chains), len(a.chains)))
	})
	left := c.total()
	now := time.Now()
	for _, it := range list {
		reason := rule(it)
		if quota > 0 && reason != "" {
			reason = ""
			if left > quota {
				reason = "the least recently used, to keep the quota of " + units.HumanSize(float64(quota)) + ": last used " + since(it.Used)
			}
		}
		if reason == "" || now.Sub(it.Used) < spare {
			continue
		}
		rows = append(rows, c.entry(it, reason))
		n := c.drop(it)
		going, freed, left = append(going, it), freed+n, left-n
	}
	return going, rows, freed
}

// buildCache drops what only the cache holds (with All: everything). While a build is
// under way what it may rely on stays.
func (p *pruning) buildCache() error {
	grace, err := p.e.grace()
	if err != nil {
		return err
	}
	c, err := p.e.openCache()
	if err != nil {
		return err
	}
	quota, err := p.quota(c.total())
	if err != nil {
		return err
	}
	going, rows, _ := c.choose(quota, grace, func(it cached) string {
		switch {
		case !p.old(it.Used), len(p.o.Filter["label"]) > 0:
			return ""
		case !p.o.Filter.entry(c.plain(it)):
			return ""
		case it.shared && !p.o.All:
			return ""
		case it.Kind == builder.ItemMount && grace > 0:
			return "" // a step may be using it, whatever its age
		}
		return "last used " + since(it.Used)
	})
	p.done.CacheEntries = rows
	for _, it := range going {
		p.done.BuildCache = append(p.done.BuildCache, it.ID)
		p.done.Reclaimed += it.Size // the layers are counted when they are swept
		if err := builder.Drop(p.e.stepsDir(), it.Item); err != nil {
			return err
		}
	}
	return nil
}

// plain is an entry without its reason, for filters.
func (c *cacheView) plain(it cached) *CacheEntry {
	x := c.entry(it, "")
	return &x
}

// quota is what the cache may keep of total; 0: there is no such bound. What is reserved is kept even when the disk
// has less than is to be free.
func (p *pruning) quota(total int64) (int64, error) {
	o := p.o
	if o.MaxUsed <= 0 && o.MinFree <= 0 && o.Reserved <= 0 {
		return 0, nil
	}
	keep := total
	if o.MaxUsed > 0 {
		keep = min(keep, o.MaxUsed)
	} else if o.MinFree <= 0 {
		keep = min(keep, o.Reserved)
	}
	if o.MinFree > 0 {
		var st unix.Statfs_t
		if err := unix.Statfs(p.e.opt.Root, &st); err != nil {
			return 0, err
		}
		if missing := o.MinFree - int64(st.Bavail)*st.Bsize; missing > 0 {
			keep = min(keep, total-missing)
		}
	}
	return max(keep, o.Reserved, 1), nil
}

// cacheUsage is what the build cache holds beside the images.
func (e *Engine) cacheUsage() (Usage, error) {
	u := Usage{Type: "Build Cache"}
	c, err := e.openCache()
	if err != nil {
		return u, err
	}
	u.Total = len(c.list)
	for _, it := range c.list {
		if it.shared {
			u.Active++
		}
	}
	u.Size = c.total()
	u.Reclaimable = u.Size
	return u, nil
}
