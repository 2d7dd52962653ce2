package sandbox

// What the root of a user namespace cannot do, and what is done instead.

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
)

// substitute replaces the mounts that show a namespace of the host's by the host's own: a sysfs
// belongs to a network namespace and a procfs to a pid namespace, and only their owners may mount
// new ones.
func (b *box) substitute(m specs.Mount) specs.Mount {
	if !linux.InUserNS() && !b.inUserNS() {
		return m
	}
	source := ""
	switch {
	case m.Type == "sysfs" && !b.owns(specs.NetworkNamespace):
		source = "/sys"
	case m.Type == "proc" && !b.owns(specs.PIDNamespace):
		source = "/proc"
	default:
		return m
	}
	m.Type, m.Source = "bind", source
	m.Options = append([]string{"rbind"}, m.Options...)
	return m
}

// borrowProc keeps the engine's procfs for who cannot mount one: only the owner of a pid namespace may. Parameters that
// are reached through it are those of the process's own namespaces.
func (b *box) borrowProc(l *layout) error {
	if !linux.InUserNS() && !b.inUserNS() || b.owns(specs.PIDNamespace) {
		return nil
	}
	fd, err := unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/proc", Err: err}
	}
	b.keepFD("procfs", fd)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil || fs.Type != unix.PROC_SUPER_MAGIC {
		return fmt.Errorf("the engine's /proc is no procfs")
	}
	l.hostProc = true
	return nil
}

// owns tells whether the container has a namespace that is not the host's.
func (b *box) owns(t specs.LinuxNamespaceType) bool {
	return t == specs.NetworkNamespace && b.o.NetNS >= 0 ||
		slices.ContainsFunc(b.spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == t })
}

// bindDevice shows the host's device node on name in dir: a node made in a user namespace would be
// refused, and one made by the host's root for all to see need not be made again.
func (b *box) bindDevice(d *deviceNode, dir int, name string) error {
	source, err := hostNode(d)
	if err != nil {
		return err
	}
	fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o666)
	if err == nil {
		unix.Close(fd)
	} else if !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make device %s: %w", d.path, err)
	}
	target, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make device %s: %w", d.path, err)
	}
	n := len(b.mounts)
	b.keepFD(fmt.Sprint("device-target", n), target)
	tree, err := cloneTree(unix.AT_FDCWD, source, false)
	if err != nil {
		return fmt.Errorf("bind device %s: %w", source, err)
	}
	b.keepFD(fmt.Sprint("device", n), tree)
	if !sameDevice(tree, d) {
		return fmt.Errorf("bind device %s: it was replaced meanwhile", source)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE}
	if err := setAttr(tree, false, &attr); err != nil {
		return fmt.Errorf("bind device %s: %w", source, err)
	}
	b.mounts = append(b.mounts, attachment{object: source + " on " + d.path, source: fmt.Sprint("device", n),
		target: fmt.Sprint("device-target", n), path: d.path, opts: mountOptions{bind: true}})
	return nil
}

func sameDevice(fd int, d *deviceNode) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && d.is(&st)
}

func (d *deviceNode) is(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == d.mode&unix.S_IFMT && st.Rdev == unix.Mkdev(d.major, d.minor)
}

// hostNode is the host's node for d, by the same name if it can be.
func hostNode(d *deviceNode) (string, error) {
	var st unix.Stat_t
	if unix.Stat(d.path, &st) == nil && d.is(&st) {
		return d.path, nil
	}
	found := ""
	_ = filepath.WalkDir("/dev", func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.Type()&fs.ModeDevice != 0 && unix.Lstat(p, &st) == nil && d.is(&st) {
			found = p
			return fs.SkipAll
		}
		return nil
	})
	if found == "" {
		return "", fault.NotFoundf("device %s (%d:%d): the host has no such node, and an ordinary user cannot make one", d.path, d.major, d.minor)
	}
	return found, nil
}

// fitSysctls keeps the range of groups that may ping to those that exist in the container's user
// namespace: the kernel refuses others.
func (b *box) fitSysctls(list []sysctl) {
	if !linux.InUserNS() && !b.inUserNS() {
		return
	}
	for i := range list {
		if s := &list[i]; s.file == "net/ipv4/ping_group_range" && s.value == "0 2147483647" {
			s.value = fmt.Sprintf("0 %d", b.lastGID())
		}
	}
}

// PingRange is the range of groups that may ping, as wide as the engine's user namespace lets it be.
func PingRange() string { return fmt.Sprintf("0 %d", lastID(ownGIDs())) }

func (b *box) lastGID() uint32 {
	if ids := b.gidMap(); len(ids) > 0 {
		return lastID(ids)
	}
	return lastID(ownGIDs())
}

// lastID is the highest id of those that follow each other from 0.
func lastID(ids []specs.LinuxIDMapping) (last uint32) {
	ids = slices.Clone(ids)
	slices.SortFunc(ids, func(x, y specs.LinuxIDMapping) int { return cmp.Compare(x.ContainerID, y.ContainerID) })
	for _, m := range ids {
		if m.ContainerID <= last+1 {
			last = max(last, m.ContainerID+m.Size-1)
		}
	}
	return min(last, 1<<31-1)
}

// ownGIDs are the ids of the user namespace that we are in.
func ownGIDs() (out []specs.LinuxIDMapping) {
	b, _ := os.ReadFile("/proc/self/gid_map")
	for line := range strings.Lines(string(b)) {
		var m specs.LinuxIDMapping
		if _, err := fmt.Sscan(line, &m.ContainerID, &m.HostID, &m.Size); err == nil {
			out = append(out, m)
		}
	}
	return out
}

// owner is who makes what is missing in a root whose ids are shifted: to it, we are nobody.
type owner struct{ uid, gid int }

// become makes this thread's new files the owner's (setfsuid(2)) until the returned function is called.
func (t *tree) become() (back func()) {
	if t.owner == nil || t.owner.uid == 0 {
		return func() {}
	}
	_ = unix.Setfsgid(t.owner.gid)
	_ = unix.Setfsuid(t.owner.uid)
	return func() {
		_ = unix.Setfsuid(0)
		_ = unix.Setfsgid(0)
	}
}

// holds tells whether the host's id has a number in a container with this map.
func holds(ids []specs.LinuxIDMapping, host uint32) bool {
	return slices.ContainsFunc(ids, func(m specs.LinuxIDMapping) bool { return host >= m.HostID && host-m.HostID < m.Size })
}

// knownGroups leaves out a group that our own user namespace lacks, as it does when it has one id.
func knownGroups(data []string) []string {
	if !linux.SingleID() {
		return data
	}
	return slices.DeleteFunc(slices.Clone(data), func(d string) bool {
		return strings.HasPrefix(d, "gid=") && d != "gid=0" || strings.HasPrefix(d, "uid=") && d != "uid=0"
	})
}
