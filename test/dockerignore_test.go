package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// ignoreTree is the context of the differential cases of .dockerignore; a final slash is a
// directory without files, an arrow a link.
var ignoreTree = []string{
	"a.txt", "b.md", "A.TXT", "c", "dir/a.txt", "dir/b.md", "dir/sub/a.txt", "dir/sub/keep", "dir/sub/deep/keep", "dir2/x", "empty/",
	"node_modules/m/index.js", "other/node_modules/n/index.js", "other/src/main.go", "other/src/main_test.go", "é/ü", "with space/f g",
	".git/config", ".hidden", "dir/.env", ".env", "link->dir", "file[1]", "#hash", "!bang", "back\\slash", "star*name", "tmp/cache/x", "tmp/log/y",
}

var ignoreTexts = []string{
	"", "a.txt", "/a.txt", "*.md", "**/*.md", "dir", "dir/", "/dir/", "dir/*", "dir/**",
	"**/node_modules", "*/node_modules", "node_modules", "*\n!a.txt", "*\n!dir/sub/keep", "**\n!dir", "*\n!**/keep", "!a.txt\na.txt", "a.txt\n!a.txt\na.txt\n!a.txt", "dir\n!dir/sub\ndir/sub/a.txt",
	"dir\n!dir/sub/keep", "# a.txt\n\n  \nb.md", "  a.txt \t", "a.txt\r\nb.md\r\n", "\xef\xbb\xbfa.txt\n", "?.txt", "[ab].*", "[^a].*", "é", "é/*",
	"./dir/../a.txt", "dir/../../a.txt", "*\n! ./a.txt", "dir/**/keep", "**/keep", "A.TXT", "di", "**/.env", ".*", "*/.*",
	"link", "link/a.txt", "file\\[1\\]", "file[1]", "\\#hash", "#hash", "\\!bang", "with space", "with space/f g", "star\\*name",
	"other/src/*_test.go", "**/*_test.go\n!**/main_test.go", "*\n!*/", "*\n!dir*\ndir2", "tmp/*\n!tmp/log", "tmp\n!tmp/cache/x\ntmp/cache", "**", "**/**", "*\n!.git\n.git/config", "empty",
	"dir/sub/", "dir/sub/deep/..", ".", "/", "*.txt\n!*/*.txt", "**/dir", "**/sub/**\n!**/deep", "a*\n!a.t?t", "*.[tm][xd]*", "dir/*/keep",
}

// ignoreExceptions are the cases where Debian's BuildKit (20.10) differs from the one of
// today, whose library keg uses.
var ignoreExceptions = map[string]string{
	"*\n!**/keep":                  "20.10 looks into an ignored directory only for exceptions that begin with its name",
	"**/sub/**\n!**/deep":          "20.10 looks into an ignored directory only for exceptions that begin with its name",
	"tmp\n!tmp/cache/x\ntmp/cache": "today a directory that two patterns ignore is remembered as ignored by the first",
}

func ignoreContext(t *testing.T, text string) string {
	dir := filepath.Join(t.TempDir(), "context")
	for _, p := range ignoreTree {
		name, target, link := strings.Cut(p, "->")
		at := filepath.Join(dir, name)
		if strings.HasSuffix(p, "/") {
			at += "/x"
		}
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		switch {
		case link:
			os.Symlink(target, at)
		case !strings.HasSuffix(p, "/"):
			os.WriteFile(at, []byte("canary of "+p), 0o644)
		}
	}
	os.WriteFile(filepath.Join(dir, ".dockerignore"), []byte(text), 0o644)
	// The Dockerfile is read whatever the patterns say, from its own place.
	os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY . /x/\n"), 0o644)
	if err := ageFiles(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// ignoreFiles builds every case with both engines.
func ignoreFiles(t *testing.T, e *engine, d *buildkit) {
	if len(ignoreTexts) < 60 {
		t.Errorf("%d cases", len(ignoreTexts))
	}
	work := make(chan int)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for i := range work {
				j := &buildJob{tag: fmt.Sprintf("ignore-%d", i), context: ignoreContext(t, ignoreTexts[i])}
				ours, err := e.build(j)
				if err != nil {
					t.Errorf("%q: keg: %v", ignoreTexts[i], err)
					continue
				}
				theirs, err := d.build(j)
				if err != nil {
					t.Errorf("%q: BuildKit: %v", ignoreTexts[i], err)
					continue
				}
				if (ours.code == 0) != (theirs.code == 0) {
					t.Errorf("%q: exit %d and %d\nkeg: %s\nBuildKit: %s", ignoreTexts[i], ours.code, theirs.code, ours.out, theirs.out)
					continue
				}
				paths := ours.tree.differ(theirs.tree)
				if _, meant := ignoreExceptions[ignoreTexts[i]]; meant {
					if len(paths) == 0 {
						t.Errorf("%q: no difference", ignoreTexts[i])
					}
					continue
				}
				for _, at := range paths {
					t.Errorf("%q: %s\n\tkeg:      %s\n\tBuildKit: %s", ignoreTexts[i], at, ours.tree[at], theirs.tree[at])
				}
			}
		})
	}
	for i := range ignoreTexts {
		work <- i
	}
	close(work)
	wg.Wait()
}
