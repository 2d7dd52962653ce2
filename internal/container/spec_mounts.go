package container

// The mounts of a spec: the kernel's file systems, then what the user asked for.

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"keg/internal/fault"
	"keg/internal/weakness"
)

// DefaultShm is the size of /dev/shm without --shm-size.
const DefaultShm = 64 << 20

func mounts(r *Record, o SpecOptions, sec Security, l *specs.Linux) ([]specs.Mount, error) {
	user, err := userMounts(r, o, l)
	if err != nil {
		return nil, err
	}
	taken := map[string]bool{}
	for _, m := range user {
		taken[m.Destination] = true
	}
	var out []specs.Mount
	for _, m := range append(systemMounts(r.Host, o, sec.WritableCgroups), fileMounts(r, o)...) {
		// What the user mounts himself is his; below his /dev nothing of ours appears.
		if taken[m.Destination] || taken["/dev"] && strings.HasPrefix(m.Destination, "/dev/") {
			continue
		}
		out = append(out, m)
	}
	// A mount must not hide one that lies below it.
	slices.SortStableFunc(user, func(a, b specs.Mount) int {
		return cmp.Compare(strings.Count(a.Destination, "/"), strings.Count(b.Destination, "/"))
	})
	return append(out, user...), nil
}

func systemMounts(h *container.HostConfig, o SpecOptions, writableCgroups bool) []specs.Mount {
	sysRO, cgroupRO := "ro", "ro"
	if h.Privileged {
		sysRO, cgroupRO = "rw", "rw"
	}
	if writableCgroups {
		cgroupRO = "rw"
	}
	m := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
			Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", sysRO}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{cgroupRO, "nosuid", "noexec", "nodev"}},
	}
	return append(m, ipcMounts(h, o)...)
}

// ipcMounts are the two file systems that belong to the IPC namespace.
func ipcMounts(h *container.HostConfig, o SpecOptions) []specs.Mount {
	mq := specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}}
	size := h.ShmSize
	if size <= 0 {
		size = DefaultShm
	}
	shm := specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
		Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=" + strconv.FormatInt(size, 10)}}
	bind := func(dst, src string) specs.Mount {
		return specs.Mount{Destination: dst, Type: "bind", Source: src, Options: []string{"rbind", "rprivate"}}
	}
	switch {
	case h.IpcMode.IsNone():
		return []specs.Mount{mq}
	case h.IpcMode.IsHost():
		return []specs.Mount{bind("/dev/mqueue", "/dev/mqueue"), bind("/dev/shm", "/dev/shm")}
	case o.ShmPath != "":
		return []specs.Mount{mq, bind("/dev/shm", o.ShmPath)}
	}
	return []specs.Mount{mq, shm}
}

// fileMounts bind the three files that the engine writes; they stay writable, as Docker's,
// unless the root is not.
func fileMounts(r *Record, o SpecOptions) (m []specs.Mount) {
	for _, f := range [][2]string{{"/etc/resolv.conf", o.Resolv}, {"/etc/hostname", o.Hostname}, {"/etc/hosts", o.Hosts}} {
		if f[1] == "" {
			continue
		}
		opts := []string{"rbind", "rprivate"}
		if r.Host.ReadonlyRootfs {
			opts = append(opts, "ro")
		}
		m = append(m, specs.Mount{Destination: f[0], Type: "bind", Source: f[1], Options: opts})
	}
	if o.InitPath != "" {
		m = append(m, specs.Mount{Destination: InitTarget, Type: "bind", Source: o.InitPath, Options: []string{"bind", "ro"}})
	}
	return m
}

