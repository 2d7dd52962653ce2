// Repositories below a prefix that are copies of another registry's, made when somebody asks for
// them: HEAD tells whether a tag moved, a blob is fetched once for all who wait for it, and
// when the upstream does not answer, what is here still is.

package registry

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/singleflight"

	"keg/internal/fault"
	"keg/internal/image"
)

// Upstream is a registry whose repositories appear below a prefix.
type Upstream struct {
	Prefix   string // "hub/"
	Registry string // "docker.io", or with the beginning of a repository name
	// Fresh is how long a tag is believed without asking again; 0 = a minute.
	Fresh time.Duration
}

const tagFresh = time.Minute

func (u Upstream) check() error {
	if !strings.HasSuffix(u.Prefix, "/") || !validRepository(u.Prefix+"x") {
		return fault.Invalidf(`upstream prefix %q: want the beginning of repository names with "/" at its end, such as "hub/"`, u.Prefix)
	}
	if _, err := image.ParseRepository(u.Registry + "/x"); err != nil {
		return fault.Invalidf("upstream %s: %w", u.Registry, err)
	}
	return nil
}

// reference is what repo is called upstream.
func (u Upstream) reference(repo string) (image.Reference, error) {
	return image.ParseRepository(u.Registry + "/" + strings.TrimPrefix(repo, u.Prefix))
}

func (s *server) upstreamOf(repo string) *Upstream { return upstreamOf(s.opt.Upstreams, repo) }

func upstreamOf(all []Upstream, repo string) *Upstream {
	if i := slices.IndexFunc(all, func(u Upstream) bool { return strings.HasPrefix(repo, u.Prefix) }); i >= 0 {
		return &all[i]
	}
	return nil
}

// filler is a Storage that can take a blob in while others read it.
type filler interface {
	// FillBlob writes the blob d of repo from source, which is told where to begin: after what an
	// earlier attempt left. grown is told how far the bytes can be read; a last time,
	// with nil, before they move to their place.
	FillBlob(ctx context.Context, repo string, d digest.Digest, source func(at int64) (io.ReadCloser, int64, error), grown func(r io.ReaderAt, n int64)) error
}

// mirror is a Storage with upstreams behind some of its repositories.
type mirror struct {
	Storage
	fill      filler
	client    *Client
	upstreams []Upstream
	metrics   *metrics
	flights   singleflight.Group // one question about a manifest at a time

	mu      sync.Mutex
	asked   map[string]time.Time // when a tag was last asked for upstream
	filling map[string]*filling  // by repository and digest
}

// newMirror: a storage that cannot be filled stays as it is.
func newMirror(s Storage, c *Client, ups []Upstream, m *metrics) Storage {
	f, ok := s.(filler)
	if !ok || c == nil {
		return s
	}
	return &mirror{Storage: s, fill: f, client: c, upstreams: ups, metrics: m, asked: map[string]time.Time{}, filling: map[string]*filling{}}
}

// keeper is the storage, or the one below a mirror, as one that keeps house.
func (s *server) keeper() (keeper, bool) {
	st := s.storage
	if m, ok := st.(*mirror); ok {
		st = m.Storage
	}
	k, ok := st.(keeper)
	return k, ok
}

const (
	maxAsked    = 10000
	upstreamFor = 2 * time.Minute // a question about a manifest
)

// Manifest asks the upstream unless a digest is here, or the tag was asked for just now.
func (m *mirror) Manifest(ctx context.Context, repo, tag string, d digest.Digest) (image.Descriptor, error) {
	up := upstreamOf(m.upstreams, repo)
	if up == nil {
		return m.Storage.Manifest(ctx, repo, tag, d)
	}
	have, err := m.Storage.Manifest(ctx, repo, tag, d)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return have, err
	}
	if err == nil && (d != "" || m.fresh(up, repo, tag)) {
		m.metrics.cacheHits.Add(1)
		return have, nil
	}
	got, err, _ := m.flights.Do(repo+"\x00"+tag+"\x00"+string(d), func() (any, error) {
		// Who asked first may go away; the others wait for the answer all the same.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), upstreamFor)
		defer cancel()
		return m.refresh(ctx, up, repo, tag, d, have)
	})
	if err != nil {
		if have.Digest != "" && !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Denied) && !fault.Is(err, fault.Unauthorized) {
			m.metrics.cacheStale.Add(1)
			return have, nil
		}
		return image.Descriptor{}, err
	}
	return got.(image.Descriptor), nil
}

