package sandbox

// The names of the system calls that programs use, for golden tests and errors.

import (
	"fmt"

	"golang.org/x/sys/unix"
)

func callName(nr uintptr) string {
	switch nr {
	case opPoke:
		return "poke"
	case opCheck:
		return "check"
	case opFail:
		return "fail"
	case unix.SYS_MOUNT:
		return "mount"
	case unix.SYS_UMOUNT2:
		return "umount2"
	case unix.SYS_PIVOT_ROOT:
		return "pivot_root"
	case unix.SYS_FSOPEN:
		return "fsopen"
	case unix.SYS_FSCONFIG:
		return "fsconfig"
	case unix.SYS_FSMOUNT:
		return "fsmount"
	case unix.SYS_MOVE_MOUNT:
		return "move_mount"
	case unix.SYS_OPEN_TREE:
		return "open_tree"
	case unix.SYS_MOUNT_SETATTR:
		return "mount_setattr"
	case unix.SYS_OPENAT2:
		return "openat2"
	case unix.SYS_MKDIRAT:
		return "mkdirat"
	case unix.SYS_CHDIR:
		return "chdir"
	case unix.SYS_FCHDIR:
		return "fchdir"
	case unix.SYS_GETCWD:
		return "getcwd"
	case unix.SYS_SETNS:
		return "setns"
	case unix.SYS_UNSHARE:
		return "unshare"
	case unix.SYS_CLONE:
		return "clone"
	case unix.SYS_PRCTL:
		return "prctl"
	case unix.SYS_CAPSET:
		return "capset"
	case unix.SYS_SECCOMP:
		return "seccomp"
	case unix.SYS_SETGROUPS:
		return "setgroups"
	case unix.SYS_SETRESUID:
		return "setresuid"
	case unix.SYS_SETRESGID:
		return "setresgid"
	case unix.SYS_SETSID:
		return "setsid"
	case unix.SYS_IOCTL:
		return "ioctl"
	case unix.SYS_DUP3:
		return "dup3"
	case unix.SYS_CLOSE_RANGE:
		return "close_range"
	case unix.SYS_CLOSE:
		return "close"
	case unix.SYS_READ:
		return "read"
	case unix.SYS_WRITE:
		return "write"
	case unix.SYS_SENDTO:
		return "sendto"
	case unix.SYS_SOCKET:
		return "socket"
	case unix.SYS_UMASK:
		return "umask"
	case unix.SYS_PRLIMIT64:
		return "prlimit64"
	case unix.SYS_SETHOSTNAME:
		return "sethostname"
	case unix.SYS_SETDOMAINNAME:
		return "setdomainname"
	case unix.SYS_RT_SIGACTION:
		return "rt_sigaction"
	case unix.SYS_RT_SIGPROCMASK:
		return "rt_sigprocmask"
	case unix.SYS_PERSONALITY:
		return "personality"
	case unix.SYS_FCHOWN:
		return "fchown"
	case unix.SYS_KEYCTL:
		return "keyctl"
	case unix.SYS_ACCEPT4:
		return "accept4"
	case unix.SYS_OPENAT:
		return "openat"
	case unix.SYS_SCHED_SETATTR:
		return "sched_setattr"
	case unix.SYS_IOPRIO_SET:
		return "ioprio_set"
	case unix.SYS_EXECVE:
		return "execve"
	}
	return fmt.Sprintf("syscall_%d", nr)
}
