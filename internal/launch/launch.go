// Package launch starts the binary again as a monitor, with nothing of ours but a socket. It needs little of the standard library
// and nothing of keg, so that it is initialised before most other packages and can do so at once (early.go).
package launch

import (
	"errors"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"keg/internal/weakness"
)

// Argv0 is the name under which keg starts itself as a monitor.
const Argv0 = "keg-monitor"

// Process is a monitor that waits to be told what to do.
type Process struct {
	Socket int // our end of a socketpair, close-on-exec; the other one is its descriptor 3
	Pid    int
	Words  *os.File // what it says on standard error, in memory; nil when that goes nowhere
}

// close ends a process that nobody has a use for: it does so by itself.
func (p *Process) close() {
	unix.Close(p.Socket)
	p.Words.Close()
	for {
		if _, err := unix.Wait4(p.Pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// Monitor is the process for a container of the engine in root and run: the one that was started early, or a new one.
func Monitor(root, run string) (*Process, error) {
	if p := early(root, run); p != nil {
		return p, nil
	}
	return monitor(root, run)
}

// nobody stands in a monitor's arguments where its container's id will be, so that ps tells which monitor is whose.
const nobody = 64

func monitor(root, run string) (*Process, error) {
	words, err := memfile("monitor.log")
	if err != nil {
		return nil, err
	}
	p, err := start(words, "container", root, run, strings.Repeat("-", nobody))
	if err != nil {
		words.Close()
	}
	return p, err
}

// Builder starts the process for the steps of a build.
func Builder(root, run string) (*Process, error) { return start(nil, "build", root, run) }

// memfile is a file without a name: monitors say nothing as a rule.
func memfile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// start re-executes this binary, the running one whatever was installed meanwhile.
func start(words *os.File, args ...string) (*Process, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(fds[1])
	pid, err := execute(words, uintptr(fds[1]), append([]string{Argv0}, args...))
	if err != nil {
		unix.Close(fds[0])
		return nil, err
	}
	return &Process{Socket: fds[0], Pid: pid, Words: words}, nil
}

// execute starts the binary through a read-only mount of its own: monitors clone containers, and
// a container can get hold of what cloned it (CVE-2019-5736). It does without os.StartProcess, which
// at its first use forks once more to see whether pidfds work.
func execute(words *os.File, sock uintptr, argv []string) (int, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	exe, self := "/proc/self/exe", null
	if os.Geteuid() == 0 {
		if self, err = Executable(); err != nil {
			return 0, err
		}
		defer self.Close()
		exe = roomPath
	}
	stderr := null
	if words != nil {
		stderr = words
	}
	attr := &syscall.ProcAttr{
		Dir: "/",
		// One thread of Go code at a time is enough for a monitor; memory goes by processors. Nothing in it computes
		// for long, so it is not interrupted by signals, for which each thread would touch a stack of its own.
		Env:   append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1", "GOTRACEBACK=single"}, weakness.Env()...),
		Files: roomy(self.Fd(), null.Fd(), null.Fd(), stderr.Fd(), sock),
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if g := monitorsCgroup(); g != nil {
		defer g.Close()
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(g.Fd())
		if pid, err := syscall.ForkExec(exe, argv, attr); err == nil {
			return pid, nil
		}
		attr.Sys.UseCgroupFD = false // no right to it: the starter's cgroup it is
	}
	return syscall.ForkExec(exe, argv, attr)
}

// RoomSlot is the number of a descriptor that makes a monitor's table of descriptors large. A table begins with
// 64 places and a start needs more; where threads share one, the kernel waits for all processors before it
// replaces it (expand_fdtable of fs/file.c), 8 to 13 ms. Between fork and execve there is one thread, and tables do not shrink.
const (
	RoomSlot = 128
	roomPath = "/proc/self/fd/128"
)

// roomy gives the number RoomSlot to high, and the first ones to low.
func roomy(high uintptr, low ...uintptr) []uintptr {
	for len(low) < RoomSlot {
		low = append(low, ^uintptr(0))
	}
	return append(low, high)
}

// MonitorsCgroup is where monitors live on cgroup v2.
const MonitorsCgroup = "/sys/fs/cgroup/keg-monitors"

// monitorsCgroup is that group, so that whoever started a monitor may be
// stopped with everything that is his. On v1 moving costs more than it gives.
func monitorsCgroup() *os.File {
	var st unix.Statfs_t
	if unix.Statfs("/sys/fs/cgroup", &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil
	}
	if os.Mkdir(MonitorsCgroup, 0o755) != nil {
		if _, err := os.Stat(MonitorsCgroup); err != nil {
			return nil
		}
	}
	f, err := os.Open(MonitorsCgroup)
	if err != nil {
		return nil
	}
	return f
}
