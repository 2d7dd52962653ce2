package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"keg/internal/disk"
	"keg/internal/image"
)

func TestRunForms(t *testing.T) {
	w := newWorld(t)
	w.addImage("b", nil, "f=1")
	w.runner = func(s Step, _ io.Writer) (int, error) { return 0, nil }
	for name, c := range map[string]struct {
		text string
		args []string
	}{
		"shell":          {`RUN echo "a b"`, []string{"/bin/sh", "-c", `echo "a b"`}},
		"exec":           {`RUN ["/x", "-y"]`, []string{"/x", "-y"}},
		"other shell":    {"SHELL [\"/bin/bash\", \"-ec\"]\nRUN x", []string{"/bin/bash", "-ec", "x"}},
		"heredoc":        {"RUN <<EOF\na\nb\nEOF", []string{"/bin/sh", "-c", "a\nb\n"}},
		"heredoc tabs":   {"RUN <<-EOF\n\ta\n\t\tb\n\tEOF", []string{"/bin/sh", "-c", "a\nb\n"}},
		"heredoc in cmd": {"RUN cat <<A <<-B\n1\nA\n\t2\n\tB", []string{"/bin/sh", "-c", "cat <<A <<-B\n1\nA\n\t2\nB"}},
		"shebang":        {"RUN <<EOF\n#!/usr/bin/env python3\nprint()\nEOF", []string{"/bin/sh", "-c", "/dev/pipes/EOF"}},
		"continued":      {"RUN a && \\\n  # comment\n  b", []string{"/bin/sh", "-c", "a &&   b"}},
	} {
		t.Run(name, func(t *testing.T) {
			w.runs = nil
			o := w.options("FROM b\n" + c.text)
			o.NoCache = true
			if _, err := w.build(o); err != nil {
				t.Fatal(err)
			}
			if got := w.runs[0].Args; !slices.Equal(got, c.args) {
				t.Errorf("got %q want %q", got, c.args)
			}
			if name == "shebang" && (len(w.runs[0].Mounts) != 1 || w.runs[0].Mounts[0].Target != "/dev/pipes") {
				t.Errorf("%+v", w.runs[0].Mounts)
			}
		})
	}
}

func TestRunSeesConfigOfItsTime(t *testing.T) {
	w := newWorld(t)
	w.addImage("b", func(c *image.Config) { c.Config.User = "first"; c.Config.WorkingDir = "/base" }, "base/f=1")
	w.runner = func(s Step, _ io.Writer) (int, error) { return 0, nil }
	me := fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid()) // whom WORKDIR may give a directory
	o := w.options("FROM b\nRUN one\nENV A=1\nUSER " + me + "\nWORKDIR sub\nRUN --network=host two\nENV A=2\n")
	o.ExtraHosts, o.ShmSize, o.Network = []string{"h:1.2.3.4"}, 99, "none"
	if _, err := w.build(o); err == nil || !strings.Contains(err.Error(), "--allow network.host") {
		t.Fatalf("the network of the host without leave: %v", err)
	}
	w.runs, o.HostNetwork, o.Text = nil, true, slices.Clone(o.Text)
	if _, err := w.build(o); err != nil {
		t.Fatal(err)
	}
	one, two := w.runs[0], w.runs[1]
	if one.User != "first" || one.Dir != "/base" || one.Network != "none" || two.User != me || two.Dir != "/base/sub" || two.Network != "host" ||
		!slices.Contains(two.Env, "A=1") || two.ShmSize != 99 || two.ExtraHosts[0] != "h:1.2.3.4" {
		t.Errorf("%+v\n%+v", one, two)
	}
}

