package engine

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/moby/moby/api/types/container"

	"keg/internal/builder"
	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/monitor"
)

// Build builds an image for one platform and keeps it here.
func (e *Engine) Build(ctx context.Context, o builder.Options, progress func(builder.Event)) (*builder.Result, error) {
	b, err := e.BuildTo(ctx, BuildRequest{Options: o}, progress)
	if err != nil {
		return nil, err
	}
	return b.Result, nil
}

// building is what one run of the builder gets beside its options.
type building struct {
	from     []builder.Elsewhere
	finish   func(context.Context, *builder.Result) error
	failed   func(context.Context, FailedStep)
	progress func(builder.Event)
}

// build runs the builder; Deps of the builder are the engine's business.
func (e *Engine) build(ctx context.Context, o builder.Options, b building) (_ *builder.Result, err error) {
	runner := &stepRunner{roots: monitor.Roots{Root: e.opt.Root, Run: e.opt.Run}}
	defer func() { err = errors.Join(err, runner.close()) }()
	if err := checkLimits(&container.Resources{Memory: o.Limits.Memory, MemorySwap: o.Limits.MemorySwap, CPUShares: o.Limits.CPUShares}); err != nil {
		return nil, err
	}
	known, done, err := layouts(&o)
	defer done()
	if err != nil {
		return nil, err
	}
	var use *use
	if len(known) > 0 {
		if use, err = e.busy(ctx); err != nil {
			return nil, err
		}
		defer use.end()
	}
	d := builder.Deps{
		Store: e.store, Snapshots: e.snapshots, Steps: e.stepsDir(), Run: e.opt.Run,
		Images: bases{e, use, known}, Runner: runner, Progress: b.progress, Import: b.from, Finish: b.finish,
	}
	if b.failed != nil {
		d.Failed = func(ctx context.Context, f builder.Failure) { b.failed(ctx, FailedStep{f, runner}) }
	}
	return builder.Build(ctx, o, d)
}

// unlimited is the warning of who has no cgroup for the limits of steps.
func unlimited(l *builder.Limits) []string {
	r := container.Resources{Memory: l.Memory, MemorySwap: l.MemorySwap, CPUShares: l.CPUShares, CPUQuota: l.CPUQuota, CpusetCpus: l.CpusetCpus, CpusetMems: l.CpusetMems}
	if !limited(&r) && l.CgroupParent == "" {
		return nil
	}
	return noLimits()
}

// FailedStep is a RUN that failed, and how to look around in what it left.
type FailedStep struct {
	builder.Failure
	runner *stepRunner
}

// Open runs the shell of the stage on a terminal of that size, in the state that the step left: its files, mounts,
// environment, directory, user and network.
func (f FailedStep) Open(ctx context.Context, size monitor.Size, io monitor.Stdio) (monitor.Exit, error) {
	b, err := f.runner.builder(ctx)
	if err != nil {
		return monitor.Exit{}, err
	}
	s := monitorStep(f.Step)
	s.Args, s.Stdin, s.Terminal = []string{f.Shell}, nil, &size
	return b.Shell(ctx, s, io)
}

// built writes the record of a new image and tells of it.
func (e *Engine) built(res *builder.Result, tags []image.Reference) error {
	r, err := e.remember(res.Manifest)
	if err != nil {
		return err
	}
	e.imageEvent("create", string(r.ID), string(r.ID), r.Labels)
	for _, tag := range tags {
		e.imageEvent("tag", string(r.ID), tag.Familiar(), r.Labels)
	}
	return nil
}

// CheckBuild looks for mistakes in a Dockerfile and its context. Nothing is built or pulled.
func (e *Engine) CheckBuild(ctx context.Context, o builder.Options) (*builder.Checked, error) {
	return builder.Check(ctx, o, func(ref image.Reference, _ image.Platform) (*image.Config, bool) {
		f, err := e.named(ref)
		if err != nil {
			return nil, false
		}
		cfg, err := e.config(f.ID)
		return cfg, err == nil
	})
}

// bases finds the images of FROM and COPY --from for the builder.
type bases struct {
	e       *Engine
	use     *use
	layouts map[string]layoutImage
}

func (b bases) Base(ctx context.Context, ref image.Reference, p image.Platform, pull bool) (builder.Base, error) {
	f, err := b.find(ctx, ref, p, pull)
	if err != nil {
		return builder.Base{}, err
	}
	cfg, err := b.e.config(f.ID)
	return builder.Base{Ref: ref, Digest: f.Desc.Digest, ConfigID: f.ID, Config: cfg}, err
}

func (b bases) find(ctx context.Context, ref image.Reference, p image.Platform, pull bool) (found, error) {
	if l, ok := b.layouts[ref.String()]; ok {
		return b.e.fromLayout(ctx, b.use, ref, l, p)
	}
	return b.e.base(ctx, ref, p, pull)
}

// base is the image of that name: here and for the platform, else carried, else pulled.
func (e *Engine) base(ctx context.Context, ref image.Reference, p image.Platform, pull bool) (found, error) {
	if !pull {
		f, err := e.named(ref)
		if err == nil && image.Matches(p, f.Platform) {
			return f, nil
		}
		if err != nil && !fault.Is(err, fault.NotFound) {
			return found{}, err
		}
	}
	if f, ok, err := e.carry(ctx, ref, &p); ok || err != nil {
		return f, err
	}
	if _, err := e.Pull(ctx, ref, PullOptions{Platform: &p}); err != nil {
		return found{}, err
	}
	return e.named(ref)
}

// stepRunner runs RUN steps in a small process that is started for the first of them.
type stepRunner struct {
	roots monitor.Roots
	mu    sync.Mutex
	b     *monitor.Builder
}

func (r *stepRunner) Run(ctx context.Context, s builder.Step, out io.Writer) (int, error) {
	b, err := r.builder(ctx)
	if err != nil {
		return 0, err
	}
	return b.Run(ctx, monitorStep(s), out)
}

func monitorStep(s builder.Step) monitor.Step {
	mounts := make([]monitor.Mount, len(s.Mounts))
	for i, m := range s.Mounts {
		mounts[i] = monitor.Mount(m)
	}
	limits := make([]monitor.Ulimit, len(s.Ulimits))
	for i, u := range s.Ulimits {
		limits[i] = monitor.Ulimit(u)
	}
	return monitor.Step{Ulimits: limits,
		Key: s.Key, Args: s.Args, Env: s.Env, Dir: s.Dir, User: s.User, Hostname: s.Hostname,
		Network: s.Network, ExtraHosts: s.ExtraHosts, ShmSize: s.ShmSize, Stdin: s.Stdin, Mounts: mounts, Privileged: s.Privileged,
		Limits: monitor.Limits(s.Limits)}
}

func (r *stepRunner) builder(ctx context.Context) (*monitor.Builder, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.b != nil {
		return r.b, nil
	}
	// The process serves the whole build, not the step that came first.
	b, err := monitor.StartBuilder(context.WithoutCancel(ctx), r.roots)
	if err != nil {
		return nil, err
	}
	r.b = b
	return b, nil
}

func (r *stepRunner) close() error {
	if r.b == nil {
		return nil
	}
	return r.b.Close()
}
