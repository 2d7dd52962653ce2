package linux

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The questions below ask the kernel without changing anything: a call with arguments
// that can only fail tells by its error whether it is known.

// known reports whether err is anything but "this kernel has no such call".
func known(err error) bool { return !errors.Is(err, unix.ENOSYS) }

// HasOpenat2 reports openat2(2), Linux 5.6.
func HasOpenat2() bool {
	fd, err := unix.Openat2(unix.AT_FDCWD, ".", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC})
	if err == nil {
		unix.Close(fd)
	}
	return err == nil
}

// HasPidfd reports pidfd_open(2), Linux 5.3.
func HasPidfd() bool {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err == nil {
		unix.Close(fd)
	}
	return err == nil
}

// HasMountSetattr reports mount_setattr(2), Linux 5.12, which idmapped mounts need.
func HasMountSetattr() bool {
	return known(unix.MountSetattr(-1, "", 0, &unix.MountAttr{}))
}

// HasNewMount reports fsopen(2) and move_mount(2), Linux 5.2.
func HasNewMount() bool {
	fd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err == nil {
		unix.Close(fd)
	}
	return known(err)
}

// HasCgroupClone reports clone3(2) with CLONE_INTO_CGROUP, Linux 5.7: the struct is one
// field longer there, and a size that is unknown is told apart from a bad argument.
func HasCgroupClone() bool {
	// Version 2 of struct clone_args with an exit signal that does not exist: EINVAL before
	// anything is cloned. An older kernel answers E2BIG to the non-zero last field.
	args := [11]uint64{4: 0xff00, 10: 1}
	_, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
	return errno == unix.EINVAL || errno == unix.EBADF
}

// HasNamespace reports whether the kernel knows a namespace by its name in /proc.
func HasNamespace(name string) bool {
	_, err := os.Lstat("/proc/self/ns/" + name)
	return err == nil
}

// HasFilesystem reports whether a file system is registered (proc(5), filesystems).
func HasFilesystem(name string) bool {
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) > 0 && f[len(f)-1] == name {
			return true
		}
	}
	return false
}

// HasSeccompFilter reports whether system calls can be filtered (seccomp(2)).
func HasSeccompFilter() bool {
	_, err := os.Stat("/proc/sys/kernel/seccomp/actions_avail")
	return err == nil
}

// HasAppArmor reports whether AppArmor confines processes on this host.
func HasAppArmor() bool {
	b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.HasPrefix(string(b), "Y")
}

// HasSELinux reports whether SELinux labels processes on this host.
func HasSELinux() bool {
	_, err := os.Stat("/sys/fs/selinux/enforce")
	return err == nil
}

// HasNftables asks the kernel for the generation of its rules (NFT_MSG_GETGEN); it loads the
// module when it can.
func HasNftables() bool {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	const getGen = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN
	msg := make([]byte, unix.SizeofNlMsghdr+4)
	h := (*unix.NlMsghdr)(unsafe.Pointer(&msg[0]))
	h.Len, h.Type, h.Flags, h.Seq = uint32(len(msg)), getGen, unix.NLM_F_REQUEST, 1
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return false
	}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1})
	buf := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil || n < unix.SizeofNlMsghdr {
		return false
	}
	return (*unix.NlMsghdr)(unsafe.Pointer(&buf[0])).Type != unix.NLMSG_ERROR
}

// HasCapability reports whether the process may ever use the capability with this number
// (its bounding set).
func HasCapability(n int) bool {
	ok, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(n), 0, 0, 0)
	return err == nil && ok == 1
}

// CgroupVersion is 2 for the unified hierarchy and 1 otherwise, hybrid included; 0 without any.
func CgroupVersion() int {
	var st unix.Statfs_t
	if unix.Statfs("/sys/fs/cgroup", &st) != nil {
		return 0
	}
	if int64(uint32(st.Type)) == unix.CGROUP2_SUPER_MAGIC {
		return 2
	}
	if _, err := os.Stat("/sys/fs/cgroup/memory"); err == nil {
		return 1
	}
	if ents, err := os.ReadDir("/sys/fs/cgroup"); err == nil && len(ents) > 0 {
		return 1
	}
	return 0
}

// CgroupControllers lists what can be limited.
func CgroupControllers() []string {
	if CgroupVersion() == 2 {
		b, _ := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
		return strings.Fields(string(b))
	}
	b, _ := os.ReadFile("/proc/cgroups")
	var cs []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) == 4 && f[3] == "1" && f[0][0] != '#' {
			cs = append(cs, f[0])
		}
	}
	return cs
}

// MemTotal is the memory of the host in bytes.
func MemTotal() int64 {
	b, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) >= 2 && f[0] == "MemTotal:" {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n << 10
		}
	}
	return 0
}

// KernelAtLeast compares the running kernel's version.
func KernelAtLeast(major, minor int) bool { return versionAtLeast(Kernel(), major, minor) }

func versionAtLeast(release string, major, minor int) bool {
	a, rest, _ := strings.Cut(release, ".")
	b := rest
	if i := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		b = rest[:i]
	}
	ma, _ := strconv.Atoi(a)
	mi, _ := strconv.Atoi(b)
	return ma > major || ma == major && mi >= minor
}

// InUserNS reports whether this process is in a user namespace of its own, where even root may not do
// everything: the initial one maps all ids to themselves.
func InUserNS() bool { return ownMap() != initialMap }

// SingleID reports a user namespace with one id: files can be given to nobody.
func SingleID() bool {
	f := strings.Fields(ownMap())
	return len(f) == 3 && f[2] == "1"
}

const initialMap = "0 0 4294967295"

// ownMap is this process's uid_map with one space between words.
var ownMap = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return initialMap
	}
	return strings.Join(strings.Fields(string(b)), " ")
})

// OwnIDs tells from uid_map or gid_map what our id 0 is outside of our user namespace, and how many
// ids follow each other from 0.
func OwnIDs(file string) (outer, size uint32) {
	b, _ := os.ReadFile("/proc/self/" + file)
	for line := range strings.Lines(string(b)) {
		var in, out, n uint32
		if _, err := fmt.Sscan(line, &in, &out, &n); err != nil {
			continue
		}
		if in == 0 {
			outer = out
		}
		if in == size {
			size += n
		}
	}
	return outer, size
}
