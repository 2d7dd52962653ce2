package snapshot

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/disk"
	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/layer"
)

// Tar is a layer's tar re-created from tree and recipe, byte for byte, seekable
// without walking.
type Tar interface {
	io.ReadSeekCloser
	io.ReaderAt
	Size() int64
}

// Tar opens the tar of the topmost layer of stack; a tree that no longer gives the
// recorded digest fails before the last bytes are handed out, names the file and is
// marked damaged. fault.Unsupported for a pulled layer, whose blob is kept instead.
func (s *Store) Tar(stack []digest.Digest) (Tar, error) {
	name, _, err := s.top(stack)
	if err != nil {
		return nil, err
	}
	d := stack[len(stack)-1]
	recipe, err := os.Open(s.layers(name) + "/recipe")
	if notExist(err) {
		return nil, fault.Unsupportedf("layer %s was unpacked from a blob and has no recipe; its tar is in the blob", d)
	}
	if err != nil {
		return nil, err
	}
	root, err := openRoot(s.layers(name) + "/diff")
	if err != nil {
		recipe.Close()
		return nil, err
	}
	t, err := layer.OpenTar(root, recipe)
	if err != nil {
		return nil, s.blame(name, d, err)
	}
	if t.Digest() != d {
		t.Close()
		return nil, s.blame(name, d, fmt.Errorf("its recipe is for %s: %w", t.Digest(), layer.ErrChanged))
	}
	return &tarFile{Tar: t, s: s, name: name, diffID: d}, nil
}

// tarFile turns what a changed tree says into a mark on the layer.
type tarFile struct {
	*layer.Tar
	s      *Store
	name   string
	diffID digest.Digest
}

func (t *tarFile) Read(p []byte) (int, error) {
	n, err := t.Tar.Read(p)
	return n, t.blame(err)
}

func (t *tarFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := t.Tar.ReadAt(p, off)
	return n, t.blame(err)
}

func (t *tarFile) blame(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return t.s.blame(t.name, t.diffID, err)
}

// blame quarantines a layer whose tree changed: it counts as missing, so that a pull or
// build makes it anew, while containers that stand on it go on.
func (s *Store) blame(name string, d digest.Digest, err error) error {
	if !errors.Is(err, layer.ErrChanged) {
		return fmt.Errorf("layer %s: %w", d, err)
	}
	err = fmt.Errorf("layer %s is damaged: %w; run \"keg system check\"", d, err)
	if werr := disk.PutVolatile(s.layers(name)+"/damaged", []byte(err.Error()+"\n"), 0o600); werr != nil {
		err = errors.Join(err, werr)
	}
	return err
}

// top finds the topmost layer of a stack and its record. Nothing below need be here.
func (s *Store) top(stack []digest.Digest) (string, record, error) {
	if err := validStack(stack); err != nil {
		return "", record{}, err
	}
	if len(stack) == 0 {
		return "", record{}, fault.NotFoundf("an empty stack has no layer")
	}
	d, chain := stack[len(stack)-1], image.ChainID(stack)
	l, ok := s.find(d, chain)
	if !ok {
		return "", record{}, s.missing(d, chain)
	}
	r, err := s.record(l.name)
	return l.name, r, err
}

func (s *Store) record(name string) (r record, err error) {
	err = disk.GetJSON(s.layers(name)+"/layer.json", &r)
	return r, err
}

// Find returns a stack whose top is a committed layer with this diffID, for serving
// it as a blob through Tar; fault.NotFound otherwise.
func (s *Store) Find(diffID digest.Digest) (stack []digest.Digest, size int64, err error) {
	if err := validStack([]digest.Digest{diffID}); err != nil {
		return nil, 0, err
	}
	name := sharedName(diffID)
	if r, err := s.record(name); err == nil && r.Recipe && !s.damaged(name) {
		return []digest.Digest{diffID}, r.Size, nil
	}
	all, err := s.names()
	if err != nil {
		return nil, 0, err
	}
	for _, n := range all {
		if !strings.HasPrefix(n, "chain-") {
			continue
		}
		if r, err := s.record(n); err == nil && r.DiffID == diffID && r.Recipe && !s.damaged(n) {
			return r.Stack, r.Size, nil
		}
	}
	return nil, 0, fault.NotFoundf("no layer %s that can be served", diffID)
}

// LayerSize returns the size of the tar and of the files (bytes of their contents) of
// the top layer.
func (s *Store) LayerSize(stack []digest.Digest) (tar, files int64, err error) {
	_, r, err := s.top(stack)
	return r.Size, r.Files, err
}

// LayerInfo describes a committed layer, for disk usage and checks.
type LayerInfo struct {
	Name    string // of its directory: unique
	DiffID  digest.Digest
	Stack   []digest.Digest // with the layer, as first placed; a shared one may stand in others
	Shared  bool            // found by DiffID in any stack
	Tar     int64           // bytes of its tar
	Files   int64           // bytes of file contents
	Recipe  bool            // Tar can re-create its tar
	Created time.Time
	Damaged string // why it counts as missing; "" when sound
}

// Layers lists all committed layers, sorted by name.
func (s *Store) Layers() ([]LayerInfo, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	var all []LayerInfo
	for _, n := range names {
		r, err := s.record(n)
		if fault.Is(err, fault.NotFound) {
			continue // swept meanwhile
		}
		if err != nil {
			return nil, err
		}
		why, _ := os.ReadFile(s.layers(n) + "/damaged")
		all = append(all, LayerInfo{Name: n, DiffID: r.DiffID, Stack: r.Stack, Shared: strings.HasPrefix(n, "diff-"), Tar: r.Size,
			Files: r.Files, Recipe: r.Recipe, Created: r.Created, Damaged: strings.TrimSpace(string(why))})
	}
	return all, nil
}

// names lists the directories of committed layers, sorted.
func (s *Store) names() ([]string, error) {
	ents, err := os.ReadDir(s.layers(""))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range ents {
		if n := e.Name(); strings.HasPrefix(n, "diff-") || strings.HasPrefix(n, "chain-") {
			names = append(names, n)
		}
	}
	return slices.Clip(names), nil
}

// Open opens the files of the topmost layer of stack for reading, as overlayfs keeps them: what the
// layer deletes is a mark (layer.Entry.Whiteout), a directory that hides what is below it has the
// attribute that Opaque names.
func (s *Store) Open(stack []digest.Digest) (*os.File, error) {
	name, _, err := s.top(stack)
	if err != nil {
		return nil, err
	}
	return openRoot(s.layers(name) + "/diff")
}

// Opaque is the extended attribute of a directory that hides what layers below have in it.
func (s *Store) Opaque() string { return layer.OpaqueXattr(s.opt.UserXattr) }
