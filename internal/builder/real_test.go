package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"keg/internal/image"
	"keg/internal/linux"
	"keg/internal/snapshot"
	"keg/internal/store"
)

// realWorld is a world on the real store and snapshots; RUN is a chroot into the
// mounted snapshot.
type realWorld struct {
	t      testing.TB
	root   string
	dir    string
	store  *store.Store
	snaps  *snapshot.Store
	base   Base
	events []Event
	runs   int
	die    int // kill this process in the n-th RUN
	mu     sync.Mutex
}

func newRealWorld(t testing.TB) *realWorld {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts overlays")
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox (package busybox-static)")
	}
	w := &realWorld{t: t, root: t.TempDir(), dir: t.TempDir()}
	if w.store, err = store.Open(w.root); err != nil {
		t.Fatal(err)
	}
	if w.snaps, err = snapshot.Open(w.root); err != nil {
		t.Fatal(err)
	}
	w.makeBase(busybox)
	return w
}

func (w *realWorld) makeBase(busybox string) {
	ctx := context.Background()
	t := w.t
	if err := w.snaps.Prepare(ctx, "base", nil); err != nil {
		t.Fatal(err)
	}
	up := w.snaps.Upper("base")
	writeFiles(t, up, "etc/passwd=root:x:0:0::/:/bin/sh\nweb:x:33:44::/:/bin/sh\n", "etc/group=web:x:44:\n", "bin/", "tmp/", "dir/old=1", "tolink->dir")
	b, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(up, "bin/busybox"), b, 0o755)
	for _, n := range []string{"sh", "cat", "echo", "ls", "stat", "rm", "mkdir", "touch", "sleep", "mv"} {
		os.Symlink("busybox", filepath.Join(up, "bin", n))
	}
	unix.Chmod(filepath.Join(up, "dir"), 0o2750)
	c, err := w.snaps.Commit(ctx, "base", snapshot.CommitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	cfg := emptyConfig(image.Host())
	cfg.Config.Env = []string{"PATH=/bin"}
	cfg.RootFS.DiffIDs = []digest.Digest{c.DiffID}
	ref, _ := image.ParseReference("base")
	w.base = Base{Ref: ref, Digest: digest.FromString("base"), Config: cfg}
}

func (w *realWorld) Base(context.Context, image.Reference, image.Platform, bool) (Base, error) {
	return w.base, nil
}

