package monitor

// Tests that start real containers: as root, in private mount and network namespaces, on a root made of
// busybox. This binary is the monitor, as keg is.

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	dcontainer "github.com/moby/moby/api/types/container"
	"github.com/opencontainers/go-digest"

	"keg/internal/container"
	"keg/internal/snapshot"
	"keg/test/private"
)

func TestMain(m *testing.M) {
	if os.Args[0] == Argv0 {
		os.Exit(Main(os.Args[1:]))
	}
	if IsInit(os.Args[0]) {
		os.Exit(Init(os.Args[1:]))
	}
	private.Enter()
	os.Exit(m.Run())
}

// house is one engine's directories with a busybox image.
type house struct {
	t     testing.TB
	roots Roots
	s     *container.Store
	snaps *snapshot.Store
	stack []digest.Digest
}

func needRoot(t testing.TB) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts, namespaces, cgroups")
	}
	if _, err := os.Stat("/bin/busybox"); err != nil {
		t.Skip("needs busybox-static: /bin/busybox is the containers' root")
	}
}

func newHouse(t testing.TB) *house {
	needRoot(t)
	dir := t.TempDir()
	h := &house{t: t, roots: Roots{Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run")}}
	for _, d := range []string{h.roots.Root, h.roots.Run} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	h.s = container.Open(h.roots.Root)
	var err error
	if h.snaps, err = snapshot.Open(h.roots.Root); err != nil {
		t.Fatal(err)
	}
	u, err := h.snaps.Unpack(context.Background(), bytes.NewReader(busyboxTar(t)), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Place(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	h.stack = []digest.Digest{u.DiffID()}
	t.Cleanup(h.empty)
	return h
}

var busyboxTar = func() func(t testing.TB) []byte {
	var once sync.Once
	var b []byte
	return func(t testing.TB) []byte {
		once.Do(func() { b = makeTar(t) })
		return b
	}
}()

func makeTar(t testing.TB) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	put := func(h tar.Header, data []byte) {
		h.Size = int64(len(data))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		w.Write(data)
	}
	for _, d := range []string{"bin/", "etc/", "tmp/", "proc/", "sys/", "dev/", "data/", "home/", "home/app/"} {
		mode := int64(0o755)
		if d == "tmp/" {
			mode = 0o1777
		}
		put(tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: mode}, nil)
	}
	bb, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	put(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, bb)
	for _, a := range []string{"sh", "true", "false", "sleep", "cat", "echo", "ls", "id", "env", "kill", "ps", "printf", "head", "seq",
		"stty", "dd", "wc", "md5sum", "hostname", "mount", "touch", "test", "yes", "tail", "pwd", "grep", "stat", "tty", "trap"} {
		put(tar.Header{Name: "bin/" + a, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
	}
	put(tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644},
		[]byte("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n"))
	put(tar.Header{Name: "etc/group", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:\napp:x:1001:\nextra:x:2000:app\n"))
	put(tar.Header{Name: "data/seed", Typeflag: tar.TypeReg, Mode: 0o640, Uid: 1000, Gid: 1001}, []byte("seed\n"))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// empty removes what tests left and checks that nothing else remains.
func (h *house) empty() {
	ctx := context.Background()
	if ids, _ := h.s.List(); len(ids) > 0 {
		for _, id := range ids {
			if c, err := Dial(ctx, h.roots, id); err == nil {
				c.Stop(ctx, 9, 0)
				c.Close()
			}
		}
	}
	h.settled(func() bool {
		ents, err := os.ReadDir(h.roots.Run)
		for _, e := range ents {
			if len(e.Name()) == 64 || strings.HasPrefix(e.Name(), "step-") {
				return false
			}
		}
		return err == nil
	}, "run directories remain")
	h.settled(func() bool {
		leases, err := filepath.Glob(filepath.Join(h.roots.Root, "networks", "*", "leases", "*"))
		return err == nil && len(leases) == 0
	}, "leases of addresses remain")
}

// settled waits for what is done after the exit was reported.
func (h *house) settled(ok func() bool, what string) {
	h.t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			h.t.Errorf("after 10 s: %s", what)
			return
		}
	}
}

type option func(*container.Record)

// create writes a record as the engine would.
func (h *house) create(args []string, opts ...option) *container.Record {
	h.t.Helper()
	r := &container.Record{ID: container.NewID(), Created: time.Now(), Stack: h.stack, Config: &dcontainer.Config{Cmd: args, Image: "busybox"},
		Host: &dcontainer.HostConfig{NetworkMode: "none"}}
	for _, o := range opts {
		o(r)
	}
	if err := h.snaps.Prepare(context.Background(), r.ID, h.stack); err != nil {
		h.t.Fatal(err)
	}
	if err := h.s.Create(context.Background(), r); err != nil {
		h.t.Fatal(err)
	}
	return r
}

func autoRemove(r *container.Record) { r.Host.AutoRemove = true }
func hostNet(r *container.Record)    { r.Host.NetworkMode = "host" }
func openStdin(r *container.Record)  { r.Config.OpenStdin, r.Config.StdinOnce = true, true }
func tty(r *container.Record) {
	r.Config.Tty, r.Config.OpenStdin, r.Config.StdinOnce = true, true, true
}
func named(n string) option { return func(r *container.Record) { r.Name = n } }

// result of a foreground run.
type result struct {
	exit     Exit
	out, err string
	failure  error
}

// run is docker run.
func (h *house) run(args []string, stdin io.Reader, opts ...option) result {
	h.t.Helper()
	return h.start(h.create(args, opts...), stdin)
}

func (h *house) start(r *container.Record, stdin io.Reader) (res result) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	var out, errs bytes.Buffer
	c, err := Spawn(ctx, h.roots, r.ID, &Stdio{In: stdin, Out: &out, Err: &errs})
	if err != nil {
		return result{failure: err}
	}
	defer c.Close()
	res.exit, res.failure = c.Wait(ctx)
	res.out, res.err = out.String(), errs.String()
	return res
}

// detached is docker run -d.
func (h *house) detached(args []string, opts ...option) *container.Record {
	h.t.Helper()
	r := h.create(args, opts...)
	c, err := Spawn(context.Background(), h.roots, r.ID, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	c.Close()
	return r
}

func (h *house) dial(id string) *Conn {
	h.t.Helper()
	c, err := Dial(context.Background(), h.roots, id)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	return c
}

func (h *house) state(id string) *container.State {
	h.t.Helper()
	st, err := h.s.State(id)
	if err != nil {
		h.t.Fatal(err)
	}
	return st
}

// exec runs a command in a running container and returns its output.
func (h *house) exec(id string, q ExecRequest, stdin io.Reader) (string, Exit, error) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	var out bytes.Buffer
	w := &locked{w: &out}
	q.Stdin = stdin != nil
	x, err := h.dial(id).Exec(ctx, q, Stdio{In: stdin, Out: w, Err: w})
	return out.String(), x, err
}

type locked struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

func sh(script string) []string { return []string{"sh", "-c", script} }
