// Bearer tokens of our own, for clients that speak Docker's token protocol
// (distribution: docs/spec/auth/token.md, oauth.md):
//
//	GET  /v2/...                      401  WWW-Authenticate: Bearer realm="<us>/token",service=,scope=
//	GET  /token?service=&scope=       [Basic user:password]   200 {"token": "...", "expires_in": 300}
//	POST /token grant_type=password   the same with a form
//	GET  /v2/...  Authorization: Bearer <token>
//
// Only we sign and only we verify, so a token has one header, byte for byte: there is
// no algorithm to choose and no key to bring along (alg=none, jwk, x5c, kid: security.md RS3).
// What a token says narrows the rules and never widens them.

package registry

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"keg/internal/fault"
)

// TokenOptions switch tokens on.
type TokenOptions struct {
	// Realm is the address of the token endpoint as clients see it; "" is /token at the
	// host that the client has asked.
	Realm   string
	Service string        // what tokens are for; "" = "keg-registry"
	Key     string        // file with at least 32 secret bytes, made when missing; "" = a key that dies with the server
	Life    time.Duration // 0 = 5 minutes
}

const (
	tokenLife     = 5 * time.Minute
	tokenService  = "keg-registry"
	maxTokenBytes = 16 << 10
	maxScopes     = 64
	clockSkew     = 30 * time.Second
)

// issuer signs tokens and knows its own.
type issuer struct {
	realm, service string
	life           time.Duration
	key            []byte
	header         string // of every token
	now            func() time.Time
}

// claims are what a token says.
type claims struct {
	Issuer   string  `json:"iss"`
	Subject  string  `json:"sub"`
	Audience string  `json:"aud"`
	Expires  int64   `json:"exp"`
	Begins   int64   `json:"nbf"`
	Issued   int64   `json:"iat"`
	ID       string  `json:"jti"`
	Access   []scope `json:"access"`
}

type scope struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

func newIssuer(o TokenOptions) (*issuer, error) {
	i := &issuer{realm: o.Realm, service: o.Service, life: o.Life, now: time.Now}
	if i.service == "" {
		i.service = tokenService
	}
	if i.life <= 0 {
		i.life = tokenLife
	}
	var err error
	if i.key, err = tokenKey(o.Key); err != nil {
		return nil, err
	}
	kid := sha256.Sum256(append([]byte("keg registry token key\x00"), i.key...))
	i.header = encode64([]byte(`{"alg":"HS256","typ":"JWT","kid":"` + encode64(kid[:12]) + `"}`))
	return i, nil
}

// tokenKey reads the key, or makes one where there is none. Servers that share a file know
// each other's tokens.
func tokenKey(file string) ([]byte, error) {
	fresh := make([]byte, 32)
	rand.Read(fresh)
	if file == "" {
		return fresh, nil
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		_, err = f.Write(fresh)
		return fresh, errors.Join(err, f.Close())
	}
	if !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("token key: %w", err)
	}
	st, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("token key: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fault.Invalidf("token key %s can be read by others than its owner: chmod 600 it", file)
	}
	key, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("token key: %w", err)
	}
	if len(key) < 32 {
		return nil, fault.Invalidf("token key %s has %d bytes; at least 32 are needed", file, len(key))
	}
	return key, nil
}

func encode64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func (i *issuer) mac(s string) []byte {
	m := hmac.New(sha256.New, i.key)
	m.Write([]byte(s))
	return m.Sum(nil)
}

// sign makes a token for a user ("": nobody) and what was granted.
func (i *issuer) sign(user string, access []scope) (string, error) {
	now := i.now()
	c := claims{i.service, user, i.service, now.Add(i.life).Unix(), now.Add(-clockSkew).Unix(), now.Unix(), rand.Text(), access}
	body, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	s := i.header + "." + encode64(body)
	return s + "." + encode64(i.mac(s)), nil
}

