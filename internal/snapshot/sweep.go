package snapshot

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"keg/internal/disk"
	"keg/internal/fault"
	"keg/internal/image"
)

// Lease protects stacks from Sweep until Release or the end of the process.
type Lease interface {
	Add(stack []digest.Digest) error
	Release() error
}

type lease struct {
	s *Store
	f *os.File
}

// Lease starts a lease on stacks, whether their layers are here already or not. Take
// it before relying on what Has says.
func (s *Store) Lease(ctx context.Context, stacks ...[]digest.Digest) (Lease, error) {
	unlock, err := s.lock(unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer unlock()
	f, err := os.OpenFile(s.layers(".leases/"+randomName()), os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	l := &lease{s, f}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	for _, st := range stacks {
		if err == nil {
			err = l.write(st)
		}
	}
	if err != nil {
		l.Release()
		return nil, err
	}
	return l, nil
}

// Add waits for a Sweep under way: what it left is there to stay.
func (l *lease) Add(stack []digest.Digest) error {
	unlock, err := l.s.lock(unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer unlock()
	return l.write(stack)
}

func (l *lease) write(stack []digest.Digest) error {
	b, err := json.Marshal(stack)
	if err != nil {
		return err
	}
	_, err = l.f.Write(append(b, '\n'))
	return err
}

func (l *lease) Release() error {
	err := os.Remove(l.f.Name())
	if notExist(err) {
		err = nil
	}
	return errors.Join(err, l.f.Close())
}

// Sweep removes layers that belong to no stack in keep (nor to an active key or a
// lease, nor were placed within grace) and returns the freed diffIDs and bytes. keep is
// called while nothing can be prepared, placed or leased; it must not do so itself.
func (s *Store) Sweep(ctx context.Context, grace time.Duration, keep func() ([][]digest.Digest, error)) (freed []digest.Digest, bytes int64, err error) {
	gone, err := s.trashUnused(grace, keep)
	for _, r := range gone {
		freed, bytes = append(freed, r.DiffID), bytes+r.Files
	}
	if err != nil {
		return freed, bytes, err
	}
	if err := s.sweepActive(grace); err != nil {
		return freed, bytes, err
	}
	return freed, bytes, errors.Join(disk.Sweep(s.layers(".new")), s.EmptyTrash())
}

func (s *Store) trashUnused(grace time.Duration, keep func() ([][]digest.Digest, error)) (gone []record, err error) {
	unlock, err := s.lock(unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer unlock()
	used, err := s.used(keep)
	if err != nil {
		return nil, err
	}
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		st, err := os.Lstat(s.layers(n))
		if err != nil {
			return gone, err
		}
		if used[n] || grace > 0 && time.Since(st.ModTime()) < grace {
			continue
		}
		r, err := s.record(n)
		if err != nil {
			r.DiffID = digest.Digest("sha256:" + n[strings.IndexByte(n, '-')+1:])
		}
		if _, err := s.trash(s.layers(n)); err != nil {
			return gone, err
		}
		gone = append(gone, r)
	}
	return gone, nil
}

// used returns the directories that somebody refers to. Leases are read before keep is
// asked: who releases a lease has made the name that keep finds.
func (s *Store) used(keep func() ([][]digest.Digest, error)) (map[string]bool, error) {
	used := map[string]bool{}
	leased, err := s.leased()
	if err != nil {
		return nil, err
	}
	keys, err := s.Keys()
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		p, err := s.parents(k)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("sweep: %w", err)
		}
		for _, l := range p.Layers {
			used[l] = true
		}
	}
	kept, err := keep()
	if err != nil {
		return nil, err
	}
	for _, st := range append(leased, kept...) {
		if err := validStack(st); err != nil {
			return nil, err
		}
		for i, chain := range image.ChainIDs(st) {
			used[sharedName(st[i])] = true
			used[chainName(chain)] = true
		}
	}
	return used, nil
}

// leased reads the leases whose holder lives and deletes the others.
func (s *Store) leased() (stacks [][]digest.Digest, err error) {
	files, err := filepath.Glob(s.layers(".leases/*"))
	if err != nil {
		return nil, err
	}
	for _, p := range files {
		f, err := os.Open(p)
		if notExist(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		held := errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
		f.Close()
		if !held {
			os.Remove(p)
			continue
		}
		b, err := os.ReadFile(p)
		if err != nil && !notExist(err) {
			return nil, err
		}
		lines := bufio.NewScanner(bytes.NewReader(b))
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var st []digest.Digest
			if err := json.Unmarshal(lines.Bytes(), &st); err != nil {
				return nil, fmt.Errorf("read lease %s: %w", p, err)
			}
			stacks = append(stacks, st)
		}
	}
	return stacks, nil
}

// sweepActive removes keys that a killed Prepare left half made.
func (s *Store) sweepActive(grace time.Duration) error {
	ents, err := os.ReadDir(s.active(""))
	if err != nil {
		return err
	}
	for _, e := range ents {
		st, err := e.Info()
		if err != nil || validKey(e.Name()) == nil || time.Since(st.ModTime()) < max(grace, time.Minute) {
			continue
		}
		if _, err := s.trash(s.active(e.Name())); err != nil {
			return err
		}
	}
	return nil
}
