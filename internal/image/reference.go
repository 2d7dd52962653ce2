package image

import (
	"strings"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
)

// Docker Hub's name in references, and what unqualified names mean.
const (
	DefaultRegistry = "docker.io"
	DefaultTag      = "latest"
	officialPrefix  = "library/"
)

// Reference names an image: registry/repository[:tag][@digest]. It is always
// normalised ("nginx" is docker.io/library/nginx:latest); the zero value names nothing.
type Reference struct {
	Registry   string        // host[:port], "docker.io" for Docker Hub
	Repository string        // path, "library/nginx"
	Tag        string        // "" only when Digest is set and no tag was given
	Digest     digest.Digest // "" unless pinned
}

// ParseReference reads what people type. It follows the grammar and the rules for
// familiar names of github.com/distribution/reference; a bare name gets the tag
// "latest", a 64-digit hex name is refused as it could be an image id.
func ParseReference(s string) (Reference, error) {
	r, err := parseReference(s)
	if err != nil {
		return Reference{}, err
	}
	if r.Tag == "" && r.Digest == "" {
		r.Tag = DefaultTag
	}
	return r, nil
}

// ParseRepository is ParseReference without the default tag.
func ParseRepository(s string) (Reference, error) { return parseReference(s) }

func parseReference(s string) (Reference, error) {
	bad := func(why string) (Reference, error) {
		return Reference{}, fault.Invalidf("invalid reference format: %s: %q", why, s)
	}
	var r Reference
	rest := s
	if name, d, ok := strings.Cut(rest, "@"); ok {
		rest, r.Digest = name, digest.Digest(d)
		if err := r.Digest.Validate(); err != nil {
			return bad("bad digest")
		}
	}
	if i := strings.LastIndexByte(rest, ':'); i >= 0 && !strings.Contains(rest[i:], "/") {
		rest, r.Tag = rest[:i], rest[i+1:]
		if !validTag(r.Tag) {
			return bad("bad tag")
		}
	}
	if len(rest) == 64 && strings.Trim(rest, "0123456789abcdef") == "" {
		return bad("a name cannot be 64 hexadecimal digits")
	}
	r.Registry, r.Repository = splitDomain(rest)
	if strings.ToLower(r.Repository) != r.Repository {
		return Reference{}, fault.Invalidf("invalid reference format: repository name (%s) must be lowercase", r.Repository)
	}
	if !validDomain(r.Registry) {
		return bad("bad registry host")
	}
	if !validPath(r.Repository) {
		return bad("bad repository name")
	}
	if len(r.Name()) > 255 {
		return bad("repository name must not be more than 255 characters")
	}
	return r, nil
}

// splitDomain tells a registry host from the first part of a path: a host has a dot
// or a port, is localhost, or is not all lower case.
func splitDomain(s string) (domain, path string) {
	first, rest, ok := strings.Cut(s, "/")
	if !ok || !strings.ContainsAny(first, ".:") && first != "localhost" && strings.ToLower(first) == first {
		domain, path = DefaultRegistry, s
	} else {
		domain, path = first, rest
	}
	if domain == "index.docker.io" {
		domain = DefaultRegistry
	}
	if domain == DefaultRegistry && !strings.Contains(path, "/") {
		path = officialPrefix + path
	}
	return domain, path
}

// Name returns registry/repository.
func (r Reference) Name() string { return r.Registry + "/" + r.Repository }

// String returns the full reference.
func (r Reference) String() string { return r.suffix(r.Name()) }

// FamiliarName returns the repository as Docker prints it: without docker.io/library/.
func (r Reference) FamiliarName() string {
	if r.Registry != DefaultRegistry {
		return r.Name()
	}
	if p := strings.TrimPrefix(r.Repository, officialPrefix); !strings.Contains(p, "/") {
		return p
	}
	return r.Repository
}

// Familiar returns the reference as Docker prints it.
func (r Reference) Familiar() string { return r.suffix(r.FamiliarName()) }

func (r Reference) suffix(s string) string {
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + string(r.Digest)
	}
	return s
}

// WithDigest returns the reference pinned to d, without a tag.
func (r Reference) WithDigest(d digest.Digest) Reference {
	r.Tag, r.Digest = "", d
	return r
}

func validTag(t string) bool {
	return t != "" && len(t) <= 128 && t[0] != '.' && t[0] != '-' && all(t, func(c byte) bool {
		return alnum(c) || c >= 'A' && c <= 'Z' || c == '_' || c == '.' || c == '-'
	})
}

// validPath checks components of lower-case letters and digits joined by ".", "_",
// "__" or any number of "-".
func validPath(p string) bool {
	for comp := range strings.SplitSeq(p, "/") {
		if comp == "" || !alnum(comp[0]) || !alnum(comp[len(comp)-1]) {
			return false
		}
		sep := ""
		for i := range len(comp) {
			if alnum(comp[i]) {
				if sep != "" && sep != "." && sep != "_" && sep != "__" && strings.Trim(sep, "-") != "" {
					return false
				}
				sep = ""
				continue
			}
			sep += comp[i : i+1]
		}
	}
	return true
}

func validDomain(d string) bool {
	host, port, hasPort := d, "", false
	if strings.HasPrefix(d, "[") {
		end := strings.IndexByte(d, ']')
		if end < 2 || strings.Trim(d[1:end], "0123456789abcdefABCDEF:") != "" {
			return false
		}
		host, port, hasPort = "", strings.TrimPrefix(d[end+1:], ":"), d[end+1:] != ""
		if hasPort && d[end+1] != ':' {
			return false
		}
	} else {
		host, port, hasPort = strings.Cut(d, ":")
		for comp := range strings.SplitSeq(host, ".") {
			if comp == "" || comp[0] == '-' || comp[len(comp)-1] == '-' ||
				!all(comp, func(c byte) bool { return alnum(c) || c >= 'A' && c <= 'Z' || c == '-' }) {
				return false
			}
		}
	}
	return !hasPort || port != "" && strings.Trim(port, "0123456789") == ""
}

func alnum(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }

func all(s string, ok func(byte) bool) bool {
	for i := range len(s) {
		if !ok(s[i]) {
			return false
		}
	}
	return true
}
