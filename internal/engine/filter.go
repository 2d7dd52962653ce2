package engine

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"keg/internal/fault"
)

// Filter is Docker's --filter: key -> values. Values of one key are alternatives
// (labels: all of them must hold), different keys must all hold.
type Filter map[string][]string

// only refuses keys that the list in question does not know.
func (f Filter) only(known ...string) error {
	for key := range f {
		if !slices.Contains(known, key) {
			return fault.Invalidf("invalid filter '%s'", key)
		}
	}
	return nil
}

// exact reports whether one of the values of key is v; true without values.
func (f Filter) exact(key, v string) bool {
	return len(f[key]) == 0 || slices.Contains(f[key], v)
}

// matches is Docker's loose comparison: equal, or matched by the value as a regular
// expression anywhere in v.
func (f Filter) matches(key string, vs ...string) bool {
	if len(f[key]) == 0 {
		return true
	}
	for _, want := range f[key] {
		re, err := regexp.Compile(want)
		for _, v := range vs {
			if v == want || err == nil && re.MatchString(v) {
				return true
			}
		}
	}
	return false
}

// prefix reports whether v begins with one of the values of key.
func (f Filter) prefix(key, v string) bool {
	return len(f[key]) == 0 || slices.ContainsFunc(f[key], func(p string) bool { return strings.HasPrefix(v, p) })
}

// labels checks "label" (key or key=value, all of them) and "label!" (none of them).
func (f Filter) labels(have map[string]string) bool {
	return f.all("label", have) && !slices.ContainsFunc(f["label!"], func(want string) bool { return holds(have, want) })
}

// all checks that every value of key, KEY or KEY=VALUE, is in have.
func (f Filter) all(key string, have map[string]string) bool {
	return !slices.ContainsFunc(f[key], func(want string) bool { return !holds(have, want) })
}

func holds(have map[string]string, want string) bool {
	k, v, hasValue := strings.Cut(want, "=")
	got, ok := have[k]
	return ok && (!hasValue || got == v)
}

// boolean reads a filter that is true or false; set is false when it was not given.
func (f Filter) boolean(key string) (value, set bool, err error) {
	vs := f[key]
	if len(vs) == 0 {
		return false, false, nil
	}
	for _, v := range vs {
		switch strings.ToLower(v) {
		case "1", "true":
			value = true
		case "0", "false":
		default:
			return false, false, fault.Invalidf("invalid filter '%s=%s'", key, v)
		}
	}
	return value, true, nil
}

// until is the time before which things count: a duration before now, a date, or unix
// seconds. The zero time when it was not given.
func (f Filter) until(now time.Time) (time.Time, error) {
	vs := f["until"]
	if len(vs) == 0 {
		return time.Time{}, nil
	}
	if len(vs) > 1 {
		return time.Time{}, fault.Invalidf("more than one until filter specified")
	}
	return untilTime(vs[0], now)
}

// untilFirst is until with several values, of which the earliest counts: docker images.
func (f Filter) untilFirst(now time.Time) (first time.Time, err error) {
	for _, v := range f["until"] {
		t, err := untilTime(v, now)
		if err != nil {
			return t, err
		}
		if first.IsZero() || t.Before(first) {
			first = t
		}
	}
	return first, nil
}

func untilTime(v string, now time.Time) (time.Time, error) {
	t, err := parseTime(v, now)
	if err != nil {
		return time.Time{}, fault.Invalidf("invalid filter 'until=%s': %w", v, err)
	}
	return t, nil
}

// timeLayouts are those that Docker reads, the most exact first.
var timeLayouts = [...]string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04Z07:00",
	"2006-01-02T15:04", "2006-01-02Z07:00", "2006-01-02"}

func parseTime(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	for _, l := range timeLayouts {
		if t, err := time.ParseInLocation(l, s, now.Location()); err == nil {
			return t, nil
		}
	}
	sec, frac, _ := strings.Cut(s, ".")
	n, err := strconv.ParseInt(sec, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("want a duration such as 24h, a date such as 2026-01-02T15:04:05 or unix seconds")
	}
	nanos, err := strconv.ParseInt((frac + "000000000")[:9], 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("bad fraction of a second %q", frac)
	}
	return time.Unix(n, nanos), nil
}
