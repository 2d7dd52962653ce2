package container

// Who is who: ids, names and their reservation.

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"

	"keg/internal/disk"
	"keg/internal/fault"
)

// reuseWait is how long a name is waited for whose owner is just going away.
const reuseWait = 5 * time.Second

// NewID returns 64 random hex digits whose first 12, the short form, do not look like
// a number.
func NewID() string {
	for {
		var b [32]byte
		rand.Read(b[:])
		id := hex.EncodeToString(b[:])
		if _, err := strconv.ParseUint(id[:12], 10, 64); err != nil {
			return id
		}
	}
}

func isID(s string) bool { return len(s) == 64 && isHex(s) }

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return s != ""
}

// CheckName holds a name to Docker's grammar.
func CheckName(name string) error {
	if !validName(name) {
		return fault.Invalidf("Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	return nil
}

func validName(s string) bool {
	if len(s) < 2 || len(s) > 255 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '_' && c != '.' && c != '-') {
			return false
		}
	}
	return true
}

// Create reserves the name ("" picks one such as "brave_noether") and writes the
// record. fault.Conflict with Docker's words when the name is in use. An ID that is
// not set yet is picked.
//
// The record is complete before the name points at it, and both happen under one short
// lock: a name without a record can only be what a crash left, and is taken over.
func (s *Store) Create(ctx context.Context, r *Record) error {
	if r.ID == "" {
		r.ID = NewID()
	}
	r.Name = strings.TrimPrefix(r.Name, "/")
	picked := r.Name == ""
	if !picked {
		if err := CheckName(r.Name); err != nil {
			return err
		}
	}
	for try := 0; ; try++ {
		if picked {
			r.Name = randomName(try)
		}
		err := s.create(ctx, r)
		if !picked || !fault.Is(err, fault.Conflict) {
			return err
		}
	}
}

