// Package engine is the use cases: run, build, pull, push, exec, commit, prune. Each is
// one method that reads top to bottom; it names no system call.
package engine

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/moby/moby/api/types/network"
	"github.com/opencontainers/go-digest"

	ctr "keg/internal/container"
	"keg/internal/disk"
	"keg/internal/event"
	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/linux"
	"keg/internal/monitor"
	net "keg/internal/network"
	"keg/internal/registry"
	"keg/internal/snapshot"
	"keg/internal/store"
	vol "keg/internal/volume"
)

// Options say where the engine's state is and what it knows of its caller.
type Options struct {
	Root, Run string            // absolute
	Env       map[string]string // of the caller: proxies, HOME, DOCKER_CONFIG
	Version   string            // for the User-Agent

	// Outside says that this is an ordinary user's engine from outside of his namespace: good for talking to
	// monitors, not for cleaning up after one.
	Outside bool

	BuildQuota int64 // bytes that the build cache may keep; 0: a tenth of the file system
}

// Engine is one engine on one pair of directories. It holds no state but its rooms'
// directories: any number of processes may have one open.
type Engine struct {
	opt        Options
	store      *store.Store
	snapshots  *snapshot.Store
	containers *ctr.Store
	volumes    *vol.Store
	networks   *net.Store
	events     *event.Journal
	remote     remote
	monitors   monitors
	spare      *atomic.Pointer[chan spare] // of Expect
	kept       *keptRecords                // of KeepRecords
}

// remote is the far end of pull, push and login.
type remote interface {
	Resolve(ctx context.Context, ref image.Reference) (image.Descriptor, error)
	Manifest(ctx context.Context, ref image.Reference, d image.Descriptor) ([]byte, error)
	Tags(ctx context.Context, ref image.Reference) ([]string, error)
	Blob(ctx context.Context, ref image.Reference, d image.Descriptor, offset int64) (io.ReadCloser, int64, error)
	Referrers(ctx context.Context, ref image.Reference, d digest.Digest) ([]image.Descriptor, error)
	HasBlob(ctx context.Context, ref image.Reference, d digest.Digest) (bool, error)
	MountBlob(ctx context.Context, ref image.Reference, d digest.Digest, from string) (bool, error)
	PushBlob(ctx context.Context, ref image.Reference, d image.Descriptor, open func() (io.ReadCloser, error), progress func(int64)) error
	PushManifest(ctx context.Context, ref image.Reference, mediaType string, doc []byte) (digest.Digest, error)
	Login(ctx context.Context, registry string, cr registry.Credentials) (string, error)
	Logout(ctx context.Context, registry string) error
	Stored(ctx context.Context, registry string) (registry.Credentials, error)
}

// monitors start, reach and clean up after the processes that own running containers.
type monitors interface {
	// Prepare starts a monitor before it is known for what; nil when that fails, which the
	// Spawn that follows will explain.
	Prepare() spare
	Spawn(ctx context.Context, id string, attach *monitor.Stdio) (live, error)
	Dial(ctx context.Context, id string) (live, error)
	Reap(ctx context.Context, id string) error
	ReapAll(ctx context.Context) error
}

// spare is a monitor that waits to be told its container.
type spare interface {
	Spawn(ctx context.Context, id string, attach *monitor.Stdio) (live, error)
	Close() error
}

// live is a running container, as its monitor answers.
type live interface {
	Attach(ctx context.Context, s monitor.Stdio) (monitor.Exit, error)
	Wait(ctx context.Context) (monitor.Exit, error)
	Exec(ctx context.Context, r monitor.ExecRequest, s monitor.Stdio) (monitor.Exit, error)
	StartExec(ctx context.Context, r monitor.ExecRequest, s monitor.Stdio) error
	Resize(ctx context.Context, rows, cols uint16) error
	ResizeExec(ctx context.Context, id string, rows, cols uint16) error
	Info(ctx context.Context) (monitor.Info, error)
	Kill(ctx context.Context, sig int) error
	Stop(ctx context.Context, sig, timeout int) error
	Renew(ctx context.Context, sig, timeout int) error
	Pause(ctx context.Context) error
	Unpause(ctx context.Context) error
	Root(ctx context.Context) (*os.File, error)
	Update(ctx context.Context) error
	Renamed(ctx context.Context) error
	Connect(ctx context.Context, e net.Endpoint) (*network.EndpointSettings, error)
	Disconnect(ctx context.Context, name string) error
	Close() error
}

// ourMonitors are keg's own, one process a container.
type ourMonitors struct{ r monitor.Roots }

