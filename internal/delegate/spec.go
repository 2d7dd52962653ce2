package delegate

// The sandbox's spec in the words that every runtime understands.

import (
	"fmt"
	"maps"
	"os"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"keg/internal/linux"
	"keg/internal/sandbox"
	"keg/internal/sandbox/seccomp"
)

// Translate returns a copy of spec in which everything that the sandbox takes by descriptor or adds by
// itself is said: the root, the network namespace, the cgroup and the default seccomp profile. What the engine
// may not give is taken out with a warning, since runtimes fail on it.
func Translate(spec *specs.Spec, o sandbox.Options, rootfs string) (*specs.Spec, []string, error) {
	s := *spec
	s.Root = &specs.Root{Path: rootfs}
	if spec.Root != nil {
		s.Root.Readonly = spec.Root.Readonly
	}
	var warnings []string
	s.Process, warnings = sandbox.Attainable(spec.Process)
	if a := s.Process.ApparmorProfile; a != "" && !linux.HasAppArmor() {
		s.Process.ApparmorProfile = "" // runtimes fail on it
		if a != "unconfined" {
			warnings = append(warnings, "AppArmor is not enabled on this host: profile "+a+" is not applied")
		}
	}
	l := *spec.Linux
	s.Linux = &l
	if o.Cgroup != "" {
		l.CgroupsPath = "/" + o.Cgroup
	}
	if noCgroup() {
		l.CgroupsPath, l.Resources = "", nil
	}
	const ping = "net.ipv4.ping_group_range"
	if linux.InUserNS() && l.Sysctl[ping] == "0 2147483647" {
		l.Sysctl = maps.Clone(l.Sysctl)
		l.Sysctl[ping] = sandbox.PingRange()
	}
	// Runtimes of before 2024 fail on a time namespace, which without offsets shows the host's clocks anyway.
	l.Namespaces = slices.DeleteFunc(slices.Clone(l.Namespaces), func(n specs.LinuxNamespace) bool { return n.Type == specs.TimeNamespace && n.Path == "" })
	if o.NetNS >= 0 {
		l.Namespaces = joinNet(l.Namespaces, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), o.NetNS))
	}
	if l.Seccomp == nil && o.DefaultSeccomp {
		var caps []string
		if c := s.Process.Capabilities; c != nil {
			caps = c.Bounding
		}
		policy, err := seccomp.DefaultPolicy(caps)
		if err != nil {
			return nil, nil, err
		}
		l.Seccomp = policy
	}
	return &s, warnings, nil
}

// noCgroup tells of an ordinary user that he was given none, as he is told.
func noCgroup() bool { return linux.InUserNS() && !linux.DelegatedCgroup().Inside }

func joinNet(list []specs.LinuxNamespace, path string) (out []specs.LinuxNamespace) {
	for _, n := range list {
		if n.Type != specs.NetworkNamespace {
			out = append(out, n)
		}
	}
	return append(out, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: path})
}
