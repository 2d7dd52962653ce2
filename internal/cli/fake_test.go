package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
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
	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/monitor"
	net "keg/internal/network"
	"keg/internal/registry"
	vol "keg/internal/volume"
)

// fake is an engine whose answers a test sets and whose requests it keeps. A call that
// the test did not expect reaches the nil backend and panics.
type fake struct {
	backend
	mu    sync.Mutex
	calls []string // "stop web", in order

	create     engine.CreateOptions
	pullEvents []engine.PullEvent // of Create, Run, Pull and Push
	warnings   []string
	stdio      *monitor.Stdio
	out, errs  string // what the program writes
	end        monitor.Exit
	err        error // of every method, by name when errFor is set
	errFor     map[string]error
	stop       engine.StopOptions
	remove     engine.RemoveOptions
	exec       monitor.ExecRequest
	code       int
	list       engine.ListOptions
	containers []container.Summary
	inspect    map[string]container.InspectResponse
	logOpt     ctr.LogOptions
	logs       []ctr.LogEntry
	pull       engine.PullOptions
	pushed     image.Descriptor
	imageList  engine.ImageListOptions
	images     []dimage.Summary
	imageInfo  map[string]dimage.InspectResponse
	history    []dimage.HistoryResponseItem
	analysis   engine.Analysis
	base       string
	outdated   []engine.Outdated
	deleted    []dimage.DeleteResponse
	build      builder.Options
	request    engine.BuildRequest
	built      *builder.Result
	events     []builder.Event
	login      registry.Credentials
	stored     registry.Credentials
	serve      registry.ServerOptions
	serveAddr  string
	serveDir   string
	newVolume  vol.CreateOptions
	volumes    []volume.Volume
	newNetwork net.CreateOptions
	networks   []network.Inspect
	pruneOpt   engine.PruneOptions
	pruned     engine.Pruned
	cache      []engine.CacheEntry
	checked    *builder.Checked
	usage      []engine.Usage
	cacheUse   []engine.CacheUse
	top        container.TopResponse
	samples    []container.StatsResponse // one a call
	update     container.UpdateConfig
	booted     []engine.Booted
	endpoint   network.EndpointSettings
	forced     bool
	reasons    map[string][]engine.Reason
	archive    string // what volume export writes and import reads
	info       engine.Info
	messages   []event.Message
	problems   []engine.Problem

	saved     engine.SaveOptions
	load      engine.LoadOptions
	loaded    []engine.Loaded
	importOpt engine.ImportOptions
	commit    engine.CommitOptions
	copy      engine.CopyOptions
	changes   []engine.Change
	id        digest.Digest
	got       string // what a command gave to read
}

func (f *fake) read(r io.Reader) {
	b, _ := io.ReadAll(r)
	f.got = string(b)
}

func (f *fake) Save(_ context.Context, names []string, w io.Writer, o engine.SaveOptions) error {
	f.saved = o
	io.WriteString(w, f.out)
	return f.say(append([]string{"save"}, names...)...)
}

func (f *fake) Load(_ context.Context, r io.Reader, o engine.LoadOptions) ([]engine.Loaded, error) {
	f.load = o
	f.read(r)
	return f.loaded, f.say("load")
}

func (f *fake) Import(_ context.Context, r io.Reader, o engine.ImportOptions) (digest.Digest, error) {
	f.importOpt = o
	f.read(r)
	return f.id, f.say("import", o.Repository)
}

func (f *fake) Export(_ context.Context, ref string, w io.Writer) error {
	io.WriteString(w, f.out)
	return f.say("export", ref)
}

func (f *fake) Commit(_ context.Context, ref string, o engine.CommitOptions) (digest.Digest, error) {
	f.commit = o
	return f.id, f.say("commit", ref)
}

func (f *fake) Diff(_ context.Context, ref string) ([]engine.Change, error) {
	return f.changes, f.say("diff", ref)
}

func (f *fake) CopyOut(_ context.Context, ref, src, dst string, o engine.CopyOptions) (engine.Copied, error) {
	f.copy = o
	return engine.Copied{Bytes: 2048, To: dst}, f.say("out", ref, src, dst)
}

func (f *fake) CopyIn(_ context.Context, src, ref, dst string, o engine.CopyOptions) (engine.Copied, error) {
	f.copy = o
	return engine.Copied{Bytes: 2048, To: ref + ":" + dst}, f.say("in", src, ref, dst)
}

func (f *fake) CopyFrom(_ context.Context, ref, src string, _ bool, w io.Writer) (container.PathStat, error) {
	io.WriteString(w, f.out)
	return container.PathStat{}, f.say("from", ref, src)
}

func (f *fake) CopyTo(_ context.Context, ref, dst string, r io.Reader, o engine.CopyOptions) error {
	f.copy = o
	f.read(r)
	return f.say("to", ref, dst)
}

