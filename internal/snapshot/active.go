package snapshot

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"keg/internal/disk"
	"keg/internal/fault"
	"keg/internal/layer"
)

// parents is the record of an active key: what it stands on.
type parents struct {
	Version int             `json:"version"`
	Stack   []digest.Digest `json:"stack"`
	Layers  []string        `json:"layers"` // directories, bottom first
	Root    layer.Attr      `json:"root"`   // of the root directory as prepared
}

// Prepare makes the writable directory key on top of stack and remembers the stack.
// fault.Conflict when the key exists; fault.NotFound naming the missing layer.
func (s *Store) Prepare(ctx context.Context, key string, stack []digest.Digest) (err error) {
	if err := validKey(key); err != nil {
		return err
	}
	unlock, err := s.lock(unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer unlock()
	found, err := s.all(stack)
	if err != nil {
		return err
	}
	p := parents{Version: 1, Stack: stack}
	for _, l := range found {
		p.Layers = append(p.Layers, l.name)
	}
	// No fsync: a container's files are as durable as the container makes them.
	tmp := s.active(".new-" + randomName())
	if err := unix.Mkdir(tmp, 0o700); err != nil {
		return &os.PathError{Op: "mkdir", Path: tmp, Err: err}
	}
	defer func() {
		if err != nil {
			os.RemoveAll(tmp)
		}
	}()
	if p.Root, err = makeUpper(tmp, found); err != nil {
		return fmt.Errorf("prepare %s: %w", key, err)
	}
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := os.WriteFile(tmp+"/parents", b, 0o600); err != nil {
		return err
	}
	err = unix.Rename(tmp, s.active(key))
	if exists(err) {
		return fault.Conflictf("snapshot %q exists already", key)
	}
	return err
}

// makeUpper makes upper/ and work/; upper is the root directory that a container sees,
// so it looks like that of the layers below.
func makeUpper(tmp string, found []layerDir) (layer.Attr, error) {
	upper := tmp + "/upper"
	if err := unix.Mkdir(upper, 0o755); err != nil {
		return layer.Attr{}, err
	}
	if err := unix.Mkdir(tmp+"/work", 0o700); err != nil {
		return layer.Attr{}, err
	}
	attr, mtime, listed := rootAttr(found)
	var st unix.Stat_t
	if err := unix.Lstat(upper, &st); err != nil {
		return attr, err
	}
	if st.Uid != attr.UID || st.Gid != attr.GID {
		if err := unix.Chown(upper, int(attr.UID), int(attr.GID)); err != nil && os.Geteuid() == 0 {
			return attr, err
		}
	}
	if st.Mode&0o7777 != attr.Mode {
		if err := unix.Chmod(upper, attr.Mode); err != nil {
			return attr, err
		}
	}
	if listed {
		if err := unix.UtimesNano(upper, []unix.Timespec{mtime, mtime}); err != nil {
			return attr, err
		}
	}
	if err := unix.Lstat(upper, &st); err != nil {
		return attr, err
	}
	return layer.Attr{Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid}, nil
}

func (s *Store) parents(key string) (p parents, err error) {
	if err := validKey(key); err != nil {
		return p, err
	}
	err = disk.GetJSON(s.active(key)+"/parents", &p)
	if fault.Is(err, fault.NotFound) {
		return p, fault.NotFoundf("no such snapshot: %s", key)
	}
	for _, l := range p.Layers {
		if l != filepathBase(l) {
			return p, fmt.Errorf("read record of snapshot %s: bad layer name %q", key, l)
		}
	}
	return p, err
}

func filepathBase(p string) string { return p[strings.LastIndexByte(p, '/')+1:] }

// Upper is the absolute path of the writable directory of key; "" for no key. Writing
// into it directly would cover directories of the layers below with new ones: use
// Edit.
func (s *Store) Upper(key string) string {
	if validKey(key) != nil {
		return ""
	}
	return s.active(key) + "/upper"
}

// Stack returns what Prepare was given.
func (s *Store) Stack(key string) ([]digest.Digest, error) {
	p, err := s.parents(key)
	return p.Stack, err
}

// Keys lists the active keys, sorted.
func (s *Store) Keys() ([]string, error) {
	ents, err := os.ReadDir(s.active(""))
	if err != nil {
		return nil, err
	}
	var keys []string
	for _, e := range ents {
		if validKey(e.Name()) == nil {
			keys = append(keys, e.Name())
		}
	}
	return slices.Clip(keys), nil
}

// Remove deletes active key, at once for readers (rename), the bytes after it.
// Removing what is not there is no error.
func (s *Store) Remove(key string) error {
	name, err := s.discard(key)
	if err != nil || name == "" {
		return err
	}
	return s.removeTrash(name)
}

// Discard is the first half of Remove: the key is gone and its name free, the bytes
// wait for EmptyTrash. For who must not keep a user waiting.
func (s *Store) Discard(key string) error {
	_, err := s.discard(key)
	return err
}

func (s *Store) discard(key string) (string, error) {
	if err := validKey(key); err != nil {
		return "", err
	}
	return s.trash(s.active(key))
}

// trash moves a directory out of sight and returns its name in the trash; "" when it
// was not there.
func (s *Store) trash(p string) (string, error) {
	name := randomName()
	err := unix.Rename(p, s.layers(".trash/"+name))
	if notExist(err) {
		return "", nil
	}
	if err != nil {
		return "", &os.LinkError{Op: "rename", Old: p, New: s.layers(".trash/" + name), Err: err}
	}
	return name, nil
}

func (s *Store) removeTrash(name string) error {
	fd, err := unix.Open(s.layers(".trash"), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := layer.RemoveAt(fd, name); err != nil {
		return fmt.Errorf("delete %s: %w", s.layers(".trash/"+name), err)
	}
	return nil
}

// EmptyTrash deletes what was discarded, by whichever process.
func (s *Store) EmptyTrash() error {
	ents, err := os.ReadDir(s.layers(".trash"))
	if err != nil {
		return err
	}
	for _, e := range ents {
		if err := s.removeTrash(e.Name()); err != nil {
			return err
		}
	}
	return nil
}
