package engine

import (
	"os"
	"testing"

	"github.com/moby/moby/api/types/container"

	"keg/internal/fault"
	"keg/internal/image"
)

func asRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: the files of carried images belong to it")
	}
}

func TestCarriedImages(t *testing.T) {
	asRoot(t)
	f := newFakeRegistry()
	f.down = fault.Unavailablef("no network")
	e := newEngine(t, f)
	withMonitors(e)
	o := CreateOptions{Name: "hi", Config: &container.Config{Image: "keg/hello"}, Host: &container.HostConfig{NetworkMode: "none"}, Pull: "always"}
	if _, err := e.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	list, err := e.Images(t.Context(), ImageListOptions{})
	if err != nil || len(list) != 1 || list[0].RepoTags[0] != "keg/hello:latest" || list[0].Size == 0 {
		t.Fatalf("got %+v, %v", list, err)
	}
	h, err := e.History(t.Context(), "keg/hello")
	if err != nil || len(h) == 0 || h[0].CreatedBy == "" {
		t.Errorf("got %+v, %v", h, err)
	}
	if p, _, err := pull(t, e, "keg/hello"); err != nil || p.Newer {
		t.Errorf("got %+v, %v", p, err)
	}
	b, err := bases{e: e}.Base(t.Context(), refs(t, "keg/shell")[0], image.Host(), true)
	if err != nil || len(b.Config.RootFS.DiffIDs) == 0 {
		t.Errorf("got %+v, %v", b, err)
	}
	if len(f.requested) != 0 {
		t.Errorf("a registry was asked for %v", f.requested)
	}
	// A prune takes the one that nobody uses: it comes back by itself.
	if _, err := e.Prune(t.Context(), PruneOptions{Images: true}); err != nil {
		t.Fatal(err)
	}
	if list, _ := e.Images(t.Context(), ImageListOptions{}); len(list) != 1 || list[0].RepoTags[0] != "keg/hello:latest" {
		t.Errorf("got %+v", list)
	}
	other := image.Platform{OS: "linux", Architecture: "s390x"}
	if _, err := e.Pull(t.Context(), refs(t, "keg/hello")[0], PullOptions{Platform: &other}); !fault.Is(err, fault.NotFound) {
		t.Errorf("got %v", err)
	}
	if err := e.Remove(t.Context(), "hi", RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.RemoveImage(t.Context(), "keg/hello", false); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, e); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestACarriedImageCanBeTaggedUnused(t *testing.T) {
	asRoot(t)
	e := newEngine(t, newFakeRegistry())
	if err := e.Tag(t.Context(), "keg/hello", "mine:1"); err != nil {
		t.Fatal(err)
	}
	// It has a name of the user's now: that one is not keg's to remove.
	if _, err := e.Prune(t.Context(), PruneOptions{Images: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.InspectImage(t.Context(), "mine:1"); err != nil {
		t.Error(err)
	}
}
