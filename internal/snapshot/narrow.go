package snapshot

// Making a few small layers durable one file after the other. One syncfs is the faster
// way for many files, but it also waits for what the rest of the machine has written: a
// rebuild of one line would pay for somebody else's download.

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"keg/internal/disk"
)

// Beyond these, one syncfs is cheaper.
const (
	narrowLayers = 8
	narrowFiles  = 128
)

var errNotNarrow = errors.New("too much to sync file by file")

// syncNarrow makes the marked layers durable by themselves. False leaves it to syncfs:
// there are too many, something cannot be opened, or the file system gives no promise
// about the links, names and attributes that no fsync is called for. (ext4 and xfs write
// their journal in order: syncing a directory carries all changes of names before it.)
func (s *Store) syncNarrow(ctx context.Context, marks []os.DirEntry) bool {
	var st unix.Statfs_t
	if unix.Statfs(s.layers(""), &st) != nil || st.Type != unix.EXT4_SUPER_MAGIC && st.Type != unix.XFS_SUPER_MAGIC {
		return false
	}
	names := map[string]bool{}
	for _, m := range marks {
		names[strings.TrimSuffix(m.Name(), "+")] = true
	}
	if len(names) > narrowLayers {
		return false
	}
	files := 0
	for name := range names {
		if err := syncTree(ctx, s.layers(name), &files); err != nil && !notExist(err) {
			return false
		}
	}
	return disk.SyncDir(s.layers("")) == nil
}

// syncTree flushes every file and directory below dir, children first. All writing is
// started before the first wait: then one commit of the journal has the rest, too.
func syncTree(ctx context.Context, dir string, files *int) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	var dirs []string
	var open []*os.File
	defer func() {
		for _, f := range open {
			f.Close()
		}
	}()
	err = fs.WalkDir(root.FS(), ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if *files++; *files > narrowFiles {
			return errNotNarrow
		}
		switch {
		case e.IsDir():
			dirs = append(dirs, p)
		case e.Type().IsRegular():
			f, err := openCommitted(root, p)
			if err != nil {
				return err
			}
			open = append(open, f)
			// Only a start: Sync is what counts.
			unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
		}
		return ctx.Err()
	})
	for i := 0; i < len(open) && err == nil; i++ {
		err = open[i].Sync()
	}
	for i := len(dirs) - 1; i >= 0 && err == nil; i-- {
		err = syncIn(root, dirs[i])
	}
	return err
}

// openCommitted opens a file of a layer. It does not change, yet a pipe must not block.
func openCommitted(root *os.Root, p string) (*os.File, error) {
	return root.OpenFile(p, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
}

func syncIn(root *os.Root, p string) error {
	f, err := openCommitted(root, p)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
