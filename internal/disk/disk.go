// Package disk keeps records on disk so that a crash or a power cut leaves the old
// record or the new one, never half of one.
//
// It writes once by rename, locks, and holds directories that are garbage when
// nobody holds them. It knows no domain; every owner of a directory uses it.
package disk

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

// Put replaces the file at path by data, durably: temp in the same directory,
// write, fsync, chmod, rename, fsync of the directory.
func Put(path string, data []byte, perm fs.FileMode) error {
	return put(path, data, perm, true)
}

// PutVolatile is Put without the two fsyncs: atomic for readers and for crashes of
// processes, but a power cut may lose it. For what does not outlive a boot.
func PutVolatile(path string, data []byte, perm fs.FileMode) error {
	return put(path, data, perm, false)
}

func put(path string, data []byte, perm fs.FileMode, durable bool) (err error) {
	p, err := Prepare(path, data, perm)
	if err != nil {
		return err
	}
	defer p.Drop()
	if durable {
		if err := p.Sync(); err != nil {
			return err
		}
	}
	if err := p.Rename(); err != nil {
		return err
	}
	if durable {
		return SyncDir(filepath.Dir(path))
	}
	return nil
}

// Pending is a file that is written and waits for its name, so that several can be flushed at once and
// then named in order. Put is Prepare, Sync, Rename and SyncDir.
type Pending struct {
	f    *os.File // nil: it has its name, or is gone
	path string
}

// Prepare writes data beside path.
func Prepare(path string, data []byte, perm fs.FileMode) (*Pending, error) {
	f, err := os.CreateTemp(filepath.Dir(path), tempPrefix+"*")
	if err != nil {
		return nil, err
	}
	p := &Pending{f, path}
	if _, err = f.Write(data); err == nil {
		err = f.Chmod(perm)
	}
	if err != nil {
		p.Drop()
		return nil, err
	}
	return p, nil
}

// Sync flushes the bytes.
func (p *Pending) Sync() error { return p.f.Sync() }

// Rename gives the file its name; SyncDir makes that durable.
func (p *Pending) Rename() error {
	if err := os.Rename(p.f.Name(), p.path); err != nil {
		return err
	}
	f := p.f
	p.f = nil
	return f.Close()
}

// Drop deletes what has no name yet.
func (p *Pending) Drop() {
	if p.f != nil {
		p.f.Close()
		os.Remove(p.f.Name())
		p.f = nil
	}
}

// PutJSON is Put of v's JSON, mode 0600.
func PutJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return Put(path, b, 0o600)
}

// PutJSONVolatile is PutVolatile of v's JSON, mode 0600.
func PutJSONVolatile(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return PutVolatile(path, b, 0o600)
}

// GetJSON reads the record at path into v. A missing file is fault.NotFound; a
// torn or foreign one is an error that names the file.
func GetJSON(path string, v any) error {
	b, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.As(fault.NotFound, err)
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read record %s: %w", path, err)
	}
	return nil
}

// readFile is os.ReadFile with four system calls instead of ten: lists read thousands of records.
func readFile(path string) ([]byte, error) {
	fd, err := retry(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	b := make([]byte, 0, 4<<10)
	for {
		n, err := retry(func() (int, error) { return unix.Read(fd, b[len(b):cap(b)]) })
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			return b, nil
		}
		if b = b[:len(b)+n]; len(b) == cap(b) {
			b = append(b, make([]byte, len(b))...)[:len(b)]
		}
	}
}

func retry(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR {
			return n, err
		}
	}
}

// SyncDir makes renames and unlinks in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// SyncFS flushes the file system that holds path (syncfs(2)).
func SyncFS(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// IsTemp reports whether a directory entry is an unfinished Put; readers of a
// directory skip these.
func IsTemp(name string) bool { return strings.HasPrefix(name, tempPrefix) }

const tempPrefix = ".tmp-"
