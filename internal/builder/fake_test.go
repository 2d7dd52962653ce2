package builder

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/snapshot"
	"keg/internal/store"
)

// plainSnapshots keeps each stack as a whole directory tree, so that builds can be
// tested without mounts and privileges.
type plainSnapshots struct {
	root string
	mu   sync.Mutex
	prep map[string][]digest.Digest
	uses int
}

func newPlainSnapshots(t testing.TB) *plainSnapshots {
	return &plainSnapshots{root: t.TempDir(), prep: map[string][]digest.Digest{}}
}

func (p *plainSnapshots) tree(stack []digest.Digest) string {
	if len(stack) == 0 {
		return filepath.Join(p.root, "empty")
	}
	return filepath.Join(p.root, "stack-"+image.ChainID(stack).Encoded())
}

func (p *plainSnapshots) Has(stack []digest.Digest) int {
	for i := range stack {
		if _, err := os.Stat(p.tree(stack[:i+1])); err != nil {
			return i
		}
	}
	return len(stack)
}

func (p *plainSnapshots) Prepare(_ context.Context, key string, stack []digest.Digest) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.uses++
	if _, ok := p.prep[key]; ok {
		return fault.Conflictf("%s exists", key)
	}
	if n := p.Has(stack); n < len(stack) {
		return fault.NotFoundf("layer %s", stack[n])
	}
	p.prep[key] = stack
	os.MkdirAll(p.Upper(key), 0o755)
	if len(stack) > 0 {
		return copyTree(p.tree(stack), p.Upper(key))
	}
	return nil
}

func copyTree(from, to string) error {
	out, err := exec.Command("cp", "-a", from+"/.", to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("cp: %w: %s", err, out)
	}
	return nil
}

func (p *plainSnapshots) Upper(key string) string { return filepath.Join(p.root, "active", key) }

func (p *plainSnapshots) Mount(key string, _ snapshot.MountOptions) (int, error) {
	return unix.Open(p.Upper(key), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

func (p *plainSnapshots) View(stack []digest.Digest) (int, error) {
	os.MkdirAll(filepath.Join(p.root, "empty"), 0o755)
	return unix.Open(p.tree(stack), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

func (p *plainSnapshots) Commit(_ context.Context, key string, o snapshot.CommitOptions) (snapshot.Committed, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	stack := p.prep[key]
	now, size := listTree(p.Upper(key))
	before := ""
	if len(stack) > 0 {
		before, _ = listTree(p.tree(stack))
	}
	if now == before {
		return snapshot.Committed{Empty: true}, nil
	}
	d := digest.FromString(now)
	delete(p.prep, key)
	to := p.tree(append(slices.Clone(stack), d))
	if _, err := os.Stat(to); err == nil {
		return snapshot.Committed{DiffID: d, Size: size}, os.RemoveAll(p.Upper(key))
	}
	return snapshot.Committed{DiffID: d, Size: size}, os.Rename(p.Upper(key), to)
}

// listTree describes a tree with everything that tests look at but times of directories.
func listTree(root string) (string, int64) {
	var b strings.Builder
	var size int64
	filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		var st unix.Stat_t
		unix.Lstat(p, &st)
		fmt.Fprintf(&b, "%s %o %d:%d", rel, st.Mode, st.Uid, st.Gid)
		switch {
		case d.Type() == fs.ModeSymlink:
			l, _ := os.Readlink(p)
			fmt.Fprintf(&b, " -> %s", l)
		case d.Type().IsRegular():
			c, _ := os.ReadFile(p)
			sum := sha256.Sum256(c)
			fmt.Fprintf(&b, " %s %d", hex.EncodeToString(sum[:8]), st.Mtim.Nano())
			size += st.Size
		}
		b.WriteByte('\n')
		return nil
	})
	return b.String(), size
}

func (p *plainSnapshots) Remove(key string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.prep, key)
	return os.RemoveAll(p.Upper(key))
}

func (p *plainSnapshots) Keys() ([]string, error) {
	ents, err := os.ReadDir(filepath.Join(p.root, "active"))
	var keys []string
	for _, e := range ents {
		keys = append(keys, e.Name())
	}
	return keys, ignoreNotExist(err)
}

func ignoreNotExist(err error) error {
	if notExist(err) {
		return nil
	}
	return err
}

func (p *plainSnapshots) LayerSize(stack []digest.Digest) (int64, int64, error) { return 512, 512, nil }
func (p *plainSnapshots) Sync(context.Context) error                            { return nil }

type noStackLease struct{}

func (noStackLease) Add([]digest.Digest) error { return nil }
func (noStackLease) Release() error            { return nil }

func (p *plainSnapshots) Lease(context.Context, ...[]digest.Digest) (snapshot.Lease, error) {
	return noStackLease{}, nil
}

type plainUnpacked struct {
	p *plainSnapshots
	d digest.Digest
}

func (u plainUnpacked) DiffID() digest.Digest { return u.d }
func (u plainUnpacked) Size() int64           { return 1024 }
func (u plainUnpacked) Recorded() bool        { return true }
func (u plainUnpacked) Discard() error        { return nil }
func (u plainUnpacked) Place(_ context.Context, below []digest.Digest) error {
	to := u.p.tree(append(slices.Clone(below), u.d))
	os.MkdirAll(to, 0o755)
	if len(below) == 0 {
		return nil
	}
	return copyTree(u.p.tree(below), to)
}

func (p *plainSnapshots) UnpackRecorded(_ context.Context, r io.Reader, want digest.Digest) (snapshot.Unpacked, error) {
	b, err := io.ReadAll(r)
	return plainUnpacked{p, digest.FromBytes(b)}, err
}

// memoryBlobs is a store in memory that counts its writes.
type memoryBlobs struct {
	mu     sync.Mutex
	blobs  map[digest.Digest][]byte
	names  map[string]image.Descriptor
	writes int
}

func (m *memoryBlobs) Bytes(d digest.Digest, _ int64) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b, ok := m.blobs[d]; ok {
		return b, nil
	}
	return nil, fault.NotFoundf("blob %s", d)
}

