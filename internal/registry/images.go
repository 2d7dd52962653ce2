// Documents: what a name points at, its manifest and config, and the tags of a repository.

package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/weakness"
)

// accept is what we can read. Docker's schema 1 is named so that an old image is called by
// its name instead of missing.
const accept = image.MediaIndex + ", " + image.MediaManifest + ", " + image.MediaDockerList + ", " +
	image.MediaDockerManifest + ", " + schema1 + ";q=0.1"

const schema1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"

func pullScope(p place) []string { return []string{"repository:" + p.repo + ":pull"} }

func manifestPath(ref image.Reference) string {
	if ref.Digest != "" {
		return "/manifests/" + string(ref.Digest)
	}
	return "/manifests/" + ref.Tag
}

// Resolve returns the descriptor that ref points at, by HEAD, else GET. Its Size is what the registry says:
// the digest alone is proof (see Unsized). A missing image is
// fault.NotFound, or Denied with the registry's answer and whether logging in could help.
func (c *Client) Resolve(ctx context.Context, ref image.Reference) (image.Descriptor, error) {
	if ref.Tag == "" && ref.Digest == "" {
		ref.Tag = image.DefaultTag
	}
	desc, err := c.resolve(ctx, ref)
	return desc, c.searched(ctx, ref, pullError(ref, err), err)
}

// Unsized is a descriptor whose size nobody has vouched for.
func Unsized(d image.Descriptor) image.Descriptor {
	d.Size = 0
	return d
}

// resolve is Resolve with the registry's own error.
func (c *Client) resolve(ctx context.Context, ref image.Reference) (image.Descriptor, error) {
	var desc image.Descriptor
	err := c.try(ref, ref.Digest != "", func(p place) error {
		resp, err := p.do(ctx, call{method: http.MethodHead, path: p.path(manifestPath(ref)), scopes: pullScope(p),
			header: http.Header{"Accept": {accept}}, want: []int{http.StatusOK}})
		if err == nil {
			defer resp.Body.Close()
			var whole bool
			if desc, whole = headDescriptor(resp, ref); whole {
				return knownType(ref, desc.MediaType)
			}
		}
		// HEAD has no words, and some registries no digest: GET has both.
		var r *refusal
		if err != nil && !errors.As(err, &r) {
			return err
		}
		tired := r != nil && worthRetry(ctx, r) // HEAD was asked often enough
		_, desc, err = getManifest(ctx, p, ref, tired)
		return err
	})
	return desc, err
}

// headDescriptor reads the headers of a HEAD; false when they do not say it all.
func headDescriptor(resp *http.Response, ref image.Reference) (image.Descriptor, bool) {
	d, ok := parseDigest(resp.Header.Get("Docker-Content-Digest"))
	desc := image.Descriptor{MediaType: baseType(resp.Header.Get("Content-Type")), Digest: d, Size: resp.ContentLength}
	ok = ok && desc.Size > 0 && (ref.Digest == "" || ref.Digest == d) &&
		(image.IsIndex(desc.MediaType) || image.IsManifest(desc.MediaType))
	return desc, ok
}

func knownType(ref image.Reference, mediaType string) error {
	switch {
	case image.IsIndex(mediaType), image.IsManifest(mediaType):
		return nil
	case strings.HasPrefix(mediaType, "application/vnd.docker.distribution.manifest.v1+"):
		return fault.Unsupportedf("%s is in Docker's image format 1, which nothing supports any more: push it again with a newer Docker", ref.Familiar())
	}
	return fault.Unsupportedf("%s is a document of type %q, not an image", ref.Familiar(), printable(mediaType))
}

