package engine

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/moby/moby/api/types/network"
	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/monitor"
	net "keg/internal/network"
	"keg/internal/registry"
)

// fakeRegistry is a registry in memory.
type fakeRegistry struct {
	mu        sync.Mutex
	blobs     map[digest.Digest][]byte
	repos     map[string]map[digest.Digest]bool // which repository holds which blob
	tags      map[string]image.Descriptor       // registry/repository:tag
	served    map[digest.Digest]int64           // bytes handed out
	asked     map[digest.Digest]int             // Blob calls
	uploaded  int
	mounted   int
	cutAt     int64 // > 0: a blob's connection breaks there, once per blob
	cut       map[digest.Digest]bool
	lie       map[digest.Digest][]byte // what is sent instead
	noRanges  bool
	down      error
	requested []string
}

func newFakeRegistry() *fakeRegistry {
	return &fakeRegistry{blobs: map[digest.Digest][]byte{}, repos: map[string]map[digest.Digest]bool{}, tags: map[string]image.Descriptor{},
		served: map[digest.Digest]int64{}, asked: map[digest.Digest]int{}, cut: map[digest.Digest]bool{}, lie: map[digest.Digest][]byte{}}
}

func (f *fakeRegistry) put(repo, media string, b []byte) image.Descriptor {
	d := digest.FromBytes(b)
	f.blobs[d] = b
	if f.repos[repo] == nil {
		f.repos[repo] = map[digest.Digest]bool{}
	}
	f.repos[repo][d] = true
	return image.Descriptor{MediaType: media, Digest: d, Size: int64(len(b))}
}

func (f *fakeRegistry) putJSON(t *testing.T, repo, media string, v any) image.Descriptor {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return f.put(repo, media, b)
}

func (f *fakeRegistry) Referrers(context.Context, image.Reference, digest.Digest) ([]image.Descriptor, error) {
	return nil, nil
}

func (f *fakeRegistry) Resolve(_ context.Context, ref image.Reference) (image.Descriptor, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requested = append(f.requested, ref.String())
	if f.down != nil {
		return image.Descriptor{}, f.down
	}
	if ref.Digest != "" {
		b, ok := f.blobs[ref.Digest]
		if !ok {
			return image.Descriptor{}, fault.NotFoundf("manifest unknown")
		}
		return image.Descriptor{MediaType: image.MediaManifest, Digest: ref.Digest, Size: int64(len(b))}, nil
	}
	d, ok := f.tags[ref.String()]
	if !ok {
		return d, fault.NotFoundf("manifest for %s not found: manifest unknown", ref.Familiar())
	}
	return d, nil
}

func (f *fakeRegistry) Tags(_ context.Context, ref image.Reference) (tags []string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name := range f.tags {
		if tag, ok := strings.CutPrefix(name, ref.Name()+":"); ok {
			tags = append(tags, tag)
		}
	}
	slices.Sort(tags)
	return tags, nil
}

func (f *fakeRegistry) Manifest(_ context.Context, _ image.Reference, d image.Descriptor) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.blobs[d.Digest], nil
}

func (f *fakeRegistry) Blob(_ context.Context, _ image.Reference, d image.Descriptor, offset int64) (io.ReadCloser, int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, ok := f.blobs[d.Digest]
	if !ok {
		return nil, 0, fault.NotFoundf("blob unknown")
	}
	if other := f.lie[d.Digest]; other != nil {
		b = other
	}
	if f.noRanges {
		offset = 0
	}
	f.asked[d.Digest]++
	b = b[min(offset, int64(len(b))):]
	var r io.Reader = bytes.NewReader(b)
	if f.cutAt > 0 && int64(len(b)) > f.cutAt && !f.cut[d.Digest] {
		f.cut[d.Digest] = true
		r = io.MultiReader(bytes.NewReader(b[:f.cutAt]), broken{})
	}
	return io.NopCloser(&metered{r, f, d.Digest}), offset, nil
}

type broken struct{}

var errCut = errors.New("connection reset by peer")

func (broken) Read([]byte) (int, error) { return 0, errCut }

type metered struct {
	r io.Reader
	f *fakeRegistry
	d digest.Digest
}

