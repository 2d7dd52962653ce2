// Probe prints what a process of a container is allowed, one fact a line, so that two places can be
// compared and the whole be reviewed (test/testdata/confinement). It changes nothing that lasts.
//
//	probe          the table on standard output
//	probe FILE     the table in a file
//	probe -cat F   the file
//	probe -dir D   a directory for everybody
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	out := io.Writer(os.Stdout)
	switch {
	case len(os.Args) == 3 && os.Args[1] == "-cat":
		b, err := os.ReadFile(os.Args[2])
		check(err)
		os.Stdout.Write(b)
		return
	case len(os.Args) == 3 && os.Args[1] == "-dir":
		check(os.Mkdir(os.Args[2], 0o777))
		check(os.Chmod(os.Args[2], os.ModeSticky|0o777))
		return
	case len(os.Args) == 3 && os.Args[1] == "-sleep":
		for {
			_ = unix.Pause()
		}
	case len(os.Args) == 2:
		f, err := os.CreateTemp(filepath.Dir(os.Args[1]), "new")
		check(err)
		defer func() { check(os.Chmod(f.Name(), 0o644)); check(os.Rename(f.Name(), os.Args[1])) }()
		out = f
	}
	w := bufio.NewWriter(out)
	defer w.Flush()
	status(w)
	mounts(w)
	paths(w)
	devices(w)
	kernel(w)
	calls(w)
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func read(p string) string {
	b, err := os.ReadFile(p)
	if err != nil {
		return errno(err)
	}
	return strings.TrimSpace(string(b))
}

func errno(err error) string {
	var e unix.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &e):
		return unix.ErrnoName(e)
	}
	return err.Error()
}

func status(w io.Writer) {
	for line := range strings.Lines(read("/proc/self/status")) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch k {
		case "Uid", "Gid", "Groups", "Umask", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters":
			fmt.Fprintf(w, "status %s %s\n", k, strings.Join(strings.Fields(v), " "))
		}
	}
	// Open before the probe opened anything: the runtime's own poller comes later.
	fds := 0
	for fd := 3; fd < 256; fd++ {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			fds++
		}
	}
	fmt.Fprintln(w, "inherited descriptors beyond the streams", fds)
	fmt.Fprintln(w, "oom_score_adj", read("/proc/self/oom_score_adj"))
	for line := range strings.Lines(read("/proc/self/cgroup")) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && f[2] != "/" {
			fmt.Fprintln(w, "cgroup seen from outside:", line)
		}
	}
	d, _ := os.Getwd()
	fmt.Fprintln(w, "cwd", d)
}

// mounts: place, options and type. The root's own options are the storage's; controllers are the host's.
func mounts(w io.Writer) {
	var out []string
	for line := range strings.Lines(read("/proc/self/mountinfo")) {
		left, right, _ := strings.Cut(strings.TrimSpace(line), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		at, opts := l[4], strings.Split(strings.TrimSuffix(l[5], ",relatime"), ",")
		sort.Strings(opts)
		shared := ""
		if len(l) > 6 {
			shared = " " + strings.Join(l[6:], " ")
		}
		kind := r[0]
		switch {
		case at == "/" || strings.HasPrefix(at, "/out"):
			if shared != "" {
				out = append(out, "mount "+at+shared)
			}
			continue
		case strings.HasPrefix(at, "/sys/fs/cgroup/"):
			at = "/sys/fs/cgroup/*"
		case at == "/sys/fs/cgroup" || strings.HasPrefix(at, "/etc/"):
			kind = "-" // of the host
		case strings.HasPrefix(at, "/proc/") || strings.HasPrefix(at, "/sys/"):
			continue // covers: see the paths
		}
		out = append(out, "mount "+at+" "+strings.Join(opts, ",")+" "+kind+shared)
	}
	sort.Strings(out)
	for i, l := range out {
		if i == 0 || l != out[i-1] {
			fmt.Fprintln(w, l)
		}
	}
}

// paths: what is hidden shows nothing, whether the kernel has it or not; what is read-only refuses.
func paths(w io.Writer) {
	for _, p := range []string{"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/kpagecgroup", "/proc/kpagecount",
		"/proc/kpageflags", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/dev/block",
		"/sys/devices/virtual/powercap", "/sys/firmware"} {
		fmt.Fprintln(w, "hidden", p, hidden(p))
	}
	for _, p := range []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/sys/kernel", "/sys/fs/cgroup"} {
		err := unix.Access(p, unix.W_OK)
		if errors.Is(err, unix.ENOENT) {
			err = unix.EROFS // not of this kernel
		}
		fmt.Fprintln(w, "write", p, errno(err))
	}
}

func hidden(p string) string {
	st, err := os.Stat(p)
	if errors.Is(err, os.ErrNotExist) {
		return "yes"
	}
	if err != nil {
		return errno(err)
	}
	if st.IsDir() {
		if list, err := os.ReadDir(p); err == nil && len(list) == 0 {
			return "yes"
		}
		return "no"
	}
	f, err := os.Open(p)
	if err != nil {
		return errno(err)
	}
	defer f.Close()
	if n, _ := f.Read(make([]byte, 1)); n == 0 {
		return "yes"
	}
	return "no"
}

func devices(w io.Writer) {
	list, err := os.ReadDir("/dev")
	check(err)
	for _, e := range list {
		var st unix.Stat_t
		p := "/dev/" + e.Name()
		check(unix.Lstat(p, &st))
		switch to, err := os.Readlink(p); {
		case err == nil:
			fmt.Fprintln(w, "dev", p, "->", to)
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			fmt.Fprintf(w, "dev %s/ %o\n", p, st.Mode&0o7777)
		default:
			fmt.Fprintf(w, "dev %s %d:%d %o\n", p, unix.Major(st.Rdev), unix.Minor(st.Rdev), st.Mode&0o7777)
		}
	}
	for _, d := range []struct {
		what         string
		mode         uint32
		major, minor uint32
	}{{"block 254:0", unix.S_IFBLK, 254, 0}, {"kmsg 1:11", unix.S_IFCHR, 1, 11}, {"fuse 10:229", unix.S_IFCHR, 10, 229}} {
		p := "/out/node"
		err := unix.Mknod(p, d.mode|0o666, int(unix.Mkdev(d.major, d.minor)))
		fmt.Fprintln(w, "make", d.what, errno(err))
		if err == nil {
			fd, err := unix.Open(p, unix.O_RDONLY|unix.O_NONBLOCK, 0)
			fmt.Fprintln(w, "open", d.what, errno(err))
			if err == nil {
				unix.Close(fd)
			}
			os.Remove(p)
		}
	}
}

func kernel(w io.Writer) {
	for _, p := range []string{"net/ipv4/ip_unprivileged_port_start", "net/ipv4/ping_group_range"} {
		fmt.Fprintln(w, "sysctl", p, strings.Join(strings.Fields(read("/proc/sys/"+p)), " "))
	}
}