func userMounts(r *Record, o SpecOptions, l *specs.Linux) ([]specs.Mount, error) {
	asked := map[string]mount.Mount{}
	for _, m := range r.Host.Mounts {
		asked[path.Clean(m.Target)] = m
	}
	var out []specs.Mount
	for _, p := range r.Mounts {
		dst := path.Clean(p.Destination)
		if err := checkTarget(dst, p.Type); err != nil {
			return nil, err
		}
		switch p.Type {
		case mount.TypeTmpfs:
			out = append(out, tmpfs(dst, tmpfsOptions(asked[dst])))
		default:
			m, err := bindMount(p, dst, asked[dst].BindOptions, l)
			if err != nil {
				return nil, err
			}
			if o.Shifted && p.Type == mount.TypeVolume {
				m.Options = append(m.Options, "idmap")
			}
			out = append(out, m)
		}
	}
	for dst, opts := range r.Host.Tmpfs {
		dst = path.Clean(dst)
		if err := checkTarget(dst, mount.TypeTmpfs); err != nil {
			return nil, err
		}
		if slices.ContainsFunc(out, func(m specs.Mount) bool { return m.Destination == dst }) {
			continue // listed among the mount points already
		}
		out = append(out, tmpfs(dst, splitOptions(opts)))
	}
	// Maps have no order, specs do.
	slices.SortFunc(out, func(a, b specs.Mount) int { return cmp.Compare(a.Destination, b.Destination) })
	return out, nil
}

func splitOptions(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// tmpfs takes Docker's defaults unless an option says the contrary.
func tmpfs(dst string, opts []string) specs.Mount {
	all := []string{}
	for _, d := range []string{"noexec", "nosuid", "nodev"} {
		if !slices.Contains(opts, strings.TrimPrefix(d, "no")) {
			all = append(all, d)
		}
	}
	return specs.Mount{Destination: dst, Type: "tmpfs", Source: "tmpfs", Options: append(all, opts...)}
}

func tmpfsOptions(m mount.Mount) (opts []string) {
	if m.ReadOnly {
		opts = append(opts, "ro")
	}
	t := m.TmpfsOptions
	if t == nil {
		return opts
	}
	if t.Mode != 0 {
		opts = append(opts, fmt.Sprintf("mode=%o", t.Mode))
	}
	if t.SizeBytes != 0 {
		opts = append(opts, "size="+strconv.FormatInt(t.SizeBytes, 10))
	}
	for _, o := range t.Options {
		opts = append(opts, strings.Join(o, "="))
	}
	return opts
}

func bindMount(p container.MountPoint, dst string, b *mount.BindOptions, l *specs.Linux) (specs.Mount, error) {
	opts := []string{"rbind"}
	if b != nil && b.NonRecursive {
		opts[0] = "bind"
	}
	prop := p.Propagation
	if prop == "" {
		prop = mount.PropagationRPrivate
	}
	if !slices.Contains(mount.Propagations, prop) {
		return specs.Mount{}, fault.Invalidf("invalid mount propagation %q for %s", prop, dst)
	}
	opts = append(opts, string(prop))
	switch prop {
	case mount.PropagationShared, mount.PropagationRShared:
		l.RootfsPropagation = "shared"
	case mount.PropagationSlave, mount.PropagationRSlave:
		if l.RootfsPropagation != "shared" {
			l.RootfsPropagation = "rslave"
		}
	}
	if !p.RW {
		opts = append(opts, "ro")
		if b == nil || !b.ReadOnlyNonRecursive && !b.NonRecursive {
			opts = append(opts, "rro")
		}
	}
	return specs.Mount{Destination: dst, Type: "bind", Source: p.Source, Options: opts}, nil
}

// procFiles may be covered by a bind mount: what lxcfs and alike replace.
var procFiles = [...]string{"/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps", "/proc/uptime",
	"/proc/loadavg", "/proc/slabinfo", "/proc/net/dev", "/proc/sys/kernel/ns_last_pid", "/proc/sys/crypto/fips_enabled"}

// checkTarget refuses mounts that would uncover what is masked (CVE-2019-16884, CVE-2015-3631): anything
// over /proc, and volumes, which an image can ask for, over /sys.
func checkTarget(dst string, t mount.Type) error {
	if weakness.Of("RT7") {
		return nil
	}
	switch {
	case !path.IsAbs(dst):
		return fault.Invalidf("invalid mount target %q: it must be an absolute path", dst)
	case dst == "/":
		return fault.Invalidf("invalid specification: destination can't be '/'")
	case within(dst, "/proc") && !(t == mount.TypeBind && slices.Contains(procFiles[:], dst)):
		return fault.Invalidf("%q cannot be mounted because it is inside /proc", dst)
	case within(dst, "/sys") && t != mount.TypeBind && t != mount.TypeTmpfs:
		return fault.Invalidf("%q cannot be a volume because it is inside /sys", dst)
	}
	return nil
}

func within(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }
