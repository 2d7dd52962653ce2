package engine

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
)

// noise is a file that does not compress, the same for the same seed.
func noise(seed uint64, n int) string {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

func pull(t *testing.T, e *Engine, name string) (Pulled, []PullEvent, error) {
	t.Helper()
	var evs []PullEvent
	p, err := e.Pull(t.Context(), refs(t, name)[0], PullOptions{Progress: func(ev PullEvent) { evs = append(evs, ev) }})
	return p, evs, err
}

func statuses(evs []PullEvent) string {
	var s []string
	for _, ev := range evs {
		s = append(s, ev.Status)
	}
	return strings.Join(s, "\n")
}

func TestPullUnpacksKeepsAndNames(t *testing.T) {
	for _, c := range []image.Compression{image.Gzip, image.Zstd, image.Uncompressed} {
		f := newFakeRegistry()
		base, top := tarOf(t, map[string]string{"bin/": "", "bin/sh": "shell"}), tarOf(t, map[string]string{"data": noise(1, 1<<20)})
		desc, cfg := f.publish(t, "web:1", c, base, top)
		e := newEngine(t, f)
		p, evs, err := pull(t, e, "web:1")
		if err != nil {
			t.Fatalf("%s: %v", c, err)
		}
		if !p.Newer || p.Digest != desc.Digest {
			t.Errorf("got %+v", p)
		}
		log := statuses(evs)
		for _, want := range []string{"Pulling from library/web", "Pulling fs layer", "Downloading", "Download complete", "Pull complete",
			"Digest: " + string(desc.Digest), "Status: Downloaded newer image for web:1"} {
			if !strings.Contains(log, want) {
				t.Errorf("%s: no event %q in\n%s", c, want, log)
			}
		}
		if n := e.snapshots.Has(cfg.RootFS.DiffIDs); n != 2 {
			t.Errorf("%s: %d layers are in place", c, n)
		}
		in, err := e.InspectImage(t.Context(), "web:1")
		if err != nil || len(in.RepoTags) != 1 || len(in.RepoDigests) != 1 || in.RepoDigests[0] != "web@"+string(desc.Digest) {
			t.Errorf("%s: got %+v, %v", c, in, err)
		}
		_, evs, err = pull(t, e, "web:1")
		if err != nil || !strings.Contains(statuses(evs), "Status: Image is up to date for web:1") || !strings.Contains(statuses(evs), "Already exists") {
			t.Errorf("%s: again: %v\n%s", c, err, statuses(evs))
		}
		for d, n := range f.asked {
			if n != 1 {
				t.Errorf("%s: blob %s was asked for %d times", c, d, n)
			}
		}
	}
}

func TestPullResumesAfterACut(t *testing.T) {
	for _, ranges := range []bool{true, false} {
		f := newFakeRegistry()
		desc, cfg := f.publish(t, "web:1", image.Gzip, tarOf(t, map[string]string{"data": noise(2, 3<<20)}))
		f.cutAt, f.noRanges = 1<<20, !ranges
		e := newEngine(t, f)
		if _, _, err := pull(t, e, "web:1"); err == nil || !strings.Contains(err.Error(), errCut.Error()) {
			t.Fatalf("got %v", err)
		}
		if names, _ := e.store.Names(); len(names) != 0 || e.snapshots.Has(cfg.RootFS.DiffIDs) != 0 {
			t.Fatalf("half an image is visible: %v", names)
		}
		if _, _, err := pull(t, e, "web:1"); err != nil {
			t.Fatal(err)
		}
		m, _, err := e.manifest(desc.Digest)
		if err != nil {
			t.Fatal(err)
		}
		l := m.Layers[0]
		if want := l.Size; ranges && f.served[l.Digest] != want {
			t.Errorf("%d bytes were sent for a layer of %d", f.served[l.Digest], want)
		}
		if e.snapshots.Has(cfg.RootFS.DiffIDs) != 1 {
			t.Error("the layer is not in place")
		}
	}
}

func TestPullRefusesWrongBytes(t *testing.T) {
	f := newFakeRegistry()
	good := tarOf(t, map[string]string{"data": noise(3, 1<<20)})
	desc, cfg := f.publish(t, "web:1", image.Gzip, good)
	m, err := image.ParseManifest(f.blobs[desc.Digest])
	if err != nil {
		t.Fatal(err)
	}
	l := m.Layers[0]
	e := newEngine(t, f)
	flipped := bytes.Clone(f.blobs[l.Digest])
	flipped[len(flipped)/2] ^= 1
	// "short" comes last: what is right of it is kept for a resume.
	for _, c := range []struct {
		name string
		lie  []byte
	}{{"flipped", flipped}, {"long", append(bytes.Clone(f.blobs[l.Digest]), 'x')}, {"short", f.blobs[l.Digest][:l.Size-9]}} {
		name := c.name
		f.lie[l.Digest] = c.lie
		if _, _, err := pull(t, e, "web:1"); err == nil {
			t.Errorf("%s: no error", name)
		}
		if names, _ := e.store.Names(); len(names) != 0 || e.store.Has(l.Digest) || e.snapshots.Has(cfg.RootFS.DiffIDs) != 0 {
			t.Errorf("%s: something is visible", name)
		}
	}
	f.lie = map[digest.Digest][]byte{}
	// The short answer was kept for a resume; the rest completes it.
	if _, _, err := pull(t, e, "web:1"); err != nil {
		t.Errorf("the right bytes are refused afterwards: %v", err)
	}
}

func TestPullRefusesAWrongDiffID(t *testing.T) {
	f := newFakeRegistry()
	ref := refs(t, "web:1")[0]
	cfg := testConfig([]byte("something else"))
	m := image.Manifest{MediaType: image.MediaManifest}
	m.SchemaVersion = 2
	m.Config = f.putJSON(t, ref.Repository, image.MediaConfig, cfg)
	media, b := pack(t, image.Gzip, tarOf(t, map[string]string{"data": "x"}))
	m.Layers = []image.Descriptor{f.put(ref.Repository, media, b)}
	f.tags[ref.String()] = f.putJSON(t, ref.Repository, image.MediaManifest, m)
	e := newEngine(t, f)
	if _, _, err := pull(t, e, "web:1"); err == nil {
		t.Fatal("no error")
	}
	if e.snapshots.Has(cfg.RootFS.DiffIDs) != 0 {
		t.Error("the layer is in place")
	}
	if _, err := e.lookup(t.Context(), "web:1"); !fault.Is(err, fault.NotFound) {
		t.Errorf("the name exists: %v", err)
	}
}

func TestPullsOfTwoProcessesDownloadOnce(t *testing.T) {
	f := newFakeRegistry()
	desc, _ := f.publish(t, "web:1", image.Gzip, tarOf(t, map[string]string{"a": noise(4, 2<<20)}), tarOf(t, map[string]string{"b": noise(5, 2<<20)}))
	dir := t.TempDir()
	var wg sync.WaitGroup
	for range 4 {
		e := openEngine(t, dir, f)
		wg.Go(func() {
			if _, err := e.Pull(t.Context(), image.Reference{Registry: "docker.io", Repository: "library/web", Tag: "1"}, PullOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	m, err := image.ParseManifest(f.blobs[desc.Digest])
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range m.Layers {
		if f.asked[l.Digest] != 1 {
			t.Errorf("layer %s was downloaded %d times", l.Digest, f.asked[l.Digest])
		}
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "root", "ingest")); len(left) != 0 {
		t.Errorf("half-written blobs are left: %v", left)
	}
}

func TestPullSelectsThePlatform(t *testing.T) {
	f := newFakeRegistry()
	desc, _ := f.publish(t, "one:1", image.Gzip, tarOf(t, map[string]string{"a": "x"}))
	host := image.Host()
	desc.Platform = &host
	other := f.put("library/multi", image.MediaManifest, []byte("{}"))
	other.Platform = &image.Platform{OS: "linux", Architecture: "s390x"}
	x := image.Index{MediaType: image.MediaIndex, Manifests: []image.Descriptor{other, desc}}
	x.SchemaVersion = 2
	index := f.putJSON(t, "library/multi", image.MediaIndex, x)
	f.tags["docker.io/library/multi:1"] = index
	e := newEngine(t, f)
	p, _, err := pull(t, e, "multi:1")
	if err != nil || p.Digest != index.Digest {
		t.Fatalf("got %+v, %v", p, err)
	}
	in, err := e.InspectImage(t.Context(), "multi@"+string(index.Digest))
	if err != nil || in.Architecture != host.Architecture {
		t.Errorf("got %+v, %v", in, err)
	}
	want := image.Platform{OS: "linux", Architecture: "riscv64"}
	_, err = e.Pull(t.Context(), refs(t, "multi:1")[0], PullOptions{Platform: &want})
	if !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "no matching manifest for linux/riscv64") {
		t.Errorf("got %v", err)
	}
	_, err = e.Pull(t.Context(), refs(t, "one:1")[0], PullOptions{Platform: &want})
	if !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "was found but does not match the specified platform: wanted linux/riscv64, actual: linux/"+host.Architecture) {
		t.Errorf("got %v", err)
	}
}

func TestPullThatMovesATagLeavesTheOldImageDangling(t *testing.T) {
	f := newFakeRegistry()
	f.publish(t, "web:1", image.Gzip, tarOf(t, map[string]string{"a": "old"}))
	e := newEngine(t, f)
	if _, _, err := pull(t, e, "web:1"); err != nil {
		t.Fatal(err)
	}
	old, err := e.lookup(t.Context(), "web:1")
	if err != nil {
		t.Fatal(err)
	}
	f.publish(t, "web:1", image.Gzip, tarOf(t, map[string]string{"a": "new"}))
	if p, _, err := pull(t, e, "web:1"); err != nil || !p.Newer {
		t.Fatalf("got %+v, %v", p, err)
	}
	list, err := e.Images(t.Context(), ImageListOptions{Filter: Filter{"dangling": {"true"}}})
	if err != nil || len(list) != 1 || list[0].ID != string(old.ID) {
		t.Errorf("got %+v, %v", list, err)
	}
	gone, err := e.Prune(t.Context(), PruneOptions{Images: true})
	if err != nil || gone.Reclaimed == 0 {
		t.Errorf("got %+v, %v", gone, err)
	}
	if list, _ := e.Images(t.Context(), ImageListOptions{}); len(list) != 1 {
		t.Errorf("%d images after the prune", len(list))
	}
}
