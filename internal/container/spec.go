package container

// From record to OCI spec. Everything here is pure: what the host adds comes in SpecOptions.

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	cdi "tags.cncf.io/container-device-interface/specs-go"

	"keg/internal/fault"
	"keg/internal/weakness"
)

// DefaultPath is the PATH of a container whose image sets none.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// InitTarget is where --init's init is bound.
const InitTarget = "/sbin/docker-init"

// SpecOptions is what the host adds to a record.
type SpecOptions struct {
	UID, GID                uint32
	AdditionalGids          []uint32
	Home                    string
	Hosts, Resolv, Hostname string // paths of files to bind
	CgroupV2                bool
	Masked                  []string // masked beside the defaults
	InitPath                string   // --init: path of the init to bind, or ""

	// TimeNS gives the container clocks of its own, where the kernel has them.
	TimeNS bool
	// AppArmor is the profile of whoever names none, "" where there is no AppArmor.
	AppArmor string
	// CDI is what the devices of CDIDevices ask for.
	CDI []cdi.ContainerEdits
	// Seccomp is the policy; nil leaves the choice to whoever starts the spec.
	Seccomp *specs.LinuxSeccomp
	// NetNS, PidNS, IpcNS are paths of the namespaces of another container
	// ("container:ID"); ShmPath is a /dev/shm shared with others (IpcMode shareable, container:ID).
	NetNS, PidNS, IpcNS, ShmPath string
	// UIDMappings and GIDMappings are of a user namespace of the container's own; Shifted says that
	// volumes have on disk the owners that the container sees.
	UIDMappings, GIDMappings []specs.LinuxIDMapping
	Shifted                  bool
	// Devices tells what a host path of --device is: one device, or those below a directory.
	Devices func(path string) ([]specs.LinuxDevice, error)
	// HostDevices are all of the host's, for --privileged.
	HostDevices []specs.LinuxDevice
}

// Spec returns the OCI spec of a record. It is pure: golden tests need no privileges.
func Spec(r *Record, o SpecOptions) (*specs.Spec, error) {
	sec, err := ParseSecurity(r.Host)
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{
		Version:     specs.Version,
		Root:        &specs.Root{Path: "rootfs", Readonly: r.Host.ReadonlyRootfs},
		Hostname:    hostname(r),
		Domainname:  r.Config.Domainname,
		Annotations: maps.Clone(r.Host.Annotations),
		Linux:       &specs.Linux{Seccomp: o.Seccomp, RootfsPropagation: "rprivate", MountLabel: sec.MountLabel},
	}
	if r.Host.UTSMode.IsHost() {
		s.Hostname, s.Domainname = "", ""
	}
	if s.Process, err = process(r, o, sec); err != nil {
		return nil, err
	}
	if sec.WritableCgroups && (!o.CgroupV2 || !r.Host.CgroupnsMode.IsPrivate() && !r.Host.CgroupnsMode.IsEmpty()) {
		// On version 1 release_agent would run programs on the host.
		return nil, fault.Unsupportedf("writable-cgroups needs cgroup version 2 and a cgroup namespace of the container's own (--cgroupns=private)")
	}
	s.Linux.Namespaces = namespaces(r, o)
	s.Linux.UIDMappings, s.Linux.GIDMappings = o.UIDMappings, o.GIDMappings
	if s.Mounts, err = mounts(r, o, sec, s.Linux); err != nil {
		return nil, err
	}
	if err := resources(r, o, s.Linux); err != nil {
		return nil, err
	}
	if s.Linux.Sysctl, err = sysctls(r.Host); err != nil {
		return nil, err
	}
	hide(r.Host, o, s.Linux)
	for i := range o.CDI {
		if err := edit(s, &o.CDI[i], o); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func hostname(r *Record) string {
	if r.Config.Hostname != "" || r.ID == "" {
		return r.Config.Hostname
	}
	return r.ID[:min(12, len(r.ID))]
}

func process(r *Record, o SpecOptions, sec Security) (*specs.Process, error) {
	args := slices.Concat(r.Config.Entrypoint, r.Config.Cmd)
	if len(args) == 0 || len(args) == 1 && args[0] == "" {
		return nil, fault.Invalidf("no command specified")
	}
	if o.InitPath != "" {
		args = slices.Concat([]string{InitTarget, "--"}, args)
	}
	caps, err := capabilities(r.Host)
	if err != nil {
		return nil, err
	}
	if strings.ContainsAny(o.Home, "\n\x00") {
		return nil, fault.Invalidf("home directory of user %q has control characters", r.Config.User)
	}
	adj := r.Host.OomScoreAdj
	p := &specs.Process{
		Terminal:        r.Config.Tty,
		User:            specs.User{UID: o.UID, GID: o.GID, AdditionalGids: o.AdditionalGids, Umask: r.Host.Umask},
		Args:            args,
		Env:             Environment(r, r.Config.Tty, o.Home),
		Cwd:             workdir(r.Config.WorkingDir),
		Capabilities:    &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		NoNewPrivileges: sec.NoNewPrivileges,
		ApparmorProfile: cmp.Or(sec.AppArmor, o.AppArmor),
		SelinuxLabel:    sec.ProcessLabel,
		OOMScoreAdj:     &adj,
	}
	if h, w := r.Host.ConsoleSize[0], r.Host.ConsoleSize[1]; r.Config.Tty && h > 0 && w > 0 {
		p.ConsoleSize = &specs.Box{Height: h, Width: w}
	}
	for _, u := range r.Host.Ulimits {
		if u.Soft > u.Hard && u.Hard != -1 {
			return nil, fault.Invalidf("ulimit soft limit must be less than or equal to hard limit: %d > %d", u.Soft, u.Hard)
		}
		p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name),
			Hard: uint64(u.Hard), Soft: uint64(u.Soft)})
	}
	return p, nil
}

