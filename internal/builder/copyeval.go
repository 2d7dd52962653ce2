// COPY and ADD: evaluation, and what goes into their keys.
package builder

import (
	"context"
	"fmt"
	"net/url"
	"path"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
)

// copyArgs is what COPY and ADD share.
type copyArgs struct {
	instructions.SourcesAndDest
	word, text         string // "COPY", its source
	chown, chmod       string
	link, parents, add bool
	exclude            []string
	checksum           string
	unpack, keepGitDir *bool
}

func copyOf(c *instructions.CopyCommand) copyArgs {
	return copyArgs{SourcesAndDest: c.SourcesAndDest, word: "COPY", text: sourceOf(c), chown: c.Chown, chmod: c.Chmod,
		link: c.Link, parents: c.Parents, exclude: c.ExcludePatterns}
}

func addOf(c *instructions.AddCommand) copyArgs {
	return copyArgs{SourcesAndDest: c.SourcesAndDest, word: "ADD", text: sourceOf(c), chown: c.Chown, chmod: c.Chmod,
		link: c.Link, add: true, exclude: c.ExcludePatterns, checksum: c.Checksum, unpack: c.Unpack, keepGitDir: c.KeepGitDir}
}

// copyOp is an evaluated COPY or ADD. Its sources are taken in the order written.
type copyOp struct {
	from     *stage // nil: the context
	sources  []copySource
	dest     string // absolute; a trailing slash or "/." is kept
	chown    *ownerSpec
	chmod    *modeSpec
	checksum digest.Digest
	unpack   bool // local archives
	text     string
	found    [][]source // by source, once inputs ran and the tree was read
}

// copySource is one of: files of a tree, a URL, a heredoc.
type copySource struct {
	sel     selector
	url     string
	content *instructions.SourceContent
	git     *gitSource
}

// gitSource is a repository and, once it was asked, its commit.
type gitSource struct {
	gitRef
	commit, name string
}

func (p *plan) evalCopy(s *stage, c command, a copyArgs) error {
	o := &copyOp{dest: destination(s.config.Config.WorkingDir, a.DestPath), unpack: a.add}
	if len(c.from) > 0 {
		o.from = c.from[0]
	}
	var err error
	if o.chown, err = parseOwner(a.chown); err != nil {
		return err
	}
	if a.link && o.chown.named() {
		return fault.Invalidf("--chown=%s: user and group names can't be resolved when used with --link, use numeric uid[:gid] instead", a.chown)
	}
	if o.chmod, err = parseMode(a.chmod); err != nil {
		return err
	}
	history := a.word
	if a.parents {
		history += " --parents"
	}
	if a.chown != "" {
		history += " --chown=" + a.chown
	}
	if a.chmod != "" {
		history += " --chmod=" + a.chmod
	}
	remote := false
	for _, src := range a.SourcePaths {
		history += " " + src
		cs, err := o.source(src, a)
		if err != nil {
			return err
		}
		remote = remote || cs.url != "" || cs.git != nil
		o.sources = append(o.sources, cs)
	}
	if a.unpack != nil {
		o.unpack = *a.unpack
	}
	if err := o.setChecksum(a, remote); err != nil {
		return err
	}
	for i := range a.SourceContents {
		history += " <<" + a.SourceContents[i].Path
		o.sources = append(o.sources, copySource{content: &a.SourceContents[i]})
	}
	o.text = o.canonical(a)
	s.addStep(p.shown(a.text, s.env, false), c, o, p.uncached(s))
	s.history(history+" "+a.DestPath+" # buildkit", true)
	return nil
}

// destination makes a path absolute and keeps what tells a directory.
func destination(workdir, dest string) string {
	if dest == "" || dest == "." {
		dest = "./"
	}
	abs := dest
	if !path.IsAbs(dest) {
		abs = path.Join("/", workdir, dest)
	} else {
		abs = path.Clean(dest)
	}
	if (strings.HasSuffix(dest, "/") || strings.HasSuffix(dest, "/.")) && !strings.HasSuffix(abs, "/") {
		abs += "/"
	}
	return abs
}

