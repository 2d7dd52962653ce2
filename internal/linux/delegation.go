package linux

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// CgroupRoot is where cgroups are mounted.
const CgroupRoot = "/sys/fs/cgroup"

// Delegation is the part of the v2 hierarchy that was given to an ordinary user, from the top of the hierarchy; "" when there
// is none. Inside tells whether this process is in it: only then can its children be.
type Delegation struct {
	Path   string
	Inside bool
}

// DelegatedCgroup looks for it once: the highest cgroup above our own that we may change, else the one that systemd gives to
// users who are logged in. The same user finds the same one, whichever of his processes asks.
var DelegatedCgroup = sync.OnceValue(func() Delegation {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return Delegation{}
	}
	uid, _ := OwnIDs("uid_map")
	return findDelegation(CgroupRoot, string(b), uid)
})

// findDelegation is DelegatedCgroup for the hierarchy mounted at root and the text of /proc/self/cgroup.
func findDelegation(root, own string, uid uint32) Delegation {
	path, ok := strings.CutPrefix(strings.TrimSpace(own), "0::/")
	if !ok || strings.Contains(path, "\n") {
		return Delegation{} // cgroup v1, where nothing is delegated
	}
	at := ""
	for name := range strings.SplitSeq(path, "/") {
		if at += "/" + name; canDelegate(root + at) {
			return Delegation{at, true}
		}
	}
	if at = fmt.Sprintf("/user.slice/user-%d.slice/user@%d.service", uid, uid); canDelegate(root + at) {
		return Delegation{at, false}
	}
	return Delegation{}
}

func canDelegate(dir string) bool {
	for _, f := range []string{"", "cgroup.procs", "cgroup.subtree_control"} {
		if unix.Access(filepath.Join(dir, f), unix.W_OK) != nil {
			return false
		}
	}
	return true
}
