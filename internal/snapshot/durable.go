package snapshot

import (
	"context"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"keg/internal/disk"
	"keg/internal/linux"
)

// Layers are not synced as they are made. A mark stands beside each until Sync made it
// durable, and names its boot: after a crash of the machine whatever still has a
// mark of an earlier boot may be torn, and is dropped. File systems that journal
// directory operations in order (ext4, xfs, btrfs) never show the layer without its
// mark.

// markUnsynced notes that layer name is about to appear; the function notes that it
// has. Two marks, since a Sync that saw the first only may have run before the rename.
func (s *Store) markUnsynced(name string) (appeared func() error, err error) {
	boot, err := linux.BootID()
	if err != nil {
		return nil, err
	}
	dir := s.layers(".unsynced/" + boot)
	if err := touch(dir + "/" + name); err != nil {
		if !notExist(err) {
			return nil, err
		}
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
		if err := touch(dir + "/" + name); err != nil {
			return nil, err
		}
	}
	return func() error { return touch(dir + "/" + name + "+") }, nil
}

func touch(p string) error {
	f, err := os.OpenFile(p, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// Sync makes all committed layers durable before a name, push or export refers to
// them: a few small ones by themselves, else by one syncfs. (Open dropped those of earlier
// boots.)
func (s *Store) Sync(ctx context.Context) error {
	boot, err := linux.BootID()
	if err != nil {
		return err
	}
	dir := s.layers(".unsynced/" + boot)
	ents, err := os.ReadDir(dir)
	if notExist(err) || err == nil && len(ents) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if !s.syncNarrow(ctx, ents) {
		if err := disk.SyncFS(s.layers("")); err != nil {
			return err
		}
	}
	for _, e := range ents {
		if err := os.Remove(dir + "/" + e.Name()); err != nil && !notExist(err) {
			return err
		}
	}
	return nil
}

// dropUnsynced removes the layers that an earlier boot did not sync.
func (s *Store) dropUnsynced() error {
	ents, err := os.ReadDir(s.layers(".unsynced"))
	if err != nil || len(ents) == 0 {
		return err
	}
	boot, err := linux.BootID()
	if err != nil || len(ents) == 1 && ents[0].Name() == boot {
		return err
	}
	unlock, err := s.lock(unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	for _, e := range ents {
		if e.Name() == boot {
			continue
		}
		if err := s.dropBoot(s.layers(".unsynced/" + e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) dropBoot(dir string) error {
	marks, err := os.ReadDir(dir)
	if notExist(err) {
		return nil // another process did it
	}
	if err != nil {
		return err
	}
	for _, m := range marks {
		name := strings.TrimSuffix(m.Name(), "+")
		// Its mark goes last: a crash here repeats the dropping.
		if _, err := s.trash(s.layers(name)); err != nil {
			return err
		}
	}
	if err := disk.SyncDir(s.layers("")); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}
