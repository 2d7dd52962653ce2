// Package engine is the use cases: run, build, pull, push, exec, commit, prune. Each is
// one method that reads top to bottom; it names no system call.
package engine

import (
	"context"
	"time"

	"github.com/moby/moby/api/types/container"
	dimage "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/volume"
	"github.com/opencontainers/go-digest"

	"keg/internal/builder"
	ctr "keg/internal/container"
	"keg/internal/event"
	"keg/internal/image"
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
	remote     *registry.Client
}

// Open checks the format of Root (fault.Unsupported for a newer one or for a network
// file system) and opens the rooms. It scans nothing.
func Open(o Options) (*Engine, error) { panic("unwritten") }

// ---- containers

// CreateOptions is the body of docker create: what the user asked for, before the
// image's defaults are merged in.
type CreateOptions struct {
	Name     string
	Config   *container.Config
	Host     *container.HostConfig
	Networks map[string]*network.EndpointSettings
	Platform *image.Platform
	Pull     string          // "missing" (""), "always", "never"
	Progress func(PullEvent) // of the pull
}

// Created is the answer to Create.
type Created struct {
	ID       string
	Warnings []string
}

// Create pulls the image when needed, merges its config, makes volumes and the writable
// layer, and writes the record.
func (e *Engine) Create(ctx context.Context, o CreateOptions) (Created, error) { panic("unwritten") }

// Start starts a created or exited container. With attach its stdio is connected before
// the program runs and Start returns when the program ended or the user detached;
// without, when the program was executed. Errors of the start carry Docker's exit
// codes (125, 126, 127) as *ExitError.
func (e *Engine) Start(ctx context.Context, ref string, attach *monitor.Stdio) (monitor.Exit, error) {
	panic("unwritten")
}

// Run is Create and Start: one record, one monitor, nothing else. created is called with
// the id once the record exists (--cidfile, and printing the id with -d).
func (e *Engine) Run(ctx context.Context, o CreateOptions, attach *monitor.Stdio, created func(Created) error) (monitor.Exit, error) {
	panic("unwritten")
}

// ExitError is an error with the exit status that the command ends with.
type ExitError struct {
	Code int
	Err  error
}

func (e *ExitError) Error() string { return e.Err.Error() }
func (e *ExitError) Unwrap() error { return e.Err }

// Attach connects to a running container.
func (e *Engine) Attach(ctx context.Context, ref string, s monitor.Stdio) (monitor.Exit, error) {
	panic("unwritten")
}

// Exec runs a command in a running container.
func (e *Engine) Exec(ctx context.Context, ref string, r monitor.ExecRequest, s monitor.Stdio) (monitor.Exit, error) {
	panic("unwritten")
}

// Stop, Restart: signal "" is the container's stop signal, timeout nil its stop timeout (10 s).
type StopOptions struct {
	Signal  string
	Timeout *int // seconds; negative: for ever
}

func (e *Engine) Stop(ctx context.Context, ref string, o StopOptions) error    { panic("unwritten") }
func (e *Engine) Restart(ctx context.Context, ref string, o StopOptions) error { panic("unwritten") }
func (e *Engine) Kill(ctx context.Context, ref, signal string) error           { panic("unwritten") }
func (e *Engine) Pause(ctx context.Context, ref string) error                  { panic("unwritten") }
func (e *Engine) Unpause(ctx context.Context, ref string) error                { panic("unwritten") }
func (e *Engine) Rename(ctx context.Context, ref, name string) error           { panic("unwritten") }

// RemoveOptions are those of docker rm.
type RemoveOptions struct{ Force, Volumes bool }

// Remove deletes a container. It waits (up to 5 s) for one that is just exiting.
func (e *Engine) Remove(ctx context.Context, ref string, o RemoveOptions) error { panic("unwritten") }

// Wait waits until the container is not running (condition "not-running"), for its next
// exit ("next-exit") or its removal ("removed") and returns the exit code.
func (e *Engine) Wait(ctx context.Context, ref string, c container.WaitCondition) (int, error) {
	panic("unwritten")
}

// ListOptions are those of docker ps.
type ListOptions struct {
	All    bool
	Last   int
	Size   bool
	Filter Filter
}

// Filter is Docker's --filter: key -> values.
type Filter map[string][]string

// Containers lists as the Engine API does (newest first).
func (e *Engine) Containers(ctx context.Context, o ListOptions) ([]container.Summary, error) {
	panic("unwritten")
}

// Inspect returns Docker's inspect record; size adds SizeRw and SizeRootFs.
func (e *Engine) Inspect(ctx context.Context, ref string, size bool) (container.InspectResponse, error) {
	panic("unwritten")
}

// Logs yields log entries in order.
func (e *Engine) Logs(ctx context.Context, ref string, o ctr.LogOptions, yield func(ctr.LogEntry) error) error {
	panic("unwritten")
}

// ---- images

// PullEvent is progress of one layer or a sentence about the whole.
type PullEvent struct {
	ID             string // short digest of the layer; "" for a sentence
	Status         string // Docker's words: "Pulling fs layer", "Downloading", "Pull complete"...
	Current, Total int64
}

// PullOptions are those of docker pull.
type PullOptions struct {
	Platform *image.Platform
	Progress func(PullEvent)
}

// Pulled is the answer to Pull.
type Pulled struct {
	Ref    image.Reference
	Digest digest.Digest // of what the registry's name points at
	Newer  bool          // false: "Image is up to date for"
}

