// Git repositories, as contexts and as sources of ADD. What is in an address may be
// hostile, and so is the repository: git runs without the user's configuration, with an
// allow-list of protocols, and gets nothing foreign that could be an option.
package builder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	"keg/internal/fault"
	"keg/internal/weakness"
)

// gitRef is an address like https://host/repository.git#ref:directory.
type gitRef struct {
	remote, ref, dir string
}

func parseGit(s string) (gitRef, error) {
	if rest, ok := strings.CutPrefix(s, "github.com/"); ok {
		s = "https://github.com/" + rest
	}
	remote, fragment, _ := strings.Cut(s, "#")
	u, err := url.Parse(remote)
	if err != nil {
		return gitRef{}, fault.Invalidf("git address %q: %w", s, err)
	}
	switch {
	case u.Scheme == "https" || u.Scheme == "http":
		if u.Host == "" {
			return gitRef{}, fault.Invalidf("git address %q names no host", s)
		}
	case u.Scheme == "file":
		if u.Host != "" || !path.IsAbs(u.Path) {
			return gitRef{}, fault.Invalidf("git address %q: want file:///absolute/path", s)
		}
	default:
		return gitRef{}, fault.Unsupportedf("git address %q: only https, http and file are supported; use https", s)
	}
	if strings.ContainsAny(remote, "\x00\r\n \t") {
		return gitRef{}, fault.Invalidf("git address %q has white space", s)
	}
	g := gitRef{remote: remote}
	g.ref, g.dir, _ = strings.Cut(fragment, ":")
	if u.RawQuery != "" {
		if err := g.query(u); err != nil {
			return g, err
		}
	}
	if err := checkRef(g.ref); err != nil {
		return g, err
	}
	for part := range strings.SplitSeq(g.dir, "/") {
		if part == ".." {
			return g, fault.Deniedf("git address %q: the directory %q leads out of the repository", s, g.dir)
		}
	}
	g.dir = path.Clean("/" + g.dir)
	return g, nil
}

// query reads an address like https://host/repository.git?ref=main&subdir=directory.
func (g *gitRef) query(u *url.URL) error {
	for key, values := range u.Query() {
		v := values[len(values)-1]
		switch key {
		case "ref", "branch", "tag", "commit":
			g.ref = v
		case "subdir":
			g.dir = v
		default:
			return fault.Unsupportedf("git address %q: the parameter %q is not supported: want ref, branch, tag, commit or subdir", u, key)
		}
	}
	u.RawQuery, u.Fragment = "", ""
	g.remote = u.String()
	return nil
}

// checkRef refuses what git might take for an option or an expression (git-check-ref-format(1)).
func checkRef(ref string) error {
	bad := strings.HasPrefix(ref, "-") || strings.Contains(ref, "..") || strings.Contains(ref, "@{") || strings.HasPrefix(ref, "+")
	for _, r := range ref {
		bad = bad || r <= ' ' || r == 0x7f || strings.ContainsRune("~^:?*[\\", r)
	}
	if bad && !weakness.Of("BL4") {
		return fault.Invalidf("%q is not the name of a git branch, tag or commit", ref)
	}
	return nil
}

func isCommit(ref string) bool {
	return (len(ref) == 40 || len(ref) == 64) && strings.Trim(ref, "0123456789abcdef") == ""
}

