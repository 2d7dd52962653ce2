package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
)

// putImage pushes a manifest of two blobs and returns the digests of all three.
func putImage(r *Repositories, repo, tag, content string) (ds []digest.Digest, err error) {
	ctx := context.Background()
	m := image.Manifest{MediaType: image.MediaManifest}
	m.SchemaVersion = 2
	for i, c := range []string{"{}" + content, "layer " + content} {
		d := digest.FromString(c)
		id := fmt.Sprintf("%d-%s-%s", i, content, tag)
		if err := r.StartUpload(ctx, repo, id); err != nil {
			return nil, err
		}
		if err := r.FinishUpload(ctx, repo, id, -1, strings.NewReader(c), d); err != nil {
			return nil, err
		}
		ds = append(ds, d)
		desc := image.Descriptor{MediaType: image.MediaConfig, Digest: d, Size: int64(len(c))}
		if i > 0 {
			desc.MediaType = image.MediaLayer
			m.Layers = append(m.Layers, desc)
		} else {
			m.Config = desc
		}
	}
	// What a server asks before it takes a manifest.
	for _, d := range ds {
		if _, err := r.StatBlob(ctx, repo, d); err != nil {
			return nil, fmt.Errorf("blob unknown: %w", err)
		}
	}
	doc, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	d := digest.FromBytes(doc)
	desc := image.Descriptor{MediaType: image.MediaManifest, Digest: d, Size: int64(len(doc))}
	return append(ds, d), r.PutManifest(ctx, repo, desc, doc, "", []string{tag})
}

func TestCollectRepositories(t *testing.T) {
	s := open(t)
	r := s.Repositories("localhost")
	ctx := t.Context()
	kept, err := putImage(r, "a", "1", "kept")
	if err != nil {
		t.Fatal(err)
	}
	gone, err := putImage(r, "a", "2", "gone")
	if err != nil {
		t.Fatal(err)
	}
	shared := upload(t, r, "b", "layer kept") // b's link alone goes: a needs the blob
	loose := upload(t, r, "b", "named by nothing")
	if err := r.DeleteManifest(ctx, "a", gone[2], ""); err != nil {
		t.Fatal(err)
	}
	if n, _, err := r.Collect(ctx, time.Hour); n != 0 || err != nil {
		t.Error("within the grace time:", n, err)
	}
	if _, err := r.StatBlob(ctx, "a", gone[0]); err != nil {
		t.Error(err)
	}
	old(t, s, kept...)
	old(t, s, append(gone, loose)...)
	n, size, err := r.Collect(ctx, time.Minute)
	if n != 4 || size == 0 || err != nil {
		t.Error(n, size, err)
	}
	for _, d := range kept[:2] {
		if _, err := r.StatBlob(ctx, "a", d); err != nil {
			t.Error(err)
		}
	}
	for _, tc := range []struct {
		repo string
		d    digest.Digest
	}{{"a", gone[0]}, {"a", gone[1]}, {"b", loose}, {"b", shared}} {
		if _, err := r.StatBlob(ctx, tc.repo, tc.d); !fault.Is(err, fault.NotFound) {
			t.Errorf("%s %s: %v", tc.repo, tc.d, err)
		}
	}
	if r.Exists("b") {
		t.Error("links to swept blobs are left")
	}
	if !s.Has(shared) {
		t.Error("a blob of another repository went with the link")
	}
}

// RS6: a collection every few milliseconds, with hardly any grace, while images are pushed,
// pulled and deleted: no push is refused and every image that has a name is whole.
func TestCollectWhilePushing(t *testing.T) {
	s := open(t)
	r := s.Repositories("localhost")
	ctx, cancel := context.WithCancel(t.Context())
	var house, work sync.WaitGroup
	for i := range 5 { // named and old: they stay
		ds, err := putImage(r, "r0", fmt.Sprint("before-", i), fmt.Sprint("before ", i))
		if err != nil {
			t.Fatal(err)
		}
		old(t, s, ds...)
	}
	rounds := 0
	lost := make(chan digest.Digest, 1000)
	house.Go(func() {
		for ctx.Err() == nil {
			if _, _, err := r.Collect(ctx, time.Minute); err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
				return
			}
			rounds++
			time.Sleep(5 * time.Millisecond) // between rounds; the test waits for nothing here
		}
	})
	for w := range 8 {
		work.Go(func() {
			for i := range 25 {
				repo, tag := fmt.Sprintf("r%d", w%3), fmt.Sprintf("t%d", i%4)
				// Half the contents come from several writers at once; the others are one writer's
				// alone, and some of these lose their name and look as if that were long ago.
				content := fmt.Sprint(i % 5)
				if i%2 == 1 {
					content = fmt.Sprintf("%d of %d", i, w)
				}
				tag = fmt.Sprintf("%s-%d", tag, w)
				ds, err := putImage(r, repo, tag, content)
				if err != nil {
					t.Error(err)
					return
				}
				if i%4 == 1 {
					if err := r.DeleteManifest(ctx, repo, ds[2], ""); err != nil {
						t.Error(err)
					}
					old(t, s, ds...)
					lost <- ds[1]
				}
			}
		})
	}
	work.Wait()
	cancel()
	house.Wait()
	if _, _, err := r.Collect(t.Context(), time.Minute); err != nil {
		t.Error(err)
	}
	close(lost)
	for d := range lost {
		if s.Has(d) {
			t.Error("not collected:", d)
		}
	}
	if rounds < 3 {
		t.Error("collected only", rounds, "times")
	}
	names, err := s.Names()
	if err != nil || len(names) == 0 {
		t.Fatal(err)
	}
	for _, n := range names {
		doc, err := s.Bytes(n.Desc.Digest, image.MaxManifest)
		if err != nil {
			t.Error(n.Ref, err)
			continue
		}
		m, err := image.ParseManifest(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range []digest.Digest{m.Config.Digest, m.Layers[0].Digest} {
			if _, err := r.StatBlob(t.Context(), n.Ref.Repository, d); err != nil {
				t.Errorf("%s: %v", n.Ref, err)
			}
		}
	}
}

