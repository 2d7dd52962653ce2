package monitor

// RUN steps: one small process per build forks them, since forking from a large heap is slow.
//
//	builder                                steps
//	control socket: one byte and a socket  --->   each socket carries one step
//	control socket closed                  --->   everything ends

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	dcontainer "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"golang.org/x/sys/unix"

	"keg/internal/container"
	"keg/internal/disk"
	"keg/internal/launch"
	"keg/internal/linux"
	"keg/internal/network"
	"keg/internal/sandbox"
	"keg/internal/snapshot"
)

// Builder is the monitor of one build: a small process that forks the RUN steps.
type Builder struct {
	c   *Conn
	pid int
}

// StartBuilder starts it; it ends with Close or with its parent.
func StartBuilder(ctx context.Context, r Roots) (*Builder, error) {
	p, err := launch.Builder(r.Root, r.Run)
	if err == nil {
		var c *net.UnixConn
		if c, err = adopt(p); err == nil {
			return &Builder{newConn(c, "build"), p.Pid}, nil
		}
	}
	return nil, fmt.Errorf("start the monitor of the build: %w", err)
}

// Run executes one step; out gets its stdout and stderr. Several may run at once. When ctx ends
// the step is killed. The step's mounts, network and cgroup are gone when Run returns.
func (b *Builder) Run(ctx context.Context, s Step, out io.Writer) (code int, err error) {
	k, err := b.hand(ctx, s)
	if err != nil {
		return 0, err
	}
	defer k.Close()
	return k.step(ctx, out)
}

// Shell is Run of a step that has a terminal (s.Terminal), to which io is connected.
func (b *Builder) Shell(ctx context.Context, s Step, io Stdio) (Exit, error) {
	k, err := b.hand(ctx, s)
	if err != nil {
		return Exit{}, err
	}
	defer k.Close()
	n := k.begin(io)
	stop := context.AfterFunc(ctx, k.halfClose)
	defer stop()
	<-n.over
	if ctx.Err() != nil {
		return n.exit, context.Cause(ctx)
	}
	return n.exit, n.err
}

// hand gives a step to the process that runs them, on a connection of its own.
func (b *Builder) hand(ctx context.Context, s Step) (*Conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, err := fileConn(fds[0])
	if err != nil {
		unix.Close(fds[1])
		return nil, err
	}
	b.c.mu.Lock()
	_, _, err = b.c.c.(*net.UnixConn).WriteMsgUnix([]byte{0}, unix.UnixRights(fds[1]), nil)
	b.c.mu.Unlock()
	unix.Close(fds[1])
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("hand a step to the monitor of the build: %w", err)
	}
	k := newConn(ours, s.Key)
	if err := k.request(request{Op: "run", Step: &s}); err != nil {
		ours.Close()
		return nil, k.lost(ctx, err)
	}
	return k, nil
}

// halfClose makes the other side kill the step; it still tells when all of it is gone.
func (c *Conn) halfClose() { c.c.(*net.UnixConn).CloseWrite() }

func (c *Conn) step(ctx context.Context, out io.Writer) (int, error) {
	stop := context.AfterFunc(ctx, c.halfClose)
	defer stop()
	var failed error
	for {
		kind, b, err := c.in.next()
		if err != nil {
			return 0, c.lost(ctx, err)
		}
		switch kind {
		case frameStdout:
			if failed == nil {
				if failed = writeTo(out, b); failed != nil {
					c.halfClose()
				}
			}
		case frameError:
			return 0, decodeError(b)
		case frameExit:
			var x Exit
			err := errors.Join(failed, json.Unmarshal(b, &x))
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return x.Code, err
		}
	}
}

// Close ends the process and every step that still runs.
func (b *Builder) Close() error { return b.c.Close() }

// steps is the other side: the process that runs them.
type steps struct {
	roots     Roots
	snapshots *snapshot.Store
	networks  *network.Store
	idle      pool
}

func buildMain(r Roots) error {
	control, err := fileConn(starterSocket)
	if err != nil {
		return err
	}
	sweepSteps(r)
	if err := os.MkdirAll(filepath.Join(r.Root, "seccomp"), 0o700); err != nil {
		return err
	}
	s := &steps{roots: r, networks: network.Open(r.Root, r.Run)}
	if s.snapshots, err = snapshot.Open(r.Root); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	running := make(chan struct{}, 1<<10)
	n := 0
	for {
		c, err := nextStep(control)
		if err != nil {
			// The build is over or dead. Nothing of it stays.
			cancel()
			for ; n > 0; n-- {
				<-running
			}
			err := errors.Join(s.idle.close(), s.networks.Settle(context.Background()))
			farewell()
			return err
		}
		n++
		go func() {
			l := newLink(c)
			l.patience = patienceForeground
			s.serve(ctx, l)
			l.finish()
			<-l.done
			running <- struct{}{}
		}()
	}
}