// getManifest fetches and verifies a document by ref's digest, else its tag.
func getManifest(ctx context.Context, p place, ref image.Reference, once bool) ([]byte, image.Descriptor, error) {
	var desc image.Descriptor
	c := call{method: http.MethodGet, path: p.path(manifestPath(ref)), scopes: pullScope(p),
		header: http.Header{"Accept": {accept}}, want: []int{http.StatusOK}, once: once}
	doc, err := p.document(ctx, c, image.MaxManifest, func(resp *http.Response, doc []byte) (err error) {
		desc = image.Descriptor{Digest: digestLike(ref.Digest, doc), Size: int64(len(doc))}
		if ref.Digest != "" && desc.Digest != ref.Digest {
			return &damaged{fault.Invalidf("registry %s sent a manifest with digest %s for %s", p.name(), desc.Digest, ref.Familiar())}
		}
		if d, ok := parseDigest(resp.Header.Get("Docker-Content-Digest")); ok && d.Algorithm() == desc.Digest.Algorithm() && d != desc.Digest {
			return &damaged{fault.Invalidf("registry %s sent a manifest with digest %s and says it is %s", p.name(), desc.Digest, d)}
		}
		if desc.MediaType, err = documentType(doc, baseType(resp.Header.Get("Content-Type"))); err != nil {
			return fmt.Errorf("manifest of %s: %w", ref.Familiar(), err)
		}
		return knownType(ref, desc.MediaType)
	})
	var r *refusal
	if err != nil && !errors.As(err, &r) && !strings.Contains(err.Error(), ref.Familiar()) {
		err = fmt.Errorf("manifest of %s: %w", ref.Familiar(), err)
	}
	return doc, desc, err
}

// readDocument reads a body of at most limit bytes that is not encoded in any way.
func readDocument(ep *endpoint, resp *http.Response, limit int64) ([]byte, error) {
	if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return nil, fault.Invalidf("registry %s sends it with Content-Encoding %q, which was not asked for", ep.name(), printable(e))
	}
	tooLarge := fault.Invalidf("it is larger than the %d bytes allowed", limit)
	if resp.ContentLength > limit {
		return nil, tooLarge
	}
	watch := watched(resp.Body, ep.c.patient.stall)
	defer watch.stop()
	b, err := io.ReadAll(io.LimitReader(watch, limit+1))
	if err != nil {
		return nil, &transportError{ep.unreachable(err)}
	}
	if int64(len(b)) > limit {
		return nil, tooLarge
	}
	return b, nil
}

// documentType is the document's own media type, which must be what the registry said: two
// readers must not see two things (CVE-2021-41190).
func documentType(doc []byte, contentType string) (string, error) {
	var head struct {
		MediaType string `json:"mediaType"`
	}
	if err := json.Unmarshal(doc, &head); err != nil {
		return "", fault.Invalidf("it is not JSON: %w", err)
	}
	switch {
	case head.MediaType == "":
		return contentType, nil
	case contentType == "" || contentType == "application/json" || contentType == "text/plain" || contentType == "application/octet-stream":
		return head.MediaType, nil // a plain file server
	case contentType != head.MediaType:
		return "", fault.Invalidf("it is ambiguous: it calls itself %q and the registry calls it %q", printable(head.MediaType), printable(contentType))
	}
	return head.MediaType, nil
}

// Manifest fetches and verifies the document d of ref's repository.
func (c *Client) Manifest(ctx context.Context, ref image.Reference, d image.Descriptor) ([]byte, error) {
	if _, ok := parseDigest(string(d.Digest)); !ok {
		return nil, fault.Invalidf("manifest of %s: invalid digest %q", ref.Familiar(), printable(string(d.Digest)))
	}
	var doc []byte
	err := c.try(ref, true, func(p place) error {
		var got image.Descriptor
		var err error
		doc, got, err = getManifest(ctx, p, ref.WithDigest(d.Digest), false)
		switch {
		case err != nil:
			return err
		case d.Size > 0 && d.Size != got.Size:
			return fault.Invalidf("manifest %s has %d bytes, not %d", d.Digest, got.Size, d.Size)
		case d.MediaType != "" && d.MediaType != got.MediaType:
			return fault.Invalidf("manifest %s is ambiguous: it is called %q and is %q", d.Digest, printable(d.MediaType), printable(got.MediaType))
		}
		return nil
	})
	return doc, pullError(ref.WithDigest(d.Digest), err)
}

