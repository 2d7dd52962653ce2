package registry

import (
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"
)

func errBlobUnknown(d digest.Digest) error {
	return apiError{http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry", map[string]digest.Digest{"digest": d}}
}

func (r *request) digest() (digest.Digest, error) {
	d, ok := parseDigest(r.arg)
	if !ok {
		return "", apiError{http.StatusBadRequest, "DIGEST_INVALID", "invalid digest", map[string]string{"digest": r.arg}}
	}
	return d, nil
}

// getBlob leaves Range and the conditional headers to net/http: the digest is the ETag.
func (s *server) getBlob(r *request) error {
	d, err := r.digest()
	if err != nil {
		return err
	}
	size, err := s.storage.StatBlob(r.Context(), r.repo, d)
	if err != nil {
		return notFoundAs(err, errBlobUnknown(d).(apiError))
	}
	h := r.w.Header()
	h.Set("Docker-Content-Digest", string(d))
	h.Set("Etag", `"`+string(d)+`"`)
	h.Set("Cache-Control", "max-age=31536000, immutable")
	h.Set("Content-Type", "application/octet-stream")
	if r.Method == "HEAD" && r.Header.Get("Range") == "" && r.Header.Get("If-None-Match") == "" {
		h.Set("Accept-Ranges", "bytes")
		h.Set("Content-Length", strconv.FormatInt(size, 10))
		return nil
	}
	blob, err := s.storage.OpenBlob(r.Context(), r.repo, d)
	if err != nil {
		return notFoundAs(err, errBlobUnknown(d).(apiError))
	}
	defer blob.Close()
	http.ServeContent(r.w, r.Request, "", time.Time{}, blob)
	return nil
}

func (s *server) deleteBlob(r *request) error {
	d, err := r.digest()
	if err != nil {
		return err
	}
	if err := s.storage.DeleteBlob(r.Context(), r.repo, d); err != nil {
		return notFoundAs(err, errBlobUnknown(d).(apiError))
	}
	r.w.WriteHeader(http.StatusAccepted)
	return nil
}

// drain reads what a client still sends, within reason, so that it sees our answer instead of a
// reset connection.
func (r *request) drain() {
	if r.Header.Get("Expect") != "" {
		return // it has not been invited to send
	}
	http.NewResponseController(r.w).SetReadDeadline(time.Now().Add(leftoverWait))
	io.Copy(io.Discard, io.LimitReader(r.Body, 1<<20))
}
