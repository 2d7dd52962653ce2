package main

// System calls, with arguments that do nothing even where they are allowed.

import (
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

func raw(nr uintptr, a ...uintptr) error {
	var b [6]uintptr
	copy(b[:], a)
	r, _, e := unix.RawSyscall6(nr, b[0], b[1], b[2], b[3], b[4], b[5])
	if e != 0 {
		return e
	}
	_ = r
	return nil
}

func socket(domain, typ, proto int) func() error {
	return func() error {
		fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC, proto)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
}

func calls(w io.Writer) {
	path := func(s string) uintptr { p, _ := unix.BytePtrFromString(s); return uintptr(unsafe.Pointer(p)) }
	none := path("/nowhere")
	for _, c := range []struct {
		name string
		call func() error
	}{
		{"unshare mount", func() error { return raw(unix.SYS_UNSHARE, unix.CLONE_NEWNS) }},
		{"unshare user", func() error { return raw(unix.SYS_UNSHARE, unix.CLONE_NEWUSER) }},
		{"unshare cgroup", func() error { return raw(unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP) }},
		{"setns", func() error { return raw(unix.SYS_SETNS, ^uintptr(0), 0) }},
		{"clone3", func() error { return raw(unix.SYS_CLONE3, 0, 0) }},
		{"mount", func() error { return raw(unix.SYS_MOUNT, none, none, 0, 0, 0) }},
		{"umount", func() error { return raw(unix.SYS_UMOUNT2, none, 0) }},
		{"pivot_root", func() error { return raw(unix.SYS_PIVOT_ROOT, none, none) }},
		{"fsopen", func() error { return raw(unix.SYS_FSOPEN, none, 0) }},
		{"open_tree", func() error { return raw(unix.SYS_OPEN_TREE, ^uintptr(0), none, 0) }},
		{"move_mount", func() error { return raw(unix.SYS_MOVE_MOUNT, 0, none, 0, none, 0) }},
		{"open_by_handle_at", func() error { return raw(unix.SYS_OPEN_BY_HANDLE_AT, 0, 0, 0) }},
		{"chroot", func() error { return raw(unix.SYS_CHROOT, none) }},
		{"bpf", func() error { return raw(unix.SYS_BPF, 99, 0, 0) }},
		{"perf_event_open", func() error { return raw(unix.SYS_PERF_EVENT_OPEN, 0, 0, 0, 0, 0) }},
		{"userfaultfd", func() error { return raw(unix.SYS_USERFAULTFD, ^uintptr(0)) }},
		{"io_uring_setup", func() error { return raw(unix.SYS_IO_URING_SETUP, 0, 0) }},
		{"keyctl", func() error { return raw(unix.SYS_KEYCTL, 99) }},
		{"add_key", func() error { return raw(unix.SYS_ADD_KEY, 0, 0, 0, 0, 0) }},
		{"request_key", func() error { return raw(unix.SYS_REQUEST_KEY, 0, 0, 0, 0) }},
		{"init_module", func() error { return raw(unix.SYS_INIT_MODULE, 0, 0, 0) }},
		{"delete_module", func() error { return raw(unix.SYS_DELETE_MODULE, none, 0) }},
		{"kexec_load", func() error { return raw(unix.SYS_KEXEC_LOAD, 0, 0, 0, 0) }},
		{"reboot", func() error { return raw(unix.SYS_REBOOT, 0, 0, 0, 0) }},
		{"swapon", func() error { return raw(unix.SYS_SWAPON, none, 0) }},
		{"acct", func() error { return raw(unix.SYS_ACCT, none) }},
		{"quotactl", func() error { return raw(unix.SYS_QUOTACTL, 0, 0, 0, 0) }},
		{"settimeofday", func() error { return raw(unix.SYS_SETTIMEOFDAY, 0, 0) }},
		{"syslog", func() error { return raw(unix.SYS_SYSLOG, 10, 0, 0) }},
		{"process_vm_readv", func() error { return raw(unix.SYS_PROCESS_VM_READV, ^uintptr(0), 0, 0, 0, 0, 0) }},
		{"kcmp", func() error { return raw(unix.SYS_KCMP, 0, 0, 0, 0, 0) }},
		{"move_pages", func() error { return raw(unix.SYS_MOVE_PAGES, ^uintptr(0), 0, 0, 0, 0, 0) }},
		{"a call of the future", func() error { return raw(900) }},
		{"personality of Linux", func() error { return raw(unix.SYS_PERSONALITY, 0xffffffff) }},
		{"personality without randomness", func() error { return raw(unix.SYS_PERSONALITY, 0x40000) }},
		{"socket of the Internet", socket(unix.AF_INET, unix.SOCK_STREAM, 0)},
		{"socket, raw", socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)},
		{"socket of routes", socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)},
		{"socket of the kernel's ciphers", socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0)},
		{"socket of the hypervisor", socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)},
		{"memfd_create", func() error {
			fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}},
		{"kill -0 of itself", func() error { return unix.Kill(os.Getpid(), 0) }},
	} {
		fmt.Fprintln(w, "call", c.name, errno(c.call()))
	}
}
