// Package delegate drives an installed OCI runtime (runc, crun, runsc, or one named by its path) through its
// command line, for those who want another box than the sandbox's. What it starts becomes a child
// of this process, which must be the one that waits for it.
//
//	keg                              runtime
//	config.json, rootfs  --->        create --bundle --pid-file   (with the program's streams)
//	the pid is recorded              start
//	one more process     --->        exec --detach --process --pid-file
//	signals              --->        kill
//	the end              --->        delete --force
package delegate

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
	"keg/internal/sandbox"
	"keg/internal/sandbox/cgroup"
)

// Own tells whether a runtime's name means the sandbox, with no other program.
func Own(name string) bool { return name == "" || name == "keg" }

// The monitor's environment is empty; these are where distributions put runtimes.
var places = [...]string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// Find resolves a name or an absolute path to a runtime's program.
func Find(name string) (string, error) {
	var candidates []string
	switch {
	case strings.ContainsAny(name, "\x00\n"):
	case path.IsAbs(name):
		candidates = []string{name}
	case !strings.Contains(name, "/"):
		for _, dir := range places {
			candidates = append(candidates, filepath.Join(dir, name))
		}
	}
	for _, c := range candidates {
		if fi, err := os.Stat(c); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return c, nil
		}
	}
	return "", fault.Invalidf("unknown or invalid runtime name: %s (neither an installed program nor an absolute path of one; without --runtime keg's own is used)", name)
}

// Container is one that an installed runtime runs.
type Container struct {
	ID     string
	Name   string // of the runtime, as people wrote it
	Bundle string // directory of this container alone: config.json, rootfs/, the runtime's records

	program string
	seen    int64 // how much of the runtime's log was read
}

// New names a container; nothing is done.
func New(name, id, bundle string) (*Container, error) {
	program, err := Find(name)
	return &Container{ID: id, Name: name, Bundle: bundle, program: program}, err
}

func (c *Container) rootfs() string { return filepath.Join(c.Bundle, "rootfs") }
func (c *Container) log() string    { return filepath.Join(c.Bundle, "runtime.log") }

// Start makes the bundle of spec, has the container created and started, and returns its process. Of the
// options Root, NetNS, Stdio, Cgroup, DefaultSeccomp and Recorded count.
func (c *Container) Start(ctx context.Context, spec *specs.Spec, o sandbox.Options) (_ *sandbox.Process, err error) {
	// Whoever the runtime leaves behind is ours to wait for.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, os.NewSyscallError("prctl", err)
	}
	inner, warnings, err := Translate(spec, o, c.rootfs())
	if err != nil {
		return nil, err
	}
	if err := c.mountRoot(o.Root); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = c.Remove(context.WithoutCancel(ctx))
		}
	}()
	if err := writeJSON(filepath.Join(c.Bundle, "config.json"), inner); err != nil {
		return nil, err
	}
	p, err := c.launch(ctx, "create", o.Stdio, spec.Process.Terminal, "--bundle", c.Bundle)
	if err != nil {
		return nil, err
	}
	p.Warnings = warnings
	if o.Cgroup != "" && !noCgroup() {
		if p.Cgroup, err = cgroup.Open(o.Cgroup); err != nil {
			return nil, err
		}
	}
	if o.Recorded != nil {
		at, err := linux.StartTime(p.Pid)
		if err == nil {
			err = o.Recorded(p.Pid, at)
		}
		if err != nil {
			return nil, fmt.Errorf("record the process: %w", err)
		}
	}
	return p, c.run(ctx, nil, "start", c.ID)
}

// Exec runs one more process in the container.
func (c *Container) Exec(ctx context.Context, p *specs.Process, o sandbox.Options) (*sandbox.Process, error) {
	attainable, warnings := sandbox.Attainable(p)
	if !linux.HasAppArmor() {
		attainable.ApparmorProfile = ""
	}
	f, err := os.CreateTemp(c.Bundle, "exec-*.json")
	if err != nil {
		return nil, err
	}
	f.Close()
	defer os.Remove(f.Name())
	if err := writeJSON(f.Name(), attainable); err != nil {
		return nil, err
	}
	proc, err := c.launch(ctx, "exec", o.Stdio, p.Terminal, "--detach", "--process", f.Name())
	if err == nil {
		proc.Warnings = warnings
	}
	return proc, err
}

// Kill sends a signal the runtime's way: the first process may be a guest of its own kernel.
func (c *Container) Kill(ctx context.Context, sig int) error {
	err := c.run(ctx, nil, "kill", c.ID, strconv.Itoa(sig))
	if err == nil {
		return nil
	}
	for _, gone := range []string{"not running", "already finished", "no such process", "No such process"} {
		if strings.Contains(err.Error(), gone) {
			return os.ErrProcessDone
		}
	}
	return err
}

// Remove ends what is left of the container and gives its root back.
func (c *Container) Remove(ctx context.Context) error {
	err := c.run(ctx, nil, "delete", "--force", c.ID)
	Unmount(c.Bundle)
	return err
}

