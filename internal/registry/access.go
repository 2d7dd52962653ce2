// Who may do what: a list of rules, asked in one place (allowed, below). A right that no
// rule gives is not there.

package registry

import (
	"net/http"
	"path"
	"slices"
	"strings"

	"keg/internal/fault"
	"keg/internal/weakness"
)

// Right is what a rule gives; rights add up.
type Right uint8

// Push contains Pull: a client reads what it is about to write.
const (
	Pull   Right = 1 << iota
	Push         // and Pull
	Delete       // and Pull
)

var rightNames = [...]struct {
	name  string
	right Right
}{{"pull", Pull}, {"push", Push | Pull}, {"delete", Delete | Pull}, {"all", Push | Delete | Pull}}

// Rule gives rights on the repositories that a pattern means to anyone, to all users or
// to some of them. "team/web" is one repository, "*" stands for one component of a name or a
// part of it, "**" at the end for any number of components.
type Rule struct {
	Repos  string
	Who    []string // user names; Anyone, AnyUser
	Rights Right
}

// Groups that a Rule may name beside users.
const (
	Anyone  = "anyone"
	AnyUser = "users"
)

// matchRepo reports whether a pattern means a repository.
func matchRepo(pattern, repo string) bool {
	if pattern == "**" {
		return true
	}
	if under, ok := strings.CutSuffix(pattern, "/**"); ok {
		n := strings.Count(under, "/") + 1
		parts := strings.SplitN(repo, "/", n+1)
		return len(parts) == n+1 && matchRepo(under, strings.Join(parts[:n], "/"))
	}
	ok, err := path.Match(pattern, repo)
	return ok && err == nil
}

// checkPattern refuses what would never match, and "**" where it is just "*".
func checkPattern(pattern string) error {
	body := strings.TrimSuffix(pattern, "/**")
	if pattern != "**" && strings.Contains(body, "**") || pattern == "" || strings.HasPrefix(pattern, "/") {
		return fault.Invalidf(`invalid repository pattern %q: want a name, with "*" for a part of it and "/**" at its end for all below`, pattern)
	}
	if _, err := path.Match(body, "x"); err != nil {
		return fault.Invalidf("invalid repository pattern %q: %w", pattern, err)
	}
	return nil
}

// caller is who sends a request.
type caller struct {
	user  string // "" is nobody in particular
	token *claims
}

// rights of a user on a repository, from the rules alone.
func (s *server) rights(user, repo string) (r Right) {
	if len(s.opt.Rules) == 0 {
		if user != "" || s.opt.Htpasswd == "" {
			r = Pull | Push | Delete
		}
		return r
	}
	for _, rule := range s.opt.Rules {
		if !matchRepo(rule.Repos, repo) {
			continue
		}
		if slices.Contains(rule.Who, Anyone) || user != "" && (slices.Contains(rule.Who, AnyUser) || slices.Contains(rule.Who, user)) {
			r |= rule.Rights
		}
	}
	return r
}

// anonymous reports whether anybody without a name has any right at all.
func (s *server) anonymous() bool {
	if len(s.opt.Rules) == 0 {
		return s.opt.Htpasswd == ""
	}
	return slices.ContainsFunc(s.opt.Rules, func(r Rule) bool { return slices.Contains(r.Who, Anyone) })
}

// may reports whether the caller of r has a right, by the rules and by the token that was shown.
func (s *server) may(r *request, repo string, want Right) bool {
	if weakness.Of("RS3") {
		return true
	}
	if s.rights(r.user, repo)&want != want {
		return false
	}
	return r.token == nil || r.token.rights(repo)&want == want
}

// needs is the right that a request takes; 0 for those about no repository.
func (r *request) needs() Right {
	switch {
	case r.resource <= catalog:
		return 0
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		if r.resource == uploads {
			return Push
		}
		return Pull
	case r.Method == http.MethodDelete && r.resource != uploads:
		return Delete
	}
	return Push | Pull
}

// allowed is the one place that decides what a request may do.
func (s *server) allowed(r *request) error {
	want := r.needs()
	if want == 0 {
		if r.user == "" && !s.anonymous() || r.resource == ping && s.tokens != nil && r.user == "" && r.token == nil {
			return s.unauthorized(r, "")
		}
		return nil
	}
	if !s.may(r, r.repo, want) {
		// Somebody with a name and without the right is told so; everybody else may come
		// again with a name, or with a token for more. Whether the repository exists is not told.
		if r.user != "" && s.rights(r.user, r.repo)&want != want {
			return apiError{http.StatusForbidden, "DENIED", "requested access to the resource is denied", map[string]string{"name": r.repo}}
		}
		return s.unauthorized(r, scopeOf(r.repo, want))
	}
	if want == Pull {
		return nil
	}
	if want == Delete && !s.opt.Delete {
		return errMethod
	}
	if s.opt.ReadOnly {
		return apiError{http.StatusMethodNotAllowed, "UNSUPPORTED", "this registry is read-only", nil}
	}
	if up := s.upstreamOf(r.repo); up != nil && want != Delete {
		return apiError{http.StatusMethodNotAllowed, "DENIED", "this repository is a copy of " + up.Registry + "'s: push to a name outside " + up.Prefix, nil}
	}
	return nil
}

// unauthorized asks for a name: for a token where there are tokens, else for a password.
func (s *server) unauthorized(r *request, scope string) error {
	challenge := `Basic realm="keg registry", charset="UTF-8"`
	if s.tokens != nil {
		challenge = `Bearer realm="` + s.tokens.realmFor(r.Request) + `",service="` + s.tokens.service + `"`
		if scope != "" {
			challenge += `,scope="` + scope + `"`
		}
		if r.token != nil && scope != "" {
			challenge += `,error="insufficient_scope"`
		}
	}
	r.w.Header().Set("WWW-Authenticate", challenge)
	return apiError{http.StatusUnauthorized, "UNAUTHORIZED", "authentication required", nil}
}

func scopeOf(repo string, want Right) string {
	switch {
	case want&Push != 0:
		return "repository:" + repo + ":pull,push"
	case want&Delete != 0:
		return "repository:" + repo + ":delete"
	}
	return "repository:" + repo + ":pull"
}

// identify says who calls. ok is false when what was shown is not good.
func (s *server) identify(r *http.Request) (c caller, ok bool, err error) {
	header := r.Header.Get("Authorization")
	if header == "" {
		return caller{}, true, nil
	}
	if token, is := cutScheme(header, "Bearer"); is && s.tokens != nil {
		claims, ok := s.tokens.verify(token)
		if !ok {
			return caller{}, false, nil
		}
		if claims.Subject != "" && !s.users.exists(claims.Subject) {
			return caller{}, false, nil // struck off since
		}
		return caller{claims.Subject, claims}, true, nil
	}
	if s.opt.Htpasswd == "" {
		return caller{}, true, nil // there are no names here
	}
	user, ok, err := s.users.authenticate(r)
	return caller{user: user}, ok, err
}

func cutScheme(header, scheme string) (string, bool) {
	a, b, ok := strings.Cut(header, " ")
	return strings.TrimSpace(b), ok && strings.EqualFold(a, scheme)
}
