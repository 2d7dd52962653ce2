package container

// Capabilities by name: the default sets, what is added and dropped.

import (
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"

	"keg/internal/fault"
)

// capNames in the kernel's order (capability.h).
var capNames = [...]string{"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
	"SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE",
	"SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN",
	"SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE"}

// defaultCaps are Docker's fourteen.
var defaultCaps = [...]string{"CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP",
	"SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"}

// strictDrops are the three of Docker's that hardly any program needs: without them no device node can be
// made, no packet forged, no audit record written.
var strictDrops = [...]string{"MKNOD", "NET_RAW", "AUDIT_WRITE"}

// profileCaps is the set that --cap-add and --cap-drop start from.
func profileCaps(profile string) []string {
	if profile != CapProfileStrict {
		return defaultCaps[:]
	}
	return slices.DeleteFunc(slices.Clone(defaultCaps[:]), func(c string) bool { return slices.Contains(strictDrops[:], c) })
}

// Capabilities are those that a container's root has.
func Capabilities(h *container.HostConfig) ([]string, error) { return capabilities(h) }

// capabilities applies --cap-add and --cap-drop to the profile's set, as Docker does: ALL on
// one side, exceptions on the other.
func capabilities(h *container.HostConfig) ([]string, error) {
	add, err := normalizeCaps(h.CapAdd)
	if err != nil {
		return nil, fault.Invalidf("invalid CapAdd: %w", err)
	}
	drop, err := normalizeCaps(h.CapDrop)
	if err != nil {
		return nil, fault.Invalidf("invalid CapDrop: %w", err)
	}
	sec, err := ParseSecurity(h)
	if err != nil {
		return nil, err
	}
	set := profileCaps(sec.CapProfile)
	switch {
	case h.Privileged || slices.Contains(add, "ALL"):
		set, add = capNames[:], nil
		if h.Privileged {
			drop = nil
		}
	case slices.Contains(drop, "ALL"):
		set, drop = nil, nil
	}
	var caps []string
	for _, c := range capNames {
		if (slices.Contains(set, c) || slices.Contains(add, c)) && !slices.Contains(drop, c) && !slices.Contains(drop, "ALL") {
			caps = append(caps, "CAP_"+c)
		}
	}
	return caps, nil
}

// AllCapabilities are those that the kernel knows, for exec --privileged.
func AllCapabilities() []string {
	caps, _ := capabilities(&container.HostConfig{Privileged: true})
	return caps
}

// CheckCapabilities refuses --cap-add and --cap-drop of what is no capability.
func CheckCapabilities(h *container.HostConfig) error {
	_, err := capabilities(h)
	return err
}

func normalizeCaps(list []string) ([]string, error) {
	var out []string
	for _, c := range list {
		n := strings.TrimPrefix(strings.ToUpper(c), "CAP_")
		if n != "ALL" && !slices.Contains(capNames[:], n) {
			return nil, fault.Invalidf("unknown capability: %q", "CAP_"+n)
		}
		out = append(out, n)
	}
	return out, nil
}