func workdir(d string) string {
	if d == "" {
		return "/"
	}
	return d
}

// Environment is Docker's: its own variables first, the container's replace them, HOME
// from the user's record when nobody set it.
func Environment(r *Record, tty bool, home string) []string {
	env := []string{"PATH=" + DefaultPath, "HOSTNAME=" + hostname(r)}
	if tty {
		env = append(env, "TERM=xterm")
	}
	env = MergeEnv(env, r.Config.Env)
	if home == "" {
		home = "/"
	}
	if slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "HOME=") }) {
		return env
	}
	return append(env, "HOME="+home)
}

// MergeEnv returns base with the variables of over replaced in place or added; a name
// without "=" removes.
func MergeEnv(base, over []string) []string {
	env := slices.Clone(base)
	if weakness.Of("RT23") {
		env = base
	}
	for _, kv := range over {
		k, _, set := strings.Cut(kv, "=")
		i := slices.IndexFunc(env, func(e string) bool { return strings.HasPrefix(e, k+"=") })
		switch {
		case !set && i >= 0:
			env = slices.Delete(env, i, i+1)
		case set && i >= 0:
			env[i] = kv
		case set:
			env = append(env, kv)
		}
	}
	return env
}

// namespaces by the modes. The cgroup namespace is private by default on v1 too, which
// Docker's is not (security.md section 2).
func namespaces(r *Record, o SpecOptions) []specs.LinuxNamespace {
	h := r.Host
	ns := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	add := func(t specs.LinuxNamespaceType, path string, own bool) {
		if own || path != "" {
			ns = append(ns, specs.LinuxNamespace{Type: t, Path: path})
		}
	}
	add(specs.NetworkNamespace, o.NetNS, !h.NetworkMode.IsHost())
	add(specs.UTSNamespace, "", !h.UTSMode.IsHost())
	add(specs.PIDNamespace, o.PidNS, !h.PidMode.IsHost())
	add(specs.IPCNamespace, o.IpcNS, !h.IpcMode.IsHost())
	add(specs.UserNamespace, "", len(o.UIDMappings) > 0)
	add(specs.CgroupNamespace, "", !h.CgroupnsMode.IsHost())
	add(specs.TimeNamespace, "", o.TimeNS)
	return ns
}

// sysctls adds Docker's two to those that the user asked for, which must belong to a
// namespace of the container (CVE-2022-0811: nothing else may be smuggled in).
func sysctls(h *container.HostConfig) (map[string]string, error) {
	m := map[string]string{}
	if ownNet(h) {
		m["net.ipv4.ip_unprivileged_port_start"] = "0"
		m["net.ipv4.ping_group_range"] = "0 2147483647"
	}
	for k, v := range h.Sysctls {
		if err := checkSysctl(h, k, v); err != nil {
			return nil, err
		}
		m[k] = v
	}
	if len(m) == 0 {
		return nil, nil
	}
	return m, nil
}

func ownNet(h *container.HostConfig) bool {
	return !h.NetworkMode.IsHost() && !h.NetworkMode.IsContainer()
}

var ipcSysctls = [...]string{"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall",
	"kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced"}

func checkSysctl(h *container.HostConfig, k, v string) error {
	dotted := strings.ReplaceAll(k, "/", ".")
	for _, c := range []byte(dotted) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("._-", rune(c)) {
			return fault.Invalidf("sysctl %q has characters that no sysctl has", k)
		}
	}
	if strings.Contains(dotted, "..") || strings.ContainsAny(v, "\n\x00") {
		return fault.Invalidf("sysctl %q=%q is not valid", k, v)
	}
	switch {
	case strings.HasPrefix(dotted, "net."):
		if !ownNet(h) {
			return fault.Invalidf("sysctl %q not allowed in host network namespace", k)
		}
		return nil
	case slices.Contains(ipcSysctls[:], dotted), strings.HasPrefix(dotted, "fs.mqueue."):
		if h.IpcMode.IsHost() {
			return fault.Invalidf("sysctl %q not allowed in host ipc namespace", k)
		}
		return nil
	case dotted == "kernel.domainname":
		if h.UTSMode.IsHost() {
			return fault.Invalidf("sysctl %q not allowed in host UTS namespace", k)
		}
		return nil
	}
	return fault.Invalidf("sysctl %q is not in a separate kernel namespace", k)
}

// What the kernel tells about the host and a container has no business with: moby's lists, and besides, with the default of them,
// /sys/dev/block and the page maps that a container's root could read.
var (
	maskedPaths = []string{"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware"}
	maskedBesides = []string{"/proc/kpagecgroup", "/proc/kpagecount", "/proc/kpageflags", "/sys/dev/block"}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// DefaultPaths are the paths that a container cannot read or cannot write when its host config says nothing
// of them, as Docker shows them; a few more, and what a host has besides (SpecOptions.Masked), are covered too.
func DefaultPaths() (masked, readonly []string) {
	return slices.Clone(maskedPaths), slices.Clone(readonlyPaths)
}

func hide(h *container.HostConfig, o SpecOptions, l *specs.Linux) {
	if h.Privileged {
		return
	}
	l.MaskedPaths, l.ReadonlyPaths = h.MaskedPaths, h.ReadonlyPaths
	if h.MaskedPaths == nil || slices.Equal(h.MaskedPaths, maskedPaths) { // the second is what was shown of another container
		l.MaskedPaths = slices.Concat(maskedPaths, maskedBesides, o.Masked)
		slices.Sort(l.MaskedPaths)
	}
	if h.ReadonlyPaths == nil {
		l.ReadonlyPaths = slices.Clone(readonlyPaths)
	}
}
