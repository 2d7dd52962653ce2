package sandbox

// Users and groups by name, from the image's own etc/passwd and etc/group. Both are
// hostile: pipes, links, lines and numbers of any size (CVE-2024-9676, CVE-2024-40635).

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
	"keg/internal/weakness"
)

const (
	maxAccounts = 10 << 20 // bytes of one file
	maxLine     = 64 << 10
	maxID       = 1<<31 - 1
)

// LookupUser resolves "user", "uid", "user:group" and so on, as in docker run --user,
// against the root at rootFd. Digits are never looked up as a name, but a number that has an
// entry gets its group and home. "" is root. groupAdd are further groups (--group-add).
func LookupUser(rootFd int, spec string, groupAdd []string) (u specs.User, home string, err error) {
	name, group, hasGroup := strings.Cut(spec, ":")
	if name == "" {
		name = "0"
	}
	users, groups, err := accounts(rootFd)
	if err != nil {
		return u, "", err
	}
	home = "/"
	id, numeric, err := parseID(name)
	if err != nil {
		return u, "", fault.Invalidf("unable to find user %s: %w", name, err)
	}
	u.UID = id
	entry := slices.IndexFunc(users, func(e user.User) bool {
		if numeric {
			return e.Uid == int(id)
		}
		return e.Name == name
	})
	switch {
	case entry >= 0:
		e := users[entry]
		if !inRange(e.Uid) || !inRange(e.Gid) {
			return u, "", fault.Invalidf("user %s in etc/passwd has an id out of range (%d:%d)", name, e.Uid, e.Gid)
		}
		u.UID, u.GID, home = uint32(e.Uid), uint32(e.Gid), cleanHome(e.Home)
		name = e.Name
	case !numeric:
		return u, "", fault.NotFoundf("unable to find user %s: no matching entries in passwd file", name)
	}
	if hasGroup && group != "" {
		if u.GID, err = findGroup(groups, group); err != nil {
			return u, "", err
		}
	} else if entry >= 0 {
		// Supplementary groups by membership; an explicit group stands alone, as in Docker.
		for _, g := range groups {
			if slices.Contains(g.List, name) && inRange(g.Gid) {
				u.AdditionalGids = append(u.AdditionalGids, uint32(g.Gid))
			}
		}
	}
	for _, g := range groupAdd {
		gid, err := findGroup(groups, g)
		if err != nil {
			return u, "", err
		}
		u.AdditionalGids = append(u.AdditionalGids, gid)
	}
	// The primary group is among the groups, so that dropping it is noticed (CVE-2022-36109).
	u.AdditionalGids = append([]uint32{u.GID}, u.AdditionalGids...)
	u.AdditionalGids = dedupe(u.AdditionalGids)
	return u, home, nil
}

// LastID is the highest id that accounts of the root at rootFd have, but except.
func LastID(rootFd int, except int) (last uint32, err error) {
	users, groups, err := accounts(rootFd)
	if err != nil {
		return 0, err
	}
	see := func(id int) {
		if inRange(id) && id != except {
			last = max(last, uint32(id))
		}
	}
	for _, u := range users {
		see(u.Uid)
		see(u.Gid)
	}
	for _, g := range groups {
		see(g.Gid)
	}
	return last, nil
}

func findGroup(groups []user.Group, name string) (uint32, error) {
	id, numeric, err := parseID(name)
	if err != nil {
		return 0, fault.Invalidf("unable to find group %s: %w", name, err)
	}
	if numeric {
		return id, nil
	}
	for _, g := range groups {
		if g.Name == name {
			if !inRange(g.Gid) {
				return 0, fault.Invalidf("group %s in etc/group has an id out of range (%d)", name, g.Gid)
			}
			return uint32(g.Gid), nil
		}
	}
	return 0, fault.NotFoundf("unable to find group %s: no matching entries in group file", name)
}

// parseID tells a number from a name. What looks like a number but is none that the kernel
// takes is an error, never a name: names of digits are how images pretend to be somebody.
func parseID(s string) (id uint32, numeric bool, err error) {
	digits := strings.TrimPrefix(strings.TrimPrefix(s, "-"), "+")
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return 0, false, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if weakness.Of("RT10") {
		return uint32(n), true, nil
	}
	if err != nil || n < 0 || n > maxID {
		return 0, true, errors.New("uids and gids must be in range 0-2147483647")
	}
	return uint32(n), true, nil
}

func inRange(id int) bool { return id >= 0 && id <= maxID }

// cleanHome refuses what could forge a line of another file.
func cleanHome(h string) string {
	if !strings.HasPrefix(h, "/") || strings.ContainsFunc(h, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return "/"
	}
	return h
}

func dedupe(ids []uint32) []uint32 {
	var out []uint32
	for _, id := range ids {
		if !slices.Contains(out, id) {
			out = append(out, id)
		}
	}
	return out
}

func accounts(rootFd int) (users []user.User, groups []user.Group, err error) {
	b, err := readAccounts(rootFd, "etc/passwd")
	if err != nil {
		return nil, nil, err
	}
	if users, err = user.ParsePasswd(bytes.NewReader(b)); err != nil {
		return nil, nil, fmt.Errorf("read etc/passwd of the image: %w", err)
	}
	if b, err = readAccounts(rootFd, "etc/group"); err != nil {
		return nil, nil, err
	}
	if groups, err = user.ParseGroup(bytes.NewReader(b)); err != nil {
		return nil, nil, fmt.Errorf("read etc/group of the image: %w", err)
	}
	return users, groups, nil
}

// readAccounts reads one file, within bounds; a missing one is empty. Lines that are too long are
// left out: no account needs one.
func readAccounts(rootFd int, name string) ([]byte, error) {
	f, err := linux.OpenInRoot(rootFd, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if weakness.Of("RT11") {
		var fd int
		if fd, err = unix.Openat(rootFd, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err == nil {
			f = os.NewFile(uintptr(fd), name)
		}
	}
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s of the image: %w", name, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read %s of the image: %w", name, err)
	}
	if !st.Mode().IsRegular() {
		return nil, fault.Invalidf("%s of the image is not a regular file", name)
	}
	if st.Size() > maxAccounts {
		return nil, fault.Invalidf("%s of the image is too large (%d bytes, the limit is %d)", name, st.Size(), maxAccounts)
	}
	return shortLines(io.LimitReader(f, st.Size()), st.Size())
}

// shortLines are those lines of size bytes that are not longer than maxLine. The buffer is no larger than it must
// be: a monitor keeps what its start allocated.
func shortLines(r io.Reader, size int64) ([]byte, error) {
	out := make([]byte, 0, size)
	for b := bufio.NewReaderSize(r, int(min(size+1, maxLine))); ; {
		line, err := b.ReadSlice('\n')
		switch {
		case err == nil || errors.Is(err, io.EOF):
			out = append(out, line...)
		case errors.Is(err, bufio.ErrBufferFull):
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = b.ReadSlice('\n')
			}
		}
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
	}
}