func TestRunMounts(t *testing.T) {
	w := newWorld(t)
	w.addImage("b", nil, "data/x=of the image", "data/l->x")
	writeFiles(t, w.dir, "src/a=1", "src/hidden=2", "one=single", ".dockerignore=src/hidden\n")
	text := `FROM b AS tools
FROM b
RUN --mount=type=bind,source=src,target=/m ls -A $M0 > out; touch $M0/new 2>/dev/null; true
RUN --mount=source=one,target=/m cat $M0 > single
RUN --mount=from=tools,source=/data,target=/m --mount=type=tmpfs,target=/t,size=1m cat $M0/l > stage
RUN --mount=from=b,source=/data/l,target=/m cat $M0 > image
RUN --mount=type=cache,target=/c,mode=700 echo kept >> $M0/k; cat $M0/k > cache1
RUN --mount=type=cache,target=/c echo kept >> $M0/k; cat $M0/k > cache2
RUN --mount=type=cache,id=../../../../evil,target=/c,sharing=locked pwd > $M0/k
RUN --mount=type=cache,target=/c2,from=tools,source=/data,sharing=private cat $M0/x > cache3
`
	r := w.mustBuild(text)
	if got := w.file(r, "out") + w.file(r, "single") + w.file(r, "stage") + w.file(r, "image") + w.file(r, "cache1") + w.file(r, "cache2") + w.file(r, "cache3"); got !=
		"a\nsingleof the imageof the imagekept\nkept\nkept\nof the image" {
		t.Errorf("%q", got)
	}
	if tmp := w.runs[2].Mounts[1]; tmp.Type != "tmpfs" || tmp.Size != 1<<20 || tmp.Target != "/t" || tmp.ReadOnly {
		t.Errorf("%+v", tmp)
	}
	if m := w.runs[0].Mounts[0]; !m.ReadOnly || m.Target != "/m" || w.runs[4].Mounts[0].ReadOnly {
		t.Errorf("%+v", m)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "src/new")); err == nil {
		t.Error("a RUN wrote to the context")
	}
	if _, err := os.Lstat(filepath.Join(w.steps, "../../evil")); err == nil {
		t.Error("a cache id led out")
	}
	ents, _ := os.ReadDir(filepath.Join(w.steps, "mounts"))
	for _, e := range ents {
		if len(strings.SplitN(e.Name(), ".", 2)[0]) < 64 {
			t.Errorf("cache mount %s", e.Name())
		}
	}
	if keys, _ := w.snaps.Keys(); len(keys) != 0 {
		t.Errorf("left: %v", keys)
	}
	// What a bind shows is part of the key, what a cache holds is not.
	w.runs = nil
	w.mustBuild(text)
	if len(w.runs) != 0 {
		t.Errorf("%d ran", len(w.runs))
	}
	os.WriteFile(filepath.Join(w.dir, "src/hidden"), []byte("changed"), 0o644)
	w.mustBuild(text)
	if len(w.runs) != 0 {
		t.Error("an ignored file counts")
	}
}

func TestSecretsLeaveNoTrace(t *testing.T) {
	w := newWorld(t)
	w.addImage("b", nil, "f=1")
	const canary = "s3cr3t-canary-bytes"
	var seen []string
	w.runner = func(s Step, out io.Writer) (int, error) {
		for _, m := range s.Mounts {
			b, _ := os.ReadFile(m.Source)
			st, _ := os.Stat(m.Source)
			seen = append(seen, fmt.Sprintf("%s %v %s", m.Target, st.Mode().Perm(), b))
		}
		for _, kv := range s.Env {
			if strings.Contains(kv, canary) {
				seen = append(seen, kv)
			}
		}
		return 0, nil
	}
	o := w.options("FROM b\nRUN --mount=type=secret,id=tok --mount=type=secret,id=tok,env=TOK --mount=type=secret,id=tok,target=/x,mode=0440 true\nRUN --mount=type=secret,id=none true\n")
	o.Secrets = map[string][]byte{"tok": []byte(canary)}
	if _, err := w.build(o); err != nil {
		t.Fatal(err)
	}
	if want := []string{"/run/secrets/tok -r-------- " + canary, "/x -r--r----- " + canary, "TOK=" + canary}; !slices.Equal(seen, want) {
		t.Errorf("%q", seen)
	}
	for _, dir := range []string{w.steps, w.run, w.snaps.root, w.dir} {
		filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), canary) {
				t.Errorf("secret found in %s", p)
			}
			return nil
		})
	}
	for _, b := range w.blobs.blobs {
		if strings.Contains(string(b), canary) {
			t.Error("secret in a blob")
		}
	}
	for _, e := range w.events {
		if strings.Contains(e.Name+e.Reason+string(e.Log), canary) {
			t.Error("secret in progress")
		}
	}
	o.Text = []byte("FROM b\nRUN --mount=type=secret,id=none,required true\n")
	if _, err := w.build(o); err == nil || err.Error() != "secret none: not found" {
		t.Error(err)
	}
}

