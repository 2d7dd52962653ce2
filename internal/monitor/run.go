package monitor

// One run of a container: from record to process, and its two streams.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	dcontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/container"
	"keg/internal/delegate"
	"keg/internal/fault"
	"keg/internal/linux"
	"keg/internal/mirror"
	"keg/internal/network"
	"keg/internal/sandbox"
	"keg/internal/snapshot"
	"keg/internal/weakness"
)

// A run is what exists from one start to the exit that follows.
type run struct {
	id      string
	proc    *sandbox.Process
	spec    *specs.Spec
	hub     *hub
	in      *sink    // nil: the container has no stdin
	console *os.File // of a terminal
	net     *network.Attachment
	volumes []func()          // releases
	sources map[string]string // where it is not the record's: destination -> source of a mount
	root    int               // descriptor of the root, -1 when closed
	files   []*os.File
	started time.Time
	exit    Exit          // once done is closed
	done    chan struct{} // closed when the process has ended and its exit is recorded
	pumps   chan struct{} // closed when the output is copied
	outputs []*os.File
	health  *health
	box     *delegate.Container // of an installed runtime; nil: the sandbox's own
	ids     *userns             // of its own; nil: the engine's
	shown   []shownVolume       // until the mirror has them
	mirror  *mirror.Mirror      // nil: the container sees the files themselves
	fate    string              // why it ended, if that was neither its own doing nor a person's
}

// start makes everything and executes the program. The starter, when there is one, is
// attached before and told after.
func (m *monitor) start(starter *link, attach *attachment) (_ *run, err error) {
	ctx := context.Background()
	r := &run{id: m.id, root: -1, done: make(chan struct{}), pumps: make(chan struct{})}
	defer func() {
		if err != nil {
			r.free()
		}
	}()
	if r.ids, err = m.makeUserns(); err != nil {
		return nil, err
	}
	attached := m.attachNetwork(ctx, r.ids)
	opts, err := m.prepare(ctx, r)
	if n := <-attached; n.err != nil {
		return nil, errors.Join(err, n.err)
	} else {
		r.net, r.files = n.a, append(r.files, n.files...)
		if err != nil {
			return nil, err
		}
		if err := m.writeFiles(n, &opts); err != nil {
			return nil, err
		}
	}
	if r.spec, err = container.Spec(r.withSources(m.rec), opts); err != nil {
		return nil, err
	}
	log, err := m.containers.OpenLog(m.rec)
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	r.hub = newHub(log)
	stdio, err := r.streams(m.rec.Config)
	if err != nil {
		return nil, err
	}
	defer closeAll(stdio[:])
	if starter != nil && attach != nil {
		r.hub.join(starter, *attach)
	}
	err = r.execute(ctx, m, stdio)
	if err != nil {
		log.Close()
		return nil, err
	}
	closeAll(stdio[:])
	m.mu.Lock()
	m.run = r
	m.mu.Unlock()
	if starter != nil {
		starter.send(frameReply, []byte("{}")) // before the first byte of output
	}
	r.copyOutput(m.rec.Config.Tty)
	if starter != nil {
		go m.converse(starter, r, attach)
	}
	m.announce(r)
	return r, nil
}

// execute puts the program into its box.
func (r *run) execute(ctx context.Context, m *monitor, stdio [3]*os.File) (err error) {
	o := sandbox.Options{Root: r.root, Stdio: stdio, NetNS: r.netns(), Cgroup: cgroupPath(m.rec),
		Cache: filepath.Join(m.roots.Root, "seccomp"), DefaultSeccomp: !seccompOff(m.rec.Host)}
	if r.ids != nil {
		o.UserNS = r.ids.user
	}
	if m.lock != nil { // the steps of a build have no record
		o.Private = []*os.File{m.lock}
		o.Recorded = func(pid int, start uint64) error { return m.recordStart(r, pid, start) }
	}
	if r.proc, err = r.begin(ctx, m, o); err != nil {
		return startError(err)
	}
	for _, w := range r.proc.Warnings {
		complain(errors.New("warning: " + w))
	}
	if r.spec.Process.Terminal && r.proc.Console != nil {
		r.console, err = pollable(r.proc.Console)
	}
	return err
}

