package engine

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"

	"keg/internal/linux"
	"keg/internal/rootless"
)

// Feature is one thing that the kernel or host offers or lacks, as a sentence.
type Feature struct {
	Name string
	OK   bool
	Text string // what it gives, or what is missing and how to get it
}

// Info is docker info plus the list of features.
type Info struct {
	ID, Name, KernelVersion, OperatingSystem, OSType, Architecture string
	NCPU                                                           int
	MemTotal                                                       int64
	Containers, Running, Paused, Stopped, Images                   int
	CgroupVersion, CgroupDriver, Storage, BackingFS, Root, Run     string
	SecurityOptions                                                []string
	Features                                                       []Feature
	Warnings                                                       []string
	Rootless                                                       bool
}

// Info tells what this engine holds and what its host can do.
func (e *Engine) Info(ctx context.Context) (Info, error) {
	list, err := e.all(ctx)
	if err != nil {
		return Info{}, err
	}
	a, err := e.album()
	if err != nil {
		return Info{}, err
	}
	backing, _, err := linux.RemoteFS(e.opt.Root)
	if err != nil {
		return Info{}, err
	}
	name, _ := os.Hostname()
	i := Info{
		ID: hostID(), Name: name, KernelVersion: linux.Kernel(), OperatingSystem: operatingSystem(), OSType: "linux",
		Architecture: machine(), NCPU: runtime.NumCPU(), MemTotal: linux.MemTotal(),
		Containers: len(list), Images: len(a.images),
		CgroupVersion: fmt.Sprint(max(linux.CgroupVersion(), 1)), CgroupDriver: "cgroupfs",
		Storage: "overlay", BackingFS: backing, Root: e.opt.Root, Run: e.opt.Run,
		Features: features(e.hostProbe()), Rootless: rootless.Inside(),
	}
	for _, c := range list {
		switch c.st.Status {
		case container.StateRunning, container.StateRestarting:
			i.Running++
		case container.StatePaused:
			i.Paused++
		default:
			i.Stopped++
		}
	}
	for _, f := range i.Features {
		if !f.OK {
			i.Warnings = append(i.Warnings, f.Text)
		}
	}
	if linux.HasSeccompFilter() {
		i.SecurityOptions = append(i.SecurityOptions, "name=seccomp,profile=builtin")
	}
	if linux.HasAppArmor() {
		i.SecurityOptions = append(i.SecurityOptions, "name=apparmor")
	}
	if i.Rootless {
		i.SecurityOptions = append(i.SecurityOptions, "name=rootless")
	}
	i.SecurityOptions = append(i.SecurityOptions, "name=cgroupns")
	return i, nil
}

// probe is what the host was found to offer; features turns it into sentences.
type probe struct {
	kernel                                          string
	kernelOK, overlay, userxattr, idmap, newMount   bool
	openat2, pidfd, cgroupClone, seccomp, apparmor  bool
	nftables, userns, timens, cgroupns, sysResource bool
	cgroup                                          int
	controllers                                     []string
	rootless                                        []rootless.Feature // of an ordinary user's engine
}

const capSysResource = 24

func (e *Engine) hostProbe() probe {
	p := probe{
		kernel: linux.Kernel(), kernelOK: linux.KernelAtLeast(5, 15),
		overlay: linux.HasFilesystem("overlay"), userxattr: linux.KernelAtLeast(5, 11),
		idmap: linux.HasMountSetattr() && linux.KernelAtLeast(5, 19), newMount: linux.HasNewMount(),
		openat2: linux.HasOpenat2(), pidfd: linux.HasPidfd(), cgroupClone: linux.HasCgroupClone(),
		seccomp: linux.HasSeccompFilter(), apparmor: linux.HasAppArmor(), nftables: linux.HasNftables(),
		userns: linux.HasNamespace("user"), timens: linux.HasNamespace("time"), cgroupns: linux.HasNamespace("cgroup"),
		sysResource: linux.HasCapability(capSysResource),
		cgroup:      linux.CgroupVersion(), controllers: linux.CgroupControllers(),
	}
	if rootless.Inside() {
		p.rootless, p.sysResource = rootless.Features(e.opt.Run), false
		p.nftables = e.networks.HasFirewall()
	}
	return p
}

