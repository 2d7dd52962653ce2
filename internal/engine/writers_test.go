package engine

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"keg/internal/image"
	"keg/internal/registry"
	"keg/internal/store"
)

// RS2: fifty at once put manifests of their own under one tag, twice each: every answer is 201, the tag is one of theirs,
// each of them is there by its digest, and nothing half-written is left.
func TestFiftyWritersOfOneTag(t *testing.T) {
	e := openEngine(t, t.TempDir(), nil)
	dir := filepath.Join(t.TempDir(), "registry")
	host, stop := serveWith(t, e, dir, registry.ServerOptions{})
	defer stop()
	ask := func(method, path, mediaType string, body []byte) (*http.Response, error) {
		r, err := http.NewRequestWithContext(t.Context(), method, "http://"+host+path, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		r.Header.Set("Content-Type", mediaType)
		resp, err := http.DefaultClient.Do(r)
		if err == nil {
			resp.Body.Close()
		}
		return resp, err
	}
	var mu sync.Mutex
	var digests []string
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			config := fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"n":%d}`, i)
			d := digest.FromBytes(config)
			doc, _ := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": image.MediaManifest, "layers": []any{},
				"config": image.Descriptor{MediaType: image.MediaConfig, Digest: d, Size: int64(len(config))}})
			for range 2 {
				for _, c := range []struct {
					method, path, mediaType string
					body                    []byte
				}{
					{"POST", "/v2/x/blobs/uploads/?digest=" + string(d), "application/octet-stream", config},
					{"PUT", "/v2/x/manifests/one", image.MediaManifest, doc},
				} {
					if resp, err := ask(c.method, c.path, c.mediaType, c.body); err != nil || resp.StatusCode != http.StatusCreated {
						t.Errorf("writer %d: %s: %v, %v", i, c.method, resp, err)
					}
				}
			}
			mu.Lock()
			defer mu.Unlock()
			digests = append(digests, string(digest.FromBytes(doc)))
		})
	}
	wg.Wait()
	won, err := ask("HEAD", "/v2/x/manifests/one", "", nil)
	if err != nil || won.StatusCode != 200 || !slices.Contains(digests, won.Header.Get("Docker-Content-Digest")) {
		t.Error(won, err)
	}
	for _, d := range digests {
		if resp, err := ask("HEAD", "/v2/x/manifests/"+d, "", nil); err != nil || resp.StatusCode != 200 {
			t.Error(d, resp, err)
		}
	}
	for _, pattern := range []string{"ingest/*", "names/*/x/*/.tmp-*"} {
		if left, _ := filepath.Glob(filepath.Join(dir, pattern)); len(left) != 0 {
			t.Error("left: ", left)
		}
	}
	s, err := store.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	blobs := 0
	for d := range s.Blobs() {
		blobs++
		if err := s.Verify(t.Context(), d, false); err != nil {
			t.Error(err)
		}
	}
	if blobs != 100 {
		t.Errorf("%d blobs, not 50 configs and 50 manifests", blobs)
	}
}