func (o *copyOp) source(src string, a copyArgs) (copySource, error) {
	switch {
	case isGit(src):
		if !a.add {
			return copySource{}, fault.Invalidf("source can't be a git ref for COPY")
		}
		g, err := parseGit(src)
		if err != nil {
			return copySource{}, err
		}
		sel := selector{Path: g.dir, Exclude: a.exclude}
		if a.keepGitDir == nil || !*a.keepGitDir {
			sel.Exclude = append([]string{".git"}, a.exclude...)
		}
		return copySource{sel: sel, git: &gitSource{gitRef: g}}, nil
	case isHTTP(src):
		if !a.add {
			return copySource{}, fault.Invalidf("source can't be a URL for COPY")
		}
		return copySource{url: src}, nil
	}
	sel := selector{Path: path.Join("/", src), Wildcard: true, Follow: true, Exclude: a.exclude}
	if a.parents {
		pivot, pattern, ok := strings.Cut(src, "/./")
		if !ok {
			pivot, pattern = "/", src
		}
		pattern = strings.TrimPrefix(path.Join("/", pattern), "/")
		sel.Path = path.Join("/", pivot)
		if pattern != "" {
			sel.Include = []string{pattern}
			sel.Required = !hasWildcard(pivot) && !hasWildcard(pattern)
		}
	}
	return copySource{sel: sel}, nil
}

func (o *copyOp) setChecksum(a copyArgs, remote bool) error {
	if a.checksum == "" {
		return nil
	}
	switch {
	case !a.add:
		return fault.Invalidf("checksum can't be specified for COPY")
	case len(a.SourcePaths) != 1:
		return fault.Invalidf("checksum can't be specified for multiple sources")
	case !remote:
		return fault.Invalidf("checksum requires HTTP(S) or Git sources")
	}
	d, err := digest.Parse(a.checksum)
	if err != nil {
		return fault.Invalidf("checksum %q: %w", a.checksum, err)
	}
	o.checksum = d
	return nil
}

func isHTTP(src string) bool {
	return strings.HasPrefix(src, "http://") || strings.HasPrefix(src, "https://")
}

// isGit tells git repositories by BuildKit's rules: schemes of git's own, scp-like
// addresses, and http addresses whose path ends in .git.
func isGit(src string) bool {
	src, _, _ = strings.Cut(src, "#")
	if strings.HasPrefix(src, "file://") || strings.HasPrefix(src, "git://") || strings.HasPrefix(src, "ssh://") || strings.HasPrefix(src, "git@") {
		return true
	}
	if !isHTTP(src) {
		return false
	}
	u, err := url.Parse(src)
	return err == nil && strings.HasSuffix(u.Path, ".git")
}

// canonical is the instruction as evaluated, for the key. Names of sources are not in
// it: the digests of the files hold the ones that matter.
func (o *copyOp) canonical(a copyArgs) string {
	text := a.word
	for _, flag := range [...]struct {
		name, value string
		on          bool
	}{
		{"chown", a.chown, a.chown != ""},
		{"chmod", a.chmod, a.chmod != ""},
		{"parents", "true", a.parents},
		{"unpack", fmt.Sprint(o.unpack), o.unpack != a.add},
		{"checksum", o.checksum.String(), o.checksum != ""},
	} {
		if flag.on {
			text += " --" + flag.name + "=" + strconv.Quote(flag.value)
		}
	}
	for _, e := range a.exclude {
		text += " --exclude=" + strconv.Quote(e)
	}
	return text + " " + strconv.Quote(o.dest)
}

func (o *copyOp) reads() []*stage {
	if o.from == nil {
		return nil
	}
	return []*stage{o.from}
}

func (o *copyOp) inputs(ctx context.Context, s *solver, in *inputs) error {
	in.add(kindInstruction, "", o.text)
	o.found = make([][]source, len(o.sources))
	for i, src := range o.sources {
		switch {
		case src.content != nil:
			in.add(kindHeredoc, src.content.Path, src.content.Data)
		case src.git != nil:
			if err := s.resolveGit(ctx, src.git); err != nil {
				return err
			}
			in.add(kindGit, src.git.remote+"#"+src.git.ref+":"+src.git.dir, src.git.commit+" "+strings.Join(src.sel.Exclude, " "))
		case src.url != "":
			d, err := s.urlDigest(ctx, src.url, o.checksum)
			if err != nil {
				return err
			}
			in.add(kindURL, src.url, d)
		default:
			found, err := s.files(ctx, o.from, src.sel, in)
			if err != nil {
				return err
			}
			o.found[i] = found
		}
	}
	return nil
}