// Unmount takes the root of a bundle away, once for each start that died.
func Unmount(bundle string) {
	for unix.Unmount(filepath.Join(bundle, "rootfs"), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
	}
}

// mountRoot attaches the detached root where the runtime can find it by a path.
func (c *Container) mountRoot(fd int) error {
	if err := os.MkdirAll(c.rootfs(), 0o700); err != nil {
		return err
	}
	Unmount(c.Bundle)
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, c.rootfs(), unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount the root of container %s on %s: %w", c.ID, c.rootfs(), err)
	}
	return nil
}

// launch has the runtime make a process and finds it by its pid file.
func (c *Container) launch(ctx context.Context, op string, stdio [3]*os.File, tty bool, args ...string) (_ *sandbox.Process, err error) {
	pidFile, err := os.CreateTemp(c.Bundle, "pid-*")
	if err != nil {
		return nil, err
	}
	pidFile.Close()
	defer os.Remove(pidFile.Name())
	args = append(args, "--pid-file", pidFile.Name())
	var console func() (*os.File, error)
	if tty {
		var socket string
		if socket, console, err = c.consoleSocket(); err != nil {
			return nil, err
		}
		args = append(args, "--console-socket", socket)
	}
	if err := c.run(ctx, stdio[:], op, append(args, c.ID)...); err != nil {
		if console != nil {
			if f, _ := console(); f != nil {
				f.Close()
			}
		}
		return nil, err
	}
	p := &sandbox.Process{}
	if console != nil {
		if p.Console, err = console(); err != nil {
			return nil, err
		}
	}
	b, err := os.ReadFile(pidFile.Name())
	if err == nil {
		p.Pid, err = strconv.Atoi(strings.TrimSpace(string(b)))
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s told no pid: %w", c.Name, op, err)
	}
	fd, err := unix.PidfdOpen(p.Pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("process %d of %s: %w", p.Pid, c.Name, err)
	}
	p.PidFD = os.NewFile(uintptr(fd), "pidfd")
	return p, nil
}

// patience bounds one call of the runtime: one that hangs must not hang us.
const patience = 2 * time.Minute

// run calls the runtime.
func (c *Container) run(ctx context.Context, stdio []*os.File, op string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if fi, err := os.Stat(c.log()); err == nil {
		c.seen = fi.Size()
	}
	all := append([]string{"--root", filepath.Join(c.Bundle, "state"), "--log", c.log(), "--log-format", "json", op}, args...)
	cmd := exec.CommandContext(ctx, c.program, all...)
	cmd.Dir, cmd.Env = c.Bundle, []string{"PATH=" + strings.Join(places[:], ":")}
	var said bytes.Buffer
	if len(stdio) == 3 && stdio[1] != nil {
		if stdio[0] != nil {
			cmd.Stdin = stdio[0]
		}
		cmd.Stdout, cmd.Stderr = stdio[1], stdio[1]
		if stdio[2] != nil {
			cmd.Stderr = stdio[2]
		}
	} else if op != "create" && op != "exec" {
		cmd.Stdout, cmd.Stderr = &said, &said
	}
	err := cmd.Run()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("no answer in %v", patience)
	}
	return c.failure(op, err, said.String())
}

// failure finds the reason in the runtime's log. A program that cannot be executed has Docker's exit code.
func (c *Container) failure(op string, err error, said string) error {
	msg := c.lastError()
	if msg == "" {
		msg = strings.TrimSpace(said)
	}
	if msg == "" {
		msg = err.Error()
	}
	e := errors.New(msg)
	if !strings.Contains(msg, op+" failed") {
		e = fmt.Errorf("%s %s failed: %s", c.Name, op, msg)
	}
	if code := execCode(msg); code != 0 && op != "delete" && op != "kill" {
		return &sandbox.ExecError{Code: code, Err: e}
	}
	return e
}

// execCode reads from the words of runc and crun why a program was not executed.
func execCode(msg string) int {
	switch {
	case !strings.Contains(msg, "exec"):
	case strings.Contains(msg, "executable file"), strings.Contains(msg, "no such file or directory"), strings.Contains(msg, "No such file or directory"):
		return 127
	case strings.Contains(msg, "ermission denied"), strings.Contains(msg, "exec format error"), strings.Contains(msg, "is a directory"):
		return 126
	}
	return 0
}

// lastError is the last message of level error since the last call began; one that tells why a program was
// not executed goes before those that tell what followed.
func (c *Container) lastError() (msg string) {
	f, err := os.Open(c.log())
	if err != nil {
		return ""
	}
	defer f.Close()
	if _, err := f.Seek(c.seen, io.SeekStart); err != nil {
		return ""
	}
	for s := bufio.NewScanner(io.LimitReader(f, 1<<20)); s.Scan(); {
		var line struct{ Level, Msg string }
		if json.Unmarshal(s.Bytes(), &line) == nil && (line.Level == "error" || line.Level == "fatal") && execCode(msg) == 0 {
			msg = strings.TrimSpace(line.Msg)
		}
	}
	return msg
}

func writeJSON(file string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o600)
}

var errNoTerminal = errors.New("the runtime sent no terminal")
