// Package builder makes an image from a Dockerfile: stages, step graph, steps with a
// content-keyed cache that explains itself.
//
//	text -> dockerfile.File -> plan (stages, evaluated steps; pure) -> solver (cache or run) -> image
//
// Disk, below Deps.Steps:
//
//	<key>           a step that was done: key -> layer, size, time
//	inputs/<key>    what went into the key, for explanations
//	last/<build>    the keys of the last build of one Dockerfile
//	sums/<context>  digests of context files, by device, inode, size, ctime
//	trees/<hash>    digests of files of finished stages
//	mounts/<id>/    cache mounts of RUN; <id>.json says whose, its time is the last use
//	quota           its time is that of the last look at the size of all this
//	held/<rand>/    builds at work: without its holder's flock it is garbage
package builder

import (
	"context"
	"io"
	"net"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/dockerfile"
	"keg/internal/image"
	"keg/internal/snapshot"
	"keg/internal/store"
)

// Options are those of docker build.
type Options struct {
	Context       string // directory
	Contexts      map[string]Context
	Dockerfile    string // path; "" = Context/Dockerfile, "-" = Text
	Text          []byte // the Dockerfile itself, when it has no path
	Tags          []image.Reference
	Target        string
	Args          map[string]*string // nil value: from Env
	Env           map[string]string  // of the caller: SOURCE_DATE_EPOCH, values of --build-arg NAME
	Labels        map[string]string
	Secrets       map[string][]byte // id -> content, for RUN --mount=type=secret
	SSH           map[string]Agent  // id -> agent, for RUN --mount=type=ssh
	Caller        Caller            // asked for those that are not in Secrets and SSH; nil: nobody
	NoCache       bool
	NoCacheFilter []string // stages
	Pull          bool
	Platform      *image.Platform
	Network       string
	ExtraHosts    []string
	ShmSize       int64
	Ulimits       []Ulimit
	Limits        Limits
	Insecure      bool              // RUN --security=insecure is allowed
	HostNetwork   bool              // RUN --network=host is allowed
	Annotations   map[string]string // of the manifest
	InlineCache   bool              // the image's config carries the records of its steps, for --cache-from
	Approve       Approve           // says what may be read; nil: all
	Fetch         Fetch             // fills Context; nil: all is there
	NoImage       bool              // the tree of the target is all that is wanted: no image is written, no tag set
}

// Approve says whether a source may be read: an image, with what is known of it, or an address. nil: yes.
type Approve func(ctx context.Context, identifier string, p image.Platform, b *Base) error

// Fetch brings into the context what is at some paths, and what they lead to as symlinks: all that the build reads of it. They
// may have wildcards; nil: the whole context. It is called before the first step, for each platform.
type Fetch func(ctx context.Context, paths []string) error

// Caller has secrets and agents of ssh that a build asks for once it wants them. What it does not have is not found.
type Caller interface {
	Secret(ctx context.Context, id string) (data []byte, found bool, err error)
	SSH(ctx context.Context, id string) (agent Agent, found bool)
}

// Agent connects to an agent of the caller's that signs with keys of ssh.
type Agent func() (net.Conn, error)

// Ulimit of RUN steps.
type Ulimit struct {
	Name       string
	Soft, Hard int64
}

// Limits of each RUN step, in the units of docker run. They are no inputs: a step gives the same with more or less.
type Limits struct {
	Memory, MemorySwap             int64
	CPUShares, CPUPeriod, CPUQuota int64
	CpusetCpus, CpusetMems         string
	CgroupParent                   string
}

// Base is a resolved image.
type Base struct {
	Ref      image.Reference
	Digest   digest.Digest // of the manifest
	ConfigID digest.Digest
	Config   *image.Config
}

// Images finds base images; the engine pulls when needed.
type Images interface {
	Base(ctx context.Context, ref image.Reference, p image.Platform, pull bool) (Base, error)
}

// Step is what a Runner is asked to run, on the active snapshot Key.
type Step struct {
	Key, Dir, User, Hostname, Network string
	Args, Env, ExtraHosts             []string
	ShmSize                           int64
	Stdin                             []byte
	Mounts                            []Mount
	Ulimits                           []Ulimit
	Limits                            Limits
	Privileged                        bool
}

// Mount of a RUN step: a bind of a path of the host, or a tmpfs. Bind sources are
// made by the builder and belong to this step alone, cache mounts apart.
type Mount struct {
	Type, Source, Target string
	ReadOnly             bool
	Size                 int64
	Mode                 uint32
}

// Runner executes RUN steps; several at once.
type Runner interface {
	Run(ctx context.Context, s Step, out io.Writer) (exitCode int, err error)
}

// Failure is a RUN that failed.
type Failure struct {
	Step  Step   // as it was run
	Name  string // "[2/5] RUN make"
	Shell string // of the stage: what a person is given to look around
	Err   error
}

// Event is one piece of progress. Vertex numbers are Docker's step numbers ("#5").
type Event struct {
	Vertex   int
	Name     string // "[2/5] RUN make"; set in the first event of a vertex
	Started  *time.Time
	Finished *time.Time
	Cached   bool
	Log      []byte // output of a RUN, as it comes
	Status   string // one line about what goes on: "transferring context: 2B done"
	Err      error
	Reason   string // why it was not cached, in one line
}

