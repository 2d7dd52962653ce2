// What went wrong, in words that end the search: Docker's where scripts read them, and
// what to do next.

package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/weakness"
)

// refusal is an answer of a registry that is not the one asked for.
type refusal struct {
	ep      *endpoint
	status  int
	code    string // of distribution-spec, "" when the body had none
	message string
	wait    time.Duration // Retry-After
	limit   string        // of requests, as the registry tells it
}

// Error is Docker's form: "manifest unknown: manifest unknown".
func (r *refusal) Error() string {
	if r.code == "" {
		return r.message
	}
	return strings.ToLower(strings.ReplaceAll(r.code, "_", " ")) + ": " + r.message
}

// maxErrorBody bounds what is read of an error page.
const maxErrorBody = 64 << 10

// newRefusal reads the error body of resp and closes it.
func newRefusal(ep *endpoint, resp *http.Response) *refusal {
	defer resp.Body.Close()
	r := &refusal{ep: ep, status: resp.StatusCode, wait: retryAfter(resp.Header), limit: requestLimit(resp.Header)}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	var doc struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
		Details string `json:"details"` // of Docker Hub's token service
	}
	err := json.Unmarshal(body, &doc)
	switch {
	case err == nil && len(doc.Errors) > 0:
		r.code, r.message = printable(doc.Errors[0].Code), printable(doc.Errors[0].Message)
	case err == nil && doc.Details != "":
		r.message = printable(doc.Details)
	case len(body) == 0:
		r.message = fmt.Sprintf("HTTP status %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	case err != nil:
		r.message = fmt.Sprintf("error parsing HTTP %d response body: %v: %q", resp.StatusCode, err, printable(string(body)))
	default:
		r.message = fmt.Sprintf("HTTP status %d: %s", resp.StatusCode, printable(string(body)))
	}
	return r
}

// printable makes text from outside safe to print: one line, no control or bidi
// characters, not endless (security.md IM9).
func printable(s string) string {
	const most = 500
	if weakness.Of("IM9") {
		return s
	}
	if len(s) > most {
		s = s[:most] + "..."
	}
	s = strings.Map(func(c rune) rune {
		switch {
		case c == '\n' || c == '\t' || c == '\r':
			return ' '
		case unicode.IsControl(c) || unicode.Is(unicode.Cf, c) || c == unicode.ReplacementChar:
			return '?'
		}
		return c
	}, s)
	return strings.TrimSpace(s)
}

// name is the registry as the user knows it.
func (ep *endpoint) name() string { return ep.host }

// unreachable words an error of the transport.
func (ep *endpoint) unreachable(err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	hint := ""
	var dns *net.DNSError
	var unknown x509.UnknownAuthorityError
	var noTLS tls.RecordHeaderError
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		hint = "; is it running?"
	case errors.As(err, &dns):
		hint = "; is the name right?"
	case errors.As(err, &unknown):
		hint = fmt.Sprintf("; put its authority in /etc/docker/certs.d/%s/ca.crt", ep.name())
	case errors.As(err, &noTLS), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		hint = "; it speaks plain HTTP: allow that with insecure = true in /etc/containers/registries.conf"
	}
	return fault.Unavailablef("cannot reach registry %s: %w%s", ep.name(), err, hint)
}

// account tells as whom the registry was asked, and what else could be tried.
func (r *refusal) account() string {
	user, note := r.ep.auth.account()
	login := "docker login"
	if r.ep.host != image.DefaultRegistry {
		login += " " + r.ep.host
	}
	switch {
	case note != "":
		return "; " + note
	case user != "":
		return fmt.Sprintf("; registry %s was asked as user %q: use %q for another account", r.ep.name(), user, login)
	}
	return fmt.Sprintf("; registry %s was asked without an account: %q may help", r.ep.name(), login)
}

func (r *refusal) denied() bool {
	return r.status == http.StatusUnauthorized || r.status == http.StatusForbidden ||
		slices.Contains([]string{"DENIED", "UNAUTHORIZED"}, r.code)
}

// pullError words a refusal to give an image.
func pullError(ref image.Reference, err error) error {
	var r *refusal
	if !errors.As(err, &r) {
		return err
	}
	switch {
	case r.code == "MANIFEST_UNKNOWN":
		return fault.NotFoundf("manifest for %s not found: %w", ref.Familiar(), r)
	case r.code == "NAME_UNKNOWN":
		return fault.NotFoundf("repository %s not found: %w", ref.FamiliarName(), r)
	case r.denied():
		return fault.Deniedf("pull access denied for %s, repository does not exist or may require 'docker login': %w%s",
			ref.FamiliarName(), r, r.account())
	case r.status == http.StatusNotFound:
		return fault.NotFoundf("manifest for %s not found: %w", ref.Familiar(), r)
	}
	return r.other("pull " + ref.Familiar())
}

