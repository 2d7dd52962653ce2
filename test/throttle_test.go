package test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// pushRandom pushes an image of one layer.
func pushRandom(t *testing.T, ref string, size int64) {
	t.Helper()
	img, err := random.Image(size, 1)
	if err != nil {
		t.Fatal(err)
	}
	n, err := name.ParseReference(ref, name.Insecure)
	if err == nil {
		err = remote.Write(n, img)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// throttle stands before a registry, lets blobs through at a rate and counts them.
type throttle struct {
	host string
	rate atomic.Int64 // bytes a second; 0 = as fast as it goes
	sent atomic.Int64 // of blobs
	srv  *httptest.Server

	mu     sync.Mutex
	asked  map[string]int // GETs of a blob
	ranged []string
}

func newThrottle(t *testing.T, to string, rate int64) *throttle {
	s := &throttle{asked: map[string]int{}}
	s.rate.Store(rate)
	s.srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, to) }))
	_, port, err := net.SplitHostPort(strings.TrimPrefix(s.srv.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	s.host = "localhost:" + port
	return s
}

func (s *throttle) close() { s.srv.CloseClientConnections(); s.srv.Close() }

func (s *throttle) serve(w http.ResponseWriter, r *http.Request, to string) {
	blob := r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/")
	if blob {
		s.mu.Lock()
		s.asked[r.URL.Path]++
		if v := r.Header.Get("Range"); v != "" {
			s.ranged = append(s.ranged, v)
		}
		s.mu.Unlock()
	}
	out, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+to+r.URL.RequestURI(), nil)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
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
	for {
		n, err := io.CopyN(w, resp.Body, 64<<10)
		if blob {
			s.sent.Add(n)
			if rate := s.rate.Load(); rate > 0 {
				time.Sleep(time.Duration(n) * time.Second / time.Duration(rate))
			}
		}
		if err != nil {
			return
		}
	}
}

func (s *throttle) blobBytes() int64 { return s.sent.Load() }

// waitFor returns when so much has been sent.
func (s *throttle) waitFor(n int64) {
	for end := time.Now().Add(time.Minute); s.sent.Load() < n && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
	}
}

func (s *throttle) ranges() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ranged
}

func (s *throttle) fetches() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}
