package snapshot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestSyncTreeLeavesLinksAndPipesAlone(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/file", "x")
	if err := os.Mkdir(dir+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/sub/file", "y")
	if err := os.Symlink("/nowhere/at/all", dir+"/sub/link"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(dir+"/pipe", 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	n := 0
	go func() { done <- syncTree(ctx, dir, &n) }()
	select {
	case err := <-done:
		if err != nil || n != 6 {
			t.Errorf("%d entries, %v", n, err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("hangs at a pipe")
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := syncTree(ended, dir, &n); err == nil {
		t.Error("goes on although nobody waits")
	}
}

func TestSyncTreeGivesUpOnManyFiles(t *testing.T) {
	dir := t.TempDir()
	for i := range narrowFiles + 1 {
		write(t, filepath.Join(dir, fmt.Sprint(i)), "")
	}
	n := 0
	if err := syncTree(ctx, dir, &n); err != errNotNarrow {
		t.Error(err)
	}
}

func TestSyncNarrowOfMarkedLayers(t *testing.T) {
	s := open(t)
	var st unix.Statfs_t
	if err := unix.Statfs(s.layers(""), &st); err != nil {
		t.Fatal(err)
	}
	if st.Type != unix.EXT4_SUPER_MAGIC && st.Type != unix.XFS_SUPER_MAGIC {
		t.Skip("needs ext4 or xfs below TMPDIR: elsewhere all is left to syncfs")
	}
	marks := func() []os.DirEntry {
		boots, _ := os.ReadDir(s.layers(".unsynced"))
		ents, err := os.ReadDir(s.layers(".unsynced/" + boots[0].Name()))
		if err != nil {
			t.Fatal(err)
		}
		return ents
	}
	add(t, s, nil, entry{name: "a"})
	if !s.syncNarrow(ctx, marks()) {
		t.Error("one small layer is left to syncfs")
	}
	for i := range narrowLayers {
		add(t, s, nil, entry{name: fmt.Sprint("b", i)})
	}
	if s.syncNarrow(ctx, marks()) {
		t.Error("many layers are synced one by one")
	}
}
