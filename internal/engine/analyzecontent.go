package engine

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"keg/internal/image"
)

// CacheLeft is what a tool kept for the next time, in an image in which there is none.
type CacheLeft struct {
	Tool   string `json:"tool"`
	Path   string `json:"path"`
	Files  int    `json:"files"`
	Size   int64  `json:"size"`
	Layers []int  `json:"layers"`
	Advice string `json:"advice"`
}

// cacheDirs are directories of caches; "*" stands for one name.
var cacheDirs = []struct{ tool, dir, advice string }{
	{"apt", "var/lib/apt/lists", "end the RUN with rm -rf /var/lib/apt/lists/*, or mount a cache there"},
	{"apt", "var/cache/apt", "end the RUN with apt-get clean, or mount a cache there"},
	{"apk", "var/cache/apk", "use apk add --no-cache"},
	{"dnf", "var/cache/dnf", "end the RUN with dnf clean all"},
	{"dnf", "var/cache/libdnf5", "end the RUN with dnf clean all"},
	{"yum", "var/cache/yum", "end the RUN with yum clean all"},
	{"zypper", "var/cache/zypp", "end the RUN with zypper clean --all"},
	{"pacman", "var/cache/pacman/pkg", "end the RUN with pacman -Scc --noconfirm"},
	{"pip", "root/.cache/pip", "use pip install --no-cache-dir, or mount a cache there"},
	{"pip", "home/*/.cache/pip", "use pip install --no-cache-dir, or mount a cache there"},
	{"uv", "root/.cache/uv", "use uv --no-cache, or mount a cache there"},
	{"npm", "root/.npm", "end the RUN with npm cache clean --force, or mount a cache there"},
	{"npm", "home/*/.npm", "end the RUN with npm cache clean --force, or mount a cache there"},
	{"yarn", "usr/local/share/.cache/yarn", "end the RUN with yarn cache clean"},
	{"yarn", "root/.cache/yarn", "end the RUN with yarn cache clean"},
	{"pnpm", "root/.local/share/pnpm/store", "mount a cache there"},
	{"go", "root/.cache/go-build", "build in a stage of its own, or mount a cache there"},
	{"go", "root/go/pkg/mod", "build in a stage of its own, or mount a cache there"},
	{"go", "go/pkg/mod", "build in a stage of its own, or mount a cache there"},
	{"cargo", "root/.cargo/registry", "build in a stage of its own, or mount a cache there"},
	{"cargo", "usr/local/cargo/registry", "build in a stage of its own, or mount a cache there"},
	{"maven", "root/.m2/repository", "build in a stage of its own, or mount a cache there"},
	{"gradle", "root/.gradle/caches", "build in a stage of its own, or mount a cache there"},
	{"composer", "root/.composer/cache", "end the RUN with composer clear-cache"},
	{"gem", "usr/local/bundle/cache", "end the RUN with rm -rf /usr/local/bundle/cache"},
}

// cachesLeft finds them among the visible files, which are sorted by path; the largest first.
func cachesLeft(visible []*node) []CacheLeft {
	found := map[string]*CacheLeft{}
	for _, p := range visible {
		if p.size == 0 {
			continue
		}
		for _, c := range cacheDirs {
			dir, ok := below(c.dir, p.path)
			if !ok {
				continue
			}
			l := found[dir]
			if l == nil {
				l = &CacheLeft{Tool: c.tool, Path: "/" + dir, Advice: c.advice}
				found[dir] = l
			}
			l.Files, l.Size = l.Files+1, l.Size+p.size
			if !slices.Contains(l.Layers, p.layer+1) {
				l.Layers = append(l.Layers, p.layer+1)
				slices.Sort(l.Layers)
			}
			break
		}
	}
	list := []CacheLeft{}
	for _, l := range found {
		list = append(list, *l)
	}
	slices.SortFunc(list, func(x, y CacheLeft) int { return cmp.Or(cmp.Compare(y.Size, x.Size), strings.Compare(x.Path, y.Path)) })
	return list
}

// below tells which directory that fits the pattern holds p.
func below(pattern, p string) (dir string, ok bool) {
	depth := strings.Count(pattern, "/") + 1
	end := 0
	for range depth {
		i := strings.IndexByte(p[end:], '/')
		if i < 0 {
			return "", false
		}
		end += i + 1
	}
	dir = p[:end-1]
	if dir == pattern {
		return dir, true
	}
	ok, _ = path.Match(pattern, dir)
	return dir, ok
}

// smallest is the size from which on a file is worth a comparison.
const smallest = 4096

