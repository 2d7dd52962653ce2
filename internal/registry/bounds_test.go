package registry

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"keg/internal/image"
)

// RS5: connections that say nothing, or half a header, keep nobody waiting.
func TestIdleConnections(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, NewServer(newMemory(), ServerOptions{})) }()
	var idle []net.Conn
	defer func() {
		for _, c := range idle {
			c.Close()
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	conns := 2000
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err == nil && files.Cur < 5000 {
		conns = 300 // descriptors are two each
	}
	for i := range conns {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			fmt.Fprint(c, "GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow: ")
		}
		idle = append(idle, c)
	}
	client := &http.Client{Timeout: 5 * time.Second}
	for range 20 {
		resp, err := client.Get("http://" + l.Addr().String() + "/v2/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Error(resp.Status)
		}
	}
}

// RS4: what one request can make the server hold. Forty clients send manifests without end and
// ask for all tags at once.
func TestMemoryIsBounded(t *testing.T) {
	m := newMemory()
	h := NewServer(m, ServerOptions{Sparse: true})
	doc := index(t, "x")
	if putIndex(h, "x", "1", doc) != 201 {
		t.Fatal("put")
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5 {
				w := ask(h, "PUT", "/v2/x/manifests/2", &endless{left: 64 << 20}, "Content-Type: "+image.MediaManifest)
				if w.Code != 413 {
					t.Error(w.Code)
				}
				for _, n := range []string{"99999999999999999999", "-1", "x"} {
					if w := ask(h, "GET", "/v2/x/tags/list?n="+n, nil); w.Code != 400 {
						t.Error(n, w.Code)
					}
				}
			}
		})
	}
	wg.Wait()
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 16<<20 {
		t.Errorf("%d bytes are still held", grown)
	}
	if sys := after.HeapSys; sys > 512<<20 {
		t.Errorf("the heap reached %d bytes", sys)
	}
	if w := ask(h, "GET", "/v2/x/manifests/1", nil); w.Code != 200 || !bytes.Equal(w.Body.Bytes(), doc) {
		t.Error(w.Code)
	}
	if w := ask(h, "GET", "/v2/x/tags/list?n=1000000", nil); w.Code != 200 || !strings.Contains(w.Body.String(), `["1"]`) {
		t.Error(w.Code, w.Body)
	}
}

// endless is a body of a length that nobody announced.
type endless struct{ left int }

func (e *endless) Read(p []byte) (int, error) {
	n := min(len(p), e.left)
	if e.left -= n; n == 0 {
		return 0, fmt.Errorf("read all of it")
	}
	for i := range p[:n] {
		p[i] = ' '
	}
	return n, nil
}