func (m *mirror) fresh(up *Upstream, repo, tag string) bool {
	stays := up.Fresh
	if stays == 0 {
		stays = tagFresh
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Since(m.asked[repo+":"+tag]) < stays
}

// refresh asks what tag or d is upstream, and copies the document when it is another one.
func (m *mirror) refresh(ctx context.Context, up *Upstream, repo, tag string, d digest.Digest, have image.Descriptor) (image.Descriptor, error) {
	ref, err := up.reference(repo)
	if err != nil {
		return have, err
	}
	ref.Tag, ref.Digest = tag, d
	desc, err := m.client.resolve(ctx, ref)
	if err != nil {
		return have, pullError(ref, err)
	}
	if desc.Digest == have.Digest {
		m.metrics.cacheHits.Add(1)
		m.note(repo, tag)
		return have, nil
	}
	m.metrics.cacheMisses.Add(1)
	doc, err := m.client.Manifest(ctx, ref, Unsized(desc))
	if err != nil {
		return have, err
	}
	parsed, err := parseDocument(desc.MediaType, doc, desc.Digest)
	if err != nil {
		return have, fault.Unavailablef("%s: %w", ref.Familiar(), err)
	}
	var tags []string
	if tag != "" {
		tags = []string{tag}
	}
	if err := m.Storage.PutManifest(ctx, repo, parsed.desc, doc, parsed.subject, tags); err != nil {
		return have, err
	}
	m.note(repo, tag)
	return parsed.desc, nil
}

func (m *mirror) note(repo, tag string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.asked) >= maxAsked {
		clear(m.asked)
	}
	m.asked[repo+":"+tag] = time.Now()
}

// StatBlob knows the size of an upstream's blob from the manifests that are here: clients come
// with a digest that they have read in one.
func (m *mirror) StatBlob(ctx context.Context, repo string, d digest.Digest) (int64, error) {
	n, err := m.Storage.StatBlob(ctx, repo, d)
	if upstreamOf(m.upstreams, repo) == nil || !fault.Is(err, fault.NotFound) {
		return n, err
	}
	desc, err := m.named(ctx, repo, d)
	return desc.Size, err
}

// named finds a blob in the manifests of the repository.
func (m *mirror) named(ctx context.Context, repo string, d digest.Digest) (image.Descriptor, error) {
	missing := fault.NotFoundf("no manifest of repository %s names blob %s", repo, d)
	k, ok := m.Storage.(keeper)
	if !ok {
		return image.Descriptor{}, missing
	}
	all, err := k.Digests(ctx, repo)
	if err != nil {
		return image.Descriptor{}, err
	}
	for _, manifest := range all {
		desc, err := m.Storage.Manifest(ctx, repo, "", manifest)
		if err != nil || image.IsIndex(desc.MediaType) {
			continue
		}
		doc, err := m.Storage.ReadManifest(ctx, repo, desc)
		if err != nil {
			continue
		}
		var im image.Manifest
		if json.Unmarshal(doc, &im) != nil {
			continue
		}
		for _, b := range append([]image.Descriptor{im.Config}, im.Layers...) {
			if b.Digest == d && b.Size >= 0 {
				return b, nil
			}
		}
	}
	return image.Descriptor{}, missing
}

// OpenBlob opens a blob that is here, or one that is just coming.
func (m *mirror) OpenBlob(ctx context.Context, repo string, d digest.Digest) (io.ReadSeekCloser, error) {
	up := upstreamOf(m.upstreams, repo)
	r, err := m.Storage.OpenBlob(ctx, repo, d)
	if up == nil || !fault.Is(err, fault.NotFound) {
		if up != nil && err == nil {
			m.metrics.cacheHits.Add(1)
		}
		return r, err
	}
	desc, err := m.named(ctx, repo, d)
	if err != nil {
		return nil, err
	}
	ref, err := up.reference(repo)
	if err != nil {
		return nil, err
	}
	return &follower{ctx: ctx, m: m, repo: repo, f: m.start(ctx, repo, ref, desc)}, nil
}

