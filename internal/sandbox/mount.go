package sandbox

// Mount options of a spec, as the kernel's new mount calls want them.

import (
	"path"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/weakness"
)

// mountOptions is fstab's third column taken apart.
type mountOptions struct {
	bind, recursive  bool
	idmap, idmapAll  bool     // shift ids
	set, clear       uint64   // attributes of the mount itself
	allSet, allClear uint64   // attributes of the whole tree ("rro")
	propagation      uint64   // MS_PRIVATE ...; 0: not said
	spread           bool     // propagation for the whole tree
	flags            []string // of the file system, without value
	data             []string // key=value of the file system
}

type option struct{ set, clear uint64 }

// attributes maps an option to what it does to a mount (mount_setattr(2)).
func attributes(name string) (option, bool) {
	switch name {
	case "ro":
		return option{set: unix.MOUNT_ATTR_RDONLY}, true
	case "rw":
		return option{clear: unix.MOUNT_ATTR_RDONLY}, true
	case "nosuid":
		return option{set: unix.MOUNT_ATTR_NOSUID}, true
	case "suid":
		return option{clear: unix.MOUNT_ATTR_NOSUID}, true
	case "nodev":
		return option{set: unix.MOUNT_ATTR_NODEV}, true
	case "dev":
		return option{clear: unix.MOUNT_ATTR_NODEV}, true
	case "noexec":
		return option{set: unix.MOUNT_ATTR_NOEXEC}, true
	case "exec":
		return option{clear: unix.MOUNT_ATTR_NOEXEC}, true
	case "nodiratime":
		return option{set: unix.MOUNT_ATTR_NODIRATIME}, true
	case "diratime":
		return option{clear: unix.MOUNT_ATTR_NODIRATIME}, true
	case "nosymfollow":
		return option{set: unix.MOUNT_ATTR_NOSYMFOLLOW}, true
	case "symfollow":
		return option{clear: unix.MOUNT_ATTR_NOSYMFOLLOW}, true
	case "relatime", "atime", "nostrictatime":
		return option{clear: unix.MOUNT_ATTR__ATIME}, true
	case "noatime":
		return option{set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME}, true
	case "strictatime", "norelatime":
		return option{set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME}, true
	}
	return option{}, false
}

func propagation(name string) (uint64, bool) {
	switch strings.TrimPrefix(name, "r") {
	case "private":
		return unix.MS_PRIVATE, true
	case "slave":
		return unix.MS_SLAVE, true
	case "shared":
		return unix.MS_SHARED, true
	case "unbindable":
		return unix.MS_UNBINDABLE, true
	}
	return 0, false
}

func parseOptions(opts []string) (m mountOptions, err error) {
	for _, o := range opts {
		if a, ok := attributes(o); ok {
			m.set, m.clear = m.set&^a.clear|a.set, m.clear&^a.set|a.clear
			continue
		}
		if a, ok := attributes(strings.TrimPrefix(o, "r")); ok && o[0] == 'r' {
			m.allSet, m.allClear = m.allSet&^a.clear|a.set, m.allClear&^a.set|a.clear
			continue
		}
		if p, ok := propagation(o); ok {
			m.propagation, m.spread = p, o[0] == 'r'
			continue
		}
		switch o {
		case "bind":
			m.bind = true
		case "rbind":
			m.bind, m.recursive = true, true
		case "defaults", "async", "", "nomand", "noiversion", "silent", "loud":
		case "sync", "dirsync", "mand", "lazytime", "iversion":
			m.flags = append(m.flags, o)
		case "idmap":
			m.idmap = true
		case "ridmap":
			m.idmap, m.idmapAll = true, true
		case "remount", "tmpcopyup":
			return m, fault.Unsupportedf("mount option %q is not supported", o)
		default:
			m.data = append(m.data, o)
		}
	}
	return m, nil
}

// madeByChild: file systems that show the namespaces of whoever mounts them.
func madeByChild(fstype string) bool {
	switch fstype {
	case "proc", "sysfs", "mqueue":
		return true
	}
	return false
}

// A procfs or sysfs hides masks and LSM files when something is mounted over it
// (CVE-2015-3631, CVE-2019-16884). What lxcfs and the like provide is allowed.
var coverable = [...]string{"/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps",
	"/proc/uptime", "/proc/loadavg", "/proc/slabinfo", "/proc/net/dev", "/proc/sys/kernel/ns_last_pid", "/proc/sys/crypto/fips_enabled"}

func below(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// checkTarget refuses mounts of a user over the kernel's own trees. magic is the file
// system type of a bind's source.
func checkTarget(m *specs.Mount, at string, bind bool, magic int64) error {
	if weakness.Of("RT6") || weakness.Of("RT7") {
		return nil
	}
	switch {
	case below(at, "/proc"):
		if at == "/proc" && (m.Type == "proc" && !bind || bind && magic == unix.PROC_SUPER_MAGIC) {
			return nil
		}
		for _, c := range coverable {
			if at == c && bind {
				return nil
			}
		}
	case below(at, "/sys"):
		if !bind && (at == "/sys" && (m.Type == "sysfs" || m.Type == "tmpfs") || at == "/sys/fs/cgroup" || !ordinary(m.Type)) {
			return nil
		}
		if bind && kernelTree(magic) {
			return nil
		}
	default:
		return nil
	}
	return fault.Invalidf("mount %s on %s: %q cannot be mounted because it is inside %q", m.Source, m.Destination, at, "/"+strings.Split(at, "/")[1])
}

// ordinary: types whose content a user chooses.
func ordinary(fstype string) bool {
	switch fstype {
	case "tmpfs", "ramfs", "overlay", "ext4", "xfs", "btrfs", "fuse":
		return true
	}
	return false
}

func kernelTree(magic int64) bool {
	switch magic {
	case unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEBUGFS_MAGIC,
		unix.TRACEFS_MAGIC, unix.BPF_FS_MAGIC, unix.SECURITYFS_MAGIC:
		return true
	}
	return false
}

// hasKey tells whether data sets key.
func hasKey(data []string, key string) bool {
	for _, d := range data {
		if k, _, _ := strings.Cut(d, "="); k == key {
			return true
		}
	}
	return false
}

func octal(mode uint32) string { return "mode=" + strconv.FormatUint(uint64(mode&0o7777), 8) }

func cleanTarget(p string) string { return path.Clean("/" + p) }

// MountOptions lists the options that are no file system's own, for people and programs that ask.
func MountOptions() (out []string) {
	for _, o := range []string{"async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "idmap", "iversion", "lazytime", "loud", "mand",
		"noatime", "nodev", "nodiratime", "noexec", "noiversion", "nomand", "norelatime", "nostrictatime", "nosuid", "nosymfollow", "private", "rbind",
		"relatime", "ridmap", "ro", "rprivate", "rshared", "rslave", "runbindable", "rw", "shared", "silent", "slave", "strictatime", "suid", "symfollow", "sync", "unbindable"} {
		out = append(out, o)
		if _, ok := attributes(o); ok {
			out = append(out, "r"+o)
		}
	}
	return out
}
