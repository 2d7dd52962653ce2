// Logging in at a registry: after a 401, with what its challenge asks for. A token is kept for
// the endpoint and the scope that it was given for. A password or refresh token goes to
// the registry itself or to a token service that belongs to it (security.md RC1).

package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/publicsuffix"

	"keg/internal/fault"
)

// authState is what an endpoint has asked of us and given us.
type authState struct {
	mu        sync.Mutex // held over a login, so that parallel requests wait for one token
	challenge challenge  // of the last 401
	asked     bool       // creds were looked up
	creds     Credentials
	note      string // why creds were not used
	tokens    map[string]token
}

type token struct {
	value string
	until time.Time
}

// challenge is one WWW-Authenticate.
type challenge struct {
	scheme string // lower case
	params map[string]string
}

// account returns the user as whom we ask, and a note if saved credentials could not be
// used.
func (a *authState) account() (user, note string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.note != "" {
		return "", a.note
	}
	if a.creds.Username == "" && a.creds.IdentityToken != "" {
		return "(identity token)", ""
	}
	return a.creds.Username, ""
}

// header is what a request carries from the start: nothing before the first challenge.
func (a *authState) header(ctx context.Context, ep *endpoint, scopes []string) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.challenge.scheme == "" {
		return "", nil
	}
	return a.authorize(ctx, ep, scopes, "")
}

// challenged answers a 401. sent is what the refused request carried: when it would be the same again,
// the answer is "" and the 401 stands.
func (a *authState) challenged(ctx context.Context, ep *endpoint, resp *http.Response, scopes []string, sent string) (string, error) {
	ch := pick(parseChallenges(resp.Header.Values("WWW-Authenticate")))
	if ch.scheme == "" {
		return "", nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.challenge = ch
	now, err := a.authorize(ctx, ep, scopes, sent)
	if now == sent {
		return "", err
	}
	return now, err
}

// authorize makes the Authorization header. refused is a header that was of no use.
func (a *authState) authorize(ctx context.Context, ep *endpoint, scopes []string, refused string) (string, error) {
	if !a.asked {
		a.asked = true
		var err error
		if a.creds, err = ep.c.Stored(ctx, ep.host); err != nil {
			a.note = err.Error() // anonymous may do
		}
	}
	if a.challenge.scheme == "basic" {
		if a.creds.Username == "" {
			return "", nil
		}
		return basicAuth(a.creds), nil
	}
	key := strings.Join(scopes, " ")
	if t, ok := a.tokens[key]; ok && time.Now().Before(t.until) && "Bearer "+t.value != refused {
		return "Bearer " + t.value, nil
	}
	t, _, err := a.fetch(ctx, ep, scopes, a.creds, false)
	if err != nil {
		return "", err
	}
	if a.tokens == nil {
		a.tokens = map[string]token{}
	}
	a.tokens[key] = t
	return "Bearer " + t.value, nil
}

func basicAuth(c Credentials) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+c.Password))
}

// clientID names us to token services that speak OAuth2.
const clientID = "keg"

// fetch gets a token of the challenge's service: by OAuth2 for an identity token, else as
// distribution's token protocol does, with basic auth or anonymously. With offline it
// asks for a refresh token, too.
func (a *authState) fetch(ctx context.Context, ep *endpoint, scopes []string, cr Credentials, offline bool) (t token, refresh string, err error) {
	realm, err := a.realm(ctx, ep)
	if err != nil {
		return token{}, "", err
	}
	if cr != (Credentials{}) && !ep.c.trusts(ep, realm) {
		a.note = fmt.Sprintf("the account of registry %s was not used, since its tokens come from %s, which is another site: \"docker login %s\" trusts that",
			ep.host, realm.Host, ep.host)
		cr = Credentials{}
	}
	form := url.Values{}
	if s := a.challenge.params["service"]; s != "" {
		form.Set("service", s)
	}
	for _, s := range scopes {
		form.Add("scope", s)
	}
	c := call{method: http.MethodGet, want: []int{http.StatusOK}, header: http.Header{}}
	auth := ""
	if cr.IdentityToken != "" {
		form.Set("scope", strings.Join(scopes, " "))
		form.Set("grant_type", "refresh_token")
		form.Set("refresh_token", cr.IdentityToken)
		form.Set("client_id", clientID)
		body := form.Encode()
		c.method, c.size = http.MethodPost, int64(len(body))
		c.body = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(body)), nil }
		c.header.Set("Content-Type", "application/x-www-form-urlencoded")
	} else {
		if cr.Username != "" {
			form.Set("account", cr.Username)
			auth = basicAuth(cr)
		}
		if offline {
			form.Set("offline_token", "true")
			form.Set("client_id", clientID)
		}
		q := realm.Query()
		for k, vs := range form {
			q[k] = vs
		}
		realm.RawQuery = q.Encode()
	}
	return ep.requestToken(ctx, c, realm, auth)
}

