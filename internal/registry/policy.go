// Rules about what is kept: immutable tags, quotas, retention, and the round that keeps
// house while requests are served.

package registry

import (
	"context"
	"fmt"
	"net/http"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"keg/internal/fault"
	"keg/internal/image"
)

// Immutable says which tags of which repositories are written once. Pushing the same
// manifest again is no change.
type Immutable struct {
	Repos string
	Tags  []string // patterns; none = all
}

// Quota bounds the bytes of all the repositories together that Repos means.
type Quota struct {
	Repos string
	Bytes int64
}

// Keep is a retention rule: of the tags that match, those stay that are among the last
// ones pushed, or younger than Age, or were pulled within Pulled. What no rule is
// about stays. Zero values keep nothing by themselves.
type Keep struct {
	Repos  string
	Tags   []string // patterns; none = all
	Last   int
	Age    time.Duration
	Pulled time.Duration
	// Untagged is how long a manifest stays that no tag leads to: not as a part of a tagged
	// index, nor as a referrer of what stays. 0 = a day.
	Untagged time.Duration
}

const untaggedStays = 24 * time.Hour

// Collection is garbage collection beside requests.
type Collection struct {
	Every time.Duration // 0 = never
	Grace time.Duration // how young a blob is spared; 0 = an hour
}

const defaultGrace = time.Hour

// keeper is what a Storage offers beyond serving, so that a server can keep house.
type keeper interface {
	// Times tells when a tag, or without one a digest, was last written and last read.
	Times(ctx context.Context, repo, tag string, d digest.Digest) (pushed, pulled time.Time, err error)
	// Digests lists the manifests of a repository.
	Digests(ctx context.Context, repo string) ([]digest.Digest, error)
	// NotePull remembers that a tag or a digest was read now.
	NotePull(ctx context.Context, repo, tag string, d digest.Digest)
	// Usage adds the sizes of the repository's blobs that are not yet in seen.
	Usage(ctx context.Context, repo string, seen map[digest.Digest]bool) (int64, error)
	// Collect deletes what nothing refers to and is older than grace.
	Collect(ctx context.Context, grace time.Duration) (blobs int, bytes int64, err error)
}

func matchTag(patterns []string, tag string) bool {
	return len(patterns) == 0 || slices.ContainsFunc(patterns, func(p string) bool {
		ok, err := path.Match(p, tag)
		return ok && err == nil
	})
}

// ---- immutable tags

func (s *server) immutable(repo, tag string) bool {
	return slices.ContainsFunc(s.opt.Immutable, func(i Immutable) bool { return matchRepo(i.Repos, repo) && matchTag(i.Tags, tag) })
}

// fixed refuses to move or delete tags (to d; "" deletes). While unlock was not called, nobody else
// can write the tags.
func (s *server) fixed(r *request, tags []string, d digest.Digest) (unlock func(), err error) {
	tags = slices.DeleteFunc(slices.Clone(tags), func(t string) bool { return !s.immutable(r.repo, t) })
	if len(tags) == 0 {
		return func() {}, nil
	}
	unlock = s.names.lock(r.repo, true)
	for _, t := range tags {
		have, err := s.storage.Manifest(r.Context(), r.repo, t, "")
		if fault.Is(err, fault.NotFound) || err == nil && have.Digest == d {
			continue
		}
		unlock()
		if err != nil {
			return nil, err
		}
		return nil, apiError{http.StatusConflict, "DENIED", "tag " + t + " is immutable in this repository: push another one", map[string]string{"tag": t}}
	}
	return unlock, nil
}

// fixedDigest refuses to delete what an immutable tag stands for.
func (s *server) fixedDigest(r *request, d digest.Digest) (unlock func(), err error) {
	if !s.immutableHere(r.repo) {
		return func() {}, nil
	}
	tags, err := s.storage.Tags(r.Context(), r.repo)
	if err != nil {
		return nil, err
	}
	tags = slices.DeleteFunc(tags, func(t string) bool {
		desc, err := s.storage.Manifest(r.Context(), r.repo, t, "")
		return err != nil || desc.Digest != d
	})
	return s.fixed(r, tags, "")
}

// writing keeps retention out of a repository while a manifest is checked and stored.
func (s *server) writing(repo string) (unlock func()) {
	if len(s.opt.Keep) == 0 || len(s.opt.Immutable) > 0 && s.immutableHere(repo) {
		return func() {}
	}
	return s.names.lock(repo, false)
}

func (s *server) immutableHere(repo string) bool {
	return slices.ContainsFunc(s.opt.Immutable, func(i Immutable) bool { return matchRepo(i.Repos, repo) })
}

// nameLocks has a lock for each repository that somebody is writing to.
type nameLocks struct {
	mu   sync.Mutex
	held map[string]*nameLock
}

