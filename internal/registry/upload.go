// Bytes to a registry: mount, upload, manifest. An upload is POST for a place and one PUT with
// all bytes. When that breaks, the place is asked how much has come (GET), and another PUT sends
// the rest; where the registry knows no more of it, all begins anew.

package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

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
	u := &upload{place: p, d: d, open: open, tell: progress}
	for e := c.patient.effort(); ; {
		before := u.arrived
		err := u.attempt(ctx)
		if err == nil {
			return nil
		}
		if u.arrived > before {
			e.anew() // what goes on is not counted as failing
		}
		if err := e.again(ctx, err); err != nil {
			return pushError(ref, err)
		}
	}
}

// upload is a blob on its way, over several attempts.
type upload struct {
	place
	d    image.Descriptor
	open func() (io.ReadCloser, error)
	tell func(int64)

	session *url.URL // where it goes on; nil = nowhere yet
	arrived int64    // bytes that the session has, as the registry says
}

func (u *upload) attempt(ctx context.Context) error {
	if u.session != nil {
		u.ask(ctx)
	}
	if u.session == nil {
		if err := u.begin(ctx); err != nil {
			return err
		}
	}
	return u.send(ctx)
}

func (u *upload) begin(ctx context.Context) error {
	resp, err := u.do(ctx, call{method: http.MethodPost, path: u.path("/blobs/uploads/"), body: empty,
		scopes: pushScope(u.place), want: []int{http.StatusAccepted}})
	if err != nil {
		return err
	}
	resp.Body.Close()
	u.arrived = 0
	u.session, err = u.location(ctx, resp)
	return err
}

// ask finds out how much a session has. Without a clear answer it is given up.
func (u *upload) ask(ctx context.Context) {
	resp, err := u.do(ctx, call{method: http.MethodGet, url: u.session, scopes: pushScope(u.place), once: true, want: []int{http.StatusNoContent, http.StatusAccepted}})
	u.session = nil
	if err != nil {
		return
	}
	resp.Body.Close()
	_, last, ok := strings.Cut(strings.TrimPrefix(resp.Header.Get("Range"), "bytes="), "-")
	n, err := strconv.ParseInt(last, 10, 64)
	// "0-0" is one byte to some and none to others: nothing worth keeping either way.
	if !ok || err != nil || n <= 0 || n+1 >= u.d.Size {
		return
	}
	if next, err := u.location(ctx, resp); err == nil {
		u.session, u.arrived = next, n+1
	}
}

// send puts what the session lacks, and ends it.
func (u *upload) send(ctx context.Context) error {
	to := *u.session
	q := to.Query()
	q.Set("digest", string(u.d.Digest))
	to.RawQuery = q.Encode()
	header := http.Header{"Content-Type": {"application/octet-stream"}}
	if u.arrived > 0 {
		header.Set("Content-Range", fmt.Sprintf("%d-%d", u.arrived, u.d.Size-1))
	}
	var source error // of our own reading
	body := func() (io.ReadCloser, error) {
		r, err := u.open()
		if err == nil && u.arrived > 0 {
			err = skip(r, u.arrived)
		}
		if err != nil {
			source = err
			return nil, err
		}
		return &meter{ReadCloser: r, d: u.d, tell: u.tell, err: &source, n: u.arrived}, nil
	}
	resp, err := u.do(ctx, call{method: http.MethodPut, url: &to, body: body, size: u.d.Size - u.arrived, once: true, scopes: pushScope(u.place),
		header: header, want: []int{http.StatusCreated}})
	if err != nil {
		if source != nil {
			return fmt.Errorf("read blob %s: %w", u.d.Digest, source)
		}
		var r *refusal
		if errors.As(err, &r) {
			u.session = nil // it has answered: this session does not go on
		}
		return err
	}
	resp.Body.Close()
	if got, ok := parseDigest(resp.Header.Get("Docker-Content-Digest")); ok && got != u.d.Digest {
		return fault.Invalidf("registry %s stored blob %s as %s", u.name(), u.d.Digest, got)
	}
	return nil
}

// skip leaves out what is there already.
func skip(r io.ReadCloser, n int64) error {
	if s, ok := r.(io.Seeker); ok {
		if _, err := s.Seek(n, io.SeekStart); err == nil {
			return nil
		}
	}
	_, err := io.CopyN(io.Discard, r, n)
	if err != nil {
		r.Close()
	}
	return err
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
	if resp.Header.Get("OCI-Subject") == "" {
		err = c.listReferrer(ctx, ref, mediaType, doc, d)
	}
	return d, err
}

// listReferrer puts a manifest with a subject on the list that stands in for the API of referrers where
// a registry lacks it (distribution-spec "Referrers Tag Schema").
func (c *Client) listReferrer(ctx context.Context, ref image.Reference, mediaType string, doc []byte, d digest.Digest) error {
	parsed, err := parseDocument(mediaType, doc, d)
	if err != nil || parsed.subject == "" {
		return nil //nolint:nilerr // the registry has taken it: whatever it is, it refers to nothing
	}
	p, err := c.home(ref)
	if err != nil {
		return err
	}
	list := image.Reference{Registry: ref.Registry, Repository: ref.Repository, Tag: referrersTag(parsed.subject)}
	x := &image.Index{MediaType: image.MediaIndex}
	x.SchemaVersion = 2
	have, _, err := getManifest(ctx, p, list, false)
	var r *refusal
	switch {
	case err == nil:
		if x, err = image.ParseIndex(have); err != nil {
			return fmt.Errorf("referrers of %s: %w", parsed.subject, err)
		}
	case !errors.As(err, &r) || r.status != http.StatusNotFound:
		return pushError(ref, err)
	}
	if slices.ContainsFunc(x.Manifests, func(m image.Descriptor) bool { return m.Digest == d }) {
		return nil
	}
	x.Manifests = append(x.Manifests, parsed.desc)
	b, err := json.Marshal(x)
	if err != nil {
		return err
	}
	_, err = c.PushManifest(ctx, list, image.MediaIndex, b)
	return err
}

func referrersTag(subject digest.Digest) string {
	return string(subject.Algorithm()) + "-" + subject.Encoded()
}
