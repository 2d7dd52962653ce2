// What a build reads of its context, before it is there.
package builder

import (
	"context"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
)

// reads are the paths that the steps read, relative to the context, each once; nil: all of it. Wildcards are those of path.Match.
func (p *plan) reads() []string {
	paths := []string{}
	for _, s := range p.reach() {
		for _, step := range s.steps {
			for _, at := range stepReads(step.op) {
				at = strings.TrimPrefix(path.Join("/", at), "/")
				if at == "" || !unambiguous(at) {
					return nil
				}
				paths = append(paths, at)
			}
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// unambiguous paths mean the same to everybody.
func unambiguous(p string) bool {
	for i := range len(p) {
		if p[i] < ' ' || p[i] > '~' || p[i] == '\\' {
			return false
		}
	}
	return true
}

func stepReads(o op) (paths []string) {
	switch o := o.(type) {
	case *copyOp:
		for _, src := range o.sources {
			switch {
			case o.from != nil, src.url != "", src.git != nil, src.content != nil:
			case len(src.sel.Include) == 0:
				paths = append(paths, src.sel.Path)
			default:
				for _, pattern := range src.sel.Include {
					if strings.Contains(pattern, "**") {
						pattern = ""
					}
					paths = append(paths, path.Join(src.sel.Path, pattern))
				}
			}
		}
	case *runOp:
		for _, m := range o.mounts {
			if m.from == nil && m.kind == instructions.MountTypeBind {
				paths = append(paths, path.Join("/", m.source))
			}
		}
	}
	return paths
}

// approve asks whether the addresses of ADD may be read.
func (p *plan) approve(ctx context.Context) error {
	if p.o.Approve == nil {
		return nil
	}
	for _, s := range p.reach() {
		for _, step := range s.steps {
			o, ok := step.op.(*copyOp)
			if !ok {
				continue
			}
			for _, src := range o.sources {
				identifier := src.url
				if src.git != nil {
					identifier = gitIdentifier(src.git.gitRef)
				}
				if identifier == "" {
					continue
				}
				if err := p.o.Approve(ctx, identifier, s.platform, nil); err != nil {
					return p.file.At(step.at, err)
				}
			}
		}
	}
	return nil
}

// gitIdentifier is a repository as BuildKit calls it.
func gitIdentifier(g gitRef) string {
	_, rest, ok := strings.Cut(g.remote, "://")
	if !ok {
		rest = g.remote
	}
	id := "git://" + rest
	if sub := strings.TrimPrefix(g.dir, "/"); g.ref != "" || sub != "" {
		id += "#" + g.ref
		if sub != "" {
			id += ":" + sub
		}
	}
	return id
}

// SourceIdentifier is an address as policies know it.
func SourceIdentifier(address string) string {
	if isGit(address) || strings.HasPrefix(address, "github.com/") {
		if g, err := parseGit(address); err == nil {
			return gitIdentifier(g)
		}
	}
	return address
}