// Deps is what a build uses.
type Deps struct {
	Store     *store.Store
	Snapshots *snapshot.Store
	Steps     string // directory of the step cache
	Run       string // directory on a tmpfs, for secrets while a step runs; "": secrets are refused
	Images    Images
	Runner    Runner
	Progress  func(Event) // called from one goroutine at a time

	// Import are caches of elsewhere, asked for what is not known here.
	Import []Elsewhere

	// Failed is called with the first RUN that failed, while all that the step had is still there: Run would run
	// another command in the same state. The build goes on to fail when it returns.
	Failed func(ctx context.Context, f Failure)

	// Finish is called with the result as the last work of the build, while all that it names is kept
	// from collection. Its error is the build's.
	Finish func(ctx context.Context, r *Result) error
}

// Elsewhere is a step cache of another machine. Keys are made of contents, so that they mean the same everywhere.
type Elsewhere interface {
	// Step is the record of a key, and how to get its layer's tar, compressed or not; nil when it has none.
	Step(key string) (*Record, func(ctx context.Context) (io.ReadCloser, error))
}

// Result is a built image.
type Result struct {
	Manifest image.Descriptor // zero with NoImage, as is ConfigID
	ConfigID digest.Digest
	Config   *image.Config   // with NoImage: what the image's would be
	Stack    []digest.Digest // the layers of the target, bottom first
	Platform image.Platform
	Made     []Made     // what the steps made, in an order in which each comes after what it reads
	Steps    []*Record  // of the target's own layers
	AllSteps []*Record  // of these and of the other stages
	Bases    []Base     // the images that the build stands on or reads
	Epoch    *time.Time // SOURCE_DATE_EPOCH, if it was set
	Warnings []string
	Checked  *Checked // the same, with their places
	Advice   []Advice // what another order of lines would have saved
}

// Made is the layer of one step, with its place in the Dockerfile.
type Made struct {
	Line   int
	Step   string
	Layers []digest.Digest // what it stands on, and its own on top
}

// Error is an error of a Dockerfile with its place.
type Error = dockerfile.Error

// Build builds the target and stores its image; tags are set last.
// Errors of the Dockerfile are *Error with position.
func Build(ctx context.Context, o Options, d Deps) (*Result, error) {
	return build(ctx, o, deps{
		blobs: d.Store, snaps: d.Snapshots, images: d.Images, runner: d.Runner,
		cache: cache{d.Steps}, run: d.Run, progress: &progress{emit: d.Progress}, finish: d.Finish, failed: d.Failed, elsewhere: d.Import,
	})
}

// deps is Deps by what is asked of them.
type deps struct {
	blobs    blobs
	snaps    snapshots
	images   Images
	runner   Runner
	cache    cache
	run      string
	progress *progress
	finish   func(ctx context.Context, r *Result) error
	failed   func(ctx context.Context, f Failure)

	elsewhere []Elsewhere
}

// blobs is what a build asks of *store.Store.
type blobs interface {
	Bytes(d digest.Digest, limit int64) ([]byte, error)
	Put(ctx context.Context, data []byte) (digest.Digest, error)
	Has(d digest.Digest) bool
	Tag(ref image.Reference, desc image.Descriptor) error
	Resolve(ref image.Reference) (image.Descriptor, error)
	Lease(ctx context.Context, ds ...digest.Digest) (store.Lease, error)
}

// snapshots is what a build asks of *snapshot.Store.
type snapshots interface {
	Has(stack []digest.Digest) int
	UnpackRecorded(ctx context.Context, tar io.Reader, want digest.Digest) (snapshot.Unpacked, error)
	Lease(ctx context.Context, stacks ...[]digest.Digest) (snapshot.Lease, error)
	Prepare(ctx context.Context, key string, stack []digest.Digest) error
	Mount(key string, o snapshot.MountOptions) (fd int, err error)
	View(stack []digest.Digest) (fd int, err error)
	Upper(key string) string
	Commit(ctx context.Context, key string, o snapshot.CommitOptions) (snapshot.Committed, error)
	Remove(key string) error
	Keys() ([]string, error)
	LayerSize(stack []digest.Digest) (tar, files int64, err error)
	Sync(ctx context.Context) error
}

func build(ctx context.Context, o Options, d deps) (_ *Result, err error) {
	if err := d.cache.open(); err != nil {
		return nil, err
	}
	// A second time at the end: a process that a killed build was starting may have held
	// its directory for some milliseconds longer.
	if err := sweepSecrets(d.run); err != nil {
		return nil, err
	}
	defer sweepSecrets(d.run)
	bc, err := openContext(o.Context)
	if err != nil {
		return nil, err
	}
	defer bc.close()
	file, err := d.loadDefinition(o, bc)
	if err != nil {
		return nil, err
	}
	p, err := newPlan(file, o)
	if err != nil {
		return nil, err
	}
	if err := d.loadBases(ctx, p); err != nil {
		return nil, err
	}
	if err := d.loadIgnore(o, bc); err != nil {
		return nil, err
	}
	if err := p.evaluate(); err != nil {
		return nil, err
	}
	if err := p.approve(ctx); err != nil {
		return nil, err
	}
	if o.Fetch != nil {
		if err := o.Fetch(ctx, p.reads()); err != nil {
			return nil, err
		}
	}
	s := newSolver(d, p, bc)
	defer s.close()
	stack, err := s.solve(ctx, p.target)
	if err != nil {
		return nil, err
	}
	res, err := s.result(ctx, stack)
	if err != nil {
		return nil, err
	}
	for _, w := range file.Warnings {
		res.Warnings = append(res.Warnings, w.String())
	}
	res.Checked = &Checked{Name: file.Name, Text: file.Text, Warnings: file.Warnings, Strict: file.Strict}
	res.Advice = s.advise()
	return res, nil
}
