package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"keg/internal/fault"
	"keg/internal/image"
)

// blobServer serves one blob, badly: what answer n does is behave's n-th word.
type blobServer struct {
	blob   []byte
	behave []string
	mu     sync.Mutex
	ranges []string
}

func (b *blobServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.Contains(r.URL.Path, "/blobs/") {
		return
	}
	b.mu.Lock()
	b.ranges = append(b.ranges, r.Header.Get("Range"))
	how := ""
	if len(b.behave) > 0 {
		how, b.behave = b.behave[0], b.behave[1:]
	}
	b.mu.Unlock()
	verb, arg, _ := strings.Cut(how, " ")
	n, _ := strconv.Atoi(arg)
	from := 0
	fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
	switch verb {
	case "": // well
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b.blob))
	case "reset": // n bytes, then the connection breaks
		partial(w, b.blob, from)
		w.Write(b.blob[from:min(from+n, len(b.blob))])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	case "stall": // n bytes, then nothing
		partial(w, b.blob, from)
		w.Write(b.blob[from:min(from+n, len(b.blob))])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	case "trickle": // a byte now and then
		partial(w, b.blob, from)
		for i := from; i < len(b.blob) && r.Context().Err() == nil; i++ {
			w.Write(b.blob[i : i+1])
			w.(http.Flusher).Flush()
			time.Sleep(100 * time.Millisecond)
		}
	case "silent": // not even a header
		<-r.Context().Done()
	case "status":
		w.Header().Set("Retry-After", "0")
		w.WriteHeader(n)
	case "all": // 200 for 206, up to n bytes
		w.Header().Set("Content-Length", strconv.Itoa(len(b.blob)))
		w.Write(b.blob[:n])
		if n < len(b.blob) {
			panic(http.ErrAbortHandler)
		}
	case "elsewhere": // another range than asked for
		n = min(n, len(b.blob)-from)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from+n, len(b.blob)-1, len(b.blob)))
		w.WriteHeader(http.StatusPartialContent)
		w.Write(b.blob[from+n:])
	case "short": // ends early without a word: no length was told
		if from > 0 {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(b.blob)-1, len(b.blob)))
			w.WriteHeader(http.StatusPartialContent)
		}
		w.(http.Flusher).Flush()
		w.Write(b.blob[from:min(from+n, len(b.blob))])
	case "long": // more than promised, no length told
		w.(http.Flusher).Flush()
		w.Write(b.blob)
		w.Write([]byte("and more"))
	case "length": // a length of its own
		w.Header().Set("Content-Length", strconv.Itoa(n))
		w.Write(b.blob[:n])
	}
}

func partial(w http.ResponseWriter, blob []byte, from int) {
	w.Header().Set("Content-Length", strconv.Itoa(len(blob)-from))
	if from > 0 {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(blob)-1, len(blob)))
		w.WriteHeader(http.StatusPartialContent)
	}
}

func TestBlobReaderIsPatient(t *testing.T) {
	blob := make([]byte, 300<<10)
	rand.NewChaCha8([32]byte{7}).Read(blob)
	size := strconv.Itoa(len(blob))
	for _, tc := range []struct {
		behave []string
		offset int64
		ok     bool
	}{
		{nil, 0, true},
		{nil, 100, true},
		{nil, int64(len(blob)), true},
		{[]string{"reset 0"}, 0, true},
		{[]string{"reset 1"}, 0, true},
		{[]string{"reset 70000", "reset 70000", "reset 70000", "reset 70000"}, 0, true},
		{[]string{"reset 70000", "reset 1", "stall 70000", "status 503", "reset 1000"}, 5, true},
		{[]string{"reset " + size}, 0, true},
		{[]string{"stall 0"}, 0, true},
		{[]string{"stall 100000", "silent"}, 0, true},
		{[]string{"status 429", "status 500", "status 502", "status 504"}, 0, true},
		{[]string{"reset 1000", "all " + size}, 0, true},
		{[]string{"reset 100000", "all 150000", "all 200000"}, 0, true},
		{[]string{"reset 1000", "elsewhere 7", "elsewhere -7"}, 0, true},
		{[]string{"short 1000", "short 100000"}, 0, true},
		{[]string{"length 1000", "length 307199"}, 0, true},
		// no end of it: an error that says so
		{slices.Repeat([]string{"reset 10"}, 6), 0, false},
		{[]string{"stall 10", "stall 10", "stall 10"}, 0, false},
		{[]string{"trickle", "trickle", "trickle"}, 0, false},
		{slices.Repeat([]string{"status 500"}, 6), 0, false},
		{[]string{"status 500", "reset 10", "reset 10", "status 500", "stall 10"}, 0, true},
		{[]string{"status 404"}, 0, false},
		{slices.Repeat([]string{"length 1000"}, 6), 0, false},
		{[]string{"long"}, 0, false},
		{slices.Repeat([]string{"elsewhere 7"}, 6), 10, false},
	} {
		t.Run(fmt.Sprint(tc.behave, tc.offset), func(t *testing.T) {
			t.Parallel()
			s := &blobServer{blob: blob, behave: tc.behave}
			host := startServer(t, s)
			c := testClient(t)
			c.patient.stall = 300 * time.Millisecond
			got, off, err := readBlob(t, c, parse(t, host+"/x:1"), descriptor(image.MediaLayer, blob), tc.offset)
			if tc.ok && (err != nil || off != tc.offset || !bytes.Equal(got, blob[off:])) {
				t.Errorf("%d bytes from %d, right %v, asked %q: %v", len(got), off, bytes.Equal(got, blob[off:]), s.ranges, err)
			}
			if !tc.ok && (err == nil || !strings.Contains(err.Error(), host)) {
				t.Errorf("%d bytes, asked %q: %v", len(got), s.ranges, err)
			}
		})
	}
}

