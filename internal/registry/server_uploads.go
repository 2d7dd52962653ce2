package registry

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
)

// An upload:
//
//	POST  /v2/<repo>/blobs/uploads/                202 Location     begin
//	POST  ...?mount=<digest>&from=<repo>           201, or 202      take from a repository
//	POST  ...?digest=<digest>          + bytes     201              all in one
//	PATCH <Location>                   + bytes     202 Location     as often as wanted, in order
//	GET   <Location>                               204 Range        how far it came
//	PUT   <Location>?digest=<digest>  [+ bytes]    201              verify and publish
//	DELETE <Location>                              204              forget
//
// The id that a storage sees is made of the id in the URL and the user, so that a session
// belongs to the one who began it.

func newUploadID() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// session returns the storage's id of the upload in the path.
func (r *request) session() (string, error) {
	if len(r.arg) != 32 || strings.Trim(r.arg, "0123456789abcdef") != "" {
		return "", errUploadUnknown
	}
	return r.arg + "\x00" + r.user, nil
}

var errUploadUnknown = apiError{http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry", nil}

func (r *request) uploadAt(id string, size int64) {
	h := r.w.Header()
	h.Set("Location", "/v2/"+r.repo+"/blobs/uploads/"+id)
	h.Set("Docker-Upload-Uuid", id)
	h.Set("Range", "0-"+strconv.FormatInt(max(0, size-1), 10))
	h.Set("Content-Length", "0")
}

func (r *request) blobAt(d digest.Digest) {
	h := r.w.Header()
	h.Set("Location", "/v2/"+r.repo+"/blobs/"+string(d))
	h.Set("Docker-Content-Digest", string(d))
	h.Set("Content-Length", "0")
	r.w.WriteHeader(http.StatusCreated)
}

func (s *server) startUpload(r *request) error {
	if r.arg != "" {
		return errMethod
	}
	q := r.URL.Query()
	if mounted, err := s.mount(r, q.Get("mount"), q.Get("from")); mounted || err != nil {
		return err
	}
	r.arg = newUploadID()
	id, err := r.session()
	if err != nil {
		return err
	}
	if err := s.storage.StartUpload(r.Context(), r.repo, id); err != nil {
		return err
	}
	if q.Has("digest") {
		if err := s.finish(r, id, -1); err != nil {
			s.storage.CancelUpload(r.Context(), r.repo, id)
			return err
		}
		return nil
	}
	r.uploadAt(r.arg, 0)
	r.w.WriteHeader(http.StatusAccepted)
	return nil
}

// mount reports whether it answered. Whatever hinders it, the client just uploads; only
// names that break the grammar are errors.
func (s *server) mount(r *request, mount, from string) (bool, error) {
	if mount == "" {
		return false, nil
	}
	d, ok := parseDigest(mount)
	if !ok {
		return false, apiError{http.StatusBadRequest, "DIGEST_INVALID", "invalid digest", map[string]string{"digest": mount}}
	}
	if from == "" {
		return false, nil
	}
	if !validRepository(from) {
		return false, apiError{http.StatusBadRequest, "NAME_INVALID", "invalid repository name", map[string]string{"name": from}}
	}
	if !s.may(r, from, Pull) {
		return false, nil // as if it were not there
	}
	err := s.storage.MountBlob(r.Context(), r.repo, from, d)
	if fault.Is(err, fault.NotFound) {
		return false, nil
	}
	if err == nil {
		r.blobAt(d)
	}
	return err == nil, err
}

func (s *server) getUpload(r *request) error {
	id, err := r.session()
	if err != nil {
		return err
	}
	size, err := s.storage.UploadSize(r.Context(), r.repo, id)
	if err != nil {
		return notFoundAs(err, errUploadUnknown)
	}
	r.uploadAt(r.arg, size)
	r.w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *server) patchUpload(r *request) error {
	id, err := r.session()
	if err != nil {
		return err
	}
	at, err := r.contentRange()
	if err != nil {
		return err
	}
	body, full, err := s.bounded(r, id)
	if err != nil {
		return err
	}
	size, err := s.storage.AppendUpload(r.Context(), r.repo, id, at, body)
	if err := full(); err != nil {
		s.storage.CancelUpload(r.Context(), r.repo, id)
		return err
	}
	if fault.Is(err, fault.Invalid) {
		r.drain()
		r.uploadAt(r.arg, size)
		return rangeError(err)
	}
	if err != nil {
		return notFoundAs(brokenBody(r, err), errUploadUnknown)
	}
	r.uploadAt(r.arg, size)
	r.w.WriteHeader(http.StatusAccepted)
	return nil
}

func rangeError(err error) error {
	return apiError{http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", err.Error(), nil}
}

// contentRange returns where the body begins, -1 without a Content-Range. Its form is
// "<start>-<end>", inclusive, and must agree with the length of the body.
func (r *request) contentRange() (int64, error) {
	v := r.Header.Get("Content-Range")
	if v == "" {
		return -1, nil
	}
	bad := apiError{http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", "invalid Content-Range, want start-end", nil}
	v, _, _ = strings.Cut(strings.TrimSpace(strings.TrimPrefix(v, "bytes")), "/")
	a, b, ok := strings.Cut(strings.TrimPrefix(v, "="), "-")
	start, err1 := strconv.ParseUint(a, 10, 62)
	end, err2 := strconv.ParseUint(b, 10, 62)
	if !ok || err1 != nil || err2 != nil {
		return 0, bad
	}
	empty := r.ContentLength == 0 && end <= start // some clients send "0-0" or "5-4" for nothing
	if !empty && (end < start || r.ContentLength >= 0 && int64(end-start)+1 != r.ContentLength) {
		return 0, bad
	}
	return int64(start), nil
}

func (s *server) putUpload(r *request) error {
	id, err := r.session()
	if err != nil {
		return err
	}
	at, err := r.contentRange()
	if err != nil {
		return err
	}
	return s.finish(r, id, at)
}

func (s *server) finish(r *request, id string, at int64) error {
	want := r.URL.Query().Get("digest")
	d, ok := parseDigest(want)
	if !ok {
		return apiError{http.StatusBadRequest, "DIGEST_INVALID", "invalid digest", map[string]string{"digest": want}}
	}
	body, full, err := s.bounded(r, id)
	if err != nil {
		return err
	}
	err = s.storage.FinishUpload(r.Context(), r.repo, id, at, body, d)
	if err := full(); err != nil {
		s.storage.CancelUpload(r.Context(), r.repo, id)
		return err
	}
	switch {
	case fault.Is(err, fault.Invalid):
		return apiError{http.StatusBadRequest, "DIGEST_INVALID", "provided digest did not match uploaded content", map[string]string{"reason": err.Error()}}
	case fault.Is(err, fault.Conflict):
		r.drain()
		return rangeError(err)
	case err != nil:
		return notFoundAs(brokenBody(r, err), errUploadUnknown)
	}
	if len(s.accounts) > 0 {
		if size, err := s.storage.StatBlob(r.Context(), r.repo, d); err == nil {
			s.charge(r.repo, size)
		}
	}
	r.blobAt(d)
	return nil
}

// bounded is the body of an upload, cut where the repository's quota ends; full tells
// afterwards whether it was.
func (s *server) bounded(r *request, id string) (body io.Reader, full func() error, err error) {
	body = r.steadyBody()
	left, tight, err := s.room(r.Context(), r.repo)
	if err != nil || left < 0 {
		return body, func() error { return nil }, err
	}
	have, err := s.storage.UploadSize(r.Context(), r.repo, id)
	if err != nil {
		return nil, nil, notFoundAs(err, errUploadUnknown)
	}
	cut := &cutBody{r: body, left: left - have, err: s.quotaError(tight, have+max(0, r.ContentLength))}
	return cut, func() error {
		if cut.hit {
			r.drain()
			return cut.err
		}
		return nil
	}, nil
}

// cutBody fails with err at the first byte too many.
type cutBody struct {
	r    io.Reader
	left int64
	err  error
	hit  bool
}

func (c *cutBody) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.left -= int64(n); c.left < 0 {
		c.hit = true
		return 0, c.err
	}
	return n, err
}

func (s *server) cancelUpload(r *request) error {
	id, err := r.session()
	if err != nil {
		return err
	}
	if err := s.storage.CancelUpload(r.Context(), r.repo, id); err != nil {
		return notFoundAs(err, errUploadUnknown)
	}
	r.w.WriteHeader(http.StatusNoContent)
	return nil
}

// brokenBody tells a body that ended early from a disk that failed.
func brokenBody(r *request, err error) error {
	var tooShort bool
	if errors.Is(err, io.ErrUnexpectedEOF) || r.Context().Err() != nil {
		tooShort = true
	}
	if tooShort {
		return apiError{http.StatusBadRequest, "SIZE_INVALID", fmt.Sprintf("the body ended early: %v", err), nil}
	}
	return err
}
