// Package api answers the Docker Engine API. One route table, one file a resource; it
// decides nothing, the engine does.
//
// A server holds nothing that must not be lost: attachments and waits of its clients, and
// what exec instances were asked for. It may be killed at any time; containers go on.
package api

import (
	"context"
	"io"
	"time"

	"github.com/moby/moby/api/types/container"
	dimage "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	dregistry "github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/volume"
	"github.com/opencontainers/go-digest"

	"keg/internal/builder"
	ctr "keg/internal/container"
	"keg/internal/engine"
	"keg/internal/event"
	"keg/internal/image"
	"keg/internal/monitor"
	net "keg/internal/network"
	"keg/internal/registry"
	vol "keg/internal/volume"
)

// The versions of the API that are spoken.
const (
	MaxVersion = "1.56"
	MinVersion = "1.24"
)

// Engine is what the API needs of an engine.
type Engine interface {
	containers
	images
	objects
}

type containers interface {
	Create(context.Context, engine.CreateOptions) (engine.Created, error)
	Begin(ctx context.Context, ref string, attach *monitor.Stdio) (engine.Session, error)
	Attach(ctx context.Context, ref string, s monitor.Stdio) (monitor.Exit, error)
	BeginExec(ctx context.Context, ref string, r monitor.ExecRequest, s monitor.Stdio) (engine.Session, error)
	CanExec(ctx context.Context, ref, user string) (id string, err error)
	Execs(ctx context.Context, ref string) ([]monitor.ExecInfo, error)
	Resize(ctx context.Context, ref, exec string, rows, cols uint16) error
	Stop(ctx context.Context, ref string, o engine.StopOptions) error
	Restart(ctx context.Context, ref string, o engine.StopOptions) error
	Kill(ctx context.Context, ref, signal string) error
	Pause(ctx context.Context, ref string) error
	Unpause(ctx context.Context, ref string) error
	Rename(ctx context.Context, ref, name string) error
	Remove(ctx context.Context, ref string, o engine.RemoveOptions) error
	Wait(ctx context.Context, ref string, c container.WaitCondition) (int, error)
	Containers(context.Context, engine.ListOptions) ([]container.Summary, error)
	Inspect(ctx context.Context, ref string, size bool) (container.InspectResponse, error)
	Logs(ctx context.Context, ref string, o ctr.LogOptions, yield func(ctr.LogEntry) error) error
	Top(ctx context.Context, ref string, options []string) (container.TopResponse, error)
	Stats(ctx context.Context, ref string) (container.StatsResponse, error)
	Update(ctx context.Context, ref string, u container.UpdateConfig) (warnings []string, err error)
	Commit(ctx context.Context, ref string, o engine.CommitOptions) (digest.Digest, error)
	Export(ctx context.Context, ref string, w io.Writer) error
	Diff(ctx context.Context, ref string) ([]engine.Change, error)
	StatPath(ctx context.Context, ref, p string) (container.PathStat, error)
	CopyFrom(ctx context.Context, ref, src string, follow bool, w io.Writer) (container.PathStat, error)
	CopyTo(ctx context.Context, ref, dst string, tar io.Reader, o engine.CopyOptions) error
}

type images interface {
	Pull(ctx context.Context, ref image.Reference, o engine.PullOptions) (engine.Pulled, error)
	Push(ctx context.Context, ref image.Reference, progress func(engine.PullEvent)) (image.Descriptor, error)
	Images(context.Context, engine.ImageListOptions) ([]dimage.Summary, error)
	InspectImage(ctx context.Context, ref string) (dimage.InspectResponse, error)
	Search(ctx context.Context, term string, o engine.SearchOptions) ([]dregistry.SearchResult, error)
	Attestations(ctx context.Context, ref string, o engine.AttestationOptions) ([]dimage.AttestationStatement, error)
	History(ctx context.Context, ref string) ([]dimage.HistoryResponseItem, error)
	Tag(ctx context.Context, source, target string) error
	RemoveImage(ctx context.Context, ref string, force bool) ([]dimage.DeleteResponse, error)
	Build(ctx context.Context, o builder.Options, progress func(builder.Event)) (*builder.Result, error)
	CheckBuild(ctx context.Context, o builder.Options) (*builder.Checked, error)
	BuildCache(ctx context.Context, f engine.Filter) ([]engine.CacheEntry, error)
	BuildTo(ctx context.Context, q engine.BuildRequest, progress func(builder.Event)) (*engine.Built, error)
	Save(ctx context.Context, names []string, w io.Writer, o engine.SaveOptions) error
	Load(ctx context.Context, r io.Reader, o engine.LoadOptions) ([]engine.Loaded, error)
	Import(ctx context.Context, tar io.Reader, o engine.ImportOptions) (digest.Digest, error)
	CheckLogin(ctx context.Context, host string, cr registry.Credentials) (registry.Credentials, error)
	Distribution(ctx context.Context, ref image.Reference) (image.Descriptor, []image.Platform, error)
}

type objects interface {
	CreateVolume(context.Context, vol.CreateOptions) (volume.Volume, error)
	Volumes(context.Context, engine.Filter) ([]volume.Volume, error)
	InspectVolume(ctx context.Context, name string) (volume.Volume, error)
	RemoveVolume(ctx context.Context, name string, force bool) error
	CreateNetwork(context.Context, net.CreateOptions) (network.Inspect, error)
	Networks(context.Context, engine.Filter) ([]network.Inspect, error)
	InspectNetwork(ctx context.Context, name string) (network.Inspect, error)
	RemoveNetwork(ctx context.Context, name string) error
	ConnectNetwork(ctx context.Context, name, ref string, s network.EndpointSettings) error
	DisconnectNetwork(ctx context.Context, name, ref string, force bool) error
	Prune(context.Context, engine.PruneOptions) (engine.Pruned, error)
	DiskUsage(context.Context) ([]engine.Usage, error)
	DiskDetail(context.Context) (engine.DiskDetail, error)
	Info(context.Context) (engine.Info, error)
	Events(ctx context.Context, since, until time.Time, follow bool, f engine.Filter, yield func(event.Message) error) error
}

// Options are those of New.
type Options struct {
	Version, Commit string
	Scratch         string                           // directory for contexts of builds, on disk; made when needed
	History         string                           // directory for records of builds; made when needed; "": none is kept
	Env             map[string]string                // of the server: proxies
	As              func(...registry.Account) Engine // the engine for a caller's own accounts; nil: the same for all
	Asking          func(registry.Ask) Engine        // the engine that asks a caller for accounts; nil: the same for all
	Log             io.Writer                        // panics are told here; nil: nowhere
}

// Server answers requests. It is an http.Handler.
type Server struct {
	engine Engine
	o      Options
	table  []compiled
	vigils vigils
	open   attachments
	execs  execs
	builds builds

	sessions sessions
	uploads  uploads
	solves   solves
	history  history
	controls controls
}

// New makes a server over an engine.
func New(e Engine, o Options) *Server {
	if o.Log == nil {
		o.Log = io.Discard
	}
	return &Server{engine: e, o: o, table: compile(routes()), history: history{dir: o.History}}
}
