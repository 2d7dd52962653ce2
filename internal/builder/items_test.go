package builder

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/disk"
)

func TestItemsAndDrop(t *testing.T) {
	c := cache{t.TempDir()}
	if err := c.open(); err != nil {
		t.Fatal(err)
	}
	key, mount := hashName("k"), hashName("go-build")
	if err := c.put(&Record{Key: key, Step: "RUN make", Layer: digest.FromString("x"), Created: time.Now()}, nil); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{c.tree("t"), c.sumsFile("s"), c.url("u"), c.last("l")} {
		if err := os.WriteFile(p, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	outside := filepath.Join(t.TempDir(), "canary")
	if err := os.WriteFile(outside, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(c.mountDir(mount)+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.mountDir(mount)+"/sub/f", make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, c.mountDir(mount)+"/sub/link"); err != nil {
		t.Fatal(err)
	}
	if err := c.noteMount(mount, "go-build"); err != nil {
		t.Fatal(err)
	}
	list := func() (kinds []string, items []Item) {
		t.Helper()
		items, err := Items(c.root)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range items {
			kinds = append(kinds, i.Kind)
			if i.Used.IsZero() || i.Kind == ItemMount && (i.Size < 64<<10 || i.Size > 512<<10 || i.Description != "cached mount go-build") {
				t.Errorf("%+v", i)
			}
		}
		slices.Sort(kinds)
		return kinds, items
	}
	kinds, items := list()
	if got := strings.Join(kinds, " "); got != "context last mount step tree url" {
		t.Errorf("kinds %q", got)
	}
	lock, err := disk.LockFile(t.Context(), c.mountDir(mount)+".lock")
	if err != nil {
		t.Fatal(err)
	}
	if err := Drop(c.root, items...); err != nil {
		t.Fatal(err)
	}
	if kinds, _ := list(); len(kinds) != 1 || kinds[0] != ItemMount {
		t.Errorf("left: %v; want the mount in use alone", kinds)
	}
	lock.Unlock()
	if err := Drop(c.root, items...); err != nil {
		t.Fatal(err)
	}
	if kinds, _ := list(); len(kinds) != 0 {
		t.Errorf("left: %v", kinds)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error("a link of a mount was followed:", err)
	}
	for _, id := range []string{"../x", "..", "a/b", ""} {
		if err := Drop(c.root, Item{Kind: ItemTree, ID: id}); err == nil {
			t.Errorf("Drop of %q is no error", id)
		}
	}
}
