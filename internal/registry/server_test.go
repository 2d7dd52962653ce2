package registry

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/crypto/bcrypt"

	"keg/internal/image"
)

// ask sends a request to a handler; header is "Key: value" pairs.
func ask(h http.Handler, method, target string, body io.Reader, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, body)
	for _, kv := range header {
		k, v, _ := strings.Cut(kv, ": ")
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// code is the error code of an answer.
func code(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	var doc struct {
		Errors []struct{ Code, Message string } `json:"errors"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || len(doc.Errors) != 1 || w.Header().Get("Content-Type") != "application/json" {
		t.Fatalf("not OCI's error body: %q", w.Body)
	}
	return doc.Errors[0].Code
}

func uploadTo(t *testing.T, h http.Handler, repo string, content []byte) digest.Digest {
	t.Helper()
	d := digest.FromBytes(content)
	if w := ask(h, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+string(d), bytes.NewReader(content)); w.Code != 201 {
		t.Fatal(w.Code, w.Body)
	}
	return d
}

// RS1: names that are none, in every place of a path.
func TestHostilePaths(t *testing.T) {
	m := newMemory()
	h := NewServer(m, ServerOptions{Delete: true, Sparse: true})
	good := string(digest.FromString("x"))
	bad := []string{"..", "../x", "a/../../b", "%2e%2e", "..%2f..%2fetc", "a%2f..%2f..", "%00", "a%00", "a//b", "/a", "A", "a_", "-a", "a___b", ".a", "a/.b", "_tags", "a/_blobs",
		"%5c..", "a%0ab", "a%20b", "%e2%80%ae", strings.Repeat("a", 256), "a:b", "a@b", "~", "*", "%2f%2f", "a/", "%ff", "a%3fb", "a%23b"}
	n := 0
	check := func(method, path string) {
		n++
		req := httptest.NewRequest(method, "/", strings.NewReader("{}"))
		u, err := req.URL.Parse(path)
		if err != nil {
			return // net/http itself refuses
		}
		req.URL = u
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		if w.Code < 400 || w.Code > 499 || method != "HEAD" && code(t, w) == "" {
			t.Errorf("%s %q: %d %s", method, path, w.Code, w.Body)
		}
	}
	for _, b := range bad {
		for _, method := range []string{"GET", "HEAD", "PUT", "DELETE"} {
			check(method, "/v2/"+b+"/manifests/latest")
			check(method, "/v2/"+b+"/blobs/"+good)
		}
		check("POST", "/v2/"+b+"/blobs/uploads/")
		check("GET", "/v2/"+b+"/tags/list")
		check("GET", "/v2/"+b+"/referrers/"+good)
		check("POST", "/v2/x/blobs/uploads/?mount="+good+"&from="+b)
		if !strings.Contains("a:b a@b A a_ a___b", b) {
			check("PUT", "/v2/x/manifests/"+b)
		}
		check("GET", "/v2/x/blobs/"+b)
		check("GET", "/v2/x/blobs/sha256:"+b)
		check("PATCH", "/v2/x/blobs/uploads/"+b)
		check("PUT", "/v2/x/blobs/uploads/"+b+"?digest="+good)
		check("POST", "/v2/x/blobs/uploads/?mount="+b)
		check("POST", "/v2/x/blobs/uploads/?digest=sha256:"+b)
	}
	for _, p := range []string{"/", "/v1/", "/v2x", "/v2/x", "/v2//tags/list", "/metrics", "/debug/pprof/"} {
		check("GET", p)
	}
	for _, method := range []string{"PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"} {
		check(method, "/v2/x/manifests/latest")
	}
	if len(m.repos) != 0 || len(m.blobs) != 0 || len(m.uploads) != 0 {
		t.Errorf("after %d requests: %v %v %v", n, m.repos, m.blobs, m.uploads)
	}
	// The twin: words of the API may be words of a name.
	for _, repo := range []string{"a", "manifests", "a/manifests/b", "blobs/uploads", "tags/list", "x/blobs", "v2", "a-b_c.d__e/f--g"} {
		d := uploadTo(t, h, repo, []byte("x"))
		if w := ask(h, "GET", "/v2/"+repo+"/blobs/"+string(d), nil); w.Code != 200 || w.Body.String() != "x" {
			t.Errorf("%s: %d %s", repo, w.Code, w.Body)
		}
	}
}

func FuzzRoute(f *testing.F) {
	f.Add("/v2/a/b/manifests/latest")
	f.Add("/v2/a/blobs/uploads/../x")
	f.Fuzz(func(t *testing.T, path string) {
		r := parseRoute(path)
		if r.resource > catalog && validRepository(r.repo) {
			for c := range strings.SplitSeq(r.repo, "/") {
				if c == "" || c == "." || c == ".." || c[0] == '_' || strings.ContainsAny(c, "\x00\\") {
					t.Errorf("%q is repository %q", path, r.repo)
				}
			}
		}
	})
}

func TestBlobRangesAndConditions(t *testing.T) {
	h := NewServer(newMemory(), ServerOptions{})
	d := uploadTo(t, h, "x", []byte("0123456789"))
	u := "/v2/x/blobs/" + string(d)
	for _, tc := range []struct {
		method string
		header []string
		status int
		body   string
		want   string
	}{
		{"GET", nil, 200, "0123456789", "Content-Length: 10"},
		{"HEAD", nil, 200, "", "Content-Length: 10"},
		{"HEAD", nil, 200, "", "Docker-Content-Digest: " + string(d)},
		{"GET", []string{"Range: bytes=3-5"}, 206, "345", "Content-Range: bytes 3-5/10"},
		{"GET", []string{"Range: bytes=7-"}, 206, "789", "Content-Range: bytes 7-9/10"},
		{"GET", []string{"Range: bytes=-2"}, 206, "89", "Content-Range: bytes 8-9/10"},
		{"GET", []string{"Range: bytes=3-5", `If-Range: "other"`}, 200, "0123456789", ""},
		{"GET", []string{`If-None-Match: "` + string(d) + `"`}, 304, "", `Etag: "` + string(d) + `"`},
		{"HEAD", []string{`If-None-Match: "` + string(d) + `"`}, 304, "", ""},
		{"GET", []string{`If-None-Match: "other"`}, 200, "0123456789", ""},
	} {
		w := ask(h, tc.method, u, nil, tc.header...)
		k, v, _ := strings.Cut(tc.want, ": ")
		if w.Code != tc.status || w.Body.String() != tc.body || w.Header().Get(k) != v {
			t.Errorf("%s %v: %d %q %v", tc.method, tc.header, w.Code, w.Body, w.Header())
		}
	}
	if w := ask(h, "GET", u, nil, "Range: bytes=10-"); w.Code != 416 {
		t.Error(w.Code)
	}
	if w := ask(h, "GET", "/v2/x/blobs/"+string(digest.FromString("no")), nil); w.Code != 404 || code(t, w) != "BLOB_UNKNOWN" {
		t.Error(w.Code)
	}
}

func TestChunkedUpload(t *testing.T) {
	m := newMemory()
	h := NewServer(m, ServerOptions{})
	w := ask(h, "POST", "/v2/x/blobs/uploads/", nil)
	loc := w.Header().Get("Location")
	if w.Code != 202 || !strings.HasPrefix(loc, "/v2/x/blobs/uploads/") {
		t.Fatal(w.Code, loc)
	}
	steps := []struct {
		method, arg, body string
		header            string
		status            int
		rng               string
	}{
		{"PATCH", "", "hel", "Content-Range: 0-2", 202, "0-2"},
		{"PATCH", "", "hel", "Content-Range: 0-2", 416, "0-2"},
		{"PATCH", "", "hel", "Content-Range: 9-11", 416, "0-2"},
		{"PATCH", "", "lo", "Content-Range: 3-9", 416, ""},
		{"PATCH", "", "lo", "Content-Range: 5-3", 416, ""},
		{"PATCH", "", "lo", "Content-Range: x", 416, ""},
		{"GET", "", "", "", 204, "0-2"},
		{"PATCH", "", "lo", "", 202, "0-4"},
		{"PUT", "?digest=sha256:short", "", "", 400, ""},
		{"PUT", "", "", "", 400, ""},
		{"PUT", "?digest=" + string(digest.FromString("hello!")), "!", "Content-Range: 0-0", 416, ""},
		{"PUT", "?digest=" + string(digest.FromString("hello!")), "!", "Content-Range: 5-5", 201, ""},
		{"PUT", "?digest=" + string(digest.FromString("hello!")), "!", "", 404, ""},
		{"GET", "", "", "", 404, ""},
		{"DELETE", "", "", "", 404, ""},
	}
	for _, s := range steps {
		var header []string
		if s.header != "" {
			header = append(header, s.header)
		}
		w := ask(h, s.method, loc+s.arg, strings.NewReader(s.body), header...)
		if w.Code != s.status || s.rng != "" && w.Header().Get("Range") != s.rng {
			t.Errorf("%+v: %d %q %s", s, w.Code, w.Header().Get("Range"), w.Body)
		}
	}
	other := ask(h, "POST", "/v2/x/blobs/uploads/", nil).Header().Get("Location")
	if w := ask(h, "PATCH", strings.Replace(other, "/v2/x/", "/v2/y/", 1), strings.NewReader("x")); w.Code != 404 || code(t, w) != "BLOB_UPLOAD_UNKNOWN" {
		t.Error("a session of another repository:", w.Code)
	}
	if w := ask(h, "PUT", other+"?digest="+string(digest.FromString("x")), strings.NewReader("y")); w.Code != 400 || code(t, w) != "DIGEST_INVALID" {
		t.Error(w.Code)
	}
	if len(m.uploads) != 0 {
		t.Error("a wrong digest leaves an upload")
	}
}

func TestManifestChecks(t *testing.T) {
	m := newMemory()
	h := NewServer(m, ServerOptions{})
	img := newImage(t, image.Host(), []byte("layer"))
	put := func(ref, mediaType string, doc []byte) (int, string) {
		w := ask(h, "PUT", "/v2/x/manifests/"+ref, bytes.NewReader(doc), "Content-Type: "+mediaType)
		if w.Code == 201 {
			return 201, ""
		}
		return w.Code, code(t, w)
	}
	if status, code := put("1", image.MediaManifest, img.manifest); status != 404 || code != "MANIFEST_BLOB_UNKNOWN" {
		t.Error("blobs are missing:", status, code)
	}
	uploadTo(t, h, "other", img.config)
	uploadTo(t, h, "other", img.layers[0])
	if status, code := put("1", image.MediaManifest, img.manifest); status != 404 || code != "MANIFEST_BLOB_UNKNOWN" {
		t.Error("blobs are in another repository:", status, code)
	}
	uploadTo(t, h, "x", img.config)
	uploadTo(t, h, "x", img.layers[0])
	lie := img.m
	lie.Layers = slices.Clone(lie.Layers)
	lie.Layers[0].Size++
	foreign := img.m
	foreign.Layers = append(slices.Clone(foreign.Layers), image.Descriptor{MediaType: image.MediaDockerForeign, Digest: digest.FromString("f"), Size: 1, URLs: []string{"http://x/"}})
	for _, tc := range []struct {
		name, ref, mediaType string
		doc                  []byte
		status               int
	}{
		{"right", "1", image.MediaManifest, img.manifest, 201},
		{"right, with parameters", "1", image.MediaManifest + "; charset=utf-8", img.manifest, 201},
		{"right, by digest", string(digest.FromBytes(img.manifest)), image.MediaManifest, img.manifest, 201},
		{"right, by sha512", string(digest.SHA512.FromBytes(img.manifest)), image.MediaManifest, img.manifest, 201},
		{"foreign layer", "f", image.MediaManifest, marshal(t, foreign), 201},
		{"other digest", string(digest.FromString("x")), image.MediaManifest, img.manifest, 400},
		{"size lie", "1", image.MediaManifest, marshal(t, lie), 400},
		{"called index", "1", image.MediaIndex, img.manifest, 400},
		{"not JSON", "1", image.MediaManifest, []byte("<html>"), 400},
		{"null", "1", image.MediaManifest, []byte("null"), 400},
		{"array", "1", image.MediaManifest, []byte("[]"), 400},
		{"ambiguous", "1", image.MediaManifest, bytes.Replace(img.manifest, []byte(`"layers"`), []byte(`"manifests":[],"layers"`), 1), 400},
		{"two layers fields", "1", image.MediaManifest, bytes.Replace(img.manifest, []byte(`"layers"`), []byte(`"Layers":[],"layers"`), 1), 400},
		{"unknown type", "1", "text/html", []byte("{}"), 415},
		{"subject with a bad digest", "1", image.MediaManifest, bytes.Replace(img.manifest, []byte(`"layers"`), []byte(`"subject":{"digest":"sha256:../x"},"layers"`), 1), 400},
		{"bad tag", "-x", image.MediaManifest, img.manifest, 400},
		{"too large", "1", image.MediaManifest, make([]byte, image.MaxManifest+1), 413},
	} {
		if status, code := put(tc.ref, tc.mediaType, tc.doc); status != tc.status {
			t.Errorf("%s: %d %s", tc.name, status, code)
		}
	}
	// A length that is not told is bounded, too.
	r := httptest.NewRequest("PUT", "/v2/x/manifests/1", io.MultiReader(io.LimitReader(zeros{}, image.MaxManifest+10)))
	r.ContentLength = -1
	w := httptest.NewRecorder()
	if h.ServeHTTP(w, r); w.Code != 413 {
		t.Error(w.Code)
	}
	w = ask(h, "GET", "/v2/x/manifests/1", nil)
	if w.Code != 200 || w.Header().Get("Content-Type") != image.MediaManifest || !bytes.Equal(w.Body.Bytes(), img.manifest) {
		t.Error(w.Code, w.Header())
	}
	if w = ask(h, "GET", "/v2/x/manifests/1", nil, "If-None-Match: "+w.Header().Get("Etag")); w.Code != 304 || w.Body.Len() != 0 {
		t.Error(w.Code)
	}
	if w = ask(h, "GET", "/v2/other/manifests/"+string(digest.FromBytes(img.manifest)), nil); w.Code != 404 || code(t, w) != "MANIFEST_UNKNOWN" {
		t.Error("a manifest of another repository:", w.Code)
	}
}

// IM7: null in the place of every value of a manifest, an index and an artifact, one after the other: what is
// not taken is refused in OCI's form, what is taken reads back, and nothing panics.
func TestNullInEveryDocument(t *testing.T) {
	var log bytes.Buffer
	m := newMemory()
	h := NewServer(m, ServerOptions{Sparse: true, Log: &log})
	img := newImage(t, image.Host(), []byte("layer"))
	artifact := bytes.Replace(img.manifest, []byte(`"layers"`), []byte(`"artifactType":"a/b","annotations":{"a":"b"},"subject":`+string(marshal(t, img.m.Config))+`,"layers"`), 1)
	taken, refused := 0, 0
	for mediaType, docs := range map[string][][]byte{image.MediaManifest: {img.manifest, artifact}, image.MediaIndex: {index(t, "x")}} {
		for _, doc := range docs {
			for _, with := range []string{"null", "[]", "{}", `""`, "-1", "1e400", `"sha256:"`} {
				for i := range doc {
					if doc[i] != ':' || doc[i-1] != '"' {
						continue
					}
					end := bytes.IndexAny(doc[i:], ",}]")
					mutant := slices.Concat(doc[:i+1], []byte(with), doc[i+end:])
					w := ask(h, "PUT", "/v2/n/manifests/1", bytes.NewReader(mutant), "Content-Type: "+mediaType)
					switch {
					case w.Code == 201:
						taken++
						if back := ask(h, "GET", "/v2/n/manifests/1", nil); back.Code != 200 || !bytes.Equal(back.Body.Bytes(), mutant) {
							t.Errorf("%s reads back with %d", mutant, back.Code)
						}
					case w.Code == 400 && code(t, w) != "":
						refused++
					default:
						t.Errorf("%s: %d %s", mutant, w.Code, w.Body)
					}
				}
			}
		}
	}
	if taken == 0 || refused < 100 || strings.Contains(log.String(), "panic") {
		t.Errorf("%d taken, %d refused: %.300s", taken, refused, log.String())
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestListsPaging(t *testing.T) {
	h := NewServer(newMemory(), ServerOptions{Sparse: true})
	img := newImage(t, image.Host())
	for _, repo := range []string{"b", "a"} {
		for _, tag := range []string{"v3", "v1", "v2"} {
			if w := ask(h, "PUT", "/v2/"+repo+"/manifests/"+tag, bytes.NewReader(img.manifest), "Content-Type: "+image.MediaManifest); w.Code != 201 {
				t.Fatal(w.Code, w.Body)
			}
		}
	}
	for q, want := range map[string]string{
		"/v2/a/tags/list":              `{"name":"a","tags":["v1","v2","v3"]}`,
		"/v2/a/tags/list?n=2":          `{"name":"a","tags":["v1","v2"]}`,
		"/v2/a/tags/list?n=2&last=v2":  `{"name":"a","tags":["v3"]}`,
		"/v2/a/tags/list?last=v11":     `{"name":"a","tags":["v2","v3"]}`,
		"/v2/a/tags/list?n=0":          `{"name":"a","tags":[]}`,
		"/v2/a/tags/list?n=9999999999": `{"name":"a","tags":["v1","v2","v3"]}`,
		"/v2/_catalog":                 `{"repositories":["a","b"]}`,
		"/v2/_catalog?n=1":             `{"repositories":["a"]}`,
		"/v2/_catalog?n=1&last=a":      `{"repositories":["b"]}`,
	} {
		if w := ask(h, "GET", q, nil); w.Body.String() != want {
			t.Errorf("%s: %s", q, w.Body)
		}
	}
	if l := ask(h, "GET", "/v2/a/tags/list?n=2", nil).Header().Get("Link"); nextLink(l) != "/v2/a/tags/list?last=v2&n=2" {
		t.Error(l)
	}
	if l := ask(h, "GET", "/v2/a/tags/list?n=3", nil).Header().Get("Link"); l != "" {
		t.Error(l)
	}
	for _, q := range []string{"n=-1", "n=x", "n=1e3"} {
		if w := ask(h, "GET", "/v2/a/tags/list?"+q, nil); w.Code != 400 {
			t.Error(q, w.Code)
		}
	}
	if w := ask(h, "GET", "/v2/none/tags/list", nil); w.Code != 404 || code(t, w) != "NAME_UNKNOWN" {
		t.Error(w.Code)
	}
}

func TestSwitches(t *testing.T) {
	m := newMemory()
	open, readOnly, noDelete := NewServer(m, ServerOptions{Delete: true}), NewServer(m, ServerOptions{ReadOnly: true, Delete: true}), NewServer(m, ServerOptions{})
	d := uploadTo(t, open, "x", []byte("x"))
	for _, h := range []http.Handler{readOnly, noDelete} {
		for _, p := range []string{"/v2/x/blobs/" + string(d), "/v2/x/manifests/latest", "/v2/x/manifests/" + string(d)} {
			if w := ask(h, "DELETE", p, nil); w.Code != 405 || code(t, w) != "UNSUPPORTED" {
				t.Error(p, w.Code)
			}
		}
		if w := ask(h, "GET", "/v2/x/blobs/"+string(d), nil); w.Code != 200 {
			t.Error(w.Code)
		}
	}
	for _, req := range []string{"POST /v2/x/blobs/uploads/", "POST /v2/y/blobs/uploads/?from=x&mount=" + string(d), "PUT /v2/x/manifests/1", "PATCH /v2/x/blobs/uploads/" + strings.Repeat("0", 32)} {
		method, p, _ := strings.Cut(req, " ")
		if w := ask(readOnly, method, p, nil); w.Code != 405 {
			t.Error(req, w.Code)
		}
	}
	if w := ask(open, "DELETE", "/v2/x/blobs/"+string(d), nil); w.Code != 202 {
		t.Error(w.Code)
	}
}

func TestAccess(t *testing.T) {
	host := htpasswdRegistry(t)
	try := func(method, path, user, password string) int {
		req, err := http.NewRequest(method, "http://"+host+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if user != "" {
			req.SetBasicAuth(user, password)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode == 401 && !strings.HasPrefix(resp.Header.Get("WWW-Authenticate"), "Basic ") {
			t.Error("no challenge")
		}
		return resp.StatusCode
	}
	for _, path := range []string{"/v2/", "/v2/_catalog", "/v2/x/tags/list", "/v2/x/manifests/1", "/v2/x/blobs/" + string(digest.FromString("x")), "/nowhere"} {
		for _, method := range []string{"GET", "HEAD", "PUT", "POST", "DELETE", "PATCH"} {
			for _, cr := range [][2]string{{"", ""}, {"alice", "wrong"}} {
				if got := try(method, path, cr[0], cr[1]); got != 401 {
					t.Errorf("%s %s as %v: %d", method, path, cr, got)
				}
			}
		}
	}
	for _, cr := range [][2]string{{"alice", ""}, {"bob", "pass:word"}, {"alice", "pass:word\x00"}, {"# users", ""}} {
		if got := try("GET", "/v2/", cr[0], cr[1]); got != 401 {
			t.Errorf("%v: %d", cr, got)
		}
	}
	if cost, err := bcrypt.Cost([]byte(nobody)); cost != bcrypt.DefaultCost || err != nil {
		t.Error("nobody's password takes another time than a user's:", cost, err)
	}
	for range 2 { // the second time from memory
		if got := try("GET", "/v2/", "alice", "pass:word"); got != 200 {
			t.Error(got)
		}
	}
	if got := try("GET", "/v2/", "alice", "wrong"); got != 401 {
		t.Error("after a right one:", got)
	}
	for _, bad := range []string{"alice:plain", "alice:{SHA}x", "nothing", ":$2y$05$x", "alice:$apr1$x"} {
		f := t.TempDir() + "/htpasswd"
		writeFile(t, f, bad)
		o := ServerOptions{Htpasswd: f}
		if err := o.Check(); err == nil || !strings.Contains(err.Error(), f+":1") {
			t.Errorf("%s: %v", bad, err)
		}
		if w := ask(NewServer(newMemory(), o), "GET", "/v2/", nil, "Authorization: Basic YWxpY2U6cGxhaW4="); w.Code < 400 {
			t.Errorf("%s: %d", bad, w.Code)
		}
	}
}

// RS7: whatever clients say, a line is a line, and passwords are not in it.
func TestAccessLogIsOneLinePerRequest(t *testing.T) {
	var log bytes.Buffer
	h := NewServer(newMemory(), ServerOptions{Log: &log})
	r := httptest.NewRequest("GET", "/v2/x/tags/list?password=querysecret", nil)
	r.URL.Path = "/v2/x\n\x1b[31m/tags/list"
	r.Header.Set("User-Agent", "evil\nstatus=200\x1b]0;x\x07")
	r.SetBasicAuth("bob", "headersecret")
	h.ServeHTTP(httptest.NewRecorder(), r)
	uploadTo(t, h, "x", []byte("x"))
	if s := log.String(); strings.Count(s, "\n") != 2 || strings.ContainsAny(s, "\x1b\x07") || strings.Contains(s, "secret") || !strings.Contains(s, "status=201") {
		t.Errorf("%q", s)
	}
}

func TestPanicIsAnAnswer(t *testing.T) {
	var log bytes.Buffer
	h := NewServer(nil, ServerOptions{Log: &log})
	if w := ask(h, "GET", "/v2/x/tags/list", nil); w.Code != 500 || code(t, w) != "UNKNOWN" || !strings.Contains(log.String(), "panic") {
		t.Error(w.Code, log.String())
	}
}

func TestServeEndsInOrder(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	started, release := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(started)
			<-release
			io.WriteString(w, "whole")
		}))
	}()
	answer := make(chan string, 1)
	go func() {
		resp, err := http.Get("http://" + l.Addr().String())
		if err != nil {
			answer <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		answer <- string(b)
	}()
	<-started
	cancel()
	close(release)
	if got := <-answer; got != "whole" {
		t.Errorf("a running request got %q", got)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := net.DialTimeout("tcp", l.Addr().String(), time.Second); err == nil {
		t.Error("still listening")
	}
}

// RS5: requests that proxies may read differently get a 400 or a closed connection, and never two
// answers.
func TestSmuggling(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, NewServer(newMemory(), ServerOptions{})) }()
	defer func() { cancel(); <-done }()
	for _, head := range []string{
		"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
		"GET /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
		"GET /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n",
		"GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\n",
		"GET /v2/ HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
		"GET /v2/ HTTP/1.1\r\n\r\n",
		"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
		"GET /v2/\x01 HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /v2/ HTTP/1.1\r\nHost: x\r\n broken: fold\r\n\r\n",
		"POST /v2/x/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
		"POST /v2/x/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;x\nhello\r\n0\r\n\r\n",
		"POST /v2/x/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
		"POST /v2/x/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff5\r\nhello\r\n0\r\n\r\n",
		"POST /v2/x/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"POST /v2/x/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 30\r\n\r\n0\r\n\r\n",
		"POST /v2/x/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello",
		"POST /v2/x/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"POST /v2/x/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
		"POST /v2/x/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5, 5\r\n\r\nhello",
		"POST /v2/x/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
		"POST /v2/x/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0x5\r\n\r\nhello",
		"POST /v2/x/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length\x00: 5\r\n\r\nhello",
		"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-A: b\rTransfer-Encoding: chunked\r\n\r\n",
		"GET /v2/ HTTP/2.0\r\nHost: x\r\n\r\n",
		"GET /v2/ HTTP/1.1\r\nHost: x y\r\n\r\n",
	} {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(5 * time.Second))
		fmt.Fprint(c, head+"GET /v2/ HTTP/1.1\r\nHost: smuggled\r\n\r\n")
		answers := bufio.NewReader(c)
		resp, err := http.ReadResponse(answers, nil)
		if err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			unread := resp.StatusCode < 400 // a body that a handler did not look at
			if unread && !strings.HasPrefix(head, "POST") {
				t.Errorf("%q: %d", head, resp.StatusCode)
			}
			if again, err := http.ReadResponse(answers, nil); err == nil && again.StatusCode < 400 {
				t.Errorf("%q: the smuggled request was answered with %d", head, again.StatusCode)
				again.Body.Close()
			}
		}
		c.Close()
	}
}
