// Small tools that tell about files, processes and the machine.
package builtin

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"
)

// flags parses options that may be clustered ("-la"), as people type them.
func flags(name string, args []string, define func(*flag.FlagSet)) (*flag.FlagSet, bool) {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	define(fs)
	return fs, fs.Parse(split(fs, args)) == nil
}

// split turns a cluster of one-letter boolean options into single ones.
func split(fs *flag.FlagSet, args []string) (out []string) {
	for i, a := range args {
		if a == "--" || a == "-" || len(a) < 2 || a[0] != '-' {
			return append(out, args[i:]...)
		}
		if len(a) == 2 || a[1] == '-' || fs.Lookup(a[1:]) != nil || strings.Contains(a, "=") {
			out = append(out, a)
			if f := fs.Lookup(strings.TrimLeft(a, "-")); f != nil && !isBool(f) && i+1 < len(args) {
				out = append(out, args[i+1])
				return append(out, split(fs, args[i+2:])...)
			}
			continue
		}
		for j, c := range a[1:] {
			f := fs.Lookup(string(c))
			out = append(out, "-"+string(c))
			if f != nil && !isBool(f) { // the rest is its value: -n5
				if rest := a[j+2:]; rest != "" {
					out = append(out, rest)
				} else if i+1 < len(args) {
					out = append(out, args[i+1])
					return append(out, split(fs, args[i+2:])...)
				}
				break
			}
		}
	}
	return out
}

func isBool(f *flag.Flag) bool {
	b, ok := f.Value.(interface{ IsBoolFlag() bool })
	return ok && b.IsBoolFlag()
}

// shellBuiltin runs what the shell has built in, under the tool's own name.
func shellBuiltin(name string, args []string) int {
	return sh(name, append([]string{"-c", name + ` "$@"`, name}, args...))
}

func pathPart(name string, args []string) int {
	if len(args) == 0 {
		fmt.Fprintf(os.Stderr, "%s: missing operand\n", name)
		return 1
	}
	if name == "dirname" {
		fmt.Println(path.Dir(args[0]))
		return 0
	}
	b := path.Base(args[0])
	if len(args) > 1 && b != args[1] {
		b = strings.TrimSuffix(b, args[1])
	}
	fmt.Println(b)
	return 0
}

func date(name string, args []string) int {
	now := time.Now()
	f, ok := flags(name, args, func(f *flag.FlagSet) {
		f.BoolFunc("u", "UTC", func(string) error { now = now.UTC(); return nil })
	})
	if !ok {
		return 2
	}
	if f.NArg() == 0 {
		fmt.Println(now.Format("Mon Jan  2 15:04:05 MST 2006"))
		return 0
	}
	layout, ok := strings.CutPrefix(f.Arg(0), "+")
	if !ok {
		fmt.Fprintf(os.Stderr, "%s: invalid date %q\n", name, f.Arg(0))
		return 1
	}
	r := strings.NewReplacer("%%", "%", "%Y", now.Format("2006"), "%m", now.Format("01"), "%d", now.Format("02"),
		"%H", now.Format("15"), "%M", now.Format("04"), "%S", now.Format("05"), "%F", now.Format("2006-01-02"),
		"%T", now.Format("15:04:05"), "%s", strconv.FormatInt(now.Unix(), 10), "%N", fmt.Sprintf("%09d", now.Nanosecond()),
		"%Z", now.Format("MST"), "%a", now.Format("Mon"), "%b", now.Format("Jan"), "%j", fmt.Sprintf("%03d", now.YearDay()))
	fmt.Println(r.Replace(layout))
	return 0
}

func df(name string, args []string) int {
	if _, ok := flags(name, args, func(f *flag.FlagSet) { f.Bool("h", false, "") }); !ok {
		return 2
	}
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return fail(name, err)
	}
	fmt.Printf("%-20s %9s %9s %9s %4s %s\n", "Filesystem", "Size", "Used", "Available", "Use%", "Mounted on")
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		var st unix.Statfs_t
		if len(f) < 2 || unix.Statfs(f[1], &st) != nil || st.Blocks == 0 {
			continue
		}
		size, free := float64(st.Blocks)*float64(st.Bsize), float64(st.Bfree)*float64(st.Bsize)
		avail := float64(st.Bavail) * float64(st.Bsize)
		fmt.Printf("%-20s %9s %9s %9s %3.0f%% %s\n", f[0], units.BytesSize(size), units.BytesSize(size-free),
			units.BytesSize(avail), 100*(size-free)/size, f[1])
	}
	return 0
}

