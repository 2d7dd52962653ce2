package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"keg/internal/image"
	"keg/internal/layer"
	"keg/internal/snapshot"
)

// Analysis tells why an image is as heavy as it is. Sizes are bytes of file contents, hard links once.
type Analysis struct {
	ID       digest.Digest `json:"id"`
	Name     string        `json:"name,omitempty"`
	Platform string        `json:"platform"`
	// Size is the sum of the layers, Visible what of it a container sees.
	Size    int64           `json:"size"`
	Visible int64           `json:"visible"`
	Files   int             `json:"files"` // that a container sees
	Layers  []AnalyzedLayer `json:"layers"`
	// Hidden are files that a later layer replaces or removes, the largest first.
	Hidden     []HiddenFile    `json:"hidden"`
	Duplicates []Duplicate     `json:"duplicates"`
	Caches     []CacheLeft     `json:"caches"`
	Largest    []AnalyzedFile  `json:"largest"`
	Base       *BaseComparison `json:"base,omitempty"`
}

// AnalyzedLayer is one layer with the line of the Dockerfile that made it.
type AnalyzedLayer struct {
	Layer    int           `json:"layer"` // from 1, the base's first
	DiffID   digest.Digest `json:"diffID"`
	Line     string        `json:"line"` // as history has it
	Size     int64         `json:"size"`
	Files    int           `json:"files"`
	Replaced Bulk          `json:"replaced"` // of its files, by later layers
	Removed  Bulk          `json:"removed"`
}

// Bulk is a number of files and their bytes.
type Bulk struct {
	Files int   `json:"files"`
	Size  int64 `json:"size"`
}

func (b *Bulk) add(size int64) { b.Files, b.Size = b.Files+1, b.Size+size }

// AnalyzedFile is a file that a container sees, and the layer that it comes from.
type AnalyzedFile struct {
	Path  string `json:"path"`
	Size  int64  `json:"size"`
	Layer int    `json:"layer"`
}

// HiddenFile is one that is in the image and that no container sees.
type HiddenFile struct {
	AnalyzedFile
	By  int    `json:"by"`  // the later layer
	How string `json:"how"` // "replaced" or "removed"
}

// Duplicate is a content that several files have; Wasted is what all but one take.
type Duplicate struct {
	Size   int64    `json:"size"` // of one
	Wasted int64    `json:"wasted"`
	Paths  []string `json:"paths"`
}

// shownOf is how many files a list of an analysis has at most.
const shownOf = 10

// Analyze reads the layers of an image as they lie on the disk.
func (e *Engine) Analyze(ctx context.Context, ref string) (*Analysis, error) {
	f, err := e.lookup(ctx, ref)
	if err != nil {
		return nil, err
	}
	c, err := e.config(f.ID)
	if err != nil {
		return nil, err
	}
	a, err := e.album()
	if err != nil {
		return nil, err
	}
	lease, err := e.snapshots.Lease(ctx, f.Stack)
	if err != nil {
		return nil, err
	}
	defer lease.Release()
	trees, err := e.layerFiles(ctx, f.Stack)
	if err != nil {
		return nil, err
	}
	defer trees.close()
	m := merge(trees.files, linesOf(c, len(f.Stack)), f.Stack)
	r := m.report()
	r.ID, r.Platform = f.ID, image.FormatPlatform(f.Platform)
	if tags := repoTags(a.names[f.ID]); len(tags) > 0 {
		r.Name = tags[0]
	}
	visible := m.visible()
	r.Caches = cachesLeft(visible)
	if r.Duplicates, err = trees.duplicates(ctx, visible); err != nil {
		return nil, err
	}
	if r.Base, err = e.compareBase(f, a, trees, visible); err != nil {
		return nil, err
	}
	return r, nil
}

// linesOf are the lines of a Dockerfile that made a layer each, as far as the image tells.
func linesOf(c *image.Config, layers int) []string {
	lines := make([]string, layers)
	n := 0
	for _, h := range c.History {
		if !h.EmptyLayer && n < layers {
			lines[n] = strings.TrimSpace(h.CreatedBy)
			n++
		}
	}
	return lines
}

// layerFile is an entry of a layer's tree.
type layerFile struct {
	path     string
	size     int64
	ino      uint64
	links    uint64
	dir      bool
	opaque   bool // a directory that hides what is below
	whiteout bool
	regular  bool
}

// layerTrees are the layers of an image, open, and what is in them.
type layerTrees struct {
	roots []*os.File
	files [][]layerFile
}

func (t *layerTrees) close() {
	for _, r := range t.roots {
		if r != nil {
			r.Close()
		}
	}
}

func (e *Engine) layerFiles(ctx context.Context, stack []digest.Digest) (t *layerTrees, err error) {
	t = &layerTrees{make([]*os.File, len(stack)), make([][]layerFile, len(stack))}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i := range stack {
		if t.roots[i], err = e.snapshots.Open(stack[:i+1]); err != nil {
			return nil, errors.Join(err, g.Wait())
		}
		g.Go(func() (err error) {
			t.files[i], err = listLayer(ctx, t.roots[i], e.snapshots)
			return err
		})
	}
	return t, g.Wait()
}

