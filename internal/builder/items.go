// What the cache keeps, as a list: for people, and for making room.
package builder

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"keg/internal/disk"
	"keg/internal/fault"
)

// Kinds of items.
const (
	ItemStep    = "step"
	ItemMount   = "mount"   // RUN --mount=type=cache
	ItemTree    = "tree"    // digests of files of a stage
	ItemContext = "context" // digests of files of a context
	ItemURL     = "url"     // what a server said of an ADD
	ItemLast    = "last"    // the steps of the last build of a Dockerfile
)

// Item is one thing that the cache keeps.
type Item struct {
	Kind, ID    string
	Description string
	Size        int64 // bytes below Deps.Steps; a step's layer is beside them
	Created     time.Time
	Used        time.Time // roughly
	Step        *Record   // of a step
}

// Items lists all that the cache at dir keeps, in no order. What goes away meanwhile is
// left out.
func Items(dir string) ([]Item, error) {
	records, err := Records(dir)
	if err != nil {
		return nil, err
	}
	c := cache{dir}
	var items []Item
	for i := range records {
		r := &records[i]
		items = append(items, Item{Kind: ItemStep, ID: r.Key, Description: r.Step, Created: r.Created, Used: r.Used, Step: r,
			Size: allocated(c.record(r.Key)) + allocated(c.inputs(r.Key))})
	}
	for _, k := range [...]struct{ dir, kind, description string }{
		{"trees", ItemTree, "digests of files of a stage"},
		{"sums", ItemContext, "digests of files of a context"},
		{"urls", ItemURL, "answer of a server to an ADD"},
		{"last", ItemLast, "steps of the last build of a Dockerfile"},
	} {
		found, err := c.files(k.dir, k.kind, k.description)
		if err != nil {
			return nil, err
		}
		items = append(items, found...)
	}
	mounts, err := c.mounts()
	return append(items, mounts...), err
}

func (c cache) files(dir, kind, description string) (items []Item, err error) {
	ents, err := os.ReadDir(c.dir(dir))
	if err != nil && !notExist(err) {
		return nil, err
	}
	for _, e := range ents {
		if st, err := e.Info(); err == nil && !disk.IsTemp(e.Name()) {
			items = append(items, Item{Kind: kind, ID: e.Name(), Description: description,
				Size: allocated(c.dir(dir) + "/" + e.Name()), Created: st.ModTime(), Used: st.ModTime()})
		}
	}
	return items, nil
}

// mountNote stands beside the directory of a cache mount and tells its id; its time is
// the last use of the directory.
type mountNote struct {
	ID string `json:"id"`
}

const noteSuffix = ".json"

func (c cache) noteMount(name, id string) error {
	p := c.mountDir(name) + noteSuffix
	now := time.Now()
	if os.Chtimes(p, now, now) == nil {
		return nil
	}
	return disk.PutJSONVolatile(p, mountNote{id})
}

func (c cache) mounts() (items []Item, err error) {
	ents, err := os.ReadDir(c.dir("mounts"))
	if err != nil && !notExist(err) {
		return nil, err
	}
	for _, e := range ents {
		dir := c.mountDir(e.Name())
		st, err := e.Info()
		if err != nil || !e.IsDir() {
			continue
		}
		i := Item{Kind: ItemMount, ID: e.Name(), Description: "cached mount", Created: st.ModTime(), Used: st.ModTime()}
		// A further directory of a mount that is not shared shares the note of the first.
		note := c.mountDir(strings.SplitN(e.Name(), "-", 2)[0]) + noteSuffix
		var n mountNote
		if disk.GetJSON(note, &n) == nil {
			i.Description = "cached mount " + n.ID
		}
		if st, err := os.Stat(note); err == nil {
			i.Used = st.ModTime()
		}
		i.Size = treeSize(dir)
		items = append(items, i)
	}
	return items, nil
}

// treeSize is what a directory takes on the disk. Programs of a build filled it: it is
// walked below its root only.
func treeSize(dir string) (sum int64) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0
	}
	defer root.Close()
	_ = fs.WalkDir(root.FS(), ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if st, err := root.Lstat(p); err == nil {
			if s, ok := st.Sys().(*syscall.Stat_t); ok {
				sum += s.Blocks * 512
			}
		}
		return nil
	})
	return sum
}

func allocated(p string) int64 {
	var st unix.Stat_t
	if unix.Lstat(p, &st) != nil {
		return 0
	}
	return st.Blocks * 512
}

// Drop removes items from the cache at dir: it costs time in the next build, nothing else.
// Layers of steps are for the snapshots to sweep. A mount that a step uses stays.
func Drop(dir string, items ...Item) error {
	c := cache{dir}
	var errs []error
	for _, i := range items {
		if i.ID != filepath.Base(i.ID) || i.ID == "." || i.ID == ".." {
			return fault.Invalidf("%q is not the name of something in the build cache", i.ID)
		}
		switch i.Kind {
		case ItemStep:
			errs = append(errs, Forget(dir, i.ID))
		case ItemMount:
			errs = append(errs, c.dropMount(i.ID))
		case ItemTree:
			errs = append(errs, gone(os.Remove(c.tree(i.ID))))
		case ItemContext:
			errs = append(errs, gone(os.Remove(c.sumsFile(i.ID))))
		case ItemURL:
			errs = append(errs, gone(os.Remove(c.url(i.ID))))
		case ItemLast:
			errs = append(errs, gone(os.Remove(c.last(i.ID))))
		}
	}
	return errors.Join(errs...)
}

// dropMount moves the directory away before it is emptied: a build that starts now finds
// all of it or nothing.
func (c cache) dropMount(name string) error {
	lock, err := disk.TryLock(c.mountDir(name) + ".lock")
	if err != nil || lock == nil {
		return err
	}
	defer lock.Unlock()
	tmp, err := disk.HoldDir(c.dir("held"), "mount-")
	if err != nil {
		return err
	}
	defer tmp.Remove()
	if err := os.Rename(c.mountDir(name), filepath.Join(tmp.Path, "d")); err != nil {
		return gone(err)
	}
	return gone(os.Remove(c.mountDir(name) + noteSuffix))
}

func gone(err error) error {
	if notExist(err) {
		return nil
	}
	return err
}

// Due reports whether the cache at dir was last looked after longer ago than every, and
// if so notes that it is being done now.
func Due(dir string, every time.Duration) (bool, error) {
	p := filepath.Join(dir, "quota")
	if st, err := os.Stat(p); err == nil && time.Since(st.ModTime()) < every {
		return false, nil
	}
	return true, disk.PutVolatile(p, nil, 0o600)
}