// A server without ranges sends all: the caller learns that it has to start anew.
func TestBlobTellsTheRealOffset(t *testing.T) {
	blob := []byte(strings.Repeat("0123456789", 100))
	host := startServer(t, &blobServer{blob: blob, behave: []string{"all 1000"}})
	got, off, err := readBlob(t, testClient(t), parse(t, host+"/x:1"), descriptor(image.MediaLayer, blob), 500)
	if err != nil || off != 0 || !bytes.Equal(got, blob) {
		t.Error(len(got), off, err)
	}
}

// Resets at every kind of place: whatever the server breaks, the bytes are right.
func TestBlobReaderUnderChaos(t *testing.T) {
	blob := make([]byte, 1<<20)
	r := rand.New(rand.NewChaCha8([32]byte{9}))
	rand.NewChaCha8([32]byte{8}).Read(blob)
	pulls := 60
	if testing.Short() {
		pulls = 10
	}
	for range pulls {
		var behave []string
		for range r.IntN(4) {
			behave = append(behave, []string{
				fmt.Sprint("reset ", enough+r.IntN(len(blob)/4)), fmt.Sprint("short ", r.IntN(100000)), "status 503",
				fmt.Sprint("all ", r.IntN(len(blob))), fmt.Sprint("elsewhere ", 1+r.IntN(100))}[r.IntN(5)])
		}
		s := &blobServer{blob: blob, behave: append([]string{fmt.Sprint("reset ", r.IntN(len(blob)))}, behave...)}
		srv := httptest.NewServer(s)
		host := strings.TrimPrefix(srv.URL, "http://")
		c := testClient(t)
		c.patient.attempts = 8
		got, _, err := readBlob(t, c, parse(t, host+"/x:1"), descriptor(image.MediaLayer, blob), 0)
		if err != nil || !bytes.Equal(got, blob) {
			t.Errorf("%v: %d bytes: %v", behave, len(got), err)
		}
		srv.Close()
	}
}

func TestCancelEndsADownloadAtOnce(t *testing.T) {
	host := startServer(t, &blobServer{blob: make([]byte, 1000), behave: []string{"stall 10"}})
	c := testClient(t)
	c.patient.stall = time.Minute
	ctx, cancel := context.WithCancel(t.Context())
	r, _, err := c.Blob(ctx, parse(t, host+"/x:1"), descriptor(image.MediaLayer, make([]byte, 1000)), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.Read(make([]byte, 10))
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := io.ReadAll(r); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestRetryAfterIsKeptToAndBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tc := range []struct {
			wait  string
			tries int
			pause time.Duration
		}{{"7", 2, 7 * time.Second}, {"3600", 1, 0}} {
			tries := 0
			ep := fakeEndpoint(t, func(r *http.Request) *http.Response {
				if tries++; tries == 1 {
					return &http.Response{StatusCode: 429, Header: http.Header{"Retry-After": {tc.wait}}, Body: http.NoBody, Request: r}
				}
				return &http.Response{StatusCode: 200, Header: http.Header{}, Body: http.NoBody, Request: r}
			})
			began := time.Now()
			resp, err := ep.do(t.Context(), call{method: "GET", path: "/v2/", want: []int{200}})
			if took := time.Since(began); tries != tc.tries || took < tc.pause || (err == nil) != (tc.tries == 2) {
				t.Errorf("Retry-After %s: %d tries in %v, %v", tc.wait, tries, took, err)
			}
			if resp != nil {
				resp.Body.Close()
			}
		}
	})
}

func TestServiceThatStaysDownIsAnErrorSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		ep := fakeEndpoint(t, func(r *http.Request) *http.Response {
			tries++
			return &http.Response{StatusCode: 503, Header: http.Header{}, Body: http.NoBody, Request: r}
		})
		began := time.Now()
		_, err := ep.do(t.Context(), call{method: "GET", path: "/v2/", want: []int{200}})
		if tries != 6 || time.Since(began) > 10*time.Second {
			t.Error(tries, time.Since(began))
		}
		if err := pullError(parse(t, "r.example/x:1"), err); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "status 503") {
			t.Error(err)
		}
	})
}
