package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/image"
	"keg/internal/registry"
)

// serveWith is serveRegistry with options.
func serveWith(t *testing.T, e *Engine, dir string, o registry.ServerOptions) (host string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan string, 1), make(chan error, 1)
	go func() { done <- e.ServeRegistry(ctx, "127.0.0.1:0", dir, o, func(a string) { ready <- a }) }()
	select {
	case a := <-ready:
		host = strings.Replace(a, "127.0.0.1", "localhost", 1)
	case err := <-done:
		t.Fatal(err)
	}
	return host, sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// An image comes through a registry that never saw it, into a store on disk, and again when
// its upstream is gone.
func TestPullThroughOnDisk(t *testing.T) {
	e := openEngine(t, t.TempDir(), nil)
	up, stopUp := serveWith(t, e, filepath.Join(t.TempDir(), "up"), registry.ServerOptions{})
	defer stopUp()
	name := up + "/team/web:1"
	r := addImage(t, e, name, nil, tarOf(t, map[string]string{"data": noise(41, 3<<20)}), tarOf(t, map[string]string{"more": noise(42, 1<<20)}))
	if _, err := e.Push(t.Context(), refs(t, name)[0], nil); err != nil {
		t.Fatal(err)
	}
	cache, stop := serveWith(t, e, filepath.Join(t.TempDir(), "cache"), registry.ServerOptions{Upstreams: []registry.Upstream{{Prefix: "up/", Registry: up, Fresh: time.Nanosecond}}})
	defer stop()
	through := cache + "/up/team/web:1"
	var wg sync.WaitGroup
	for range 3 {
		other := openEngine(t, t.TempDir(), nil)
		wg.Go(func() {
			if _, err := other.Pull(t.Context(), refs(t, through)[0], PullOptions{}); err != nil {
				t.Error(err)
				return
			}
			if f, err := other.lookup(t.Context(), through); err != nil || f.ID != r.ID {
				t.Error(f, err)
			}
		})
	}
	wg.Wait()
	stopUp()
	offline := openEngine(t, t.TempDir(), nil)
	if _, err := offline.Pull(t.Context(), refs(t, through)[0], PullOptions{}); err != nil {
		t.Error("offline:", err)
	}
}