// pushError words a refusal to take one.
func pushError(ref image.Reference, err error) error {
	var r *refusal
	if !errors.As(err, &r) {
		return err
	}
	switch {
	case r.denied():
		return fault.Deniedf("push access to %s: %w%s", ref.FamiliarName(), r, r.account())
	case r.status == http.StatusMethodNotAllowed:
		return fault.Deniedf("registry %s takes no pushes: %w", r.ep.name(), r)
	case r.status == http.StatusNotFound:
		return fault.NotFoundf("push %s: %w", ref.Familiar(), r)
	}
	return r.other("push " + ref.Familiar())
}

func (r *refusal) other(act string) error {
	switch {
	case r.status == http.StatusTooManyRequests:
		again := "later"
		if r.wait > 0 {
			again = "in " + r.wait.Round(time.Second).String()
		}
		return fault.Unavailablef("%s: registry %s limits requests%s: %w; try again %s, log in, or use a mirror (registries.conf)%s", act, r.ep.name(), r.limit, r, again, r.account())
	case r.status >= 500:
		return fault.Unavailablef("%s: registry %s answers with status %d: %w", act, r.ep.name(), r.status, r)
	case r.status >= 400:
		return fault.Invalidf("%s: registry %s refuses: %w", act, r.ep.name(), r)
	}
	return fmt.Errorf("%s: registry %s: unexpected status %d: %w", act, r.ep.name(), r.status, r)
}

// requestLimit reads "RateLimit-Limit: 100;w=21600", as Docker Hub sends it, to " (100 in 6h0m0s)".
func requestLimit(h http.Header) string {
	number, params, _ := strings.Cut(h.Get("RateLimit-Limit"), ";")
	n, err := strconv.ParseUint(strings.TrimSpace(number), 10, 32)
	if err != nil {
		return ""
	}
	window, ok := strings.CutPrefix(strings.TrimSpace(params), "w=")
	s, err := strconv.ParseUint(window, 10, 31)
	if !ok || err != nil {
		return fmt.Sprintf(" (%d)", n)
	}
	return fmt.Sprintf(" (%d in %v)", n, time.Duration(s)*time.Second)
}

// searchFor bounds how long an error is kept back to find out more.
const searchFor = 5 * time.Second

// searched adds to an error about a missing tag what the registry has instead. cause is the
// registry's own answer.
func (c *Client) searched(ctx context.Context, ref image.Reference, err, cause error) error {
	var r *refusal
	if ref.Digest != "" || !errors.As(cause, &r) || r.status != http.StatusNotFound || r.code == "NAME_UNKNOWN" {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, searchFor)
	defer cancel()
	tags, lerr := c.tags(ctx, ref)
	switch {
	case errors.As(lerr, &r) && r.code == "NAME_UNKNOWN":
		return fmt.Errorf("%w; registry %s has no repository %s", err, r.ep.name(), ref.Repository)
	case lerr != nil:
		return err
	case len(tags) == 0:
		return fmt.Errorf("%w; repository %s has no tags", err, ref.FamiliarName())
	case len(tags) == 1:
		return fmt.Errorf("%w; repository %s has one tag, %s", err, ref.FamiliarName(), tags[0])
	}
	near := nearest(ref.Tag, tags)
	if len(near) == len(tags) {
		return fmt.Errorf("%w; repository %s has the tags %s", err, ref.FamiliarName(), strings.Join(near, ", "))
	}
	return fmt.Errorf("%w; of the %d tags of repository %s the nearest are %s", err, len(tags), ref.FamiliarName(), strings.Join(near, ", "))
}

// nearest are up to three tags that take the fewest changes to become what was asked for.
func nearest(want string, tags []string) []string {
	type scored struct {
		tag  string
		cost int
	}
	all := make([]scored, len(tags))
	for i, t := range tags {
		all[i] = scored{t, changes(want, t)}
	}
	slices.SortStableFunc(all, func(a, b scored) int { return a.cost - b.cost })
	var near []string
	for _, s := range all[:min(3, len(all))] {
		near = append(near, s.tag)
	}
	return near
}

// changes is Levenshtein's distance.
func changes(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
