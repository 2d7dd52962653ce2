package registry

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
)

// memory is a Storage without a disk: this room must not know the store. What it lacks in
// durability it has in strictness about repositories.
type memory struct {
	mu      sync.Mutex
	blobs   map[digest.Digest][]byte
	repos   map[string]*memoryRepo
	uploads map[string]*bytes.Buffer

	pushed, pulled map[string]time.Time // house_test.go
	collected      int
}

type memoryRepo struct {
	blobs     map[digest.Digest]bool
	manifests map[digest.Digest]image.Descriptor
	tags      map[string]image.Descriptor
	referrers map[digest.Digest][]image.Descriptor
}

func newMemory() *memory {
	return &memory{blobs: map[digest.Digest][]byte{}, repos: map[string]*memoryRepo{}, uploads: map[string]*bytes.Buffer{}}
}

// repo returns a repository with the lock held.
func (m *memory) repo(name string, create bool) *memoryRepo {
	r := m.repos[name]
	if r == nil {
		r = &memoryRepo{map[digest.Digest]bool{}, map[digest.Digest]image.Descriptor{}, map[string]image.Descriptor{}, map[digest.Digest][]image.Descriptor{}}
		if create {
			m.repos[name] = r
		}
	}
	return r
}

var errNothing = fault.NotFoundf("not here")

func (m *memory) StatBlob(_ context.Context, repo string, d digest.Digest) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.repo(repo, false).blobs[d] {
		return 0, errNothing
	}
	return int64(len(m.blobs[d])), nil
}

func (m *memory) OpenBlob(_ context.Context, repo string, d digest.Digest) (io.ReadSeekCloser, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.repo(repo, false).blobs[d] {
		return nil, errNothing
	}
	return struct {
		io.ReadSeeker
		io.Closer
	}{bytes.NewReader(m.blobs[d]), io.NopCloser(nil)}, nil
}

func (m *memory) MountBlob(_ context.Context, repo, from string, d digest.Digest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.repo(from, false).blobs[d] {
		return errNothing
	}
	m.repo(repo, true).blobs[d] = true
	return nil
}

func (m *memory) DeleteBlob(_ context.Context, repo string, d digest.Digest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.repo(repo, false)
	if !r.blobs[d] {
		return errNothing
	}
	delete(r.blobs, d)
	return nil
}

func (m *memory) StartUpload(_ context.Context, repo, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.uploads[repo+" "+id] = &bytes.Buffer{}
	return nil
}

func (m *memory) UploadSize(_ context.Context, repo, id string) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.uploads[repo+" "+id]; b != nil {
		return int64(b.Len()), nil
	}
	return 0, errNothing
}

func (m *memory) AppendUpload(ctx context.Context, repo, id string, at int64, body io.Reader) (int64, error) {
	size, err := m.UploadSize(ctx, repo, id)
	if err != nil {
		return 0, err
	}
	if at >= 0 && at != size {
		return size, fault.Invalidf("at %d", size)
	}
	all, err := io.ReadAll(body)
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.uploads[repo+" "+id]
	b.Write(all)
	return int64(b.Len()), err
}

func (m *memory) FinishUpload(ctx context.Context, repo, id string, at int64, body io.Reader, d digest.Digest) error {
	if _, err := m.AppendUpload(ctx, repo, id, at, body); fault.Is(err, fault.Invalid) {
		return fault.As(fault.Conflict, err)
	} else if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.uploads[repo+" "+id].Bytes()
	delete(m.uploads, repo+" "+id)
	if d.Algorithm().FromBytes(b) != d {
		return fault.Invalidf("other digest")
	}
	m.blobs[d] = b
	m.repo(repo, true).blobs[d] = true
	return nil
}

func (m *memory) CancelUpload(ctx context.Context, repo, id string) error {
	if _, err := m.UploadSize(ctx, repo, id); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.uploads, repo+" "+id)
	return nil
}

func (m *memory) Manifest(_ context.Context, repo, tag string, d digest.Digest) (image.Descriptor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	desc, ok := m.repo(repo, false).manifests[d]
	if tag != "" {
		desc, ok = m.repo(repo, false).tags[tag]
	}
	if !ok {
		return desc, errNothing
	}
	return desc, nil
}

func (m *memory) ReadManifest(_ context.Context, _ string, desc image.Descriptor) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.blobs[desc.Digest], nil
}

func (m *memory) PutManifest(_ context.Context, repo string, desc image.Descriptor, doc []byte, subject digest.Digest, tags []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.repo(repo, true)
	m.blobs[desc.Digest] = doc
	r.manifests[desc.Digest] = desc
	for _, t := range tags {
		r.tags[t] = desc
	}
	if subject != "" {
		r.referrers[subject] = append(r.referrers[subject], desc)
	}
	return nil
}

