package registry

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
)

func TestPushThenPull(t *testing.T) {
	host, _ := startRegistry(t, ServerOptions{})
	c := testClient(t)
	ref := parse(t, host+"/team/web:1.0")
	img := newImage(t, image.Host(), []byte("layer one"), bytes.Repeat([]byte("two "), 1<<18))
	var told int64
	big := img.m.Layers[1]
	if err := c.PushBlob(t.Context(), ref, big, opener(img.layers[1]), func(n int64) { told = n }); err != nil {
		t.Fatal(err)
	}
	if told != big.Size {
		t.Errorf("progress ended at %d of %d", told, big.Size)
	}
	desc := img.push(t, c, ref)
	got, err := c.Resolve(t.Context(), ref)
	if err != nil || got.Digest != desc.Digest || got.Size != desc.Size || got.MediaType != image.MediaManifest {
		t.Fatalf("resolved %+v, %v", got, err)
	}
	r, err := c.Fetch(t.Context(), ref, image.Host(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(r.RawManifest, img.manifest) || !bytes.Equal(r.RawConfig, img.config) || len(r.Indexes) != 0 {
		t.Error("documents changed on the way")
	}
	for i, l := range r.Manifest.Layers {
		b, _, err := readBlob(t, c, ref, l, 0)
		if err != nil || !bytes.Equal(b, img.layers[i]) {
			t.Errorf("layer %d: %v", i, err)
		}
	}
	if b, off, err := readBlob(t, c, ref, big, 1000); err != nil || off != 1000 || !bytes.Equal(b, img.layers[1][1000:]) {
		t.Errorf("from 1000: %d bytes from %d, %v", len(b), off, err)
	}
	tags, err := c.Tags(t.Context(), ref)
	if err != nil || len(tags) != 1 || tags[0] != "1.0" {
		t.Error(tags, err)
	}
	if ok, err := c.HasBlob(t.Context(), ref, big.Digest); !ok || err != nil {
		t.Error(ok, err)
	}
	if ok, err := c.HasBlob(t.Context(), ref, digest.FromString("other")); ok || err != nil {
		t.Error(ok, err)
	}
}

func TestFetchPicksPlatformAndAsksOnlyForWhatIsNotKnown(t *testing.T) {
	m := newMemory()
	var gets int
	server := NewServer(m, ServerOptions{})
	host := startServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" && strings.HasPrefix(r.URL.Path, "/v2/x/") {
			gets++
		}
		server.ServeHTTP(w, r)
	}))
	c := testClient(t)
	ref := parse(t, host+"/x:multi")
	arm, amd := image.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}, image.Platform{OS: "linux", Architecture: "amd64"}
	index := image.Index{MediaType: image.MediaIndex}
	index.SchemaVersion = 2
	want := map[string]image.Descriptor{}
	for _, p := range []image.Platform{arm, amd} {
		img := newImage(t, p, []byte("layer of "+p.Architecture))
		d := img.push(t, c, ref.WithDigest(digest.FromBytes(img.manifest)))
		d.Platform = &p
		want[p.Architecture] = d
		index.Manifests = append(index.Manifests, d)
	}
	if _, err := c.PushManifest(t.Context(), ref, image.MediaIndex, marshal(t, index)); err != nil {
		t.Fatal(err)
	}
	known := map[digest.Digest][]byte{}
	for _, p := range []image.Platform{arm, amd} {
		r, err := c.Fetch(t.Context(), ref, p, nil)
		if err != nil {
			t.Fatal(err)
		}
		if r.Desc.Digest != want[p.Architecture].Digest || r.Config.Architecture != p.Architecture || len(r.Indexes) != 1 || r.Root.MediaType != image.MediaIndex {
			t.Errorf("%s: got %+v", p.Architecture, r.Desc)
		}
		known[r.Root.Digest], known[r.Desc.Digest], known[r.Manifest.Config.Digest] = r.Indexes[0].Raw, r.RawManifest, r.RawConfig
	}
	gets = 0
	if _, err := c.Fetch(t.Context(), ref, arm, func(d digest.Digest, _ int64) ([]byte, error) {
		if b := known[d]; b != nil {
			return b, nil
		}
		return nil, errNothing
	}); err != nil || gets != 0 {
		t.Errorf("%d GETs for what was known, %v", gets, err)
	}
	if _, err := c.Fetch(t.Context(), ref, image.Platform{OS: "linux", Architecture: "s390x"}, nil); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

