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
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Chmod(perm); err != nil {
		return err
	}
	if durable {
		if err = f.Sync(); err != nil {
			return err
		}
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	if durable {
		return SyncDir(filepath.Dir(path))
	}
	return nil
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
	b, err := os.ReadFile(path)
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
func IsTemp(name string) bool { return strings.HasPrefix(name, ".tmp-") }