func listLayer(ctx context.Context, root *os.File, s *snapshot.Store) (list []layerFile, err error) {
	err = layer.Walk(root, func(x layer.Entry) (bool, error) {
		f := layerFile{path: x.Path, size: x.Stat.Size, ino: x.Stat.Ino, links: uint64(x.Stat.Nlink),
			dir: x.IsDir(), whiteout: x.Whiteout(), regular: x.Stat.Mode&unix.S_IFMT == unix.S_IFREG}
		if f.dir {
			v, _ := x.Xattr(s.Opaque())
			f.opaque = v == "y"
		}
		list = append(list, f)
		return true, ctx.Err()
	})
	return list, err
}

// node is a name in the tree that a container sees.
type node struct {
	below map[string]*node // nil: no directory
	layerFile
	layer int
}

// merged is the tree after all layers, and what got lost on the way.
type merged struct {
	root   *node
	layers []AnalyzedLayer
	hidden []HiddenFile
}

// merge lays the layers over one another as overlayfs does.
func merge(layers [][]layerFile, lines []string, stack []digest.Digest) *merged {
	m := &merged{root: &node{below: map[string]*node{}}}
	for n, files := range layers {
		m.layers = append(m.layers, AnalyzedLayer{Layer: n + 1, DiffID: stack[n], Line: lines[n]})
		counted := map[uint64]bool{}
		for _, f := range files {
			if !f.dir && !f.whiteout {
				if f.links > 1 && counted[f.ino] {
					f.size = 0
				}
				counted[f.ino] = true
				m.layers[n].Files++
				m.layers[n].Size += f.size
			}
			m.lay(f, n)
		}
	}
	return m
}

// lay puts one entry of layer n (from 0) in its place.
func (m *merged) lay(f layerFile, n int) {
	dir, base := m.root, f.path
	if i := strings.LastIndexByte(f.path, '/'); i >= 0 {
		dir, base = m.at(f.path[:i]), f.path[i+1:]
	}
	old := dir.below[base]
	switch {
	case f.whiteout:
		m.lose(old, n, "removed")
		delete(dir.below, base)
		return
	case f.dir && old != nil && old.below != nil:
		if f.opaque {
			for name, p := range old.below {
				m.lose(p, n, "removed")
				delete(old.below, name)
			}
		}
		return
	}
	how := "replaced"
	if f.dir || old != nil && old.below != nil {
		how = "removed" // nothing of the kind is there any more
	}
	m.lose(old, n, how)
	p := &node{layerFile: f, layer: n}
	if f.dir {
		p.below = map[string]*node{}
	}
	dir.below[base] = p
}

// at finds a directory, which an earlier entry of the same layer has made.
func (m *merged) at(p string) *node {
	d := m.root
	for part := range strings.SplitSeq(p, "/") {
		next := d.below[part]
		if next == nil || next.below == nil {
			next = &node{below: map[string]*node{}}
			d.below[part] = next
		}
		d = next
	}
	return d
}

// lose counts what stood in a place as hidden by layer n.
func (m *merged) lose(p *node, n int, how string) {
	if p == nil {
		return
	}
	for _, b := range p.below {
		m.lose(b, n, "removed")
	}
	if p.below != nil {
		return
	}
	l := &m.layers[p.layer]
	if how == "replaced" {
		l.Replaced.add(p.size)
	} else {
		l.Removed.add(p.size)
	}
	if p.size > 0 {
		m.hidden = append(m.hidden, HiddenFile{AnalyzedFile{"/" + p.path, p.size, p.layer + 1}, n + 1, how})
	}
}

// visible are the files that a container sees, sorted by path.
func (m *merged) visible() (list []*node) {
	var walk func(*node)
	walk = func(d *node) {
		for _, p := range d.below {
			if p.below != nil {
				walk(p)
			} else {
				list = append(list, p)
			}
		}
	}
	walk(m.root)
	slices.SortFunc(list, func(x, y *node) int { return strings.Compare(x.path, y.path) })
	return list
}

func (m *merged) report() *Analysis {
	r := &Analysis{Layers: m.layers, Hidden: m.hidden, Largest: []AnalyzedFile{}}
	for _, l := range m.layers {
		r.Size += l.Size
	}
	for _, p := range m.visible() {
		r.Visible += p.size
		r.Files++
		if p.size > 0 {
			r.Largest = append(r.Largest, AnalyzedFile{"/" + p.path, p.size, p.layer + 1})
		}
	}
	slices.SortStableFunc(r.Largest, func(x, y AnalyzedFile) int { return cmp.Compare(y.Size, x.Size) })
	slices.SortFunc(r.Hidden, func(x, y HiddenFile) int {
		return cmp.Or(cmp.Compare(y.Size, x.Size), strings.Compare(x.Path, y.Path))
	})
	r.Largest = r.Largest[:min(shownOf, len(r.Largest))]
	r.Hidden = r.Hidden[:min(shownOf, len(r.Hidden))]
	if r.Hidden == nil {
		r.Hidden = []HiddenFile{}
	}
	return r
}

// open opens a visible file for reading, below its layer's root; no link is followed.
func (t *layerTrees) open(p *node) (*os.File, error) {
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(int(t.roots[p.layer].Fd()), p.path, &how)
	if err != nil {
		return nil, fmt.Errorf("open /%s of layer %d: %w", p.path, p.layer+1, err)
	}
	return os.NewFile(uintptr(fd), p.path), nil
}
