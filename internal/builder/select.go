// Selecting files of a tree: wildcards, ignored, included and excluded names. The
// result is a list; digests and copies are made from it.
package builder

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/moby/patternmatcher"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

// selector says which files of a tree are meant.
type selector struct {
	Path     string   // below the root
	Wildcard bool     // Path may have wildcards
	Follow   bool     // the path's last part, when a symlink, stands for what it points to
	Include  []string // only these, relative to Path (COPY --parents)
	Exclude  []string // not these
	Required bool     // with Include: something must match
}

// source is one selected file or directory.
type source struct {
	name    string // base name as asked for: what it is called in a directory
	path    string // where it is, without symlinks
	entries []entry
}

func (s *source) dir() bool { return s.entries[0].st.Mode&unix.S_IFMT == unix.S_IFDIR }

// at is the path of an entry in the tree.
func (s *source) at(e *entry) string {
	if e.rel == "" {
		return s.path
	}
	return join(s.path, e.rel)
}

// entry is a file of a source. rel is its path relative to the source, "" for itself.
type entry struct {
	rel    string
	st     unix.Stat_t
	link   string // target of a symlink
	sum    [32]byte
	parent bool // here only because something below was included
}

func (e *entry) is(typ uint32) bool { return e.st.Mode&unix.S_IFMT == typ }

// notFound is the error for a path that COPY names and the tree lacks.
type notFound struct{ path string }

func (e *notFound) Error() string { return quotedPath(e.path) + ": not found" }

func quotedPath(p string) string { return `"` + path.Clean("/"+p) + `"` }

// find selects. Wildcards that match nothing select nothing.
func (t *tree) find(ctx context.Context, sel selector) ([]source, error) {
	if !sel.Wildcard || !hasWildcard(sel.Path) {
		s, err := t.findOne(ctx, sel.Path, sel)
		if err != nil {
			return nil, err
		}
		return []source{s}, nil
	}
	names, err := t.glob(ctx, sel)
	if err != nil {
		return nil, err
	}
	var found []source
	for _, n := range names {
		s, err := t.findOne(ctx, n, sel)
		if err != nil {
			return nil, err
		}
		if !s.dir() && excludedName(s.name, sel.Exclude) {
			continue
		}
		found = append(found, s)
	}
	return found, nil
}

// excludedName applies --exclude to a plain file that a wildcard matched.
func excludedName(name string, exclude []string) bool {
	if len(exclude) == 0 {
		return false
	}
	m, err := patternmatcher.MatchesOrParentMatches(name, exclude)
	return err == nil && m
}

func hasWildcard(p string) bool {
	for i := 0; i < len(p); i++ {
		switch p[i] {
		case '\\':
			i++
		case '*', '?', '[':
			return true
		}
	}
	return false
}

// glob lists the paths that match, sorted. A directory that matches is not searched.
func (t *tree) glob(ctx context.Context, sel selector) ([]string, error) {
	var fixed, wild []string
	for part := range strings.SplitSeq(path.Clean("/" + sel.Path)[1:], "/") {
		if len(wild) > 0 || hasWildcard(part) {
			wild = append(wild, part)
		} else {
			fixed = append(fixed, part)
		}
	}
	pattern := path.Join(wild...)
	if _, err := path.Match(pattern, ""); err != nil {
		return nil, fault.Invalidf("bad pattern %q: %w", sel.Path, err)
	}
	base, st, err := t.resolve(path.Join(fixed...), true)
	if err != nil || st == nil {
		return nil, err
	}
	var names []string
	w := walker{tree: t, ctx: ctx, plain: true, enter: func(rel string) bool {
		m, _ := path.Match(pattern, rel)
		return !m && strings.Count(rel, "/") < len(wild)-1
	}}
	src, err := w.walk(base, *st)
	for _, e := range src[1:] {
		if m, _ := path.Match(pattern, e.rel); m {
			names = append(names, path.Join(base, e.rel))
		}
	}
	return names, err
}

// resolve finds a path of the tree; st is nil when it does not exist or is ignored.
func (t *tree) resolve(p string, last bool) (string, *unix.Stat_t, error) {
	errIgnored := errors.New("ignored")
	real, st, err := follow(int(t.root.Fd()), p, last, func(link string) error {
		if t.ignore.ignored(link) {
			return errIgnored
		}
		return nil
	})
	if errors.Is(err, errIgnored) || errors.Is(err, unix.ENOTDIR) {
		return "", nil, nil
	}
	if err != nil || st == nil {
		return "", nil, err
	}
	if t.ignore.ignored(real) && (st.Mode&unix.S_IFMT != unix.S_IFDIR || !t.ignore.mayHold(real)) {
		return "", nil, nil
	}
	return real, st, nil
}