// Pull fetches an image: layers in parallel, each verified, unpacked and kept in one pass; the name last.
func (e *Engine) Pull(ctx context.Context, ref image.Reference, o PullOptions) (Pulled, error) {
	panic("unwritten")
}

// Push uploads what the registry lacks and then the manifest. Built layers are compressed on the way out.
func (e *Engine) Push(ctx context.Context, ref image.Reference, progress func(PullEvent)) (image.Descriptor, error) {
	panic("unwritten")
}

// ImageListOptions are those of docker images.
type ImageListOptions struct {
	All    bool
	Ref    string // repository[:tag] pattern, or ""
	Filter Filter
}

// Images lists as the Engine API does (newest first).
func (e *Engine) Images(ctx context.Context, o ImageListOptions) ([]dimage.Summary, error) {
	panic("unwritten")
}

// InspectImage finds by name, id or unique id prefix.
func (e *Engine) InspectImage(ctx context.Context, ref string) (dimage.InspectResponse, error) {
	panic("unwritten")
}

// History lists the steps of an image, newest first.
func (e *Engine) History(ctx context.Context, ref string) ([]dimage.HistoryResponseItem, error) {
	panic("unwritten")
}

// Tag points target at the image source.
func (e *Engine) Tag(ctx context.Context, source, target string) error { panic("unwritten") }

// RemoveImage untags and deletes as docker rmi does; the answer tells which.
func (e *Engine) RemoveImage(ctx context.Context, ref string, force bool) ([]dimage.DeleteResponse, error) {
	panic("unwritten")
}

// Build builds an image; Deps of the builder are the engine's business.
func (e *Engine) Build(ctx context.Context, o builder.Options, progress func(builder.Event)) (*builder.Result, error) {
	panic("unwritten")
}

// Login and Logout save and forget credentials.
func (e *Engine) Login(ctx context.Context, registry string, c registry.Credentials) (string, error) {
	panic("unwritten")
}
func (e *Engine) Logout(ctx context.Context, registry string) error { panic("unwritten") }

// StoredCredentials returns the credentials saved for a registry.
func (e *Engine) StoredCredentials(ctx context.Context, host string) (registry.Credentials, error) {
	panic("unwritten")
}

// ---- volumes and networks

func (e *Engine) CreateVolume(ctx context.Context, o vol.CreateOptions) (volume.Volume, error) {
	panic("unwritten")
}
func (e *Engine) Volumes(ctx context.Context, f Filter) ([]volume.Volume, error) { panic("unwritten") }
func (e *Engine) InspectVolume(ctx context.Context, name string) (volume.Volume, error) {
	panic("unwritten")
}
func (e *Engine) RemoveVolume(ctx context.Context, name string, force bool) error {
	panic("unwritten")
}
func (e *Engine) CreateNetwork(ctx context.Context, o net.CreateOptions) (network.Inspect, error) {
	panic("unwritten")
}
func (e *Engine) Networks(ctx context.Context, f Filter) ([]network.Inspect, error) {
	panic("unwritten")
}

// InspectNetwork adds the containers that are attached.
func (e *Engine) InspectNetwork(ctx context.Context, name string) (network.Inspect, error) {
	panic("unwritten")
}
func (e *Engine) RemoveNetwork(ctx context.Context, name string) error { panic("unwritten") }

// ---- the whole

// PruneOptions are those of docker system prune.
type PruneOptions struct {
	All, Volumes bool
	Filter       Filter
	// What to prune; all of them for system prune.
	Containers, Networks, Images, BuildCache bool
}

// Pruned lists what went.
type Pruned struct {
	Containers, Networks, Volumes []string
	Images                        []dimage.DeleteResponse
	BuildCache                    []string
	Reclaimed                     int64 // bytes
}

func (e *Engine) Prune(ctx context.Context, o PruneOptions) (Pruned, error) { panic("unwritten") }

// Usage is one row of docker system df.
type Usage struct {
	Type              string // Images, Containers, Local Volumes, Build Cache
	Total, Active     int
	Size, Reclaimable int64
}

func (e *Engine) DiskUsage(ctx context.Context) ([]Usage, error) { panic("unwritten") }

// Feature is one thing that the kernel or host offers or lacks, as a sentence.
type Feature struct {
	Name string
	OK   bool
	Text string // what it gives, or what is missing and how to get it
}

// Info is docker info plus the list of features.
type Info struct {
	ID, Name, KernelVersion, OperatingSystem, OSType, Architecture string
	NCPU                                                           int
	MemTotal                                                       int64
	Containers, Running, Paused, Stopped, Images                   int
	CgroupVersion, CgroupDriver, Storage, BackingFS, Root, Run     string
	SecurityOptions                                                []string
	Features                                                       []Feature
	Warnings                                                       []string
	Rootless                                                       bool
}

func (e *Engine) Info(ctx context.Context) (Info, error) { panic("unwritten") }

// Events reads the journal.
func (e *Engine) Events(ctx context.Context, since, until time.Time, follow bool, f Filter, yield func(event.Message) error) error {
	panic("unwritten")
}

// ServeRegistry serves the store at dir (its own, or the engine's when dir is "") on addr until ctx ends.
func (e *Engine) ServeRegistry(ctx context.Context, addr, dir string, o registry.ServerOptions, ready func(addr string)) error {
	panic("unwritten")
}
