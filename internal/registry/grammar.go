// The grammar of what arrives in a URL. Nothing else is ever looked up or stored, so no
// name reaches outside its directory (security.md RS1).

package registry

import (
	"strings"

	"github.com/opencontainers/go-digest"

	"keg/internal/image"
	"keg/internal/weakness"
)

const maxRepository = 255

// validRepository is the grammar of distribution-spec "Pulling manifests": components of
// lower-case letters and digits, joined by separators.
func validRepository(name string) bool {
	if weakness.Of("RS1") {
		return name != ""
	}
	if name == "" || len(name) > maxRepository {
		return false
	}
	r, err := image.ParseRepository("localhost/" + name)
	return err == nil && r.Repository == name && r.Tag == "" && r.Digest == ""
}

func validTag(t string) bool {
	r, err := image.ParseRepository("localhost/x:" + t)
	return err == nil && r.Tag == t && r.Digest == "" && r.Repository == "x"
}

// parseDigest accepts sha256 and sha512 with lower-case hex.
func parseDigest(s string) (digest.Digest, bool) {
	d := digest.Digest(s)
	if strings.HasPrefix(s, "sha256:") || strings.HasPrefix(s, "sha512:") {
		return d, d.Validate() == nil
	}
	return "", false
}

// route is what a path means.
type route struct {
	resource resource
	repo     string
	arg      string // tag, digest or upload id
}

type resource uint8

const (
	nowhere  resource = iota
	tokenEnd          // where tokens are given out
	ping
	catalog
	tagsList
	referrers
	manifests
	blobs
	uploads // arg "": the collection
)

// parseRoute reads a decoded path. A repository may contain any word that also names a
// resource, so the last one counts.
func parseRoute(path string) route {
	rest, ok := strings.CutPrefix(path, "/v2")
	switch {
	case path == "/token":
		return route{resource: tokenEnd}
	case !ok:
		return route{}
	case rest == "" || rest == "/":
		return route{resource: ping}
	case rest == "/_catalog":
		return route{resource: catalog}
	}
	rest, ok = strings.CutPrefix(rest, "/")
	if !ok {
		return route{}
	}
	if repo, ok := strings.CutSuffix(rest, "/tags/list"); ok {
		return route{tagsList, repo, ""}
	}
	if repo, ok := strings.CutSuffix(strings.TrimSuffix(rest, "/"), "/blobs/uploads"); ok {
		return route{uploads, repo, ""}
	}
	i := strings.LastIndexByte(rest, '/')
	if i < 0 || i == len(rest)-1 {
		return route{}
	}
	arg := rest[i+1:]
	for _, kind := range [...]struct {
		resource resource
		suffix   string
	}{{uploads, "/blobs/uploads"}, {manifests, "/manifests"}, {blobs, "/blobs"}, {referrers, "/referrers"}} {
		if repo, ok := strings.CutSuffix(rest[:i], kind.suffix); ok {
			return route{kind.resource, repo, arg}
		}
	}
	return route{}
}