func (m *memoryBlobs) Put(_ context.Context, b []byte) (digest.Digest, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := digest.FromBytes(b)
	m.blobs[d] = b
	m.writes++
	return d, nil
}

func (m *memoryBlobs) Has(d digest.Digest) bool { _, err := m.Bytes(d, 0); return err == nil }

func (m *memoryBlobs) Tag(r image.Reference, d image.Descriptor) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.names[r.String()] = d
	m.writes++
	return nil
}

func (m *memoryBlobs) Resolve(r image.Reference) (image.Descriptor, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if d, ok := m.names[r.String()]; ok {
		return d, nil
	}
	return image.Descriptor{}, fault.NotFoundf("No such image: %s", r.Familiar())
}

type noLease struct{}

func (noLease) Add(...digest.Digest) error { return nil }
func (noLease) Release() error             { return nil }

func (m *memoryBlobs) Lease(context.Context, ...digest.Digest) (store.Lease, error) {
	return noLease{}, nil
}

// world is one engine's state, and a context directory, for tests.
type world struct {
	t      testing.TB
	blobs  *memoryBlobs
	snaps  *plainSnapshots
	steps  string
	run    string
	dir    string
	images map[string]Base
	asked  int
	runner func(s Step, out io.Writer) (int, error)
	runs   []Step
	mu     sync.Mutex
	events []Event
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, blobs: &memoryBlobs{blobs: map[digest.Digest][]byte{}, names: map[string]image.Descriptor{}},
		snaps: newPlainSnapshots(t), steps: t.TempDir(), run: t.TempDir(), dir: t.TempDir(), images: map[string]Base{}}
	return w
}

// Run is the Runner: it hands a shell script to a small interpreter of the test, or
// to w.runner.
func (w *world) Run(_ context.Context, s Step, out io.Writer) (int, error) {
	w.mu.Lock()
	w.runs = append(w.runs, s)
	w.mu.Unlock()
	if w.runner != nil {
		return w.runner(s, out)
	}
	root := w.snaps.Upper(s.Key)
	if len(s.Args) == 3 && s.Args[1] == "-c" {
		cmd := exec.Command("sh", "-c", s.Args[2])
		cmd.Dir = filepath.Join(root, s.Dir)
		cmd.Env = append(s.Env, "ROOT="+root, "PATH="+os.Getenv("PATH"))
		for i, m := range s.Mounts {
			cmd.Env = append(cmd.Env, fmt.Sprintf("M%d=%s", i, m.Source))
		}
		cmd.Stdout, cmd.Stderr = out, out
		err := cmd.Run()
		if _, ok := err.(*exec.ExitError); ok {
			return cmd.ProcessState.ExitCode(), nil
		}
		return 0, err
	}
	return 0, fmt.Errorf("unexpected command %q", s.Args)
}

func (w *world) Base(_ context.Context, ref image.Reference, _ image.Platform, _ bool) (Base, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked++
	if b, ok := w.images[ref.String()]; ok {
		return b, nil
	}
	return Base{}, fault.NotFoundf("%s: not found", ref)
}