func TestTimesAndUsage(t *testing.T) {
	s := open(t)
	r := s.Repositories("localhost")
	ctx := t.Context()
	ds, err := putImage(r, "a", "1", "x")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.PutManifest(ctx, "a", image.Descriptor{MediaType: image.MediaManifest, Digest: ds[2], Size: 1}, must(s.Bytes(ds[2], 1<<20)), "", []string{"2"}); err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-time.Hour)
	for _, tag := range []string{"1", "2"} {
		path, err := r.record("a", tag, "")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, past, past); err != nil {
			t.Fatal(err)
		}
	}
	path, _ := r.record("a", "", ds[2])
	os.Chtimes(path, past, past)
	pushed, pulled, err := r.Times(ctx, "a", "1", "")
	if err != nil || time.Since(pushed) > time.Minute || time.Since(pulled) < 50*time.Minute {
		t.Error(pushed, pulled, err)
	}
	r.NotePull(ctx, "a", "", ds[2]) // by digest: both tags stand for it
	for _, tag := range []string{"1", "2"} {
		if _, pulled, err := r.Times(ctx, "a", tag, ""); err != nil || time.Since(pulled) > time.Minute {
			t.Error(tag, pulled, err)
		}
	}
	if _, _, err := r.Times(ctx, "a", "none", ""); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if all, err := r.Digests(ctx, "a"); err != nil || !slices.Equal(all, ds[2:]) {
		t.Error(all, err)
	}
	if _, err := r.Digests(ctx, "none"); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	seen := map[digest.Digest]bool{}
	n, err := r.Usage(ctx, "a", seen)
	doc := must(s.Bytes(ds[2], 1<<20))
	if want := int64(len("{}x") + len("layer x") + len(doc)); n != want || err != nil {
		t.Error(n, want, err)
	}
	if n, err := r.Usage(ctx, "a", seen); n != 0 || err != nil {
		t.Error("counted twice:", n, err)
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

func TestFillBlob(t *testing.T) {
	s := open(t)
	r := s.Repositories("localhost")
	content := bytes.Repeat([]byte("0123456789"), 100_000)
	d := digest.FromBytes(content)
	var last int64 = -1
	fill := func(broken int) error {
		return r.FillBlob(t.Context(), "a", d, func(at int64) (io.ReadCloser, int64, error) {
			rest := content[at:]
			if broken > 0 {
				return io.NopCloser(io.MultiReader(bytes.NewReader(rest[:broken]), errReader{})), at, nil
			}
			if at == 0 {
				t.Error("begun anew")
			}
			return io.NopCloser(bytes.NewReader(rest)), at, nil
		}, func(ra io.ReaderAt, n int64) {
			if ra == nil {
				return
			}
			b := make([]byte, min(n, 10))
			if _, err := ra.ReadAt(b, n-int64(len(b))); err != nil || !bytes.Equal(b, content[n-int64(len(b)):n]) {
				t.Errorf("at %d: %q, %v", n, b, err)
			}
			last = n
		})
	}
	if err := fill(600_000); err == nil || last != 600_000 {
		t.Fatal(last, err)
	}
	if _, err := r.StatBlob(t.Context(), "a", d); !fault.Is(err, fault.NotFound) {
		t.Error("half a blob is visible:", err)
	}
	if err := fill(0); err != nil {
		t.Fatal(err)
	}
	if n, err := r.StatBlob(t.Context(), "a", d); n != int64(len(content)) || err != nil {
		t.Error(n, err)
	}
	wrong := digest.FromString("another")
	err := r.FillBlob(t.Context(), "a", wrong, func(int64) (io.ReadCloser, int64, error) {
		return io.NopCloser(strings.NewReader("x")), 0, nil
	}, func(io.ReaderAt, int64) {})
	if !fault.Is(err, fault.Invalid) || s.Has(wrong) {
		t.Error(err)
	}
}
