package sandbox

// Which namespaces a process is born into, and which it joins.

import (
	"fmt"
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
)

// namespaces is the decision: flags for clone, names of descriptors to join.
type namespaces struct {
	clone  uint64       // CLONE_NEW* at birth, all but the cgroup namespace
	cgroup bool         // unshared by the child once it is in its cgroup
	joins  []joined     // entered by the child, in order
	pid    string       // path of a pid namespace to be born in
	mnt    string       // path of the mount namespace to end in, "" for the one born in
	own    map[int]bool // CLONE_NEW*: not shared with the engine
}

type joined struct {
	flag int
	name string // of the descriptor
	path string // to open it; "" when the caller gave a descriptor
}

const cloneNewTime = 0x80

func namespaceFlag(t specs.LinuxNamespaceType) (int, bool) {
	switch t {
	case specs.PIDNamespace:
		return unix.CLONE_NEWPID, true
	case specs.NetworkNamespace:
		return unix.CLONE_NEWNET, true
	case specs.MountNamespace:
		return unix.CLONE_NEWNS, true
	case specs.IPCNamespace:
		return unix.CLONE_NEWIPC, true
	case specs.UTSNamespace:
		return unix.CLONE_NEWUTS, true
	case specs.UserNamespace:
		return unix.CLONE_NEWUSER, true
	case specs.CgroupNamespace:
		return unix.CLONE_NEWCGROUP, true
	case specs.TimeNamespace:
		return cloneNewTime, true
	}
	return 0, false
}

// decideNamespaces reads the spec's list. netFD tells that the caller brings a network namespace.
func decideNamespaces(list []specs.LinuxNamespace, netFD bool) (n namespaces, err error) {
	n.own = map[int]bool{}
	for _, ns := range list {
		flag, ok := namespaceFlag(ns.Type)
		if !ok {
			return n, fault.Invalidf("unknown namespace type %q", ns.Type)
		}
		if n.own[flag] {
			return n, fault.Invalidf("namespace %q is given twice", ns.Type)
		}
		n.own[flag] = true
		switch {
		case ns.Path == "" && flag == unix.CLONE_NEWCGROUP:
			n.cgroup = true
		case ns.Path == "" && flag == unix.CLONE_NEWNET && netFD:
		case ns.Path == "":
			n.clone |= uint64(flag)
		case flag == unix.CLONE_NEWNS:
			n.mnt = ns.Path
		case flag == unix.CLONE_NEWPID:
			n.pid = ns.Path
		case flag == unix.CLONE_NEWNET && netFD:
		default:
			n.joins = append(n.joins, joined{flag, "ns-" + string(ns.Type), ns.Path})
		}
	}
	if netFD {
		n.own[unix.CLONE_NEWNET] = true
		n.joins = append(n.joins, joined{unix.CLONE_NEWNET, "netns", ""})
	}
	if n.clone&unix.CLONE_NEWNS == 0 {
		// The root is furnished in a namespace of its own all the same, and taken along.
		n.clone |= unix.CLONE_NEWNS
		if n.mnt == "" {
			n.mnt = "/proc/self/ns/mnt"
		}
		if n.clone&unix.CLONE_NEWUSER != 0 {
			return n, fault.Unsupportedf("a new user namespace needs a new mount namespace, too")
		}
	}
	if n.clone&unix.CLONE_NEWUSER != 0 && len(n.joins) > 0 {
		return n, fault.Unsupportedf("joining namespaces from a new user namespace is not supported")
	}
	return n, nil
}

// timeOffsets is the text that /proc/self/timens_offsets wants (time_namespaces(7)).
func timeOffsets(l *specs.Linux, ns *namespaces) (string, error) {
	if len(l.TimeOffsets) == 0 {
		return "", nil
	}
	if ns.clone&cloneNewTime == 0 {
		return "", fault.Invalidf("clock offsets need a time namespace of the container's own")
	}
	if !linux.KernelAtLeast(6, 1) {
		return "", fault.Unsupportedf("clock offsets need Linux 6.1; this is %s", linux.Kernel())
	}
	ns.clone &^= cloneNewTime // made by the child: the offsets come before its first process
	var b strings.Builder
	for clock, o := range l.TimeOffsets {
		if clock != "monotonic" && clock != "boottime" || o.Nanosecs >= 1e9 {
			return "", fault.Invalidf("invalid offset of the clock %q", clock)
		}
		fmt.Fprintf(&b, "%s %d %d\n", clock, o.Secs, o.Nanosecs)
	}
	return b.String(), nil
}

// mapIDs writes the maps of a new user namespace.
func mapIDs(pid int, l *specs.Linux) error {
	for _, m := range []struct {
		file string
		ids  []specs.LinuxIDMapping
	}{{"uid_map", l.UIDMappings}, {"gid_map", l.GIDMappings}} {
		if err := os.WriteFile(procFile(pid, m.file), idMap(m.ids), 0); err != nil {
			return err
		}
	}
	return nil
}

func procFile(pid int, name string) string { return fmt.Sprintf("/proc/%d/%s", pid, name) }

// idMap is the text that uid_map wants (user_namespaces(7)).
func idMap(ids []specs.LinuxIDMapping) []byte {
	var b strings.Builder
	for _, m := range ids {
		fmt.Fprintf(&b, "%d %d %d\n", m.ContainerID, m.HostID, m.Size)
	}
	return []byte(b.String())
}

// hostID is what id is outside; ids without a map are themselves.
func hostID(id uint32, ids []specs.LinuxIDMapping) uint32 {
	for _, m := range ids {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return m.HostID + id - m.ContainerID
		}
	}
	return id
}

// rootOwned are the options that give a new file system to the container's root.
func rootOwned(l *specs.Linux, data []string) (out []string) {
	if !hasKey(data, "uid") {
		out = append(out, fmt.Sprintf("uid=%d", hostID(0, l.UIDMappings)))
	}
	if !hasKey(data, "gid") {
		return append(out, fmt.Sprintf("gid=%d", hostID(0, l.GIDMappings)))
	}
	for i, d := range data {
		var gid uint32
		if n, _ := fmt.Sscanf(d, "gid=%d", &gid); n == 1 {
			data[i] = fmt.Sprintf("gid=%d", hostID(gid, l.GIDMappings))
		}
	}
	return out
}