// verify looks at the signature before it reads anything.
func (i *issuer) verify(token string) (*claims, bool) {
	dot := strings.LastIndexByte(token, '.')
	if len(token) > maxTokenBytes || dot < 0 || !strings.HasPrefix(token, i.header+".") {
		return nil, false
	}
	sum, err := base64.RawURLEncoding.Strict().DecodeString(token[dot+1:])
	if err != nil || !hmac.Equal(sum, i.mac(token[:dot])) {
		return nil, false
	}
	body, err := base64.RawURLEncoding.DecodeString(token[len(i.header)+1 : dot])
	if err != nil {
		return nil, false
	}
	var c claims
	if json.Unmarshal(body, &c) != nil {
		return nil, false
	}
	now := i.now().Unix()
	return &c, c.Audience == i.service && c.Issuer == i.service && c.Begins <= now && now < c.Expires
}

// rights that a token carries for a repository.
func (c *claims) rights(repo string) (r Right) {
	for _, a := range c.Access {
		if a.Type == "repository" && a.Name == repo {
			for _, act := range a.Actions {
				for _, n := range rightNames[:3] {
					if n.name == act {
						r |= n.right
					}
				}
			}
		}
	}
	return r
}

// realmFor is where a client gets a token: at the host it has asked, unless the
// configuration says otherwise. A host that could not stand in a URL is not repeated.
func (i *issuer) realmFor(r *http.Request) string {
	if i.realm != "" {
		return i.realm
	}
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	host := r.Host
	if strings.ContainsFunc(host, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune(".-:[]", c))
	}) {
		host = "localhost"
	}
	return scheme + "://" + host + "/token"
}

// token answers the token endpoint.
func (s *server) token(r *request) error {
	user, scopes, ok, err := s.applicant(r)
	if err != nil {
		return err
	}
	if !ok || user == "" && !s.anonymous() {
		r.w.Header().Set("WWW-Authenticate", `Basic realm="keg registry", charset="UTF-8"`)
		return apiError{http.StatusUnauthorized, "UNAUTHORIZED", "authentication required", nil}
	}
	r.user = user
	if len(scopes) > maxScopes {
		return apiError{http.StatusBadRequest, "UNSUPPORTED", "too many scopes", nil}
	}
	token, err := s.tokens.sign(user, s.granted(user, scopes))
	if err != nil {
		return err
	}
	r.w.Header().Set("Cache-Control", "no-store")
	return writeJSON(r, "application/json", struct {
		Token   string    `json:"token"`
		Access  string    `json:"access_token"`
		Expires int       `json:"expires_in"`
		Issued  time.Time `json:"issued_at"`
	}{token, token, int(s.tokens.life.Seconds()), s.tokens.now().UTC()})
}

// applicant is who asks for a token, and what for.
func (s *server) applicant(r *request) (user string, scopes []string, ok bool, err error) {
	form := r.URL.Query()
	if r.Method == http.MethodPost {
		r.Body = http.MaxBytesReader(r.w, r.Body, maxTokenBytes)
		if err := r.ParseForm(); err != nil {
			return "", nil, false, apiError{http.StatusBadRequest, "UNSUPPORTED", "malformed form", nil}
		}
		if form = r.PostForm; form.Get("grant_type") != "password" {
			return "", nil, false, apiError{http.StatusBadRequest, "UNSUPPORTED", "grant_type must be password", nil}
		}
		r.Request = r.Clone(r.Context())
		r.SetBasicAuth(form.Get("username"), form.Get("password"))
	}
	for _, v := range form["scope"] {
		scopes = append(scopes, strings.Fields(v)...)
	}
	if r.Header.Get("Authorization") == "" {
		return "", scopes, true, nil
	}
	user, ok, err = s.users.authenticate(r.Request)
	return user, scopes, ok && user != "", err
}

// granted are the parts of what was asked for that the rules give.
func (s *server) granted(user string, scopes []string) []scope {
	access := []scope{}
	for _, text := range scopes {
		kind, rest, _ := strings.Cut(text, ":")
		i := strings.LastIndexByte(rest, ':')
		if kind != "repository" || i < 0 || !validRepository(rest[:i]) {
			continue
		}
		have := s.rights(user, rest[:i])
		var acts []string
		for _, n := range rightNames[:3] {
			asked := strings.Split(rest[i+1:], ",")
			if have&n.right == n.right && (slices.Contains(asked, n.name) || slices.Contains(asked, "*")) {
				acts = append(acts, n.name)
			}
		}
		if len(acts) > 0 {
			access = append(access, scope{kind, rest[:i], acts})
		}
	}
	return access
}
