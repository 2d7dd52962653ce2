// Bytes to a registry: mount, upload, manifest. An upload is POST for a place and one PUT with
// all bytes, begun anew when it breaks.

package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
)

func pushScope(p place) []string { return []string{"repository:" + p.repo + ":pull,push"} }

// MountBlob tries a cross-repository mount from another repository of the same registry. False
// means that the blob has to be uploaded.
func (c *Client) MountBlob(ctx context.Context, ref image.Reference, d digest.Digest, from string) (bool, error) {
	p, err := c.home(ref)
	if err != nil {
		return false, err
	}
	q := url.Values{"mount": {string(d)}, "from": {from}}
	resp, err := p.do(ctx, call{method: http.MethodPost, path: p.path("/blobs/uploads/?" + q.Encode()), body: empty,
		scopes: append(pushScope(p), "repository:"+from+":pull"), want: []int{http.StatusCreated, http.StatusAccepted}})
	if err != nil {
		var r *refusal
		if errors.As(err, &r) && r.status < 500 {
			return false, nil // no right to read from, or no such thing as a mount: upload
		}
		return false, pushError(ref, err)
	}
	resp.Body.Close()
	if resp.StatusCode == http.StatusCreated {
		return true, nil
	}
	p.cancelUpload(ctx, resp)
	return false, nil
}

func empty() (io.ReadCloser, error) { return http.NoBody, nil }

// cancelUpload gives up the session that a refused mount has opened; best effort.
func (p place) cancelUpload(ctx context.Context, resp *http.Response) {
	loc, err := p.location(ctx, resp)
	if err != nil {
		return
	}
	resp, err = p.do(ctx, call{method: http.MethodDelete, url: loc, scopes: pushScope(p), once: true,
		want: []int{http.StatusNoContent, http.StatusNotFound, http.StatusAccepted}})
	if err == nil {
		resp.Body.Close()
	}
}

// PushBlob uploads; open is called again for a retry. progress is told how many bytes
// are sent, again from 0 in a retry.
func (c *Client) PushBlob(ctx context.Context, ref image.Reference, d image.Descriptor, open func() (io.ReadCloser, error), progress func(int64)) error {
	p, err := c.home(ref)
	if err != nil {
		return err
	}
	if progress == nil {
		progress = func(int64) {}
	}
	for attempt := 1; ; attempt++ {
		err := p.upload(ctx, d, open, progress)
		if err == nil {
			return nil
		}
		if err := c.patient.wait(ctx, attempt, err); err != nil {
			return pushError(ref, err)
		}
	}
}

func (p place) upload(ctx context.Context, d image.Descriptor, open func() (io.ReadCloser, error), progress func(int64)) error {
	resp, err := p.do(ctx, call{method: http.MethodPost, path: p.path("/blobs/uploads/"), body: empty,
		scopes: pushScope(p), want: []int{http.StatusAccepted}})
	if err != nil {
		return err
	}
	resp.Body.Close()
	loc, err := p.location(ctx, resp)
	if err != nil {
		return err
	}
	q := loc.Query()
	q.Set("digest", string(d.Digest))
	loc.RawQuery = q.Encode()
	var source error // of our own reading
	body := func() (io.ReadCloser, error) {
		r, err := open()
		if err != nil {
			source = err
			return nil, err
		}
		return &meter{ReadCloser: r, d: d, tell: progress, err: &source}, nil
	}
	resp, err = p.do(ctx, call{method: http.MethodPut, url: loc, body: body, size: d.Size, once: true, scopes: pushScope(p),
		header: http.Header{"Content-Type": {"application/octet-stream"}}, want: []int{http.StatusCreated}})
	if err != nil {
		if source != nil {
			return fmt.Errorf("read blob %s: %w", d.Digest, source)
		}
		return err
	}
	resp.Body.Close()
	if got, ok := parseDigest(resp.Header.Get("Docker-Content-Digest")); ok && got != d.Digest {
		return fault.Invalidf("registry %s stored blob %s as %s", p.name(), d.Digest, got)
	}
	return nil
}

// meter counts what is read and remembers why reading failed: the transport's error would
// blame the connection.
type meter struct {
	io.ReadCloser
	d    image.Descriptor
	tell func(int64)
	err  *error
	n    int64
	told int64
}

const tellEach = 256 << 10

func (m *meter) Read(b []byte) (int, error) {
	n, err := m.ReadCloser.Read(b)
	if m.n += int64(n); m.n-m.told >= tellEach || n > 0 && m.n == m.d.Size {
		m.told = m.n
		m.tell(m.n)
	}
	switch {
	case errors.Is(err, io.EOF) && m.n != m.d.Size:
		err = fault.Invalidf("it has %d bytes, not %d", m.n, m.d.Size)
		*m.err = err
	case err != nil && !errors.Is(err, io.EOF):
		*m.err = err
	}
	return n, err
}

// location is where an upload goes on. A registry behind a proxy may call itself http where
// we came by https: then we stay with https.
func (p place) location(ctx context.Context, resp *http.Response) (*url.URL, error) {
	loc, err := resp.Request.URL.Parse(resp.Header.Get("Location"))
	if err != nil || resp.Header.Get("Location") == "" {
		return nil, fault.Unavailablef("registry %s does not say where to upload", p.name())
	}
	root, err := p.base(ctx)
	if err != nil {
		return nil, err
	}
	if root.Scheme == "https" && loc.Scheme == "http" && loc.Host == root.Host {
		loc.Scheme = "https"
	}
	return loc, allowedHop(root, loc)
}

// PushManifest puts the document under ref (tag, or its digest).
func (c *Client) PushManifest(ctx context.Context, ref image.Reference, mediaType string, doc []byte) (digest.Digest, error) {
	d := digestLike(ref.Digest, doc)
	if ref.Digest != "" && ref.Digest != d {
		return "", fault.Invalidf("push %s: the document has digest %s", ref.Familiar(), d)
	}
	p, err := c.home(ref)
	if err != nil {
		return "", err
	}
	target := "/manifests/" + string(d)
	if ref.Tag != "" {
		target = "/manifests/" + ref.Tag
	}
	resp, err := p.do(ctx, call{method: http.MethodPut, path: p.path(target), scopes: pushScope(p), size: int64(len(doc)),
		body:   func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(doc)), nil },
		header: http.Header{"Content-Type": {mediaType}}, want: []int{http.StatusCreated, http.StatusOK, http.StatusAccepted}})
	if err != nil {
		return "", pushError(ref, err)
	}
	resp.Body.Close()
	if got, ok := parseDigest(resp.Header.Get("Docker-Content-Digest")); ok && got != d && got.Algorithm() == d.Algorithm() {
		return "", fault.Invalidf("registry %s stored manifest %s as %s", p.name(), d, got)
	}
	return d, nil
}
