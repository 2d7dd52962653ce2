package sandbox

// Device nodes, made through descriptors.

import (
	"errors"
	"fmt"
	"path"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
)

type deviceNode struct {
	path         string
	mode         uint32 // with type
	major, minor uint32
	uid, gid     uint32
}

// runtime-spec config-linux.md "Default Devices"
var defaultDevices = [...]deviceNode{
	{"/dev/null", unix.S_IFCHR | 0o666, 1, 3, 0, 0},
	{"/dev/zero", unix.S_IFCHR | 0o666, 1, 5, 0, 0},
	{"/dev/full", unix.S_IFCHR | 0o666, 1, 7, 0, 0},
	{"/dev/random", unix.S_IFCHR | 0o666, 1, 8, 0, 0},
	{"/dev/urandom", unix.S_IFCHR | 0o666, 1, 9, 0, 0},
	{"/dev/tty", unix.S_IFCHR | 0o666, 5, 0, 0, 0},
}

var devLinks = [...][2]string{
	{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"},
}

// devices fills /dev, unless the spec binds one from elsewhere, and makes the spec's own nodes.
func (b *box) devices() error {
	for i := range b.spec.Mounts {
		m := &b.spec.Mounts[i]
		if o, err := parseOptions(m.Options); cleanTarget(m.Destination) == "/dev" && err == nil && (o.bind || m.Type == "bind") {
			return nil
		}
	}
	dev := b.devFD
	if dev < 0 {
		at, err := b.tree.walk("/dev", directory)
		if err != nil {
			return err
		}
		if at.file == nil || !at.isDir() {
			return fmt.Errorf("make devices in /dev: %w", unix.ENOTDIR)
		}
		defer at.file.Close()
		dev = int(at.file.Fd())
	}
	for i := range defaultDevices {
		d := defaultDevices[i]
		d.uid, d.gid = hostID(0, b.uidMap()), hostID(0, b.gidMap())
		if err := b.makeDevice(&d, dev); err != nil {
			return err
		}
	}
	for _, l := range devLinks {
		if err := unix.Symlinkat(l[0], dev, l[1]); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("link /dev/%s: %w", l[1], err)
		}
	}
	for i := range b.spec.Linux.Devices {
		if err := b.device(&b.spec.Linux.Devices[i]); err != nil {
			return err
		}
	}
	return nil
}

// device makes one node of the spec.
func (b *box) device(s *specs.LinuxDevice) error {
	d := deviceNode{path: cleanTarget(s.Path), major: uint32(s.Major), minor: uint32(s.Minor), mode: 0o666}
	for _, known := range defaultDevices {
		if d.path == known.path {
			return nil
		}
	}
	if d.path == "/dev/ptmx" || d.path == "/dev/console" {
		return nil
	}
	if s.FileMode != nil {
		d.mode = uint32(s.FileMode.Perm())
	}
	if s.UID != nil {
		d.uid = *s.UID
	}
	if s.GID != nil {
		d.gid = *s.GID
	}
	d.uid, d.gid = hostID(d.uid, b.uidMap()), hostID(d.gid, b.gidMap())
	switch s.Type {
	case "c", "u":
		d.mode |= unix.S_IFCHR
	case "b":
		d.mode |= unix.S_IFBLK
	case "p":
		d.mode |= unix.S_IFIFO
	default:
		return fault.Invalidf("device %s has the unknown type %q", s.Path, s.Type)
	}
	parent, err := b.tree.walk(path.Dir(d.path), directory)
	if err != nil {
		return err
	}
	if parent.file == nil {
		return fault.Invalidf("device %s: cannot be made there", s.Path)
	}
	defer parent.file.Close()
	return b.makeDevice(&d, int(parent.file.Fd()))
}

// makeDevice makes the node in the directory dir.
func (b *box) makeDevice(d *deviceNode, dir int) error {
	if linux.InUserNS() && d.mode&unix.S_IFMT != unix.S_IFIFO {
		return b.bindDevice(d, dir, path.Base(d.path))
	}
	return d.make(dir, path.Base(d.path))
}

// make creates the node as name below dir. What exists already must be the same device.
func (d *deviceNode) make(dir int, name string) error {
	rdev := unix.Mkdev(d.major, d.minor)
	err := unix.Mknodat(dir, name, d.mode, int(rdev))
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("make device %s: %w", d.path, err)
		}
		if st.Mode&unix.S_IFMT != d.mode&unix.S_IFMT || st.Rdev != rdev {
			return fmt.Errorf("make device %s: something else is there: %w", d.path, unix.EEXIST)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("make device %s: %w", d.path, err)
	}
	if d.uid == 0 && d.gid == 0 {
		return nil
	}
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open device %s: %w", d.path, err)
	}
	defer unix.Close(fd)
	// By descriptor, so that a name swapped in a shared volume is never followed.
	if err := unix.Fchownat(fd, "", int(d.uid), int(d.gid), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("give device %s to %d:%d: %w", d.path, d.uid, d.gid, err)
	}
	return nil
}
