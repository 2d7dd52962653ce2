// keg oci: an OCI runtime with runc's command line, for containerd, Docker and people.

package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/launch"
	"keg/internal/oci"
)

// ociName is the name by which the binary is a runtime: what calls a runtime gives it no first word.
const ociName = launch.RuntimeArgv0

// newOCI is there for help: Main sees to "keg oci" itself, as its flags are runc's, not ours.
func newOCI(a *app) *cobra.Command {
	return &cobra.Command{Use: "oci [OPTIONS] COMMAND [ARG...]", DisableFlagParsing: true, RunE: func(_ *cobra.Command, args []string) error {
		if code := ociMain(a.out, args); code != 0 {
			return &failure{code: code}
		}
		return nil
	}}
}

// ociCall is one call of the runtime.
type ociCall struct {
	runtime oci.Runtime
	log     string
	format  string
	debug   bool
	args    []string // of the command
	flags   *pflag.FlagSet
	out     io.Writer
}

// ociCommand is a row of the table: flags are bound by setup, whose result runs.
type ociCommand struct {
	name, words string
	args        int // how many are needed
	clones      bool
	setup       func(*ociCall) func(context.Context) (int, error)
}

func ociCommands() []ociCommand {
	return []ociCommand{
		{"create", "ID", 1, true, ociCreate},
		{"delete", "ID", 1, false, ociDelete},
		{"exec", "ID COMMAND [ARG...]", 1, true, ociExec},
		{"features", "", 0, false, ociFeatures},
		{"kill", "ID [SIGNAL]", 1, false, ociKill},
		{"list", "", 0, false, ociList},
		{"pause", "ID", 1, false, ociPause},
		{"ps", "ID [ps OPTIONS]", 1, false, ociPs},
		{"resume", "ID", 1, false, ociResume},
		{"run", "ID", 1, true, ociRun},
		{"spec", "", 0, false, ociSpec},
		{"start", "ID", 1, false, ociStart},
		{"state", "ID", 1, false, ociState},
		{"update", "ID", 1, false, ociUpdate},
	}
}

// ociMain is the runtime: args are what follows its name.
func ociMain(out io.Writer, args []string) int {
	c := &ociCall{out: out}
	code, err := c.run(args)
	if err != nil {
		c.complain("error", err.Error())
		fmt.Fprintf(os.Stderr, "%s: %v\n", ociName, err)
		if code == 0 {
			code = 1
		}
	}
	return code
}

func (c *ociCall) run(args []string) (int, error) {
	fs := pflag.NewFlagSet(ociName, pflag.ContinueOnError)
	fs.SetInterspersed(false)
	fs.Usage = func() {}
	fs.StringVar(&c.runtime.Root, "root", "/run/keg-oci", "Directory of the containers' states")
	fs.StringVar(&c.log, "log", "", "File to write errors to, besides standard error")
	fs.StringVar(&c.format, "log-format", "text", `"text" or "json"`)
	fs.BoolVar(&c.debug, "debug", false, "Write more to the log")
	fs.BoolVar(&c.runtime.Systemd, "systemd-cgroup", false, `Read cgroupsPath as "slice:prefix:name"`)
	fs.String("rootless", "auto", "Accepted as runc's")
	fs.String("criu", "", "")
	show := fs.BoolP("version", "v", false, "Print the version")
	help := fs.BoolP("help", "h", false, "Print usage")
	if err := fs.Parse(longFlags(args)); err != nil {
		return 1, err
	}
	c.runtime.Warn = func(w string) { c.complain("warning", w) }
	if c.format != "text" && c.format != "json" {
		return 1, failf("unknown log-format %q", c.format)
	}
	rest := fs.Args()
	if *show || len(rest) > 0 && rest[0] == "version" {
		fmt.Fprintf(c.out, "%s version %s\ncommit: %s\nspec: %s\n", ociName, version, commit, specs.Version)
		return 0, nil
	}
	if *help || len(rest) == 0 || rest[0] == "help" {
		c.usage(fs)
		return 0, nil
	}
	for _, cmd := range ociCommands() {
		if cmd.name == rest[0] || cmd.name == "list" && rest[0] == "ls" {
			return c.command(&cmd, rest[1:], args)
		}
	}
	return 1, failf("unknown command %q; %s --help lists them", rest[0], ociName)
}

