package sandbox

// Kernel parameters that belong to a namespace of the container.

import (
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/weakness"
)

type sysctl struct{ file, value string }

// namespacedBy tells which namespace a parameter belongs to; 0: none, so nobody may set it.
func namespacedBy(key string) int {
	switch key {
	case "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax",
		"kernel.shmmni", "kernel.shm_rmid_forced":
		return unix.CLONE_NEWIPC
	case "kernel.domainname":
		return unix.CLONE_NEWUTS
	}
	switch {
	case strings.HasPrefix(key, "fs.mqueue."):
		return unix.CLONE_NEWIPC
	case strings.HasPrefix(key, "net."):
		return unix.CLONE_NEWNET
	}
	return 0
}

// planSysctls checks the spec's parameters against the namespaces that are the container's own
// and returns the files below /proc/sys, sorted.
func planSysctls(m map[string]string, own map[int]bool) (out []sysctl, err error) {
	for k, v := range m {
		key, file := sysctlNames(k)
		if !weakness.Of("RT17") && (strings.ContainsAny(k+v, "\x00\n+") || strings.Contains(file, "..") || file == "") {
			return nil, fault.Invalidf("invalid sysctl %q", k)
		}
		flag := namespacedBy(key)
		switch {
		case weakness.Of("RT17"):
		case flag == 0:
			return nil, fault.Invalidf("sysctl %q is not in a separate kernel namespace", k)
		case !own[flag] && flag == unix.CLONE_NEWNET:
			return nil, fault.Invalidf("sysctl %q not allowed in host network namespace", k)
		case !own[flag]:
			return nil, fault.Invalidf("sysctl %q is not allowed in the host's %s namespace", k, map[int]string{unix.CLONE_NEWIPC: "ipc", unix.CLONE_NEWUTS: "uts"}[flag])
		}
		out = append(out, sysctl{file, v})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].file < out[j].file })
	return out, nil
}

// sysctlNames: as in sysctl(8) the first separator decides whether "." or "/" separates; the
// other one is then part of a name (net/ipv4/conf/eth0.100/forwarding).
func sysctlNames(k string) (dotted, file string) {
	swap := strings.NewReplacer(".", "/", "/", ".")
	if i := strings.IndexAny(k, "./"); i >= 0 && k[i] == '/' {
		return swap.Replace(k), k
	}
	return k, swap.Replace(k)
}