func (f *fake) PullAll(_ context.Context, repo image.Reference, o engine.PullOptions) ([]engine.Pulled, error) {
	f.pull = o
	return nil, f.say("pull all", repo.Name())
}

// set is for what commands do to several objects at once.
func (f *fake) set(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
}

func (f *fake) say(words ...string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, strings.Join(words, " "))
	if err, ok := f.errFor[words[len(words)-1]]; ok {
		return err
	}
	return f.err
}

func (f *fake) Create(_ context.Context, o engine.CreateOptions) (engine.Created, error) {
	f.create = o
	for _, e := range f.pullEvents {
		o.Progress(e)
	}
	return engine.Created{ID: "0123456789ab", Warnings: f.warnings}, f.say("create", o.Config.Image)
}

func (f *fake) Expect() {}

func (f *fake) Run(ctx context.Context, o engine.CreateOptions, s *monitor.Stdio, created func(engine.Created) error) (monitor.Exit, error) {
	f.stdio = s
	made, err := f.Create(ctx, o)
	if err != nil {
		return monitor.Exit{}, err
	}
	if err := created(made); err != nil {
		return monitor.Exit{}, err
	}
	f.write(s)
	return f.end, nil
}

func (f *fake) write(s *monitor.Stdio) {
	if s != nil && s.Out != nil {
		s.Out.Write([]byte(f.out))
	}
	if s != nil && s.Err != nil {
		s.Err.Write([]byte(f.errs))
	}
}

func (f *fake) Start(_ context.Context, ref string, s *monitor.Stdio) (monitor.Exit, error) {
	f.stdio = s
	f.write(s)
	return f.end, f.say("start", ref)
}

func (f *fake) Attach(_ context.Context, ref string, s monitor.Stdio) (monitor.Exit, error) {
	f.stdio = &s
	f.write(&s)
	return f.end, f.say("attach", ref)
}

func (f *fake) Exec(_ context.Context, ref string, r monitor.ExecRequest, s monitor.Stdio) (monitor.Exit, error) {
	f.exec, f.stdio = r, &s
	f.write(&s)
	return f.end, f.say("exec", ref)
}

func (f *fake) Stop(_ context.Context, ref string, o engine.StopOptions) error {
	f.set(func() { f.stop = o })
	return f.say("stop", ref)
}

func (f *fake) Restart(_ context.Context, ref string, o engine.StopOptions) error {
	f.set(func() { f.stop = o })
	return f.say("restart", ref)
}
func (f *fake) Kill(_ context.Context, ref, sig string) error { return f.say("kill", sig, ref) }
func (f *fake) Pause(_ context.Context, ref string) error     { return f.say("pause", ref) }
func (f *fake) Unpause(_ context.Context, ref string) error   { return f.say("unpause", ref) }
func (f *fake) Rename(_ context.Context, ref, n string) error { return f.say("rename", ref, n) }

func (f *fake) Remove(_ context.Context, ref string, o engine.RemoveOptions) error {
	f.set(func() { f.remove = o })
	return f.say("rm", ref)
}

func (f *fake) Wait(_ context.Context, ref string, c container.WaitCondition) (int, error) {
	return f.code, f.say("wait", string(c), ref)
}

func (f *fake) Containers(_ context.Context, o engine.ListOptions) ([]container.Summary, error) {
	f.list = o
	return f.containers, f.err
}

func (f *fake) Inspect(_ context.Context, ref string, _ bool) (container.InspectResponse, error) {
	r, ok := f.inspect[ref]
	if !ok {
		return r, fault.NotFoundf("No such container: %s", ref)
	}
	return r, nil
}

func (f *fake) Logs(_ context.Context, ref string, o ctr.LogOptions, yield func(ctr.LogEntry) error) error {
	f.logOpt = o
	for _, e := range f.logs {
		if err := yield(e); err != nil {
			return err
		}
	}
	return f.say("logs", ref)
}

func (f *fake) Pull(_ context.Context, ref image.Reference, o engine.PullOptions) (engine.Pulled, error) {
	f.pull = o
	for _, e := range f.pullEvents {
		o.Progress(e)
	}
	return engine.Pulled{Ref: ref}, f.say("pull", ref.String())
}

func (f *fake) PushWith(ctx context.Context, ref image.Reference, o engine.PushOptions) (image.Descriptor, error) {
	return f.Push(ctx, ref, o.Progress)
}

func (f *fake) Push(_ context.Context, ref image.Reference, progress func(engine.PullEvent)) (image.Descriptor, error) {
	for _, e := range f.pullEvents {
		progress(e)
	}
	return f.pushed, f.say("push", ref.String())
}

