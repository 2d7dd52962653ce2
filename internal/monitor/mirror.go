package monitor

// An ordinary user's containers with a range of ids of their own: a part of his subordinate ids, and a mirror of their
// files that the kernel mounts with shifted owners.

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
	"keg/internal/mirror"
	"keg/internal/rootless"
	"keg/internal/sandbox"
	"keg/internal/snapshot"
)

const (
	usersUnit = 1 << 10    // ids that a file stands for, and the fewest of a range when nobody says it
	nobody    = 1<<16 - 2  // the id that programs give themselves, whatever others an image has
	wholeSize = nobody + 1 // of a range that has it in its row
)

// userRange takes ids of the user's for the container and maps them: count of them, or as many as the image names in its
// etc/passwd and etc/group and one for nobody.
func (m *monitor) userRange(u *userns, count uint32) ([]specs.LinuxIDMapping, error) {
	if linux.SingleID() {
		return nil, fault.Unsupportedf("--userns=auto: a container with ids of its own needs subordinate ids: %s", rootless.Lack())
	}
	if err := mirror.Unsupported(); err != nil {
		return nil, fmt.Errorf("--userns=auto: %w", err)
	}
	asked := count
	if asked == 0 {
		need, err := m.idsNeeded()
		if err != nil {
			return nil, err
		}
		count = (need + 1 + usersUnit - 1) / usersUnit * usersUnit
	}
	first, err := u.takeUsersRange(count)
	if err != nil {
		return nil, err
	}
	if asked != 0 || count >= wholeSize {
		return []specs.LinuxIDMapping{{HostID: first, Size: count}}, nil
	}
	return []specs.LinuxIDMapping{{HostID: first, Size: count - 1}, {ContainerID: nobody, HostID: first + count - 1, Size: 1}}, nil
}

// idsNeeded is one more than the highest id that the image and the record name.
func (m *monitor) idsNeeded() (uint32, error) {
	root, err := m.snapshots.Mount(m.id, snapshot.MountOptions{ReadOnly: true})
	if err != nil {
		return 0, err
	}
	defer unix.Close(root)
	last, err := sandbox.LastID(root, nobody)
	if err != nil {
		return 0, err
	}
	user, _, err := sandbox.LookupUser(root, m.rec.Config.User, m.rec.Host.GroupAdd)
	if err != nil {
		return 0, err
	}
	for _, id := range append(user.AdditionalGids, user.UID, user.GID) {
		if id != nobody {
			last = max(last, id)
		}
	}
	return last + 1, nil
}

// takeUsersRange finds ids that no other container of the user's has, from the highest down: the low ones, and nobody, are those that
// files of images and containers without a range have.
func (u *userns) takeUsersRange(count uint32) (first uint32, err error) {
	_, uids := linux.OwnIDs("uid_map")
	_, gids := linux.OwnIDs("gid_map")
	have := min(uids, gids)
	if count >= have {
		return 0, fault.Invalidf("--userns=auto: %d ids are more than the %d subordinate ones that you have; %s", count, have-1, rootless.MoreIDs())
	}
	dir, err := usersRanges()
	if err != nil {
		return 0, err
	}
	n := (count + usersUnit - 1) / usersUnit
	for at := have / usersUnit; at > n; at-- {
		first := (at - n) * usersUnit
		if first <= nobody && nobody < first+n*usersUnit {
			continue
		}
		if u.lockUsers(dir, first, n) {
			return first, nil
		}
	}
	// Too many to leave out some.
	first = have - count
	if u.lockUsers(dir, first/usersUnit*usersUnit, (have-1)/usersUnit-first/usersUnit+1) {
		return first, nil
	}
	return 0, fault.Unavailablef("--userns=auto: no %d of your %d subordinate ids are free in a row: other containers have them; end some, or %s", count, have-1, rootless.MoreIDs())
}

func (u *userns) lockUsers(dir string, first, n uint32) bool {
	// The last one who leaves takes the directory along.
	return os.MkdirAll(dir, 0o700) == nil && u.lockUnits(dir, first, n, usersUnit)
}

// usersRanges is the user's directory of ranges, whatever his engines' directories are.
func usersRanges() (string, error) {
	uid, _ := linux.OwnIDs("uid_map")
	id := strconv.Itoa(int(uid))
	var st unix.Stat_t
	if run := "/run/user/" + id; unix.Lstat(run, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && int(st.Uid) == os.Geteuid() {
		return filepath.Join(run, "keg-ids"), nil
	}
	dir := "/tmp/keg-ids-" + id
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	if err := unix.Lstat(dir, &st); err != nil {
		return "", err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return "", fault.Deniedf("%s is not a directory that only you can write to; remove it", dir)
	}
	return dir, nil
}

// shownVolume is a volume that a container sees through its mirror.
type shownVolume struct {
	dest string
	dir  *os.File
}

// mirrorFiles replaces the root and the volumes of a run by their mirrors.
func (r *run) mirrorFiles() (err error) {
	trees := []mirror.Tree{{Dir: r.root}}
	for _, v := range r.shown {
		trees = append(trees, mirror.Tree{Dir: int(v.dir.Fd()), Shared: true})
	}
	if r.mirror, err = mirror.Start(trees, r.ids.user); err != nil {
		return fmt.Errorf("show the container its files: %w", err)
	}
	unix.Close(r.root)
	r.root = -1
	for i, fd := range r.mirror.Take() {
		if i == 0 {
			r.root = fd
			continue
		}
		r.shown[i-1].dir.Close()
		r.use(r.shown[i-1].dest, os.NewFile(uintptr(fd), r.shown[i-1].dest))
	}
	r.shown = nil
	return nil
}

// loosen sees that a process which is to end does not wait for an answer that never comes: the kernel lets go of it only when
// the server that hangs is gone.
func (r *run) loosen() {
	m := r.mirror
	if m == nil {
		return
	}
	time.AfterFunc(hang, func() {
		select {
		case <-r.done:
		default:
			m.Abort()
		}
	})
}

// hang is how long a server may take for an answer to a process that was killed.
const hang = 5 * time.Second

// watchMirror ends a container whose files cannot be reached any more.
func (m *monitor) watchMirror(r *run) {
	if r.mirror == nil {
		return
	}
	ended := r.mirror.Ended()
	go func() {
		select {
		case <-r.done:
		case <-ended:
			_ = r.signal(int(unix.SIGKILL))
		}
	}()
}

// lostFiles says of a run that failed whether its files could not be reached any more. The kernel knows that earlier than we are
// told of the server's end.
func (r *run) lostFiles(code int) string {
	if r.mirror == nil || code == 0 {
		return ""
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(r.root, &fs); errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED) {
		return "the process that shows the container its files (" + mirror.Argv0 + ") ended"
	}
	return ""
}