// config fetches a small blob and verifies it.
func (c *Client) config(ctx context.Context, ref image.Reference, d image.Descriptor) ([]byte, error) {
	if d.Size > image.MaxConfig {
		return nil, fault.Invalidf("image config %s has %d bytes; %d are allowed", d.Digest, d.Size, image.MaxConfig)
	}
	r, _, err := c.Blob(ctx, ref, d, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	if got := digestLike(d.Digest, b); got != d.Digest {
		return nil, fault.Invalidf("registry %s sent image config %s with digest %s", ref.Registry, d.Digest, got)
	}
	return b, nil
}

// Remote is an image as a registry describes it: documents fetched and verified, no layers
// yet. Layers are Manifest.Layers, bottom first, as many as Config.RootFS.DiffIDs.
type Remote struct {
	Ref  image.Reference  // as asked for
	Root image.Descriptor // what the name points at: a manifest, or the index it was chosen from
	// Indexes are the documents between Root and Desc, outermost first; none when Root is Desc.
	Indexes []Document
	Desc    image.Descriptor // of the manifest
	// RawManifest and RawConfig are the bytes that the digests are of.
	RawManifest, RawConfig []byte
	Manifest               *image.Manifest
	Config                 *image.Config
}

// Document is a descriptor with its bytes.
type Document struct {
	Desc image.Descriptor
	Raw  []byte
}

// maxDepth bounds indexes in indexes (security.md IM7).
const maxDepth = 4

// Fetch resolves ref, picks the platform from an index, and fetches manifest and config.
// known, when not nil, is asked for each document first (store.Bytes is one), so a pull of what is
// here already costs one HEAD.
func (c *Client) Fetch(ctx context.Context, ref image.Reference, platform image.Platform, known func(d digest.Digest, limit int64) ([]byte, error)) (*Remote, error) {
	root, err := c.Resolve(ctx, ref)
	if err != nil {
		return nil, err
	}
	r := &Remote{Ref: ref, Root: root, Desc: Unsized(root)}
	get := func(d image.Descriptor, limit int64, fetch func(context.Context, image.Reference, image.Descriptor) ([]byte, error)) ([]byte, error) {
		if known != nil {
			if b, err := known(d.Digest, limit); err == nil {
				return b, nil
			}
		}
		return fetch(ctx, ref, d)
	}
	for {
		doc, err := get(r.Desc, image.MaxManifest, c.Manifest)
		if err != nil {
			return nil, err
		}
		if r.Desc.Size = int64(len(doc)); r.Desc.Digest == root.Digest {
			r.Root.Size = r.Desc.Size
		}
		if !image.IsIndex(r.Desc.MediaType) {
			r.RawManifest = doc
			break
		}
		if len(r.Indexes) == maxDepth && !weakness.Of("IM7") {
			return nil, fault.Invalidf("%s is an index in an index more than %d deep", ref.Familiar(), maxDepth)
		}
		r.Indexes = append(r.Indexes, Document{r.Desc, doc})
		if r.Desc, err = choose(ref, doc, platform); err != nil {
			return nil, err
		}
	}
	if r.Manifest, err = image.ParseManifest(r.RawManifest); err != nil {
		return nil, fmt.Errorf("%s: %w", ref.Familiar(), err)
	}
	if !isImageConfig(r.Manifest.Config.MediaType) {
		return nil, fault.Unsupportedf("%s is not an image: its config is of type %q", ref.Familiar(), printable(r.Manifest.Config.MediaType))
	}
	if r.RawConfig, err = get(r.Manifest.Config, image.MaxConfig, c.config); err != nil {
		return nil, err
	}
	if r.Config, err = image.ParseConfig(r.RawConfig); err != nil {
		return nil, fmt.Errorf("%s: %w", ref.Familiar(), err)
	}
	if n, m := len(r.Manifest.Layers), len(r.Config.RootFS.DiffIDs); n != m {
		return nil, fault.Invalidf("%s: its manifest has %d layers and its config %d", ref.Familiar(), n, m)
	}
	return r, nil
}

func choose(ref image.Reference, doc []byte, platform image.Platform) (image.Descriptor, error) {
	x, err := image.ParseIndex(doc)
	if err != nil {
		return image.Descriptor{}, fmt.Errorf("%s: %w", ref.Familiar(), err)
	}
	d, err := image.Select(x, platform)
	if err != nil {
		return d, fmt.Errorf("%s: %w", ref.Familiar(), err)
	}
	return d, knownType(ref, d.MediaType)
}

func isImageConfig(mediaType string) bool {
	return mediaType == image.MediaConfig || mediaType == image.MediaDockerConfig
}

// maxTagPages bounds how long a registry can lead us on.
const maxTagPages = 1000

// Tags lists the tags of a repository.
func (c *Client) Tags(ctx context.Context, ref image.Reference) ([]string, error) {
	tags, err := c.tags(ctx, ref)
	return tags, pullError(ref, err)
}

func (c *Client) tags(ctx context.Context, ref image.Reference) ([]string, error) {
	var tags []string
	err := c.try(ref, false, func(p place) error {
		tags = nil
		next := p.path("/tags/list")
		for range maxTagPages {
			more, link, err := tagPage(ctx, p, next)
			if err != nil {
				return err
			}
			if tags = append(tags, more...); link == "" {
				return nil
			}
			next = link
		}
		return fault.Unavailablef("registry %s has no end of tags for %s", p.name(), ref.FamiliarName())
	})
	slices.Sort(tags)
	return slices.Compact(tags), err
}

func tagPage(ctx context.Context, p place, path string) (tags []string, next string, err error) {
	var list struct {
		Tags []string `json:"tags"`
	}
	c := call{method: http.MethodGet, path: path, scopes: pullScope(p), want: []int{http.StatusOK}}
	_, err = p.document(ctx, c, 64<<20, func(resp *http.Response, b []byte) error {
		if err := json.Unmarshal(b, &list); err != nil {
			return &damaged{fault.Invalidf("list of tags of registry %s: %w", p.name(), err)}
		}
		next = nextLink(resp.Header.Get("Link"))
		return nil
	})
	if err != nil {
		return nil, "", err
	}
	for _, t := range list.Tags {
		if validTag(t) { // others cannot be pulled, nor printed
			tags = append(tags, t)
		}
	}
	return tags, next, nil
}

// nextLink reads `<url>; rel="next"`. Only its path and query are followed, at the same
// endpoint.
func nextLink(h string) string {
	target, params, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(h), "<"), ">")
	if !ok || !strings.Contains(strings.ReplaceAll(params, `"`, ""), "rel=next") {
		return ""
	}
	u, err := url.Parse(target)
	if err != nil || !strings.HasPrefix(u.Path, "/") {
		return ""
	}
	return u.RequestURI()
}

