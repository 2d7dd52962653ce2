package monitor

// What of the host a container is given: its network files, devices, init, other
// containers' namespaces.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	dnetwork "github.com/moby/moby/api/types/network"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/container"
	"keg/internal/fault"
	"keg/internal/network"
)

// attached is the network of a run: made, joined, or the host's.
type attached struct {
	a             *network.Attachment
	hosts, resolv []byte
	other         *container.Record // whose network is joined
	files         []*os.File
	err           error
}

// attachNetwork works beside the mounts.
func (m *monitor) attachNetwork(ctx context.Context, ids *userns) <-chan attached {
	c := make(chan attached, 1)
	mode := m.rec.Host.NetworkMode
	switch {
	case mode.IsContainer():
		o, err := m.other(mode.ConnectedContainer())
		c <- attached{other: o, err: err}
	case mode.IsHost():
		hosts, resolv, err := m.networks.HostMode(networkRequest(m.rec))
		c <- attached{hosts: hosts, resolv: resolv, err: err}
	default:
		go func() {
			q := networkRequest(m.rec)
			if ids != nil {
				q.NetNS = int(ids.net.Fd())
			}
			err := m.addLinks(&q)
			var a *network.Attachment
			if err == nil {
				a, err = m.networks.Attach(ctx, q)
			}
			if err != nil {
				c <- attached{err: err}
				return
			}
			c <- attached{a: a, hosts: a.Hosts, resolv: a.Resolv}
		}()
	}
	return c
}

// networkRequest is what a record says about its network.
func networkRequest(r *container.Record) network.Request {
	h := r.Host
	q := network.Request{ID: r.ID, Name: r.Name, Hostname: r.Config.Hostname, Domainname: r.Config.Domainname, ExtraHosts: h.ExtraHosts,
		Search: h.DNSSearch, Options: h.DNSOptions}
	if q.Hostname == "" {
		q.Hostname = r.ID[:12]
	}
	for _, a := range h.DNS {
		q.DNS = append(q.DNS, a.String())
	}
	if h.NetworkMode.IsHost() || h.NetworkMode.IsNone() || r.Config.NetworkDisabled {
		return q
	}
	for name, s := range r.Networks {
		if name == dnetwork.NetworkDefault {
			name = dnetwork.NetworkBridge
		}
		e := network.Endpoint{Network: name}
		if s != nil {
			e.Settings = *s
		}
		q.Endpoints = append(q.Endpoints, e)
	}
	if len(q.Endpoints) == 0 {
		name := string(h.NetworkMode)
		if name == "" || name == dnetwork.NetworkDefault {
			name = dnetwork.NetworkBridge
		}
		q.Endpoints = []network.Endpoint{{Network: name}}
	}
	q.Publish = dnetwork.PortMap{}
	for p, b := range h.PortBindings {
		q.Publish[p] = b
	}
	if h.PublishAllPorts {
		for p := range r.Config.ExposedPorts {
			if _, ok := q.Publish[p]; !ok {
				q.Publish[p] = []dnetwork.PortBinding{{}}
			}
		}
	}
	return q
}

// other finds the running container that a mode "container:ID" names.
func (m *monitor) other(ref string) (*container.Record, error) {
	o, err := m.containers.Find(ref)
	if err != nil {
		return nil, err
	}
	st, err := m.containers.State(o.ID)
	if err != nil {
		return nil, err
	}
	on, err := m.containers.Running(o.ID)
	if err == nil && (!on || st.Pid == 0) {
		err = fault.Conflictf("cannot join network of a non running container: %s", o.ID)
	}
	return o, err
}

// joinOthers opens the namespaces of other containers. They are held open, and named by
// descriptor, so that the number of a process that ends meanwhile cannot mean another one.
func (m *monitor) joinOthers(r *run, o *container.SpecOptions) error {
	h := m.rec.Host
	for _, j := range []struct {
		ref, ns string
		to      *string
	}{{h.NetworkMode.ConnectedContainer(), "net", &o.NetNS}, {h.PidMode.Container(), "pid", &o.PidNS}, {h.IpcMode.Container(), "ipc", &o.IpcNS}} {
		if j.ref == "" {
			continue
		}
		other, err := m.other(j.ref)
		if other != nil && err != nil && j.ns != "net" { // Docker's words, and no kind: the daemon's failure
			return fmt.Errorf("failed to join %s namespace: container %s is not running", strings.ToUpper(j.ns), other.ID)
		}
		if err != nil {
			return err
		}
		st, err := m.containers.State(other.ID)
		if err != nil {
			return err
		}
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", st.Pid, j.ns))
		if err != nil {
			return fmt.Errorf("join the %s namespace of container %s: %w", j.ns, j.ref, err)
		}
		r.files = append(r.files, f)
		if on, err := m.containers.Running(other.ID); err != nil || !on {
			return fault.Conflictf("cannot join the %s namespace of a non running container: %s", j.ns, j.ref)
		}
		*j.to = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
		if j.ns == "ipc" {
			if !other.Host.IpcMode.IsShareable() {
				return fault.Invalidf("cannot join IPC of a container %s: non-shareable IPC (hint: use IpcMode:shareable for the donor container)", j.ref)
			}
			o.ShmPath = m.roots.shm(other.ID)
		}
	}
	if h.IpcMode.IsShareable() {
		return m.shareShm(r, o)
	}
	return nil
}

