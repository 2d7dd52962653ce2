package test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// host lists what an engine could leave on it: mounts, links, nftables tables, cgroups,
// processes. Only the engine below state is looked at where others could have their own.
func host(state string) (all []string) {
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if f[4] != "/" {
			all = append(all, "mount "+f[4])
		}
	}
	links, _ := netlink.LinkList()
	for _, l := range links {
		all = append(all, "link "+l.Attrs().Name)
	}
	if out, err := exec.Command("nft", "list", "tables").Output(); err == nil {
		for line := range strings.Lines(string(out)) {
			all = append(all, "nft "+strings.TrimSpace(line))
		}
	}
	// Cgroups are not private: a container of ours is one that our journal tells of.
	journal, _ := os.ReadFile(filepath.Join(state, "root", "events"))
	filepath.WalkDir("/sys/fs/cgroup", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(p, "keg") && bytes.Contains(journal, []byte(d.Name())) && len(d.Name()) == 64 {
			all = append(all, "cgroup "+p)
		}
		return nil
	})
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		b, _ := os.ReadFile(p)
		if (bytes.HasPrefix(b, []byte("keg-monitor")) || bytes.HasPrefix(b, []byte("keg-keeper"))) && bytes.Contains(b, []byte(state)) {
			all = append(all, fmt.Sprintf("process %s", bytes.ReplaceAll(b, []byte{0}, []byte(" "))))
		}
	}
	slices.Sort(all)
	return all
}

func difference(before, after []string) string {
	var d []string
	for _, x := range after {
		if !slices.Contains(before, x) {
			d = append(d, "+ "+x)
		}
	}
	for _, x := range before {
		if !slices.Contains(after, x) {
			d = append(d, "- "+x)
		}
	}
	return strings.Join(d, "\n")
}
