package engine

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keg/internal/image"
	"keg/internal/registry"
)

// chaos stands before a registry and spoils a part of its answers.
type chaos struct {
	http.Handler
	mu    sync.Mutex
	rand  *rand.Rand
	did   map[string]int
	spoil float64 // how many of the answers
}

var spoilers = []string{"reset", "stall", "half-close", "429", "503", "no range", "longer", "shorter"}

func (c *chaos) choose() (how string, at float64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rand.Float64() >= c.spoil {
		return "", 0
	}
	how = spoilers[c.rand.IntN(len(spoilers))]
	c.did[how]++
	return how, c.rand.Float64()
}

func (c *chaos) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	how, at := c.choose()
	switch how {
	case "429":
		w.Header().Set("Retry-After", "0")
		w.WriteHeader(http.StatusTooManyRequests)
		return
	case "503":
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	case "no range": // 200 for 206
		r.Header.Del("Range")
	}
	if how == "" || how == "no range" {
		c.Handler.ServeHTTP(w, r)
		return
	}
	answer := httptest.NewRecorder()
	c.Handler.ServeHTTP(answer, r)
	body := answer.Body.Bytes()
	length, _ := strconv.Atoi(answer.Header().Get("Content-Length"))
	switch how {
	case "longer":
		length += 1 + int(at*1000)
	case "shorter":
		length = int(at * float64(length))
		body = body[:min(len(body), length)]
	default:
		body = body[:int(at*float64(len(body)))]
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	var head bytes.Buffer
	fmt.Fprintf(&head, "HTTP/1.1 %d %s\r\n", answer.Code, http.StatusText(answer.Code))
	answer.Header().Set("Content-Length", strconv.Itoa(length))
	answer.Header().Write(&head)
	head.WriteString("\r\n")
	conn.Write(append(head.Bytes(), body...))
	switch how {
	case "reset":
		conn.(*net.TCPConn).SetLinger(0)
	case "half-close", "longer":
		conn.(*net.TCPConn).CloseWrite()
		conn.SetReadDeadline(time.Now().Add(time.Minute))
		conn.Read(make([]byte, 1))
	case "stall":
		conn.SetReadDeadline(time.Now().Add(time.Minute))
		conn.Read(make([]byte, 1)) // until the client leaves
	}
}

// fastDir is a directory on a file system in memory where there is one: what is tested is the way there.
func fastDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "keg-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Three hundred pulls (with KEG_SOAK ten thousand) through a proxy that resets at any byte, stalls, half-closes, limits,
// ignores ranges and lies about lengths. At least 999 of a thousand come through, and every tree is the right one.
func TestPullsThroughChaos(t *testing.T) {
	pulls, images, stall := 300, 5, 2*time.Second
	if os.Getenv("KEG_SOAK") != "" {
		pulls, stall = 10_000, 6*time.Second
	} else if testing.Short() {
		pulls = 30
	}
	base := fastDir(t)
	src := openEngine(t, filepath.Join(base, "src"), nil)
	good, stop := serveWith(t, src, filepath.Join(base, "registry"), registry.ServerOptions{})
	defer stop()
	var ids []string
	for i := range images {
		name := fmt.Sprintf("%s/web:%d", good, i)
		r := addImage(t, src, name, nil, tarOf(t, map[string]string{"a": noise(uint64(100+i), 300_000)}), tarOf(t, map[string]string{"b": noise(uint64(200+i), 700_000)}),
			tarOf(t, map[string]string{"c": noise(uint64(300+i), 20_000)}))
		if _, err := src.Push(t.Context(), refs(t, name)[0], nil); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, string(r.ID))
	}
	proxy := &chaos{Handler: forward(good), rand: rand.New(rand.NewPCG(1, 2)), did: map[string]int{}, spoil: 0.1}
	front := httptest.NewServer(proxy)
	defer front.Close()
	host := strings.Replace(strings.TrimPrefix(front.URL, "http://"), "127.0.0.1", "localhost", 1)

	var failed atomic.Int64
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for n := next.Add(1); n <= int64(pulls); n = next.Add(1) {
				if err := onePull(t, filepath.Join(base, fmt.Sprint("pull", n)), fmt.Sprintf("%s/web:%d", host, int(n)%images), ids[int(n)%images], stall); err != nil {
					failed.Add(1)
					t.Logf("pull %d: %v", n, err)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d of %d pulls failed; spoilt: %v", failed.Load(), pulls, proxy.did)
	if failed.Load()*1000 > int64(pulls) {
		t.Errorf("%d of %d pulls failed", failed.Load(), pulls)
	}
	for _, how := range spoilers {
		if proxy.did[how] == 0 && pulls >= 300 {
			t.Errorf("never: %s", how)
		}
	}
}

// onePull pulls into an engine of its own and looks at what came: the image's id is the digest of its config, which
// names its trees' digests, and they were compared while they were unpacked. What is kept of the blobs is read again.
func onePull(t *testing.T, dir, name, id string, stall time.Duration) error {
	defer os.RemoveAll(dir)
	e := openEngine(t, dir, nil)
	e.remote = registry.NewClient(registry.Config{SystemDir: dir, Backoff: 5 * time.Millisecond, Stall: stall})
	ref, err := image.ParseReference(name)
	if err != nil {
		return err
	}
	if _, err := e.Pull(t.Context(), ref, PullOptions{}); err != nil {
		return err
	}
	f, err := e.lookup(t.Context(), name)
	if err != nil || string(f.ID) != id {
		t.Errorf("%s is %s, not %s: %v", name, f.ID, id, err)
	}
	if e.snapshots.Has(f.Stack) != 3 {
		t.Errorf("%s: not all layers are in place", name)
	}
	for d := range e.store.Blobs() {
		if err := e.store.Verify(t.Context(), d, false); err != nil {
			t.Error(err)
		}
	}
	return nil
}

// forward hands requests to another server, and its answers back.
func forward(host string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+host+r.URL.RequestURI(), nil)
		if err != nil {
			panic(err)
		}
		out.Header = r.Header.Clone()
		resp, err := http.DefaultTransport.RoundTrip(out)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		for k, v := range resp.Header {
			w.Header()[k] = v
		}
		w.WriteHeader(resp.StatusCode)
		b := new(bytes.Buffer)
		b.ReadFrom(resp.Body)
		w.Write(b.Bytes())
	})
}