func TestOnbuild(t *testing.T) {
	w := newWorld(t)
	w.addImage("b", func(c *image.Config) {
		c.Config.OnBuild = []string{"COPY a /from-trigger", "RUN echo t > ran", "COPY --from=helper /f /helped", "ENV T=1"}
	}, "x=1")
	w.addImage("h", nil, "f=help")
	writeFiles(t, w.dir, "a=1")
	r := w.mustBuild("FROM h AS helper\nFROM b\nONBUILD RUN later\nRUN echo $T > own\n")
	c := w.config(r)
	if !w.has(r, "from-trigger") || w.file(r, "ran") != "t\n" || w.file(r, "helped") != "help" || w.file(r, "own") != "1\n" || !slices.Equal(c.Config.OnBuild, []string{"RUN later"}) {
		t.Errorf("%q %q", names(t, w.root(r)), c.Config.OnBuild)
	}
	if p := w.progress(); !slices.ContainsFunc(p, func(s string) bool { return strings.HasSuffix(s, "/5] ONBUILD COPY a /from-trigger DONE") }) {
		t.Errorf("%q", p)
	}
	// A stage with triggers fires them in a later stage of the same file.
	r = w.mustBuild("FROM h AS base\nONBUILD COPY a /z\nFROM base\n")
	if !w.has(r, "z") || len(w.config(r).Config.OnBuild) != 0 {
		t.Errorf("%q", names(t, w.root(r)))
	}
}

func TestConfigInstructions(t *testing.T) {
	w := newWorld(t)
	w.addImage("b", func(c *image.Config) {
		c.Config.Cmd, c.Config.Entrypoint = []string{"base"}, []string{"/e"}
	}, "x=1")
	r := w.mustBuild("FROM b\nMAINTAINER me\nHEALTHCHECK --interval=5s --start-interval=1s CMD curl x\nVOLUME /a [\"/b\"]\nSTOPSIGNAL SIGQUIT\nSHELL [\"/bin/bash\",\"-c\"]\nENTRYPOINT run me\n")
	c := w.config(r)
	if c.Author != "me" || c.Config.Healthcheck.Interval != 5*time.Second || c.Config.Healthcheck.StartInterval != time.Second || c.Config.StopSignal != "SIGQUIT" ||
		!slices.Equal(c.Config.Entrypoint, []string{"/bin/bash", "-c", "run me"}) || c.Config.Cmd != nil {
		t.Errorf("%+v", c.Config)
	}
	r = w.mustBuild("FROM b\nCMD own\nENTRYPOINT [\"/z\"]\nHEALTHCHECK NONE\n")
	c = w.config(r)
	if !slices.Equal(c.Config.Cmd, []string{"/bin/sh", "-c", "own"}) || !slices.Equal(c.Config.Healthcheck.Test, []string{"NONE"}) || len(c.RootFS.DiffIDs) != 1 {
		t.Errorf("%+v", c.Config)
	}
	o := w.options("FROM scratch\nLABEL a=1 b=2\n")
	o.Labels = map[string]string{"b": "3", "c": "4"}
	res, err := w.build(o)
	if err != nil {
		t.Fatal(err)
	}
	c = w.config(res)
	if c.Config.Labels["a"]+c.Config.Labels["b"]+c.Config.Labels["c"] != "134" || len(c.RootFS.DiffIDs) != 0 || c.Architecture == "" || c.Config.Env[0] != "PATH="+defaultPath {
		t.Errorf("%+v", c)
	}
}

func TestEmptyStepHasALayerLikeDockers(t *testing.T) {
	w := newWorld(t)
	w.addImage("b", nil, "x=1")
	r := w.mustBuild("FROM b\nRUN true\nRUN true\n")
	c := w.config(r)
	if len(c.RootFS.DiffIDs) != 3 || c.RootFS.DiffIDs[1] != c.RootFS.DiffIDs[2] || c.History[1].EmptyLayer {
		t.Errorf("%v %+v", c.RootFS.DiffIDs, c.History)
	}
	if w.runs = nil; len(w.progress()) == 0 {
		t.Error()
	}
	w.mustBuild("FROM b\nRUN true\nRUN true\n")
	if len(w.runs) != 0 {
		t.Error("ran again")
	}
}

