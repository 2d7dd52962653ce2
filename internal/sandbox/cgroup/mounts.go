package cgroup

// Where the hierarchies are mounted, read once.

import (
	"os"
	"path/filepath"
	"strings"
	"sync"

	"keg/internal/fault"
)

// mount is one hierarchy; Dir is its mount point. root is the part of the hierarchy that the
// mount shows.
type mount struct {
	Hierarchy
	root string
}

// relative turns a path of /proc/<pid>/cgroup into one below the mount point.
func (m *mount) relative(path string) string {
	if m.root != "/" {
		return strings.TrimPrefix(path, m.root)
	}
	return path
}

type mounts struct {
	list    []mount
	unified bool
}

var mounted = sync.OnceValues(func() (mounts, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return mounts{}, err
	}
	return parseMounts(string(b))
})

// v1 options that name no controller.
var notControllers = "rw ro xattr noprefix clone_children cpuset_v2_mode all nsdelegate"

// parseMounts reads mountinfo (proc(5)); the first mount of a hierarchy counts.
func parseMounts(info string) (m mounts, err error) {
	seen := map[string]bool{}
	v1 := false
	for line := range strings.Lines(info) {
		f, tail, ok := strings.Cut(strings.TrimSpace(line), " - ")
		left, right := strings.Fields(f), strings.Fields(tail)
		if !ok || len(left) < 5 || len(right) < 3 {
			continue
		}
		h := mount{Hierarchy: Hierarchy{Name: filepath.Base(left[4]), Dir: left[4]}, root: left[3]}
		switch right[0] {
		case "cgroup2":
			h.V2 = true
		case "cgroup":
			for _, o := range strings.Split(right[2], ",") {
				if !containsWord(notControllers, o) && !strings.HasPrefix(o, "release_agent=") {
					h.Controllers = append(h.Controllers, o)
				}
			}
			v1 = true
		default:
			continue
		}
		key := strings.Join(h.Controllers, ",")
		if seen[key] || !strings.HasPrefix(h.Dir, "/sys/fs/cgroup") {
			continue
		}
		seen[key] = true
		if len(h.Controllers) > 1 {
			h.Links = h.Controllers
		}
		m.list = append(m.list, h)
	}
	m.unified = !v1
	if len(m.list) == 0 {
		return m, fault.Unsupportedf("no cgroup hierarchy is mounted below /sys/fs/cgroup")
	}
	return m, nil
}
