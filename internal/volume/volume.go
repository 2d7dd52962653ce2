// Package volume keeps named volumes: a directory of data and a record each.
//
//	volumes/<name>/{_data/,volume.json,mount.lock}    volumes/.new/<rand>    volumes/.trash/<rand>
package volume

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/volume"
	"golang.org/x/sys/unix"

	"keg/internal/disk"
	"keg/internal/fault"
)

// Version of the records that this program writes.
const Version = 1

// AnonymousLabel marks a volume that nobody named.
const AnonymousLabel = "com.docker.volume.anonymous"

// Volume is Docker's volume record; Mountpoint is the absolute path of its data.
type Volume = volume.Volume

// Store owns volumes/<name>/{_data/,volume.json} below its root.
type Store struct{ root string }

// Open uses the directory root; it is made when first needed.
func Open(root string) *Store { return &Store{root} }

func (s *Store) dir() string                 { return filepath.Join(s.root, "volumes") }
func (s *Store) volume(name string) string   { return filepath.Join(s.dir(), name) }
func (s *Store) data(name string) string     { return filepath.Join(s.volume(name), "_data") }
func (s *Store) recordOf(name string) string { return filepath.Join(s.volume(name), "volume.json") }

// record is volume.json. The mount point is not in it: a store may be moved.
type record struct {
	Version         int
	Created         string
	Options, Labels map[string]string
}

// CreateOptions say what to make. An empty Name makes an anonymous volume (64 hex
// digits, label com.docker.volume.anonymous).
type CreateOptions struct {
	Name, Driver    string // Driver "" or "local"
	Options, Labels map[string]string
}

// checkName holds a name to Docker's grammar; what passes is safe as a file name.
func checkName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > 255 {
		return fault.Invalidf("volume name %q is not valid", name)
	}
	if len(name) == 1 {
		return fault.Invalidf(`create %s: volume name is too short, names should be at least two alphanumeric characters`, name)
	}
	for i := range len(name) {
		c := name[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '_' && c != '.' && c != '-') {
			return fault.Invalidf(`create %s: %q includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path`, name, name)
		}
	}
	return nil
}

// Create makes the volume, or returns the existing one of that name when its driver
// and options agree (Docker's rule); otherwise fault.Conflict.
func (s *Store) Create(ctx context.Context, o CreateOptions) (Volume, error) {
	if o.Driver != "" && o.Driver != "local" {
		return Volume{}, fault.NotFoundf("create %s: error looking up volume plugin %s: plugin %q not found", o.Name, o.Driver, o.Driver)
	}
	if o.Name == "" {
		var b [32]byte
		rand.Read(b[:])
		o.Name = hex.EncodeToString(b[:])
		o.Labels = maps.Clone(o.Labels)
		if o.Labels == nil {
			o.Labels = map[string]string{}
		}
		o.Labels[AnonymousLabel] = ""
	}
	if err := checkName(o.Name); err != nil {
		return Volume{}, err
	}
	if _, err := mountPlan(o.Options); err != nil {
		return Volume{}, err
	}
	for {
		if v, err := s.Get(o.Name); err == nil {
			return v, agree(v, o)
		} else if !fault.Is(err, fault.NotFound) {
			return Volume{}, err
		}
		err := s.create(o)
		if !errors.Is(err, fs.ErrExist) && !errors.Is(err, unix.ENOTEMPTY) {
			if err != nil {
				return Volume{}, err
			}
			return s.Get(o.Name)
		}
		if ctx.Err() != nil { // somebody makes and removes it all the time
			return Volume{}, context.Cause(ctx)
		}
	}
}

// agree: asking again without options is fine, with other options it is not.
func agree(v Volume, o CreateOptions) error {
	if len(o.Options) > 0 && !maps.Equal(v.Options, o.Options) {
		return fault.Conflictf("create %s: conflict: volume name must be unique: it exists with other options", o.Name)
	}
	return nil
}