func (f *fake) Images(_ context.Context, o engine.ImageListOptions) ([]dimage.Summary, error) {
	f.imageList = o
	return f.images, f.err
}

func (f *fake) InspectImage(_ context.Context, ref string) (dimage.InspectResponse, error) {
	r, ok := f.imageInfo[ref]
	if !ok {
		return r, fault.NotFoundf("No such image: %s", ref)
	}
	return r, nil
}

func (f *fake) InspectRemote(_ context.Context, ref image.Reference, p *image.Platform) (dimage.InspectResponse, error) {
	what := "any"
	if p != nil {
		what = image.FormatPlatform(*p)
	}
	return dimage.InspectResponse{ID: "remote", Os: what}, f.say("inspect", "remote", ref.String())
}

func (f *fake) History(_ context.Context, ref string) ([]dimage.HistoryResponseItem, error) {
	return f.history, f.say("history", ref)
}
func (f *fake) Outdated(context.Context, []container.Summary) []engine.Outdated { return f.outdated }
func (f *fake) Unlink(_ context.Context, name string) error                     { return f.say("unlink", name) }
func (f *fake) OnPlatform(_ context.Context, ref string, p *image.Platform) error {
	return f.say("platform", ref, image.FormatPlatform(*p))
}
func (f *fake) Search(_ context.Context, term string, o engine.SearchOptions) ([]dregistry.SearchResult, error) {
	return []dregistry.SearchResult{{Name: "nginx", Description: "Official build of Nginx.\nIt serves.", StarCount: 20000, IsOfficial: true}}, f.say("search", term, strconv.Itoa(o.Limit))
}
func (f *fake) Base(context.Context, string) (string, int, error) { return f.base, 2, nil }
func (f *fake) Analyze(_ context.Context, ref string) (*engine.Analysis, error) {
	return &f.analysis, f.say("analyze", ref)
}
func (f *fake) Tag(_ context.Context, src, dst string) error { return f.say("tag", src, dst) }

func (f *fake) RemoveImage(_ context.Context, ref string, _ bool) ([]dimage.DeleteResponse, error) {
	return f.deleted, f.say("rmi", ref)
}

func (f *fake) Verify(_ context.Context, o builder.Options, _ func(builder.Event)) error {
	f.build = o
	return f.err
}

func (f *fake) BuildTo(_ context.Context, q engine.BuildRequest, progress func(builder.Event)) (*engine.Built, error) {
	f.build, f.request = q.Options, q
	for _, e := range f.events {
		progress(e)
	}
	return &engine.Built{Result: f.built}, f.err
}

func (f *fake) Login(_ context.Context, host string, c registry.Credentials) (string, error) {
	f.login = c
	return "", f.say("login", host)
}
func (f *fake) Logout(_ context.Context, host string) error { return f.say("logout", host) }
func (f *fake) StoredCredentials(context.Context, string) (registry.Credentials, error) {
	return f.stored, nil
}

func (f *fake) ServeRegistry(_ context.Context, addr, dir string, o registry.ServerOptions, ready func(string)) error {
	f.serveAddr, f.serveDir, f.serve = addr, dir, o
	ready("127.0.0.1:5000")
	return f.err
}

func (f *fake) CreateVolume(_ context.Context, o vol.CreateOptions) (volume.Volume, error) {
	f.newVolume = o
	return volume.Volume{Name: o.Name}, f.err
}

func (f *fake) Volumes(context.Context, engine.Filter) ([]volume.Volume, error) {
	return f.volumes, f.err
}

func (f *fake) InspectVolume(_ context.Context, name string) (volume.Volume, error) {
	for _, v := range f.volumes {
		if v.Name == name {
			return v, nil
		}
	}
	return volume.Volume{}, fault.NotFoundf("get %s: no such volume", name)
}

func (f *fake) RemoveVolume(_ context.Context, name string, _ bool) error {
	return f.say("volume rm", name)
}

func (f *fake) CreateNetwork(_ context.Context, o net.CreateOptions) (network.Inspect, error) {
	f.newNetwork = o
	n := network.Inspect{}
	n.ID = "feedface"
	return n, f.err
}

func (f *fake) Networks(context.Context, engine.Filter) ([]network.Inspect, error) {
	return f.networks, f.err
}

func (f *fake) InspectNetwork(_ context.Context, name string) (network.Inspect, error) {
	for _, n := range f.networks {
		if n.Name == name {
			return n, nil
		}
	}
	return network.Inspect{}, fault.NotFoundf("network %s not found", name)
}

func (f *fake) RemoveNetwork(_ context.Context, name string) error {
	return f.say("network rm", name)
}

