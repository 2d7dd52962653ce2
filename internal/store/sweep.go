// Collection while others work. What looks unused is first moved to the trash, then
// leases and marks are read again, and only what is still unused is deleted. Whoever
// asks for a blob in between takes it back out of the trash (rescue).

package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"keg/internal/disk"
	"keg/internal/weakness"
)

// Sweep deletes blobs that are neither marked nor leased (nor younger than grace) and
// returns what it freed. marks is called after the leases were read, and once more before
// anything is deleted. Half-written blobs that nobody holds or touched within grace go too.
//
// Why nothing in use is lost: an operation writes its lease before it looks for a blob, and
// its name before it releases the lease. The second look reads leases, then marks: it sees
// the lease, or the name. An operation that begins after that look finds the blob in
// the trash and takes it back, or finds nothing and fetches it.
func (s *Store) Sweep(ctx context.Context, grace time.Duration, marks func() (map[digest.Digest]bool, error)) (freed []digest.Digest, bytes int64, err error) {
	lock, err := disk.LockFile(ctx, s.path("trash", ".lock"))
	if err != nil {
		return nil, 0, err
	}
	defer lock.Unlock()
	before := time.Now().Add(-grace)
	s.sweepIngests(before)
	s.sweepTemps(before)

	used, err := s.used(marks)
	if err != nil {
		return nil, 0, err
	}
	if err := s.discard(ctx, used, before); err != nil {
		return nil, 0, err
	}
	found, err := s.trashed() // with what a sweep that died has left
	if err != nil || len(found) == 0 {
		return nil, 0, err
	}
	if !weakness.Of("RS6") {
		used, err = s.used(marks)
	}
	if err != nil {
		return nil, 0, err
	}
	for _, d := range found {
		st, err := os.Stat(s.trashPath(d))
		if err != nil {
			continue // rescued
		}
		if used[d] || !st.ModTime().Before(before) {
			s.rescue(d)
			continue
		}
		if os.Remove(s.trashPath(d)) == nil {
			freed = append(freed, d)
			bytes += st.Size()
		}
	}
	return freed, bytes, nil
}

// used is everything that a lease or a mark names, in this order.
func (s *Store) used(marks func() (map[digest.Digest]bool, error)) (map[digest.Digest]bool, error) {
	held, err := s.leased()
	if err != nil {
		return nil, fmt.Errorf("read leases: %w", err)
	}
	marked, err := marks()
	if err != nil {
		return nil, fmt.Errorf("find what is in use: %w", err)
	}
	for d, yes := range marked {
		held[d] = held[d] || yes
	}
	return held, nil
}

func (s *Store) discard(ctx context.Context, used map[digest.Digest]bool, before time.Time) error {
	for d := range s.Blobs() {
		if err := ctx.Err(); err != nil {
			return err
		}
		st, err := os.Stat(s.blobPath(d))
		if err != nil || used[d] || !st.ModTime().Before(before) {
			continue
		}
		if err := os.Rename(s.blobPath(d), s.trashPath(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (s *Store) trashed() (ds []digest.Digest, err error) {
	ents, err := os.ReadDir(s.path("trash"))
	if err != nil {
		return nil, err
	}
	for _, e := range ents {
		alg, hex, _ := strings.Cut(e.Name(), "-")
		d := digest.Digest(alg + ":" + hex)
		if checkDigest(d) == nil {
			ds = append(ds, d)
		}
	}
	return ds, nil
}

func (s *Store) sweepIngests(before time.Time) {
	ents, _ := os.ReadDir(s.path("ingest"))
	for _, e := range ents {
		dir := s.path("ingest", e.Name())
		f, err := os.Open(dir)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && sameFile(f, dir) && lastWrite(dir).Before(before) {
			os.RemoveAll(dir)
		}
		f.Close()
	}
}

func lastWrite(dir string) (last time.Time) {
	filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if st, err := e.Info(); err == nil && st.ModTime().After(last) {
			last = st.ModTime()
		}
		return nil
	})
	return last
}

// sweepTemps removes what writers of names that were killed have left.
func (s *Store) sweepTemps(before time.Time) {
	filepath.WalkDir(s.path("names"), func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !disk.IsTemp(e.Name()) {
			return nil
		}
		if st, err := e.Info(); err == nil && st.ModTime().Before(before) {
			os.Remove(p)
		}
		return nil
	})
}
