// Package mirror shows a directory tree a second time, as a file system of its own (FUSE) that the kernel lets an ordinary
// user mount with shifted ids: it refuses that for the disk's, which are not of his namespace. So a container of his has a
// private range of ids although what it writes is on disk with the ids that it sees.
//
// The server is a process of its own beside the monitor. It is root of the user's namespace, and what it is asked comes from
// a hostile container by way of the kernel. The kernel checks permissions; the server opens one name at a time
// below a directory that it holds, and never follows a link.
//
//	program in the container -> kernel: FUSE, ids shifted -> server -> kernel: overlay, volume
package mirror

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
	"keg/internal/weakness"
)

// Argv0 is how a server is called.
const Argv0 = "keg-mirror"

// Tree is a directory to be shown.
type Tree struct {
	Dir    int  // descriptor of it; O_PATH will do
	Shared bool // others change it meanwhile, so the kernel must not remember what it saw
}

// A Mirror is a running server.
type Mirror struct {
	mounts  []int
	pid     int
	control *os.File
	ended   chan struct{}
}

// Unsupported says why this kernel has no mirrors, or nil.
func Unsupported() error {
	if !linux.KernelAtLeast(6, 12) {
		return fault.Unsupportedf("file systems of an ordinary user with shifted ids need Linux 6.12; this is %s", linux.Kernel())
	}
	return nil
}

// Start shows trees with the ids of the user namespace ids.
func Start(trees []Tree, ids *os.File) (_ *Mirror, err error) {
	m := &Mirror{ended: make(chan struct{})}
	var devices []*os.File
	defer func() {
		for _, f := range devices {
			f.Close()
		}
		if err != nil {
			m.closeMounts()
		}
	}()
	for _, t := range trees {
		dev, mount, err := mountFUSE(t.Dir)
		if err != nil {
			return nil, err
		}
		devices, m.mounts = append(devices, dev), append(m.mounts, mount)
	}
	if err := m.spawn(trees, devices); err != nil {
		return nil, err
	}
	for _, fd := range m.mounts {
		err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ids.Fd()), Propagation: unix.MS_PRIVATE})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("shift the ids of a mount: %w", err), m.Close())
		}
	}
	return m, nil
}

// mountFUSE makes a file system whose server has dev open.
func mountFUSE(dir int) (dev *os.File, mount int, err error) {
	dev, err = os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	switch {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO):
		return nil, -1, fault.Unsupportedf("the host has no /dev/fuse; load the kernel's module with: sudo modprobe fuse")
	case err != nil:
		return nil, -1, fault.Deniedf("%w; let users open it with: sudo chmod 666 /dev/fuse", err)
	}
	defer func() {
		if err != nil {
			dev.Close()
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return nil, -1, err
	}
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, -1, fmt.Errorf("mount a FUSE file system: %w", err)
	}
	defer unix.Close(fs)
	for _, o := range [][2]string{{"source", "keg"}, {"fd", strconv.Itoa(int(dev.Fd()))}, {"rootmode", strconv.FormatUint(uint64(st.Mode), 8)},
		{"user_id", "0"}, {"group_id", "0"}} {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return nil, -1, fmt.Errorf("mount a FUSE file system: option %s: %w", o[0], err)
		}
	}
	for _, o := range []string{"default_permissions", "allow_other"} {
		if err := unix.FsconfigSetFlag(fs, o); err != nil {
			return nil, -1, fmt.Errorf("mount a FUSE file system: option %s: %w", o, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, -1, fmt.Errorf("mount a FUSE file system: %w", err)
	}
	if mount, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0); err != nil {
		return nil, -1, fmt.Errorf("mount a FUSE file system: %w", err)
	}
	return dev, mount, nil
}

// spawn starts the server and waits until it answers the kernel.
func (m *Mirror) spawn(trees []Tree, devices []*os.File) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	m.control = os.NewFile(uintptr(fds[0]), "mirror")
	theirs := os.NewFile(uintptr(fds[1]), "mirror")
	defer theirs.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	files, kinds := []uintptr{null.Fd(), null.Fd(), 2, theirs.Fd()}, ""
	for i, t := range trees {
		files = append(files, devices[i].Fd(), uintptr(t.Dir))
		kinds += map[bool]string{false: "-", true: "s"}[t.Shared]
	}
	// A thread that waits in a read keeps its processor when there are enough of them: half of the time of a request
	// went into giving it away and getting it back.
	m.pid, err = syscall.ForkExec("/proc/self/exe", []string{Argv0, kinds}, &syscall.ProcAttr{Dir: "/", Files: files, Sys: &syscall.SysProcAttr{Setsid: true},
		Env: append([]string{"PATH=/usr/bin:/bin", "GOMAXPROCS=32", "GODEBUG=asyncpreemptoff=1", "GOTRACEBACK=single"}, weakness.Env()...)})
	if err != nil {
		m.control.Close()
		return fmt.Errorf("start the server of the container's files: %w", err)
	}
	go m.reap()
	theirs.Close()
	said := make([]byte, 1<<10)
	n, err := m.control.Read(said)
	if word := string(said[:n]); word != "ok" {
		m.control.Close()
		<-m.ended
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		return fault.Unsupportedf("the server of the container's files ended: %s", strings.TrimSpace(word))
	}
	return nil
}

func (m *Mirror) reap() {
	defer close(m.ended)
	for {
		if _, err := unix.Wait4(m.pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// Ended is closed when the server has ended: nothing of the trees can be reached any more.
func (m *Mirror) Ended() <-chan struct{} { return m.ended }

// Abort ends the server at once, and with it what waits for an answer.
func (m *Mirror) Abort() {
	select {
	case <-m.ended:
	default:
		_ = unix.Kill(m.pid, unix.SIGKILL) // not reaped yet, so the number is its
	}
}

// Close waits until the kernel has let go of the mounts, which nobody must use any more, and the server has ended.
func (m *Mirror) Close() error {
	m.closeMounts()
	defer m.control.Close()
	select {
	case <-m.ended:
		return nil
	case <-time.After(patience):
	}
	m.Abort()
	<-m.ended
	return fmt.Errorf("the server of the container's files was ended: its mounts were still in use")
}

// patience is how long a server that is not needed any more waits for the kernel.
const patience = 5 * time.Second

// Take gives the trees' mounts, in order, detached and with shifted ids. They are the caller's to close.
func (m *Mirror) Take() []int {
	fds := m.mounts
	m.mounts = nil
	return fds
}

func (m *Mirror) closeMounts() {
	for _, fd := range m.Take() {
		unix.Close(fd)
	}
}
