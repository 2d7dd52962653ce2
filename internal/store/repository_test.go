package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
)

func upload(t *testing.T, r *Repositories, repo, content string) digest.Digest {
	t.Helper()
	ctx, d := t.Context(), digest.FromString(content)
	if err := r.StartUpload(ctx, repo, "id"); err != nil {
		t.Fatal(err)
	}
	if err := r.FinishUpload(ctx, repo, "id", -1, strings.NewReader(content), d); err != nil {
		t.Fatal(err)
	}
	return d
}

// A repository has only what was put into it, whatever else the store has.
func TestRepositoryKnowsOnlyItsOwn(t *testing.T) {
	s, ctx := open(t), t.Context()
	r := s.Repositories("localhost")
	d := upload(t, r, "mine", "blob")
	loose := put(t, s, "not of any repository")
	for _, repo := range []string{"yours", "mine/sub", "min"} {
		for _, d := range []digest.Digest{d, loose} {
			if _, err := r.StatBlob(ctx, repo, d); !fault.Is(err, fault.NotFound) {
				t.Errorf("%s: %v", repo, err)
			}
			if f, err := r.OpenBlob(ctx, repo, d); !fault.Is(err, fault.NotFound) || f != nil {
				t.Errorf("%s: %v", repo, err)
			}
			if err := r.MountBlob(ctx, "third", repo, d); !fault.Is(err, fault.NotFound) {
				t.Errorf("%s: %v", repo, err)
			}
			if err := r.DeleteBlob(ctx, repo, d); !fault.Is(err, fault.NotFound) {
				t.Errorf("%s: %v", repo, err)
			}
		}
	}
	if _, err := s.Repositories("other.example").StatBlob(ctx, "mine", d); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if err := r.MountBlob(ctx, "yours", "mine", d); err != nil {
		t.Fatal(err)
	}
	if err := r.DeleteBlob(ctx, "mine", d); err != nil {
		t.Fatal(err)
	}
	if _, err := r.StatBlob(ctx, "mine", d); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	f, err := r.OpenBlob(ctx, "yours", d)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b, _ := io.ReadAll(f); string(b) != "blob" {
		t.Errorf("%q", b)
	}
	if repos, err := r.List(ctx); err != nil || !slices.Equal(repos, []string{"yours"}) {
		t.Error(repos, err)
	}
}