type nameLock struct {
	sync.RWMutex
	users int
}

func (n *nameLocks) lock(name string, alone bool) (unlock func()) {
	n.mu.Lock()
	if n.held == nil {
		n.held = map[string]*nameLock{}
	}
	l := n.held[name]
	if l == nil {
		l = &nameLock{}
		n.held[name] = l
	}
	l.users++
	n.mu.Unlock()
	release := l.RUnlock
	if alone {
		l.Lock()
		release = l.Unlock
	} else {
		l.RLock()
	}
	return func() {
		release()
		n.mu.Lock()
		defer n.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(n.held, name)
		}
	}
}

// ---- quotas

// account is one quota with what is known of its use: counted now and then, and what was
// written since added to it.
type account struct {
	Quota
	mu      sync.Mutex
	counted time.Time
	used    int64
}

// recount bounds how long deletions go unnoticed.
const recount = 10 * time.Second

func (s *server) quotaError(a *account, size int64) error {
	return apiError{http.StatusForbidden, "DENIED", fmt.Sprintf("quota exceeded: %s may have %d bytes and has %d; delete images or ask for more", a.Repos, a.Bytes, a.used),
		map[string]int64{"quota": a.Bytes, "used": a.used, "size": size}}
}

// room returns how many bytes may still come to a repository; -1 means any number.
func (s *server) room(ctx context.Context, repo string) (int64, *account, error) {
	left, tight := int64(-1), (*account)(nil)
	for _, a := range s.accounts {
		if !matchRepo(a.Repos, repo) {
			continue
		}
		used, err := s.use(ctx, a)
		if err != nil {
			return 0, nil, err
		}
		if n := max(0, a.Bytes-used); left < 0 || n < left {
			left, tight = n, a
		}
	}
	return left, tight, nil
}

func (s *server) use(ctx context.Context, a *account) (int64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Since(a.counted) < recount {
		return a.used, nil
	}
	k, ok := s.keeper()
	if !ok {
		return a.used, nil
	}
	repos, err := s.storage.List(ctx)
	if err != nil {
		return 0, err
	}
	var used int64
	seen := map[digest.Digest]bool{}
	for _, repo := range repos {
		if matchRepo(a.Repos, repo) {
			n, err := k.Usage(ctx, repo, seen)
			if err != nil && !fault.Is(err, fault.NotFound) {
				return 0, err
			}
			used += n
		}
	}
	a.used, a.counted = used, time.Now()
	return used, nil
}

// charge books what was stored.
func (s *server) charge(repo string, size int64) {
	for _, a := range s.accounts {
		if matchRepo(a.Repos, repo) {
			a.mu.Lock()
			a.used += size
			a.mu.Unlock()
		}
	}
}

// ---- the round

// keepHouse applies the retention rules and collects garbage, every so often, until ctx
// ends.
func (s *server) keepHouse(ctx context.Context) {
	k, ok := s.keeper()
	if !ok || s.opt.Collect.Every <= 0 {
		return
	}
	t := time.NewTicker(s.opt.Collect.Every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := s.round(ctx, k, time.Now()); err != nil && ctx.Err() == nil {
			s.metrics.collectFailures.Add(1)
			fmt.Fprintf(s.log, "error collection err=%q\n", err.Error())
		}
	}
}

func (s *server) round(ctx context.Context, k keeper, now time.Time) error {
	if err := s.expire(ctx, k, now); err != nil {
		return err
	}
	grace := s.opt.Collect.Grace
	if grace <= 0 {
		grace = defaultGrace
	}
	blobs, bytes, err := k.Collect(ctx, grace)
	if err != nil {
		return err
	}
	s.metrics.collections.Add(1)
	s.metrics.freedBlobs.Add(int64(blobs))
	s.metrics.freedBytes.Add(bytes)
	if blobs > 0 {
		fmt.Fprintf(s.log, "%s collection blobs=%d bytes=%d\n", now.UTC().Format(time.RFC3339Nano), blobs, bytes)
	}
	return nil
}

// expire removes the tags that no retention rule keeps, and the manifests that only they
// named.
func (s *server) expire(ctx context.Context, k keeper, now time.Time) error {
	if len(s.opt.Keep) == 0 {
		return nil
	}
	repos, err := s.storage.List(ctx)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2)
	for _, repo := range repos {
		g.Go(func() error { return s.expireIn(ctx, k, repo, now) })
	}
	return g.Wait()
}

// aged is a tag with its times.
type aged struct {
	tag            string
	pushed, pulled time.Time
}