// RS6 over HTTP: collections and retention as fast as they go while clients push, pull and
// move tags; nothing that was acknowledged is missing.
func TestHousekeepingWhilePushing(t *testing.T) {
	e := openEngine(t, t.TempDir(), nil)
	host, stop := serveWith(t, e, filepath.Join(t.TempDir(), "registry"), registry.ServerOptions{
		Metrics: true, Delete: true,
		Keep:    []registry.Keep{{Repos: "team/**", Tags: []string{"pr-*"}, Last: 2, Untagged: time.Second}},
		Collect: registry.Collection{Every: 20 * time.Millisecond, Grace: 3 * time.Second},
	})
	defer stop()
	var wg sync.WaitGroup
	for w := range 4 {
		own := openEngine(t, t.TempDir(), nil)
		wg.Go(func() {
			for i := range 6 {
				name := fmt.Sprintf("%s/team/web%d:pr-%d", host, w%2, 10*w+i)
				if i%3 == 0 {
					name = fmt.Sprintf("%s/team/web%d:keep-%d", host, w%2, w)
				}
				addImage(t, own, name, nil, tarOf(t, map[string]string{"data": noise(uint64(i%3), 100_000)}))
				if _, err := own.Push(t.Context(), refs(t, name)[0], nil); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	for w := range 4 {
		name := fmt.Sprintf("%s/team/web%d:keep-%d", host, w%2, w)
		fresh := openEngine(t, t.TempDir(), nil)
		if _, err := fresh.Pull(t.Context(), refs(t, name)[0], PullOptions{}); err != nil {
			t.Error(name, err)
		}
	}
	resp, err := http.Get("http://" + host + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"keg_registry_collections_total 0\n", "keg_registry_expired_tags_total 0\n"} {
		if strings.Contains(string(b), bad) {
			t.Error("nothing was done meanwhile: ", bad)
		}
	}
	if !strings.Contains(string(b), "keg_registry_collection_failures_total 0\n") {
		t.Errorf("collections failed:\n%.1500s", b)
	}
}

// Pushes, pulls and deletions of a second's life while garbage is collected each second, for eight seconds (with KEG_SOAK=2m
// two minutes, with KEG_SOAK=1 an hour): no operation fails, and at the end all that stands under a name is whole.
func TestPushSoakWithCollection(t *testing.T) {
	length := 8 * time.Second
	if testing.Short() {
		length = 3 * time.Second
	}
	pause := time.Duration(0)
	if os.Getenv("CI") != "" && os.Geteuid() == 0 {
		length, pause = 2*time.Minute, 100*time.Millisecond // beside the other tests
	}
	if soak := os.Getenv("KEG_SOAK"); soak != "" {
		length, pause = time.Hour, 0
		if d, err := time.ParseDuration(soak); err == nil {
			length = d
		}
	}
	dir := fastDir(t)
	e := openEngine(t, filepath.Join(dir, "engine"), nil)
	host, stop := serveWith(t, e, filepath.Join(dir, "registry"), registry.ServerOptions{
		Delete: true, Metrics: true, Collect: registry.Collection{Every: time.Second, Grace: 2 * time.Second},
		Keep: []registry.Keep{{Repos: "**", Tags: []string{"old-*"}, Last: 5, Untagged: 2 * time.Second}},
	})
	defer stop()
	var done, failed atomic.Int64
	var wg sync.WaitGroup
	end := time.Now().Add(length)
	for w := range 6 {
		c := registry.NewClient(registry.Config{SystemDir: dir, UserAgent: fmt.Sprint("soak/", w)})
		wg.Go(func() {
			for n := 0; time.Now().Before(end); n++ {
				// Layers are shared between workers and come back, so that what is just being collected is pushed again.
				shared, own := noise(uint64(n%7), 30_000), noise(uint64(1000*w+n%3), 50_000)
				repo := fmt.Sprintf("%s/r%d", host, n%3)
				if err := soakOnce(t.Context(), c, repo, fmt.Sprintf("old-%d-%d", w, n), w, n, []byte(shared), []byte(own)); err != nil {
					failed.Add(1)
					t.Errorf("worker %d, round %d: %v", w, n, err)
				}
				done.Add(1)
				time.Sleep(pause)
			}
		})
	}
	wg.Wait()
	t.Logf("%d rounds, %d failed", done.Load(), failed.Load())
	if done.Load() < 20 {
		t.Error("too few rounds to show anything")
	}
	resp, err := http.Get("http://" + host + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	for _, bad := range []string{"keg_registry_collections_total 0\n", "keg_registry_freed_blobs_total 0\n", "keg_registry_expired_tags_total 0\n"} {
		if strings.Contains(string(b), bad) {
			t.Error("nothing was done meanwhile: ", bad)
		}
	}
}

// soakOnce pushes an image, reads it back whole under its tag and its digest, and sometimes deletes it.
func soakOnce(ctx context.Context, c *registry.Client, repo, tag string, w, n int, layers ...[]byte) error {
	ref, err := image.ParseReference(repo + ":" + tag)
	if err != nil {
		return err
	}
	config := fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"n":"%d-%d"}`, w, n)
	descs := make([]image.Descriptor, 0, 3)
	for i, b := range append([][]byte{config}, layers...) {
		media := image.MediaLayer
		if i == 0 {
			media = image.MediaConfig
		}
		d := image.Descriptor{MediaType: media, Digest: digest.FromBytes(b), Size: int64(len(b))}
		has, err := c.HasBlob(ctx, ref, d.Digest)
		if err != nil {
			return fmt.Errorf("look for a blob: %w", err)
		}
		if !has {
			if err := c.PushBlob(ctx, ref, d, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }, nil); err != nil {
				return fmt.Errorf("push a blob: %w", err)
			}
		}
		descs = append(descs, d)
	}
	doc, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": image.MediaManifest, "config": descs[0], "layers": descs[1:]})
	if err != nil {
		return err
	}
	d, err := c.PushManifest(ctx, ref, image.MediaManifest, doc)
	if err != nil {
		return fmt.Errorf("push the manifest: %w", err)
	}
	got, err := c.Manifest(ctx, ref, image.Descriptor{Digest: d})
	if err != nil || !bytes.Equal(got, doc) {
		return fmt.Errorf("read it back: %w", err)
	}
	for _, l := range descs {
		r, _, err := c.Blob(ctx, ref, l, 0)
		if err != nil {
			return fmt.Errorf("read a blob back: %w", err)
		}
		h := digest.SHA256.Hash()
		_, err = io.Copy(h, r)
		r.Close()
		if err != nil || digest.NewDigest(digest.SHA256, h) != l.Digest {
			return fmt.Errorf("blob %s came back wrong: %w", l.Digest, err)
		}
	}
	if n%4 != 0 {
		return nil
	}
	host, name, _ := strings.Cut(repo, "/")
	r, err := http.NewRequestWithContext(ctx, http.MethodDelete, "http://"+host+"/v2/"+name+"/manifests/"+string(d), nil)
	if err != nil {
		return err
	}
	began := time.Now()
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		return fmt.Errorf("delete: status %d", resp.StatusCode)
	}
	if took := time.Since(began); took > 5*time.Second {
		return fmt.Errorf("a deletion was answered after %v", took)
	}
	return nil
}
