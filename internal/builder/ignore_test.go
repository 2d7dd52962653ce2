package builder

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"keg/internal/image"
)

func TestDockerignore(t *testing.T) {
	all := []string{"a.txt", "b.md", "dir/a.txt", "dir/sub/b.md", "dir/sub/keep", "node_modules/m/x", "other/node_modules/y", "é/ü"}
	for name, c := range map[string]struct{ ignore, want string }{
		"none":                 {"", "a.txt b.md dir/a.txt dir/sub/b.md dir/sub/keep node_modules/m/x other/node_modules/y é/ü"},
		"name at the root":     {"a.txt", "b.md dir/a.txt dir/sub/b.md dir/sub/keep node_modules/m/x other/node_modules/y é/ü"},
		"leading slash":        {"/a.txt", "b.md dir/a.txt dir/sub/b.md dir/sub/keep node_modules/m/x other/node_modules/y é/ü"},
		"glob at the root":     {"*.md", "a.txt dir/a.txt dir/sub/b.md dir/sub/keep node_modules/m/x other/node_modules/y é/ü"},
		"glob anywhere":        {"**/*.md", "a.txt dir/a.txt dir/sub/keep node_modules/m/x other/node_modules/y é/ü"},
		"directory":            {"dir", "a.txt b.md node_modules/m/x other/node_modules/y é/ü"},
		"directory slash":      {"dir/", "a.txt b.md node_modules/m/x other/node_modules/y é/ü"},
		"directory contents":   {"dir/*", "a.txt b.md node_modules/m/x other/node_modules/y é/ü"},
		"everywhere":           {"**/node_modules", "a.txt b.md dir/a.txt dir/sub/b.md dir/sub/keep é/ü"},
		"one level":            {"*/node_modules", "a.txt b.md dir/a.txt dir/sub/b.md dir/sub/keep node_modules/m/x é/ü"},
		"all but one":          {"*\n!a.txt", "a.txt"},
		"all but a deep one":   {"*\n!dir/sub/keep", "dir/sub/keep"},
		"all but a dir":        {"**\n!dir", "dir/a.txt dir/sub/b.md dir/sub/keep"},
		"exception has glob":   {"*\n!**/keep", "dir/sub/keep"},
		"last word counts":     {"!a.txt\na.txt", "b.md dir/a.txt dir/sub/b.md dir/sub/keep node_modules/m/x other/node_modules/y é/ü"},
		"and back":             {"dir\n!dir/sub\ndir/sub/b.md", "a.txt b.md dir/sub/keep node_modules/m/x other/node_modules/y é/ü"},
		"excluded parent":      {"dir\n!dir/sub/keep", "a.txt b.md dir/sub/keep node_modules/m/x other/node_modules/y é/ü"},
		"comment and blank":    {"# a.txt\n\n  \nb.md", "a.txt dir/a.txt dir/sub/b.md dir/sub/keep node_modules/m/x other/node_modules/y é/ü"},
		"white space":          {"  a.txt \t", "b.md dir/a.txt dir/sub/b.md dir/sub/keep node_modules/m/x other/node_modules/y é/ü"},
		"crlf":                 {"a.txt\r\nb.md\r\n", "dir/a.txt dir/sub/b.md dir/sub/keep node_modules/m/x other/node_modules/y é/ü"},
		"bom":                  {"\xef\xbb\xbfa.txt\n", "b.md dir/a.txt dir/sub/b.md dir/sub/keep node_modules/m/x other/node_modules/y é/ü"},
		"question mark":        {"?.txt", "b.md dir/a.txt dir/sub/b.md dir/sub/keep node_modules/m/x other/node_modules/y é/ü"},
		"class":                {"[ab].*", "dir/a.txt dir/sub/b.md dir/sub/keep node_modules/m/x other/node_modules/y é/ü"},
		"unicode":              {"é", "a.txt b.md dir/a.txt dir/sub/b.md dir/sub/keep node_modules/m/x other/node_modules/y"},
		"dots":                 {"./dir/../a.txt", "b.md dir/a.txt dir/sub/b.md dir/sub/keep node_modules/m/x other/node_modules/y é/ü"},
		"exclamation and dots": {"*\n! ./a.txt", "a.txt"},
		"double star inside":   {"dir/**/keep", "a.txt b.md dir/a.txt dir/sub/b.md node_modules/m/x other/node_modules/y é/ü"},
		"double star after":    {"dir/**", "a.txt b.md node_modules/m/x other/node_modules/y é/ü"},
		"case matters":         {"A.TXT", "a.txt b.md dir/a.txt dir/sub/b.md dir/sub/keep node_modules/m/x other/node_modules/y é/ü"},
		"a part of a name":     {"di", "a.txt b.md dir/a.txt dir/sub/b.md dir/sub/keep node_modules/m/x other/node_modules/y é/ü"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			for _, f := range all {
				writeFiles(t, w.dir, f+"=canary of "+f)
			}
			os.WriteFile(filepath.Join(w.dir, ".dockerignore"), []byte(c.ignore+"\n.dockerignore\n"), 0o644)
			r, err := w.build(w.options("FROM scratch\nCOPY . /x/"))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, n := range names(t, w.root(r)) {
				if n = strings.TrimPrefix(n, "x/"); n != "" && !strings.HasSuffix(n, "/") {
					got = append(got, n)
				}
			}
			want := strings.Fields(c.want)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
}

func TestIgnoredDirectoriesAppearOnlyWithWhatIsInThem(t *testing.T) {
	w := newWorld(t)
	writeFiles(t, w.dir, "d/e/keep=1", "d/gone/x=1", "empty/", ".dockerignore=*\n!d/e/keep\n")
	r := w.mustBuild("FROM scratch\nCOPY . /x/\nCOPY d* /y/\nCOPY d/e /z/")
	want := []string{"x/", "x/d/", "x/d/e/", "x/d/e/keep", "y/", "y/e/", "y/e/keep", "z/", "z/keep"}
	if got := names(t, w.root(r)); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func TestIgnoreFileOfTheDockerfile(t *testing.T) {
	w := newWorld(t)
	writeFiles(t, w.dir, "a=1", "b=1", ".dockerignore=a\n", "sub/my.Dockerfile=FROM scratch\nCOPY . /x/\n", "sub/my.Dockerfile.dockerignore=b\nsub\n.dockerignore\n")
	o := w.options("")
	o.Dockerfile = filepath.Join(w.dir, "sub/my.Dockerfile")
	r, err := w.build(o)
	if err != nil {
		t.Fatal(err)
	}
	if got := names(t, w.root(r)); !slices.Equal(got, []string{"x/", "x/a"}) {
		t.Errorf("%q", got)
	}
}

func TestIgnoreFileMustBeSane(t *testing.T) {
	for name, text := range map[string]string{"pattern": "[", "alone": "!"} {
		w := newWorld(t)
		writeFiles(t, w.dir, "a=1", ".dockerignore="+text)
		if _, err := w.build(w.options("FROM scratch\nCOPY . /")); err == nil || !strings.Contains(err.Error(), ".dockerignore") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A link that leads out reads what is inside, which is nothing.
	w := newWorld(t)
	outside := filepath.Join(t.TempDir(), "patterns")
	os.WriteFile(outside, []byte("a\n"), 0o644)
	writeFiles(t, w.dir, "a=1", ".dockerignore->"+outside)
	r := w.mustBuild("FROM scratch\nCOPY a /")
	if !w.has(r, "a") {
		t.Error("patterns from outside the context were used")
	}
}

// mutation changes one input of a build.
type mutation struct {
	change func(w *world, text string) string
	step   string // the first step that must run
	reason string // and why
}

const mutated = `FROM base AS build
ARG FIRST=1
ENV EARLY=1
COPY --chmod=700 stays early /early/
RUN echo first
COPY sub /sub
ARG SECOND=1
ENV LATE=1
RUN --mount=type=bind,source=bound,target=/b echo second
FROM other
COPY --from=build /early/stays /s
COPY late /late
`

func TestReasonsNameTheFirstInputThatDiffers(t *testing.T) {
	file := func(p, content string) func(*world, string) string {
		return func(w *world, text string) string {
			os.WriteFile(filepath.Join(w.dir, p), []byte(content), 0o644)
			return text
		}
	}
	edit := func(old, new string) func(*world, string) string {
		return func(_ *world, text string) string {
			if !strings.Contains(text, old) {
				panic(old)
			}
			return strings.Replace(text, old, new, 1)
		}
	}
	for name, m := range map[string]mutation{
		"content":      {file("sub/x", "2"), "COPY sub /sub", `file sub/x: content changed (`},
		"last content": {file("late", "2"), "COPY late /late", `file late: content changed (`},
		"mode": {func(w *world, text string) string { os.Chmod(filepath.Join(w.dir, "sub/x"), 0o755); return text },
			"COPY sub /sub", `file sub/x: mode changed (0644 -> 0755)`},
		"new file": {file("sub/y", "1"), "COPY sub /sub", `file sub/y is new`},
		"gone file": {func(w *world, text string) string { os.Remove(filepath.Join(w.dir, "sub/z")); return text },
			"COPY sub /sub", `file sub/z is gone`},
		"type": {func(w *world, text string) string {
			os.Remove(filepath.Join(w.dir, "sub/z"))
			os.Symlink("x", filepath.Join(w.dir, "sub/z"))
			return text
		}, "COPY sub /sub", `file sub/z: type changed (file -> symlink)`},
		"link target": {func(w *world, text string) string {
			os.Remove(filepath.Join(w.dir, "sub/l"))
			os.Symlink("z", filepath.Join(w.dir, "sub/l"))
			return text
		}, "COPY sub /sub", `file sub/l: content changed (->x -> ->z)`},
		"arg default":     {edit("SECOND=1", "SECOND=2"), "RUN --mount=type=bind,source=bound,target=/b echo second", `ARG SECOND: "1" -> "2"`},
		"env":             {edit("LATE=1", "LATE=2"), "RUN --mount=type=bind,source=bound,target=/b echo second", `ENV LATE: "1" -> "2"`},
		"early env":       {edit("EARLY=1", "EARLY=2"), "RUN echo first", `ENV EARLY: "1" -> "2"`},
		"new env":         {edit("ENV LATE=1", "ENV LATE=1 NEW=x"), "RUN --mount=type=bind,source=bound,target=/b echo second", `ENV NEW is new`},
		"no env":          {edit("ENV LATE=1\n", ""), "RUN --mount=type=bind,source=bound,target=/b echo second", `ENV LATE is gone`},
		"bound file":      {file("bound", "2"), "RUN --mount=type=bind,source=bound,target=/b echo second", `file bound: content changed (`},
		"instruction":     {edit("echo first", "echo primo"), "RUN echo primo", `instruction RUN: "[\"/bin/sh\",\"-c\",\"echo first\"]" -> "[\"/bin/sh\",\"-c\",\"echo primo\"]"`},
		"flag":            {edit("--chmod=700", "--chmod=750"), "COPY --chmod=750 stays early /early/", `instruction: "COPY --chmod=\"700\" \"/early/\"" -> "COPY --chmod=\"750\" \"/early/\""`},
		"mount target":    {edit("target=/b", "target=/c"), "RUN --mount=type=bind,source=bound,target=/c echo second", `mount /c is new`},
		"workdir":         {edit("RUN --mount", "WORKDIR /\nRUN --network=none --mount"), "RUN --network=none --mount=type=bind,source=bound,target=/b echo second", `network: "" -> "none"`},
		"user":            {edit("RUN --mount", "USER 7\nRUN --mount"), "RUN --mount=type=bind,source=bound,target=/b echo second", `user: "" -> "7"`},
		"file of a stage": {file("stays", "2"), "COPY --chmod=700 stays early /early/", `file stays: content changed (`},
		"base image": {func(w *world, text string) string { w.addImage("base", nil, "f=2"); return text },
			"COPY --chmod=700 stays early /early/", `base image base:latest: "sha256:`},
		"other base": {func(w *world, text string) string { w.addImage("other", nil, "f=9"); return text },
			"COPY --from=build /early/stays /s", `base image other:latest: "sha256:`},
		"lost layer": {func(w *world, text string) string {
			var r *Record
			all, _ := Records(w.steps)
			for i := range all {
				if all[i].Step == "COPY late /late" {
					r = &all[i]
				}
			}
			os.RemoveAll(w.snaps.tree(r.Layers()))
			return text
		}, "COPY late /late", "its layer is no longer there"},
		"forgotten": {func(w *world, text string) string {
			all, _ := Records(w.steps)
			for _, r := range all {
				if r.Step == "COPY late /late" {
					Forget(w.steps, r.Key)
				}
			}
			return text
		}, "COPY late /late", "the record of the last time is gone"},
		"heredoc":  {edit("COPY late /late", "COPY <<E /late\nb\nE"), "COPY <<E /late", `heredoc E is new`},
		"chown":    {edit("COPY late", "COPY --chown=5 late"), "COPY --chown=5 late /late", `instruction: `},
		"new step": {edit("RUN echo first", "RUN echo zero\nRUN echo first"), "RUN echo zero", `instruction RUN: `},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "chown" && os.Geteuid() != 0 {
				t.Skip("needs root: it gives files to another user")
			}
			w := newWorld(t)
			w.addImage("base", nil, "f=1")
			w.addImage("other", nil, "f=5")
			w.runner = func(s Step, _ io.Writer) (int, error) {
				return 0, os.WriteFile(filepath.Join(w.snaps.Upper(s.Key), "ran-"+hashName(s.Args...)[:8]), nil, 0o644)
			}
			writeFiles(t, w.dir, "stays=1", "early=1", "sub/x=1", "sub/z=1", "sub/l->x", "late=1", "bound=1")
			w.mustBuild(mutated)
			for _, reason := range w.reasons() {
				if reason != "never built here" {
					t.Errorf("first build: %q", reason)
				}
			}
			w.mustBuild(m.change(w, mutated))
			got := w.reasons()
			if r, ok := got[m.step]; !ok || !strings.HasPrefix(r, m.reason) {
				t.Errorf("%s: %q, want %q; all: %q", m.step, r, m.reason, got)
			}
			// Nothing above it ran.
			for _, p := range w.progress() {
				if strings.HasSuffix(p, plainName(m.step)+" DONE") {
					break
				}
				if strings.HasPrefix(p, "[build ") && strings.HasSuffix(p, "DONE") && !strings.Contains(m.step, "late") && name != "other base" {
					t.Errorf("ran before: %s", p)
				}
			}
		})
	}
}

func TestDifferenceOfOwners(t *testing.T) {
	was := []Input{{kindFile, "a", "file 0644 0:0 x"}, {kindFile, "b", "file 0644 0:0 x"}}
	now := []Input{{kindFile, "a", "file 0644 0:0 x"}, {kindFile, "b", "file 0644 5:6 x"}}
	if d := Difference(was, now); d != "file b: owner changed (0:0 -> 5:6)" {
		t.Errorf("%q", d)
	}
}

func TestNoCache(t *testing.T) {
	w := newWorld(t)
	w.addImage("base", nil, "f=1")
	text := "FROM base AS one\nRUN echo 1\nFROM base\nRUN echo 2\nCOPY --from=one /f /g"
	w.mustBuild(text)
	for _, c := range []struct {
		set  func(*Options)
		runs int
	}{{func(*Options) {}, 0}, {func(o *Options) { o.NoCache = true }, 2}, {func(o *Options) { o.NoCacheFilter = []string{"ONE"} }, 1}} {
		w.runs = nil
		o := w.options(text)
		c.set(&o)
		if _, err := w.build(o); err != nil || len(w.runs) != c.runs {
			t.Errorf("%d runs, want %d, %v", len(w.runs), c.runs, err)
		}
	}
}

func TestArgumentsAndPlatforms(t *testing.T) {
	w := newWorld(t)
	w.addImage("base:2", nil, "f=1")
	text := `ARG V=1
ARG BASE=base:${V}
FROM --platform=$BUILDPLATFORM $BASE AS x
ARG V
ARG OWN=default
ARG UNSET
ARG TARGETARCH
ENV A=${OWN:-no}-${UNSET:-none}-${V}-$TARGETARCH B=${OWN%t} C=${OWN/def/DEF} D="$OWN" E='$OWN' F=\$OWN
RUN echo "$OWN $A"
`
	o := w.options(text)
	two, fromEnv := "2", (*string)(nil)
	o.Args = map[string]*string{"V": &two, "OWN": fromEnv, "HTTP_PROXY": &[]string{"http://p"}[0], "UNUSED": fromEnv}
	o.Env = map[string]string{"OWN": "default"}
	r, err := w.build(o)
	if err != nil {
		t.Fatal(err)
	}
	c := w.config(r)
	arch := image.Host().Architecture
	want := []string{"PATH=/bin", "A=default-none-2-" + arch, "B=defaul", "C=DEFault", "D=default", "E=$OWN", "F=$OWN"}
	if !slices.Equal(c.Config.Env, want) {
		t.Errorf("env %q\nwant %q", c.Config.Env, want)
	}
	last := c.History[len(c.History)-1].CreatedBy
	if last != `RUN |4 V=2 OWN=default UNSET= TARGETARCH=`+arch+` /bin/sh -c echo "$OWN $A" # buildkit` {
		t.Errorf("history %q", last)
	}
	env := environ(w.runs[0].Env)
	if v, _ := env.Get("http_proxy"); v != "http://p" {
		t.Error("no proxy in RUN")
	}
	if _, ok := env.Get("UNSET"); ok {
		t.Error("UNSET is set")
	}
	if strings.Contains(last, "http://p") {
		t.Error("proxy in the history")
	}
	// Another proxy is no reason to run again.
	w.runs = nil
	o.Args["HTTP_PROXY"] = &[]string{"http://q"}[0]
	if _, err := w.build(o); err != nil || len(w.runs) != 0 {
		t.Errorf("%d runs %v", len(w.runs), err)
	}
}

// A cache mount that was taken away is named by the next step that runs with it, and no other mount is.
func TestExpiredMountIsNamed(t *testing.T) {
	const text = "FROM base\nRUN --mount=type=cache,id=early,target=/e echo one\nARG A=1\nRUN --mount=type=cache,id=early,target=/e --mount=type=cache,id=late,target=/l echo $A\n"
	drop := func(w *world, kind, name string) {
		items, err := Items(w.steps)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range items {
			if i.Kind == kind && strings.Contains(i.Description, name) {
				if err := Drop(w.steps, i); err != nil {
					t.Fatal(err)
				}
				return
			}
		}
		t.Fatalf("no %s %s", kind, name)
	}
	for name, c := range map[string]struct {
		change func(w *world)
		text   string
		want   string
	}{
		"and another input":  {func(w *world) { drop(w, ItemMount, "late") }, strings.Replace(text, "A=1", "A=2", 1), `ARG A: "1" -> "2"; cache mount late expired: it starts empty`},
		"and its own record": {func(w *world) { drop(w, ItemMount, "late"); drop(w, ItemStep, "echo 1") }, text, "the record of the last time is gone; cache mount late expired: it starts empty"},
		"alone":              {func(w *world) { drop(w, ItemMount, "late") }, text, ""}, // the step's result is still right
		"none":               {func(*world) {}, strings.Replace(text, "A=1", "A=2", 1), `ARG A: "1" -> "2"`},
		"private": {func(w *world) { drop(w, ItemMount, "late") }, strings.Replace(strings.ReplaceAll(text, "id=late", "id=late,sharing=private"), "A=1", "A=2", 1),
			`ARG A: "1" -> "2"; cache mount late expired: it starts empty`},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.addImage("base", nil, "f=1")
			w.runner = func(s Step, _ io.Writer) (int, error) { return 0, nil }
			first := text
			if name == "private" {
				first = strings.Replace(text, "id=late", "id=late,sharing=private", 1)
			}
			w.mustBuild(first)
			for _, r := range w.reasons() {
				if r != "never built here" {
					t.Errorf("first build: %q", r)
				}
			}
			c.change(w)
			w.mustBuild(c.text)
			last := ""
			for step, r := range w.reasons() {
				if last += r; !strings.Contains(step, "id=late") {
					t.Errorf("%s ran: %s", step, r)
				}
			}
			if last != c.want {
				t.Errorf("%q, want %q", last, c.want)
			}
		})
	}
}
