package engine

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"keg/internal/fault"
)

func TestSearch(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != "/v1/search":
			http.NotFound(w, r)
		case r.URL.Query().Get("q") == "broken":
			io.WriteString(w, "<html>")
		case r.URL.Query().Get("q") == "web" && r.URL.Query().Get("n") == "7":
			io.WriteString(w, `{"results":[{"name":"a","star_count":9,"is_official":true},{"name":"b","star_count":3},{"name":"c","star_count":8}]}`)
		default:
			w.WriteHeader(http.StatusTeapot)
		}
	}))
	defer s.Close()
	host := strings.TrimPrefix(s.URL, "http://")
	e := newEngine(t, newFakeRegistry())
	for _, c := range []struct {
		f    Filter
		want string
	}{{nil, "a b c"}, {Filter{"stars": {"5"}}, "a c"}, {Filter{"is-official": {"false"}, "stars": {"5"}}, "c"}} {
		list, err := e.Search(t.Context(), host+"/web", SearchOptions{Limit: 7, Filter: c.f})
		var names []string
		for _, r := range list {
			names = append(names, r.Name)
		}
		if got := strings.Join(names, " "); got != c.want || err != nil {
			t.Errorf("%v: %q, %v", c.f, got, err)
		}
	}
	for term, kind := range map[string]fault.Kind{host + "/broken": fault.Unavailable, host + "/other": fault.Unavailable} {
		if _, err := e.Search(t.Context(), term, SearchOptions{}); fault.KindOf(err) != kind {
			t.Errorf("%s: %v", term, err)
		}
	}
	for _, o := range []SearchOptions{{Limit: 101}, {Filter: Filter{"stars": {"x"}}}, {Filter: Filter{"x": {"y"}}}} {
		if _, err := e.Search(t.Context(), host+"/web", o); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
