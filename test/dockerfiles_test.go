package test

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/sys/unix"
)

// The corpus: test/dockerfiles/<number>-<name>.txtar. Each is a build context, with
//
//	flags    flags of build, one a line
//	env      NAME=value of the client, one a line
//	prepare  a shell script run in the context: links, modes, odd bytes
//	stdin    what the client reads
//	want     for what Debian's BuildKit does not know: what the image has beside its base
//
// BuildKit builds the ones without want, too, and has to come to the same tree and config.

var update = flag.Bool("update", false, "write the want files of test/dockerfiles")

type corpusCase struct {
	name, path string
	archive    *txtar.Archive
	flags, env []string
	stdin      []byte
	want       *string
	context    string
}

func corpus(t *testing.T) []*corpusCase {
	t.Helper()
	paths, err := filepath.Glob("dockerfiles/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var cases []*corpusCase
	for _, p := range paths {
		c := &corpusCase{name: strings.TrimSuffix(filepath.Base(p), ".txtar"), path: p}
		if c.archive, err = txtar.ParseFile(p); err != nil {
			t.Fatal(err)
		}
		if c.context, err = c.materialise(t.TempDir()); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		cases = append(cases, c)
	}
	return cases
}

// materialise writes the context below dir and gives all files one old time.
func (c *corpusCase) materialise(dir string) (string, error) {
	context := filepath.Join(dir, "context")
	prepare := ""
	for _, f := range c.archive.Files {
		switch f.Name {
		case "flags":
			for line := range strings.Lines(string(f.Data)) {
				c.flags = append(c.flags, strings.ReplaceAll(strings.TrimSuffix(line, "\n"), "$CONTEXT", context))
			}
		case "env":
			c.env = strings.Split(strings.TrimSpace(string(f.Data)), "\n")
		case "prepare":
			prepare = string(f.Data)
		case "stdin":
			c.stdin = f.Data
		case "want":
			want := string(f.Data)
			c.want = &want
		default:
			p := filepath.Join(context, f.Name)
			if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
				return "", err
			}
			if err := os.WriteFile(p, f.Data, 0o644); err != nil {
				return "", err
			}
		}
	}
	if err := os.MkdirAll(context, 0o755); err != nil {
		return "", err
	}
	if prepare != "" {
		cmd := exec.Command("sh", "-ec", prepare)
		cmd.Dir = context
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("prepare: %w\n%s", err, out)
		}
	}
	return context, ageFiles(context)
}

func ageFiles(dir string) error {
	old := unix.NsecToTimespec(time.Unix(1577934245, 0).UnixNano())
	return filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{old, old}, unix.AT_SYMLINK_NOFOLLOW)
	})
}

func (c *corpusCase) job() *buildJob {
	return &buildJob{tag: "case-" + c.name[:2], context: c.context, flags: c.flags, env: c.env, stdin: c.stdin}
}

// exceptions are the differences from Debian's BuildKit (20.10, a Dockerfile frontend of 2020)
// that are meant: by case, by path or line of the config, by how both begin.
var exceptions = []struct{ name, at, ours, theirs, reason string }{
	{"*", "history.*.created_by", `"EXPOSE [`, `"EXPOSE map[`, "the frontend of today writes a list"},
	{"*", "history.*.created_by", `"HEALTHCHECK {`, `"HEALTHCHECK \u0026{`, "the frontend of today writes the fields' names"},
	{"*", "history.*.created_by", `"COPY --ch`, `"COPY `, "the frontend of today tells --chown and --chmod"},
	{"*", "history.*.created_by", `"ADD --ch`, `"ADD `, "the frontend of today tells --chown and --chmod"},
	{"*", "history.*.created_by", `"ARG `, `"ARG `, "the frontend of today tells the value that counts"},
	{"05-arg", "history.8.created_by", `"RUN |4 `, `"RUN |5 `, "an argument declared twice is told once"},
	{"35-*", "history.5.created_by", `"RUN |1 A=arg`, `"RUN /bin/sh`, "arguments of the stage below are told"},
	{"11-*", "history.5.created_by", `"WORKDIR /var/run/x"`, `"WORKDIR /var/run/x/"`, "a cleaned path"},
	{"66-*", "history.*.created_by", `"RUN`, `"RUN`, "20.10 lets stages of one base write into one array of history"},
	{"10-user", "/w/id", "file", "file", "a user's primary group is among its groups (CVE-2023-25173)"},
	{"21-*", "/x/pipe", "fifo", "", "20.10 does not copy pipes"},
	{"23-*", "/b", "file 4711", "file 0711", "20.10 changes the owner after the mode, which clears set-user-ID"},
	{"90-*", "/z/mode", "dir 0700", "dir 0755", "20.10 does not give the mode to a new destination"},
	{"*", "/*", "", "dir 0755 0:0", "BuildKit removes directories made for mounts since 0.12"},
}

func excepted(name, at, ours, theirs string) bool {
	for i, e := range exceptions {
		named, _ := path.Match(e.name, name)
		placed, _ := path.Match(e.at, at)
		if placed = placed || e.at == "/*" && strings.HasPrefix(at, "/"); named && placed &&
			strings.HasPrefix(ours, e.ours) && strings.HasPrefix(theirs, e.theirs) && (ours == "") == (e.ours == "") && (theirs == "") == (e.theirs == "") {
			used.Store(i, true)
			return true
		}
	}
	return false
}

// used are the exceptions that a difference was found for.
var used sync.Map