// gitCommand runs git in dir. Its environment is made here: no configuration of a user, no
// hooks, no prompts, files with the modes that git records.
func gitCommand(ctx context.Context, dir string, env map[string]string, args ...string) ([]byte, error) {
	if _, err := exec.LookPath("git"); err != nil {
		return nil, fault.Unavailablef("git is needed for a git repository and is not installed")
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Minute)
	defer cancel()
	safe := []string{"-c", `umask 022; exec git "$@"`, "git", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false",
		"-c", "core.symlinks=true", "-c", "fetch.fsckObjects=true", "-c", "protocol.ext.allow=never", "-c", "safe.directory=*",
		"-c", "advice.detachedHead=false", "-c", "init.defaultBranch=main", "-c", "http.followRedirects=initial"}
	cmd := exec.CommandContext(ctx, "/bin/sh", append(safe, args...)...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "LC_ALL=C", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_TERMINAL_PROMPT=0", "GIT_ASKPASS=/bin/false", "GIT_ALLOW_PROTOCOL=https:http:file", "GIT_LFS_SKIP_SMUDGE=1"}
	for _, k := range [...]string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "GIT_SSL_CAINFO"} {
		if v, ok := env[k]; ok {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	var out, bad bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &bad
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fault.Unavailablef("git %s: %s", args[0], strings.TrimSpace(visible(lastLine(bad.String()), 400)))
	}
	return out.Bytes(), nil
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// resolve gives the commit that the address means now, and the name to fetch it by.
func (g gitRef) resolve(ctx context.Context, env map[string]string) (commit, name string, err error) {
	if isCommit(g.ref) {
		return g.ref, g.ref, nil
	}
	want := g.ref
	if want == "" {
		want = "HEAD"
	}
	out, err := gitCommand(ctx, "/", env, "ls-remote", "--", g.remote, want, "refs/heads/"+want, "refs/tags/"+want, "refs/tags/"+want+"^{}")
	if err != nil {
		return "", "", fmt.Errorf("%s: %w", g.remote, err)
	}
	found := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) == 2 && isCommit(f[0]) {
			found[f[1]] = f[0]
		}
	}
	for _, name := range []string{want, "refs/heads/" + want, "refs/tags/" + want} {
		if c := found[name]; c != "" {
			if peeled := found[name+"^{}"]; peeled != "" {
				c = peeled
			}
			return c, name, nil
		}
	}
	return "", "", fault.NotFoundf("repository %s does not contain ref %s", g.remote, want)
}

// clone puts the commit into dir, an empty directory.
func (g gitRef) clone(ctx context.Context, env map[string]string, commit, name, dir string) error {
	if _, err := gitCommand(ctx, dir, env, "init", "--quiet", "--template=", "."); err != nil {
		return err
	}
	if _, err := gitCommand(ctx, dir, env, "fetch", "--quiet", "--no-tags", "--depth=1", "--no-recurse-submodules", "--", g.remote, name); err != nil {
		// Some servers give no single commit.
		if _, again := gitCommand(ctx, dir, env, "fetch", "--quiet", "--no-recurse-submodules", "--", g.remote, "+refs/*:refs/keg/*"); again != nil {
			return fmt.Errorf("%s: %w", g.remote, errors.Join(err, again))
		}
	}
	if _, err := gitCommand(ctx, dir, env, "checkout", "--quiet", "--force", "--detach", commit, "--"); err != nil {
		return fmt.Errorf("%s: commit %s: %w", g.remote, commit, err)
	}
	return nil
}

// resolveGit asks for the commit. A repository of this machine must lie in the context: a
// Dockerfile may not read what it was not given.
func (s *solver) resolveGit(ctx context.Context, g *gitSource) (err error) {
	if u, _ := url.Parse(g.remote); u.Scheme == "file" {
		if err := s.context.contains(u.Path); err != nil {
			return fmt.Errorf("ADD %s: %w", g.remote, err)
		}
	}
	g.commit, g.name, err = g.resolve(ctx, s.plan.o.Env)
	return err
}

// contains refuses a path of this machine outside the context.
func (c *buildContext) contains(p string) error {
	root, err := filepath.EvalSymlinks(c.dir)
	if err != nil {
		return err
	}
	if root, err = filepath.Abs(root); err != nil {
		return err
	}
	real, err := filepath.EvalSymlinks(p)
	if err != nil {
		return err
	}
	if rel, err := filepath.Rel(root, real); err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return fault.Deniedf("the repository is outside of the build context")
	}
	return selfContained(real)
}

// selfContained refuses a repository that takes objects from elsewhere on this machine.
func selfContained(repo string) error {
	dir := repo
	if _, err := os.Lstat(filepath.Join(repo, ".git")); err == nil {
		dir = filepath.Join(repo, ".git")
	}
	return filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		rel := strings.TrimPrefix(p, dir)
		if err == nil && (e.Type()&fs.ModeSymlink != 0 || rel == "" && !e.IsDir() || rel == "/objects/info/alternates" || rel == "/commondir") {
			return fault.Deniedf("the repository refers to files outside of itself (%s)", rel)
		}
		return err
	})
}

// gitTree is a commit, fetched for one step.
func (s *solver) gitTree(ctx context.Context, g gitRef, commit, name string, undo *cleanup) (*tree, error) {
	dir, err := s.scratch(ctx, undo)
	if err != nil {
		return nil, err
	}
	if err := g.clone(ctx, s.plan.o.Env, commit, name, dir); err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	undo.add(func() { f.Close() })
	return &tree{root: f}, nil
}
