package registry

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
)

func index(t *testing.T, note string) []byte {
	t.Helper()
	return marshal(t, map[string]any{"schemaVersion": 2, "mediaType": image.MediaIndex, "manifests": []any{}, "annotations": map[string]string{"n": note}})
}

func putIndex(h http.Handler, repo, ref string, doc []byte) int {
	return ask(h, "PUT", "/v2/"+repo+"/manifests/"+ref, bytes.NewReader(doc), "Content-Type: "+image.MediaIndex).Code
}

func TestImmutableTags(t *testing.T) {
	h := NewServer(newMemory(), ServerOptions{Delete: true, Immutable: []Immutable{{"team/**", []string{"v*"}}}})
	one, two := index(t, "1"), index(t, "2")
	for i, tc := range []struct {
		repo, tag string
		doc       []byte
		want      int
	}{
		{"team/a", "v1", one, 201}, {"team/a", "v1", one, 201}, {"team/a", "v1", two, 409}, {"team/a", "latest", one, 201}, {"team/a", "latest", two, 201}, {"other", "v1", one, 201}, {"other", "v1", two, 201},
		{"team/a", string(digest.FromBytes(two)) + "?tag=v1", two, 409}, {"team/a", string(digest.FromBytes(two)) + "?tag=v2", two, 201},
	} {
		if got := putIndex(h, tc.repo, tc.tag, tc.doc); got != tc.want {
			t.Errorf("%d: %d", i, got)
		}
	}
	for ref, want := range map[string]int{"v1": 409, string(digest.FromBytes(one)): 409, "latest": 202} {
		if w := ask(h, "DELETE", "/v2/team/a/manifests/"+ref, nil); w.Code != want {
			t.Errorf("delete %s: %d %s", ref, w.Code, w.Body)
		}
	}
	// Many at once: one wins.
	var won atomic.Int32
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			if putIndex(h, "team/race", "v1", index(t, fmt.Sprint(i))) == 201 {
				won.Add(1)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Error(won.Load(), "writers won")
	}
}

func TestQuota(t *testing.T) {
	m := newMemory()
	h := NewServer(m, ServerOptions{Quotas: []Quota{{"team/**", 1000}}})
	push := func(repo string, n int) int {
		b := make([]byte, n)
		rand.Read(b)
		return ask(h, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+string(digest.FromBytes(b)), bytes.NewReader(b)).Code
	}
	for i, tc := range []struct {
		repo string
		n    int
		want int
	}{{"team/a", 600, 201}, {"team/b", 600, 403}, {"team/b", 400, 201}, {"team/c", 1, 403}, {"other", 5000, 201}} {
		if got := push(tc.repo, tc.n); got != tc.want {
			t.Errorf("%d: %d", i, got)
		}
	}
	// In pieces: the session ends where the quota does.
	h = NewServer(m, ServerOptions{Quotas: []Quota{{"new", 1000}}})
	loc := ask(h, "POST", "/v2/new/blobs/uploads/", nil).Header().Get("Location")
	if w := ask(h, "PATCH", loc, strings.NewReader(strings.Repeat("x", 900))); w.Code != 202 {
		t.Error(w.Code)
	}
	w := ask(h, "PATCH", loc, strings.NewReader(strings.Repeat("x", 200)))
	if w.Code != 403 || code(t, w) != "DENIED" || !strings.Contains(w.Body.String(), "quota exceeded: new may have 1000 bytes") {
		t.Error(w.Code, w.Body)
	}
	if w := ask(h, "GET", loc, nil); w.Code != 404 {
		t.Error("the session is still there:", w.Code)
	}
}

func TestWhatRetentionRemoves(t *testing.T) {
	now := time.Now()
	day := 24 * time.Hour
	tag := func(name string, pushed, pulled int) aged {
		return aged{name, now.Add(-time.Duration(pushed) * day), now.Add(-time.Duration(pulled) * day)}
	}
	tags := []aged{tag("v1", 100, 90), tag("v2", 50, 1), tag("v3", 10, 10), tag("pr-1", 9, 9), tag("pr-2", 3, 3), tag("pr-3", 2, 2), tag("pr-4", 1, 1)}
	for _, tc := range []struct {
		rules []Keep
		want  string
	}{
		{nil, ""},
		{[]Keep{{Repos: "other", Last: 1}}, ""},
		{[]Keep{{Repos: "**", Last: 7}}, ""},
		{[]Keep{{Repos: "**", Last: 2}}, "pr-2 v3 pr-1 v2 v1"},
		{[]Keep{{Repos: "**", Tags: []string{"pr-*"}, Last: 2}}, "pr-1 pr-2"},
		{[]Keep{{Repos: "**", Tags: []string{"pr-*"}, Last: 2}, {Repos: "**", Tags: []string{"v*"}, Pulled: 14 * day}}, "pr-1 pr-2 v1"},
		{[]Keep{{Repos: "**", Age: 5 * day}, {Repos: "**", Tags: []string{"v1"}, Last: 1}}, "pr-1 v2 v3"},
	} {
		var got []string
		for _, a := range expired(tc.rules, "repo", slices.Clone(tags), now) {
			got = append(got, a.tag)
		}
		want := strings.Fields(tc.want)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%+v: %v", tc.rules, got)
		}
	}
}

func TestRetentionRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory()
		s := NewServer(m, ServerOptions{Keep: []Keep{{Repos: "**", Tags: []string{"pr-*"}, Last: 1, Untagged: time.Hour}}, Collect: Collection{Every: time.Minute}}).(*server)
		old, young, child := index(t, "old"), index(t, "young"), index(t, "child")
		parent := marshal(t, map[string]any{"schemaVersion": 2, "mediaType": image.MediaIndex, "manifests": []image.Descriptor{descriptor(image.MediaIndex, child)}})
		put := func(ref string, doc []byte) {
			if got := putIndex(s, "a", ref, doc); got != 201 {
				t.Fatal(ref, got)
			}
			m.mu.Lock()
			m.setTime(&m.pushed, "a:"+ref, time.Now())
			m.setTime(&m.pushed, "a:"+string(digest.FromBytes(doc)), time.Now())
			m.mu.Unlock()
		}
		put(string(digest.FromBytes(child)), child)
		put("parent", parent)
		put("pr-1", old)
		time.Sleep(2 * time.Hour)
		put("pr-2", young)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { s.keepHouse(ctx); close(done) }()
		time.Sleep(90 * time.Second)
		cancel()
		<-done
		tags, _ := m.Tags(ctx, "a")
		if !slices.Equal(tags, []string{"parent", "pr-2"}) || m.collected != 1 || s.metrics.expiredTags.Load() != 1 || s.metrics.freedBytes.Load() != 10 {
			t.Error(tags, m.collected)
		}
		for _, d := range [][]byte{child, parent, young} {
			if _, err := m.Manifest(ctx, "a", "", digest.FromBytes(d)); err != nil {
				t.Error(err)
			}
		}
		if _, err := m.Manifest(ctx, "a", "", digest.FromBytes(old)); !fault.Is(err, fault.NotFound) {
			t.Error("the manifest of an expired tag is still there:", err)
		}
	})
}

// slowly serves a registry, counting requests, and holds blobs back until they are released.
type slowly struct {
	http.Handler
	mu      sync.Mutex
	seen    []string
	down    atomic.Bool
	release chan struct{}
}

func (s *slowly) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.down.Load() {
		w.WriteHeader(http.StatusForbidden + 100) // 503
		return
	}
	s.mu.Lock()
	s.seen = append(s.seen, r.Method+" "+r.URL.Path)
	s.mu.Unlock()
	if strings.Contains(r.URL.Path, "/blobs/sha256:") && s.release != nil {
		<-s.release
	}
	s.Handler.ServeHTTP(w, r)
}

func (s *slowly) count(prefix string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.seen {
		if strings.HasPrefix(l, prefix) {
			n++
		}
	}
	return n
}

