// One request: asked again after a 401 with a token, after a hiccup with patience, and
// somewhere else after a redirect, where nothing secret goes along.

package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"syscall"
	"time"

	"keg/internal/fault"
	"keg/internal/weakness"
)

// call is what to ask of an endpoint.
type call struct {
	method string
	path   string   // below the endpoint's root, with query
	url    *url.URL // instead of path: a location that the registry gave
	header http.Header
	body   func() (io.ReadCloser, error) // opened again for each attempt
	size   int64
	scopes []string // what a token must allow
	want   []int    // statuses that are an answer
	once   bool     // the caller tries again by itself
}

const maxRedirects = 10

// do sends a call until it is answered. The caller closes the body. The error is a *refusal when
// the registry answered otherwise.
func (ep *endpoint) do(ctx context.Context, c call) (*http.Response, error) {
	for e := ep.c.patient.effort(); ; {
		resp, err := ep.attempt(ctx, c)
		if err == nil && slices.Contains(c.want, resp.StatusCode) {
			return resp, nil
		}
		if err == nil {
			err = newRefusal(ep, resp)
		}
		if c.once {
			return nil, err
		}
		if err := e.again(ctx, err); err != nil {
			return nil, err
		}
	}
}

// effort is what was spent on one thing that is wanted.
type effort struct {
	patience
	tries, costly int
}

func (p patience) effort() *effort { return &effort{patience: p} }

// costlyTries is how often something is tried that has cost the stall time each time.
const costlyTries = 3

// spent counts a failure and reports whether patience is at its end.
func (e *effort) spent(err error) bool {
	e.tries++
	if errors.Is(err, errStalled) {
		e.costly++
	}
	return e.tries >= e.attempts || e.costly >= costlyTries
}

// anew forgets failures: there was progress.
func (e *effort) anew() { e.tries, e.costly = 0, 0 }

// pause is how long to wait before the next try.
func (e *effort) pause() time.Duration { return jitter(min(e.backoff<<(e.tries-1), maxBackoff)) }

const maxBackoff = 5 * time.Second

// again waits before the next try, at least as long as the registry asks for. When there
// should be none it returns err, the last one's.
func (e *effort) again(ctx context.Context, err error) error {
	var wait time.Duration
	var r *refusal
	if errors.As(err, &r) {
		wait = r.wait
	}
	if e.spent(err) || !worthRetry(ctx, err) || wait > e.longest {
		return err
	}
	return sleep(ctx, max(wait, e.pause()))
}

// jitter keeps many clients from coming back at the same moment.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

// worthRetry tells trouble that passes from an answer. A port that nobody listens on is an answer.
func worthRetry(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return false
	}
	var r *refusal
	if errors.As(err, &r) {
		switch r.status {
		case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
			http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return true
		}
		return false
	}
	var cut *transportError
	return (errors.As(err, &cut) || errors.Is(err, errDamaged)) && !settled(err)
}

// settled errors of the way stay the same in the next second.
func settled(err error) bool {
	var cert *tls.CertificateVerificationError
	var noTLS tls.RecordHeaderError
	var dns *net.DNSError
	return errors.Is(err, syscall.ECONNREFUSED) || errors.As(err, &cert) || errors.As(err, &noTLS) ||
		errors.As(err, &dns) && dns.IsNotFound
}

// transportError marks an error of the way, not of the answer.
type transportError struct{ err error }

func (t *transportError) Error() string { return t.err.Error() }
func (t *transportError) Unwrap() error { return t.err }

// retryAfter reads seconds or a date.
func retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if s, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(s) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(t))
	}
	return 0
}

// attempt is one try: with what we know, and once more after a 401 told what is missing.
func (ep *endpoint) attempt(ctx context.Context, c call) (*http.Response, error) {
	target, root, err := ep.target(ctx, c)
	if err != nil {
		return nil, err
	}
	if !sameOrigin(target, root) {
		return ep.follow(ctx, c, target, "", root)
	}
	sent, err := ep.auth.header(ctx, ep, c.scopes)
	if err != nil {
		return nil, err
	}
	resp, err := ep.follow(ctx, c, target, sent, root)
	if err != nil || resp.StatusCode != http.StatusUnauthorized || !sameOrigin(resp.Request.URL, root) {
		return resp, err
	}
	now, err := ep.auth.challenged(ctx, ep, resp, c.scopes, sent)
	if err != nil || now == "" {
		if err != nil {
			resp.Body.Close()
			return nil, err
		}
		return resp, nil
	}
	resp.Body.Close()
	return ep.follow(ctx, c, target, now, root)
}

func (ep *endpoint) target(ctx context.Context, c call) (target, root *url.URL, err error) {
	if root, err = ep.base(ctx); err != nil {
		return nil, nil, err
	}
	if c.url != nil {
		target = c.url
	} else if target, err = root.Parse(c.path); err != nil {
		return nil, nil, err
	}
	return target, root, allowedHop(root, target)
}