func (m ourMonitors) Spawn(ctx context.Context, id string, attach *monitor.Stdio) (live, error) {
	c, err := monitor.Spawn(ctx, m.r, id, attach)
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (m ourMonitors) Prepare() spare {
	p, err := monitor.Prepare(m.r)
	if err != nil {
		return nil
	}
	return ourSpare{p}
}

// ourSpare is one of keg's own.
type ourSpare struct{ *monitor.Prepared }

func (s ourSpare) Spawn(ctx context.Context, id string, attach *monitor.Stdio) (live, error) {
	c, err := s.Prepared.Spawn(ctx, id, attach)
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (m ourMonitors) Dial(ctx context.Context, id string) (live, error) {
	c, err := monitor.Dial(ctx, m.r, id)
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (m ourMonitors) Reap(ctx context.Context, id string) error { return monitor.Reap(ctx, m.r, id) }

func (m ourMonitors) ReapAll(ctx context.Context) error { return monitor.ReapAll(ctx, m.r) }

// others are monitors inside a namespace that we are not in.
type others struct{ monitors }

// Reap is left to the next command that is inside.
func (others) Reap(context.Context, string) error { return nil }

// Answers tells whether the container of that name has a monitor to talk to. It changes nothing.
func Answers(root, ref string) bool {
	s := ctr.Open(root)
	r, err := s.Find(ref)
	if err != nil {
		return false
	}
	st, err := s.State(r.ID)
	if err != nil || !isLive(st.Status) || !sameBoot(st) {
		return false
	}
	held, err := s.Running(r.ID)
	return err == nil && held
}

// layoutVersion is the format of the directories below Root.
const layoutVersion = 1

// Open checks the format of Root (fault.Unsupported for a newer one or for a network
// file system) and opens the rooms. It scans nothing.
func Open(o Options) (*Engine, error) {
	if !filepath.IsAbs(o.Root) || !filepath.IsAbs(o.Run) {
		return nil, fault.Invalidf("open engine: root %q and run root %q must be absolute paths", o.Root, o.Run)
	}
	if err := prepareRoot(o.Root); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Run, 0o700); err != nil {
		return nil, denied(err, o.Run)
	}
	blobs, err := store.Open(o.Root)
	if err != nil {
		return nil, err
	}
	snapshots, err := snapshot.Open(o.Root)
	if err != nil {
		return nil, err
	}
	var ms monitors = ourMonitors{monitor.Roots{Root: o.Root, Run: o.Run}}
	if o.Outside {
		ms = others{ms}
	}
	return &Engine{
		opt:        o,
		store:      blobs,
		snapshots:  snapshots,
		containers: ctr.Open(o.Root),
		volumes:    vol.Open(o.Root),
		networks:   net.Open(o.Root, o.Run),
		events:     event.Open(o.Root),
		remote: registry.NewClient(registry.Config{
			DockerConfig: o.Env["DOCKER_CONFIG"], Env: o.Env, UserAgent: "keg/" + o.Version}),
		monitors: ms,
		spare:    &atomic.Pointer[chan spare]{},
	}, nil
}

// layout is the file of that name: it tells which keg may use the directory.
type layout struct {
	Version int `json:"version"`
}

// prepareRoot makes root on first use and refuses what keg cannot keep its promises on.
func prepareRoot(root string) error {
	file := filepath.Join(root, "layout")
	b, err := os.ReadFile(file)
	if err == nil {
		var l layout
		if err := json.Unmarshal(b, &l); err != nil {
			return fault.Unsupportedf("read %s: %w; is %s a directory of keg?", file, err, root)
		}
		if l.Version > layoutVersion {
			return fault.Unsupportedf("%s has format %d and this keg knows formats up to %d; use the newer keg, or another --root", root, l.Version, layoutVersion)
		}
		return nil
	}
	if !os.IsNotExist(err) {
		return denied(err, root)
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return denied(err, root)
	}
	if name, remote, err := linux.RemoteFS(root); err != nil {
		return err
	} else if remote {
		return fault.Unsupportedf("%s is on %s, which does not keep overlay trees, locks and renames as keg needs them; choose a local disk with --root", root, name)
	}
	if err := os.Chmod(root, 0o700); err != nil {
		return denied(err, root)
	}
	return disk.PutJSON(file, layout{layoutVersion})
}

func denied(err error, dir string) error {
	if os.IsPermission(err) {
		return fault.Deniedf("%w; keg keeps its state in %s: run it as root, or choose a directory of yours with --root and --run-root", err, dir)
	}
	return err
}
