// Leases: one file per operation under a flock, one digest a line. A file that nobody
// holds is a dead operation's and counts for nothing.

package store

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Lease protects digests from collection until Release or, when the process dies,
// until its flock ends. Add before relying on a digest.
type Lease interface {
	Add(ds ...digest.Digest) error
	Release() error
}

type lease struct {
	s *Store
	f *os.File
}

// Lease starts a lease on ds.
func (s *Store) Lease(ctx context.Context, ds ...digest.Digest) (Lease, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		f, err := os.CreateTemp(s.path("leases"), "")
		if err != nil {
			return nil, fmt.Errorf("lease: %w", err)
		}
		// A sweep between the two calls takes the file for a dead one's: try again.
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil || !sameFile(f, f.Name()) {
			f.Close()
			continue
		}
		l := &lease{s, f}
		if err := l.Add(ds...); err != nil {
			l.Release()
			return nil, err
		}
		return l, nil
	}
}

func (l *lease) Add(ds ...digest.Digest) error {
	var b strings.Builder
	for _, d := range ds {
		if err := checkDigest(d); err != nil {
			return err
		}
		b.WriteString(string(d) + "\n")
	}
	if b.Len() == 0 {
		return nil
	}
	if _, err := l.f.WriteString(b.String()); err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	// What was leased stays for the grace time after the lease ends.
	for _, d := range ds {
		l.s.touch(d)
	}
	return nil
}

func (l *lease) Release() error {
	defer l.f.Close()
	return os.Remove(l.f.Name())
}

// leased returns what live operations rely on and deletes the leases of dead ones.
func (s *Store) leased() (map[digest.Digest]bool, error) {
	ents, err := os.ReadDir(s.path("leases"))
	if err != nil {
		return nil, err
	}
	held := map[digest.Digest]bool{}
	for _, e := range ents {
		if err := readLease(s.path("leases", e.Name()), held); err != nil {
			return nil, err
		}
	}
	return held, nil
}

func readLease(path string, held map[digest.Digest]bool) error {
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			return err
		}
		return nil // nobody's, or released just now
	}
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		held[digest.Digest(strings.TrimSuffix(line, "\n"))] = true
	}
	return nil
}
