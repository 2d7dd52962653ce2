package engine

import (
	"bytes"
	"fmt"
	"os"
	osuser "os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"

	"keg/internal/fault"
)

// tick is the unit of times in /proc/PID/stat: USER_HZ, 100 on every architecture that Linux
// still has but alpha and ia64.
const tick = time.Second / 100

// proc is one process as /proc tells it.
type proc struct {
	pid, ppid, uid int
	tty            int
	used           time.Duration // of all processors
	started        time.Time
	cmd            string
}

// fullList is the table of "ps -ef".
func fullList(pids []int) (container.TopResponse, error) {
	boot, err := bootTime()
	if err != nil {
		return container.TopResponse{}, err
	}
	res := container.TopResponse{
		Titles:    []string{"UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"},
		Processes: [][]string{},
	}
	now, names := time.Now(), map[int]string{}
	slices.Sort(pids)
	for _, pid := range pids {
		p, err := readProc(pid, boot)
		if err != nil {
			continue // it ended meanwhile
		}
		if names[p.uid] == "" {
			names[p.uid] = userName(p.uid)
		}
		res.Processes = append(res.Processes, []string{names[p.uid], strconv.Itoa(p.pid), strconv.Itoa(p.ppid),
			strconv.Itoa(p.load(now)), p.since(now), ttyName(p.tty), clock(p.used), p.cmd})
	}
	return res, nil
}

func readProc(pid int, boot time.Time) (proc, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return proc{}, err
	}
	p, err := parseStat(stat, boot)
	if err != nil {
		return p, err
	}
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return p, err
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == "Uid:" {
			p.uid, _ = strconv.Atoi(f[2]) // the effective one, as ps
		}
	}
	argv, err := os.ReadFile(dir + "/cmdline")
	if err != nil {
		return p, err
	}
	if argv = bytes.TrimRight(argv, "\x00"); len(argv) > 0 {
		p.cmd = string(bytes.ReplaceAll(argv, []byte{0}, []byte(" ")))
	}
	return p, nil
}

// parseStat reads proc_pid_stat(5). The name in parentheses may hold anything, also ")".
func parseStat(b []byte, boot time.Time) (proc, error) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return proc{}, fault.Invalidf("unreadable /proc/PID/stat: %q", b)
	}
	f := strings.Fields(string(b[end+1:])) // from field 3, the state, on
	if len(f) < 20 {
		return proc{}, fault.Invalidf("unreadable /proc/PID/stat: %q", b)
	}
	num := func(field int) int {
		n, _ := strconv.Atoi(f[field-3])
		return n
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b[:open])))
	return proc{pid: pid, ppid: num(4), tty: num(7), used: time.Duration(num(14)+num(15)) * tick,
		started: boot.Add(time.Duration(num(22)) * tick), cmd: "[" + string(b[open+1:end]) + "]"}, nil
}

// load is the share of one processor over the life of the process, in percent.
func (p proc) load(now time.Time) int {
	if life := now.Sub(p.started); life > 0 {
		return min(99, int(100*p.used/life))
	}
	return 0
}

// since is STIME: the time today, the day this year, else the year.
func (p proc) since(now time.Time) string {
	t := p.started.Local()
	switch now = now.Local(); {
	case t.Year() != now.Year():
		return t.Format("2006")
	case t.YearDay() != now.YearDay():
		return t.Format("Jan02")
	}
	return t.Format("15:04")
}

// ttyName decodes a device number: 136 to 143 are pseudo-terminals, 4 the consoles.
func ttyName(dev int) string {
	major, minor := dev>>8&0xfff, dev&0xff|dev>>12&0xfff00
	switch {
	case major >= 136 && major <= 143:
		return fmt.Sprintf("pts/%d", (major-136)<<8|minor)
	case major == 4 && minor < 64:
		return fmt.Sprintf("tty%d", minor)
	case major == 4:
		return fmt.Sprintf("ttyS%d", minor-64)
	}
	return "?"
}

func clock(d time.Duration) string {
	s := int(d / time.Second)
	return fmt.Sprintf("%02d:%02d:%02d", s/3600, s/60%60, s%60)
}

func userName(uid int) string {
	id := strconv.Itoa(uid)
	if u, err := osuser.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

func bootTime() (time.Time, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "btime "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			return time.Unix(n, 0), err
		}
	}
	return time.Time{}, fault.Unavailablef("/proc/stat names no boot time")
}
