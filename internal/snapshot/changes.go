package snapshot

import (
	"errors"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"keg/internal/layer"
)

// Kind of a Change: 0 modified, 1 added, 2 deleted, as Docker's API numbers them.
type Kind uint8

const (
	Modified Kind = iota
	Added
	Deleted
)

// Change is one path that differs from the stack below.
type Change struct {
	Kind Kind
	Path string // absolute in the container
}

// Usage returns the bytes in the writable directory of key (docker ps --size): of file
// contents, hard links once.
func (s *Store) Usage(key string) (int64, error) {
	if _, err := s.parents(key); err != nil {
		return 0, err
	}
	upper, err := os.Open(s.Upper(key))
	if err != nil {
		return 0, err
	}
	defer upper.Close()
	var total int64
	seen := map[uint64]bool{}
	err = layer.Walk(upper, func(e layer.Entry) (bool, error) {
		if e.IsDir() || e.Stat.Nlink > 1 && seen[e.Stat.Ino] {
			return true, nil
		}
		if e.Stat.Nlink > 1 {
			seen[e.Stat.Ino] = true
		}
		total += e.Stat.Size
		return true, nil
	})
	return total, err
}

// Changes lists what key changed, sorted by path (docker diff). A directory counts as
// modified when something in it changed or its own attributes did. It may be asked
// while a container runs. omit are places for mounts that whoever runs programs makes:
// as long as they are empty they are no change of the program's.
func (s *Store) Changes(key string, omit ...string) ([]Change, error) {
	p, err := s.parents(key)
	if err != nil {
		return nil, err
	}
	upper, err := os.Open(s.Upper(key))
	if err != nil {
		return nil, err
	}
	defer upper.Close()
	view, err := s.View(p.Stack)
	if err != nil {
		return nil, err
	}
	defer unix.Close(view)
	c := changes{view: view, opaque: layer.OpaqueXattr(s.opt.UserXattr), found: map[string]Kind{}, touched: map[string]bool{}}
	if err := layer.Walk(upper, c.entry); err != nil {
		return nil, err
	}
	for _, p := range omit {
		c.omit(upper, strings.TrimPrefix(p, "/"))
	}
	return c.sorted(), nil
}

type changes struct {
	view   int
	opaque string
	found  map[string]Kind

	touched map[string]bool // directories of which only the time changed
}

func (c *changes) entry(e layer.Entry) (descend bool, err error) {
	var below unix.Stat_t
	was, err := lookAt(c.view, e.Path, &below)
	if err != nil {
		return false, err
	}
	switch {
	case e.Whiteout():
		if was {
			c.add(e.Path, Deleted)
		}
		return false, nil
	case !was:
		c.add(e.Path, Added)
	case !e.IsDir():
		c.add(e.Path, Modified)
	case below.Mode&unix.S_IFMT != unix.S_IFDIR:
		c.add(e.Path, Modified)
	default:
		if e.Stat.Mode != below.Mode || e.Stat.Uid != below.Uid || e.Stat.Gid != below.Gid || e.Stat.Mtim != below.Mtim {
			c.add(e.Path, Modified)
			c.touched[e.Path] = e.Stat.Mode == below.Mode && e.Stat.Uid == below.Uid && e.Stat.Gid == below.Gid
		}
		if v, _ := e.Xattr(c.opaque); v == "y" {
			return true, c.hidden(e)
		}
	}
	return true, nil
}

// hidden reports what an opaque directory no longer shows.
func (c *changes) hidden(e layer.Entry) error {
	d, err := openIn(c.view, e.Path)
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if !e.Holds(n) {
			c.add(e.Path+"/"+n, Deleted)
		}
	}
	return nil
}

// omit forgets an empty place for a mount, and the directories above that changed by
// it alone.
func (c *changes) omit(upper *os.File, p string) {
	if k, ok := c.found[p]; !ok || k != Added || !bare(upper, p) {
		return
	}
	for {
		delete(c.found, p)
		i := strings.LastIndexByte(p, '/')
		if i < 0 {
			return
		}
		p = p[:i]
		if k := c.found[p]; k == Deleted || k == Modified && !c.touched[p] || c.below(p) {
			return
		}
	}
}

// below reports whether anything in a directory changed.
func (c *changes) below(dir string) bool {
	for p := range c.found {
		if strings.HasPrefix(p, dir+"/") {
			return true
		}
	}
	return false
}

// bare reports whether an entry is an empty file or directory.
func bare(root *os.File, p string) bool {
	a, err := layer.Look(root, p, false)
	if err != nil {
		return false
	}
	defer a.Close()
	if !a.IsDir() {
		return a.IsRegular() && a.Stat.Size == 0
	}
	d, err := a.OpenDir()
	if err != nil {
		return false
	}
	defer d.Close()
	_, err = d.Readdirnames(1)
	return errors.Is(err, io.EOF)
}

func openIn(root int, p string) (*os.File, error) {
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(root, p, &how)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: p, Err: err}
	}
	return os.NewFile(uintptr(fd), p), nil
}

// add notes a change, and with it that the directories above have changed.
func (c *changes) add(p string, k Kind) {
	c.found[p] = k
	for {
		i := strings.LastIndexByte(p, '/')
		if i < 0 {
			return
		}
		p = p[:i]
		if _, ok := c.found[p]; ok {
			return
		}
		c.found[p] = Modified
	}
}

func (c *changes) sorted() []Change {
	list := make([]Change, 0, len(c.found))
	for p, k := range c.found {
		list = append(list, Change{k, "/" + p})
	}
	slices.SortFunc(list, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
	return list
}