// maxReferrers bounds how many a registry can make us read.
const maxReferrers = 1000

// Referrers lists the manifests whose subject is d (signatures, attestations), by the API of
// distribution-spec 1.1 or, where a registry lacks it, by the tag that stands in for it.
func (c *Client) Referrers(ctx context.Context, ref image.Reference, d digest.Digest) ([]image.Descriptor, error) {
	var found []image.Descriptor
	err := c.try(ref, true, func(p place) error {
		var x *image.Index
		parse := func(_ *http.Response, doc []byte) (err error) {
			if x, err = image.ParseIndex(doc); err != nil {
				return &damaged{fmt.Errorf("referrers of %s: %w", d, err)}
			}
			return nil
		}
		_, err := p.document(ctx, call{method: http.MethodGet, path: p.path("/referrers/" + string(d)), scopes: pullScope(p),
			header: http.Header{"Accept": {image.MediaIndex}}, want: []int{http.StatusOK}}, image.MaxManifest, parse)
		var r *refusal
		if errors.As(err, &r) && (r.status == http.StatusNotFound || r.status == http.StatusMethodNotAllowed) {
			fallback := ref
			fallback.Tag, fallback.Digest = referrersTag(d), ""
			var doc []byte
			if doc, _, err = getManifest(ctx, p, fallback, false); errors.As(err, &r) && r.status == http.StatusNotFound {
				return nil
			}
			if err == nil {
				err = parse(nil, doc)
			}
		}
		if err != nil {
			return err
		}
		if len(x.Manifests) > maxReferrers {
			return fault.Invalidf("registry %s lists %d referrers of %s; %d are allowed", p.name(), len(x.Manifests), d, maxReferrers)
		}
		found = x.Manifests
		return nil
	})
	return found, pullError(ref.WithDigest(d), err)
}