func TestPullThroughCache(t *testing.T) {
	up := &slowly{Handler: NewServer(newMemory(), ServerOptions{})}
	upHost := startServer(t, up)
	layer := make([]byte, 100_000)
	rand.Read(layer)
	img := newImage(t, image.Host(), layer)
	img.push(t, testClient(t), parse(t, upHost+"/team/web:1"))
	up.seen, up.release = nil, make(chan struct{})

	m := newMemory()
	c := testClient(t)
	c.patient.attempts = 1
	h := NewServer(m, ServerOptions{Upstreams: []Upstream{{"up/", upHost, time.Nanosecond}, {"long/", upHost, time.Hour}}, Client: c})
	host := startServer(t, h)
	ref := parse(t, host+"/up/team/web:1")
	r, err := testClient(t).Resolve(t.Context(), ref)
	if err != nil || r.Digest != digest.FromBytes(img.manifest) {
		t.Fatal(r, err)
	}
	// Ten wait for one layer: it is fetched once.
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			b, _, err := readBlob(t, testClient(t), ref, img.m.Layers[0], 0)
			if err != nil || !bytes.Equal(b, layer) {
				t.Error(len(b), err)
			}
		})
	}
	for up.count("GET /v2/team/web/blobs/") == 0 {
		time.Sleep(time.Millisecond) // until the first one is at the upstream
	}
	close(up.release)
	wg.Wait()
	if n := up.count("GET /v2/team/web/blobs/" + string(img.m.Layers[0].Digest)); n != 1 {
		t.Error("the layer was fetched", n, "times")
	}
	if n := up.count("GET /v2/team/web/manifests/"); n != 1 {
		t.Error("the manifest was fetched", n, "times")
	}
	if _, _, err := readBlob(t, testClient(t), ref, img.m.Config, 0); err != nil {
		t.Error(err)
	}
	// A tag that is asked for again costs a HEAD, and nothing within its time.
	if _, err := testClient(t).Resolve(t.Context(), ref); err != nil || up.count("GET /v2/team/web/manifests/") != 1 {
		t.Error(err)
	}
	long := parse(t, host+"/long/team/web:1")
	for range 3 {
		if _, err := testClient(t).Resolve(t.Context(), long); err != nil {
			t.Error(err)
		}
	}
	// A tag that moved is followed; a blob that no manifest names is not fetched.
	next := newImage(t, image.Host(), []byte("next"))
	next.push(t, testClient(t), parse(t, upHost+"/team/web:1"))
	if d, err := testClient(t).Resolve(t.Context(), ref); err != nil || d.Digest != digest.FromBytes(next.manifest) {
		t.Error(d, err)
	}
	if d, err := testClient(t).Resolve(t.Context(), long); err != nil || d.Digest != digest.FromBytes(img.manifest) {
		t.Error("asked too early:", d, err)
	}
	if w := ask(h, "GET", "/v2/up/team/web/blobs/"+string(digest.FromString("x")), nil); w.Code != 404 {
		t.Error(w.Code)
	}
	// Pushes go beside it, not into it.
	if w := ask(h, "POST", "/v2/up/team/web/blobs/uploads/", nil); w.Code != 405 || !strings.Contains(w.Body.String(), "outside up/") {
		t.Error(w.Code, w.Body)
	}
	img.push(t, testClient(t), parse(t, host+"/local/web:1"))
	if _, err := testClient(t).Resolve(t.Context(), parse(t, host+"/up/team/none:1")); !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Denied) {
		t.Error(err)
	}
	// Offline: what is here stays.
	up.down.Store(true)
	if d, err := testClient(t).Resolve(t.Context(), ref); err != nil || d.Digest != digest.FromBytes(next.manifest) {
		t.Error("offline:", d, err)
	}
	if b, _, err := readBlob(t, testClient(t), ref, img.m.Layers[0], 500); err != nil || !bytes.Equal(b, layer[500:]) {
		t.Error("offline:", err)
	}
	if w := ask(h, "GET", "/v2/up/team/other/manifests/1", nil); w.Code != 502 {
		t.Error(w.Code, w.Body)
	}
}

// A forged blob of an upstream reaches nobody whole, and is not kept.
func TestForgedBlobOfAnUpstream(t *testing.T) {
	layer := bytes.Repeat([]byte("good"), 10000)
	um := newMemory()
	uh := startServer(t, NewServer(um, ServerOptions{}))
	img := newImage(t, image.Host(), layer)
	img.push(t, testClient(t), parse(t, uh+"/web:1"))
	um.mu.Lock()
	um.blobs[img.m.Layers[0].Digest] = bytes.Repeat([]byte("evil"), 10000)
	um.mu.Unlock()
	m := newMemory()
	c := testClient(t)
	c.patient.attempts = 1
	srv := httptest.NewServer(NewServer(m, ServerOptions{Upstreams: []Upstream{{"up/", uh, 0}}, Client: c}))
	defer srv.Close()
	if _, err := http.Get(srv.URL + "/v2/up/web/manifests/1"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(srv.URL + "/v2/up/web/blobs/" + string(img.m.Layers[0].Digest))
	if err == nil {
		b, rerr := io.ReadAll(resp.Body)
		resp.Body.Close()
		if rerr == nil && resp.StatusCode == 200 {
			t.Errorf("%d forged bytes came as a whole", len(b))
		}
	}
	if _, err := m.StatBlob(t.Context(), "up/web", img.m.Layers[0].Digest); !fault.Is(err, fault.NotFound) {
		t.Error("it was kept:", err)
	}
}

// RS5: connections that do nothing do not keep others out, and are bounded.
func TestConnectionsAreBounded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, NewServer(newMemory(), ServerOptions{MaxConns: 3})) }()
	var idle []net.Conn
	for range 3 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(c, "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
		if n, err := c.Read(make([]byte, 12)); n == 0 {
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	fourth, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer fourth.Close()
	fmt.Fprint(fourth, "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
	fourth.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, _ := fourth.Read(make([]byte, 1)); n != 0 {
		t.Error("a fourth connection was served")
	}
	idle[0].Close()
	fourth.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := fourth.Read(make([]byte, 1)); n == 0 {
		t.Error("and not when one left:", err)
	}
	for _, c := range idle {
		c.Close()
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