func TestMount(t *testing.T) {
	host, m := startRegistry(t, ServerOptions{})
	c := testClient(t)
	from, to := parse(t, host+"/from:1"), parse(t, host+"/to:1")
	blob := []byte("shared")
	d := descriptor(image.MediaLayer, blob)
	if err := c.PushBlob(t.Context(), from, d, opener(blob), nil); err != nil {
		t.Fatal(err)
	}
	if ok, err := c.MountBlob(t.Context(), to, d.Digest, "elsewhere"); ok || err != nil {
		t.Fatal(ok, err)
	}
	if len(m.uploads) != 0 {
		t.Error("a refused mount leaves an upload open")
	}
	if ok, err := c.MountBlob(t.Context(), to, d.Digest, "from"); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if b, _, err := readBlob(t, c, to, d, 0); err != nil || string(b) != "shared" {
		t.Error(b, err)
	}
}

func TestMessages(t *testing.T) {
	host, _ := startRegistry(t, ServerOptions{ReadOnly: true})
	html := startServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "<html>\x1b[31mno\u202e</html>", http.StatusNotFound)
	}))
	denied := startServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		w.Write([]byte(`{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`))
	}))
	limited := startServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "7200")
		w.Header().Set("RateLimit-Limit", "100;w=21600")
		w.WriteHeader(http.StatusTooManyRequests)
		w.Write([]byte(`{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}`))
	}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	down := l.Addr().String()
	l.Close()
	c := testClient(t)
	for _, tc := range []struct {
		name string
		kind fault.Kind
		want []string
	}{
		{host + "/x:y", fault.NotFound, []string{"manifest for " + host + "/x:y not found: manifest unknown: manifest unknown; registry " + host + " has no repository x"}},
		{html + "/x:y", fault.NotFound, []string{"error parsing HTTP 404 response body: invalid character '<' looking for beginning of value", "?[31mno?"}},
		{denied + "/foo:1", fault.Denied, []string{"pull access denied for " + denied + "/foo, repository does not exist or may require 'docker login': denied: requested access to the resource is denied", "docker login " + denied}},
		{limited + "/foo:1", fault.Unavailable, []string{"toomanyrequests: You have reached your pull rate limit.", "(100 in 6h0m0s)", "try again in 2h0m0s", "mirror", "docker login " + limited}},
		{down + "/x:y", fault.Unavailable, []string{"cannot reach registry " + down + ": dial tcp", "connection refused; is it running?"}},
	} {
		_, err := c.Resolve(t.Context(), parse(t, tc.name))
		if !fault.Is(err, tc.kind) {
			t.Errorf("%s: kind %v", tc.name, fault.KindOf(err))
		}
		for _, want := range tc.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: want %q in\n%v", tc.name, want, err)
			}
		}
		if err != nil && strings.ContainsAny(err.Error(), "\x1b\x07\u202e\n") {
			t.Errorf("%s: control characters in %q", tc.name, err)
		}
	}
	_, err = c.PushManifest(t.Context(), parse(t, host+"/x:1"), image.MediaManifest, []byte("{}"))
	if !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "read-only") {
		t.Error(err)
	}
}