func (t *tree) findOne(ctx context.Context, p string, sel selector) (source, error) {
	real, st, err := t.resolve(p, sel.Follow)
	if err != nil {
		return source{}, err
	}
	if st == nil {
		return source{}, &notFound{p}
	}
	s := source{name: path.Base(path.Clean("/" + p)), path: real}
	w := walker{tree: t, ctx: ctx}
	if w.include, err = matcherOf(sel.Include); err != nil {
		return s, err
	}
	if w.exclude, err = matcherOf(sel.Exclude); err != nil {
		return s, err
	}
	s.entries, err = w.walk(real, *st)
	if err == nil && (sel.Required && len(s.entries) == 1 || t.ignore.ignored(real) && len(s.entries) == 1) {
		err = &notFound{path.Join(p, path.Join(sel.Include...))}
	}
	return s, err
}

func matcherOf(patterns []string) (*patternmatcher.PatternMatcher, error) {
	if len(patterns) == 0 {
		return nil, nil
	}
	m, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, fault.Invalidf("bad pattern in %q: %w", patterns, err)
	}
	return m, nil
}

// walker lists a directory tree, sorted by name, parents first.
type walker struct {
	tree             *tree
	ctx              context.Context
	include, exclude *patternmatcher.PatternMatcher
	enter            func(rel string) bool // nil: every directory
	plain            bool                  // names only: no link targets
	entries          []entry
	waiting          []entry // directories that appear once something in them does
}

// scope is what is known of a directory while its entries are matched.
type scope struct{ ignore, include, exclude patternmatcher.MatchInfo }

func (w *walker) walk(at string, st unix.Stat_t) ([]entry, error) {
	top := entry{st: st}
	if top.is(unix.S_IFLNK) {
		link, err := readlinkBeneath(int(w.tree.root.Fd()), at)
		if err != nil {
			return nil, err
		}
		top.link = link
	}
	w.entries = append(w.entries, top)
	if !top.is(unix.S_IFDIR) {
		return w.entries, nil
	}
	var sc scope
	if w.tree.ignore != nil && at != "." {
		// What the parents matched is needed below.
		var err error
		for i, c := range at {
			if c == '/' {
				if _, sc.ignore, err = w.tree.ignore.match(at[:i], sc.ignore); err != nil {
					return nil, err
				}
			}
		}
		if _, sc.ignore, err = w.tree.ignore.match(at, sc.ignore); err != nil {
			return nil, err
		}
	}
	fd, err := openBeneath(int(w.tree.root.Fd()), at, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: "/" + at, Err: err}
	}
	return w.entries, w.dir(fd, at, "", sc)
}

// dir lists the directory fd, which it closes.
func (w *walker) dir(fd int, at, rel string, sc scope) error {
	f := os.NewFile(uintptr(fd), at)
	defer f.Close()
	if err := w.ctx.Err(); err != nil {
		return context.Cause(w.ctx)
	}
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.SortFunc(names, cmp.Compare)
	for _, name := range names {
		if err := w.one(fd, name, join(at, name), join(rel, name), sc); err != nil {
			return err
		}
	}
	return nil
}

func join(dir, name string) string {
	if dir == "" || dir == "." {
		return name
	}
	return dir + "/" + name
}

func (w *walker) one(dirFd int, name, at, rel string, up scope) error {
	var sc scope
	ignored, info, err := w.tree.ignore.match(at, up.ignore)
	if err != nil {
		return err
	}
	sc.ignore = info
	e := entry{rel: rel}
	err = unix.Fstatat(dirFd, name, &e.st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil // gone since the directory was read
	}
	if err != nil {
		return &fs.PathError{Op: "stat", Path: "/" + at, Err: err}
	}
	isDir := e.is(unix.S_IFDIR)
	if ignored && (!isDir || !w.tree.ignore.mayHold(at)) {
		return nil
	}
	included, excluded := true, false
	if w.include != nil {
		if included, sc.include, err = w.include.MatchesUsingParentResults(rel, up.include); err != nil {
			return err
		}
	}
	if w.exclude != nil {
		if excluded, sc.exclude, err = w.exclude.MatchesUsingParentResults(rel, up.exclude); err != nil {
			return err
		}
		if excluded && (!isDir || !w.exclude.Exclusions()) {
			return nil
		}
	}
	keep := included && !ignored && !excluded
	if keep {
		if err := w.add(dirFd, name, e); err != nil {
			return err
		}
	}
	// A directory that is not kept yet is searched in any case: it may appear.
	if !isDir || keep && w.enter != nil && !w.enter(rel) {
		return nil
	}
	if !keep {
		e.parent = !included || excluded
		w.waiting = append(w.waiting, e)
		defer func() {
			if n := len(w.waiting); n > 0 && w.waiting[n-1].rel == rel {
				w.waiting = w.waiting[:n-1]
			}
		}()
	}
	fd, err := unix.Openat(dirFd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: "/" + at, Err: err}
	}
	return w.dir(fd, at, rel, sc)
}

func (w *walker) add(dirFd int, name string, e entry) error {
	w.entries = append(w.entries, w.waiting...)
	w.waiting = w.waiting[:0]
	if e.is(unix.S_IFLNK) && !w.plain {
		link, err := readlink(dirFd, name)
		if err != nil {
			return err
		}
		e.link = link
	}
	w.entries = append(w.entries, e)
	return nil
}
