package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

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
	loopback(t)
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
	loopback(t)
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
