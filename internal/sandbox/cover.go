package sandbox

// What covers what: the terminal on /dev/console, the null device and empty directories on
// masked paths. All of it is the engine's own, held by descriptor.

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"keg/internal/weakness"
)

// terminal takes a pair from the container's own devpts, through the descriptor of its
// mount, so that nothing that an image put at /dev/ptmx or /dev/pts is ever opened.
func (b *box) terminal() error {
	if b.spec.Process == nil || !b.spec.Process.Terminal {
		return nil
	}
	master, slave, err := b.openPair()
	if err != nil {
		return fmt.Errorf("open a terminal: %w", err)
	}
	b.console = master
	b.keep("tty", slave)
	if cs := b.spec.Process.ConsoleSize; cs != nil {
		_ = unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(cs.Height), Col: uint16(cs.Width)})
	}
	var st unix.Stat_t
	if unix.Fstat(int(slave.Fd()), &st) == nil {
		_ = unix.Fchown(int(slave.Fd()), int(hostID(b.spec.Process.User.UID, b.uidMap())), int(st.Gid))
	}
	if b.pts == nil || b.devFD < 0 {
		return nil
	}
	at, err := b.tree.walk("/dev/console", emptyFile)
	if err != nil {
		return err
	}
	if at.file == nil || at.mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("make /dev/console: %w", unix.EEXIST)
	}
	b.keep("console", at.file)
	return nil
}

func (b *box) openPair() (master, slave *os.File, err error) {
	dir, name := unix.AT_FDCWD, "/dev/ptmx"
	if b.pts != nil {
		dir, name = int(b.pts.file.Fd()), "ptmx"
	}
	if weakness.Of("RT5") {
		dir, name = b.tree.root, "dev/ptmx"
	}
	return openTerminal(dir, name)
}

// openTerminal opens the ptmx at name, checks that it is one, and its other end.
func openTerminal(dir int, name string) (master, slave *os.File, err error) {
	how := unix.OpenHow{Flags: unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC | unix.O_NONBLOCK, Resolve: unix.RESOLVE_NO_MAGICLINKS}
	m, err := unix.Openat2(dir, name, &how)
	if err != nil {
		return nil, nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	master = os.NewFile(uintptr(m), "ptmx")
	if err := unix.IoctlSetPointerInt(m, unix.TIOCSPTLCK, 0); err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("unlock %s: %w", name, err)
	}
	s, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(m), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if e != 0 {
		master.Close()
		return nil, nil, fmt.Errorf("open the other end of %s: %w", name, e)
	}
	return master, os.NewFile(s, "pts"), nil
}

// makeMasks prepares what covers the masked paths. Whether one is a directory is
// looked up on the host's own proc and sysfs; were the container's different, mounting fails.
func (b *box) makeMasks() error {
	if len(b.spec.Linux.MaskedPaths) == 0 || weakness.Of("RT24") {
		return nil
	}
	null, err := os.OpenFile("/dev/null", unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	if weakness.Of("RT4") {
		if fd, err := unix.Openat(b.tree.root, "dev/null", unix.O_PATH|unix.O_CLOEXEC, 0); err == nil {
			null = os.NewFile(uintptr(fd), "the image's")
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(null.Fd()), &st); err != nil {
		return err
	}
	if (st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3)) && !weakness.Of("RT4") {
		return fmt.Errorf("mask paths: the host's /dev/null is not the null device")
	}
	for i, p := range b.spec.Linux.MaskedPaths {
		name := fmt.Sprint("mask", i)
		var fd int
		if b.isDir(p) {
			fd, err = newMount("tmpfs", "tmpfs", nil, []string{"nr_blocks=1", "nr_inodes=1", "mode=755"},
				unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
		} else if fd, err = cloneTree(int(null.Fd()), "", false); err == nil {
			err = setAttr(fd, false, &unix.MountAttr{Propagation: unix.MS_PRIVATE})
		}
		if err != nil {
			return fmt.Errorf("mask %s: %w", p, err)
		}
		b.keepFD(name, fd)
		b.masks = append(b.masks, mask{p, name})
	}
	return nil
}

// isDir tells what a masked path is: from the host for proc and sys, else from the root.
func (b *box) isDir(p string) bool {
	p = filepath.Clean(p)
	if below(p, "/proc") || below(p, "/sys") {
		st, err := os.Lstat(p)
		return err == nil && st.IsDir()
	}
	at, err := b.tree.walk(p, nothing)
	if err != nil || at.file == nil {
		return false
	}
	at.file.Close()
	return at.isDir()
}