func (f *fake) Prune(_ context.Context, o engine.PruneOptions) (engine.Pruned, error) {
	f.pruneOpt = o
	return f.pruned, f.err
}
func (f *fake) CheckBuild(_ context.Context, o builder.Options) (*builder.Checked, error) {
	f.build = o
	return f.checked, f.err
}
func (f *fake) DiskUsage(context.Context) ([]engine.Usage, error) { return f.usage, f.err }
func (f *fake) DiskDetail(context.Context) (engine.DiskDetail, error) {
	return engine.DiskDetail{Images: f.images, Containers: f.containers, Volumes: f.volumes, BuildCache: f.cacheUse}, f.err
}
func (f *fake) Info(context.Context) (engine.Info, error) { return f.info, f.err }
func (f *fake) BuildCache(context.Context, engine.Filter) ([]engine.CacheEntry, error) {
	return f.cache, f.err
}

func (f *fake) Check(_ context.Context, repair bool, found func(engine.Problem)) error {
	for _, p := range f.problems {
		p.Repaired = repair && p.Repaired
		found(p)
	}
	return f.say("check")
}

func (f *fake) Events(_ context.Context, since, until time.Time, follow bool, _ engine.Filter, yield func(event.Message) error) error {
	for _, m := range f.messages {
		if err := yield(m); err != nil {
			return err
		}
	}
	return f.say("events")
}

// result is what a command left behind.
type result struct {
	out, err string
	code     int
}

// fixedNow is the time of all tests: ages in tables do not move.
var fixedNow = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

// keg runs one command line on the fake, with stdin and environment.
func keg(t *testing.T, f *fake, args ...string) result { return kegWith(t, f, "", nil, args...) }

func kegWith(t *testing.T, f *fake, stdin string, env map[string]string, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	if env == nil {
		env = map[string]string{}
	}
	a := &app{
		name: "keg", in: strings.NewReader(stdin), out: &out, err: &errs, rawOut: &out, rawErr: &errs,
		env: env, now: func() time.Time { return fixedNow },
		open: func(engine.Options) (backend, error) { return f, nil },
	}
	code := a.main(t.Context(), args)
	return result{out.String(), errs.String(), code}
}

func (r result) want(t *testing.T, code int, out, err string) {
	t.Helper()
	if r.code != code || r.out != out || r.err != err {
		t.Errorf("exit %d, stdout:\n%s\nstderr:\n%s\nwant exit %d, stdout:\n%s\nstderr:\n%s", r.code, r.out, r.err, code, out, err)
	}
}

func kegNow(t *testing.T, f *fake, now time.Time, args ...string) result {
	t.Helper()
	old := fixedNow
	fixedNow = now
	defer func() { fixedNow = old }()
	return keg(t, f, args...)
}

func mustAddr(s string) netip.Addr { return netip.MustParseAddr(s) }

func (f *fake) Top(_ context.Context, ref string, options []string) (container.TopResponse, error) {
	return f.top, f.say(append([]string{"top"}, append(options, ref)...)...)
}

func (f *fake) Stats(_ context.Context, ref string) (container.StatsResponse, error) {
	err := f.say("stats", ref)
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.samples[0]
	if len(f.samples) > 1 {
		f.samples = f.samples[1:]
	}
	return s, err
}

func (f *fake) Update(_ context.Context, ref string, u container.UpdateConfig) ([]string, error) {
	f.set(func() { f.update = u })
	return nil, f.say("update", ref)
}

func (f *fake) StartBoot(_ context.Context, started func(engine.Booted)) error {
	for _, b := range f.booted {
		started(b)
	}
	return f.err
}

func (f *fake) ConnectNetwork(_ context.Context, name, ref string, s network.EndpointSettings) error {
	f.endpoint = s
	return f.say("connect", name, ref)
}

func (f *fake) DisconnectNetwork(_ context.Context, name, ref string, force bool) error {
	f.forced = force
	return f.say("disconnect", name, ref)
}
func (f *fake) ReloadNetworks(context.Context) error { return f.say("reload") }

func (f *fake) CloneVolume(_ context.Context, from, to string) (volume.Volume, error) {
	return volume.Volume{Name: to}, f.say("clone", from, to)
}
func (f *fake) RenameVolume(_ context.Context, from, to string) error {
	return f.say("rename volume", from, to)
}

func (f *fake) ExportVolume(_ context.Context, name string, w io.Writer) error {
	io.WriteString(w, f.archive)
	return f.say("export", name)
}

func (f *fake) ImportVolume(_ context.Context, name string, r io.Reader) error {
	b, err := io.ReadAll(r)
	f.archive = string(b)
	return errors.Join(err, f.say("import", name))
}

func (f *fake) Why(_ context.Context, ref string) ([]engine.Reason, error) {
	rs, ok := f.reasons[ref]
	if !ok {
		return nil, fault.NotFoundf("No such object: %s", ref)
	}
	return rs, nil
}
