package registry

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/image"
)

// listen serves a registry on loopback as it is served in earnest.
func listen(t *testing.T, o ServerOptions) (addr string, m *memory) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m = newMemory()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, NewServer(m, o)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String(), m
}

// A request that is refused is answered at once, whether its sender waits after the headers, stops in
// the middle of the body, or goes on sending. Nothing of it is stored, and the answer has the error in OCI's form.
func TestRefusalsAreAnsweredAtOnce(t *testing.T) {
	addr, m := listen(t, ServerOptions{Quotas: []Quota{{"small/**", 1000}}})
	putIndex(NewServer(m, ServerOptions{Sparse: true}), "x", "1", index(t, "x"))
	blobs, repos := len(m.blobs), len(m.repos)
	d := string(digest.FromString("x"))
	upload := func() string {
		resp, err := http.Post("http://"+addr+"/v2/small/y/blobs/uploads/", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.Header.Get("Location")
	}
	const chunked = -1
	var all sync.WaitGroup
	for _, tc := range []struct {
		name, line string
		length     int64
		status     int
	}{
		{"a manifest of 4 GiB", "PUT /v2/x/manifests/2", 4 << 30, 413},
		{"a manifest just too large", "PUT /v2/x/manifests/2", image.MaxManifest + 1, 413},
		{"a manifest under a tag that is none", "PUT /v2/x/manifests/-", 100 << 10, 400},
		{"a manifest for nobody", "PUT /v2/X/manifests/1", chunked, 400},
		{"a hundred tags and one", "PUT /v2/x/manifests/" + d + "?" + strings.Repeat("tag=a&", 101), 1000, 414},
		{"a blob without a digest", "PUT " + upload(), 4 << 30, 400},
		{"a blob of no session", "PUT /v2/x/blobs/uploads/" + strings.Repeat("0", 32) + "?digest=" + d, 100, 404},
		{"a piece of no session", "PATCH /v2/x/blobs/uploads/" + strings.Repeat("0", 32), 4 << 30, 404},
		{"a piece at the wrong place", "PATCH " + upload(), 5000, 416},
		{"the rest at the wrong place", "PUT " + upload() + "?digest=" + d, 5000, 416},
		{"more than the quota", "PATCH " + upload(), chunked, 403},
		{"a list with a body", "GET /v2/x/tags/list", 5000, 200},
		{"a list with a body without end", "GET /v2/x/tags/list", chunked, 200},
		{"a delete with a body", "DELETE /v2/x/manifests/1", 5000, 405},
		{"no such method", "BREW /v2/x/manifests/1", 5000, 405},
	} {
		for _, sends := range []int{0, 1000, 300 << 10, 1 << 30} {
			if tc.status == 403 && sends < 1<<20 {
				continue // not yet too much
			}
			if tc.length != chunked && int64(sends) > tc.length && sends != 1000 {
				continue
			}
			expect := ""
			if sends == 1000 { // and waits to be invited: as curl does before it sends more than a megabyte
				expect, sends = "Expect: 100-continue\r\n", 0
			}
			name := fmt.Sprintf("%s, %d bytes %.6s", tc.name, sends, expect)
			all.Go(func() {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				began := time.Now()
				c.SetDeadline(began.Add(8 * time.Second))
				framing := fmt.Sprintf("Content-Length: %d", tc.length)
				if tc.length == chunked {
					framing = "Transfer-Encoding: chunked"
				}
				if tc.status == 416 {
					framing += "\r\nContent-Range: 1-5000"
				}
				fmt.Fprintf(c, "%s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\n%s%s\r\n\r\n", tc.line, image.MediaManifest, expect, framing)
				go sendBody(c, sends, tc.length == chunked) // until the server hangs up
				resp, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err != nil {
					t.Errorf("%s: after %v: %v", name, time.Since(began), err)
					return
				}
				b, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if took := time.Since(began); took > leftoverWait+5*time.Second || (tc.length > 1<<20 || expect != "") && took > leftoverWait {
					t.Errorf("%s: answered after %v", name, took)
				}
				if resp.StatusCode != tc.status || tc.status >= 400 && !strings.HasPrefix(string(b), `{"errors":[{"code":"`) {
					t.Errorf("%s: %d %s", name, resp.StatusCode, b)
				}
			})
		}
	}
	all.Wait()
	if len(m.blobs) != blobs || len(m.repos) != repos {
		t.Errorf("something was stored: %d blobs, %d repositories", len(m.blobs), len(m.repos))
	}
}

func sendBody(c net.Conn, n int, chunked bool) {
	piece := strings.Repeat(" ", 1000)
	for sent := 0; sent < n; sent += len(piece) {
		text := piece
		if chunked {
			text = fmt.Sprintf("%x\r\n%s\r\n", len(piece), piece)
		}
		if _, err := io.WriteString(c, text); err != nil {
			return
		}
	}
}
