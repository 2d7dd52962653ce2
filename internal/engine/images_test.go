package engine

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/opencontainers/go-digest"

	ctr "keg/internal/container"
	"keg/internal/event"
	"keg/internal/fault"
	"keg/internal/image"
)

func TestLookup(t *testing.T) {
	f := newFakeRegistry()
	desc, _ := f.publish(t, "web:1", image.Gzip, tarOf(t, map[string]string{"a": "x"}))
	e := newEngine(t, f)
	if _, _, err := pull(t, e, "web:1"); err != nil {
		t.Fatal(err)
	}
	r, err := e.lookup(t.Context(), "web:1")
	if err != nil {
		t.Fatal(err)
	}
	hex := r.ID.Encoded()
	for _, name := range []string{"docker.io/library/web:1", "web@" + string(desc.Digest), "web:1@" + string(desc.Digest), hex, hex[:12], "sha256:" + hex, "sha256:" + hex[:8]} {
		if got, err := e.lookup(t.Context(), name); err != nil || got.ID != r.ID {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, want := range map[string]string{
		"web":        "No such image: web:latest",
		"web:2":      "No such image: web:2",
		"ffff":       "No such image: ffff:latest",
		"sha256:00f": "No such image: sha256:00f",
	} {
		if _, err := e.lookup(t.Context(), name); !fault.Is(err, fault.NotFound) || err.Error() != want {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := e.lookup(t.Context(), "Web:1"); !fault.Is(err, fault.Invalid) {
		t.Errorf("got %v", err)
	}
}

func TestTagListHistoryRemove(t *testing.T) {
	e := newEngine(t, newFakeRegistry())
	base := tarOf(t, map[string]string{"base": noise(1, 20000)})
	top := tarOf(t, map[string]string{"top": noise(2, 10000)})
	addImage(t, e, "base:1", nil, base)
	r := addImage(t, e, "web:1", func(c *image.Config) {
		c.Config.Labels = map[string]string{"tier": "front"}
		c.History = append(c.History, image.History{Created: c.Created, CreatedBy: "CMD [\"x\"]", EmptyLayer: true})
	}, base, top)
	if err := e.Tag(t.Context(), "web:1", "localhost:5000/web"); err != nil {
		t.Fatal(err)
	}
	if err := e.Tag(t.Context(), "nope", "x"); errText(err) != "No such image: nope:latest" {
		t.Errorf("got %v", err)
	}
	if err := e.Tag(t.Context(), "web:1", "sha256:1"); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "refusing to create an ambiguous tag") {
		t.Errorf("got %v", err)
	}
	if err := e.Tag(t.Context(), "web:1", "UPPER"); !fault.Is(err, fault.Invalid) {
		t.Errorf("got %v", err)
	}
	list, err := e.Images(t.Context(), ImageListOptions{Filter: Filter{"label": {"tier"}}})
	if err != nil || len(list) != 1 || len(list[0].RepoTags) != 2 || list[0].Size < 30000 {
		t.Fatalf("got %+v, %v", list, err)
	}
	if list, _ := e.Images(t.Context(), ImageListOptions{Ref: "web"}); len(list) != 1 || len(list[0].RepoTags) != 1 || list[0].RepoTags[0] != "web:1" {
		t.Errorf("got %+v", list)
	}
	if _, err := e.Images(t.Context(), ImageListOptions{Filter: Filter{"nope": {"x"}}}); errText(err) != "invalid filter 'nope'" {
		t.Errorf("got %v", err)
	}
	h, err := e.History(t.Context(), "web:1")
	if err != nil || len(h) != 3 {
		t.Fatalf("got %+v, %v", h, err)
	}
	if h[0].ID != string(r.ID) || h[0].Size != 0 || h[1].ID != "<missing>" || h[1].Size < 10000 || h[2].Size < 20000 || len(h[0].Tags) != 2 {
		t.Errorf("got %+v", h)
	}
	gone, err := e.RemoveImage(t.Context(), "localhost:5000/web:latest", false)
	if err != nil || len(gone) != 1 || gone[0].Untagged != "localhost:5000/web:latest" {
		t.Errorf("got %+v, %v", gone, err)
	}
	gone, err = e.RemoveImage(t.Context(), "web:1", false)
	if err != nil || len(gone) != 3 || gone[1].Deleted != string(r.ID) || gone[2].Deleted != string(image.ChainID(r.Stack)) {
		t.Errorf("got %+v, %v", gone, err)
	}
	if n := e.snapshots.Has(r.Stack); n != 1 {
		t.Errorf("%d layers are left, want that of the base", n)
	}
	if _, err := e.RemoveImage(t.Context(), "base:1", false); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, e); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestUsedImagesStay(t *testing.T) {
	e, _ := withImage(t)
	id := createNamed(t, e, "web").ID
	f, err := e.lookup(t.Context(), "web:1")
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("conflict: unable to remove repository reference \"web:1\" (must force) - container %s is using its referenced image %s", id[:12], image.ShortID(string(f.ID)))
	if _, err := e.RemoveImage(t.Context(), "web:1", false); errText(err) != want || !fault.Is(err, fault.Conflict) {
		t.Errorf("got %v", err)
	}
	if _, err := e.RemoveImage(t.Context(), "web:1", true); err != nil {
		t.Fatal(err)
	}
	if n := e.snapshots.Has(f.Stack); n != 1 {
		t.Error("the layer of a container is gone")
	}
	list, err := e.Containers(t.Context(), ListOptions{All: true})
	if err != nil || list[0].Image != string(f.ID) {
		t.Errorf("got %+v, %v", list, err)
	}
	if err := e.Remove(t.Context(), "web", RemoveOptions{Volumes: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Prune(t.Context(), PruneOptions{Images: true}); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, e); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// An image that is mounted beside a root is used, too.
func TestMountedImagesStay(t *testing.T) {
	e, _ := withImage(t)
	addImage(t, e, "data:1", nil, tarOf(t, map[string]string{"f": "1"}))
	c, err := e.Create(t.Context(), CreateOptions{Name: "web", Config: &container.Config{Image: "web:1"},
		Host: &container.HostConfig{NetworkMode: "none", Mounts: []mount.Mount{{Type: mount.TypeImage, Source: "data:1", Target: "/data"}}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.RemoveImage(t.Context(), "data:1", false); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), c.ID[:12]+" is using its referenced image") {
		t.Errorf("got %v", err)
	}
	if _, err := e.RemoveImage(t.Context(), "data:1", true); err != nil {
		t.Error(err)
	}
}

func TestPruneAndUsage(t *testing.T) {
	e, m := withImage(t)
	addImage(t, e, "", nil, tarOf(t, map[string]string{"dangling": noise(7, 50000)}))
	_, _ = started(t, e, m, "running")
	createNamed(t, e, "stopped")
	us, err := e.DiskUsage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if us[0].Total != 2 || us[0].Active != 1 || us[0].Reclaimable < 50000 || us[0].Size <= us[0].Reclaimable ||
		us[1].Total != 2 || us[1].Active != 1 || us[2].Total != 2 || us[2].Active != 2 {
		t.Errorf("got %+v", us)
	}
	p, err := e.Prune(t.Context(), PruneOptions{Containers: true, Networks: true, Images: true, BuildCache: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Containers) != 1 || p.Reclaimed < 50000 || len(p.Images) != 2 || len(p.Volumes) != 0 {
		t.Errorf("got %+v", p)
	}
	if list, _ := e.Images(t.Context(), ImageListOptions{}); len(list) != 1 {
		t.Errorf("%d images are left", len(list))
	}
	p, err = e.Prune(t.Context(), PruneOptions{Volumes: true})
	if err != nil || len(p.Volumes) != 1 {
		t.Errorf("got %+v, %v", p, err)
	}
	if err := e.Remove(t.Context(), "running", RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	p, err = e.Prune(t.Context(), PruneOptions{All: true, Volumes: true, Containers: true, Images: true, BuildCache: true})
	if err != nil || len(p.Volumes) != 1 {
		t.Errorf("got %+v, %v", p, err)
	}
	if left := leftovers(t, e); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	var told []string
	sum := int64(0)
	if err := e.Events(t.Context(), time.Unix(1, 0), time.Now(), false, Filter{"event": {"prune"}}, func(m event.Message) error {
		n, err := strconv.ParseInt(m.Actor.Attributes["reclaimed"], 10, 64)
		told, sum = append(told, string(m.Type)), sum+n
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if want := "container network image builder volume container volume image builder"; strings.Join(told, " ") != want || sum < 50000 {
		t.Errorf("events %q of %d bytes, not %q", told, sum, want)
	}
}

func TestPruneFilters(t *testing.T) {
	e, _ := withImage(t)
	for name, labels := range map[string]map[string]string{"keep": {"keep": "yes"}, "drop": nil} {
		if _, err := e.Create(t.Context(), CreateOptions{Name: name, Config: &container.Config{Image: "web:1", Labels: labels}, Host: &container.HostConfig{NetworkMode: "none"}}); err != nil {
			t.Fatal(err)
		}
	}
	if p, err := e.Prune(t.Context(), PruneOptions{Containers: true, Filter: Filter{"until": {"1h"}}}); err != nil || len(p.Containers) != 0 {
		t.Errorf("got %+v, %v", p, err)
	}
	if p, err := e.Prune(t.Context(), PruneOptions{Containers: true, Filter: Filter{"label!": {"keep"}}}); err != nil || len(p.Containers) != 1 {
		t.Errorf("got %+v, %v", p, err)
	}
	if _, err := e.Prune(t.Context(), PruneOptions{Volumes: true, Filter: Filter{"until": {"1h"}}}); !fault.Is(err, fault.Invalid) {
		t.Errorf("got %v", err)
	}
	if _, err := e.Prune(t.Context(), PruneOptions{Filter: Filter{"name": {"x"}}}); errText(err) != "invalid filter 'name'" {
		t.Errorf("got %v", err)
	}
}

func TestPushCompressesBuiltLayersOnce(t *testing.T) {
	f := newFakeRegistry()
	e := newEngine(t, f)
	layer := tarOf(t, map[string]string{"big": strings.Repeat("keg ", 1<<18)})
	r := addImage(t, e, "localhost:5000/web:1", nil, layer)
	ref := refs(t, "localhost:5000/web:1")[0]
	var evs []PullEvent
	desc, err := e.Push(t.Context(), ref, func(ev PullEvent) { evs = append(evs, ev) })
	if err != nil {
		t.Fatal(err)
	}
	m, err := image.ParseManifest(f.blobs[desc.Digest])
	if err != nil {
		t.Fatal(err)
	}
	if l := m.Layers[0]; l.MediaType != image.MediaLayerGzip || l.Size > int64(len(layer))/10 || m.Config.Digest != r.ID {
		t.Errorf("got %+v", m)
	}
	if !strings.Contains(statuses(evs), "Pushed") {
		t.Errorf("events %s", statuses(evs))
	}
	in, err := e.InspectImage(t.Context(), "localhost:5000/web:1")
	if err != nil || len(in.RepoDigests) != 1 || in.RepoDigests[0] != "localhost:5000/web@"+string(desc.Digest) {
		t.Errorf("got %+v, %v", in.RepoDigests, err)
	}
	uploaded := f.uploaded
	evs = nil
	again, err := e.Push(t.Context(), ref, func(ev PullEvent) { evs = append(evs, ev) })
	if err != nil || again.Digest != desc.Digest || f.uploaded != uploaded || !strings.Contains(statuses(evs), "Layer already exists") || strings.Contains(statuses(evs), "Compressing") {
		t.Errorf("again: %v, %v, %d uploads, %s", again, err, f.uploaded-uploaded, statuses(evs))
	}
	if err := e.Tag(t.Context(), "localhost:5000/web:1", "localhost:5000/other:1"); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Push(t.Context(), refs(t, "localhost:5000/other:1")[0], nil); err != nil || f.mounted != 1 {
		t.Errorf("to another repository: %v, %d mounts", err, f.mounted)
	}
	other := newEngine(t, f)
	if _, _, err := pull(t, other, "localhost:5000/web:1"); err != nil {
		t.Fatal(err)
	}
	if got, err := other.lookup(t.Context(), "localhost:5000/web:1"); err != nil || got.ID != r.ID {
		t.Errorf("pulled %v, %v", got, err)
	}
	// What was pulled goes on unchanged.
	if err := other.Tag(t.Context(), "localhost:5000/web:1", "localhost:5000/third:1"); err != nil {
		t.Fatal(err)
	}
	if d, err := other.Push(t.Context(), refs(t, "localhost:5000/third:1")[0], nil); err != nil || d.Digest != desc.Digest {
		t.Errorf("got %v, %v", d, err)
	}
	if _, err := e.Push(t.Context(), refs(t, "localhost:5000/none:1")[0], nil); errText(err) != "An image does not exist locally with the tag: localhost:5000/none" {
		t.Errorf("got %v", err)
	}
	if _, err := e.RemoveImage(t.Context(), string(r.ID), true); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, e); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestCollectSparesTheYoungWhileOthersWork(t *testing.T) {
	e := newEngine(t, newFakeRegistry())
	use, err := e.busy(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d, err := e.store.Put(t.Context(), []byte("a document without a name"))
	if err != nil {
		t.Fatal(err)
	}
	if f, err := e.collect(t.Context()); err != nil || len(f.blobs) != 0 || !e.store.Has(d) {
		t.Errorf("got %+v, %v", f, err)
	}
	use.end()
	if f, err := e.collect(t.Context()); err != nil || len(f.blobs) != 1 || e.store.Has(d) {
		t.Errorf("got %+v, %v", f, err)
	}
}

func TestOrphanedWritableLayersGo(t *testing.T) {
	e, _ := withImage(t)
	id := createNamed(t, e, "web").ID
	f, err := e.lookup(t.Context(), "web:1")
	if err != nil {
		t.Fatal(err)
	}
	old, young := ctr.NewID(), ctr.NewID()
	for _, key := range []string{old, young} {
		if err := e.snapshots.Prepare(t.Context(), key, f.Stack); err != nil {
			t.Fatal(err)
		}
	}
	long := time.Now().Add(-2 * busyGrace)
	for _, key := range []string{old, id} {
		if err := os.Chtimes(e.snapshots.Upper(key), long, long); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.sweepOrphans(); err != nil {
		t.Fatal(err)
	}
	keys, err := e.snapshots.Keys()
	slices.Sort(keys)
	want := []string{id, young}
	slices.Sort(want)
	if err != nil || !slices.Equal(keys, want) {
		t.Errorf("left %v, %v; want the container's and the young one", keys, err)
	}
}

func TestLeasedDocumentsStay(t *testing.T) {
	e := newEngine(t, newFakeRegistry())
	doc := []byte("leased")
	use, err := e.use(t.Context(), digest.FromBytes(doc))
	if err != nil {
		t.Fatal(err)
	}
	d, err := e.store.Put(t.Context(), doc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.collect(t.Context()); err != nil || !e.store.Has(d) {
		t.Error("a leased document was collected")
	}
	use.end()
}
