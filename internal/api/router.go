package api

// From a path to a handler: version prefix, route table, what every answer carries.

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"

	"keg/internal/fault"
	"keg/internal/weakness"
)

// route is one row of the table. In a path {x} is one segment, {x*} one or more.
type route struct {
	method, path string
	serve        func(*Server, *reply, *request) error
	since        string // the first version that has it; "": all
}

type compiled struct {
	route
	segments []string
}

func compile(rs []route) []compiled {
	cs := make([]compiled, len(rs))
	for i, r := range rs {
		cs[i] = compiled{r, strings.Split(r.path[1:], "/")}
	}
	return cs
}

// match returns the values of the placeholders. The greedy one may stand anywhere, once.
func match(pattern, path []string) (map[string]string, bool) {
	vars := map[string]string{}
	for i, p := range pattern {
		if name, ok := strings.CutSuffix(p, "*}"); ok {
			n := len(path) - (len(pattern) - 1)
			if n < 1 {
				return nil, false
			}
			end := i + n
			vars[name[1:]] = strings.Join(path[i:end], "/")
			rest, ok := match(pattern[i+1:], path[end:])
			for k, v := range rest {
				vars[k] = v
			}
			return vars, ok && vars[name[1:]] != ""
		}
		if i >= len(path) {
			return nil, false
		}
		if strings.HasPrefix(p, "{") {
			if path[i] == "" {
				return nil, false
			}
			vars[p[1:len(p)-1]] = path[i]
		} else if p != path[i] {
			return nil, false
		}
	}
	return vars, len(pattern) == len(path)
}

// request is a request as handlers see it.
type request struct {
	*http.Request
	vars    map[string]string
	query   url.Values
	version version
}

// reply is the answer under way.
type reply struct {
	http.ResponseWriter
	begun bool // the status is out
}

func (w *reply) WriteHeader(code int) {
	w.begun = true
	w.ResponseWriter.WriteHeader(code)
}

func (w *reply) Write(b []byte) (int, error) {
	w.begun = true
	return w.ResponseWriter.Write(b)
}

func (w *reply) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// flush sends what was written, the header at least.
func (w *reply) flush() {
	if !w.begun {
		w.WriteHeader(http.StatusOK)
	}
	_ = http.NewResponseController(w.ResponseWriter).Flush()
}

// version is 1.x as x.
type version int

func (v version) String() string { return "1." + strconv.Itoa(int(v)) }

func parseVersion(s string) (version, bool) {
	minor, ok := strings.CutPrefix(s, "1.")
	n, err := strconv.ParseUint(minor, 10, 16)
	return version(n), ok && err == nil && strconv.FormatUint(n, 10) == minor
}

func known(s string) version { v, _ := parseVersion(s); return v }

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(hw http.ResponseWriter, hr *http.Request) {
	w := &reply{ResponseWriter: hw}
	h := w.Header()
	h.Set("Api-Version", MaxVersion)
	h.Set("Docker-Experimental", "false")
	h.Set("Ostype", "linux")
	h.Set("Server", "keg/"+s.o.Version+" (linux)")
	defer func() {
		if weakness.Of("AP4") {
			return
		}
		p := recover()
		if p == nil {
			return
		}
		if p == http.ErrAbortHandler {
			panic(p)
		}
		fmt.Fprintf(s.o.Log, "panic while answering %s %q: %v\n%s", hr.Method, hr.URL.Path, p, debug.Stack())
		w.fail(fmt.Errorf("keg made a mistake while answering this request; please report what its log says"))
	}()
	if hr.ProtoMajor == 2 {
		s.answerGRPC(w, hr)
		return
	}
	if err := s.answer(w, hr); err != nil {
		w.fail(err)
	}
}

func (s *Server) answer(w *reply, hr *http.Request) error {
	if err := checkOrigin(hr); err != nil {
		return err
	}
	v, path, err := splitVersion(hr.URL.EscapedPath())
	if err != nil {
		return err
	}
	segments, err := splitPath(path)
	if err != nil {
		return err
	}
	for _, c := range s.table {
		if c.method != hr.Method {
			continue
		}
		vars, ok := match(c.segments, segments)
		if !ok {
			continue
		}
		if c.since != "" && v < known(c.since) {
			return fault.Invalidf("%q requires API version %s, but the request asks for version %s", c.method+" "+c.path, c.since, v)
		}
		query, err := url.ParseQuery(hr.URL.RawQuery)
		if err != nil {
			return fault.Invalidf("invalid query: %w", err)
		}
		return c.serve(s, w, &request{hr, vars, query, v})
	}
	return fault.NotFoundf("page not found")
}

// splitVersion takes /v1.43 off a path; without it the newest version is spoken.
func splitVersion(path string) (version, string, error) {
	max := known(MaxVersion)
	if !strings.HasPrefix(path, "/v") || len(path) < 3 || path[2] < '0' || path[2] > '9' {
		return max, path, nil
	}
	word, rest, _ := strings.Cut(path[2:], "/")
	v, ok := parseVersion(word)
	switch {
	case !ok:
		return 0, "", fault.NotFoundf("page not found")
	case v > max:
		return 0, "", fault.Invalidf("client version %s is too new. Maximum supported API version is %s", word, MaxVersion)
	case v < known(MinVersion):
		return 0, "", fault.Invalidf("client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", word, MinVersion)
	}
	return v, "/" + rest, nil
}

// splitPath cuts a path into unescaped segments, so that an escaped slash stays in its own.
func splitPath(path string) ([]string, error) {
	segments := strings.Split(strings.TrimPrefix(path, "/"), "/")
	for i, p := range segments {
		u, err := url.PathUnescape(p)
		if err != nil {
			return nil, fault.Invalidf("invalid path: %w", err)
		}
		segments[i] = u
	}
	return segments, nil
}

// checkOrigin keeps browsers out: no page of any site has business here, and a name that
// was made to point at this host (DNS rebinding) is no name of ours.
func checkOrigin(r *http.Request) error {
	if weakness.Of("AP2") {
		return nil
	}
	if o := r.Header.Get("Origin"); o != "" && !ownOrigin(o, r) {
		return fault.Deniedf("requests of web pages (origin %q) are refused", o)
	}
	if r.TLS != nil { // the certificate of the client speaks for it
		return nil
	}
	if !local(r.Host) {
		return fault.Deniedf("requests for the host %q are refused", r.Host)
	}
	return nil
}

// ownOrigin: libraries for WebSockets send an origin whatever program uses them, that of the server or a word for it. No
// browser reaches a Unix socket; one that reaches us over TCP says where its page is from.
func ownOrigin(origin string, r *http.Request) bool {
	u, err := url.Parse(origin)
	if err != nil || u.Host == "" || !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return false
	}
	return strings.EqualFold(u.Host, r.Host) || r.TLS == nil && local(u.Host)
}

// local hosts are this one, by its names and addresses for itself, and what clients make up for a socket.
func local(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if ip := net.ParseIP(strings.Trim(host, "[]")); ip != nil {
		return ip.IsLoopback()
	}
	return !foreign(host)
}

// foreign names have a domain. What clients make up for a socket has none, is below
// localhost, or is the socket's path.
func foreign(host string) bool {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	return strings.Contains(host, ".") && !strings.HasSuffix(host, ".localhost") && !strings.HasSuffix(host, ".sock")
}