// nextStep receives a step's socket.
func nextStep(control *net.UnixConn) (*net.UnixConn, error) {
	b, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	n, k, _, _, err := control.ReadMsgUnix(b, oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return nil, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:k])
	if err != nil || len(msgs) != 1 {
		return nil, errors.New("no socket came with the step")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.New("no socket came with the step")
	}
	unix.CloseOnExec(fds[0])
	return fileConn(fds[0])
}

func (s *steps) serve(ctx context.Context, l *link) {
	q, err := l.request()
	if err != nil || q.Step == nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	k := &keyboard{ready: make(chan struct{})}
	go func() {
		k.listen(ctx, l)
		cancel() // nobody waits any more
	}()
	code, err := s.run(ctx, *q.Step, k, func(b []byte) { l.deliver(frameStdout, b, ctx.Done()) })
	if err != nil {
		l.send(frameError, encodeError(err))
		return
	}
	l.sendJSON(frameExit, Exit{Code: code})
}

// stepPrefix begins the names of the directories of running steps: step-<id>-<random>. The holder's
// lock on one tells that its step lives.
const stepPrefix = "step-"

// stepGroup, in such a directory, says which cgroup is the step's when it is not below ours.
const stepGroup = "cgroup"

// sweepSteps takes away what steps left whose process was killed.
func sweepSteps(r Roots) {
	ents, err := os.ReadDir(r.Run)
	if err != nil {
		return
	}
	for _, e := range ents {
		id, ok := strings.CutPrefix(e.Name(), stepPrefix)
		if id, _, _ = strings.Cut(id, "-"); !ok || len(id) != 64 {
			continue
		}
		d, err := os.Open(filepath.Join(r.Run, e.Name()))
		if err != nil {
			continue
		}
		if unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			group, _ := os.ReadFile(filepath.Join(d.Name(), stepGroup))
			if err := sweepRemains(context.Background(), r, id, string(group)); err != nil {
				complain(err)
			}
			os.RemoveAll(d.Name())
		}
		d.Close()
	}
}