// features says in a sentence each what the host offers, or what it lacks and what to do.
func features(p probe) []Feature {
	fs := []Feature{}
	add := func(name string, ok bool, have, lack string) {
		text := have
		if !ok {
			text = lack
		}
		fs = append(fs, Feature{name, ok, text})
	}
	add("kernel", p.kernelOK,
		"Linux "+p.kernel+" has all that keg relies on.",
		"Linux "+p.kernel+" is older than 5.15, the oldest that keg is tested with; upgrade the kernel.")
	add("overlay", p.overlay,
		"Layers are stacked by the kernel (overlay).",
		"The kernel has no overlay file system, so no container can start; load it with: modprobe overlay")
	add("overlay userxattr", p.userxattr,
		"Overlays also work inside user namespaces (userxattr).",
		"Overlays do not work inside user namespaces before Linux 5.11, so rootless containers cannot start; upgrade the kernel.")
	add("new mount API", p.newMount,
		"Root file systems are mounted detached and are never seen by the host (fsopen, move_mount).",
		"The kernel lacks fsopen and move_mount (Linux 5.2), so no container can start; upgrade the kernel.")
	add("idmapped mounts", p.idmap,
		"Files can be shown under other owners without a copy (idmapped overlay layers).",
		"Idmapped overlay layers need Linux 5.19; user namespaces fall back to a copy of each image. Upgrade the kernel to share it.")
	add("openat2", p.openat2,
		"Paths inside images and containers are resolved by the kernel below their root (openat2).",
		"The kernel lacks openat2 (Linux 5.6) or a seccomp filter forbids it; keg refuses to follow untrusted paths without it. Upgrade the kernel, or allow the call.")
	add("pidfd", p.pidfd,
		"Signals reach the process that is meant, even when its number was used again (pidfd).",
		"The kernel lacks pidfd_open (Linux 5.3) or a seccomp filter forbids it; containers cannot be stopped safely. Upgrade the kernel, or allow the call.")
	add("clone3 into cgroup", p.cgroupClone,
		"Processes are born inside their cgroup (clone3, used with cgroup v2).",
		"clone3 with a cgroup is not available (Linux 5.7, or a seccomp filter forbids it); starting a container takes some milliseconds more.")
	if p.rootless == nil {
		fs = append(fs, cgroupFeatures(p)...)
	}
	for _, f := range p.rootless {
		fs = append(fs, Feature(f))
	}
	add("seccomp", p.seccomp,
		"System calls are filtered with Docker's default profile (seccomp).",
		"The kernel cannot filter system calls (CONFIG_SECCOMP_FILTER); containers reach all of it. Use a kernel with seccomp.")
	add("AppArmor", p.apparmor,
		"AppArmor profiles can confine containers.",
		"AppArmor is not active; the other confinement works without it. Boot with apparmor=1 security=apparmor on a kernel that has it.")
	add("nftables", p.nftables,
		"Networks, published ports and their firewall rules work (nftables).",
		"nftables does not answer, so bridge networks and published ports do not work; load it with: modprobe nf_tables, or run with --network host or none.")
	add("user namespaces", p.userns,
		"User namespaces are available (rootless containers, --userns).",
		"The kernel has no user namespaces (CONFIG_USER_NS); rootless containers cannot start.")
	add("time namespaces", p.timens,
		"Containers can have clocks of their own (time namespaces).",
		"The kernel has no time namespaces (Linux 5.6, CONFIG_TIME_NS); containers see the host's uptime.")
	add("CAP_SYS_RESOURCE", p.sysResource,
		"Limits can be raised above those of this process.",
		"This process lacks CAP_SYS_RESOURCE: --ulimit cannot go above the limits that keg itself has, and a lower OOM score is not given. Start keg with the capability, or raise its limits.")
	return fs
}

func cgroupFeatures(p probe) []Feature {
	version := Feature{"cgroup", p.cgroup > 0, fmt.Sprintf("Limits use cgroup v%d.", p.cgroup)}
	switch p.cgroup {
	case 0:
		version.Text = "No cgroup file system is mounted on /sys/fs/cgroup, so memory, cpu and pids cannot be limited; mount it: mount -t cgroup2 none /sys/fs/cgroup"
	case 1:
		version.Text = "Limits use cgroup v1, which kernels are giving up; boot with systemd.unified_cgroup_hierarchy=1 for v2."
	}
	fs := []Feature{version}
	for _, c := range []struct{ name, flags string }{
		{"memory", "--memory"}, {"cpu", "--cpus"}, {"pids", "--pids-limit"}, {"cpuset", "--cpuset-cpus"}, {ioController(p.cgroup), "--blkio-weight, --device-read-bps"},
	} {
		f := Feature{"cgroup " + c.name, slices.Contains(p.controllers, c.name), "The cgroup controller " + c.name + " is there (" + c.flags + ")."}
		if !f.OK {
			f.Text = "The cgroup controller " + c.name + " is missing, so " + c.flags + " has no effect; enable it on the kernel's command line (cgroup_enable=" + c.name + ")."
		}
		fs = append(fs, f)
	}
	return fs
}

func ioController(version int) string {
	if version == 2 {
		return "io"
	}
	return "blkio"
}

// operatingSystem is PRETTY_NAME of os-release(5).
func operatingSystem() string {
	for _, file := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
				return strings.Trim(v, `"'`)
			}
		}
	}
	return "Linux"
}

// hostID tells one host from another (machine-id(5)).
func hostID() string {
	b, _ := os.ReadFile("/etc/machine-id")
	return strings.TrimSpace(string(b))
}

// machine is the architecture in uname's words, as docker info prints it.
func machine() string {
	switch runtime.GOARCH {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return runtime.GOARCH
}