// duplicates finds visible files of one content, those that waste most first. Only files of the same
// size are read, and of these only the first bytes unless those are equal, too.
func (t *layerTrees) duplicates(ctx context.Context, visible []*node) ([]Duplicate, error) {
	bySize := map[int64][]*node{}
	for _, p := range visible {
		if p.regular && p.size >= smallest {
			bySize[p.size] = append(bySize[p.size], p)
		}
	}
	var groups [][]*node
	for _, g := range bySize {
		if len(g) > 1 {
			groups = append(groups, g)
		}
	}
	same := make([][][]*node, len(groups))
	w, ctx := errgroup.WithContext(ctx)
	w.SetLimit(runtime.GOMAXPROCS(0))
	for i, g := range groups {
		w.Go(func() error {
			heads, err := t.split(ctx, g, smallest)
			if err != nil {
				return err
			}
			for _, h := range heads {
				whole := [][]*node{h}
				if h[0].size > smallest {
					if whole, err = t.split(ctx, h, h[0].size); err != nil {
						return err
					}
				}
				same[i] = append(same[i], whole...)
			}
			return nil
		})
	}
	if err := w.Wait(); err != nil {
		return nil, err
	}
	list := []Duplicate{}
	for _, s := range same {
		for _, g := range s {
			d := Duplicate{Size: g[0].size, Wasted: g[0].size * int64(len(g)-1)}
			for _, p := range g {
				d.Paths = append(d.Paths, "/"+p.path)
			}
			list = append(list, d)
		}
	}
	slices.SortFunc(list, func(x, y Duplicate) int {
		return cmp.Or(cmp.Compare(y.Wasted, x.Wasted), strings.Compare(x.Paths[0], y.Paths[0]))
	})
	return list[:min(shownOf, len(list))], nil
}

// split parts files by the digest of their first n bytes and keeps what is there twice.
func (t *layerTrees) split(ctx context.Context, files []*node, n int64) ([][]*node, error) {
	type sum [sha256.Size]byte
	by := map[sum][]*node{}
	var order []sum
	for _, p := range files {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		f, err := t.open(p)
		if err != nil {
			return nil, err
		}
		h := sha256.New()
		_, err = io.Copy(h, io.LimitReader(f, n))
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		s := sum(h.Sum(nil))
		if by[s] == nil {
			order = append(order, s)
		}
		by[s] = append(by[s], p)
	}
	var twice [][]*node
	for _, s := range order {
		if len(by[s]) > 1 {
			twice = append(twice, by[s])
		}
	}
	return twice, nil
}

// BaseComparison is what a slim base would save.
type BaseComparison struct {
	// Name of the base, when an image here is the beginning of this one; Slim is one of the same
	// repository that is smaller and fit for the same.
	Name string `json:"name,omitempty"`
	Size int64  `json:"size,omitempty"`
	Slim string `json:"slim,omitempty"`
	// Saves is the difference between the two, or what Heavy adds up to.
	Saves int64 `json:"saves"`
	// Measured: against the slim image held here. Otherwise Saves is an estimate.
	Measured bool    `json:"measured"`
	Heavy    []Heavy `json:"heavy,omitempty"`
}

// Heavy is a kind of content that slim bases leave out.
type Heavy struct {
	What     string   `json:"what"`
	Size     int64    `json:"size"`
	Packages []string `json:"packages,omitempty"` // the largest first
}

// compareBase looks for the base of an image and for a slim one beside it; without one it adds up what
// slim bases do not have.
func (e *Engine) compareBase(f found, a *album, t *layerTrees, visible []*node) (*BaseComparison, error) {
	b := &BaseComparison{}
	base := a.baseOf(f.imageRecord)
	own := base // an image that is a base itself is compared as one
	if own == nil {
		own = f.imageRecord
	}
	if base != nil {
		b.Name, b.Size = repoTags(a.names[base.ID])[0], base.Size
	}
	if slim, name := slimOf(a, own); slim != nil && slim.Size < own.Size {
		b.Slim, b.Saves, b.Measured, b.Size = name, own.Size-slim.Size, true, own.Size
		return b, nil
	}
	var err error
	if b.Heavy, err = heavy(t, visible, len(own.Stack)); err != nil {
		return nil, err
	}
	for _, h := range b.Heavy {
		b.Saves += h.Size
	}
	b.Saves = min(b.Saves, own.Size) // the packages' own words may be larger than what is there
	if b.Saves == 0 {
		return nil, nil
	}
	return b, nil
}

// baseOf finds the image here that one stands on: the longest beginning of its stack that has a tag.
func (a *album) baseOf(f *imageRecord) (base *imageRecord) {
	for _, r := range a.images {
		if r.ID != f.ID && len(r.Stack) > 0 && len(r.Stack) < len(f.Stack) && slices.Equal(r.Stack, f.Stack[:len(r.Stack)]) &&
			(base == nil || len(r.Stack) > len(base.Stack)) && len(repoTags(a.names[r.ID])) > 0 {
			base = r
		}
	}
	return base
}

