package monitor

// Starting monitors: the binary again, in a session of its own, with nothing of ours but a socket.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"keg/internal/linux"
	"keg/internal/sandbox"
	"keg/internal/sandbox/cgroup"
	"keg/internal/weakness"
)

// Prepared is a monitor process that waits to be told its container. Starting it before the record
// is written takes the start of a process off the way from command to program.
type Prepared struct {
	r     Roots
	c     *net.UnixConn
	words *os.File
}

// Prepare starts a monitor in its own session and cgroup. One that is closed, or whose starter dies,
// before it was told a container ends by itself.
func Prepare(r Roots) (*Prepared, error) {
	words, err := memfile("monitor.log")
	if err != nil {
		return nil, err
	}
	// The dashes become the container's id, so that ps tells which monitor is whose.
	c, _, err := spawn(words, "container", r.Root, r.Run, strings.Repeat("-", idLength))
	if err != nil {
		words.Close()
		return nil, fmt.Errorf("start a monitor: %w", err)
	}
	return &Prepared{r, c, words}, nil
}

// Close ends a monitor that was not used; after Spawn it does nothing.
func (p *Prepared) Close() error {
	if p.c == nil {
		return nil
	}
	p.words.Close()
	return p.c.Close()
}

// Spawn starts the monitor of container id in its own session and cgroup and waits until the
// program was executed or an error came back. With attach set the stdio is connected
// before the program starts, so that not a byte is missed.
func Spawn(ctx context.Context, r Roots, id string, attach *Stdio) (*Conn, error) {
	p, err := Prepare(r)
	if err != nil {
		return nil, err
	}
	return p.Spawn(ctx, id, attach)
}

// Spawn is the function of the same name with this process as the monitor. It can be used once.
func (p *Prepared) Spawn(ctx context.Context, id string, attach *Stdio) (*Conn, error) {
	k := newConn(p.c, id)
	p.c = nil
	defer p.words.Close()
	q := request{Op: "start", ID: id}
	if attach != nil {
		a := wants(*attach)
		q.Attach = &a
	}
	if err := k.call(ctx, q, nil); err != nil {
		k.Close()
		if errors.Is(err, errGone) {
			return nil, fmt.Errorf("the monitor of container %s ended before the program was started%s", id, lastWords(p.words))
		}
		return nil, err
	}
	if attach != nil {
		k.session = k.begin(*attach)
	}
	return k, nil
}

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

// lastWords is the end of a monitor's error file, for people.
func lastWords(f *os.File) string {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
	b = bytes.TrimSpace(b)
	if err != nil || len(b) == 0 {
		return ""
	}
	return ": " + strings.ToValidUTF8(string(b[max(0, len(b)-2000):]), "?")
}

// spawn re-executes this binary, the running one whatever was installed meanwhile, and returns our
// end of a socketpair whose other end is its descriptor 3, and its pid.
func spawn(errlog *os.File, args ...string) (*net.UnixConn, int, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, 0, os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "socket")
	defer theirs.Close()
	ours, err := fileConn(fds[0])
	if err != nil {
		return nil, 0, err
	}
	pid, err := startSelf(errlog, theirs, args)
	if err != nil {
		ours.Close()
		return nil, 0, err
	}
	go reapMonitor(pid) // a front end that lives long leaves no zombie
	return ours, pid, nil
}

func reapMonitor(pid int) {
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// startSelf executes the binary through a read-only mount of its own: monitors clone containers, and
// a container can get hold of what cloned it (CVE-2019-5736). It does without os.StartProcess, which
// at its first use forks once more to see whether pidfds work.
func startSelf(errlog, sock *os.File, args []string) (int, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	exe, self := "/proc/self/exe", null
	if os.Geteuid() == 0 {
		if self, err = sandbox.Executable(); err != nil {
			return 0, err
		}
		defer self.Close()
		exe = linux.FDPath(roomSlot)
	}
	stderr := null
	if errlog != nil {
		stderr = errlog
	}
	attr := &syscall.ProcAttr{
		Dir: "/",
		// One thread of Go code at a time is enough for a monitor; memory goes by processors. Nothing in it computes
		// for long, so it is not interrupted by signals, for which each thread would touch a stack of its own.
		Env:   append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1", "GOTRACEBACK=single"}, weakness.Env()...),
		Files: roomy(self.Fd(), null.Fd(), null.Fd(), stderr.Fd(), sock.Fd()),
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if g := monitorCgroup(); g != nil {
		defer g.Close()
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(g.Fd())
		if pid, err := syscall.ForkExec(exe, append([]string{Argv0}, args...), attr); err == nil {
			return pid, nil
		}
		attr.Sys.UseCgroupFD = false // no right to it: the starter's cgroup it is
	}
	return syscall.ForkExec(exe, append([]string{Argv0}, args...), attr)
}

// roomSlot is the number of a descriptor that makes a monitor's table of descriptors large. A table begins with
// 64 places and a start needs more; where threads share one, the kernel waits for all processors before it
// replaces it (expand_fdtable of fs/file.c), 8 to 13 ms. Between fork and execve there is one thread, and tables do not shrink.
const roomSlot = 128

// roomy gives the number roomSlot to high, and the first ones to low.
func roomy(high uintptr, low ...uintptr) []uintptr {
	for len(low) < roomSlot {
		low = append(low, ^uintptr(0))
	}
	return append(low, high)
}

// monitorsDir is where monitors live on cgroup v2.
const monitorsDir = "/sys/fs/cgroup/keg-monitors"

// farewell takes away what monitors share and the last one needs no more.
func farewell() {
	cgroup.Tidy(cgroupParent)
	if b, err := os.ReadFile("/proc/self/cgroup"); err == nil && string(b) == "0::/"+filepath.Base(monitorsDir)+"\n" {
		cgroup.Leave(monitorsDir)
	}
}

// monitorCgroup is the group in which monitors live, so that whoever started one may be
// stopped with everything that is his. On v1 moving costs more than it gives.
func monitorCgroup() *os.File {
	var st unix.Statfs_t
	if unix.Statfs("/sys/fs/cgroup", &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil
	}
	if os.Mkdir(monitorsDir, 0o755) != nil {
		if _, err := os.Stat(monitorsDir); err != nil {
			return nil
		}
	}
	f, err := os.Open(monitorsDir)
	if err != nil {
		return nil
	}
	return f
}