func (w *realWorld) Run(ctx context.Context, s Step, out io.Writer) (int, error) {
	w.mu.Lock()
	w.runs++
	die := w.runs == w.die
	w.mu.Unlock()
	if die {
		os.WriteFile(filepath.Join(w.snaps.Upper(s.Key), "two"), []byte("half"), 0o644)
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	fd, err := w.snaps.Mount(s.Key, snapshot.MountOptions{})
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	cmd := exec.CommandContext(ctx, s.Args[0], s.Args[1:]...)
	cmd.Path = s.Args[0]
	cmd.Err = nil
	cmd.Env, cmd.Stdout, cmd.Stderr = s.Env, out, out
	cmd.Dir = s.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: linux.FDPath(fd)}
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

func (w *realWorld) build(text string, change ...func(*Options)) (*Result, error) {
	ref, _ := image.ParseReference("out")
	o := Options{Context: w.dir, Dockerfile: "-", Text: []byte(text), Tags: []image.Reference{ref}}
	for _, c := range change {
		c(&o)
	}
	w.events = nil
	return Build(context.Background(), o, Deps{Store: w.store, Snapshots: w.snaps, Steps: filepath.Join(w.root, "steps"), Images: w, Runner: w,
		Progress: func(e Event) { w.events = append(w.events, e) }})
}

func (w *realWorld) must(text string) *Result {
	w.t.Helper()
	r, err := w.build(text)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *realWorld) config(r *Result) *image.Config {
	w.t.Helper()
	b, err := w.store.Bytes(r.ConfigID, image.MaxConfig)
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := image.ParseConfig(b)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// sh runs a script on the finished image and returns its output.
func (w *realWorld) sh(r *Result, script string) string {
	w.t.Helper()
	fd, err := w.snaps.View(w.config(r).RootFS.DiffIDs)
	if err != nil {
		w.t.Fatal(err)
	}
	defer unix.Close(fd)
	cmd := exec.Cmd{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin"}, Dir: "/",
		SysProcAttr: &syscall.SysProcAttr{Chroot: linux.FDPath(fd)}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

func TestRealBuild(t *testing.T) {
	w := newRealWorld(t)
	writeFiles(t, w.dir, "a=1", "big="+strings.Repeat("0123456789abcdef", 1<<16), "d/e=2")
	os.Chtimes(filepath.Join(w.dir, "a"), time.Unix(1e9, 0), time.Unix(1e9, 0))
	text := `FROM base AS one
RUN echo made > /made && rm /dir/old && mkdir -p /deep/er && echo said
FROM base
COPY --chown=web:44 a big /srv/
COPY --from=one /made /deep /x/
COPY d /tolink/
WORKDIR /work/dir
USER web
RUN true
RUN true
COPY --chmod=751 a .
`
	r := w.must(text)
	got := w.sh(r, `test -e /made || cat /x/made; stat -c '%n %a %u:%g %s %Y' /srv /srv/a /srv/big /work/dir/a /dir; stat -c %F /tolink; ls /dir /x`)
	_, tail, _ := strings.Cut(got, "\n")
	for _, want := range []string{"/srv 755 33:44", "/srv/a 644 33:44 1 1000000000", "/srv/big 644 33:44 1048576", "/work/dir/a 751 0:0 1 1000000000", "/dir 2750 0:0", "symbolic link", "/dir:\ne\nold\n", "er\nmade\n"} {
		if !strings.Contains(tail, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if !strings.HasPrefix(got, "made\n") {
		t.Errorf("%s", got)
	}
	c := w.config(r)
	if len(c.RootFS.DiffIDs) != 8 {
		t.Errorf("%d layers", len(c.RootFS.DiffIDs))
	}
	ref, _ := image.ParseReference("out")
	if d, err := w.store.Resolve(ref); err != nil || d.Digest != r.Manifest.Digest {
		t.Errorf("%v %v", d, err)
	}
	b, err := w.store.Bytes(r.Manifest.Digest, image.MaxManifest)
	if err != nil {
		t.Fatal(err)
	}
	m, err := image.ParseManifest(b)
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range m.Layers {
		tar, err := w.snaps.Tar(c.RootFS.DiffIDs[:i+1])
		if err != nil {
			t.Fatal(err)
		}
		d, err := digest.FromReader(tar)
		if err != nil || d != l.Digest || tar.Size() != l.Size {
			t.Errorf("layer %d: %v %s %d, manifest has %s %d", i, err, d, tar.Size(), l.Digest, l.Size)
		}
		tar.Close()
	}
	w.runs = 0
	if again := w.must(text); again.ConfigID != r.ConfigID || w.runs != 0 {
		t.Errorf("rebuild ran %d steps, %s %s", w.runs, again.ConfigID, r.ConfigID)
	}
	if keys, err := w.snaps.Keys(); len(keys) != 0 || err != nil {
		t.Errorf("left: %v %v", keys, err)
	}
}

func TestRealFailureLeavesNothing(t *testing.T) {
	w := newRealWorld(t)
	_, err := w.build("FROM base\nRUN echo no; false\n")
	var e *Error
	if !errors.As(err, &e) || e.Line != 2 || !strings.Contains(err.Error(), "exit code: 1") {
		t.Error(err)
	}
	if keys, _ := w.snaps.Keys(); len(keys) != 0 {
		t.Errorf("left: %v", keys)
	}
}

// A build that is killed in a RUN leaves an active snapshot that Sweep knows; the next
// build is right.
func TestRealKilledBuild(t *testing.T) {
	if root := os.Getenv("BUILDER_KILLED_ROOT"); root != "" {
		killedBuild(t, root)
	}
	w := newRealWorld(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestRealKilledBuild$")
	cmd.Env = append(os.Environ(), "BUILDER_KILLED_ROOT="+w.root, "BUILDER_KILLED_BASE="+string(w.base.Config.RootFS.DiffIDs[0]))
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child was not killed: %v", err)
	}
	keys, err := w.snaps.Keys()
	if err != nil || len(keys) != 1 || !strings.HasPrefix(keys[0], keyPrefix) {
		t.Fatalf("%v %v", keys, err)
	}
	d := Deps{Store: w.store, Snapshots: w.snaps, Steps: filepath.Join(w.root, "steps")}
	if err := Sweep(context.Background(), d); err != nil {
		t.Fatal(err)
	}
	if keys, _ := w.snaps.Keys(); len(keys) != 0 {
		t.Errorf("left: %v", keys)
	}
	r := w.must(killedText)
	if got := w.sh(r, "cat /one /two"); got != "1\n2\n" || w.runs != 1 {
		t.Errorf("%q, %d runs", got, w.runs)
	}
}

const killedText = "FROM base\nRUN echo 1 > /one\nRUN echo 2 > /two\n"

// killedBuild is the child: it dies in its second RUN.
func killedBuild(t *testing.T, root string) {
	w := &realWorld{t: t, root: root, dir: t.TempDir()}
	w.store, _ = store.Open(root)
	w.snaps, _ = snapshot.Open(root)
	cfg := emptyConfig(image.Host())
	cfg.Config.Env = []string{"PATH=/bin"}
	cfg.RootFS.DiffIDs = []digest.Digest{digest.Digest(os.Getenv("BUILDER_KILLED_BASE"))}
	ref, _ := image.ParseReference("base")
	w.base = Base{Ref: ref, Digest: digest.FromString("base"), Config: cfg}
	w.die = 2
	w.must(killedText)
}

func TestRealBuildsAtOnce(t *testing.T) {
	w := newRealWorld(t)
	writeFiles(t, w.dir, "a=1")
	text := "FROM base AS x\nCOPY a /a\nRUN sleep 0.1; echo 1 > /b\nFROM base\nCOPY --from=x /b /c\n"
	var wg sync.WaitGroup
	results := make([]*Result, 4)
	for i := range results {
		wg.Go(func() {
			ref, _ := image.ParseReference("out")
			r, err := Build(context.Background(), Options{Context: w.dir, Dockerfile: "-", Text: []byte(text), Tags: []image.Reference{ref}},
				Deps{Store: w.store, Snapshots: w.snaps, Steps: filepath.Join(w.root, "steps"), Images: w, Runner: w})
			if err != nil {
				t.Error(err)
			}
			results[i] = r
		})
	}
	wg.Wait()
	for _, r := range results {
		if r != nil && w.sh(r, "cat /c") != "1\n" {
			t.Error("wrong content")
		}
	}
}

func TestRealEpochGivesEqualLayers(t *testing.T) {
	var layers [][]digest.Digest
	for range 2 {
		w := newRealWorld(t)
		writeFiles(t, w.dir, "a=1")
		w.base.Config.RootFS.DiffIDs = nil // scratch, so that only our own layers count
		r, err := w.build("FROM scratch\nCOPY a /d/e/\nWORKDIR /w\n", func(o *Options) { o.Env = map[string]string{"SOURCE_DATE_EPOCH": "1000000000"} })
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, w.config(r).RootFS.DiffIDs)
		time.Sleep(1100 * time.Millisecond)
	}
	if !slices.Equal(layers[0], layers[1]) {
		t.Errorf("%v", layers)
	}
}

func BenchmarkRealCachedTwentySteps(b *testing.B) {
	w := newRealWorld(b)
	writeFiles(b, w.dir, "a=1")
	text := "FROM base\nCOPY a /a\n"
	for i := range 19 {
		text += fmt.Sprintf("RUN echo %d > f%d\n", i, i)
	}
	start := time.Now()
	w.must(text)
	cold := time.Since(start)
	b.ResetTimer()
	for range b.N {
		w.must(text)
	}
	b.ReportMetric(float64(cold.Milliseconds()), "cold-ms")
}