// slimOf finds the slim image of the same repository: python:3.12 → python:3.12-slim.
func slimOf(a *album, r *imageRecord) (*imageRecord, string) {
	for _, n := range a.names[r.ID] {
		if n.Ref.Tag == "" {
			continue
		}
		want := []string{n.Ref.Tag + "-slim"}
		if n.Ref.Tag == image.DefaultTag {
			want = append(want, "slim")
		}
		for _, s := range a.images {
			for _, sn := range a.names[s.ID] {
				if sn.Ref.Name() == n.Ref.Name() && slices.Contains(want, sn.Ref.Tag) && s.ID != r.ID {
					return s, sn.Ref.Familiar()
				}
			}
		}
	}
	return nil, ""
}

// docDirs hold what programs do not read when they run.
var docDirs = []string{"usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/gtk-doc"}

// heavy adds up what slim bases leave out of the first n layers: packages for building, by the package
// manager's records, and documentation.
func heavy(t *layerTrees, visible []*node, n int) (list []Heavy, err error) {
	docs := Heavy{What: "documentation and translations"}
	for _, p := range visible {
		if p.layer < n && slices.ContainsFunc(docDirs, func(d string) bool { return strings.HasPrefix(p.path, d+"/") }) {
			docs.Size += p.size
		}
	}
	build := Heavy{What: "packages for building"}
	pkgs, err := t.packages(n)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(pkgs, func(x, y pkg) int { return cmp.Or(cmp.Compare(y.size, x.size), strings.Compare(x.name, y.name)) })
	for _, q := range pkgs {
		if q.forBuilding {
			build.Size += q.size
			build.Packages = append(build.Packages, q.name)
		}
	}
	build.Packages = build.Packages[:min(shownOf, len(build.Packages))]
	for _, h := range []Heavy{build, docs} {
		if h.Size > 0 {
			list = append(list, h)
		}
	}
	return list, nil
}

// packageLists are the records of package managers.
var packageLists = map[string]func(io.Reader) []pkg{
	"var/lib/dpkg/status": dpkgPackages, "lib/apk/db/installed": apkPackages, "usr/lib/apk/db/installed": apkPackages,
}

// packages are those that are installed once the first n layers lie over one another.
func (t *layerTrees) packages(n int) (list []pkg, err error) {
	seen := map[string]bool{}
	for i := n - 1; i >= 0; i-- {
		for _, f := range t.files[i] {
			parse := packageLists[f.path]
			if parse == nil || seen[f.path] {
				continue
			}
			seen[f.path] = true // a later layer's hides those below
			if !f.regular {
				continue
			}
			r, err := t.open(&node{layerFile: f, layer: i})
			if err != nil {
				return nil, err
			}
			list = append(list, parse(io.LimitReader(r, 64<<20))...)
			r.Close()
		}
	}
	return list, nil
}

type pkg struct {
	name        string
	size        int64
	forBuilding bool
}

// dpkgPackages reads /var/lib/dpkg/status (deb822; Installed-Size is in KiB).
func dpkgPackages(r io.Reader) (list []pkg) {
	var p pkg
	installed := false
	stanzas(r, ": ", func(key, v string) {
		switch key {
		case "":
			if installed && p.name != "" {
				list = append(list, p)
			}
			p, installed = pkg{}, false
		case "Package":
			p.name = v
		case "Status":
			installed = strings.HasSuffix(v, " installed")
		case "Installed-Size":
			n, _ := strconv.ParseInt(v, 10, 40)
			p.size = n << 10
		case "Section":
			p.forBuilding = v == "devel" || v == "libdevel" || v == "vcs"
		}
	})
	return list
}

// apkPackages reads /lib/apk/db/installed (P: name, I: bytes).
func apkPackages(r io.Reader) (list []pkg) {
	var p pkg
	stanzas(r, ":", func(key, v string) {
		switch key {
		case "":
			if p.name != "" {
				list = append(list, p)
			}
			p = pkg{}
		case "P":
			p.name = v
			base := strings.TrimPrefix(v, ".")
			p.forBuilding = strings.HasSuffix(base, "-dev") || strings.HasSuffix(base, "-doc") ||
				slices.Contains([]string{"gcc", "g++", "make", "binutils", "build-base", "git", "musl-dev", "linux-headers"}, base)
		case "I":
			p.size, _ = strconv.ParseInt(v, 10, 60)
		}
	})
	return list
}

// stanzas hands on the fields of a file of stanzas, and an empty key at the end of each.
func stanzas(r io.Reader, sep string, field func(key, value string)) {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 64<<10), 1<<20)
	for s.Scan() {
		line := s.Text()
		if line == "" {
			field("", "")
			continue
		}
		if key, v, ok := strings.Cut(line, sep); ok && key != "" && line[0] != ' ' {
			field(key, v)
		}
	}
	field("", "")
}