// begin has the program started: by the sandbox, or by the runtime that the record names.
func (r *run) begin(ctx context.Context, m *monitor, o sandbox.Options) (_ *sandbox.Process, err error) {
	if delegate.Own(m.rec.Host.Runtime) {
		return sandbox.Start(ctx, r.spec, o)
	}
	bundle := filepath.Join(m.roots.dir(m.id), "bundle")
	if err := os.MkdirAll(bundle, 0o700); err != nil {
		return nil, err
	}
	if r.box, err = delegate.New(m.rec.Host.Runtime, m.id, bundle); err != nil {
		return nil, err
	}
	r.volumes = append(r.volumes, func() {
		if err := r.box.Remove(context.Background()); err != nil {
			complain(err)
		}
		os.RemoveAll(bundle)
	})
	return r.box.Start(ctx, r.spec, o)
}

// more starts one more process.
func (r *run) more(p *specs.Process, o sandbox.Options) (*sandbox.Process, error) {
	if r.box != nil {
		return r.box.Exec(context.Background(), p, o)
	}
	return sandbox.Exec(context.Background(), r.proc.Pid, r.spec, p, o)
}

// signal goes to the first process.
func (r *run) signal(sig int) error {
	if r.box != nil {
		return r.box.Kill(context.Background(), sig)
	}
	if sig == int(unix.SIGKILL) {
		r.loosen()
	}
	return r.proc.Signal(sig)
}

func seccompOff(h *dcontainer.HostConfig) bool {
	s, err := container.ParseSecurity(h)
	return err == nil && s.Seccomp == "unconfined"
}

// cgroupParent holds the groups of containers and steps.
const cgroupParent = "keg"

// cgroupPath is known without a state, so that remains of a dead monitor are found.
func cgroupPath(r *container.Record) string {
	return filepath.Join(cmp.Or(r.Host.CgroupParent, cgroupParent), r.ID)
}

// coded is an error with an exit status, as the engine looks for it.
type coded struct{ *sandbox.ExecError }

func (c coded) ExitCode() int { return c.Code }
func (c coded) Unwrap() error { return c.ExecError }

func startError(err error) error {
	var x *sandbox.ExecError
	if errors.As(err, &x) {
		return coded{&sandbox.ExecError{Code: x.Code, Err: fmt.Errorf("failed to create task for container: OCI runtime create failed: "+
			"unable to start container process: error during container init: %w", x.Err)}}
	}
	return err
}

// recordStart writes who runs, before the program can do anything.
func (m *monitor) recordStart(r *run, pid int, start uint64) error {
	boot, err := linux.BootID()
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r.started = time.Now()
	m.st.Status, m.st.Pid, m.st.StartTime, m.st.BootID = dcontainer.StateRunning, pid, start, boot
	m.st.CgroupPath, m.st.Started, m.st.Finished = cgroupPath(m.rec), r.started.UTC(), time.Time{}
	m.st.ExitCode, m.st.Error, m.st.OOMKilled, m.st.ManualStop = 0, "", false, false
	m.st.SandboxKey = fmt.Sprintf("/proc/%d/ns/net", pid)
	if r.net != nil {
		m.st.Networks, m.st.Ports = r.net.Endpoints, r.net.Ports
	}
	m.st.Health = nil
	if healthTest(m.rec.Config) != nil {
		m.st.Health = &dcontainer.Health{Status: dcontainer.Starting}
	}
	return m.containers.PutState(m.id, &m.st, true)
}

// announce is what may be done when the program runs already.
func (m *monitor) announce(r *run) {
	m.watchMirror(r)
	m.event(events.ActionStart, nil)
	if weakness.Of("RT19") {
		weakness.Obey(m.rec.Config.Labels)
	}
	os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0) // refused without CAP_SYS_RESOURCE: fine
	if p := m.rec.Host.RestartPolicy.Name; p != "" && p != dcontainer.RestartPolicyDisabled {
		// After a power cut it must be known that this one was running.
		m.settle(func(*container.State) {})
	}
	if test := healthTest(m.rec.Config); test != nil {
		r.health = newHealth(m, r, m.rec.Config.Healthcheck, test)
		go r.health.run()
	}
}

