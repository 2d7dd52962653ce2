// Package linux holds what keg asks of the kernel and golang.org/x/sys does not
// offer ready-made: paths below an untrusted root, OFD locks, pidfds, detached
// mounts. It imports nothing of keg.
package linux

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// OpenInRoot opens p below the directory rootFd as if rootFd were "/": absolute
// symlinks and ".." stay inside, magic links (/proc/*/fd/N) are refused
// (openat2(2), RESOLVE_IN_ROOT). There is no fallback for kernels without it.
func OpenInRoot(rootFd int, p string, flags int, mode uint32) (*os.File, error) {
	fd, err := OpenFdInRoot(rootFd, p, flags, mode)
	if err != nil {
		return nil, &os.PathError{Op: "open in root", Path: p, Err: err}
	}
	return os.NewFile(uintptr(fd), p), nil
}

// OpenBeneath opens p below the directory dirFd; a link or ".." that leads out of it is EXDEV
// (openat2(2), RESOLVE_BENEATH), as is every absolute link.
func OpenBeneath(dirFd int, p string, flags int) (*os.File, error) {
	fd, err := openat2(dirFd, p, &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return nil, &os.PathError{Op: "open beneath", Path: p, Err: err}
	}
	return os.NewFile(uintptr(fd), p), nil
}

// OpenFdInRoot is OpenInRoot for who opens thousands: a plain descriptor, a plain errno.
func OpenFdInRoot(rootFd int, p string, flags int, mode uint32) (int, error) {
	if p = strings.TrimLeft(p, "/"); p == "" {
		p = "."
	}
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	if flags&(unix.O_CREAT|unix.O_TMPFILE) != 0 {
		how.Mode = uint64(mode)
	}
	return openat2(rootFd, p, &how)
}

func openat2(dirFd int, p string, how *unix.OpenHow) (int, error) {
	for {
		fd, err := unix.Openat2(dirFd, p, how)
		// EAGAIN: a rename raced with the walk (openat2(2)); walk again.
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		return fd, err
	}
}

// MkdirAllInRoot makes the directory p and its missing parents below rootFd, mode
// perm before umask, and returns it opened with O_PATH. Symlinks on the way are
// followed inside the root only.
func MkdirAllInRoot(rootFd int, p string, perm uint32) (*os.File, error) {
	const dirFlags = unix.O_PATH | unix.O_DIRECTORY
	if f, err := OpenInRoot(rootFd, p, dirFlags, 0); err == nil || !errors.Is(err, unix.ENOENT) {
		return f, err
	}
	clean := path.Clean("/" + p)
	parent, err := MkdirAllInRoot(rootFd, path.Dir(clean), perm)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	err = unix.Mkdirat(int(parent.Fd()), path.Base(clean), perm)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &os.PathError{Op: "mkdir in root", Path: p, Err: err}
	}
	return OpenInRoot(rootFd, p, dirFlags, 0)
}

// LockOFD takes an exclusive open-file-description lock on f without waiting
// (fcntl_locking(2), F_OFD_SETLK). It reports false when somebody else holds it.
// The lock ends when the last descriptor of this open file is closed, so children
// must close theirs.
func LockOFD(f *os.File) (bool, error) {
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return false, nil
	}
	return err == nil, err
}

// HeldOFD asks, without taking it, whether an OFD lock on f is held by another
// open file (F_OFD_GETLK).
func HeldOFD(f *os.File) (bool, error) {
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lk); err != nil {
		return false, err
	}
	return lk.Type != unix.F_UNLCK, nil
}

// FDPath names an open file so that path-only system calls reach it.
func FDPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// BootID returns the kernel's random id of this boot.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// StartTime returns the start time of pid in clock ticks since boot (proc(5), stat
// field 22); with the boot id it tells a process from a later one of the same number.
func StartTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The command name may hold spaces and parentheses; the fields follow the last ")".
	s := string(b)
	f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(f) < 20 {
		return 0, fmt.Errorf("read /proc/%d/stat: short line", pid)
	}
	var t uint64
	_, err = fmt.Sscan(f[19], &t)
	return t, err
}

// Kernel returns the running kernel's release, such as "6.18.44".
func Kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// SamePidNS lists the processes in the pid namespace of process pid, and pid alone when that is ours.
func SamePidNS(pid int) (out []int) {
	space := func(p string) string {
		s, _ := os.Readlink("/proc/" + p + "/ns/pid")
		return s
	}
	want := space(strconv.Itoa(pid))
	if want == "" || want == space("self") {
		return []int{pid}
	}
	ents, _ := os.ReadDir("/proc")
	for _, e := range ents {
		if p, err := strconv.Atoi(e.Name()); err == nil && space(e.Name()) == want {
			out = append(out, p)
		}
	}
	return out
}