func (c *ociCall) command(cmd *ociCommand, args, all []string) (int, error) {
	c.flags = pflag.NewFlagSet(cmd.name, pflag.ContinueOnError)
	c.flags.SetInterspersed(cmd.name != "exec" && cmd.name != "ps")
	c.flags.Usage = func() {}
	help := c.flags.BoolP("help", "h", false, "Print usage")
	run := cmd.setup(c)
	if err := c.flags.Parse(longFlags(args)); err != nil {
		return 1, failf("%s: %v", cmd.name, err)
	}
	if *help {
		fmt.Fprintf(c.out, "Usage:  %s %s [OPTIONS] %s\n\n%s", ociName, cmd.name, cmd.words, c.flags.FlagUsages())
		return 0, nil
	}
	if c.args = c.flags.Args(); len(c.args) < cmd.args {
		return 1, failf("%s needs %s", cmd.name, cmd.words)
	}
	if cmd.clones {
		if err := launch.FromSafePlace(all); err != nil {
			return 1, fmt.Errorf("execute the runtime from a read-only mount: %w", err)
		}
	}
	return run(context.Background())
}

// longFlags turns "-name", which runc's parser takes for "--name", into the latter.
func longFlags(args []string) []string {
	out := slices.Clone(args)
	for i, a := range out {
		if a == "--" || !strings.HasPrefix(a, "-") {
			break
		}
		if len(a) > 2 && a[1] != '-' && (a[2] != '=') {
			out[i] = "-" + a
		}
	}
	return out
}

func (c *ociCall) usage(fs *pflag.FlagSet) {
	fmt.Fprintf(c.out, "Usage:  keg oci [OPTIONS] COMMAND [ARG...]\n\nRun bundles: an OCI runtime with runc's command line. Called %s it needs no first word.\n\n%s\nCommands:\n", ociName, fs.FlagUsages())
	for _, cmd := range ociCommands() {
		fmt.Fprintf(c.out, "  %-9s %s\n", cmd.name, cmd.words)
	}
}

// complain writes to the log file, in the form that containerd's client of runc reads.
func (c *ociCall) complain(level, msg string) {
	if c.log == "" {
		return
	}
	f, err := os.OpenFile(c.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return
	}
	defer f.Close()
	at := time.Now().Format(time.RFC3339)
	if c.format == "json" {
		_ = json.NewEncoder(f).Encode(map[string]string{"level": level, "msg": msg, "time": at})
		return
	}
	fmt.Fprintf(f, "time=%q level=%s msg=%q\n", at, level, msg)
}

// launch binds the flags that create, run and exec share.
func (c *ociCall) launch() func() oci.Launch {
	var l oci.Launch
	c.flags.StringVar(&l.ConsoleSocket, "console-socket", "", "Unix socket that receives the terminal's master")
	c.flags.StringVar(&l.PidFile, "pid-file", "", "File to write the process id to")
	c.flags.IntVar(&l.PreserveFDs, "preserve-fds", 0, "Pass on this many descriptors from 3 on")
	return func() oci.Launch {
		l.Stdio = [3]*os.File{os.Stdin, os.Stdout, os.Stderr}
		if n, err := strconv.Atoi(os.Getenv("LISTEN_FDS")); err == nil && n > 0 && os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()) {
			l.Listen = n
		}
		return l
	}
}