// Each line is a lie about a document; none may get through.
func TestLyingDocumentsAreRefused(t *testing.T) {
	img := newImage(t, image.Host(), []byte("layer"))
	index := marshal(t, image.Index{MediaType: image.MediaIndex})
	other := string(digest.FromString("other"))
	for name, answer := range map[string]func(http.ResponseWriter){
		"other digest in the header": func(w http.ResponseWriter) {
			w.Header().Set("Docker-Content-Digest", other)
			w.Header().Set("Content-Type", image.MediaManifest)
			w.Write(img.manifest)
		},
		"manifest called index": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", image.MediaIndex)
			w.Write(img.manifest)
		},
		"index called manifest": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", image.MediaManifest)
			w.Write(index)
		},
		"a web page": func(w http.ResponseWriter) { w.Write([]byte("<html>")) },
		"null":       func(w http.ResponseWriter) { w.Write([]byte("null")) },
		"too large": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", image.MediaManifest)
			w.Write(make([]byte, image.MaxManifest+1))
		},
		"compressed": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", image.MediaManifest)
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(img.manifest)
		},
		"schema 1": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", schema1)
			w.Write([]byte("{}"))
		},
	} {
		host := startServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == "HEAD" {
				return // no digest: forces GET
			}
			answer(w)
		}))
		d, err := testClient(t).Resolve(t.Context(), parse(t, host+"/x:1"))
		if err == nil {
			t.Errorf("%s: resolved to %+v", name, d)
		}
	}
	host := startServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", image.MediaManifest)
		w.Write(img.manifest)
	}))
	c, ref := testClient(t), parse(t, host+"/x:1")
	if _, err := c.Manifest(t.Context(), ref, image.Descriptor{Digest: digest.Digest(other)}); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	right := descriptor(image.MediaManifest, img.manifest)
	for _, d := range []image.Descriptor{{Digest: right.Digest, Size: 1}, {Digest: right.Digest, MediaType: image.MediaIndex}, {Digest: "sha256:../../x"}, {Digest: "md5:" + right.Digest[7:]}} {
		if _, err := c.Manifest(t.Context(), ref, d); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", d, err)
		}
	}
	if b, err := c.Manifest(t.Context(), ref, right); err != nil || !bytes.Equal(b, img.manifest) {
		t.Error(err)
	}
}

// An index that holds itself cannot be made, but one that is a hundred deep can.
func TestDeepIndexIsRefused(t *testing.T) {
	host, _ := startRegistry(t, ServerOptions{Sparse: true})
	c := testClient(t)
	host0 := image.Host()
	inner := descriptor(image.MediaIndex, []byte("x"))
	var last []byte
	for range maxDepth + 2 {
		inner.Platform = &host0
		x := image.Index{MediaType: image.MediaIndex, Manifests: []image.Descriptor{inner}}
		x.SchemaVersion = 2
		last = marshal(t, x)
		if _, err := c.PushManifest(t.Context(), parse(t, host+"/x:deep"), image.MediaIndex, last); err != nil {
			t.Fatal(err)
		}
		inner = descriptor(image.MediaIndex, last)
	}
	if _, err := c.Fetch(t.Context(), parse(t, host+"/x:deep"), host0, nil); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "deep") {
		t.Error(err)
	}
}

