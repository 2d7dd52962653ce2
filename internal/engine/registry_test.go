package engine

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"keg/internal/registry"
)

func serveRegistry(t *testing.T, e *Engine, dir string) (addr string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan string, 1), make(chan error, 1)
	go func() {
		done <- e.ServeRegistry(ctx, "127.0.0.1:0", dir, registry.ServerOptions{}, func(a string) { ready <- a })
	}()
	select {
	case addr = <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	return addr, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestTheEnginesOwnStoreAsARegistry(t *testing.T) {
	e := openEngine(t, t.TempDir(), nil)
	addr, stop := serveRegistry(t, e, "")
	defer stop()
	name := strings.Replace(addr, "127.0.0.1", "localhost", 1) + "/web:1"
	r := addImage(t, e, name, nil, tarOf(t, map[string]string{"data": noise(11, 1<<20)}))
	other := openEngine(t, t.TempDir(), nil)
	if _, err := other.Pull(t.Context(), refs(t, name)[0], PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if f, err := other.lookup(t.Context(), name); err != nil || f.ID != r.ID {
		t.Errorf("got %+v, %v", f, err)
	}
	if _, err := other.remote.Resolve(t.Context(), refs(t, strings.Replace(name, "web", "none", 1))[0]); err == nil {
		t.Error("an image that is not there was found")
	}
}

func TestPushAndPullThroughARegistry(t *testing.T) {
	e := openEngine(t, t.TempDir(), nil)
	addr, stop := serveRegistry(t, e, filepath.Join(t.TempDir(), "registry"))
	defer stop()
	name := strings.Replace(addr, "127.0.0.1", "localhost", 1) + "/team/web:1"
	r := addImage(t, e, name, nil, tarOf(t, map[string]string{"base": noise(12, 1<<20)}), tarOf(t, map[string]string{"top": strings.Repeat("x", 1<<20)}))
	pushed, err := e.Push(t.Context(), refs(t, name)[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.RemoveImage(t.Context(), name, false); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, e); len(left) != 0 {
		t.Fatalf("left: %v", left)
	}
	p, _, err := pull(t, e, name)
	if err != nil || p.Digest != pushed.Digest {
		t.Fatalf("got %+v, %v", p, err)
	}
	in, err := e.InspectImage(t.Context(), name)
	if err != nil || in.ID != string(r.ID) || len(in.RepoDigests) != 1 || !strings.HasSuffix(in.RepoDigests[0], string(pushed.Digest)) {
		t.Errorf("got %+v, %v", in, err)
	}
	if _, _, err := pull(t, e, strings.Replace(name, "web", "none", 1)); err == nil {
		t.Error("an image that is not there was pulled")
	}
}