// bundleFlags are those of create and run.
func (c *ociCall) bundleFlags() (bundle *string, check func() error) {
	bundle = c.flags.StringP("bundle", "b", ".", "Directory of the bundle")
	noPivot := c.flags.Bool("no-pivot", false, "Refused: keg always pivots")
	c.flags.Bool("no-new-keyring", false, "Accepted: a container gets a keyring of its own all the same")
	return bundle, func() error {
		if *noPivot {
			return failf("--no-pivot is not supported: without pivot_root the host's file system stays within reach of the container; a root on a RAM disk needs no such flag here")
		}
		return nil
	}
}

func ociCreate(c *ociCall) func(context.Context) (int, error) {
	launch := c.launch()
	bundle, check := c.bundleFlags()
	return func(ctx context.Context) (int, error) {
		if err := check(); err != nil {
			return 1, err
		}
		return 0, c.runtime.Create(ctx, c.args[0], *bundle, launch())
	}
}

func ociRun(c *ociCall) func(context.Context) (int, error) {
	launch := c.launch()
	bundle, check := c.bundleFlags()
	detach := c.flags.BoolP("detach", "d", false, "Leave the container running and return")
	keep := c.flags.Bool("keep", false, "Do not delete the container when its process has ended")
	c.flags.Bool("no-subreaper", false, "Accepted: keg is no subreaper")
	return func(ctx context.Context) (int, error) {
		if err := check(); err != nil {
			return 1, err
		}
		return c.runtime.Run(ctx, c.args[0], *bundle, launch(), *detach, *keep)
	}
}

func ociStart(c *ociCall) func(context.Context) (int, error) {
	return func(ctx context.Context) (int, error) { return 0, c.runtime.Start(ctx, c.args[0]) }
}

func ociPause(c *ociCall) func(context.Context) (int, error) {
	return func(ctx context.Context) (int, error) { return 0, c.runtime.Pause(ctx, c.args[0]) }
}

func ociResume(c *ociCall) func(context.Context) (int, error) {
	return func(ctx context.Context) (int, error) { return 0, c.runtime.Resume(ctx, c.args[0]) }
}

func ociDelete(c *ociCall) func(context.Context) (int, error) {
	force := c.flags.BoolP("force", "f", false, "Kill the container first if it lives")
	return func(ctx context.Context) (int, error) { return 0, c.runtime.Delete(ctx, c.args[0], *force) }
}

func ociKill(c *ociCall) func(context.Context) (int, error) {
	all := c.flags.BoolP("all", "a", false, "Signal every process of the container")
	return func(context.Context) (int, error) {
		name := "SIGTERM"
		if len(c.args) > 1 {
			name = c.args[1]
		}
		sig, err := ociSignal(name)
		if err != nil {
			return 1, err
		}
		return 0, c.runtime.Kill(c.args[0], sig, *all)
	}
}

func ociSignal(name string) (unix.Signal, error) {
	if n, err := strconv.Atoi(name); err == nil && n >= 0 && n <= 64 {
		return unix.Signal(n), nil
	}
	s := strings.ToUpper(name)
	if !strings.HasPrefix(s, "SIG") {
		s = "SIG" + s
	}
	if n := unix.SignalNum(s); n != 0 {
		return n, nil
	}
	return 0, fault.Invalidf("unknown signal %q", name)
}