func TestEpochMakesEqualImages(t *testing.T) {
	var ids []string
	for range 2 {
		w := newWorld(t)
		w.addImage("b", nil, "x=1")
		os.Chtimes(filepath.Join(w.snaps.root), time.Now(), time.Now())
		o := w.options("FROM b\nRUN echo $SOURCE_DATE_EPOCH > e; touch -d @1 e\nENV A=1\n")
		o.Env = map[string]string{"SOURCE_DATE_EPOCH": "1700000000"}
		r, err := w.build(o)
		if err != nil {
			t.Fatal(err)
		}
		c := w.config(r)
		if w.file(r, "e") != "1700000000\n" || !c.Created.Equal(time.Unix(1700000000, 0)) || !c.History[0].Created.Equal(time.Unix(1000, 0)) {
			t.Errorf("%q %v %+v", w.file(r, "e"), c.Created, c.History)
		}
		ids = append(ids, string(c.RootFS.DiffIDs[1]))
		o.Env["SOURCE_DATE_EPOCH"] = "soon"
		if _, err := w.build(o); err == nil {
			t.Error("bad epoch accepted")
		}
	}
	if ids[0] != ids[1] {
		t.Error("layers differ")
	}
}

func TestBuildsAtOnce(t *testing.T) {
	w := newWorld(t)
	w.addImage("b", nil, "x=1")
	writeFiles(t, w.dir, "a=1", "big="+strings.Repeat("x", 1<<20))
	text := "FROM b AS one\nRUN sleep 0.05; echo 1 > o\nFROM b AS two\nCOPY . /c\nRUN sleep 0.05; echo 2 > o\nFROM one AS three\nFROM scratch\nCOPY --from=three /o /1\nCOPY --from=two /o /2\n"
	var wg sync.WaitGroup
	roots := make([]string, 6)
	for i := range roots {
		wg.Go(func() {
			d := w.deps()
			d.progress = &progress{}
			r, err := build(context.Background(), w.options(text), d)
			if err != nil {
				t.Error(err)
				return
			}
			roots[i] = w.file(r, "1") + w.file(r, "2")
		})
	}
	wg.Wait()
	for _, r := range roots {
		if r != "1\n2\n" {
			t.Errorf("%q", r)
		}
	}
	if keys, _ := w.snaps.Keys(); len(keys) != 0 {
		t.Errorf("left: %v", keys)
	}
}

func TestEqualStepsOfOneBuildRunOnce(t *testing.T) {
	w := newWorld(t)
	w.addImage("b", nil, "x=1")
	w.mustBuild("FROM b AS one\nRUN sleep 0.05; echo 1 > o\nFROM b AS two\nRUN sleep 0.05; echo 1 > o\nFROM scratch\nCOPY --from=one /o /1\nCOPY --from=two /o /2\n")
	if len(w.runs) != 1 {
		t.Errorf("%d runs", len(w.runs))
	}
}

func TestCancelStopsAndLeavesNothing(t *testing.T) {
	w := newWorld(t)
	w.addImage("b", nil, "x=1")
	ctx, cancel := context.WithCancel(context.Background())
	w.runner = func(Step, io.Writer) (int, error) {
		cancel()
		return 0, ctx.Err()
	}
	if _, err := build(ctx, w.options("FROM b\nRUN x\nRUN y\n"), w.deps()); err == nil {
		t.Error("no error")
	}
	if keys, _ := w.snaps.Keys(); len(keys) != 0 || len(w.runs) != 1 {
		t.Errorf("left: %v, %d runs", keys, len(w.runs))
	}
}

