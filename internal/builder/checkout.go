// The time of a clean git checkout: that of its commit.
package builder

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// CommitTime is the time of the commit that the checkout around dir shows; ok is false where there is no checkout,
// or one in which something below dir was changed.
//
// A repository can make git run programs (filters, fsmonitor, hooks), and somebody else may have made this one. So git
// does not read its configuration: it gets a repository that is empty but for the commit's id, a copy of the index
// and the objects of the other.
func CommitTime(ctx context.Context, dir string) (t time.Time, ok bool) {
	top, repo := findCheckout(dir)
	if repo == "" {
		return t, false
	}
	head, objects := headOf(repo)
	if head == "" {
		return t, false
	}
	tmp, err := os.MkdirTemp("", "keg-git-")
	if err != nil {
		return t, false
	}
	defer os.RemoveAll(tmp)
	if err := borrow(tmp, repo, head, objects); err != nil {
		return t, false
	}
	ask := func(args ...string) (string, error) {
		b, err := gitCommand(ctx, top, nil, append([]string{"--git-dir=" + tmp, "--work-tree=" + top}, args...)...)
		return strings.TrimSpace(string(b)), err
	}
	changed, err := ask("status", "--porcelain", "--untracked-files=normal", "--ignore-submodules=all", "--", dir)
	if err != nil || changed != "" {
		return t, false
	}
	text, err := ask("log", "-1", "--format=%ct", head)
	if err != nil {
		return t, false
	}
	sec, err := strconv.ParseInt(text, 10, 64)
	return time.Unix(sec, 0).UTC(), err == nil
}

// findCheckout finds the top of a checkout and its repository; "" when there is none.
func findCheckout(dir string) (top, repo string) {
	for d := dir; ; d = filepath.Dir(d) {
		p := filepath.Join(d, ".git")
		st, err := os.Lstat(p)
		if err == nil && st.IsDir() {
			return d, p
		}
		if err == nil && st.Mode().IsRegular() { // a worktree: "gitdir: PATH"
			b, err := os.ReadFile(p)
			if path, is := strings.CutPrefix(strings.TrimSpace(string(b)), "gitdir: "); err == nil && is {
				if !filepath.IsAbs(path) {
					path = filepath.Join(d, path)
				}
				return d, path
			}
		}
		if d == filepath.Dir(d) {
			return "", ""
		}
	}
}

// headOf reads the commit that is checked out, and where the objects are.
func headOf(repo string) (head, objects string) {
	common := repo
	if b, err := os.ReadFile(filepath.Join(repo, "commondir")); err == nil {
		if common = strings.TrimSpace(string(b)); !filepath.IsAbs(common) {
			common = filepath.Join(repo, common)
		}
	}
	b, err := os.ReadFile(filepath.Join(repo, "HEAD"))
	if err != nil {
		return "", ""
	}
	head = strings.TrimSpace(string(b))
	if ref, is := strings.CutPrefix(head, "ref: "); is {
		head = refOf(common, ref)
	}
	if len(head) != 40 && len(head) != 64 || strings.Trim(head, "0123456789abcdef") != "" {
		return "", ""
	}
	return head, filepath.Join(common, "objects")
}

func refOf(repo, ref string) string {
	if !filepath.IsLocal(ref) {
		return ""
	}
	if b, err := os.ReadFile(filepath.Join(repo, ref)); err == nil {
		return strings.TrimSpace(string(b))
	}
	b, err := os.ReadFile(filepath.Join(repo, "packed-refs"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if id, name, _ := strings.Cut(strings.TrimSpace(line), " "); name == ref {
			return id
		}
	}
	return ""
}

// borrow makes a repository that has nothing of its own.
func borrow(tmp, repo, head, objects string) error {
	for _, d := range []string{"objects/info", "refs"} {
		if err := os.MkdirAll(filepath.Join(tmp, d), 0o700); err != nil {
			return err
		}
	}
	index, err := os.ReadFile(filepath.Join(repo, "index"))
	if err != nil {
		return err
	}
	config := "[core]\n\trepositoryformatversion = 0\n"
	if len(head) == 64 {
		config = "[core]\n\trepositoryformatversion = 1\n[extensions]\n\tobjectformat = sha256\n"
	}
	for _, f := range []struct {
		name string
		data []byte
	}{
		{"HEAD", []byte(head + "\n")}, {"index", index}, {"config", []byte(config)},
		{"objects/info/alternates", fmt.Appendln(nil, objects)},
	} {
		if err := os.WriteFile(filepath.Join(tmp, f.name), f.data, 0o600); err != nil {
			return err
		}
	}
	return nil
}