// create makes a whole volume aside and renames it to its place, which fails when there is one.
func (s *Store) create(o CreateOptions) error {
	fresh := filepath.Join(s.dir(), ".new")
	if err := os.MkdirAll(fresh, 0o700); err != nil {
		return err
	}
	disk.Sweep(fresh)
	tmp, err := disk.HoldDir(fresh, "")
	if err != nil {
		return err
	}
	defer tmp.Remove() // harmless after the rename
	if err := os.Mkdir(filepath.Join(tmp.Path, "_data"), 0o755); err != nil {
		return err
	}
	r := record{Version, time.Now().UTC().Format(time.RFC3339), o.Options, o.Labels}
	if err := disk.PutJSON(filepath.Join(tmp.Path, "volume.json"), r); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, tmp.Path, unix.AT_FDCWD, s.volume(o.Name), unix.RENAME_NOREPLACE); err != nil {
		return err
	}
	return disk.SyncDir(s.dir())
}

// Get is fault.NotFound ("get x: no such volume") for a name that does not exist.
func (s *Store) Get(name string) (Volume, error) {
	if checkName(name) != nil {
		return Volume{}, fault.NotFoundf("get %s: no such volume", name)
	}
	var r record
	if err := disk.GetJSON(s.recordOf(name), &r); err != nil {
		if fault.Is(err, fault.NotFound) {
			return Volume{}, fault.NotFoundf("get %s: no such volume", name)
		}
		return Volume{}, err
	}
	return Volume{Name: name, Driver: "local", Scope: "local", Mountpoint: s.data(name),
		CreatedAt: r.Created, Labels: r.Labels, Options: r.Options}, nil
}

// List returns all volumes, by name.
func (s *Store) List() ([]Volume, error) {
	ents, err := os.ReadDir(s.dir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []Volume
	for _, e := range ents {
		v, err := s.Get(e.Name())
		if fault.Is(err, fault.NotFound) {
			continue // .new, .trash, or removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b Volume) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Remove deletes the data. The caller has checked that no container refers to it.
func (s *Store) Remove(ctx context.Context, name string) error {
	if _, err := s.Get(name); err != nil {
		return err
	}
	if err := s.unmountIdle(name); err != nil {
		return fault.Conflictf("remove %s: volume is in use", name)
	}
	trash := filepath.Join(s.dir(), ".trash")
	if err := os.MkdirAll(trash, 0o700); err != nil {
		return err
	}
	tmp, err := disk.HoldDir(trash, "")
	if err != nil {
		return err
	}
	defer tmp.Remove()
	if err := os.Rename(s.volume(name), filepath.Join(tmp.Path, name)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fault.NotFoundf("get %s: no such volume", name)
		}
		return err
	}
	disk.Sweep(trash) // what a killed removal left
	return nil
}

// Rename gives a volume another name. The caller has checked that no container refers to it.
func (s *Store) Rename(ctx context.Context, from, to string) error {
	if _, err := s.Get(from); err != nil {
		return err
	}
	if err := checkName(to); err != nil {
		return err
	}
	if err := s.unmountIdle(from); err != nil {
		return fault.Conflictf("rename %s: volume is in use", from)
	}
	err := unix.Renameat2(unix.AT_FDCWD, s.volume(from), unix.AT_FDCWD, s.volume(to), unix.RENAME_NOREPLACE)
	switch {
	case errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENOTEMPTY):
		return fault.Conflictf("a volume named %s exists already", to)
	case err != nil:
		return &os.LinkError{Op: "rename", Old: s.volume(from), New: s.volume(to), Err: err}
	}
	// Named now: it is no longer one that goes with its container.
	var r record
	if err := disk.GetJSON(s.recordOf(to), &r); err == nil {
		if _, anonymous := r.Labels[AnonymousLabel]; anonymous {
			delete(r.Labels, AnonymousLabel)
			if err := disk.PutJSON(s.recordOf(to), r); err != nil {
				return err
			}
		}
	}
	return disk.SyncDir(s.dir())
}

// Size returns the bytes of data (allocated blocks, hard links once).
func (s *Store) Size(name string) (int64, error) {
	v, err := s.Get(name)
	if err != nil {
		return 0, err
	}
	var sum int64
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	err = filepath.WalkDir(v.Mountpoint, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // containers go on while we count
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if unix.Lstat(p, &st) != nil {
			return nil
		}
		if st.Nlink > 1 && !d.IsDir() {
			k := inode{st.Dev, st.Ino}
			if seen[k] {
				return nil
			}
			seen[k] = true
		}
		sum += st.Blocks * 512
		return nil
	})
	return sum, err
}