func TestForeignLayersAreNotFollowed(t *testing.T) {
	asked := false
	stranger := startServer(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	d := descriptor(image.MediaDockerForeign, []byte("x"))
	d.URLs = []string{"http://" + stranger + "/layer"}
	_, _, err := testClient(t).Blob(t.Context(), parse(t, stranger+"/x:1"), d, 0)
	if !fault.Is(err, fault.Unsupported) || asked {
		t.Error(err, asked)
	}
	d.MediaType = image.MediaLayer
	host, _ := startRegistry(t, ServerOptions{})
	if _, _, err := testClient(t).Blob(t.Context(), parse(t, host+"/x:1"), d, 0); !fault.Is(err, fault.NotFound) || asked {
		t.Error(err, asked)
	}
}

func TestMirrors(t *testing.T) {
	mirror, _ := startRegistry(t, ServerOptions{})
	empty, _ := startRegistry(t, ServerOptions{})
	dir := t.TempDir()
	conf := filepath.Join(dir, "registries.conf")
	write := func(text string) func(*Config) {
		return func(c *Config) {
			if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			c.Env["CONTAINERS_REGISTRIES_CONF"] = conf
		}
	}
	img := newImage(t, image.Host(), []byte("layer"))
	img.push(t, testClient(t), parse(t, mirror+"/cache/library/nginx:1"))

	c := testClient(t, write(`[[registry]]
prefix = "docker.io"
location = "docker.io"
[[registry.mirror]]
location = "`+empty+`/nothing"
insecure = true
[[registry.mirror]]
location = "`+mirror+`/cache"
insecure = true
`))
	r, err := c.Fetch(t.Context(), parse(t, "nginx:1"), image.Host(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, _, err := readBlob(t, c, r.Ref, r.Manifest.Layers[0], 0); err != nil || string(b) != "layer" {
		t.Error(string(b), err)
	}
	c = testClient(t, write(`[[registry]]
prefix = "corp.example/apps"
location = "`+mirror+`/cache/library"
`))
	if _, err := c.Resolve(t.Context(), parse(t, "corp.example/apps/nginx:1")); err != nil {
		t.Errorf("relocated: %v", err)
	}
	c = testClient(t, write("[[registry]]\nprefix = \"*.evil.example\"\nblocked = true\n"))
	if _, err := c.Resolve(t.Context(), parse(t, "a.evil.example/x:1")); !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "blocked") {
		t.Errorf("blocked: %v", err)
	}
	c = testClient(t, write("[[registry]\n"))
	if _, err := c.Resolve(t.Context(), parse(t, mirror+"/cache/library/nginx:1")); err == nil || !strings.Contains(err.Error(), conf) {
		t.Errorf("broken file: %v", err)
	}
}

func TestMirrorTable(t *testing.T) {
	dir := t.TempDir()
	os.MkdirAll(filepath.Join(dir, "containers/registries.conf.d"), 0o700)
	os.WriteFile(filepath.Join(dir, "containers/registries.conf"), []byte(`
unqualified-search-registries = ["quay.io"]
[[registry]]
location = "a.example"
insecure = true
[[registry]]
prefix = "a.example/deep"
mirror-by-digest-only = true
[[registry.mirror]]
location = "m.example/d"
[[registry]]
location = "t.example"
[[registry.mirror]]
location = "tags.example"
pull-from-mirror = "tag-only"
`), 0o600)
	os.WriteFile(filepath.Join(dir, "containers/registries.conf.d/50.conf"), []byte("[[registry]]\nlocation = \"b.example\"\nblocked = true\n[registries.insecure]\nregistries = [\"old.example\"]\n"), 0o600)
	table, err := readMirrors(Config{SystemDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		pinned bool
		want   []location
	}{
		{"docker.io/library/x", false, []location{{"docker.io", "library/x", false}}},
		{"a.example/x", false, []location{{"a.example", "x", true}}},
		{"a.example.org/x", false, []location{{"a.example.org", "x", false}}},
		{"a.example/deep/x", false, []location{{"a.example", "deep/x", false}}},
		{"a.example/deep/x", true, []location{{"m.example", "d/x", false}, {"a.example", "deep/x", false}}},
		{"a.example/deeper", true, []location{{"a.example", "deeper", true}}},
		{"t.example/x", true, []location{{"t.example", "x", false}}},
		{"t.example/x", false, []location{{"tags.example", "x", false}, {"t.example", "x", false}}},
		{"old.example/x", false, []location{{"old.example", "x", true}}},
	} {
		got, err := table.locate(tc.name, tc.pinned)
		if err != nil || !equal(got, tc.want) {
			t.Errorf("%s pinned %v: %v, %v", tc.name, tc.pinned, got, err)
		}
	}
	if _, err := table.locate("b.example/x", false); !fault.Is(err, fault.Denied) {
		t.Error(err)
	}
}

func equal[T comparable](a, b []T) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func TestPushOfWrongBytes(t *testing.T) {
	host, m := startRegistry(t, ServerOptions{})
	c, ref := testClient(t), parse(t, host+"/x:1")
	d := descriptor(image.MediaLayer, []byte("promised"))
	if err := c.PushBlob(t.Context(), ref, d, opener([]byte("deliver!")), nil); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "did not match") {
		t.Error(err)
	}
	if err := c.PushBlob(t.Context(), ref, d, opener([]byte("short")), nil); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "5 bytes, not 8") {
		t.Error(err)
	}
	if err := c.PushBlob(t.Context(), ref, d, opener([]byte("more than promised")), nil); err == nil {
		t.Error("more bytes than promised went through")
	}
	if len(m.blobs) != 0 {
		t.Errorf("stored %d blobs", len(m.blobs))
	}
	if _, err := c.PushManifest(t.Context(), ref.WithDigest(d.Digest), image.MediaManifest, []byte("{}")); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}

func TestPushRetries(t *testing.T) {
	server := NewServer(newMemory(), ServerOptions{})
	fails := 0
	host := startServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "PUT" && fails < 3 {
			fails++
			if fails == 2 {
				panic(http.ErrAbortHandler)
			}
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		server.ServeHTTP(w, r)
	}))
	c, ref := testClient(t), parse(t, host+"/x:1")
	img := newImage(t, image.Host(), bytes.Repeat([]byte("x"), 1<<20))
	img.push(t, c, ref)
	if fails != 3 {
		t.Errorf("%d failures were met", fails)
	}
	if b, _, err := readBlob(t, c, ref, img.m.Layers[0], 0); err != nil || len(b) != 1<<20 {
		t.Error(len(b), err)
	}
}