// record is a step as a container, so that its confinement is that of run.
func (s Step) record() *container.Record {
	host := &dcontainer.HostConfig{NetworkMode: dcontainer.NetworkMode(s.Network), ExtraHosts: s.ExtraHosts, ShmSize: s.ShmSize,
		Privileged: s.Privileged, AutoRemove: true}
	l := s.Limits
	host.Resources = dcontainer.Resources{Memory: l.Memory, MemorySwap: l.MemorySwap, CPUShares: l.CPUShares, CPUPeriod: l.CPUPeriod,
		CPUQuota: l.CPUQuota, CpusetCpus: l.CpusetCpus, CpusetMems: l.CpusetMems, CgroupParent: l.CgroupParent}
	r := &container.Record{ID: container.NewID(), Host: host,
		Config: &dcontainer.Config{Cmd: s.Args, Env: s.Env, WorkingDir: s.Dir, User: s.User, Hostname: s.Hostname}}
	r.Name = "build-" + r.ID[:12]
	if r.Config.Hostname == "" {
		r.Config.Hostname = "buildkitsandbox" // what RUN sees under Docker
	}
	if s.Terminal != nil {
		r.Config.Tty = true
		host.ConsoleSize = [2]uint{uint(s.Terminal.Rows), uint(s.Terminal.Cols)}
	}
	for _, u := range s.Ulimits {
		host.Ulimits = append(host.Ulimits, &dcontainer.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	for _, m := range s.Mounts {
		r.Mounts = append(r.Mounts, dcontainer.MountPoint{Type: mount.Type(m.Type), Source: m.Source, Destination: m.Target, RW: !m.ReadOnly})
		if m.Type == string(mount.TypeTmpfs) {
			t := &mount.TmpfsOptions{SizeBytes: m.Size, Mode: os.FileMode(m.Mode)}
			host.Mounts = append(host.Mounts, mount.Mount{Type: mount.TypeTmpfs, Target: m.Target, ReadOnly: m.ReadOnly, TmpfsOptions: t})
		}
	}
	return r
}

// run executes one step from mount to cleanup.
func (s *steps) run(ctx context.Context, st Step, k *keyboard, put func([]byte)) (code int, err error) {
	m := &monitor{roots: s.roots, containers: container.Open(s.roots.Root), networks: s.networks, snapshots: s.snapshots, rec: st.record()}
	m.id = m.rec.ID
	dir, err := disk.HoldDir(s.roots.Run, stepPrefix+m.id+"-")
	if err != nil {
		return 0, err
	}
	defer dir.Remove()
	if st.Limits.CgroupParent != "" {
		if err := os.WriteFile(filepath.Join(dir.Path, stepGroup), []byte(cgroupPath(m.rec)), 0o600); err != nil {
			return 0, err
		}
	}
	r := &run{id: m.id, root: -1, files: nil, done: make(chan struct{})}
	defer func() {
		r.freeFiles()
		if r.net != nil {
			err = errors.Join(err, s.idle.give(st, r.net, err == nil))
		}
	}()
	attached := s.network(ctx, m, st)
	opts, err := m.prepareStep(st.Key, r)
	n := <-attached
	r.net = n.a
	if err = errors.Join(err, n.err); err != nil {
		return 0, err
	}
	if err := writeNetFiles(dir.Path, n, m.rec, &opts); err != nil {
		return 0, err
	}
	if r.spec, err = container.Spec(m.rec, opts); err != nil {
		return 0, err
	}
	if st.Terminal != nil {
		return r.terminalStep(ctx, m, k, put)
	}
	return r.step(ctx, m, st.Stdin, put)
}

func (m *monitor) prepareStep(key string, r *run) (o container.SpecOptions, err error) {
	if r.root, err = m.snapshots.Mount(key, snapshot.MountOptions{}); err != nil {
		r.root = -1
		return o, err
	}
	u, home, err := sandbox.LookupUser(r.root, m.rec.Config.User, nil)
	o.UID, o.GID, o.AdditionalGids, o.Home = u.UID, u.GID, u.AdditionalGids, home
	o.Devices, o.TimeNS = lookDevices, linux.HasNamespace("time")
	if !m.rec.Host.Privileged {
		o.AppArmor = defaultAppArmor()
	}
	if err == nil && m.rec.Host.Privileged {
		o.HostDevices, err = lookDevices("/dev")
	}
	return o, err
}

// step starts the process of a step and waits for it.
func (r *run) step(ctx context.Context, m *monitor, stdin []byte, put func([]byte)) (int, error) {
	out, w, err := outPipe()
	if err != nil {
		return 0, err
	}
	defer out.Close()
	stdio := [3]*os.File{nil, w, w}
	if stdin != nil {
		in, to, err := inPipe()
		if err != nil {
			w.Close()
			return 0, err
		}
		stdio[0], r.in = in, newSink(to, false)
		defer r.in.close()
		if err := r.in.put(stdin, func(int) {}); err != nil {
			return 0, err
		}
		r.in.end()
	}
	err = r.execute(ctx, m, stdio)
	closeAll(stdio[:2])
	if err != nil {
		return 0, err
	}
	return r.await(ctx, out, put)
}

// terminalStep is step on a terminal.
func (r *run) terminalStep(ctx context.Context, m *monitor, k *keyboard, put func([]byte)) (int, error) {
	if err := r.execute(ctx, m, [3]*os.File{}); err != nil {
		return 0, err
	}
	defer r.console.Close()
	r.in = newSink(r.console, true)
	defer r.in.close()
	k.plug(r)
	return r.await(ctx, r.console, put)
}

// A keyboard passes what the peer of a step types, and the size of its window, to the step's terminal.
type keyboard struct {
	ready chan struct{} // closed when there is a terminal
	r     *run
}

func (k *keyboard) plug(r *run) {
	k.r = r
	close(k.ready)
}

// listen returns when the peer is gone, or says what it must not.
func (k *keyboard) listen(ctx context.Context, l *link) {
	for {
		kind, b, err := l.in.next()
		if err != nil {
			return
		}
		select {
		case <-k.ready:
		case <-ctx.Done():
			return
		}
		switch {
		case kind == frameStdin:
			if k.r.in.put(b, l.taken) != nil {
				return
			}
		case kind == frameSize && len(b) == 4:
			setSize(k.r.console, binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]))
		}
	}
}

// await copies the output of a step until its process has ended, and takes away what is left of it.
func (r *run) await(ctx context.Context, out *os.File, put func([]byte)) (int, error) {
	pumped := make(chan struct{})
	go func() {
		defer close(pumped)
		drain(out, put)
		rest(out, put)
	}()
	stop := context.AfterFunc(ctx, func() { r.proc.Signal(int(unix.SIGKILL)) })
	defer stop()
	code, err := r.proc.Wait()
	select {
	case <-pumped:
	case <-time.After(2 * time.Second):
		out.SetReadDeadline(time.Unix(1, 0))
		<-pumped
	}
	if g := r.proc.Cgroup; g != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		err = errors.Join(err, g.Kill(ctx), g.Remove(ctx))
	}
	return code, err
}
