// ADD of a URL.
package builder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/disk"
	"keg/internal/fault"
)

// remembered is what a URL gave the last time; a server that knows its tag or time
// need not send it again.
type remembered struct {
	Digest   string    `json:"digest"`
	ETag     string    `json:"etag,omitempty"`
	Modified string    `json:"modified,omitempty"`
	Time     time.Time `json:"time"`
}

// urlDigest is what goes into the key: content and time. A checksum that the author
// gave stands for the content without asking.
func (s *solver) urlDigest(ctx context.Context, address string, want digest.Digest) (string, error) {
	if want != "" {
		return want.String(), nil
	}
	memo := s.cache.url(hashName(address))
	var old remembered
	_ = disk.GetJSON(memo, &old) // missing or damaged: asked anew
	resp, err := s.get(ctx, address, old)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotModified {
		return old.Digest + " " + old.Modified, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, resp.Body); err != nil {
		return "", fault.Unavailablef("download %s: %w", address, err)
	}
	now := remembered{Digest: "sha256:" + hex.EncodeToString(h.Sum(nil)), ETag: resp.Header.Get("ETag"),
		Modified: resp.Header.Get("Last-Modified"), Time: time.Now()}
	if now.ETag != "" || now.Modified != "" {
		if err := disk.PutJSONVolatile(memo, now); err != nil {
			return "", err
		}
	}
	return now.Digest + " " + now.Modified, nil
}

func (s *solver) get(ctx context.Context, address string, old remembered) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, fault.Invalidf("ADD %s: %w", address, err)
	}
	if old.Digest != "" {
		if old.ETag != "" {
			req.Header.Set("If-None-Match", old.ETag)
		} else if old.Modified != "" {
			req.Header.Set("If-Modified-Since", old.Modified)
		}
	}
	client := http.Client{CheckRedirect: func(r *http.Request, via []*http.Request) error {
		// A server must not send us to files or other protocols.
		if len(via) > 10 || r.URL.Scheme != "http" && r.URL.Scheme != "https" {
			return fault.Deniedf("redirect to %s is not followed", r.URL)
		}
		// Nor to what answers only this machine, such as the metadata of a cloud.
		if ip, err := netip.ParseAddr(r.URL.Hostname()); err == nil && ip.Unmap().IsLinkLocalUnicast() {
			return fault.Deniedf("redirect to the link-local address %s is not followed", ip)
		}
		return nil
	}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fault.Unavailablef("download %s: %w", address, err)
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNotModified {
		resp.Body.Close()
		return nil, fault.NotFoundf("download %s: the server answered %s", address, resp.Status)
	}
	return resp, nil
}

// download fetches the content and puts it in place, verified.
func (o *copyOp) download(ctx context.Context, s *solver, c *copier, address string) error {
	resp, err := s.get(ctx, address, remembered{})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	tmp, err := os.CreateTemp(s.cache.dir("urls"), ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	algorithm := digest.SHA256
	if o.checksum != "" {
		algorithm = o.checksum.Algorithm()
	}
	h := algorithm.Hash()
	if _, err := io.Copy(io.MultiWriter(tmp, h), resp.Body); err != nil {
		return fault.Unavailablef("download %s: %w", address, err)
	}
	got := digest.NewDigest(algorithm, h)
	if o.checksum != "" && got != o.checksum {
		return fmt.Errorf("digest mismatch for %s: %s (expected: %s)", address, got, o.checksum)
	}
	if _, err := tmp.Seek(0, io.SeekStart); err != nil {
		return err
	}
	modified, err := http.ParseTime(resp.Header.Get("Last-Modified"))
	if err != nil {
		modified = time.Unix(0, 0)
	}
	return c.data(urlName(address), tmp, 0o600, modified, o.dest)
}

func urlName(address string) string {
	if u, err := url.Parse(address); err == nil {
		if base := path.Base(u.Path); base != "." && base != "/" {
			return base
		}
	}
	return "__unnamed__"
}