func TestErrorOfTheSourceIsNamed(t *testing.T) {
	host, _ := startRegistry(t, ServerOptions{})
	boom := errors.New("disk on fire")
	err := testClient(t).PushBlob(t.Context(), parse(t, host+"/x:1"), descriptor("x", []byte("abc")), func() (io.ReadCloser, error) { return nil, boom }, nil)
	if !errors.Is(err, boom) {
		t.Error(err)
	}
}

// Whoever asks for a tag that is not there is told which are.
func TestMissingTagTellsTheNearest(t *testing.T) {
	host, _ := startRegistry(t, ServerOptions{})
	c := testClient(t)
	img := newImage(t, image.Host(), []byte("layer"))
	img.push(t, c, parse(t, host+"/web:1.2.3"))
	for asked, want := range map[string]string{
		"1.2.2": "manifest for HOST/web:1.2.2 not found: manifest unknown: manifest unknown; repository HOST/web has one tag, 1.2.3",
		"":      "manifest for HOST/web:latest not found: manifest unknown: manifest unknown; repository HOST/web has one tag, 1.2.3",
	} {
		_, err := c.Resolve(t.Context(), parse(t, strings.TrimSuffix(host+"/web:"+asked, ":")))
		if !fault.Is(err, fault.NotFound) || strings.ReplaceAll(err.Error(), host, "HOST") != want {
			t.Errorf("%s: %v", asked, err)
		}
	}
	for _, tag := range []string{"1.2.4", "1.2.4-alpine", "2.0", "3.0", "latest"} {
		img.push(t, c, parse(t, host+"/web:"+tag))
	}
	for asked, want := range map[string]string{"1.2.5": "of the 6 tags of repository HOST/web the nearest are 1.2.3, 1.2.4, 2.0", "lates": "the nearest are latest, "} {
		_, err := c.Resolve(t.Context(), parse(t, host+"/web:"+asked))
		if err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), host, "HOST"), want) {
			t.Errorf("%s: %v", asked, err)
		}
	}
	if n := changes("kitten", "sitting"); n != 3 {
		t.Error(n)
	}
}