func (s *Store) create(ctx context.Context, r *Record) (err error) {
	for _, d := range []string{s.names(), s.fresh()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	// Docker's order: a name in use is told before anything is made.
	if err := s.waitForName(ctx, r.Name, r.ID); err != nil {
		return err
	}
	tmp, err := disk.HoldDir(s.fresh(), "")
	if err != nil {
		return err
	}
	defer tmp.Remove() // harmless after the rename
	if err := writeNew(tmp.Path, r); err != nil {
		return err
	}
	for {
		free, err := s.reserve(r, tmp.Path)
		if free || err != nil {
			return err
		}
		if err := s.waitForName(ctx, r.Name, r.ID); err != nil {
			return err
		}
	}
}

// Sweep removes what killed creations left.
func (s *Store) Sweep() error { return disk.Sweep(s.fresh()) }

// writeNew fills the directory of a new container. What is removed at its exit need not
// survive a power cut.
func writeNew(dir string, r *Record) error {
	r.Version = max(r.Version, Version)
	if err := os.WriteFile(filepath.Join(dir, "lock"), nil, 0o600); err != nil {
		return err
	}
	path := filepath.Join(dir, "config.json")
	b, err := encodeRecord(r)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	if r.Host == nil || !r.Host.AutoRemove {
		return disk.Put(path, b, 0o600)
	}
	// Nobody sees the directory yet: no rename is needed.
	return os.WriteFile(path, b, 0o600)
}

// reserve moves the finished directory dir to its place and points the name at it, or
// reports that the name is taken.
func (s *Store) reserve(r *Record, dir string) (bool, error) {
	unlock, err := s.lockNames()
	if err != nil {
		return false, err
	}
	defer unlock()
	link := filepath.Join(s.names(), r.Name)
	if owner := s.owner(r.Name); owner != "" {
		if _, err := os.Lstat(s.configPath(owner)); err == nil {
			return false, nil
		}
		if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	if err := os.Symlink(filepath.Join("..", r.ID), link); err != nil {
		return false, err
	}
	if err := os.Rename(dir, s.Dir(r.ID)); err != nil {
		os.Remove(link)
		return false, err
	}
	if r.Host != nil && r.Host.AutoRemove {
		return true, nil
	}
	if err := disk.SyncDir(s.containers()); err != nil {
		return true, err
	}
	return true, disk.SyncDir(s.names())
}

// lockNames serialises changes of names; it is held for a few system calls only.
func (s *Store) lockNames() (func(), error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	l, err := disk.LockFile(ctx, filepath.Join(s.containers(), ".names.lock"))
	if err != nil {
		return nil, err
	}
	return func() { l.Unlock() }, nil
}

// owner returns the id that a valid name points at, "" for none.
func (s *Store) owner(name string) string {
	t, err := os.Readlink(filepath.Join(s.names(), name))
	if err != nil || !isID(filepath.Base(t)) {
		return ""
	}
	return filepath.Base(t)
}

// waitForName waits while the name's owner has exited and is about to be removed.
func (s *Store) waitForName(ctx context.Context, name, self string) error {
	end := time.Now().Add(reuseWait)
	for {
		owner := s.owner(name)
		if owner == "" || owner == self {
			return nil
		}
		r, err := s.Get(owner)
		if fault.Is(err, fault.NotFound) {
			return nil
		}
		if err != nil || !s.leaving(r) || time.Now().After(end) {
			return conflict(name, owner)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func conflict(name, owner string) error {
	return fault.Conflictf("Conflict. The container name %q is already in use by container %q. "+
		"You have to remove (or rename) that container to be able to reuse that name.", "/"+name, owner)
}

// leaving tells a --rm container whose program has ended from one that runs.
func (s *Store) leaving(r *Record) bool {
	if r.Host == nil || !r.Host.AutoRemove {
		return false
	}
	st, err := s.State(r.ID)
	return err == nil && (st.Status == container.StateExited || st.Status == container.StateRemoving)
}

// Rename changes the name atomically.
func (s *Store) Rename(r *Record, name string) error {
	name = strings.TrimPrefix(name, "/")
	if err := CheckName(name); err != nil {
		return err
	}
	if name == r.Name {
		return fault.Invalidf("Renaming a container with the same name as its current name")
	}
	unlock, err := s.lockNames()
	if err != nil {
		return err
	}
	defer unlock()
	if owner := s.owner(name); owner != "" {
		if _, err := os.Lstat(s.configPath(owner)); err == nil {
			return conflict(name, owner)
		}
		os.Remove(filepath.Join(s.names(), name))
	}
	// What Edit changed since the caller's look must not be lost.
	now, err := s.Get(r.ID)
	if err != nil {
		return err
	}
	*r = *now
	old := r.Name
	if err := os.Symlink(filepath.Join("..", r.ID), filepath.Join(s.names(), name)); err != nil {
		return err
	}
	r.Name = name
	if err := s.Put(r); err != nil {
		r.Name = old
		os.Remove(filepath.Join(s.names(), name))
		return err
	}
	if s.owner(old) == r.ID {
		os.Remove(filepath.Join(s.names(), old))
	}
	return disk.SyncDir(s.names())
}

// Edit changes a record as it is at this moment: of two edits at once none is lost.
func (s *Store) Edit(id string, change func(*Record) error) error {
	unlock, err := s.lockNames()
	if err != nil {
		return err
	}
	defer unlock()
	r, err := s.Get(id)
	if err != nil {
		return err
	}
	if err := change(r); err != nil {
		return err
	}
	return s.Put(r)
}

// Find resolves name, id or unique id prefix, in Docker's order: full id, name, prefix.
// fault.NotFound: "No such container: x".
func (s *Store) Find(ref string) (*Record, error) {
	ref = strings.TrimPrefix(ref, "/")
	if isID(ref) {
		if r, err := s.Get(ref); err == nil || !fault.Is(err, fault.NotFound) {
			return r, err
		}
	}
	if validName(ref) {
		if id := s.owner(ref); id != "" {
			if r, err := s.Get(id); err == nil || !fault.Is(err, fault.NotFound) {
				return r, err
			}
		}
	}
	if !isHex(ref) || len(ref) >= 64 {
		return nil, notFound(ref)
	}
	return s.findPrefix(ref)
}

func (s *Store) findPrefix(ref string) (*Record, error) {
	ids, err := s.List()
	if err != nil {
		return nil, err
	}
	found := ""
	for _, id := range ids {
		if !strings.HasPrefix(id, ref) {
			continue
		}
		if found != "" {
			return nil, fault.Invalidf("Multiple IDs found with provided prefix: %s", ref)
		}
		found = id
	}
	if found == "" {
		return nil, notFound(ref)
	}
	return s.Get(found)
}

// List returns the ids of all containers.
func (s *Store) List() ([]string, error) { return listIDs(s.containers()) }

func listIDs(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	ids := names[:0]
	for _, n := range names {
		if isID(n) {
			ids = append(ids, n)
		}
	}
	return ids, err
}

// Remove deletes record, log and name. The caller holds the lock.
func (s *Store) Remove(id string) error {
	if err := s.Retire(id); err != nil {
		return err
	}
	return s.Purge(id)
}

// Retire frees the name and takes the container out of sight in one rename; Purge
// deletes what is left. Between the two the container is listed by Retired.
func (s *Store) Retire(id string) error {
	if !isID(id) {
		return notFound(id)
	}
	unlock, err := s.lockNames()
	if err != nil {
		return err
	}
	defer unlock()
	// A record that cannot be read has a name that cannot be known; it must be removable.
	if r, err := s.Get(id); err == nil && validName(r.Name) && s.owner(r.Name) == id {
		if err := os.Remove(filepath.Join(s.names(), r.Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	err = os.Rename(s.Dir(id), filepath.Join(s.trash(), id))
	if errors.Is(err, fs.ErrNotExist) {
		if _, e := os.Lstat(s.Dir(id)); e != nil {
			return notFound(id)
		}
		if err := os.MkdirAll(s.trash(), 0o700); err != nil {
			return err
		}
		err = os.Rename(s.Dir(id), filepath.Join(s.trash(), id))
	}
	return err
}

// Purge deletes what Retire left of a container.
func (s *Store) Purge(id string) error {
	if !isID(id) {
		return notFound(id)
	}
	return os.RemoveAll(filepath.Join(s.trash(), id))
}

// Retired lists the containers that were retired and not purged: a removal that is
// under way, or one that died.
func (s *Store) Retired() ([]string, error) { return listIDs(s.trash()) }

// randomName picks adjective_surname; from the sixth try on with a digit, as Docker does.
func randomName(try int) string {
	a, n := adjectives(), surnames()
	name := a[mathrand.IntN(len(a))] + "_" + n[mathrand.IntN(len(n))]
	if try > 5 {
		name += strconv.Itoa(mathrand.IntN(10 * (try - 5)))
	}
	return name
}