func (m *memory) DeleteTag(_ context.Context, repo, tag string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.repo(repo, false)
	if _, ok := r.tags[tag]; !ok {
		return errNothing
	}
	delete(r.tags, tag)
	return nil
}

func (m *memory) DeleteManifest(_ context.Context, repo string, d, subject digest.Digest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.repo(repo, false)
	delete(r.manifests, d)
	maps.DeleteFunc(r.tags, func(_ string, desc image.Descriptor) bool { return desc.Digest == d })
	r.referrers[subject] = slices.DeleteFunc(r.referrers[subject], func(desc image.Descriptor) bool { return desc.Digest == d })
	return nil
}

func (m *memory) Referrers(_ context.Context, repo string, d digest.Digest) ([]image.Descriptor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.repo(repo, false).referrers[d], nil
}

func (m *memory) Tags(_ context.Context, repo string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.repos[repo] == nil {
		return nil, errNothing
	}
	return slices.Sorted(maps.Keys(m.repos[repo].tags)), nil
}

func (m *memory) List(context.Context) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := slices.Collect(maps.Keys(m.repos))
	sort.Strings(names)
	return names, nil
}

// ---- a registry, a client, an image

func startServer(t *testing.T, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func startRegistry(t *testing.T, o ServerOptions) (host string, m *memory) {
	t.Helper()
	m = newMemory()
	return startServer(t, NewServer(m, o)), m
}

// testClient knows nothing of this machine and has little patience.
func testClient(t *testing.T, change ...func(*Config)) *Client {
	t.Helper()
	cfg := Config{DockerConfig: t.TempDir(), SystemDir: t.TempDir(), Env: map[string]string{}}
	for _, f := range change {
		f(&cfg)
	}
	c := NewClient(cfg)
	c.patient.backoff = time.Millisecond
	c.patient.stall = 2 * time.Second
	return c
}

func parse(t *testing.T, s string) image.Reference {
	t.Helper()
	ref, err := image.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func descriptor(mediaType string, b []byte) image.Descriptor {
	return image.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

func opener(b []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

// testImage is a config, a manifest and layers of nonsense.
type testImage struct {
	config, manifest []byte
	layers           [][]byte
	m                image.Manifest
}

func newImage(t *testing.T, p image.Platform, layers ...[]byte) testImage {
	t.Helper()
	img := testImage{layers: layers}
	var cfg image.Config
	cfg.OS, cfg.Architecture, cfg.Variant = p.OS, p.Architecture, p.Variant
	cfg.RootFS.Type = "layers"
	img.m.SchemaVersion, img.m.MediaType = 2, image.MediaManifest
	for _, l := range layers {
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, digest.FromBytes(l))
		img.m.Layers = append(img.m.Layers, descriptor(image.MediaLayer, l))
	}
	img.config = marshal(t, cfg)
	img.m.Config = descriptor(image.MediaConfig, img.config)
	img.manifest = marshal(t, img.m)
	return img
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (img testImage) push(t *testing.T, c *Client, ref image.Reference) image.Descriptor {
	t.Helper()
	ctx := t.Context()
	for i, b := range append([][]byte{img.config}, img.layers...) {
		d := img.m.Config
		if i > 0 {
			d = img.m.Layers[i-1]
		}
		if err := c.PushBlob(ctx, ref, d, opener(b), nil); err != nil {
			t.Fatal(err)
		}
	}
	d, err := c.PushManifest(ctx, ref, image.MediaManifest, img.manifest)
	if err != nil {
		t.Fatal(err)
	}
	return image.Descriptor{MediaType: image.MediaManifest, Digest: d, Size: int64(len(img.manifest))}
}

func readBlob(t *testing.T, c *Client, ref image.Reference, d image.Descriptor, off int64) ([]byte, int64, error) {
	t.Helper()
	r, got, err := c.Blob(t.Context(), ref, d, off)
	if err != nil {
		return nil, 0, err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	return b, got, err
}

type roundTrip func(*http.Request) *http.Response

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r), nil }

// fakeEndpoint is one without a network, for tests of time.
func fakeEndpoint(t *testing.T, answer roundTrip) *endpoint {
	c := NewClient(Config{SystemDir: t.TempDir()})
	ep := c.endpoint("r.example", false)
	ep.connect = func() (http.RoundTripper, error) { return answer, nil }
	return ep
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func gzipOf(t *testing.T, s string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	io.WriteString(w, s)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