func TestUploadSessions(t *testing.T) {
	s, ctx := open(t), t.Context()
	r := s.Repositories("localhost")
	if err := r.StartUpload(ctx, "a", "id"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.UploadSize(ctx, "b", "id"); !fault.Is(err, fault.NotFound) {
		t.Errorf("a session of another repository: %v", err)
	}
	if n, err := r.AppendUpload(ctx, "a", "id", 0, strings.NewReader("hel")); n != 3 || err != nil {
		t.Error(n, err)
	}
	if n, err := r.AppendUpload(ctx, "a", "id", 0, strings.NewReader("hel")); n != 3 || !fault.Is(err, fault.Invalid) {
		t.Error(n, err)
	}
	broken := io.MultiReader(strings.NewReader("l"), errReader{})
	if n, err := r.AppendUpload(ctx, "a", "id", -1, broken); n != 4 || err == nil {
		t.Errorf("what arrived before a break is %d, %v", n, err)
	}
	if err := r.FinishUpload(ctx, "a", "id", 9, strings.NewReader("o"), digest.FromString("hello")); !fault.Is(err, fault.Conflict) {
		t.Error(err)
	}
	// The session is on disk: another process of this registry goes on with it.
	again, _ := Open(s.root)
	if err := again.Repositories("localhost").FinishUpload(ctx, "a", "id", 4, strings.NewReader("o"), digest.FromString("hello")); err != nil {
		t.Error(err)
	}
	if err := r.FinishUpload(ctx, "a", "id", -1, strings.NewReader(""), digest.FromString("hello")); !fault.Is(err, fault.NotFound) {
		t.Errorf("finished twice: %v", err)
	}
	r.StartUpload(ctx, "a", "id")
	if err := r.FinishUpload(ctx, "a", "id", -1, strings.NewReader("wrong"), digest.FromString("hello!")); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	if _, err := r.UploadSize(ctx, "a", "id"); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	r.StartUpload(ctx, "a", "id")
	if err := r.CancelUpload(ctx, "a", "id"); err != nil {
		t.Error(err)
	}
	if left := entries(t, s, "ingest"); len(left) != 0 {
		t.Error(left)
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("broken") }

// RS2: many sessions of one blob, and many writers in one session.
func TestUploadRaces(t *testing.T) {
	s, ctx := open(t), t.Context()
	r := s.Repositories("localhost")
	content := strings.Repeat("x", 100_000)
	d := digest.FromString(content)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			id := fmt.Sprint(i)
			err := r.StartUpload(ctx, "a", id)
			if err == nil {
				err = r.FinishUpload(ctx, "a", id, 0, strings.NewReader(content), d)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n, err := r.StatBlob(ctx, "a", d); n != int64(len(content)) || err != nil {
		t.Error(n, err)
	}
	if left := entries(t, s, "ingest"); len(left) != 0 {
		t.Errorf("orphans: %v", left)
	}
	r.StartUpload(ctx, "b", "one")
	var mu sync.Mutex
	won := 0
	for range 20 {
		wg.Go(func() {
			err := r.FinishUpload(ctx, "b", "one", 0, strings.NewReader(content), d)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Conflict) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d requests finished one session", won)
	}
}

func TestManifestsOfARepository(t *testing.T) {
	s, ctx := open(t), t.Context()
	r := s.Repositories("localhost")
	doc := []byte(`{"a":1}`)
	dm := image.Descriptor{MediaType: image.MediaManifest, Digest: digest.FromBytes(doc), Size: int64(len(doc)), ArtifactType: "x/y", Annotations: map[string]string{"k": "v"}}
	subject := digest.FromString("subject")
	if err := r.PutManifest(ctx, "team/a", dm, doc, subject, []string{"1", "latest"}); err != nil {
		t.Fatal(err)
	}
	if err := r.PutManifest(ctx, "team/a", image.Descriptor{Digest: dm.Digest}, []byte("other"), "", nil); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	for _, tc := range []struct {
		tag string
		d   digest.Digest
	}{{"1", ""}, {"latest", ""}, {"", dm.Digest}} {
		got, err := r.Manifest(ctx, "team/a", tc.tag, tc.d)
		if err != nil || got.Digest != dm.Digest || got.MediaType != image.MediaManifest || got.Annotations != nil {
			t.Errorf("%v: %+v, %v", tc, got, err)
		}
		if b, err := r.ReadManifest(ctx, "team/a", got); err != nil || string(b) != string(doc) {
			t.Error(b, err)
		}
	}
	// What was pushed is an image of this store, too.
	if got, err := s.Resolve(mustRef("localhost/team/a:latest")); err != nil || got.Digest != dm.Digest {
		t.Error(got, err)
	}
	if refs, err := r.Referrers(ctx, "team/a", subject); err != nil || len(refs) != 1 || refs[0].ArtifactType != "x/y" || refs[0].Annotations["k"] != "v" {
		t.Error(refs, err)
	}
	if tags, err := r.Tags(ctx, "team/a"); err != nil || !slices.Equal(tags, []string{"1", "latest"}) {
		t.Error(tags, err)
	}
	if _, err := r.Tags(ctx, "team"); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if err := r.DeleteTag(ctx, "team/a", "1"); err != nil {
		t.Error(err)
	}
	if err := r.DeleteManifest(ctx, "team/b", dm.Digest, subject); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if err := r.DeleteManifest(ctx, "team/a", dm.Digest, subject); err != nil {
		t.Error(err)
	}
	if refs, err := r.Referrers(ctx, "team/a", subject); err != nil || len(refs) != 0 {
		t.Error(refs, err)
	}
	if left := entries(t, s, "names"); len(left) != 0 {
		t.Error(left)
	}
}

// 50 writers on one tag: one of their manifests wins, nobody fails.
func TestManyWritersOfOneTag(t *testing.T) {
	s, ctx := open(t), t.Context()
	r := s.Repositories("localhost")
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			doc := fmt.Appendf(nil, `{"n":%d}`, i)
			d := image.Descriptor{MediaType: image.MediaManifest, Digest: digest.FromBytes(doc), Size: int64(len(doc))}
			if err := r.PutManifest(ctx, "a", d, doc, "", []string{"t"}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got, err := r.Manifest(ctx, "a", "t", "")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := r.ReadManifest(ctx, "a", got); err != nil || len(b) == 0 {
		t.Error(b, err)
	}
	n := 0
	filepath.WalkDir(s.path("names"), func(p string, e os.DirEntry, err error) error {
		if strings.Contains(p, ".tmp-") {
			t.Error(p)
		}
		if err == nil && !e.IsDir() {
			n++
		}
		return nil
	})
	if n != 51 {
		t.Errorf("%d records for 50 digests and a tag", n)
	}
}

func TestRepositoryNamesStayInside(t *testing.T) {
	s := open(t)
	r := s.Repositories("localhost")
	for _, repo := range []string{"", ".", "..", "../x", "a/../../b", "/etc", "a//b", "A", "a/_blobs", "_tags", "a\x00b", "a/", strings.Repeat("a", 300)} {
		if err := r.StartUpload(context.Background(), repo, "id"); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", repo, err)
		}
		if _, err := r.Tags(context.Background(), repo); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", repo, err)
		}
	}
	if left := append(entries(t, s, "ingest"), entries(t, s, "names")...); len(left) != 0 {
		t.Error(left)
	}
}