func (c *ociCall) json(v any) error {
	e := json.NewEncoder(c.out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func ociState(c *ociCall) func(context.Context) (int, error) {
	return func(context.Context) (int, error) {
		s, err := c.runtime.State(c.args[0])
		if err != nil {
			return 1, err
		}
		return 0, c.json(s)
	}
}

func ociList(c *ociCall) func(context.Context) (int, error) {
	format := c.flags.StringP("format", "f", "table", `"table" or "json"`)
	quiet := c.flags.BoolP("quiet", "q", false, "Print ids only")
	return func(context.Context) (int, error) {
		all, err := c.runtime.List()
		if err != nil {
			return 1, err
		}
		switch {
		case *quiet:
			for _, s := range all {
				fmt.Fprintln(c.out, s.ID)
			}
		case *format == "json":
			return 0, json.NewEncoder(c.out).Encode(all)
		case *format != "table":
			return 1, failf("invalid format option %q: table or json", *format)
		default:
			fmt.Fprintf(c.out, "%-24s %-10s %-10s %-32s %-32s %s\n", "ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")
			for _, s := range all {
				fmt.Fprintf(c.out, "%-24s %-10d %-10s %-32s %-32s %s\n", s.ID, s.Pid, s.Status, s.Bundle, s.Created.Format(time.RFC3339Nano), s.Owner)
			}
		}
		return 0, nil
	}
}

func ociPs(c *ociCall) func(context.Context) (int, error) {
	format := c.flags.StringP("format", "f", "table", `"table" or "json"`)
	return func(ctx context.Context) (int, error) {
		pids, err := c.runtime.Pids(c.args[0])
		if err != nil {
			return 1, err
		}
		if *format == "json" {
			return 0, json.NewEncoder(c.out).Encode(append([]int{}, pids...))
		}
		fmt.Fprintln(c.out, "PID\tCMD")
		for _, p := range pids {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p))
			fmt.Fprintf(c.out, "%d\t%s\n", p, strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", " ")))
		}
		return 0, nil
	}
}

func ociSpec(c *ociCall) func(context.Context) (int, error) {
	bundle := c.flags.StringP("bundle", "b", ".", "Directory of the bundle")
	rootless := c.flags.Bool("rootless", false, "")
	return func(context.Context) (int, error) {
		if *rootless {
			return 1, failf("spec --rootless is not supported: keg run makes rootless containers by itself")
		}
		return 0, oci.WriteTemplate(*bundle)
	}
}

func ociFeatures(c *ociCall) func(context.Context) (int, error) {
	return func(context.Context) (int, error) { return 0, c.json(oci.Features()) }
}

func ociUpdate(c *ociCall) func(context.Context) (int, error) {
	file := c.flags.StringP("resources", "r", "", `File with the new limits as JSON; "-" is standard input`)
	var memory, swap, reservation int64
	var shares, quota, period, pids int64
	var cpus, mems string
	c.flags.Int64Var(&memory, "memory", 0, "Memory limit in bytes")
	c.flags.Int64Var(&swap, "memory-swap", 0, "Memory and swap in bytes")
	c.flags.Int64Var(&reservation, "memory-reservation", 0, "Soft memory limit in bytes")
	c.flags.Int64Var(&shares, "cpu-share", 0, "CPU weight against other containers")
	c.flags.Int64Var(&quota, "cpu-quota", 0, "Microseconds of CPU time a period")
	c.flags.Int64Var(&period, "cpu-period", 0, "The period in microseconds")
	c.flags.Int64Var(&pids, "pids-limit", 0, "Number of processes")
	c.flags.StringVar(&cpus, "cpuset-cpus", "", "CPUs to use")
	c.flags.StringVar(&mems, "cpuset-mems", "", "Memory nodes to use")
	return func(context.Context) (int, error) {
		res := &specs.LinuxResources{}
		if *file != "" {
			if err := readResources(*file, res); err != nil {
				return 1, err
			}
			return 0, c.runtime.Update(c.args[0], res)
		}
		set := c.flags.Changed
		res.Memory, res.CPU, res.Pids = &specs.LinuxMemory{}, &specs.LinuxCPU{Cpus: cpus, Mems: mems}, nil
		for name, at := range map[string]struct {
			from *int64
			to   **int64
		}{"memory": {&memory, &res.Memory.Limit}, "memory-swap": {&swap, &res.Memory.Swap}, "memory-reservation": {&reservation, &res.Memory.Reservation}, "cpu-quota": {&quota, &res.CPU.Quota}} {
			if set(name) {
				*at.to = at.from
			}
		}
		if set("cpu-share") {
			n := uint64(shares)
			res.CPU.Shares = &n
		}
		if set("cpu-period") {
			n := uint64(period)
			res.CPU.Period = &n
		}
		if set("pids-limit") {
			res.Pids = &specs.LinuxPids{Limit: &pids}
		}
		return 0, c.runtime.Update(c.args[0], res)
	}
}

func readResources(file string, into *specs.LinuxResources) error {
	f := os.Stdin
	if file != "-" {
		var err error
		if f, err = os.Open(file); err != nil {
			return err
		}
		defer f.Close()
	}
	if err := json.NewDecoder(bufio.NewReader(io.LimitReader(f, 1<<20))).Decode(into); err != nil {
		return fault.Invalidf("read the resources: %v", err)
	}
	return nil
}

// ociExec runs one more process: from a file as managers write it, or from words.
func ociExec(c *ociCall) func(context.Context) (int, error) {
	launch := c.launch()
	f := c.flags
	file := f.StringP("process", "p", "", "File with the process as JSON")
	detach := f.BoolP("detach", "d", false, "Return once the process runs")
	tty := f.BoolP("tty", "t", false, "Allocate a terminal")
	cwd := f.String("cwd", "", "Working directory")
	user := f.StringP("user", "u", "", "uid[:gid]")
	env := f.StringArrayP("env", "e", nil, "Set environment variables")
	caps := f.StringArrayP("cap", "c", nil, "Add a capability")
	groups := f.IntSliceP("additional-gids", "g", nil, "Further groups")
	noNew := f.Bool("no-new-privs", false, "Set no_new_privs")
	apparmor := f.String("apparmor", "", "AppArmor profile")
	paused := f.Bool("ignore-paused", false, "Also in a paused container")
	f.String("process-label", "", "Accepted: SELinux is not used")
	f.String("cgroup", "", "Accepted: the process runs in the container's cgroup")
	return func(ctx context.Context) (int, error) {
		if *file != "" {
			p, err := oci.LoadProcess(*file)
			if err != nil {
				return 255, err
			}
			return c.runtime.Exec(ctx, c.args[0], p, launch(), *detach, *paused)
		}
		p, err := c.runtime.ProcessOf(c.args[0])
		if err != nil {
			return 255, err
		}
		if p.Args = c.args[1:]; len(p.Args) == 0 {
			return 255, failf("exec needs a command, or --process")
		}
		p.Terminal, p.Env = *tty, append(p.Env, *env...)
		p.Cwd = firstOf(*cwd, p.Cwd)
		p.NoNewPrivileges = p.NoNewPrivileges || *noNew
		p.ApparmorProfile = firstOf(*apparmor, p.ApparmorProfile)
		for _, g := range *groups {
			p.User.AdditionalGids = append(p.User.AdditionalGids, uint32(g))
		}
		if err := errors.Join(ociUser(p, *user), ociCaps(p, *caps)); err != nil {
			return 255, err
		}
		return c.runtime.Exec(ctx, c.args[0], p, launch(), *detach, *paused)
	}
}

func ociUser(p *specs.Process, s string) error {
	if s == "" {
		return nil
	}
	uid, gid, has := strings.Cut(s, ":")
	u, err := strconv.ParseUint(uid, 10, 31)
	g := uint64(0)
	if err == nil && has {
		g, err = strconv.ParseUint(gid, 10, 31)
	}
	if err != nil {
		return fault.Invalidf("invalid user %q: uid[:gid] is expected", s)
	}
	p.User.UID, p.User.GID = uint32(u), uint32(g)
	return nil
}

func ociCaps(p *specs.Process, add []string) error {
	if len(add) == 0 {
		return nil
	}
	var k specs.LinuxCapabilities
	if p.Capabilities != nil {
		k = *p.Capabilities
	}
	k.Bounding = append(slices.Clone(k.Bounding), add...)
	k.Permitted = append(slices.Clone(k.Permitted), add...)
	k.Effective = append(slices.Clone(k.Effective), add...)
	p.Capabilities = &k
	return nil
}