func du(name string, args []string) int {
	var human, sum bool
	f, ok := flags(name, args, func(f *flag.FlagSet) {
		f.BoolVar(&human, "h", false, "human-readable sizes")
		f.BoolVar(&sum, "s", false, "only a total for each argument")
	})
	if !ok {
		return 2
	}
	show := func(bytes int64, p string) {
		size := strconv.FormatInt((bytes+1023)/1024, 10)
		if human {
			size = units.BytesSize(float64(bytes))
		}
		fmt.Printf("%s\t%s\n", size, p)
	}
	roots := f.Args()
	if len(roots) == 0 {
		roots = []string{"."}
	}
	code := 0
	for _, root := range roots {
		sizes := map[string]int64{}
		var dirs []string
		err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() {
				dirs = append(dirs, p)
			}
			var st unix.Stat_t
			if err := unix.Lstat(p, &st); err != nil {
				return err
			}
			for q := p; ; q = filepath.Dir(q) {
				sizes[q] += st.Blocks * 512
				if q == filepath.Clean(root) || q == filepath.Dir(q) {
					return nil
				}
			}
		})
		if err != nil {
			code = fail(name, err)
		}
		slices.Reverse(dirs)
		if sum || len(dirs) == 0 {
			dirs = []string{root}
		}
		for _, d := range dirs {
			show(sizes[filepath.Clean(d)], d)
		}
	}
	return code
}

func env(name string, args []string) int {
	if name == "printenv" && len(args) > 0 {
		v, ok := os.LookupEnv(args[0])
		if !ok {
			return 1
		}
		fmt.Println(v)
		return 0
	}
	vars := os.Environ()
	for len(args) > 0 {
		switch {
		case args[0] == "-i":
			vars = nil
		case strings.Contains(args[0], "="):
			vars = append(vars, args[0])
		default:
			bin, err := exec.LookPath(args[0])
			if err != nil {
				fmt.Fprintf(os.Stderr, "%s: %s: No such file or directory\n", name, args[0])
				return 127
			}
			return fail(name, syscall.Exec(bin, args, vars))
		}
		args = args[1:]
	}
	for _, v := range vars {
		fmt.Println(v)
	}
	return 0
}

func hostname(name string, _ []string) int {
	h, err := os.Hostname()
	if err != nil {
		return fail(name, err)
	}
	fmt.Println(h)
	return 0
}

func id(name string, args []string) int {
	u, err := user.Current()
	if err != nil { // an id without an entry
		u = &user.User{Uid: strconv.Itoa(os.Getuid()), Username: strconv.Itoa(os.Getuid()), Gid: strconv.Itoa(os.Getgid())}
	}
	arg := ""
	if len(args) > 0 {
		arg = args[0]
	}
	switch {
	case name == "whoami" || arg == "-un":
		fmt.Println(u.Username)
	case arg == "-u":
		fmt.Println(u.Uid)
	case arg == "-g":
		fmt.Println(u.Gid)
	default:
		groups, _ := os.Getgroups()
		list := make([]string, len(groups))
		for i, g := range groups {
			list[i] = named(strconv.Itoa(g), groupName(strconv.Itoa(g)))
		}
		if len(list) == 0 {
			list = []string{named(u.Gid, groupName(u.Gid))}
		}
		fmt.Printf("uid=%s gid=%s groups=%s\n", named(u.Uid, u.Username), named(u.Gid, groupName(u.Gid)), strings.Join(list, ","))
	}
	return 0
}

func named(id, name string) string {
	if name == "" || name == id {
		return id
	}
	return id + "(" + name + ")"
}

func groupName(gid string) string {
	g, err := user.LookupGroupId(gid)
	if err != nil {
		return ""
	}
	return g.Name
}

func ln(name string, args []string) int {
	var soft, force bool
	f, ok := flags(name, args, func(f *flag.FlagSet) {
		f.BoolVar(&soft, "s", false, "symbolic link")
		f.BoolVar(&force, "f", false, "replace the target")
		f.Bool("n", false, "")
	})
	if !ok || f.NArg() != 2 {
		fmt.Fprintf(os.Stderr, "usage: %s [-sf] SOURCE TARGET\n", name)
		return 2
	}
	target := f.Arg(1)
	if st, err := os.Stat(target); err == nil && st.IsDir() {
		target = filepath.Join(target, filepath.Base(f.Arg(0)))
	}
	if force {
		os.Remove(target)
	}
	link := os.Link
	if soft {
		link = os.Symlink
	}
	if err := link(f.Arg(0), target); err != nil {
		return fail(name, err)
	}
	return 0
}

func nproc(string, []string) int {
	fmt.Println(runtime.NumCPU())
	return 0
}

func ps(name string, _ []string) int {
	ents, err := os.ReadDir("/proc")
	if err != nil {
		return fail(name, err)
	}
	fmt.Println("PID   USER     COMMAND")
	for _, e := range ents {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		st, err := os.Stat("/proc/" + e.Name())
		if err != nil {
			continue
		}
		uid := strconv.Itoa(int(st.Sys().(*syscall.Stat_t).Uid))
		owner := uid
		if u, err := user.LookupId(uid); err == nil {
			owner = u.Username
		}
		cmd, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		text := strings.TrimSpace(strings.ReplaceAll(string(cmd), "\x00", " "))
		if text == "" {
			comm, _ := os.ReadFile("/proc/" + e.Name() + "/comm")
			text = "[" + strings.TrimSpace(string(comm)) + "]"
		}
		fmt.Printf("%5d %-8s %s\n", pid, owner, text)
	}
	return 0
}

