package registry

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"keg/internal/image"
)

// cutter ends the connection in the middle of the first PUTs of a blob.
type cutter struct {
	http.Handler
	cuts     atomic.Int32
	at       int64
	received atomic.Int64
	forget   bool // the registry lost the session
	posts    atomic.Int32
}

func (c *cutter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == "POST" {
		c.posts.Add(1)
	}
	if r.Method == "GET" && c.forget && strings.Contains(r.URL.Path, "/uploads/") {
		w.WriteHeader(404)
		return
	}
	if r.Method == "PUT" && strings.Contains(r.URL.Path, "/uploads/") {
		body := r.Body
		if c.cuts.Add(-1) >= 0 {
			r.Body = io.NopCloser(io.MultiReader(io.LimitReader(body, c.at), broken{}))
			r.Body = &tally{r.Body, &c.received}
			c.Handler.ServeHTTP(nullWriter{http.Header{}}, r)
			panic(http.ErrAbortHandler)
		}
		r.Body = &tally{body, &c.received}
	}
	c.Handler.ServeHTTP(w, r)
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

type tally struct {
	io.ReadCloser
	n *atomic.Int64
}

func (t *tally) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	t.n.Add(int64(n))
	return n, err
}

type nullWriter struct{ h http.Header }

func (n nullWriter) Header() http.Header         { return n.h }
func (n nullWriter) Write(p []byte) (int, error) { return len(p), nil }
func (n nullWriter) WriteHeader(int)             {}

func TestUploadGoesOnWhereItBroke(t *testing.T) {
	blob := make([]byte, 1<<20)
	rand.Read(blob)
	d := descriptor(image.MediaLayer, blob)
	for _, forget := range []bool{false, true} {
		t.Run(fmt.Sprint("session lost ", forget), func(t *testing.T) {
			m := newMemory()
			c := &cutter{Handler: NewServer(m, ServerOptions{}), at: 300_000, forget: forget}
			c.cuts.Store(3)
			host := startServer(t, c)
			client := testClient(t)
			ref := parse(t, host+"/x:1")
			var told int64
			if err := client.PushBlob(t.Context(), ref, d, opener(blob), func(n int64) { told = n }); err != nil {
				t.Fatal(err)
			}
			got, _, err := readBlob(t, client, ref, d, 0)
			if err != nil || !bytes.Equal(got, blob) || told != d.Size {
				t.Error(len(got), told, err)
			}
			sent, posts := c.received.Load(), c.posts.Load()
			if !forget && (sent > d.Size || posts != 1) {
				t.Errorf("%d bytes were sent in %d sessions for a blob of %d", sent, posts, d.Size)
			}
			if forget && posts != 4 {
				t.Error("sessions:", posts)
			}
		})
	}
}
