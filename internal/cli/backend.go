// What the commands need of an engine.

package cli

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

// backend is *engine.Engine, or the fake of the tests.
type backend interface {
	containers
	images
	volumes
	networks
	whole
}

type containers interface {
	Create(context.Context, engine.CreateOptions) (engine.Created, error)
	Start(ctx context.Context, ref string, attach *monitor.Stdio) (monitor.Exit, error)
	Expect()
	Run(context.Context, engine.CreateOptions, *monitor.Stdio, func(engine.Created) error) (monitor.Exit, error)
	Attach(ctx context.Context, ref string, s monitor.Stdio) (monitor.Exit, error)
	Exec(ctx context.Context, ref string, r monitor.ExecRequest, s monitor.Stdio) (monitor.Exit, error)
	Stop(ctx context.Context, ref string, o engine.StopOptions) error
	Restart(ctx context.Context, ref string, o engine.StopOptions) error
	Kill(ctx context.Context, ref, signal string) error
	Pause(ctx context.Context, ref string) error
	Unpause(ctx context.Context, ref string) error
	Rename(ctx context.Context, ref, name string) error
	Remove(ctx context.Context, ref string, o engine.RemoveOptions) error
	Unlink(ctx context.Context, name string) error
	Wait(ctx context.Context, ref string, c container.WaitCondition) (int, error)
	Containers(context.Context, engine.ListOptions) ([]container.Summary, error)
	Outdated(ctx context.Context, list []container.Summary) []engine.Outdated
	Inspect(ctx context.Context, ref string, size bool) (container.InspectResponse, error)
	Commit(ctx context.Context, ref string, o engine.CommitOptions) (digest.Digest, error)
	Export(ctx context.Context, ref string, w io.Writer) error
	Diff(ctx context.Context, ref string) ([]engine.Change, error)
	CopyOut(ctx context.Context, ref, src, dst string, o engine.CopyOptions) (engine.Copied, error)
	CopyIn(ctx context.Context, src, ref, dst string, o engine.CopyOptions) (engine.Copied, error)
	CopyFrom(ctx context.Context, ref, src string, follow bool, w io.Writer) (container.PathStat, error)
	CopyTo(ctx context.Context, ref, dst string, tar io.Reader, o engine.CopyOptions) error
	Top(ctx context.Context, ref string, options []string) (container.TopResponse, error)
	Stats(ctx context.Context, ref string) (container.StatsResponse, error)
	Update(ctx context.Context, ref string, u container.UpdateConfig) (warnings []string, err error)
	StartBoot(ctx context.Context, started func(engine.Booted)) error
	Logs(ctx context.Context, ref string, o ctr.LogOptions, yield func(ctr.LogEntry) error) error
}

type images interface {
	Pull(ctx context.Context, ref image.Reference, o engine.PullOptions) (engine.Pulled, error)
	PullAll(ctx context.Context, repo image.Reference, o engine.PullOptions) ([]engine.Pulled, error)
	Push(ctx context.Context, ref image.Reference, progress func(engine.PullEvent)) (image.Descriptor, error)
	PushWith(ctx context.Context, ref image.Reference, o engine.PushOptions) (image.Descriptor, error)
	Images(context.Context, engine.ImageListOptions) ([]dimage.Summary, error)
	InspectImage(ctx context.Context, ref string) (dimage.InspectResponse, error)
	OnPlatform(ctx context.Context, ref string, p *image.Platform) error
	Analyze(ctx context.Context, ref string) (*engine.Analysis, error)
	InspectRemote(ctx context.Context, ref image.Reference, p *image.Platform) (dimage.InspectResponse, error)
	Search(ctx context.Context, term string, o engine.SearchOptions) ([]dregistry.SearchResult, error)
	Base(ctx context.Context, ref string) (name string, lines int, err error)
	History(ctx context.Context, ref string) ([]dimage.HistoryResponseItem, error)
	Save(ctx context.Context, names []string, w io.Writer, o engine.SaveOptions) error
	Load(ctx context.Context, r io.Reader, o engine.LoadOptions) ([]engine.Loaded, error)
	Import(ctx context.Context, tar io.Reader, o engine.ImportOptions) (digest.Digest, error)
	Tag(ctx context.Context, source, target string) error
	RemoveImage(ctx context.Context, ref string, force bool) ([]dimage.DeleteResponse, error)
	Verify(ctx context.Context, o builder.Options, progress func(builder.Event)) error
	BuildTo(ctx context.Context, q engine.BuildRequest, progress func(builder.Event)) (*engine.Built, error)
	CheckBuild(ctx context.Context, o builder.Options) (*builder.Checked, error)
	BuildCache(ctx context.Context, f engine.Filter) ([]engine.CacheEntry, error)
	Login(ctx context.Context, registry string, c registry.Credentials) (string, error)
	Logout(ctx context.Context, registry string) error
	StoredCredentials(ctx context.Context, host string) (registry.Credentials, error)
	ManifestList(list image.Reference) (*image.Index, error)
	RemoteManifest(ctx context.Context, ref image.Reference) (image.Descriptor, []byte, error)
	RemoteImages(ctx context.Context, ref image.Reference) ([]engine.RemoteImage, error)
	CreateManifestList(ctx context.Context, list image.Reference, members []image.Reference, amend bool) error
	AnnotateManifestList(ctx context.Context, list, member image.Reference, a engine.Annotation) error
	PushManifestList(ctx context.Context, list image.Reference, purge bool) (digest.Digest, error)
	RemoveManifestList(list image.Reference) error
	ServeRegistry(ctx context.Context, addr, dir string, o registry.ServerOptions, ready func(addr string)) error
}

type volumes interface {
	CreateVolume(context.Context, vol.CreateOptions) (volume.Volume, error)
	Volumes(context.Context, engine.Filter) ([]volume.Volume, error)
	InspectVolume(ctx context.Context, name string) (volume.Volume, error)
	RemoveVolume(ctx context.Context, name string, force bool) error
	CloneVolume(ctx context.Context, from, to string) (volume.Volume, error)
	RenameVolume(ctx context.Context, from, to string) error
	ExportVolume(ctx context.Context, name string, w io.Writer) error
	ImportVolume(ctx context.Context, name string, r io.Reader) error
}

type networks interface {
	CreateNetwork(context.Context, net.CreateOptions) (network.Inspect, error)
	Networks(context.Context, engine.Filter) ([]network.Inspect, error)
	InspectNetwork(ctx context.Context, name string) (network.Inspect, error)
	RemoveNetwork(ctx context.Context, name string) error
	ConnectNetwork(ctx context.Context, name, ref string, s network.EndpointSettings) error
	DisconnectNetwork(ctx context.Context, name, ref string, force bool) error
	ReloadNetworks(ctx context.Context) error
}

type whole interface {
	Prune(context.Context, engine.PruneOptions) (engine.Pruned, error)
	DiskUsage(context.Context) ([]engine.Usage, error)
	DiskDetail(context.Context) (engine.DiskDetail, error)
	Why(ctx context.Context, ref string) ([]engine.Reason, error)
	Info(context.Context) (engine.Info, error)
	Check(ctx context.Context, repair bool, found func(engine.Problem)) error
	Events(ctx context.Context, since, until time.Time, follow bool, f engine.Filter, yield func(event.Message) error) error
}
