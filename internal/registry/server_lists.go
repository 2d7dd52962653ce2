package registry

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"keg/internal/image"
)

// maxPage bounds n= (CVE-2023-2253).
const maxPage = 1000

func (s *server) tags(r *request) error {
	tags, err := s.storage.Tags(r.Context(), r.repo)
	if err != nil {
		return notFoundAs(err, apiError{http.StatusNotFound, "NAME_UNKNOWN", "repository name not known to registry", map[string]string{"name": r.repo}})
	}
	if tags, err = page(r, tags); err != nil {
		return err
	}
	return writeJSON(r, "application/json", struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{r.repo, tags})
}

func (s *server) catalog(r *request) error {
	repos, err := s.storage.List(r.Context())
	if err != nil {
		return err
	}
	repos = slices.DeleteFunc(repos, func(repo string) bool { return s.rights(r.user, repo)&Pull == 0 })
	if repos, err = page(r, repos); err != nil {
		return err
	}
	return writeJSON(r, "application/json", struct {
		Repositories []string `json:"repositories"`
	}{repos})
}

// page cuts what n= and last= ask for out of a sorted list and links to what follows.
// Without n the list is whole: clients rarely look for a link then.
func page(r *request, all []string) ([]string, error) {
	q := r.URL.Query()
	if q.Has("last") {
		i, found := slices.BinarySearch(all, q.Get("last"))
		if found {
			i++
		}
		all = all[i:]
	}
	if q.Has("n") {
		n, err := strconv.Atoi(q.Get("n"))
		if err != nil || n < 0 {
			return nil, apiError{http.StatusBadRequest, "PAGINATION_NUMBER_INVALID", "invalid number of results requested", nil}
		}
		n = min(n, maxPage)
		if n < len(all) {
			all = all[:n]
			if n > 0 {
				next := url.Values{"n": {strconv.Itoa(n)}, "last": {all[n-1]}}
				r.w.Header().Set("Link", "<"+r.URL.EscapedPath()+"?"+next.Encode()+`>; rel="next"`)
			}
		}
	}
	if all == nil {
		all = []string{} // [] and not null
	}
	return all, nil
}

func (s *server) referrers(r *request) error {
	d, err := r.digest()
	if err != nil {
		return err
	}
	descs, err := s.storage.Referrers(r.Context(), r.repo, d)
	if err != nil {
		return err
	}
	if want := r.URL.Query().Get("artifactType"); want != "" {
		descs = slices.DeleteFunc(slices.Clone(descs), func(d image.Descriptor) bool { return d.ArtifactType != want })
		r.w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	if descs == nil {
		descs = []image.Descriptor{}
	}
	x := image.Index{MediaType: image.MediaIndex, Manifests: descs}
	x.SchemaVersion = 2
	return writeJSON(r, ocispec.MediaTypeImageIndex, x)
}
