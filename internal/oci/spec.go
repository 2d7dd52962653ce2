package oci

// A bundle's config.json: read within bounds, checked, and turned into what the sandbox wants.

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/sandbox/cgroup"
	"keg/internal/weakness"
)

const (
	maxConfig   = 16 << 20
	maxMappings = 340 // the kernel's limit (user_namespaces(7))
	maxList     = 10000
)

// readJSON reads a regular file of bounded size.
func readJSON(file string, into any) error {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Size() > maxConfig {
		return fault.Invalidf("%s is not a regular file of at most %d bytes", file, maxConfig)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxConfig))
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		return fault.Invalidf("read %s: %v", file, err)
	}
	return nil
}

// loadSpec reads and checks the config.json of a bundle.
func loadSpec(bundle string) (*specs.Spec, error) {
	file := filepath.Join(bundle, "config.json")
	s := &specs.Spec{}
	err := readJSON(file, s)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fault.NotFoundf("JSON specification file %s not found", file)
	}
	if err == nil {
		err = check(s)
	}
	return s, err
}

// check refuses what the specification forbids and what nobody can mean.
func check(s *specs.Spec) error {
	if err := checkVersion(s.Version); err != nil {
		return err
	}
	l := s.Linux
	switch {
	case l == nil:
		return fault.Invalidf("the spec has no linux section: only Linux containers can be run here")
	case s.Root == nil || s.Root.Path == "":
		return fault.Invalidf("the spec has no root")
	case len(s.Hostname) > 64 || len(s.Domainname) > 64:
		return fault.Invalidf("hostname and domainname may have 64 bytes")
	case (s.Hostname != "" || s.Domainname != "") && !asks(l, specs.UTSNamespace):
		return fault.Invalidf("unable to set hostname without a private UTS namespace")
	case weakness.Of("RT14"):
	case len(l.UIDMappings) > maxMappings || len(l.GIDMappings) > maxMappings:
		return fault.Invalidf("%d uid and %d gid mappings: the kernel takes at most %d", len(l.UIDMappings), len(l.GIDMappings), maxMappings)
	case len(l.UIDMappings)+len(l.GIDMappings) > 0 && !asks(l, specs.UserNamespace):
		return fault.Invalidf("user namespace mappings specified, but user namespace isn't enabled in the config")
	case len(s.Mounts) > maxList || len(l.Devices) > maxList || len(l.MaskedPaths) > maxList || len(l.ReadonlyPaths) > maxList || len(l.Namespaces) > 64:
		return fault.Invalidf("the spec has an absurd number of mounts, devices, paths or namespaces")
	case !oneOf(l.RootfsPropagation, "", "private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"):
		return fault.Invalidf("unknown rootfsPropagation %q", l.RootfsPropagation)
	}
	for _, m := range append(l.UIDMappings[:len(l.UIDMappings):len(l.UIDMappings)], l.GIDMappings...) {
		if m.Size == 0 || uint64(m.HostID)+uint64(m.Size) > 1<<32 || uint64(m.ContainerID)+uint64(m.Size) > 1<<32 {
			return fault.Invalidf("the mapping %d:%d:%d is empty or leaves the range of ids", m.ContainerID, m.HostID, m.Size)
		}
	}
	if err := checkHooks(s.Hooks); err != nil {
		return err
	}
	return checkProcess(s.Process)
}

func checkVersion(v string) error {
	major, rest, _ := strings.Cut(v, ".")
	minor, patch, ok := strings.Cut(rest, ".")
	patch, _, _ = strings.Cut(patch, "-")
	for _, n := range []string{major, minor, patch} {
		if _, err := strconv.ParseUint(n, 10, 16); err != nil || !ok {
			return fault.Invalidf("ociVersion %q is not a semantic version", v)
		}
	}
	if major != "1" {
		return fault.Invalidf("ociVersion %q is not supported: 1.x is", v)
	}
	return nil
}

func checkProcess(p *specs.Process) error {
	if p == nil {
		return nil // allowed until start
	}
	if !path.IsAbs(p.Cwd) {
		return fault.Invalidf("the working directory %q must be an absolute path", p.Cwd)
	}
	if len(p.Args) == 0 {
		return fault.Invalidf("args must not be empty")
	}
	for _, id := range append([]uint32{p.User.UID, p.User.GID}, p.User.AdditionalGids...) {
		if id == 1<<32-1 {
			return fault.Invalidf("the user or group id %d is not valid", id)
		}
	}
	if n := p.OOMScoreAdj; n != nil && (*n < -1000 || *n > 1000) {
		return fault.Invalidf("oomScoreAdj %d: -1000 to 1000 is allowed", *n)
	}
	return nil
}

func checkHooks(h *specs.Hooks) error {
	if h == nil {
		return nil
	}
	//lint:ignore SA1019 Prestart is still asked for
	for _, list := range [][]specs.Hook{h.Prestart, h.CreateRuntime, h.CreateContainer, h.StartContainer, h.Poststart, h.Poststop} {
		for _, k := range list {
			if !path.IsAbs(k.Path) {
				return fault.Invalidf("hook %q: the path must be absolute", k.Path)
			}
			if k.Timeout != nil && *k.Timeout <= 0 {
				return fault.Invalidf("hook %s: the timeout must be greater than zero", k.Path)
			}
		}
	}
	return nil
}

func oneOf(s string, of ...string) bool {
	for _, o := range of {
		if s == o {
			return true
		}
	}
	return false
}

