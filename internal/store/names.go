// Names are files: an atomic rename moves a tag, a directory listing lists tags. The
// components of a repository are directories; what is kept for it stands in directories
// that begin with "_".

package store

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"keg/internal/disk"
	"keg/internal/fault"
	"keg/internal/image"
)

const (
	tagsDir      = "_tags"
	digestsDir   = "_digests"
	blobsDir     = "_blobs"
	referrersDir = "_referrers"
)

// Named is a name and what it points at.
type Named struct {
	Ref     image.Reference  // with Tag, or with Digest (a registry's name for the image)
	Desc    image.Descriptor // of a manifest or index in this store
	Updated time.Time
}

// record is the file of a name: the descriptor itself, with two fields of ours.
type record struct {
	Version int       `json:"version"`
	Updated time.Time `json:"updated"`
	image.Descriptor
}

const recordVersion = 1

// checkRef returns ref's directory below names/. Only what parses back to itself gets a
// path, so a reference made by hand cannot reach outside.
func checkRef(ref image.Reference) (string, error) {
	back, err := image.ParseRepository(ref.String())
	if err != nil {
		return "", err
	}
	if back != ref {
		return "", fault.Invalidf("invalid reference format: %q", ref.String())
	}
	return filepath.Join(ref.Registry, ref.Repository), nil
}

// namePath is the file of a tag or of a digest.
func (s *Store) namePath(ref image.Reference) (string, error) {
	repo, err := checkRef(ref)
	if err != nil {
		return "", err
	}
	switch {
	case ref.Digest != "":
		if err := checkDigest(ref.Digest); err != nil {
			return "", err
		}
		return s.path("names", repo, digestsDir, ref.Digest.Encoded()), nil
	case ref.Tag != "":
		return s.path("names", repo, tagsDir, ref.Tag), nil
	}
	return "", fault.Invalidf("name %s has neither tag nor digest", ref)
}

// Tag points ref (Tag or Digest set, exactly one) at desc, durably and atomically.
func (s *Store) Tag(ref image.Reference, desc image.Descriptor) error {
	if ref.Tag != "" && ref.Digest != "" {
		return fault.Invalidf("name %s has both tag and digest", ref)
	}
	path, err := s.namePath(ref)
	if err != nil {
		return err
	}
	if err := checkDigest(desc.Digest); err != nil {
		return err
	}
	err = s.putRecord(path, record{recordVersion, time.Now().UTC(), desc})
	if err != nil {
		return fmt.Errorf("tag %s: %w", ref.Familiar(), err)
	}
	return nil
}

func (s *Store) putRecord(path string, r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return s.inDir(filepath.Dir(path), func() error { return disk.Put(path, b, 0o600) })
}

// inDir runs put in a directory that it makes when missing. Untag removes directories that
// became empty, perhaps just between the two: then they are made again.
func (s *Store) inDir(dir string, put func() error) error {
	for {
		err := put()
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := makeDirs(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
}

// makeDirs is a durable MkdirAll: each new entry is synced in its parent.
func makeDirs(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeDirs(filepath.Dir(dir)); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o700)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return disk.SyncDir(filepath.Dir(dir))
}

// Resolve returns what ref points at; with both tag and digest the digest rules.
// fault.NotFound ("No such image: x") when nothing does.
func (s *Store) Resolve(ref image.Reference) (image.Descriptor, error) {
	n, err := s.Named(ref)
	return n.Desc, err
}

// Named is Resolve with the time of the last change.
func (s *Store) Named(ref image.Reference) (Named, error) {
	path, err := s.namePath(ref)
	if err != nil {
		return Named{}, err
	}
	r, err := readRecord(path)
	if fault.Is(err, fault.NotFound) {
		return Named{}, fault.NotFoundf("No such image: %s", ref.Familiar())
	}
	if err != nil {
		return Named{}, err
	}
	return Named{ref, r.Descriptor, r.Updated}, nil
}

func readRecord(path string) (record, error) {
	var r record
	if err := disk.GetJSON(path, &r); err != nil {
		return r, err
	}
	if r.Version > recordVersion {
		return r, fault.Unsupportedf("record %s has version %d; this program knows %d: use a newer one", path, r.Version, recordVersion)
	}
	if err := checkDigest(r.Digest); err != nil {
		return r, fmt.Errorf("read record %s: %w", path, err)
	}
	return r, nil
}

// Untag removes the name; fault.NotFound when it is not there.
func (s *Store) Untag(ref image.Reference) error {
	path, err := s.namePath(ref)
	if err != nil {
		return err
	}
	err = s.removeRecord(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.NotFoundf("No such image: %s", ref.Familiar())
	}
	return err
}

// removeRecord deletes a file below names/ durably, and the directories that it leaves
// empty.
func (s *Store) removeRecord(path string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	if err := disk.SyncDir(filepath.Dir(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for dir := filepath.Dir(path); dir != s.path("names"); dir = filepath.Dir(dir) {
		if os.Remove(dir) != nil { // ENOTEMPTY: in use
			break
		}
	}
	return nil
}

// Names returns all names, sorted by reference. A record that cannot be read is left
// out: one damaged name must not hide the others.
func (s *Store) Names() ([]Named, error) {
	var names []Named
	err := s.walkRepositories("", func(registry, repo, dir string) error {
		base := image.Reference{Registry: registry, Repository: repo}
		for _, kind := range []string{tagsDir, digestsDir} {
			for _, file := range listRecords(filepath.Join(dir, kind)) {
				ref := base
				if kind == tagsDir {
					ref.Tag = file
				} else {
					ref.Digest = digestOfHex(file)
				}
				if n, err := s.Named(ref); err == nil {
					names = append(names, n)
				}
			}
		}
		return nil
	})
	keys := make(map[image.Reference]string, len(names))
	for _, n := range names {
		keys[n.Ref] = n.Ref.String()
	}
	slices.SortFunc(names, func(a, b Named) int { return cmp.Compare(keys[a.Ref], keys[b.Ref]) })
	return names, err
}

// walkRepositories visits every repository of a registry ("": of all) in no order.
func (s *Store) walkRepositories(registry string, visit func(registry, repo, dir string) error) error {
	root := s.path("names", registry)
	return filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil || !e.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(s.path("names"), p)
		if strings.HasPrefix(e.Name(), "_") {
			return fs.SkipDir
		}
		if reg, repo, ok := strings.Cut(rel, "/"); ok {
			return visit(reg, repo, p)
		}
		return nil
	})
}

// listRecords returns the names of the finished files in dir, sorted; none when it is
// missing.
func listRecords(dir string) (files []string) {
	ents, _ := os.ReadDir(dir)
	for _, e := range ents {
		if !disk.IsTemp(e.Name()) {
			files = append(files, e.Name())
		}
	}
	return files
}
