package engine

// docker search: registries have no common interface for it, but docker.io's first one, which others answer, too.

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	dregistry "github.com/moby/moby/api/types/registry"

	"keg/internal/fault"
)

// SearchOptions are those of docker search.
type SearchOptions struct {
	Limit  int // 0 is 25
	Filter Filter
}

// maxSearch bounds what a registry may answer.
const maxSearch = 4 << 20

// Search asks docker.io, or the registry that the term begins with.
func (e *Engine) Search(ctx context.Context, term string, o SearchOptions) ([]dregistry.SearchResult, error) {
	if err := o.Filter.only("is-automated", "is-official", "stars"); err != nil {
		return nil, err
	}
	official, officialSet, err := o.Filter.boolean("is-official")
	if err != nil {
		return nil, err
	}
	automated, automatedSet, err := o.Filter.boolean("is-automated")
	if err != nil {
		return nil, err
	}
	stars := 0
	for _, s := range o.Filter["stars"] {
		n, err := strconv.Atoi(s)
		if err != nil {
			return nil, fault.Invalidf("invalid filter 'stars=%s'", s)
		}
		stars = max(stars, n)
	}
	if o.Limit == 0 {
		o.Limit = 25
	}
	if o.Limit < 1 || o.Limit > 100 {
		return nil, fault.Invalidf("limit %d is outside the range of [1, 100]", o.Limit)
	}
	list, err := search(ctx, term, o.Limit)
	if err != nil {
		return nil, err
	}
	found := []dregistry.SearchResult{}
	for _, r := range list {
		//lint:ignore SA1019 registries still send it
		if officialSet && r.IsOfficial != official || automatedSet && r.IsAutomated != automated || r.StarCount < stars {
			continue
		}
		found = append(found, r)
	}
	return found, nil
}

func search(ctx context.Context, term string, limit int) ([]dregistry.SearchResult, error) {
	host, name := "index.docker.io", strings.TrimPrefix(term, "docker.io/")
	if first, rest, ok := strings.Cut(name, "/"); ok && strings.ContainsAny(first, ".:") {
		host, name = first, rest
	}
	u := url.URL{Scheme: "https", Host: host, Path: "/v1/search", RawQuery: url.Values{"q": {name}, "n": {strconv.Itoa(limit)}}.Encode()}
	if h, _, err := net.SplitHostPort(host); err == nil && net.ParseIP(h).IsLoopback() {
		u.Scheme = "http" // as everywhere a registry of this host may be plain
	}
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fault.As(fault.Invalid, err)
	}
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		return nil, fault.Unavailablef("cannot search %s: %w", host, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fault.Unavailablef("cannot search %s: it answers %s; it may have no search", host, resp.Status)
	}
	var res dregistry.SearchResults
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxSearch)).Decode(&res); err != nil {
		return nil, fault.Unavailablef("cannot search %s: read its answer: %w", host, err)
	}
	return res.Results, nil
}
