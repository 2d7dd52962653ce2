// The server: distribution-spec 1.1 over a Storage. Here are the routes, who may do what,
// and the form of an error; what each resource does is in server_*.go.

package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
)

// ServerOptions configure a server; the zero value is open to all on plain HTTP.
type ServerOptions struct {
	Htpasswd string    // file of "user:bcrypt" lines; "" = open to all
	ReadOnly bool      // no pushes, no deletes
	Delete   bool      // allow DELETE of tags, manifests and blobs
	Sparse   bool      // accept manifests that name blobs which are not here
	Log      io.Writer // one line for each request

	Rules     []Rule        // who may do what; none = everybody who comes in may do everything
	Tokens    *TokenOptions // give out and accept bearer tokens
	Immutable []Immutable
	Quotas    []Quota
	Keep      []Keep
	Collect   Collection
	Upstreams []Upstream // prefixes of repositories that are copied from elsewhere when asked for
	Client    *Client    // speaks to upstreams
	Cert, Key string     // PEM files; "" = plain HTTP
	MaxConns  int        // open connections; 0 = 4096
	Metrics   bool       // answer /metrics to everybody who reaches the server
}

// Check reports what is wrong with the options before a server starts with them; a
// server with a bad password file lets nobody in.
func (o ServerOptions) Check() error {
	if o.Htpasswd != "" {
		if _, err := readHtpasswd(o.Htpasswd); err != nil {
			return err
		}
	}
	if o.Tokens != nil {
		if _, err := tokenKey(o.Tokens.Key); err != nil {
			return err
		}
	}
	if o.Cert != "" {
		if _, err := newKeyPair(o.Cert, o.Key, nil); err != nil {
			return err
		}
	}
	for _, u := range o.Upstreams {
		if err := u.check(); err != nil {
			return err
		}
	}
	return nil
}

// NewServer returns the handler of a registry over a storage.
func NewServer(s Storage, o ServerOptions) http.Handler {
	srv := &server{storage: s, opt: o, users: &userFile{path: o.Htpasswd, turn: make(chan struct{}, maxHashes)}, log: newAccessLog(o.Log), metrics: newMetrics()}
	srv.routes = srv.handlers()
	for _, q := range o.Quotas {
		srv.accounts = append(srv.accounts, &account{Quota: q})
	}
	if o.Tokens != nil {
		var err error
		if srv.tokens, err = newIssuer(*o.Tokens); err != nil {
			// Without its key the server can neither give nor accept tokens: nobody comes in by one.
			fmt.Fprintf(srv.log, "error tokens err=%q\n", err.Error())
		}
	}
	if len(o.Upstreams) > 0 {
		srv.storage = newMirror(s, o.Client, o.Upstreams, srv.metrics)
	}
	return srv
}

type server struct {
	storage Storage
	opt     ServerOptions
	users   *userFile
	log     *accessLog
	routes  map[handlerKey]func(*request) error

	tokens   *issuer // nil: there are none
	metrics  *metrics
	names    nameLocks
	accounts []*account
	leaving  atomic.Bool // a shutdown is under way
}

// ready asks the storage something cheap.
func (s *server) ready(ctx context.Context) error {
	_, err := s.storage.StatBlob(ctx, "keg/ready", digest.FromString("ready"))
	return notFoundIsFine(err)
}

// request is one request after its path and its user were found good.
type request struct {
	*http.Request
	w http.ResponseWriter
	caller
	route
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.wellbeing(w, r) {
		return
	}
	began := time.Now()
	c := &counted{ResponseWriter: w}
	body := &countedBody{ReadCloser: r.Body}
	c.begin(r, body)
	if r.ProtoMajor == 1 && len(r.TransferEncoding) > 0 {
		// There may have been a Content-Length beside it, which a proxy before us went by; net/http has thrown it
		// away. What follows on this connection could be anybody's (RFC 9112 6.1).
		w.Header().Set("Connection", "close")
	}
	// A copy: net/http has to know its own body again, or it invites and reads one that was refused.
	r = r.WithContext(r.Context())
	r.Body = body
	req := &request{Request: r, w: c}
	s.metrics.inFlight.Add(1)
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler { //nolint:errorlint // a sentinel that panics carry
				panic(p)
			}
			fmt.Fprintf(s.log, "panic %q\n", fmt.Sprint(p))
			s.fail(req, apiError{http.StatusInternalServerError, "UNKNOWN", "internal error", nil})
		}
		if c.status == 0 { // 200 without a body
			c.WriteHeader(http.StatusOK)
		}
		s.metrics.inFlight.Add(-1)
		s.metrics.sent.Add(c.n)
		s.metrics.received.Add(body.n)
		s.metrics.observe(req, max(c.status, 200), time.Since(began))
		s.log.request(req, c, body.n, began)
	}()
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if err := s.serve(req); err != nil {
		s.fail(req, err)
	}
}

