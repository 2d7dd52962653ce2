// Named contexts: --build-context NAME=directory or image, in the place of a stage or an image of that name.
package builder

import (
	"context"
	"path/filepath"
	"strings"

	"keg/internal/fault"
	"keg/internal/image"
)

// Context is what a name of --build-context stands for: a directory, an image, one in an OCI layout, or what another build made.
type Context struct {
	Dir    string
	Image  string // as FROM would name it
	Layout string // an OCI layout, DIR[:TAG|@DIGEST]: the engine makes an image of it
	Built  Built
}

// Built is what another build made for a platform. Its layers are here.
type Built func(ctx context.Context, p image.Platform) (Base, error)

// named finds the context of a name. An image is meant with its tag, or without one for "latest".
func (p *plan) named(name string) (Context, bool) {
	for have, c := range p.o.Contexts {
		if strings.EqualFold(have, name) {
			return c, true
		}
	}
	if ref, err := image.ParseReference(name); err == nil {
		for have, c := range p.o.Contexts {
			if other, err := image.ParseReference(have); err == nil && other == ref {
				return c, true
			}
		}
	}
	return Context{}, false
}

// local is a directory that is read as a stage is.
func (c Context) local() bool { return c.Dir != "" }

// namedBase is what FROM of this name means.
func (p *plan) namedBase(name string) (Context, bool, error) {
	c, ok := p.named(name)
	if ok && c.local() {
		return c, false, fault.Unsupportedf("FROM %s: the context of that name is a directory; a stage stands on an image (COPY --from=%s reads the directory)", name, name)
	}
	return c, ok, nil
}

// open opens the directory of a named context with its own ignore file, once a build.
func (s *solver) open(st *stage) (*buildContext, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if bc := s.opened[st]; bc != nil {
		return bc, nil
	}
	bc, err := openContext(st.local)
	if err != nil {
		return nil, err
	}
	text, err := bc.readSmall(".dockerignore", maxIgnoreFile)
	if err == nil {
		bc.ignore, err = parseIgnore(".dockerignore", text)
	} else if notExist(err) {
		err = nil
	}
	if err != nil {
		bc.close()
		return nil, err
	}
	dir, err := filepath.Abs(st.local)
	if err != nil {
		dir = st.local
	}
	bc.sums = loadSums(s.cache.sumsFile(hashName(dir, "named")))
	if s.opened == nil {
		s.opened = map[*stage]*buildContext{}
	}
	s.opened[st] = bc
	return bc, nil
}

// from is the context that a step reads: the build's own for nil, a named one for a stage that is a directory.
func (s *solver) from(st *stage) (*buildContext, error) {
	if st == nil {
		return s.context, nil
	}
	return s.open(st)
}
