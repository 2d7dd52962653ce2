// Figures of the server in Prometheus' text form, version 0.0.4, and the answers for those
// who ask whether it lives.

package registry

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// metrics has a bounded number of series: labels are resources, methods and statuses of
// ours, never what a client wrote.
type metrics struct {
	began    time.Time
	inFlight atomic.Int64
	sent     atomic.Int64
	received atomic.Int64

	collections, collectFailures, freedBlobs, freedBytes, expiredTags atomic.Int64
	cacheHits, cacheMisses, cacheStale                                atomic.Int64

	mu       sync.Mutex
	requests map[requestKind]int64
	seconds  map[resource]*histogram
}

type requestKind struct {
	resource resource
	method   string
	status   int
}

// bounds of the buckets, in seconds.
var bounds = [...]float64{0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60}

type histogram struct {
	buckets [len(bounds)]int64
	count   int64
	sum     float64
}

var resourceNames = [...]string{nowhere: "none", tokenEnd: "token", ping: "base", catalog: "catalog", tagsList: "tags", referrers: "referrers",
	manifests: "manifests", blobs: "blobs", uploads: "uploads"}

func newMetrics() *metrics {
	return &metrics{began: time.Now(), requests: map[requestKind]int64{}, seconds: map[resource]*histogram{}}
}

func (m *metrics) observe(r *request, status int, took time.Duration) {
	method := r.Method
	if !slices.Contains([]string{"GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"}, method) {
		method = "other"
	}
	s := took.Seconds()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.requests[requestKind{r.resource, method, status}]++
	h := m.seconds[r.resource]
	if h == nil {
		h = &histogram{}
		m.seconds[r.resource] = h
	}
	h.count++
	h.sum += s
	for i, b := range bounds {
		if s <= b {
			h.buckets[i]++
		}
	}
}

// text writes all series, sorted.
func (m *metrics) text() []byte {
	var b bytes.Buffer
	one := func(name, kind, help string, v any) {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n%s %v\n", name, help, name, kind, name, v)
	}
	one("keg_registry_start_time_seconds", "gauge", "When the server started, since the epoch.", m.began.Unix())
	one("keg_registry_requests_in_flight", "gauge", "Requests being answered.", m.inFlight.Load())
	one("keg_registry_sent_bytes_total", "counter", "Bytes of answers.", m.sent.Load())
	one("keg_registry_received_bytes_total", "counter", "Bytes of requests.", m.received.Load())
	one("keg_registry_collections_total", "counter", "Garbage collections that ended well.", m.collections.Load())
	one("keg_registry_collection_failures_total", "counter", "Garbage collections that failed.", m.collectFailures.Load())
	one("keg_registry_freed_blobs_total", "counter", "Blobs that collections deleted.", m.freedBlobs.Load())
	one("keg_registry_freed_bytes_total", "counter", "Bytes that collections freed.", m.freedBytes.Load())
	one("keg_registry_expired_tags_total", "counter", "Tags that retention rules removed.", m.expiredTags.Load())
	one("keg_registry_cache_hits_total", "counter", "Reads below an upstream's prefix answered from here.", m.cacheHits.Load())
	one("keg_registry_cache_misses_total", "counter", "Reads below an upstream's prefix that fetched from it.", m.cacheMisses.Load())
	one("keg_registry_cache_stale_total", "counter", "Reads answered from here because the upstream did not.", m.cacheStale.Load())
	m.mu.Lock()
	defer m.mu.Unlock()
	b.WriteString("# HELP keg_registry_requests_total Requests by resource, method and status.\n# TYPE keg_registry_requests_total counter\n")
	kinds := make([]requestKind, 0, len(m.requests))
	for k := range m.requests {
		kinds = append(kinds, k)
	}
	slices.SortFunc(kinds, func(a, b requestKind) int {
		return slices.Compare([]string{resourceNames[a.resource], a.method, strconv.Itoa(a.status)}, []string{resourceNames[b.resource], b.method, strconv.Itoa(b.status)})
	})
	for _, k := range kinds {
		fmt.Fprintf(&b, "keg_registry_requests_total{resource=%q,method=%q,status=\"%d\"} %d\n", resourceNames[k.resource], k.method, k.status, m.requests[k])
	}
	b.WriteString("# HELP keg_registry_request_seconds Time to answer, by resource.\n# TYPE keg_registry_request_seconds histogram\n")
	for res := range resource(len(resourceNames)) {
		h := m.seconds[res]
		if h == nil {
			continue
		}
		for i, bound := range bounds {
			fmt.Fprintf(&b, "keg_registry_request_seconds_bucket{resource=%q,le=\"%g\"} %d\n", resourceNames[res], bound, h.buckets[i])
		}
		fmt.Fprintf(&b, "keg_registry_request_seconds_bucket{resource=%q,le=\"+Inf\"} %d\nkeg_registry_request_seconds_sum{resource=%q} %g\nkeg_registry_request_seconds_count{resource=%q} %d\n",
			resourceNames[res], h.count, resourceNames[res], h.sum, resourceNames[res], h.count)
	}
	return b.Bytes()
}

// wellbeing answers /healthz (the process answers), /readyz (the storage answers, and no
// shutdown is under way) and, when switched on, /metrics.
func (s *server) wellbeing(w http.ResponseWriter, r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	say := func(status int, text string) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		w.Header().Set("Content-Length", strconv.Itoa(len(text)))
		w.WriteHeader(status)
		if r.Method != http.MethodHead {
			w.Write([]byte(text))
		}
	}
	switch r.URL.Path {
	case "/healthz":
		say(http.StatusOK, "ok\n")
	case "/readyz":
		if s.leaving.Load() {
			say(http.StatusServiceUnavailable, "shutting down\n")
		} else if err := s.ready(r.Context()); err != nil {
			fmt.Fprintf(s.log, "error not ready err=%q\n", err.Error())
			say(http.StatusServiceUnavailable, "storage unavailable\n")
		} else {
			say(http.StatusOK, "ok\n")
		}
	case "/metrics":
		if !s.opt.Metrics {
			return false
		}
		say(http.StatusOK, string(s.metrics.text()))
	default:
		return false
	}
	return true
}