func (s *server) serve(r *request) error {
	r.route = parseRoute(r.URL.Path)
	if r.resource == tokenEnd && s.tokens != nil && (r.Method == http.MethodGet || r.Method == http.MethodPost) {
		return s.token(r)
	}
	who, ok, err := s.identify(r.Request)
	if err != nil {
		return err
	}
	r.caller = who
	if !ok || r.user == "" && !s.anonymous() {
		scope := ""
		if r.resource > catalog && validRepository(r.repo) {
			scope = scopeOf(r.repo, r.needs())
		}
		return s.unauthorized(r, scope)
	}
	if r.resource <= tokenEnd {
		return apiError{http.StatusNotFound, "UNSUPPORTED", "no such resource", nil}
	}
	if r.resource > catalog && !validRepository(r.repo) {
		return apiError{http.StatusBadRequest, "NAME_INVALID", "invalid repository name", map[string]string{"name": r.repo}}
	}
	handle, ok := s.routes[handlerKey{r.resource, r.Method}]
	if !ok {
		return errMethod
	}
	if err := s.allowed(r); err != nil {
		return err
	}
	return handle(r)
}

type handlerKey struct {
	resource resource
	method   string
}

// handlers is the table of routes. HEAD is GET; the handlers look at the method only
// where a body is written by hand.
func (s *server) handlers() map[handlerKey]func(*request) error {
	return map[handlerKey]func(*request) error{
		{ping, "GET"}:         s.ping,
		{ping, "HEAD"}:        s.ping,
		{catalog, "GET"}:      s.catalog,
		{tagsList, "GET"}:     s.tags,
		{referrers, "GET"}:    s.referrers,
		{manifests, "GET"}:    s.getManifest,
		{manifests, "HEAD"}:   s.getManifest,
		{manifests, "PUT"}:    s.putManifest,
		{manifests, "DELETE"}: s.deleteManifest,
		{blobs, "GET"}:        s.getBlob,
		{blobs, "HEAD"}:       s.getBlob,
		{blobs, "DELETE"}:     s.deleteBlob,
		{uploads, "POST"}:     s.startUpload,
		{uploads, "GET"}:      s.getUpload,
		{uploads, "PATCH"}:    s.patchUpload,
		{uploads, "PUT"}:      s.putUpload,
		{uploads, "DELETE"}:   s.cancelUpload,
	}
}

func (s *server) ping(r *request) error {
	return writeJSON(r, "application/json", struct{}{})
}

// apiError is an answer in the form of distribution-spec "Error Codes".
type apiError struct {
	status  int
	code    string
	message string
	detail  any
}

func (e apiError) Error() string { return e.code + ": " + e.message }

var errMethod = apiError{http.StatusMethodNotAllowed, "UNSUPPORTED", "the operation is unsupported", nil}

// notFoundAs gives a storage's NotFound the code of what was asked for.
func notFoundAs(err error, e apiError) error {
	if fault.Is(err, fault.NotFound) {
		return e
	}
	return err
}

// fail answers with an error. What nobody classified is the server's own trouble: its
// words go to the log, not to the client.
func (s *server) fail(r *request, err error) {
	var e apiError
	if !errors.As(err, &e) {
		e = classify(err)
	}
	if e.status >= http.StatusInternalServerError && r.Context().Err() == nil {
		fmt.Fprintf(s.log, "error method=%s path=%q err=%q\n", r.Method, r.URL.Path, err.Error())
	}
	h := r.w.Header()
	for _, k := range []string{"Content-Length", "Etag", "Cache-Control", "Docker-Content-Digest", "Content-Encoding"} {
		h.Del(k)
	}
	h.Set("Content-Type", "application/json")
	r.w.WriteHeader(e.status)
	if r.Method == "HEAD" {
		return
	}
	type item struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Detail  any    `json:"detail,omitempty"`
	}
	json.NewEncoder(r.w).Encode(map[string][]item{"errors": {{e.code, e.message, e.detail}}})
}

func classify(err error) apiError {
	switch fault.KindOf(err) {
	case fault.NotFound:
		return apiError{http.StatusNotFound, "NAME_UNKNOWN", err.Error(), nil}
	case fault.Invalid:
		return apiError{http.StatusBadRequest, "UNSUPPORTED", err.Error(), nil}
	case fault.Unavailable:
		return apiError{http.StatusBadGateway, "UNKNOWN", err.Error(), nil}
	case fault.Denied, fault.Unauthorized:
		return apiError{http.StatusForbidden, "DENIED", err.Error(), nil}
	case fault.Conflict:
		return apiError{http.StatusConflict, "DENIED", err.Error(), nil}
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return apiError{http.StatusServiceUnavailable, "UNKNOWN", "the request took too long", nil}
	}
	return apiError{http.StatusInternalServerError, "UNKNOWN", "internal error", nil}
}

func writeJSON(r *request, mediaType string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	r.w.Header().Set("Content-Type", mediaType)
	r.w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	if r.Method != "HEAD" {
		r.w.Write(b)
	}
	return nil
}

const (
	// bodyStall is how long a client may send nothing, or read nothing, in the middle of a
	// blob.
	bodyStall = time.Minute
	// leftoverWait is how long the rest of a body is waited for that nobody wants: net/http reads some
	// of it before it sends an answer, so that the client is not cut off in the middle of a word.
	leftoverWait = 2 * time.Second
)

// steady is a request body whose deadline moves on with each read.
type steady struct {
	r  io.Reader
	rc *http.ResponseController
}

func (r *request) steadyBody() io.Reader {
	return &steady{r.Body, http.NewResponseController(r.w)}
}

func (s *steady) Read(p []byte) (int, error) {
	s.rc.SetReadDeadline(time.Now().Add(bodyStall)) // not all connections have deadlines
	return s.r.Read(p)
}

// baseType is a media type without its parameters.
func baseType(t string) string {
	t, _, _ = strings.Cut(t, ";")
	return strings.ToLower(strings.TrimSpace(t))
}