// shareShm mounts /dev/shm where those who join can bind it: a mount of another namespace
// cannot be bound.
func (m *monitor) shareShm(r *run, o *container.SpecOptions) error {
	dir := m.roots.shm(m.id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	size := m.rec.Host.ShmSize
	if size <= 0 {
		size = container.DefaultShm
	}
	err := unix.Mount("shm", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, fmt.Sprintf("mode=1777,size=%d", size))
	if err != nil {
		return fmt.Errorf("mount shared memory on %s: %w", dir, err)
	}
	r.volumes = append(r.volumes, func() { unix.Unmount(dir, unix.MNT_DETACH) })
	o.ShmPath = dir
	return nil
}

// writeFiles writes hosts, resolv.conf and hostname into the container's run directory, from where
// they are bound (a tmpfs as a rule, and they are written anew at each start): nothing is written through the image's tree (CVE-2024-5154).
func (m *monitor) writeFiles(n attached, o *container.SpecOptions) error {
	if n.other != nil {
		dir := m.roots.dir(n.other.ID)
		o.Hosts, o.Resolv, o.Hostname = filepath.Join(dir, "hosts"), filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "hostname")
		return nil
	}
	return writeNetFiles(m.roots.dir(m.id), n, m.rec, o)
}

func writeNetFiles(dir string, n attached, r *container.Record, o *container.SpecOptions) error {
	host := r.Config.Hostname
	if host == "" {
		host = r.ID[:12]
	}
	if strings.ContainsAny(host, "\n\x00") {
		return fault.Invalidf("invalid hostname %q", host)
	}
	for _, f := range []struct {
		name string
		data []byte
		to   *string
	}{{"hosts", n.hosts, &o.Hosts}, {"resolv.conf", n.resolv, &o.Resolv}, {"hostname", []byte(host + "\n"), &o.Hostname}} {
		*f.to = filepath.Join(dir, f.name)
		if err := os.WriteFile(*f.to, f.data, 0o644); err != nil {
			return err
		}
		// The umask is strict; users of the container must be able to read these.
		if err := os.Chmod(*f.to, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// lookDevices tells what a path of --device is: a device, or the devices below a directory.
func lookDevices(path string) ([]specs.LinuxDevice, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() {
		d, ok := deviceOf(path)
		if !ok {
			return nil, fault.Invalidf("%q is not a device", path)
		}
		return []specs.LinuxDevice{d}, nil
	}
	var out []specs.LinuxDevice
	err = filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // it is gone, or not for us
		}
		switch {
		case e.IsDir() && (e.Name() == "pts" || e.Name() == "shm" || e.Name() == "mqueue" || e.Name() == "fd"):
			return fs.SkipDir
		case e.Name() == "console" || e.IsDir():
			return nil
		}
		if d, ok := deviceOf(p); ok && e.Type()&fs.ModeDevice != 0 {
			out = append(out, d)
		}
		return nil
	})
	return out, err
}

func deviceOf(path string) (specs.LinuxDevice, bool) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return specs.LinuxDevice{}, false
	}
	d := specs.LinuxDevice{Path: path, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)), UID: &st.Uid, GID: &st.Gid}
	mode := os.FileMode(st.Mode & 0o7777)
	d.FileMode = &mode
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFBLK:
		d.Type = "b"
	default:
		return d, false
	}
	return d, true
}

// inits are where distributions put the usual ones.
var inits = [...]string{"/usr/bin/docker-init", "/usr/libexec/docker/docker-init", "/usr/local/bin/docker-init", "/usr/bin/tini-static", "/usr/sbin/tini", "/sbin/tini"}

// initPath finds an init for --init: an installed one, else a copy of this binary, which knows
// the role by its name. A copy, so that no container ever sees the binary that root runs
// (CVE-2019-5736).
func initPath(r Roots) (string, error) {
	for _, p := range inits {
		if fi, err := os.Stat(p); err == nil && fi.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	p := filepath.Join(r.Run, "docker-init")
	if _, err := os.Stat(p); err == nil {
		return p, nil
	}
	return p, copySelf(p)
}

func copySelf(to string) error {
	in, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.CreateTemp(filepath.Dir(to), ".tmp-")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Chmod(0o555), out.Close()); err != nil {
		return fmt.Errorf("copy the init for containers: %w", err)
	}
	return os.Rename(out.Name(), to)
}
