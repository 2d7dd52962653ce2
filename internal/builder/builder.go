// Package builder makes an image from a Dockerfile: stages, step graph, steps with a
// content-keyed cache that explains itself.
package builder

import (
	"context"
	"io"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/image"
	"keg/internal/snapshot"
	"keg/internal/store"
)

// Options are those of docker build.
type Options struct {
	Context       string // directory
	Dockerfile    string // path; "" = Context/Dockerfile, "-" = Text
	Text          []byte // the Dockerfile itself, when it has no path
	Tags          []image.Reference
	Target        string
	Args          map[string]*string // nil value: from Env
	Env           map[string]string  // of the caller: proxies, SOURCE_DATE_EPOCH, values of --build-arg NAME
	Labels        map[string]string
	NoCache       bool
	NoCacheFilter []string
	Pull          bool
	Platform      *image.Platform
	Network       string
	ExtraHosts    []string
	ShmSize       int64
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
	Privileged                        bool
}

// Mount of a RUN step.
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

// Event is one piece of progress. Vertex numbers are Docker's step numbers ("#5").
type Event struct {
	Vertex   int
	Name     string // "[2/5] RUN make"; set in the first event of a vertex
	Started  *time.Time
	Finished *time.Time
	Cached   bool
	Log      []byte // output of a RUN, as it comes
	Err      error
	Reason   string // why it was not cached, in one line
}

// Deps is what a build uses.
type Deps struct {
	Store     *store.Store
	Snapshots *snapshot.Store
	Steps     string // directory of the step cache
	Images    Images
	Runner    Runner
	Progress  func(Event) // called from one goroutine at a time
}

// Result is a built image.
type Result struct {
	Manifest image.Descriptor
	ConfigID digest.Digest
	Warnings []string
}

// Build builds the target and stores its image; tags are set last.
// Errors of the Dockerfile are *Error with position.
func Build(ctx context.Context, o Options, d Deps) (*Result, error) { panic("unwritten") }