// addImage makes a base image of files.
func (w *world) addImage(name string, config func(*image.Config), files ...string) {
	w.t.Helper()
	ref, err := image.ParseReference(name)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx := context.Background()
	key := "base-" + hashName(name)
	if err := w.snaps.Prepare(ctx, key, nil); err != nil {
		w.t.Fatal(err)
	}
	writeFiles(w.t, w.snaps.Upper(key), files...)
	filepath.WalkDir(w.snaps.Upper(key), func(p string, d fs.DirEntry, err error) error {
		if d.Type().IsRegular() {
			os.Chtimes(p, time.Unix(1000, 0), time.Unix(1000, 0))
		}
		return err
	})
	c, err := w.snaps.Commit(ctx, key, snapshot.CommitOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	cfg := emptyConfig(image.Host())
	cfg.Config.Env = []string{"PATH=/bin"}
	cfg.RootFS.DiffIDs = []digest.Digest{c.DiffID}
	made := time.Unix(1000, 0).UTC()
	cfg.History = []image.History{{Created: &made, CreatedBy: "base"}}
	if config != nil {
		config(cfg)
	}
	w.images[ref.String()] = Base{Ref: ref, Digest: digest.FromString(name), Config: cfg}
}

// writeFiles makes files: "path=content", "path/" for directories, "path->target" for links.
func writeFiles(t testing.TB, root string, files ...string) {
	t.Helper()
	for _, f := range files {
		if p, target, ok := strings.Cut(f, "->"); ok {
			os.MkdirAll(filepath.Dir(filepath.Join(root, p)), 0o755)
			if err := os.Symlink(target, filepath.Join(root, p)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		p, content, _ := strings.Cut(f, "=")
		full := filepath.Join(root, p)
		if strings.HasSuffix(p, "/") {
			os.MkdirAll(full, 0o755)
			continue
		}
		os.MkdirAll(filepath.Dir(full), 0o755)
		if err := os.WriteFile(full, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// old puts the change times of the context out of the racy window.
func (w *world) options(dockerfile string) Options {
	ref, _ := image.ParseReference("out:1")
	return Options{Context: w.dir, Dockerfile: "-", Text: []byte(dockerfile), Tags: []image.Reference{ref}}
}

func (w *world) deps() deps {
	return deps{blobs: w.blobs, snaps: w.snaps, images: w, runner: w, cache: cache{w.steps}, run: w.run,
		progress: &progress{emit: func(e Event) { w.events = append(w.events, e) }}}
}

func (w *world) build(o Options) (*Result, error) {
	w.events = nil
	return build(context.Background(), o, w.deps())
}

func (w *world) mustBuild(dockerfile string) *Result {
	w.t.Helper()
	r, err := w.build(w.options(dockerfile))
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func (w *world) config(r *Result) *image.Config {
	w.t.Helper()
	b, err := w.blobs.Bytes(r.ConfigID, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := image.ParseConfig(b)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// root is the tree of a built image.
func (w *world) root(r *Result) string { return w.snaps.tree(w.config(r).RootFS.DiffIDs) }

func (w *world) file(r *Result, p string) string {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.root(r), p))
	if err != nil {
		w.t.Fatal(err)
	}
	return string(b)
}

func (w *world) has(r *Result, p string) bool {
	_, err := os.Lstat(filepath.Join(w.root(r), p))
	return err == nil
}

// steps lists what the progress said of each vertex: "name CACHED", "name DONE".
func (w *world) progress() []string {
	names := map[int]string{}
	var out []string
	for _, e := range w.events {
		if e.Name != "" {
			names[e.Vertex] = e.Name
		}
		switch {
		case e.Finished == nil:
		case e.Err != nil:
			out = append(out, names[e.Vertex]+" ERROR")
		case e.Cached:
			out = append(out, names[e.Vertex]+" CACHED")
		default:
			out = append(out, names[e.Vertex]+" DONE")
		}
	}
	return out
}

func (w *world) reasons() map[string]string {
	names := map[int]string{}
	out := map[string]string{}
	for _, e := range w.events {
		if e.Name != "" {
			names[e.Vertex] = plainName(e.Name)
		}
		if e.Reason != "" {
			out[names[e.Vertex]] = e.Reason
		}
	}
	return out
}

func (w *world) output() string {
	var b bytes.Buffer
	for _, e := range w.events {
		b.Write(e.Log)
	}
	return b.String()
}
