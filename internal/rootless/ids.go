package rootless

// Which ids a user has, and how they are mapped: user_namespaces(7), subuid(5), newuidmap(1).

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"keg/internal/fault"
)

// A span is count ids from first.
type span struct{ first, count int }

// idMaps are the ids that a user's namespace has: he himself is its root, the rest are subordinate.
type idMaps struct {
	uid, gid   int
	uids, gids []span
	lack       string // why there is only one id; "" when there are more
}

// findIDs looks up the subordinate ids of a user. Without them, or without the programs that may map
// them, there is one id only.
func findIDs(name string, uid, gid int) idMaps {
	m := idMaps{uid: uid, gid: gid}
	m.uids, m.gids = subordinate("/etc/subuid", name, uid), subordinate("/etc/subgid", name, uid)
	who := name
	if who == "" {
		who = strconv.Itoa(uid)
	}
	_, err := exec.LookPath("newuidmap")
	_, gerr := exec.LookPath("newgidmap")
	switch {
	case err != nil || gerr != nil:
		m.lack = "newuidmap and newgidmap are not installed, so containers have one user id only (all files are root's); install them (Debian: apt install uidmap)"
	case len(m.uids) == 0 || len(m.gids) == 0:
		m.lack = "user " + who + " has no subordinate ids in /etc/subuid and /etc/subgid, so containers have one user id only (all files are root's); " +
			"add some with: sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 " + who
	}
	return m
}

func subordinate(file, name string, uid int) []span {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	return parseSubordinate(f, name, uid)
}

// parseSubordinate reads lines of user:first:count, the user by name or number.
func parseSubordinate(r io.Reader, name string, uid int) (out []span) {
	s := bufio.NewScanner(r)
	for s.Scan() {
		f := strings.Split(strings.TrimSpace(s.Text()), ":")
		if len(f) != 3 || f[0] != strconv.Itoa(uid) && (name == "" || f[0] != name) {
			continue
		}
		first, err := strconv.ParseUint(f[1], 10, 32)
		count, cerr := strconv.ParseUint(f[2], 10, 32)
		if err != nil || cerr != nil || count == 0 || first == 0 || first+count > 1<<32-1 {
			continue
		}
		out = append(out, span{int(first), int(count)})
	}
	return out
}

// args are those of newuidmap(1) after the pid: inside, outside, count.
func mapArgs(self int, spans []span) []string {
	out := []string{"0", strconv.Itoa(self), "1"}
	next := 1
	for _, s := range spans {
		out = append(out, strconv.Itoa(next), strconv.Itoa(s.first), strconv.Itoa(s.count))
		next += s.count
	}
	return out
}

// write maps the ids of the namespace that process pid is in.
func (m idMaps) write(pid int) error {
	if m.lack != "" {
		return m.writeSingle(pid)
	}
	if err := runMapper("newuidmap", pid, mapArgs(m.uid, m.uids), "/etc/subuid"); err != nil {
		return err
	}
	return runMapper("newgidmap", pid, mapArgs(m.gid, m.gids), "/etc/subgid")
}

func runMapper(program string, pid int, args []string, file string) error {
	out, err := exec.Command(program, append([]string{strconv.Itoa(pid)}, args...)...).CombinedOutput()
	if err == nil {
		return nil
	}
	said := strings.TrimSpace(string(out))
	if said == "" {
		said = err.Error()
	}
	return fault.Deniedf("map the subordinate ids: %s (%s); look at %s, and whether %s is setuid root", said, strings.Join(args, " "), file, program)
}

// writeSingle maps the one id that everybody may map.
func (m idMaps) writeSingle(pid int) error {
	dir := "/proc/" + strconv.Itoa(pid) + "/"
	err := os.WriteFile(dir+"setgroups", []byte("deny"), 0)
	if err == nil || errors.Is(err, os.ErrNotExist) {
		err = os.WriteFile(dir+"gid_map", []byte(fmt.Sprintf("0 %d 1\n", m.gid)), 0)
	}
	if err == nil {
		err = os.WriteFile(dir+"uid_map", []byte(fmt.Sprintf("0 %d 1\n", m.uid)), 0)
	}
	if errors.Is(err, syscall.EPERM) {
		return fault.Deniedf("map your user id: %w; the host forbids user namespaces to ordinary users (AppArmor: sysctl kernel.apparmor_restrict_unprivileged_userns=0)", err)
	}
	return err
}