func (s *server) expireIn(ctx context.Context, k keeper, repo string, now time.Time) error {
	if !slices.ContainsFunc(s.opt.Keep, func(r Keep) bool { return matchRepo(r.Repos, repo) }) {
		return nil
	}
	names, err := s.storage.Tags(ctx, repo)
	if err != nil {
		return notFoundIsFine(err)
	}
	var tags []aged
	for _, t := range names {
		pushed, pulled, err := k.Times(ctx, repo, t, "")
		if err != nil {
			continue // just removed, or damaged: then a person should look
		}
		tags = append(tags, aged{t, pushed, pulled})
	}
	for _, a := range expired(s.opt.Keep, repo, tags, now) {
		if err := s.expireTag(ctx, k, repo, a); err != nil {
			return err
		}
	}
	return s.expireUntagged(ctx, k, repo, now)
}

func notFoundIsFine(err error) error {
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// expired is the decision alone: which of a repository's tags go.
func expired(rules []Keep, repo string, tags []aged, now time.Time) (gone []aged) {
	slices.SortFunc(tags, func(a, b aged) int { return b.pushed.Compare(a.pushed) })
	kept, touched := map[string]bool{}, map[string]bool{}
	for _, r := range rules {
		if !matchRepo(r.Repos, repo) {
			continue
		}
		n := 0
		for _, t := range tags {
			if !matchTag(r.Tags, t.tag) {
				continue
			}
			n++
			touched[t.tag] = true
			if n <= r.Last || r.Age > 0 && now.Sub(t.pushed) < r.Age || r.Pulled > 0 && now.Sub(t.pulled) < r.Pulled {
				kept[t.tag] = true
			}
		}
	}
	for _, t := range tags {
		if touched[t.tag] && !kept[t.tag] {
			gone = append(gone, t)
		}
	}
	return gone
}

// expireTag removes a tag unless it moved or was read since it was looked at.
func (s *server) expireTag(ctx context.Context, k keeper, repo string, a aged) error {
	unlock := s.names.lock(repo, true)
	defer unlock()
	pushed, pulled, err := k.Times(ctx, repo, a.tag, "")
	if err != nil || !pushed.Equal(a.pushed) || !pulled.Equal(a.pulled) {
		return notFoundIsFine(err)
	}
	if err := s.storage.DeleteTag(ctx, repo, a.tag); err != nil {
		return notFoundIsFine(err)
	}
	s.metrics.expiredTags.Add(1)
	fmt.Fprintf(s.log, "%s retention repository=%q tag=%q\n", time.Now().UTC().Format(time.RFC3339Nano), repo, a.tag)
	return nil
}

// expireUntagged removes the manifests that no tag leads to any more.
func (s *server) expireUntagged(ctx context.Context, k keeper, repo string, now time.Time) error {
	age := time.Duration(0)
	for _, r := range s.opt.Keep {
		if matchRepo(r.Repos, repo) {
			age = max(age, r.Untagged)
		}
	}
	if age == 0 {
		age = untaggedStays
	}
	unlock := s.names.lock(repo, true)
	defer unlock()
	all, err := k.Digests(ctx, repo)
	if err != nil {
		return notFoundIsFine(err)
	}
	led, err := s.ledTo(ctx, repo)
	if err != nil {
		return notFoundIsFine(err)
	}
	for _, d := range all {
		if led[d] {
			continue
		}
		pushed, pulled, err := k.Times(ctx, repo, "", d)
		if err != nil || now.Sub(pushed) < age || now.Sub(pulled) < age {
			continue
		}
		if err := notFoundIsFine(s.deleteDigest(ctx, repo, d)); err != nil {
			return err
		}
	}
	return nil
}

// ledTo are the manifests that the tags of a repository lead to: by themselves, as parts of an
// index, and what refers to any of them.
func (s *server) ledTo(ctx context.Context, repo string) (map[digest.Digest]bool, error) {
	tags, err := s.storage.Tags(ctx, repo)
	if err != nil {
		return nil, err
	}
	led := map[digest.Digest]bool{}
	var visit func(d digest.Digest) error
	visit = func(d digest.Digest) error {
		if led[d] {
			return nil
		}
		led[d] = true
		refs, err := s.storage.Referrers(ctx, repo, d)
		if err != nil {
			return err
		}
		desc, err := s.storage.Manifest(ctx, repo, "", d)
		if err == nil && image.IsIndex(desc.MediaType) {
			doc, err := s.storage.ReadManifest(ctx, repo, desc)
			if err != nil {
				return err
			}
			x, err := image.ParseIndex(doc)
			if err != nil {
				return err
			}
			refs = append(slices.Clone(refs), x.Manifests...)
		}
		for _, r := range refs {
			if err := visit(r.Digest); err != nil {
				return err
			}
		}
		return nil
	}
	for _, t := range tags {
		desc, err := s.storage.Manifest(ctx, repo, t, "")
		if err != nil {
			return nil, err // what it leads to is unknown: nothing goes
		}
		if err := visit(desc.Digest); err != nil {
			return nil, err
		}
	}
	return led, nil
}
