package network

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	mnet "github.com/moby/moby/api/types/network"
)

func TestLoopOfRuns(t *testing.T) {
	s := lab(t)
	create(t, s, CreateOptions{Name: "app"})
	n := 200
	if testing.Short() {
		n = 20
	}
	for i := range n {
		r := publish(request("one", "app"), "80/tcp", hostPort("18600"))
		r.ID = fmt.Sprintf("%064x", i+1)
		a, err := s.Attach(context.Background(), r)
		if err != nil {
			t.Fatalf("run %d: %v", i, err)
		}
		stop := whoami(t, a.NetNS, 80)
		if _, _, err := ask(here(t), "127.0.0.1:18600", "x"); err != nil {
			t.Fatalf("run %d: %v", i, err)
		}
		stop()
		// As a monitor does: ports first, then the exit code, then the rest.
		a.Quiesce()
		go func() {
			if err := a.Release(); err != nil {
				t.Errorf("release: %v", err)
			}
		}()
		t.Cleanup(func() { must(t, a.Release()) })
	}
}

func TestManyAtOnce(t *testing.T) {
	s := lab(t)
	var wg sync.WaitGroup
	seen := sync.Map{}
	for i := range 24 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for j := range 4 {
				r := Request{ID: fmt.Sprintf("%032x%032x", i+1, j+1), Name: fmt.Sprint("c", i), Hostname: "h",
					Endpoints: []Endpoint{{Network: "bridge"}},
					Publish:   mnet.PortMap{mnet.MustParsePort("80/tcp"): {hostPort("")}}}
				a, err := s.Attach(context.Background(), r)
				if err != nil {
					t.Errorf("attach: %v", err)
					return
				}
				if other, dup := seen.LoadOrStore(a.ip("bridge"), i); dup {
					t.Errorf("address %v given to %d and %d", a.ip("bridge"), i, other)
				}
				seen.Delete(a.ip("bridge"))
				if err := a.Release(); err != nil {
					t.Errorf("release: %v", err)
				}
			}
		}()
	}
	wg.Wait()
}

func TestCleanAfterDeadMonitor(t *testing.T) {
	s := lab(t)
	create(t, s, CreateOptions{Name: "app"})
	keep := attach(t, s, request("keep", "app"))
	r := publish(request("dead", "app"), "80/tcp", hostPort("18700"))
	a, err := s.Attach(context.Background(), r)
	must(t, err)
	// What kill -9 does: descriptors close, nothing else happens.
	for _, p := range a.proxies {
		p.stopListening()
	}
	a.dns.close()
	a.ns.dns = nil
	a.ns.close()
	must(t, s.Clean(r.ID))
	must(t, s.Clean(r.ID))
	must(t, s.Clean("deadbeef"))
	if n, _ := s.Get("app"); len(n.Containers) != 1 {
		t.Errorf("containers %v", n.Containers)
	}
	if b, _ := os.ReadFile(s.namesFile("app")); strings.Contains(string(b), "dead") {
		t.Errorf("names: %s", b)
	}
	b := attach(t, s, publish(request("next", "app"), "80/tcp", hostPort("18700")))
	if b.ip("app") != a.ip("app") {
		t.Errorf("the address is not free again: %v", b.ip("app"))
	}
	must(t, a.Release()) // the dead one's Release finds nothing of its own
	_ = keep
	if n, _ := s.Get("app"); len(n.Containers) != 2 {
		t.Errorf("containers %v", n.Containers)
	}
}