func (m *metered) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.f.mu.Lock()
	m.f.served[m.d] += int64(n)
	m.f.mu.Unlock()
	return n, err
}

func (f *fakeRegistry) HasBlob(_ context.Context, ref image.Reference, d digest.Digest) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.repos[ref.Repository][d], nil
}

func (f *fakeRegistry) MountBlob(_ context.Context, ref image.Reference, d digest.Digest, from string) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.repos[from][d] {
		return false, nil
	}
	f.put(ref.Repository, "", f.blobs[d])
	f.mounted++
	return true, nil
}

func (f *fakeRegistry) PushBlob(_ context.Context, ref image.Reference, d image.Descriptor, open func() (io.ReadCloser, error), progress func(int64)) error {
	r, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if digest.FromBytes(b) != d.Digest || int64(len(b)) != d.Size {
		return fault.Invalidf("digest did not match uploaded content")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.put(ref.Repository, d.MediaType, b)
	f.uploaded++
	if progress != nil {
		progress(d.Size)
	}
	return nil
}

func (f *fakeRegistry) PushManifest(_ context.Context, ref image.Reference, media string, doc []byte) (digest.Digest, error) {
	m, err := image.ParseManifest(doc)
	if err != nil {
		return "", err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range append(slices.Clone(m.Layers), m.Config) {
		if !f.repos[ref.Repository][d.Digest] {
			return "", fault.Invalidf("blob unknown to registry: %s", d.Digest)
		}
	}
	desc := f.put(ref.Repository, media, doc)
	f.tags[ref.String()] = desc
	return desc.Digest, nil
}

func (f *fakeRegistry) Login(context.Context, string, registry.Credentials) (string, error) {
	return "Login Succeeded", nil
}
func (f *fakeRegistry) Logout(context.Context, string) error { return nil }
func (f *fakeRegistry) Stored(context.Context, string) (registry.Credentials, error) {
	return registry.Credentials{}, nil
}

// tarOf is a layer with these files.
func tarOf(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name])), ModTime: time.Unix(1e9, 0), Typeflag: tar.TypeReg,
			Uid: os.Getuid(), Gid: os.Getgid()} // an ordinary user can give files to nobody else
		if name[len(name)-1] == '/' {
			h.Typeflag, h.Mode, h.Size = tar.TypeDir, 0o755, 0
		}
		if filepath.Dir(name) == "bin" {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, files[name]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func pack(t *testing.T, c image.Compression, b []byte) (string, []byte) {
	t.Helper()
	var out bytes.Buffer
	switch c {
	case image.Gzip:
		w := gzip.NewWriter(&out)
		w.Write(b)
		w.Close()
		return image.MediaLayerGzip, out.Bytes()
	case image.Zstd:
		w, err := zstd.NewWriter(&out)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(b)
		w.Close()
		return image.MediaLayerZstd, out.Bytes()
	}
	return image.MediaLayer, b
}

// publish puts an image into the registry and tags it.
func (f *fakeRegistry) publish(t *testing.T, name string, c image.Compression, layers ...[]byte) (image.Descriptor, *image.Config) {
	t.Helper()
	ref := refs(t, name)[0]
	cfg := testConfig(layers...)
	m := image.Manifest{MediaType: image.MediaManifest}
	m.SchemaVersion = 2
	m.Config = f.putJSON(t, ref.Repository, image.MediaConfig, cfg)
	for _, l := range layers {
		media, b := pack(t, c, l)
		m.Layers = append(m.Layers, f.put(ref.Repository, media, b))
	}
	desc := f.putJSON(t, ref.Repository, image.MediaManifest, m)
	f.tags[ref.String()] = desc
	return desc, cfg
}

func testConfig(layers ...[]byte) *image.Config {
	at := time.Unix(1e9, 0).UTC()
	cfg := &image.Config{}
	cfg.Created, cfg.OS, cfg.Architecture = &at, "linux", image.Host().Architecture
	cfg.Config.Cmd = []string{"/bin/sh"}
	cfg.RootFS.Type = "layers"
	for _, l := range layers {
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, digest.FromBytes(l))
		cfg.History = append(cfg.History, image.History{Created: &at, CreatedBy: "ADD layer"})
	}
	return cfg
}