// requestToken sends the request with patience. Redirects are not followed with secrets.
func (ep *endpoint) requestToken(ctx context.Context, c call, realm *url.URL, auth string) (token, string, error) {
	for e := ep.c.patient.effort(); ; {
		resp, err := ep.roundTrip(ctx, c, realm, auth)
		if err == nil && resp.StatusCode == http.StatusOK {
			var t token
			var refresh string
			if t, refresh, err = readToken(ep, resp); err == nil {
				return t, refresh, nil
			}
		} else if err == nil {
			err = newRefusal(ep, resp)
		}
		if err := e.again(ctx, err); err != nil {
			return token{}, "", err
		}
	}
}

const (
	maxToken      = 1 << 20
	tokenLifetime = time.Minute      // when the service does not tell (token.md "expires_in")
	tokenMargin   = 10 * time.Second // for clocks and the way
)

func readToken(ep *endpoint, resp *http.Response) (token, string, error) {
	defer resp.Body.Close()
	var doc struct {
		Token        string `json:"token"`
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token"`
		ExpiresIn    int    `json:"expires_in"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxToken)).Decode(&doc); err != nil {
		return token{}, "", &damaged{fault.Unavailablef("token service of registry %s: %w", ep.name(), err)}
	}
	t := token{value: doc.Token}
	if t.value == "" {
		t.value = doc.AccessToken
	}
	if t.value == "" || strings.ContainsAny(t.value, "\r\n") {
		return token{}, "", fault.Unavailablef("token service of registry %s gave no token", ep.name())
	}
	life := tokenLifetime
	if doc.ExpiresIn > 0 {
		life = time.Duration(min(doc.ExpiresIn, 24*3600)) * time.Second
	}
	t.until = time.Now().Add(max(life-tokenMargin, life/2))
	return t, doc.RefreshToken, nil
}

// realm is where tokens come from: https, or http where the registry itself is spoken to in
// the clear and the realm is as near.
func (a *authState) realm(ctx context.Context, ep *endpoint) (*url.URL, error) {
	root, err := ep.base(ctx)
	if err != nil {
		return nil, err
	}
	realm, err := url.Parse(a.challenge.params["realm"])
	if err != nil {
		return nil, fault.Deniedf("registry %s names no token service", ep.name())
	}
	if realm.Host == "" || realm.User != nil {
		return nil, fault.Deniedf("registry %s names no token service that makes sense: %q", ep.name(), printable(realm.Redacted()))
	}
	near := root.Scheme == "http" && (realm.Hostname() == root.Hostname() || isLoopback(realm.Hostname()))
	if realm.Scheme != "https" && !(realm.Scheme == "http" && near) {
		return nil, fault.Deniedf("registry %s sends for a token to %q, which is not https", ep.name(), printable(realm.Redacted()))
	}
	return realm, nil
}

// trusts reports whether credentials of ep may go to realm: the same host, the same site
// (docker.io and auth.docker.io), or a realm that a login has confirmed.
func (c *Client) trusts(ep *endpoint, realm *url.URL) bool {
	a, b := strings.ToLower(hostname(ep.dialHost())), strings.ToLower(realm.Hostname())
	if a == b {
		return true
	}
	siteA, errA := publicsuffix.EffectiveTLDPlusOne(a)
	siteB, errB := publicsuffix.EffectiveTLDPlusOne(b)
	if errA == nil && errB == nil && siteA == siteB && !isAddress(a) && !isAddress(b) {
		return true
	}
	return c.pinnedRealm(ep.host) == realm.Scheme+"://"+realm.Host
}

// pick chooses the challenge to answer: a token before a password.
func pick(chs []challenge) (best challenge) {
	for _, ch := range chs {
		if ch.scheme == "bearer" {
			return ch
		}
		if ch.scheme == "basic" {
			best = ch
		}
	}
	return best
}

// parseChallenges reads WWW-Authenticate headers (RFC 9110 11.6.1); each may hold several
// challenges.
func parseChallenges(headers []string) (chs []challenge) {
	for _, h := range headers {
		for h != "" {
			var word string
			word, h = cutToken(h)
			if word == "" {
				h = h[1:] // not a token: skip what we do not understand
				continue
			}
			if rest, isParam := strings.CutPrefix(strings.TrimLeft(h, " \t"), "="); isParam && len(chs) > 0 {
				var v string
				v, h = cutValue(strings.TrimLeft(rest, " \t"))
				chs[len(chs)-1].params[strings.ToLower(word)] = v
				continue
			}
			chs = append(chs, challenge{strings.ToLower(word), map[string]string{}})
		}
	}
	return chs
}

func cutToken(s string) (tok, rest string) {
	s = strings.TrimLeft(s, " \t,")
	if s == "" {
		return "", " "
	}
	i := strings.IndexAny(s, " \t,=\"")
	if i < 0 {
		return s, ""
	}
	return s[:i], s[i:]
}

func cutValue(s string) (v, rest string) {
	if !strings.HasPrefix(s, `"`) {
		i := strings.IndexAny(s, " \t,")
		if i < 0 {
			return s, ""
		}
		return s[:i], s[i:]
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:]
		case '\\':
			if i++; i == len(s) {
				return b.String(), ""
			}
		}
		b.WriteByte(s[i])
	}
	return b.String(), ""
}
