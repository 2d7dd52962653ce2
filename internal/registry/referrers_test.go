package registry

import (
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"keg/internal/image"
)

func TestReferrersByAPIAndByTag(t *testing.T) {
	host, _ := startRegistry(t, ServerOptions{Sparse: true})
	c := testClient(t)
	ref := parse(t, host+"/x:1")
	subject := newImage(t, image.Host(), []byte("layer")).push(t, c, ref)
	doc := marshal(t, map[string]any{"schemaVersion": 2, "mediaType": image.MediaManifest, "artifactType": "a/b", "subject": subject,
		"config": descriptor("application/vnd.oci.empty.v1+json", []byte("{}")), "layers": []any{}})
	d := digest.FromBytes(doc)
	if _, err := c.PushManifest(t.Context(), image.Reference{Registry: host, Repository: "x", Digest: d}, image.MediaManifest, doc); err != nil {
		t.Fatal(err)
	}
	got, err := c.Referrers(t.Context(), ref, subject.Digest)
	if err != nil || len(got) != 1 || got[0].Digest != d || got[0].ArtifactType != "a/b" {
		t.Errorf("%+v %v", got, err)
	}
	if got, err := c.Referrers(t.Context(), ref, d); err != nil || len(got) != 0 {
		t.Errorf("%+v %v", got, err)
	}
	// A registry of the time before: 404, and a tag in its place.
	server := NewServer(newMemory(), ServerOptions{Sparse: true})
	old := startServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/referrers/") {
			http.NotFound(w, r)
			return
		}
		server.ServeHTTP(w, r)
	}))
	ref = parse(t, old+"/x:1")
	if got, err := c.Referrers(t.Context(), ref, subject.Digest); err != nil || len(got) != 0 {
		t.Errorf("%+v %v", got, err)
	}
	list := marshal(t, map[string]any{"schemaVersion": 2, "mediaType": image.MediaIndex, "manifests": []image.Descriptor{descriptor(image.MediaManifest, doc)}})
	tag := ref
	tag.Tag = strings.Replace(string(subject.Digest), ":", "-", 1)
	if _, err := c.PushManifest(t.Context(), tag, image.MediaIndex, list); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Referrers(t.Context(), ref, subject.Digest); err != nil || len(got) != 1 || got[0].Digest != d {
		t.Errorf("%+v %v", got, err)
	}
}