// newEngine is an engine on fresh directories with a registry in memory.
func newEngine(t *testing.T, f *fakeRegistry) *Engine {
	t.Helper()
	dir := t.TempDir()
	return openEngine(t, dir, f)
}

func openEngine(t *testing.T, dir string, f *fakeRegistry) *Engine {
	t.Helper()
	e, err := Open(Options{Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run")})
	if err != nil {
		t.Fatal(err)
	}
	if f != nil {
		e.remote = f
	}
	return e
}

// addImage makes a local image of uncompressed layers, as a build does.
func addImage(t *testing.T, e *Engine, name string, cfg func(*image.Config), layers ...[]byte) *imageRecord {
	t.Helper()
	ctx := t.Context()
	use, err := e.busy(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer use.end()
	c := testConfig(layers...)
	if cfg != nil {
		cfg(c)
	}
	m := image.Manifest{MediaType: image.MediaManifest}
	m.SchemaVersion = 2
	for i, l := range layers {
		u, err := e.snapshots.UnpackRecorded(ctx, bytes.NewReader(l), "")
		if err != nil {
			t.Fatal(err)
		}
		if err := u.Place(ctx, c.RootFS.DiffIDs[:i]); err != nil {
			t.Fatal(err)
		}
		m.Layers = append(m.Layers, image.Descriptor{MediaType: image.MediaLayer, Digest: u.DiffID(), Size: u.Size()})
	}
	desc, err := e.putImage(ctx, c, &m, use)
	if err != nil {
		t.Fatal(err)
	}
	r, err := e.remember(desc)
	if err != nil {
		t.Fatal(err)
	}
	if name != "" {
		if err := e.store.Tag(refs(t, name)[0], desc); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// files counts what is left of blobs, layers and the like below the root of an engine.
func leftovers(t *testing.T, e *Engine) []string {
	t.Helper()
	var left []string
	for _, dir := range []string{"blobs/sha256", "ingest", "leases", "images", "layers", "l", "active", "steps", "derived", "busy", "names", "volumes"} {
		ents, err := os.ReadDir(filepath.Join(e.opt.Root, dir))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, ent := range ents {
			if ent.Name()[0] == '.' {
				continue // locks and trash of the room
			}
			left = append(left, dir+"/"+ent.Name())
		}
	}
	return left
}

// fakeMonitors run nothing: Spawn writes down that the container runs, an exit is told by
// the test.
type fakeMonitors struct {
	e     *Engine
	mu    sync.Mutex
	lives map[string]*fakeLive
	reaps []string
	fail  error
	dials atomic.Int64
}

type fakeLive struct {
	m      *fakeMonitors
	id     string
	lock   *os.File
	exit   chan struct{}
	code   int
	calls  []string
	refuse error         // of what changes a running container
	linger time.Duration // between the exit and the end of cleaning up
}

func withMonitors(e *Engine) *fakeMonitors {
	m := &fakeMonitors{e: e, lives: map[string]*fakeLive{}}
	e.monitors = m
	return m
}

// Prepare gives the monitors themselves; nothing is to be closed.
func (m *fakeMonitors) Prepare() spare { return fakeSpare{m} }

type fakeSpare struct{ *fakeMonitors }

func (fakeSpare) Close() error { return nil }

func (m *fakeMonitors) Spawn(_ context.Context, id string, _ *monitor.Stdio) (live, error) {
	if m.fail != nil {
		return nil, m.fail
	}
	lock, err := m.e.containers.Lock(id)
	if err != nil || lock == nil {
		return nil, errors.Join(errors.New("the lock is taken"), err)
	}
	st, err := m.e.containers.State(id)
	if err != nil {
		return nil, err
	}
	st.Status, st.Started, st.Pid = "running", time.Now(), os.Getpid()
	if err := m.e.containers.PutState(id, st, true); err != nil {
		return nil, err
	}
	l := &fakeLive{m: m, id: id, lock: lock, exit: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lives[id] = l
	return l, nil
}

func (m *fakeMonitors) Dial(_ context.Context, id string) (live, error) {
	defer m.dials.Add(1)
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.lives[id]
	if l == nil {
		return nil, notRunning(id)
	}
	return l, nil
}

func (m *fakeMonitors) Reap(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reaps = append(m.reaps, id)
	st, err := m.e.containers.State(id)
	if err != nil {
		return err
	}
	st.Status, st.ExitCode, st.Error, st.Finished = "exited", 137, "monitor lost", time.Now()
	return m.e.containers.PutState(id, st, true)
}

func (m *fakeMonitors) ReapAll(context.Context) error { return nil }

// end is the end of the program.
func (l *fakeLive) end(code int) {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if l.m.lives[l.id] != l {
		return
	}
	delete(l.m.lives, l.id)
	st, err := l.m.e.containers.State(l.id)
	if err == nil {
		st.Status, st.ExitCode, st.Finished = "exited", code, time.Now()
		_ = l.m.e.containers.PutState(l.id, st, true)
	}
	l.code = code
	close(l.exit)
	if l.linger == 0 {
		l.lock.Close()
		return
	}
	time.AfterFunc(l.linger, func() { l.lock.Close() })
}

func (l *fakeLive) called(s string) { l.calls = append(l.calls, s) }

func (l *fakeLive) Attach(ctx context.Context, _ monitor.Stdio) (monitor.Exit, error) {
	return l.Wait(ctx)
}

func (l *fakeLive) Wait(ctx context.Context) (monitor.Exit, error) {
	select {
	case <-l.exit:
		return monitor.Exit{Code: l.code}, nil
	case <-ctx.Done():
		return monitor.Exit{}, ctx.Err()
	}
}

func (l *fakeLive) Exec(_ context.Context, r monitor.ExecRequest, _ monitor.Stdio) (monitor.Exit, error) {
	l.called("exec " + r.Cmd[0])
	return monitor.Exit{}, nil
}

func (l *fakeLive) Kill(_ context.Context, sig int) error {
	l.called("kill")
	if sig == 9 {
		l.end(137)
	}
	return nil
}

func (l *fakeLive) Renew(context.Context, int, int) error { return nil }

func (l *fakeLive) Stop(_ context.Context, sig, timeout int) error {
	l.called("stop")
	l.end(128 + sig)
	return nil
}

func (l *fakeLive) set(s string) error {
	st, err := l.m.e.containers.State(l.id)
	if err != nil {
		return err
	}
	st.Status = "running"
	if s == "pause" {
		st.Status = "paused"
	}
	return l.m.e.containers.PutState(l.id, st, true)
}
func (l *fakeLive) Pause(context.Context) error   { return l.set("pause") }
func (l *fakeLive) Unpause(context.Context) error { return l.set("unpause") }
func (l *fakeLive) Close() error                  { return nil }
func (l *fakeLive) Root(context.Context) (*os.File, error) {
	return nil, notRunning(l.id)
}

func (l *fakeLive) StartExec(context.Context, monitor.ExecRequest, monitor.Stdio) error {
	return l.set("exec")
}
func (l *fakeLive) Resize(_ context.Context, rows, cols uint16) error {
	return l.set(fmt.Sprintf("resize %dx%d", cols, rows))
}
func (l *fakeLive) ResizeExec(_ context.Context, id string, rows, cols uint16) error {
	return l.set(fmt.Sprintf("resize %s %dx%d", id, cols, rows))
}
func (l *fakeLive) Info(context.Context) (monitor.Info, error) {
	return monitor.Info{Execs: []monitor.ExecInfo{{ID: "x", Pid: 7, Running: true}}}, nil
}
func (l *fakeLive) change(what string) error { l.called(what); return l.refuse }

func (l *fakeLive) Update(context.Context) error  { return l.change("update") }
func (l *fakeLive) Renamed(context.Context) error { return l.change("renamed") }
func (l *fakeLive) Connect(_ context.Context, e net.Endpoint) (*network.EndpointSettings, error) {
	return &e.Settings, l.change("connect " + e.Network)
}
func (l *fakeLive) Disconnect(_ context.Context, name string) error {
	return l.change("disconnect " + name)
}
