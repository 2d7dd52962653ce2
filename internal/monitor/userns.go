package monitor

// The user namespace of a run: a range of ids that no other container has, or the caller's ids under
// other numbers. Nothing on disk depends on it: layers and volumes are mounted with shifted
// owners, so a range is the container's only while it runs. See mirror.go for an ordinary user's.

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/container"
	"keg/internal/fault"
	"keg/internal/linux"
	"keg/internal/sandbox"
	"keg/internal/snapshot"
	"keg/internal/weakness"
)

// userns is what a run has of its own ids; nil: the engine's.
type userns struct {
	uids, gids []specs.LinuxIDMapping
	user, net  *os.File
	shifted    bool // files on disk have other owners than the container sees
	mirrored   bool // as shifted, but an ordinary user cannot mount the disk's file systems so: a mirror of them he can
	ranges     []*os.File
}

// shift is how files are mounted, or nil.
func (u *userns) shift() *snapshot.Shift {
	if u == nil || !u.shifted {
		return nil
	}
	return &snapshot.Shift{NS: u.user, UID: int(u.uids[0].HostID), GID: int(u.gids[0].HostID)}
}

func (u *userns) close() {
	if u == nil {
		return
	}
	u.user.Close() // or they are nil, and Close says so
	u.net.Close()
	for _, f := range u.ranges {
		os.Remove(f.Name())
		f.Close()
	}
	if u.mirrored && len(u.ranges) > 0 {
		dir := filepath.Dir(u.ranges[0].Name())
		sweepRanges(dir)
		os.Remove(dir) // when it is empty
	}
}

// sweepRanges removes what monitors left that were killed.
func sweepRanges(dir string) {
	es, _ := os.ReadDir(dir)
	for _, e := range es {
		f, err := os.OpenFile(filepath.Join(dir, e.Name()), os.O_RDWR, 0)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.Remove(f.Name())
		}
		f.Close()
	}
}

// makeUserns makes what the record asks for.
func (m *monitor) makeUserns() (u *userns, err error) {
	mode, err := container.ParseUserns(string(m.rec.Host.UsernsMode))
	if err != nil || !mode.Own() {
		return nil, err
	}
	h := m.rec.Host
	if h.NetworkMode.IsContainer() || h.PidMode.IsContainer() || h.IpcMode.IsContainer() || h.PidMode.IsHost() || h.IpcMode.IsHost() {
		return nil, fault.Invalidf("--userns=%s: a container with ids of its own cannot share the namespaces of the host or of another container (--network, --pid, --ipc)", h.UsernsMode)
	}
	u = &userns{}
	switch {
	case mode.KeepID && !linux.InUserNS():
		all := []specs.LinuxIDMapping{{Size: 1<<32 - 1}}
		u.uids, u.gids = all, all
	case mode.KeepID:
		u.uids, u.gids = keepIDs(mode)
	case linux.InUserNS():
		u.mirrored = true
		if u.uids, err = m.userRange(u, mode.Size); err != nil {
			return nil, err
		}
		u.gids = u.uids
	default:
		u.shifted = true
		size := cmp.Or(mode.Size, rootsSize)
		first, err := u.takeRange(size, m.id)
		if err != nil {
			return nil, err
		}
		u.uids = []specs.LinuxIDMapping{{HostID: first, Size: size}}
		u.gids = u.uids
	}
	if u.user, u.net, err = sandbox.Namespaces(u.uids, u.gids); err != nil {
		u.close()
		return nil, fmt.Errorf("make the container's user namespace: %w", err)
	}
	return u, nil
}

// keepIDs lets the caller, who is root of the engine's namespace, be himself or whom he asked for.
func keepIDs(mode container.Userns) (uids, gids []specs.LinuxIDMapping) {
	uid, usize := linux.OwnIDs("uid_map")
	gid, gsize := linux.OwnIDs("gid_map")
	if mode.UID >= 0 {
		uid = uint32(mode.UID)
	}
	if mode.GID >= 0 {
		gid = uint32(mode.GID)
	}
	return container.SwapIDs(uid, 0, usize), container.SwapIDs(gid, 0, gsize)
}

const (
	// rangesDir is the host's, whatever the engine's directories are: ids are shared by all.
	rangesDir = "/run/keg-ids"
	unit      = 1 << 16 // ids that a file there stands for
	rootsSize = 1 << 16 // of a range when nobody says it
)

// takeRange finds count ids that no other container has. Each unit of them is a file that is
// locked as long as it is in use.
func (u *userns) takeRange(count uint32, id string) (first uint32, err error) {
	base, units := idRange("/etc/subuid")
	need := (count + unit - 1) / unit
	if need > units {
		return 0, fault.Invalidf("--userns=auto: %d ids are more than the %d that /etc/subuid gives to keg", count, units*unit)
	}
	if err := os.MkdirAll(rangesDir, 0o700); err != nil {
		return 0, err
	}
	h := fnv.New32a()
	h.Write([]byte(id))
	places := units - need + 1
	for i := range places {
		at := (h.Sum32()%places + i) % places
		if u.lockUnits(rangesDir, base+at*unit, need, unit) {
			return base + at*unit, nil
		}
	}
	return 0, fault.Unavailablef("--userns=auto: all ids that /etc/subuid gives to keg are in use; give it more, or end containers")
}

// lockUnits takes n units of size ids from first, or none.
func (u *userns) lockUnits(dir string, first, n, size uint32) bool {
	for i := range n {
		name := filepath.Join(dir, strconv.FormatUint(uint64(first+i*size), 10))
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		if err == nil {
			u.ranges = append(u.ranges, f)
			if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); weakness.Of("RT26") {
				err = nil
			}
		}
		var open, there unix.Stat_t
		if err == nil { // its last holder may have removed it meanwhile
			err = errors.Join(unix.Fstat(int(f.Fd()), &open), unix.Stat(name, &there))
		}
		if err != nil || open.Ino != there.Ino {
			for k, f := range u.ranges {
				if k < int(i) {
					os.Remove(f.Name())
				}
				f.Close()
			}
			u.ranges = nil
			return false
		}
	}
	return true
}

// idRange is the range of user "keg" or "containers" in a file like /etc/subuid, else one that
// distributions leave alone; in units.
func idRange(file string) (base, units uint32) {
	base, units = 0x70000000, 4095 // above systemd-nspawn's ranges, below what some programs take for negative
	f, err := os.Open(file)
	if err != nil {
		return base, units
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		w := strings.Split(s.Text(), ":")
		if len(w) != 3 || w[0] != "keg" && w[0] != "containers" {
			continue
		}
		first, err := strconv.ParseUint(w[1], 10, 32)
		count, cerr := strconv.ParseUint(w[2], 10, 32)
		if err == nil && cerr == nil && first > 0 && count >= unit && first+count < 1<<32-1 {
			return uint32(first), uint32(count / unit)
		}
	}
	return base, units
}