func readlink(name string, args []string) int {
	var full bool
	f, ok := flags(name, args, func(f *flag.FlagSet) { f.BoolVar(&full, "f", false, "canonical path") })
	if !ok || f.NArg() == 0 {
		return 2
	}
	read := os.Readlink
	if full {
		read = func(p string) (string, error) {
			p, err := filepath.EvalSymlinks(p)
			if err != nil {
				return "", err
			}
			return filepath.Abs(p)
		}
	}
	for _, p := range f.Args() {
		s, err := read(p)
		if err != nil {
			return 1
		}
		fmt.Println(s)
	}
	return 0
}

func sleep(name string, args []string) int {
	var total time.Duration
	for _, a := range args {
		if a == "infinity" || a == "inf" {
			select {}
		}
		if strings.Trim(a, "0123456789.") == "" {
			a += "s"
		}
		if days, ok := strings.CutSuffix(a, "d"); ok {
			n, err := strconv.ParseFloat(days, 64)
			if err != nil {
				return fail(name, err)
			}
			total += time.Duration(n * 24 * float64(time.Hour))
			continue
		}
		d, err := time.ParseDuration(a)
		if err != nil {
			return fail(name, fmt.Errorf("invalid time interval %q", a))
		}
		total += d
	}
	time.Sleep(total)
	return 0
}

func stat(name string, args []string) int {
	code := 0
	for _, p := range args {
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			code = fail(name, &os.PathError{Op: "stat", Path: p, Err: err})
			continue
		}
		fi, err := os.Lstat(p)
		if err != nil {
			code = fail(name, err)
			continue
		}
		fmt.Printf("  File: %s\n  Size: %d\tBlocks: %d\t%s\nAccess: (%04o/%s)  Uid: %d  Gid: %d\nModify: %s\n",
			p, st.Size, st.Blocks, kindOf(fi.Mode()), st.Mode&0o7777, fi.Mode(), st.Uid, st.Gid, fi.ModTime())
	}
	return code
}

func kindOf(m fs.FileMode) string {
	switch {
	case m.IsRegular():
		return "regular file"
	case m.IsDir():
		return "directory"
	case m&fs.ModeSymlink != 0:
		return "symbolic link"
	}
	return "special file"
}

func syncDisks(string, []string) int {
	unix.Sync()
	return 0
}

func uname(_ string, args []string) int {
	var u unix.Utsname
	unix.Uname(&u)
	s := unix.ByteSliceToString
	arg := "-s"
	if len(args) > 0 {
		arg = args[0]
	}
	switch arg {
	case "-a":
		fmt.Println(s(u.Sysname[:]), s(u.Nodename[:]), s(u.Release[:]), s(u.Version[:]), s(u.Machine[:]))
	case "-r":
		fmt.Println(s(u.Release[:]))
	case "-n":
		fmt.Println(s(u.Nodename[:]))
	case "-m":
		fmt.Println(s(u.Machine[:]))
	case "-v":
		fmt.Println(s(u.Version[:]))
	default:
		fmt.Println(s(u.Sysname[:]))
	}
	return 0
}

// wget [-q] [-O FILE|-] [-T SECONDS] URL...
func wget(name string, args []string) int {
	var quiet, spider bool
	out, timeout := "", 30
	f, ok := flags(name, args, func(f *flag.FlagSet) {
		f.BoolVar(&quiet, "q", false, "quiet")
		f.BoolVar(&spider, "spider", false, "only check")
		f.StringVar(&out, "O", "", "output file")
		f.IntVar(&timeout, "T", timeout, "seconds to wait")
	})
	if !ok || f.NArg() == 0 {
		return 2
	}
	client := http.Client{Timeout: time.Duration(timeout) * time.Second}
	for _, url := range f.Args() {
		if !strings.Contains(url, "://") {
			url = "http://" + url
		}
		if err := fetch(&client, url, out, spider); err != nil {
			if !quiet {
				fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
			}
			return 1
		}
	}
	return 0
}

func fetch(c *http.Client, url, out string, spider bool) error {
	resp, err := c.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 400 {
		return fmt.Errorf("server returned error: HTTP/1.1 %s", resp.Status)
	}
	if spider {
		return nil
	}
	if out == "-" {
		_, err = io.Copy(os.Stdout, resp.Body)
		return err
	}
	if out == "" {
		if out = path.Base(resp.Request.URL.Path); out == "/" || out == "." {
			out = "index.html"
		}
	}
	w, err := os.Create(out)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, resp.Body)
	return errors.Join(err, w.Close())
}

func which(_ string, args []string) int {
	code := 0
	for _, a := range args {
		p, err := exec.LookPath(a)
		if err != nil {
			code = 1
			continue
		}
		fmt.Println(p)
	}
	return code
}