// TestBesideBuildkit builds the corpus and the contexts with ignore files with keg and with
// Debian's BuildKit: trees and configs have to be equal.
func TestBesideBuildkit(t *testing.T) {
	e := newEngine(t)
	if _, err := exec.LookPath("dockerd"); err != nil {
		t.Skip("needs Docker's engine to compare with: ", err)
	}
	languageBases(t)
	d := startBuildkit(t, corpusBases...)
	for _, ref := range corpusBases {
		e.keg("pull", "-q", ref)
	}
	t.Run("Dockerfiles", func(t *testing.T) { dockerfiles(t, e, d) })
	t.Run("ignore files", func(t *testing.T) { ignoreFiles(t, e, d) })
	e.keg("system", "prune", "-af")
}

var corpusBases = []string{"busybox", "alpine", "onbuild", "python", "node", "golang"}

func dockerfiles(t *testing.T, e *engine, d *buildkit) {
	if len(exceptions) > 15 {
		t.Errorf("%d exceptions", len(exceptions))
	}
	cases := corpus(t)
	work := make(chan *corpusCase)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for c := range work {
				c.compare(t, e, d)
			}
		})
	}
	for _, c := range cases {
		work <- c
	}
	close(work)
	wg.Wait()
	for i, x := range exceptions {
		if _, ok := used.Load(i); !ok {
			t.Errorf("no difference is as the exception %q says", x.reason)
		}
	}
}

func (c *corpusCase) compare(t *testing.T, e *engine, d *buildkit) {
	ours, err := e.build(c.job())
	if err != nil {
		t.Errorf("%s: keg: %v", c.name, err)
		return
	}
	if ours.code != 0 {
		t.Errorf("%s: keg build: exit %d\n%s", c.name, ours.code, ours.out)
		return
	}
	if c.want != nil {
		c.golden(t, e, ours)
		return
	}
	theirs, err := d.build(c.job())
	if err != nil {
		t.Errorf("%s: BuildKit: %v", c.name, err)
		return
	}
	if theirs.code != 0 {
		t.Errorf("%s: docker build: exit %d\n%s", c.name, theirs.code, theirs.out)
		return
	}
	report := func(what string, o, w listing) {
		shown := 0
		for _, at := range o.differ(w) {
			if !excepted(c.name, at, o[at], w[at]) && shown < 10 {
				shown++
				t.Errorf("%s: %s %s\n\tkeg:      %s\n\tBuildKit: %s", c.name, what, at, o[at], w[at])
			}
		}
	}
	report("tree", ours.tree, theirs.tree)
	report("config", ours.imageConfig(), theirs.imageConfig())
}

// golden compares what the image has beside busybox.
func (c *corpusCase) golden(t *testing.T, e *engine, b *built) {
	base, err := e.base()
	if err != nil {
		t.Errorf("%s: %v", c.name, err)
		return
	}
	lines := []string{}
	for _, p := range b.tree.differ(base.tree) {
		lines = append(lines, strings.TrimSpace(p+" "+b.tree[p]))
	}
	config, was := b.imageConfig(), base.imageConfig()
	for _, k := range config.differ(was) {
		if !strings.HasPrefix(k, "history") {
			lines = append(lines, k+" = "+config[k])
		}
	}
	got := strings.Join(lines, "\n") + "\n"
	if got == *c.want {
		return
	}
	if !*update {
		t.Errorf("%s: is\n%s\nwant\n%s", c.name, got, *c.want)
		return
	}
	for i, f := range c.archive.Files {
		if f.Name == "want" {
			c.archive.Files[i].Data = []byte(got)
		}
	}
	if err := os.WriteFile(c.path, txtar.Format(c.archive), 0o644); err != nil {
		t.Error(err)
	}
}

var baseOnce struct {
	sync.Mutex
	b *built
}

// base is busybox as keg sees it.
func (e *engine) base() (*built, error) {
	baseOnce.Lock()
	defer baseOnce.Unlock()
	if baseOnce.b != nil {
		return baseOnce.b, nil
	}
	dir := e.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM busybox\n"), 0o644); err != nil {
		return nil, err
	}
	b, err := e.build(&buildJob{tag: "base", context: dir})
	if err == nil && b.code != 0 {
		err = errors.New(b.out)
	}
	baseOnce.b = b
	return b, err
}

// What the flags above say has to be in the corpus: this holds its size and variety.
func TestCorpusIsWhole(t *testing.T) {
	paths, _ := filepath.Glob("dockerfiles/*.txtar")
	executed := 0
	var all strings.Builder
	for _, p := range paths {
		a, err := txtar.ParseFile(p)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(a.Files, func(f txtar.File) bool { return f.Name == "want" }) {
			executed++
		}
		all.Write(txtar.Format(a))
	}
	if executed < 60 {
		t.Errorf("%d Dockerfiles are built by both engines, not 60", executed)
	}
	for _, what := range []string{"FROM golang", "FROM node", "FROM python", "FROM onbuild", "<<", "--mount=type=bind", "--mount=type=cache", "--mount=type=tmpfs", "--mount=type=secret",
		"--link", "--parents", "--exclude", "--chmod=", "--chown=", "--from=", "ONBUILD", "HEALTHCHECK", "# escape=", "# syntax=", "--platform=$BUILDPLATFORM", "--network=none", "--target", "--label", "--build-arg", "--add-host", "--shm-size"} {
		if !strings.Contains(all.String(), what) {
			t.Errorf("no Dockerfile has %q", what)
		}
	}
}