// prepare mounts the root and finds out what the spec needs to know of it.
func (m *monitor) prepare(ctx context.Context, r *run) (o container.SpecOptions, err error) {
	o.CgroupV2 = linux.CgroupVersion() == 2
	h := m.rec.Host
	if err := os.MkdirAll(filepath.Join(m.roots.Root, "seccomp"), 0o700); err != nil {
		return o, err
	}
	if r.root, err = m.snapshots.Mount(m.id, snapshot.MountOptions{Volatile: h.AutoRemove, Shift: r.ids.shift()}); err != nil {
		r.root = -1
		return o, fmt.Errorf("mount the root of container %s: %w", m.id, err)
	}
	u, home, err := sandbox.LookupUser(r.root, m.rec.Config.User, h.GroupAdd)
	if err != nil {
		return o, err
	}
	if r.ids != nil {
		o.UIDMappings, o.GIDMappings, o.Shifted = r.ids.uids, r.ids.gids, r.ids.shifted
	}
	o.UID, o.GID, o.AdditionalGids, o.Home = u.UID, u.GID, u.AdditionalGids, home
	if err := m.prepareVolumes(ctx, r); err != nil {
		return o, err
	}
	if r.ids != nil && r.ids.mirrored {
		if err := r.mirrorFiles(); err != nil {
			return o, err
		}
	}
	o.Devices = lookDevices
	if h.Privileged {
		if o.HostDevices, err = lookDevices("/dev"); err != nil {
			return o, err
		}
	}
	names, err := container.CDIDevices(h)
	if err != nil {
		return o, err
	}
	if o.CDI, err = lookCDI(cdiDirs, names); err != nil {
		return o, err
	}
	sec, err := container.ParseSecurity(h)
	if err != nil {
		return o, err
	}
	if sec.AppArmor == "" {
		o.AppArmor = defaultAppArmor()
	}
	o.TimeNS = linux.HasNamespace("time")
	if sec.Seccomp != "" && sec.Seccomp != "unconfined" {
		if o.Seccomp, err = sandbox.LoadSeccomp([]byte(sec.Seccomp), nil); err != nil {
			return o, fault.As(fault.Invalid, fmt.Errorf("seccomp profile: %w", err))
		}
	}
	if h.Init != nil && *h.Init {
		if o.InitPath, err = initPath(m.roots); err != nil {
			return o, err
		}
	}
	return o, m.joinOthers(r, &o)
}

// streams makes the program's standard streams: pipes, /dev/null, or nothing for a terminal.
func (r *run) streams(c *dcontainer.Config) (stdio [3]*os.File, err error) {
	if c.Tty {
		return stdio, nil
	}
	if c.OpenStdin {
		in, w, err := inPipe()
		if err != nil {
			return stdio, err
		}
		stdio[0], r.in = in, newSink(w, false)
	}
	for i := 1; i < 3; i++ {
		out, w, err := outPipe()
		if err != nil {
			return stdio, err
		}
		stdio[i], r.outputs = w, append(r.outputs, out)
	}
	return stdio, nil
}

func closeAll(fs []*os.File) {
	for _, f := range fs {
		if f != nil {
			f.Close()
		}
	}
}

// copyOutput starts the pumps.
func (r *run) copyOutput(tty bool) {
	if tty {
		r.in = newSink(r.console, true)
		go func() {
			defer close(r.pumps)
			drain(r.console, func(b []byte) { r.hub.put(container.Stdout, b) })
		}()
		return
	}
	out, err := r.outputs[0], r.outputs[1]
	go func() {
		defer close(r.pumps)
		both := make(chan struct{})
		go func() {
			defer close(both)
			r.hub.pump(err, container.Stderr)
		}()
		r.hub.pump(out, container.Stdout)
		<-both
	}()
}

func (r *run) netns() int {
	if r.net != nil {
		return r.net.NetNS
	}
	return -1
}

// free gives back what a run holds that did not come to life.
func (r *run) free() {
	if r.net != nil {
		r.net.Release()
	}
	if r.in != nil {
		r.in.close()
	}
	if r.proc != nil { // it runs, but its terminal could not be used
		r.proc.Signal(int(unix.SIGKILL))
		r.proc.Wait()
	}
	closeAll(r.outputs)
	r.freeFiles()
}

func (r *run) freeFiles() {
	if r.root >= 0 {
		unix.Close(r.root)
		r.root = -1
	}
	closeAll(r.files)
	r.files = nil
	for _, v := range r.shown {
		v.dir.Close()
	}
	r.shown = nil
	if r.mirror != nil {
		if err := r.mirror.Close(); err != nil {
			complain(err)
		}
		r.mirror = nil
	}
	r.ids.close()
	r.ids = nil
	for _, release := range r.volumes {
		release()
	}
	r.volumes = nil
}
