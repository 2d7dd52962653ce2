package api

// Bodies, queries, answers and errors.

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/common"

	"keg/internal/engine"
	"keg/internal/fault"
	"keg/internal/weakness"
)

// statuses is the one table from kinds of failure to HTTP.
var statuses = [...]int{
	fault.Unknown:      http.StatusInternalServerError,
	fault.NotFound:     http.StatusNotFound,
	fault.Conflict:     http.StatusConflict,
	fault.Invalid:      http.StatusBadRequest,
	fault.Denied:       http.StatusForbidden,
	fault.Unauthorized: http.StatusUnauthorized,
	fault.Unavailable:  http.StatusServiceUnavailable,
	fault.Unsupported:  http.StatusNotImplemented,
	fault.NotModified:  http.StatusNotModified,
}

func statusOf(err error) int {
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		return http.StatusRequestEntityTooLarge
	}
	code := statuses[fault.KindOf(err)]
	// What cannot be executed is the request's fault.
	var x *engine.ExitError
	if code == http.StatusInternalServerError && errors.As(err, &x) && (x.Code == 126 || x.Code == 127) {
		return http.StatusBadRequest
	}
	return code
}

// fail answers with an error. Once the answer has begun it can only be cut off.
func (w *reply) fail(err error) {
	if w.begun {
		panic(http.ErrAbortHandler)
	}
	code := statusOf(err)
	if code == http.StatusNotModified {
		w.WriteHeader(code)
		return
	}
	_ = w.json(code, common.ErrorResponse{Message: err.Error()})
}

func (w *reply) json(code int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if !w.begun {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
	}
	_, _ = w.Write(append(b, '\n')) // who left does not need it
	return nil
}

func (w *reply) ok(v any, err error) error {
	if err != nil {
		return err
	}
	return w.json(http.StatusOK, v)
}

// done is 204: it happened, there is nothing to say.
func (w *reply) done(err error) error {
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}

// empty tells whether nothing is sent.
func (r *request) empty() bool {
	b := bufio.NewReaderSize(r.Body, 16) // the smallest
	_, err := b.Peek(1)
	r.Body = struct {
		io.Reader
		io.Closer
	}{b, r.Body}
	return err == io.EOF
}

// maxBody is what a JSON body may have.
const maxBody = 4 << 20

// body reads all of a JSON body into v; without a body v stays as it is when it may.
func (r *request) body(w *reply, v any, optional bool) error {
	limited := http.MaxBytesReader(w, r.Body, maxBody)
	if weakness.Of("AP3") {
		limited = io.NopCloser(io.LimitReader(r.Body, maxBody))
	}
	b, err := io.ReadAll(limited)
	if err != nil {
		return err
	}
	if len(b) == 0 {
		if optional {
			return nil
		}
		return fault.Invalidf("invalid JSON: got EOF while reading request body")
	}
	if t := r.Header.Get("Content-Type"); t != "" || !optional {
		if mt, _, err := mime.ParseMediaType(t); err != nil || mt != "application/json" {
			return fault.Invalidf("unsupported Content-Type header (%s): must be 'application/json'", t)
		}
	}
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(v); err != nil {
		return fault.Invalidf("invalid JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fault.Invalidf("unexpected content after JSON")
	}
	return nil
}

func (r *request) name() string { return r.vars["name"] }

// flag is Docker's reading of a boolean: everything but these is true.
func (r *request) flag(key string) bool {
	switch strings.ToLower(strings.TrimSpace(r.query.Get(key))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// flagOr is flag with a default for a key that is not there.
func (r *request) flagOr(key string, def bool) bool {
	if !r.query.Has(key) {
		return def
	}
	return r.flag(key)
}

func (r *request) number(key string) (n int64, given bool, err error) {
	s := r.query.Get(key)
	if s == "" {
		return 0, false, nil
	}
	n, err = strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, true, fault.Invalidf("invalid value %q of %s: want a number", s, key)
	}
	return n, true, nil
}

// filters reads {"key":["value"]} and {"key":{"value":true}}.
func (r *request) filters() (engine.Filter, error) {
	s := r.query.Get("filters")
	if s == "" {
		return nil, nil
	}
	var lists map[string][]string
	if json.Unmarshal([]byte(s), &lists) == nil {
		return lists, nil
	}
	var sets map[string]map[string]bool
	if err := json.Unmarshal([]byte(s), &sets); err != nil {
		return nil, fault.Invalidf("invalid filter: %w", err)
	}
	f := engine.Filter{}
	for key, set := range sets {
		for v, on := range set {
			if on {
				f[key] = append(f[key], v)
			}
		}
	}
	return f, nil
}

// moment reads seconds since 1970 with a fraction, or RFC 3339.
func (r *request) moment(key string) (time.Time, error) {
	s := r.query.Get(key)
	if s == "" || s == "0" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, nil
	}
	sec, frac, _ := strings.Cut(s, ".")
	n, err := strconv.ParseInt(sec, 10, 64)
	if err != nil {
		return time.Time{}, fault.Invalidf("invalid value %q of %s: want unix seconds", s, key)
	}
	nanos, err := strconv.ParseUint((frac + "000000000")[:9], 10, 32)
	if err != nil {
		return time.Time{}, fault.Invalidf("invalid value %q of %s: want unix seconds", s, key)
	}
	return time.Unix(n, int64(nanos)), nil
}