// allowedHop: http and https only, and never from https to http.
func allowedHop(from, to *url.URL) error {
	if weakness.Of("RC2") {
		return nil
	}
	if to.Scheme != "https" && to.Scheme != "http" || to.Host == "" {
		return fault.Deniedf("registry %s leads to %q, which is neither https nor http", from.Host, printable(to.Redacted()))
	}
	if from.Scheme == "https" && to.Scheme == "http" {
		return fault.Deniedf("registry %s leads from https to %q, in the clear", from.Host, printable(to.Redacted()))
	}
	return nil
}

// follow goes through redirects. auth goes along only as long as the origin stays.
func (ep *endpoint) follow(ctx context.Context, c call, target *url.URL, auth string, root *url.URL) (*http.Response, error) {
	for range maxRedirects + 1 {
		if !sameOrigin(target, root) && !weakness.Of("RC1") {
			auth = "" // and it stays away if a later hop leads back
		}
		resp, err := ep.roundTrip(ctx, c, target, auth)
		if err != nil {
			return nil, err
		}
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther:
			if c.method != http.MethodGet && c.method != http.MethodHead {
				return resp, nil
			}
		case http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			return resp, nil
		}
		next, err := resp.Location()
		resp.Body.Close()
		if err != nil {
			return nil, fmt.Errorf("registry %s redirects to nowhere: %w", ep.name(), err)
		}
		if err := allowedHop(target, next); err != nil {
			return nil, err
		}
		target = next
	}
	return nil, fault.Unavailablef("registry %s redirects more than %d times", ep.name(), maxRedirects)
}

// roundTrip sends one HTTP request. Reads must answer within the stall time.
func (ep *endpoint) roundTrip(ctx context.Context, c call, target *url.URL, auth string) (*http.Response, error) {
	tr, err := ep.transportFor(target)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, c.method, target.String(), nil)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	if c.header != nil {
		req.Header = c.header.Clone()
	}
	req.Header.Set("User-Agent", ep.c.cfg.UserAgent)
	if auth != "" {
		req.Header.Set("Authorization", auth)
	}
	if c.body != nil {
		if req.Body, err = c.body(); err != nil {
			cancel(nil)
			return nil, err
		}
		req.ContentLength = c.size
		if c.size == 0 {
			req.Body.Close()
			req.Body = http.NoBody
		}
	}
	var timer *time.Timer
	if c.body == nil {
		timer = time.AfterFunc(ep.c.patient.stall, func() { cancel(errStalled) })
	}
	resp, err := tr.RoundTrip(req)
	if timer != nil {
		timer.Stop()
	}
	if err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, errStalled) {
			err = cause
		}
		cancel(nil)
		return nil, &transportError{ep.unreachable(err)}
	}
	resp.Body = &cancelled{resp.Body, cancel}
	return resp, nil
}

var (
	errStalled = errors.New("no answer in time")
	errDamaged = errors.New("damaged on its way")
)

// damaged is an answer that is not what it should be, perhaps for once: something between us and the
// registry cuts or mixes answers.
type damaged struct{ err error }

func (d *damaged) Error() string        { return d.err.Error() }
func (d *damaged) Unwrap() error        { return d.err }
func (d *damaged) Is(target error) bool { return target == errDamaged }

// document asks for a document until it comes whole. good looks at it; its errors are reasons to ask again
// when they are errDamaged.
func (p place) document(ctx context.Context, c call, limit int64, good func(resp *http.Response, doc []byte) error) ([]byte, error) {
	for e := p.c.patient.effort(); ; {
		doc, err := p.documentOnce(ctx, c, limit, good)
		var cut *transportError
		if err == nil || c.once || !errors.As(err, &cut) && !errors.Is(err, errDamaged) {
			return doc, err
		}
		if err := e.again(ctx, err); err != nil {
			return nil, err
		}
	}
}

func (p place) documentOnce(ctx context.Context, c call, limit int64, good func(*http.Response, []byte) error) ([]byte, error) {
	resp, err := p.do(ctx, c)
	if err != nil {
		var cut *transportError
		if errors.As(err, &cut) {
			err = cut.err // do has been patient already
		}
		return nil, err
	}
	defer resp.Body.Close()
	doc, err := readDocument(p.endpoint, resp, limit)
	if err != nil {
		return nil, err
	}
	return doc, good(resp, doc)
}

// cancelled ends the request with its body.
type cancelled struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

func (c *cancelled) Close() error {
	err := c.ReadCloser.Close()
	c.cancel(nil)
	return err
}

// transportFor is the endpoint's own transport for its own host; another host is not covered by
// this one's certificates, nor by its being insecure.
func (ep *endpoint) transportFor(u *url.URL) (http.RoundTripper, error) {
	if u.Host == ep.dialHost() {
		return ep.connect()
	}
	return ep.c.endpoint(u.Host, false).connect()
}
