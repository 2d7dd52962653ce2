package rootless

// What an ordinary user's engine has and lacks on this host, a sentence each.

import (
	"cmp"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"keg/internal/linux"
)

// Feature is one of them; OK tells that nothing is missing.
type Feature struct {
	Name string
	OK   bool
	Text string
}

// Inside tells whether this process runs in an ordinary user's own namespace.
func Inside() bool {
	outer, _ := linux.OwnIDs("uid_map")
	return linux.InUserNS() && outer != 0
}

// Features looks at the host from inside.
func Features(run string) []Feature {
	_, count := linux.OwnIDs("uid_map")
	gid, _ := linux.OwnIDs("gid_map")
	ids := Feature{"subordinate ids", !linux.SingleID(), fmt.Sprintf("Containers have %d user ids (newuidmap, /etc/subuid).", count)}
	if !ids.OK {
		uid, gid, name := whoWeAre()
		ids.Text = cmp.Or(findIDs(name, uid, gid).lack, "Containers have one user id; more were given meanwhile, and come when all containers have ended and keg starts anew.")
	}
	way := Feature{Name: "way out", OK: true}
	text, err := os.ReadFile(at(run).lack())
	if way.OK = err != nil; way.OK {
		text, _ = os.ReadFile(at(run).way())
	}
	way.Text = sentence(string(text))
	return []Feature{ids, way, pings(number("/proc/sys/net/ipv4/ping_group_range"), gid), lowPorts(number("/proc/sys/net/ipv4/ip_unprivileged_port_start")),
		ranges(linux.Kernel(), linux.SingleID()), limits()}
}

// ranges looks whether containers can have ids of their own.
func ranges(kernel string, one bool) Feature {
	f := Feature{Name: "ranges of ids"}
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err == nil {
		dev.Close()
	}
	switch {
	case one:
		f.Text = "Containers cannot have ids of their own (--userns=auto) without subordinate ids."
	case !linux.KernelAtLeast(6, 12):
		f.Text = "Containers cannot have ids of their own (--userns=auto): that needs Linux 6.12; this is " + kernel + "."
	case err != nil:
		f.Text = "Containers cannot have ids of their own (--userns=auto): " + err.Error() + "; get it with: sudo modprobe fuse"
	default:
		f.OK, f.Text = true, "Containers can have ids of their own (--userns=auto)."
	}
	return f
}

// Lack says why the user has one id only, and what to do. It is for a process inside.
func Lack() string {
	uid, gid, name := whoWeAre()
	return cmp.Or(findIDs(name, uid, gid).lack, "more were given meanwhile, and come when all containers have ended and keg starts anew")
}

// MoreIDs says how the user gets more subordinate ids.
func MoreIDs() string {
	uid, gid, name := whoWeAre()
	next := 100000
	ids := findIDs(name, uid, gid)
	for _, s := range append(ids.uids, ids.gids...) {
		next = max(next, s.first+s.count)
	}
	more := fmt.Sprintf("%d-%d", next, next+1<<16-1)
	return "add ids to /etc/subuid and /etc/subgid, such that nobody else has, with: sudo usermod --add-subuids " + more + " --add-subgids " + more + " " +
		cmp.Or(name, strconv.Itoa(uid)) + " (they come when all containers have ended)"
}

func whoWeAre() (uid, gid int, name string) {
	u, _ := linux.OwnIDs("uid_map")
	g, _ := linux.OwnIDs("gid_map")
	if acc, err := user.LookupId(strconv.Itoa(int(u))); err == nil {
		name = acc.Username
	}
	return int(u), int(g), name
}

func sentence(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:] + "."
}

func number(file string) string {
	b, _ := os.ReadFile(file)
	return strings.Join(strings.Fields(string(b)), " ")
}

// pings looks whether the host lets the user's group ping (icmp(7)).
func pings(allowed string, gid uint32) Feature {
	var lo, hi uint32
	if n, _ := fmt.Sscan(allowed, &lo, &hi); n == 2 && lo <= gid && gid <= hi {
		return Feature{"ping", true, "Containers can ping what is outside."}
	}
	return Feature{"ping", false, "Pings of what is outside are not answered; let ordinary users ping with: sudo sysctl net.ipv4.ping_group_range='0 2147483647'"}
}

func lowPorts(first string) Feature {
	n, err := strconv.Atoi(first)
	if err == nil && n <= 80 {
		return Feature{"low ports", true, fmt.Sprintf("Ports from %d up can be published.", n)}
	}
	return Feature{"low ports", false, "Ports below " + first + " cannot be published by an ordinary user; allow it with: sudo sysctl net.ipv4.ip_unprivileged_port_start=80"}
}

// limits looks whether the host gave a cgroup in which those of containers can be made, and with which controllers.
func limits() Feature {
	d := linux.DelegatedCgroup()
	if !d.Inside {
		return Feature{"cgroup", false, noLimits}
	}
	has := " " + number(filepath.Join(linux.CgroupRoot, d.Path, "cgroup.controllers")) + " "
	var lacks []string
	for _, c := range []string{"memory", "cpu", "pids"} {
		if !strings.Contains(has, " "+c+" ") {
			lacks = append(lacks, c)
		}
	}
	if len(lacks) > 0 {
		return Feature{"cgroup", false, fmt.Sprintf("Limits of %s have no effect: the host's cgroup %s lacks these controllers; with systemd: sudo systemctl set-property user@.service Delegate='cpu memory pids'",
			strings.Join(lacks, ", "), d.Path)}
	}
	return Feature{"cgroup", true, "Limits of memory, processors and processes apply, in the host's cgroup " + d.Path + "."}
}

const (
	howToLimits = "; with cgroup v2 and systemd, start keg by: systemd-run --user --scope -p Delegate=yes"
	noLimits    = "Limits (--memory, --cpus, --pids-limit) and rules (--device-cgroup-rule) have no effect, and pause and stats do not work: the host gave no cgroup to this session" +
		howToLimits
)

// HowToLimits is how a user who has no cgroup gets one, to be put behind a sentence, or "".
func HowToLimits() string {
	if NoLimits() != "" {
		return howToLimits
	}
	return ""
}

// NoLimits says why limits do not apply, or "".
func NoLimits() string {
	if f := limits(); Inside() && !f.OK {
		return f.Text
	}
	return ""
}
