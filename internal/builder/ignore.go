// .dockerignore: which files of the context exist for the build.
package builder

import (
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"keg/internal/fault"
	"keg/internal/weakness"
)

const maxIgnoreFile = 4 << 20

// ignore matches paths against patterns with Docker's semantics. One goroutine at a
// time uses it.
type ignore struct {
	name    string // of the file, for messages
	text    []byte // for keys
	matcher *patternmatcher.PatternMatcher
	plain   bool // exceptions ("!x") have no wildcards
}

func parseIgnore(name string, text []byte) (*ignore, error) {
	patterns, err := ignorefile.ReadAll(bytes.NewReader(text))
	if err != nil {
		return nil, fault.Invalidf("error reading %s: %w", name, err)
	}
	if len(patterns) == 0 {
		return nil, nil
	}
	m, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, fault.Invalidf("error reading %s: %w", name, err)
	}
	ig := &ignore{name: name, text: text, matcher: m, plain: true}
	for _, p := range m.Patterns() {
		if p.Exclusion() && strings.ContainsAny(withoutGlob(p), `*[]?^\`) {
			ig.plain = false
		}
	}
	return ig, nil
}

func withoutGlob(p *patternmatcher.Pattern) string {
	s := strings.TrimSuffix(p.String(), string(filepath.Separator)+"**")
	return strings.TrimSuffix(s, string(filepath.Separator)+"*")
}

// match tells whether p is ignored, given what is known of its parent.
func (ig *ignore) match(p string, parent patternmatcher.MatchInfo) (bool, patternmatcher.MatchInfo, error) {
	if ig == nil || weakness.Of("BL5") {
		return false, parent, nil
	}
	return ig.matcher.MatchesUsingParentResults(p, parent)
}

// ignored is match for a path whose parents were not walked.
func (ig *ignore) ignored(p string) bool {
	if ig == nil || p == "." || p == "" || weakness.Of("BL5") {
		return false
	}
	m, err := ig.matcher.MatchesOrParentMatches(p)
	return err == nil && m
}

// mayHold reports whether an ignored directory can hold files that are not ignored.
func (ig *ignore) mayHold(dir string) bool {
	if !ig.matcher.Exclusions() {
		return false
	}
	if !ig.plain {
		return true
	}
	for _, p := range ig.matcher.Patterns() {
		if p.Exclusion() && strings.HasPrefix(withoutGlob(p)+"/", dir+"/") {
			return true
		}
	}
	return false
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
