package volume

// Volumes with driver options (type, o, device) are mounted on their _data while
// somebody uses them: each user holds a shared lock, the last one unmounts.

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
)

// plan is one mount(2).
type plan struct {
	fstype, device, data string
	flags                uintptr
}

// mountFlags are the options that are flags; Docker's local driver takes those of mount(8).
var mountFlags = [...]struct {
	name string
	flag uintptr
}{{"bind", unix.MS_BIND}, {"rbind", unix.MS_BIND | unix.MS_REC}, {"ro", unix.MS_RDONLY}, {"nosuid", unix.MS_NOSUID},
	{"nodev", unix.MS_NODEV}, {"noexec", unix.MS_NOEXEC}, {"noatime", unix.MS_NOATIME}, {"nodiratime", unix.MS_NODIRATIME},
	{"relatime", unix.MS_RELATIME}, {"strictatime", unix.MS_STRICTATIME}, {"sync", unix.MS_SYNCHRONOUS},
	{"rw", 0}, {"suid", 0}, {"dev", 0}, {"exec", 0}, {"defaults", 0}}

// mountPlan reads the driver options; nil without any.
func mountPlan(opts map[string]string) (*plan, error) {
	if len(opts) == 0 {
		return nil, nil
	}
	p := &plan{fstype: opts["type"], device: opts["device"]}
	for k := range opts {
		switch k {
		case "type", "o", "device":
		case "size":
			return nil, fault.Unsupportedf("volume option size needs a file system with project quotas; use type=tmpfs with o=size=... for a bounded volume")
		default:
			return nil, fault.Invalidf("invalid option: %q", k)
		}
	}
	if p.device == "" {
		return nil, fault.Invalidf("missing device in volume options")
	}
	if p.fstype == "" && opts["o"] == "" {
		return nil, fault.Invalidf("missing type in volume options")
	}
	var data []string
	for o := range strings.SplitSeq(opts["o"], ",") {
		if o == "" {
			continue
		}
		if f, ok := flagOf(o); ok {
			p.flags |= f
			continue
		}
		data = append(data, o)
	}
	p.data = strings.Join(data, ",")
	return p, nil
}

func flagOf(o string) (uintptr, bool) {
	for _, f := range mountFlags {
		if f.name == o {
			return f.flag, true
		}
	}
	return 0, false
}

// Use makes the volume's data available at its Mountpoint and keeps it so until release
// is called (or the process ends). A volume without driver options is always there.
func (s *Store) Use(name string) (release func(), err error) {
	v, err := s.Get(name)
	if err != nil {
		return nil, err
	}
	p, err := mountPlan(v.Options)
	if err != nil || p == nil {
		return func() {}, err
	}
	f, err := s.openLock(name)
	if err != nil {
		return nil, err
	}
	// The exclusive lock tells whether we are the first; then it becomes a shared one.
	for {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if !mounted(v.Mountpoint) {
		if err := p.mount(v.Mountpoint); err != nil {
			f.Close()
			return nil, fmt.Errorf("failed to mount local volume: mount %s:%s: %w", p.device, v.Mountpoint, err)
		}
	}
	unix.Flock(int(f.Fd()), unix.LOCK_SH)
	return func() {
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			unix.Unmount(v.Mountpoint, unix.MNT_DETACH)
		}
		f.Close()
	}, nil
}

func (p *plan) mount(target string) error {
	data := p.data
	// The kernel wants an address where people write a name (nfs and cifs: addr=).
	if host, ok := addrOption(data); ok && net.ParseIP(host) == nil {
		ips, err := net.LookupHost(host)
		if err != nil {
			return err
		}
		data = strings.Replace(data, "addr="+host, "addr="+ips[0], 1)
	}
	flags := p.flags
	if err := unix.Mount(p.device, target, p.fstype, flags, data); err != nil {
		return err
	}
	if flags&unix.MS_BIND != 0 && flags&^(unix.MS_BIND|unix.MS_REC) != 0 {
		return unix.Mount("", target, "", flags|unix.MS_REMOUNT, "")
	}
	return nil
}

func addrOption(data string) (string, bool) {
	for o := range strings.SplitSeq(data, ",") {
		if a, ok := strings.CutPrefix(o, "addr="); ok {
			return a, true
		}
	}
	return "", false
}

// mounted tells a mount point from its parent's file system (statx, since a bind of the
// same file system keeps the device number).
func mounted(p string) bool {
	var st unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, p, unix.AT_SYMLINK_NOFOLLOW, 0, &st) != nil {
		return false
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

func (s *Store) openLock(name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(s.volume(name), "mount.lock"), os.O_RDWR|os.O_CREATE, 0o600)
}

// unmountIdle takes away a mount that nobody uses any more; unix.EWOULDBLOCK when somebody does.
func (s *Store) unmountIdle(name string) error {
	if !mounted(s.data(name)) {
		return nil
	}
	f, err := s.openLock(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	return unix.Unmount(s.data(name), unix.MNT_DETACH)
}

// Open returns the directory of a volume's data, or a subdirectory of it that must exist
// (a link in the data that leads out of it is an error, as Docker has it).
func (s *Store) Open(name, subpath string) (*os.File, error) {
	return s.open(name, subpath, unix.O_PATH)
}

func (s *Store) open(name, subpath string, flags int) (*os.File, error) {
	v, err := s.Get(name)
	if err != nil {
		return nil, err
	}
	d, err := os.OpenFile(v.Mountpoint, flags|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil || subpath == "" {
		return d, err
	}
	defer d.Close()
	return linux.OpenBeneath(int(d.Fd()), subpath, flags)
}
