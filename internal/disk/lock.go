package disk

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A Lock is an exclusive flock(2) on a file that is never removed while others may
// want it. It ends with Unlock or with the process.
type Lock struct{ f *os.File }

// LockFile waits until the lock at path is ours or ctx ends. The file is made when
// missing. The wait is the kernel's: first come, first served, and no polling.
func LockFile(ctx context.Context, path string) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = flock(f, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		got := make(chan error, 1)
		go func() { got <- flock(f, unix.LOCK_EX) }()
		select {
		case err = <-got:
		case <-ctx.Done():
			// flock(2) cannot be interrupted; a lock that comes too late is given back.
			go func() { <-got; f.Close() }()
			return nil, &os.PathError{Op: "flock", Path: path, Err: context.Cause(ctx)}
		}
	}
	if err != nil {
		f.Close()
		return nil, &os.PathError{Op: "flock", Path: path, Err: err}
	}
	return &Lock{f}, nil
}

// TryLock is LockFile without waiting: nil when somebody else holds the lock.
func TryLock(path string) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err = flock(f, unix.LOCK_EX|unix.LOCK_NB); err == nil {
		return &Lock{f}, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, nil
	}
	return nil, &os.PathError{Op: "flock", Path: path, Err: err}
}

// Unlock gives the lock up: at once, also while a process that is being forked still holds a copy of the descriptor.
func (l *Lock) Unlock() error { return letGo(l.f) }

// letGo unlocks before it closes. flock(2): a lock ends with its *last* descriptor, and between fork and
// execve a child has one of each.
func letGo(f *os.File) error {
	flock(f, unix.LOCK_UN)
	return f.Close()
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// A Dir is a directory in use: as long as its holder lives it carries a shared
// flock; without one it is garbage and Sweep removes it.
type Dir struct {
	Path string
	f    *os.File
}

// HoldDir makes a fresh directory below parent and holds it.
func HoldDir(parent, pattern string) (*Dir, error) {
	p, err := os.MkdirTemp(parent, pattern)
	if err != nil {
		return nil, err
	}
	// Between mkdir and flock a sweeper may take it for garbage: then anew.
	f, err := os.Open(p)
	if errors.Is(err, os.ErrNotExist) {
		return HoldDir(parent, pattern)
	}
	if err != nil {
		return nil, err
	}
	err = flock(f, unix.LOCK_SH|unix.LOCK_NB)
	if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
		f.Close()
		return nil, &os.PathError{Op: "flock", Path: p, Err: err}
	}
	if _, serr := os.Stat(p); err != nil || serr != nil {
		f.Close()
		return HoldDir(parent, pattern)
	}
	return &Dir{p, f}, nil
}

// Remove deletes the directory and lets go of it.
func (d *Dir) Remove() error {
	err := os.RemoveAll(d.Path)
	letGo(d.f)
	return err
}

// Release lets go without deleting: after the directory was renamed to its place.
func (d *Dir) Release() { letGo(d.f) }

// Sweep deletes the directories below parent that nobody holds.
func Sweep(parent string) error {
	ents, err := os.ReadDir(parent)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	var errs []error
	for _, e := range ents {
		if e.IsDir() {
			errs = append(errs, sweepOne(filepath.Join(parent, e.Name())))
		}
	}
	return errors.Join(errs...)
}

func sweepOne(p string) error {
	f, err := os.Open(p)
	if err != nil {
		return nil // gone, or not ours to judge
	}
	defer letGo(f)
	if flock(f, unix.LOCK_EX|unix.LOCK_NB) != nil {
		return nil // in use
	}
	return os.RemoveAll(p)
}