// filling is a blob on its way from an upstream, and those who read it meanwhile.
type filling struct {
	desc image.Descriptor

	mu   sync.Mutex
	more chan struct{} // closed and replaced whenever something changed
	n    int64
	src  io.ReaderAt
	done bool
	err  error
}

// start begins to fetch a blob unless somebody did.
func (m *mirror) start(ctx context.Context, repo string, ref image.Reference, desc image.Descriptor) *filling {
	key := repo + "\x00" + string(desc.Digest)
	m.mu.Lock()
	defer m.mu.Unlock()
	if f := m.filling[key]; f != nil {
		return f
	}
	m.metrics.cacheMisses.Add(1)
	f := &filling{desc: desc, more: make(chan struct{})}
	m.filling[key] = f
	ctx = context.WithoutCancel(ctx) // for all who wait; the client's own patience bounds it
	go func() {
		err := m.fill.FillBlob(ctx, repo, desc.Digest, func(at int64) (io.ReadCloser, int64, error) {
			return m.client.Blob(ctx, ref, desc, at)
		}, f.grown)
		m.mu.Lock()
		delete(m.filling, key)
		m.mu.Unlock()
		f.end(err)
	}()
	return f
}

func (f *filling) change(set func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	set()
	close(f.more)
	f.more = make(chan struct{})
}

func (f *filling) grown(r io.ReaderAt, n int64) { f.change(func() { f.src, f.n = r, n }) }
func (f *filling) end(err error)                { f.change(func() { f.done, f.err, f.src = true, err, nil }) }

// readAt reads what is there; n == 0 without an error means: wait for more. The last byte is
// held back until the digest was found right, so nobody takes a forged blob for whole.
func (f *filling) readAt(p []byte, at int64) (n int, more <-chan struct{}, done bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.done || f.err != nil {
		return 0, nil, true, f.err
	}
	left := min(f.n, f.desc.Size-1) - at
	if f.src == nil || left <= 0 {
		return 0, f.more, false, nil
	}
	n, err = f.src.ReadAt(p[:min(int64(len(p)), left)], at)
	if n > 0 || errors.Is(err, io.EOF) {
		err = nil
	}
	return n, f.more, false, err
}

// follower reads a filling from where it likes, waiting for what has not come yet.
type follower struct {
	ctx  context.Context
	m    *mirror
	repo string
	f    *filling
	at   int64
	file io.ReadSeekCloser // once it is whole
}

func (r *follower) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		offset += r.f.desc.Size
	}
	if offset < 0 {
		return 0, fault.Invalidf("seek to %d", offset)
	}
	r.at = offset
	if r.file != nil {
		return r.file.Seek(offset, io.SeekStart)
	}
	return offset, nil
}

func (r *follower) Read(p []byte) (int, error) {
	for r.file == nil {
		if r.at >= r.f.desc.Size {
			return 0, io.EOF
		}
		n, more, done, err := r.f.readAt(p, r.at)
		switch {
		case err != nil:
			return 0, err
		case done:
			if err := r.whole(); err != nil {
				return 0, err
			}
			continue
		case n > 0:
			r.at += int64(n)
			return n, nil
		}
		select {
		case <-r.ctx.Done():
			return 0, context.Cause(r.ctx)
		case <-more:
		}
	}
	n, err := r.file.Read(p)
	r.at += int64(n)
	return n, err
}

func (r *follower) whole() error {
	file, err := r.m.Storage.OpenBlob(r.ctx, r.repo, r.f.desc.Digest)
	if err != nil {
		return err
	}
	if _, err := file.Seek(r.at, io.SeekStart); err != nil {
		return errors.Join(err, file.Close())
	}
	r.file = file
	return nil
}

func (r *follower) Close() error {
	if r.file != nil {
		return r.file.Close()
	}
	return nil
}
