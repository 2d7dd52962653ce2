package registry

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/weakness"
)

func errManifestUnknown(ref string) apiError {
	return apiError{http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown", map[string]string{"reference": ref}}
}

func errManifest(why string) error {
	return apiError{http.StatusBadRequest, "MANIFEST_INVALID", "manifest invalid: " + why, nil}
}

// reference is a tag or a digest.
func (r *request) reference() (tag string, d digest.Digest, err error) {
	if strings.Contains(r.arg, ":") {
		d, err = r.digest()
		return "", d, err
	}
	if !validTag(r.arg) {
		return "", "", apiError{http.StatusBadRequest, "TAG_INVALID", "invalid tag", map[string]string{"tag": r.arg}}
	}
	return r.arg, "", nil
}

func (s *server) lookup(r *request) (image.Descriptor, error) {
	tag, d, err := r.reference()
	if err != nil {
		return image.Descriptor{}, err
	}
	desc, err := s.storage.Manifest(r.Context(), r.repo, tag, d)
	return desc, notFoundAs(err, errManifestUnknown(r.arg))
}

func (s *server) getManifest(r *request) error {
	desc, err := s.lookup(r)
	if err != nil {
		return err
	}
	if k, ok := s.keeper(); ok && r.Method == http.MethodGet && len(s.opt.Keep) > 0 {
		tag := r.arg
		if strings.Contains(tag, ":") {
			tag = ""
		}
		k.NotePull(r.Context(), r.repo, tag, desc.Digest)
	}
	h := r.w.Header()
	h.Set("Docker-Content-Digest", string(desc.Digest))
	h.Set("Etag", `"`+string(desc.Digest)+`"`)
	if etagMatches(r.Header.Get("If-None-Match"), desc.Digest) {
		r.w.WriteHeader(http.StatusNotModified)
		return nil
	}
	h.Set("Content-Type", desc.MediaType)
	h.Set("Content-Length", strconv.FormatInt(desc.Size, 10))
	if r.Method == "HEAD" {
		return nil
	}
	doc, err := s.storage.ReadManifest(r.Context(), r.repo, desc)
	if err != nil {
		return notFoundAs(err, errManifestUnknown(r.arg))
	}
	r.w.Write(doc)
	return nil
}

func etagMatches(header string, d digest.Digest) bool {
	for tag := range strings.SplitSeq(header, ",") {
		tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/")
		if strings.Trim(tag, `"`) == string(d) || tag == "*" {
			return true
		}
	}
	return false
}

// document is what the server reads in a manifest or an index.
type document struct {
	desc     image.Descriptor // with artifact type and annotations, as referrers lists it
	subject  digest.Digest
	blobs    []image.Descriptor // that must be in the repository
	children []image.Descriptor // manifests that must be
}

func (s *server) putManifest(r *request) error {
	tag, d, err := r.reference()
	if err != nil {
		return err
	}
	tags, err := tagsOf(tag, r.URL.Query())
	if err != nil {
		return err
	}
	body, err := readManifest(r)
	if err != nil {
		return err
	}
	doc, err := parseDocument(r.Header.Get("Content-Type"), body, d)
	if err != nil {
		return err
	}
	defer s.writing(r.repo)()
	if !s.opt.Sparse {
		if err := s.complete(r, doc); err != nil {
			return err
		}
	}
	unlock, err := s.fixed(r, tags, doc.desc.Digest)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.storage.PutManifest(r.Context(), r.repo, doc.desc, body, doc.subject, tags); err != nil {
		return err
	}
	h := r.w.Header()
	for _, t := range tags {
		h.Add("OCI-Tag", t)
	}
	if doc.subject != "" {
		h.Set("OCI-Subject", string(doc.subject))
	}
	h.Set("Location", "/v2/"+r.repo+"/manifests/"+string(doc.desc.Digest))
	h.Set("Docker-Content-Digest", string(doc.desc.Digest))
	h.Set("Content-Length", "0")
	r.w.WriteHeader(http.StatusCreated)
	return nil
}

// maxTagParams bounds the tags that one push by digest sets at once.
const maxTagParams = 100

func tagsOf(tag string, q url.Values) ([]string, error) {
	if tag != "" {
		return []string{tag}, nil
	}
	tags := q["tag"]
	if len(tags) > maxTagParams {
		return nil, apiError{http.StatusRequestURITooLong, "TAG_INVALID", "too many tags", nil}
	}
	for _, t := range tags {
		if !validTag(t) {
			return nil, apiError{http.StatusBadRequest, "TAG_INVALID", "invalid tag", map[string]string{"tag": t}}
		}
	}
	return tags, nil
}

func readManifest(r *request) ([]byte, error) {
	tooLarge := apiError{http.StatusRequestEntityTooLarge, "MANIFEST_INVALID", "manifest is larger than 4 MiB", nil}
	if r.ContentLength > image.MaxManifest {
		return nil, tooLarge
	}
	limit := int64(image.MaxManifest + 1)
	if weakness.Of("RS4") {
		limit = 16 << 20
	}
	b, err := io.ReadAll(io.LimitReader(r.steadyBody(), limit))
	if err != nil {
		return nil, brokenBody(r, err)
	}
	if len(b) > image.MaxManifest && !weakness.Of("RS4") {
		return nil, tooLarge
	}
	return b, nil
}

// parseDocument checks that a document is what its Content-Type says, and nothing else
// at once (security.md IM6).
func parseDocument(contentType string, body []byte, want digest.Digest) (document, error) {
	mediaType := baseType(contentType)
	var head struct {
		MediaType    string            `json:"mediaType"`
		ArtifactType string            `json:"artifactType"`
		Annotations  map[string]string `json:"annotations"`
		Subject      *image.Descriptor `json:"subject"`
	}
	if err := json.Unmarshal(body, &head); err != nil {
		return document{}, errManifest(err.Error())
	}
	if mediaType == "" {
		mediaType = head.MediaType
	}
	if head.MediaType != "" && head.MediaType != mediaType {
		return document{}, errManifest("its mediaType is not the Content-Type")
	}
	doc := document{desc: image.Descriptor{
		MediaType: mediaType, Digest: digestLike(want, body), Size: int64(len(body)),
		ArtifactType: head.ArtifactType, Annotations: head.Annotations,
	}}
	if want != "" && doc.desc.Digest != want {
		return document{}, apiError{http.StatusBadRequest, "DIGEST_INVALID", "provided digest did not match the document", nil}
	}
	if head.Subject != nil {
		d, ok := parseDigest(string(head.Subject.Digest))
		if !ok {
			return document{}, errManifest("its subject has an invalid digest")
		}
		doc.subject = d
	}
	return doc, doc.parse(mediaType, body)
}

// digestLike is the digest of b with the algorithm of want, else the canonical one.
func digestLike(want digest.Digest, b []byte) digest.Digest {
	if want != "" {
		return want.Algorithm().FromBytes(b)
	}
	return digest.FromBytes(b)
}

func (doc *document) parse(mediaType string, body []byte) error {
	switch {
	case image.IsManifest(mediaType):
		m, err := image.ParseManifest(body)
		if err != nil {
			return errManifest(err.Error())
		}
		if doc.desc.ArtifactType == "" {
			doc.desc.ArtifactType = m.Config.MediaType
		}
		doc.blobs = append([]image.Descriptor{m.Config}, m.Layers...)
	case image.IsIndex(mediaType):
		x, err := image.ParseIndex(body)
		if err != nil {
			return errManifest(err.Error())
		}
		doc.children = x.Manifests
	default:
		return apiError{http.StatusUnsupportedMediaType, "MANIFEST_INVALID", "unsupported media type " + strconv.Quote(mediaType), nil}
	}
	return nil
}

// complete makes sure that what a name points at can be pulled whole.
func (s *server) complete(r *request, doc document) error {
	for _, b := range doc.blobs {
		if isForeign(b.MediaType) {
			continue
		}
		size, err := s.storage.StatBlob(r.Context(), r.repo, b.Digest)
		if fault.Is(err, fault.NotFound) {
			return apiError{http.StatusNotFound, "MANIFEST_BLOB_UNKNOWN", "manifest references a blob unknown to the repository", map[string]digest.Digest{"digest": b.Digest}}
		}
		if err != nil {
			return err
		}
		if size != b.Size {
			return errManifest("size of " + string(b.Digest) + " is not the blob's")
		}
	}
	for _, c := range doc.children {
		_, err := s.storage.Manifest(r.Context(), r.repo, "", c.Digest)
		if fault.Is(err, fault.NotFound) {
			return apiError{http.StatusNotFound, "MANIFEST_BLOB_UNKNOWN", "index references a manifest unknown to the repository", map[string]digest.Digest{"digest": c.Digest}}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// isForeign: layers that may not be distributed are fetched from elsewhere, if at all.
func isForeign(mediaType string) bool {
	return mediaType == image.MediaDockerForeign || strings.HasPrefix(mediaType, "application/vnd.oci.image.layer.nondistributable.")
}

func (s *server) deleteManifest(r *request) error {
	tag, d, err := r.reference()
	if err != nil {
		return err
	}
	var unlock func()
	if tag != "" {
		unlock, err = s.fixed(r, []string{tag}, "")
	} else {
		unlock, err = s.fixedDigest(r, d)
	}
	if err != nil {
		return notFoundAs(err, errManifestUnknown(r.arg))
	}
	defer unlock()
	if tag != "" {
		err = s.storage.DeleteTag(r.Context(), r.repo, tag)
	} else {
		err = s.deleteDigest(r.Context(), r.repo, d)
	}
	if err != nil {
		return notFoundAs(err, errManifestUnknown(r.arg))
	}
	r.w.WriteHeader(http.StatusAccepted)
	return nil
}

func (s *server) deleteDigest(ctx context.Context, repo string, d digest.Digest) error {
	desc, err := s.storage.Manifest(ctx, repo, "", d)
	if err != nil {
		return err
	}
	var head struct {
		Subject *image.Descriptor `json:"subject"`
	}
	// A document that cannot be read any more has no subject to be found by.
	if body, err := s.storage.ReadManifest(ctx, repo, desc); err == nil {
		_ = json.Unmarshal(body, &head)
	}
	var subject digest.Digest
	if head.Subject != nil {
		subject = head.Subject.Digest
	}
	return s.storage.DeleteManifest(ctx, repo, d, subject)
}