func TestSweepTakesOnlyWhatNobodyHolds(t *testing.T) {
	w := newWorld(t)
	c := cache{w.steps}
	if err := c.open(); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	holder, err := disk.HoldDir(c.dir("held"), "")
	if err != nil {
		t.Fatal(err)
	}
	dead := filepath.Join(c.dir("held"), "123")
	os.Mkdir(dead, 0o700)
	alive := keyPrefix + filepath.Base(holder.Path) + "-1"
	for _, k := range []string{alive, "build-123-1", "build-gone-7", "0123abcd"} {
		if err := w.snaps.Prepare(ctx, k, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := sweep(ctx, c, w.snaps); err != nil {
		t.Fatal(err)
	}
	keys, _ := w.snaps.Keys()
	slices.Sort(keys)
	want := []string{"0123abcd", alive}
	slices.Sort(want)
	if !slices.Equal(keys, want) {
		t.Errorf("%v", keys)
	}
	if _, err := os.Stat(dead); err == nil {
		t.Error("directory of a dead build left")
	}
	holder.Remove()
	sweep(ctx, c, w.snaps)
	if keys, _ := w.snaps.Keys(); !slices.Equal(keys, []string{"0123abcd"}) {
		t.Errorf("%v", keys)
	}
}

func TestForgetRefusesPaths(t *testing.T) {
	for _, k := range []string{"../x", "", "held", strings.Repeat("g", 64)} {
		if err := Forget(t.TempDir(), k); err == nil {
			t.Errorf("%q accepted", k)
		}
	}
}

func BenchmarkContext50000(b *testing.B) {
	dir := b.TempDir()
	for i := range 50000 {
		p := filepath.Join(dir, "d"+strconv.Itoa(i/100))
		if i%100 == 0 {
			os.Mkdir(p, 0o755)
		}
		os.WriteFile(filepath.Join(p, "f"+strconv.Itoa(i)), []byte(strconv.Itoa(i)), 0o644)
	}
	bc, _ := openContext(dir)
	defer bc.close()
	sumsFile := filepath.Join(b.TempDir(), "s")
	run := func() {
		bc.sums = loadSums(sumsFile)
		found, err := bc.find(context.Background(), selector{Path: "/"})
		if err != nil {
			b.Fatal(err)
		}
		bc.fill(context.Background(), found)
		digestOf(found, false)
	}
	time.Sleep(2 * time.Second) // out of the racy window
	run()
	bc.sums.save()
	b.ResetTimer()
	for range b.N {
		run()
	}
}

func BenchmarkCachedTwentySteps(b *testing.B) {
	w := newWorld(b)
	w.addImage("b", nil, "x=1")
	writeFiles(b, w.dir, "a=1")
	text := "FROM b\nCOPY a /a\n"
	for i := range 19 {
		text += fmt.Sprintf("RUN echo %d > f%d\n", i, i)
	}
	w.mustBuild(text)
	b.ResetTimer()
	for range b.N {
		w.mustBuild(text)
	}
}

// The first RUN that fails is told of while all of it is there; a build that was given up tells of none.
func TestFailedStepIsToldOf(t *testing.T) {
	w := newWorld(t)
	w.addImage("base", nil, "etc/x=1")
	var told []Failure
	build1 := func(ctx context.Context, text string) error {
		d := w.deps()
		d.failed = func(ctx context.Context, f Failure) {
			told = append(told, f)
			if b, err := os.ReadFile(filepath.Join(w.snaps.Upper(f.Step.Key), "left")); err != nil || string(b) != "half\n" {
				t.Errorf("%q %v", b, err)
			}
			if b, err := os.ReadFile(f.Step.Mounts[0].Source); err != nil || string(b) != "word" {
				t.Errorf("the secret is %q %v", b, err)
			}
		}
		o := w.options(text)
		o.Secrets = map[string][]byte{"s": []byte("word")}
		_, err := build(ctx, o, d)
		return err
	}
	const text = "FROM base AS a\nSHELL [\"sh\",\"-c\"]\nENV K=v\nRUN --mount=type=secret,id=s echo half > $ROOT/left; exit 7\n"
	if err := build1(t.Context(), text+"FROM base AS b\nRUN --mount=type=secret,id=s echo half > $ROOT/left; exit 8\nFROM a\nCOPY --from=b / /\n"); err == nil {
		t.Fatal("it was built")
	}
	if len(told) != 1 {
		t.Fatalf("told %d times", len(told))
	}
	var x *ExitError
	if f := told[0]; !errors.As(f.Err, &x) || x.Code == 7 && (f.Shell != "sh" || f.Name != "[a 2/2] RUN --mount=type=secret,id=s echo half > $ROOT/left; exit 7" || !slices.Contains(f.Step.Env, "K=v")) ||
		x.Code == 8 && f.Shell != "/bin/sh" {
		t.Errorf("%+v", f)
	}
	if keys, _ := w.snaps.Keys(); len(keys) != 0 {
		t.Errorf("left %q", keys)
	}
	told = nil
	ctx, cancel := context.WithCancel(t.Context())
	w.runner = func(Step, io.Writer) (int, error) { cancel(); return 0, context.Canceled }
	if err := build1(ctx, text); err == nil || len(told) != 0 {
		t.Errorf("told of %v, error %v", told, err)
	}
}