func asks(l *specs.Linux, t specs.LinuxNamespaceType) bool {
	for _, n := range l.Namespaces {
		if n.Type == t {
			return true
		}
	}
	return false
}

func rootOf(s *specs.Spec, bundle string) string {
	if filepath.IsAbs(s.Root.Path) {
		return s.Root.Path
	}
	return filepath.Join(bundle, s.Root.Path)
}

// resolve makes paths that are relative to the bundle absolute.
func resolve(s *specs.Spec, bundle string) {
	s.Root.Path = rootOf(s, bundle)
	for i := range s.Mounts {
		m := &s.Mounts[i]
		// runc takes a relative destination from "/", though the specification forbids one.
		m.Destination = path.Join("/", m.Destination)
		bind := m.Type == "bind"
		for _, o := range m.Options {
			bind = bind || o == "bind" || o == "rbind"
		}
		if bind && !filepath.IsAbs(m.Source) {
			m.Source = filepath.Join(bundle, m.Source)
		}
	}
	allowDefaults(s.Linux)
}

// allowDefaults adds to a list of device rules that the devices which every container has may be used
// (runtime-spec config-linux.md "Default Devices"), and that any node may be made.
func allowDefaults(l *specs.Linux) {
	if l.Resources == nil || len(l.Resources.Devices) == 0 {
		return
	}
	res := *l.Resources
	res.Devices = res.Devices[:len(res.Devices):len(res.Devices)]
	allow := func(typ, access string, numbers ...int64) {
		d := specs.LinuxDeviceCgroup{Allow: true, Type: typ, Access: access}
		for i := range numbers {
			if i == 0 {
				d.Major = &numbers[0]
			} else {
				d.Minor = &numbers[1]
			}
		}
		res.Devices = append(res.Devices, d)
	}
	allow("c", "m")
	allow("b", "m")
	for _, n := range [...][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 2}} {
		allow("c", "rwm", n[0], n[1])
	}
	allow("c", "rwm", 136) // terminals
	l.Resources = &res
}

// ownParent is the directory of the cgroups of containers whose spec names none.
const ownParent = "keg-oci"

// tidy removes ownParent with the last group in it. What a spec names belongs to whoever wrote the spec.
func tidy(group string) {
	if strings.HasPrefix(group, ownParent+"/") {
		cgroup.Tidy(ownParent)
	}
}

// cgroupPath is where the container's cgroup is, from the top of each hierarchy.
func (r *Runtime) cgroupPath(s *specs.Spec, id string) (string, error) {
	p := s.Linux.CgroupsPath
	if !r.Systemd {
		if p == "" {
			p = ownParent + "/" + id
		}
		return path.Clean("/" + p)[1:], nil
	}
	if p == "" {
		p = "system.slice:keg:" + id
	}
	f := strings.Split(p, ":")
	if len(f) != 3 {
		return "", fault.Invalidf("expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got %q instead", p)
	}
	slice, err := expandSlice(f[0])
	if err != nil {
		return "", err
	}
	unit := f[2]
	if !strings.HasSuffix(unit, ".slice") {
		unit = strings.TrimPrefix(f[1]+"-"+unit, "-") + ".scope"
	}
	return path.Join(slice, unit), nil
}

// expandSlice turns "a-b.slice" into "a.slice/a-b.slice" (systemd.slice(5)).
func expandSlice(s string) (string, error) {
	if s == "" {
		s = "system.slice"
	}
	name, ok := strings.CutSuffix(s, ".slice")
	if !ok || strings.Contains(name, "/") {
		return "", fault.Invalidf("invalid slice name %q", s)
	}
	if name == "-" {
		return "", nil
	}
	var out, prefix string
	for _, part := range strings.Split(name, "-") {
		if part == "" {
			return "", fault.Invalidf("invalid slice name %q", s)
		}
		out = path.Join(out, prefix+part+".slice")
		prefix += part + "-"
	}
	return out, nil
}

// checkControllers refuses marks for packets where nothing would mark them: unlike a limit that cannot be
// had, nobody would see it (runtime-spec config.md "Valid values").
func (c *container) checkControllers() error {
	r := c.rec.Spec.Linux.Resources
	if r == nil || r.Network == nil || r.Network.ClassID == nil && len(r.Network.Priorities) == 0 {
		return nil
	}
	g, err := c.group()
	if err != nil {
		return err
	}
	for _, h := range g.Hierarchies() {
		for _, name := range h.Controllers {
			if name == "net_cls" || name == "net_prio" {
				return nil
			}
		}
	}
	return fault.Unsupportedf("the spec marks packets (linux.resources.network), but this host has no net_cls and net_prio controllers")
}

// Template is what "spec" writes: runc's, word for word where a word matters.
func Template() *specs.Spec {
	caps := []string{"CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"}
	return &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{Terminal: true, Args: []string{"sh"}, Cwd: "/", NoNewPrivileges: true,
			Env:          []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 1024}}},
		Root: &specs.Root{Path: "rootfs", Readonly: true}, Hostname: "keg",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		},
		Linux: &specs.Linux{
			Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}},
			MaskedPaths: []string{"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
				"/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// WriteTemplate is "spec": it never overwrites.
func WriteTemplate(bundle string) error {
	b, err := json.MarshalIndent(Template(), "", "\t")
	if err != nil {
		return err
	}
	file := filepath.Join(bundle, "config.json")
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if errors.Is(err, os.ErrExist) {
		return fault.Conflictf("file %s exists. Remove it first", file)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	return errors.Join(err, f.Close())
}
