package sandbox

// From a furnished box to a running process: descriptors, clone, the talk over the control
// socket.
//
//	child -> parent  report{step, errno}       a step failed; the child exits
//	                 report{reportPid, pid}    exec only: the process is a second child
//	                 report{reportReady}       held: everything but execve is done
//	                 end of file               execve succeeded
//	parent -> child  one byte                  go ahead (also: the user namespace is mapped)

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
	"keg/internal/sandbox/seccomp"
	"keg/internal/weakness"
)

type start struct {
	box    *box
	layout layout
}

// warn collects what could not be had.
func (l *layout) warn(w ...string) { l.warnings = append(l.warnings, w...) }

// decide settles all that needs no descriptor.
func (s *start) decide() error {
	spec, o, l := s.box.spec, s.box.o, &s.layout
	if err := unsupported(spec, o.Hooks != nil); err != nil {
		return err
	}
	p, warnings, err := newProcess(spec.Process, o, s.box.inUserNS())
	if err != nil {
		return err
	}
	l.process = *p
	l.warn(warnings...)
	list := spec.Linux.Namespaces
	if o.UserNS != nil {
		list = slices.DeleteFunc(slices.Clone(list), func(n specs.LinuxNamespace) bool { return n.Type == specs.UserNamespace })
	}
	if l.ns, err = decideNamespaces(list, o.NetNS >= 0); err != nil {
		return err
	}
	if l.offsets, err = timeOffsets(spec.Linux, &l.ns); err != nil {
		return err
	}
	if l.sysctls, err = planSysctls(spec.Linux.Sysctl, l.ns.own); err != nil {
		return err
	}
	s.box.fitSysctls(l.sysctls)
	if err := s.box.borrowProc(l); err != nil {
		return err
	}
	if err := l.process.confine(spec, o); err != nil {
		return err
	}
	l.hold = o.Hold || o.Go != nil
	// A terminal would be lost with the older devpts.
	l.ordered = o.Go != nil && !l.tty && linux.KernelAtLeast(6, 8)
	l.hooks = o.Hooks != nil
	if o.UserNS != nil {
		l.joinUser = true
		l.ns.own[unix.CLONE_NEWUSER] = true
	}
	l.closeFirst = len(o.Private)
	if l.ns.own[unix.CLONE_NEWUTS] {
		l.hostname, l.domainname = spec.Hostname, spec.Domainname
	}
	l.readonly = spec.Linux.ReadonlyPaths
	l.rootRO = spec.Root != nil && spec.Root.Readonly
	if prop, ok := propagation(spec.Linux.RootfsPropagation); ok && prop != unix.MS_PRIVATE {
		l.rootProp = prop
	}
	return nil
}

const perLinux32 = 0x0008 // linux/personality.h

// unsupported names what a spec may ask for and would silently not get.
func unsupported(spec *specs.Spec, hooked bool) error {
	switch h := spec.Hooks; {
	//lint:ignore SA1019 Prestart is still asked for
	case h != nil && !hooked && len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer)+len(h.StartContainer)+len(h.Poststart)+len(h.Poststop) > 0:
		return fault.Unsupportedf("hooks are run by keg oci and by runtimes chosen with --runtime only")
	case spec.Linux.IntelRdt != nil:
		return fault.Unsupportedf("Intel RDT is not supported")
	}
	return nil
}

// confine compiles the filter and looks whether AppArmor is there.
func (c *process) confine(spec *specs.Spec, o *Options) (err error) {
	if c.apparmor != "" && !linux.HasAppArmor() {
		if c.apparmor != "unconfined" {
			c.warnings = append(c.warnings, "AppArmor is not enabled on this host: profile "+c.apparmor+" is not applied")
		}
		c.apparmor = ""
	}
	switch l := spec.Process.SelinuxLabel; {
	case l != "" && !linux.HasSELinux():
		c.warnings = append(c.warnings, "SELinux is not enabled on this host: the label "+l+" is not applied")
	default:
		c.selinux = l
	}
	if l := spec.Linux.Personality; l != nil {
		if len(l.Flags) > 0 || l.Domain != specs.PerLinux && l.Domain != specs.PerLinux32 {
			return fault.Invalidf("unknown personality %s %v", l.Domain, l.Flags)
		}
		c.personality = 0
		if l.Domain == specs.PerLinux32 {
			c.personality = perLinux32
		}
	}
	var f seccomp.Filter
	switch {
	case weakness.Of("RT20"):
	case spec.Linux.Seccomp != nil:
		f, err = seccomp.Compile(spec.Linux.Seccomp, o.Cache)
	case o.DefaultSeccomp:
		f, err = seccomp.Default(capNames(c.caps.bounding), o.Cache)
	}
	c.filter, c.filterFlags = f.Code, f.Flags
	return err
}

// run plans, clones and waits until the program runs, is held, or failed.
func (s *start) run(ctx context.Context) (*Process, error) {
	b, l := s.box, &s.layout
	l.mounts, l.masks = b.mounts, b.masks
	_, l.console = b.fds["console"]
	pidns := -1
	for _, j := range l.ns.joins {
		if j.path == "" {
			b.fds[j.name] = b.o.NetNS
			continue
		}
		f, err := os.Open(j.path)
		if err != nil {
			return nil, fmt.Errorf("open namespace: %w", err)
		}
		b.keep(j.name, f)
	}
	if l.ns.mnt != "" {
		f, err := os.Open(l.ns.mnt)
		if err != nil {
			return nil, fmt.Errorf("open namespace: %w", err)
		}
		b.keep("mntns", f)
	}
	if l.ns.pid != "" {
		f, err := os.Open(l.ns.pid)
		if err != nil {
			return nil, fmt.Errorf("open namespace: %w", err)
		}
		b.keep("pidns", f)
		pidns = int(f.Fd())
	}
	if l.joinUser {
		b.keepFD("userns", dup(int(b.o.UserNS.Fd())))
	}
	into, err := b.joinCgroup(l)
	if err != nil {
		return nil, err
	}
	if err := b.stdio(l); err != nil {
		return nil, err
	}
	l.warn(b.warnings...)
	t := &talk{o: b.o, c: &l.process, program: planStart(l), console: b.console}
	t.exists = b.exists
	if l.ns.clone&unix.CLONE_NEWUSER != 0 {
		t.mapped = func(pid int) error { return mapIDs(pid, b.spec.Linux) }
	}
	t.oomScore = oomScore(b.spec.Process.OOMScoreAdj)
	flags := l.ns.clone
	if l.joinUser {
		t.second, flags = true, 0
	}
	p, err := t.begin(ctx, &birth{program: t.program, fds: b.fds, keepBelow: 3 + len(b.o.Files), flags: flags, cgroup: into, pidns: pidns})
	if err != nil {
		if b.console != nil {
			b.console.Close()
		}
		return nil, err
	}
	p.Cgroup = b.group
	return p, nil
}

// oomScore is what to set; nil leaves what the child inherits. The protection that an engine has
// from the kernel's killer is not for its containers.
func oomScore(asked *int) *int {
	if asked != nil {
		return asked
	}
	b, _ := os.ReadFile("/proc/self/oom_score_adj")
	if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err != nil || n >= 0 {
		return nil
	}
	return new(int)
}

// exists tells whether a file is in the container, for a better error.
func (b *box) exists(file string) bool {
	at, err := b.tree.walk(file, nothing)
	if err != nil || at.file == nil {
		return false
	}
	at.file.Close()
	return true
}

// joinCgroup opens what the child needs to enter its cgroup, itself: moving another process
// costs milliseconds.
func (b *box) joinCgroup(l *layout) (into int, err error) {
	if b.group == nil {
		return -1, nil
	}
	files, err := b.group.Tasks()
	if err != nil {
		return -1, err
	}
	for i, f := range files {
		b.keep(fmt.Sprint("tasks", i), f)
	}
	l.tasks = len(files)
	dir, err := b.group.Directory()
	if err != nil || dir == nil {
		return -1, err
	}
	b.keep("cgroup", dir)
	return int(dir.Fd()), nil
}

// stdio names the standard streams, the further files and the private ones. All get numbers above
// those that they will have in the child.
func (b *box) stdio(l *layout) error {
	holdFD := func(name string, fd uintptr) error {
		n, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 4+len(b.o.Files))
		if err != nil {
			return fmt.Errorf("pass on %s: %w", name, err)
		}
		b.keepFD(name, n)
		return nil
	}
	hold := func(name string, f *os.File) error { return holdFD(name, f.Fd()) }
	if l.tty {
		if err := holdFD("tty", uintptr(b.fds["tty"])); err != nil {
			return err
		}
	}
	for i, f := range b.o.Stdio {
		if l.tty {
			break
		}
		if f == nil {
			null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
			if err != nil {
				return err
			}
			b.files = append(b.files, null)
			f = null
		}
		if err := hold(stdio[i], f); err != nil {
			return err
		}
		giveStream(f, int(hostID(l.uid, b.uidMap())))
	}
	for i, f := range b.o.Files {
		if err := hold(fmt.Sprint("file", i), f); err != nil {
			return err
		}
	}
	if b.o.Go != nil {
		if err := hold("go", b.o.Go); err != nil {
			return err
		}
	}
	for i, f := range b.o.Private {
		b.fds[fmt.Sprint("close", i)] = int(f.Fd())
	}
	return nil
}

// giveStream lets a program that is not root open its own /dev/stdout again, as runc does. What
// cannot be given (a device, a file of a read-only mount) is left alone.
func giveStream(f *os.File, uid int) {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || int(st.Uid) == uid {
		return
	}
	if k := st.Mode & unix.S_IFMT; k == unix.S_IFIFO || k == unix.S_IFSOCK {
		_ = unix.Fchown(int(f.Fd()), uid, int(st.Gid))
	}
}

// talk is the parent's side of one birth.
type talk struct {
	o        *Options
	c        *process
	program  *program
	console  *os.File
	mapped   func(pid int) error
	oomScore *int
	exec     bool
	second   bool // the process is a second child
	exists   func(file string) bool
	sock     *os.File
	p        *Process
}

// held is a process that waits before execve.
type held struct{ t *talk }

// begin clones and sees the child through to execve.
func (t *talk) begin(ctx context.Context, b *birth) (_ *Process, err error) {
	if err := spawn(b); err != nil {
		return nil, err
	}
	t.sock = b.parentEnd
	t.p = &Process{Pid: b.pid, PidFD: os.NewFile(uintptr(b.pidfd), "pidfd"), Console: t.console}
	defer func() {
		if err != nil {
			t.abandon()
		}
	}()
	if t.mapped != nil {
		if err := t.mapped(b.pid); err != nil {
			return nil, fmt.Errorf("map the user namespace's ids: %w", err)
		}
		if err := t.goAhead(); err != nil {
			return nil, err
		}
	}
	if t.second {
		if err := t.adopt(); err != nil {
			return nil, err
		}
	}
	if t.oomScore != nil {
		v := strconv.Itoa(*t.oomScore)
		if err := os.WriteFile(procFile(t.p.Pid, "oom_score_adj"), []byte(v), 0); err != nil {
			t.c.warnings = append(t.c.warnings, "cannot set oom_score_adj to "+v+": "+errText(err))
		}
	}
	if t.o.Recorded != nil {
		at, err := linux.StartTime(t.p.Pid)
		if err == nil {
			err = t.o.Recorded(t.p.Pid, at)
		}
		if err != nil {
			return nil, fmt.Errorf("record the process: %w", err)
		}
	}
	t.p.Warnings = t.c.warnings
	if t.o.Hooks != nil && !t.exec {
		if err := t.hooks(); err != nil {
			return nil, err
		}
	}
	if t.o.Hold || t.o.Go != nil {
		r, err := t.read()
		if err != nil {
			return nil, err
		}
		if r.step != reportReady {
			return nil, t.failure(r)
		}
		if t.o.Go != nil {
			t.p.ExecStep = t.program.execStep()
			return t.p, t.sock.Close()
		}
		t.p.held = &held{t}
		return t.p, nil
	}
	return t.p, t.release(ctx)
}

// hooks runs them while the child waits.
func (t *talk) hooks() error {
	r, err := t.read()
	if err != nil {
		return err
	}
	if r == nil || r.step != reportHooks {
		return t.failure(r)
	}
	if err := t.o.Hooks(t.p.Pid); err != nil {
		return err
	}
	return t.goAhead()
}

// release lets the child go on and waits until it is another program.
func (t *talk) release(ctx context.Context) error {
	if err := t.goAhead(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = t.p.Signal(int(unix.SIGKILL)) })
	defer stop()
	r, err := t.read()
	if err != nil {
		return err
	}
	if r != nil {
		return t.failure(r)
	}
	if ctx.Err() != nil && !stop() {
		return ctx.Err()
	}
	return t.sock.Close()
}

// goAhead sends the byte that a barrier waits for. A child that failed before it has said why.
func (t *talk) goAhead() error {
	err := unix.Send(int(t.sock.Fd()), []byte{1}, unix.MSG_NOSIGNAL)
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return nil
	}
	return err
}

// read returns the child's next report, nil at the end of file.
func (t *talk) read() (*report, error) {
	var b [16]byte
	n, err := t.sock.Read(b[:])
	if errors.Is(err, unix.ECONNRESET) {
		// The child ended with our go-ahead unread; its report, if any, is still to be had.
		if n, err = t.sock.Read(b[:]); errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("the process was killed before it could execute %q", t.c.args[0])
		}
	}
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	if err != nil || n != len(b) {
		return nil, fmt.Errorf("read the child's report: %d bytes: %w", n, err)
	}
	return &report{binary.NativeEndian.Uint64(b[:]), binary.NativeEndian.Uint64(b[8:])}, nil
}

func (t *talk) failure(r *report) error {
	if r == nil {
		return fmt.Errorf("the process was killed before it could execute %q", t.c.args[0])
	}
	i, e := int(r.step), syscall.Errno(r.value)
	if i >= 0 && i < len(t.program.steps) {
		if s := &t.program.steps[i]; s.nr == unix.SYS_EXECVE || s.nr == opFail {
			return execError(t.c, s, e, e == unix.ENOENT && t.exists != nil && t.exists(s.object))
		}
	}
	return t.program.explain(i, e)
}

// adopt learns of the second child; the first has done its work.
func (t *talk) adopt() error {
	r, err := t.read()
	if err != nil {
		return err
	}
	if r == nil || r.step != reportPid {
		return t.failure(r)
	}
	first := t.p
	fd, err := unix.PidfdOpen(int(r.value), unix.PIDFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("open pidfd: %w", err)
	}
	t.p = &Process{Pid: int(r.value), PidFD: os.NewFile(uintptr(fd), "pidfd"), Console: t.console}
	_, err = first.Wait()
	return err
}

// abandon ends a child whose birth failed, and leaves no zombie.
func (t *talk) abandon() {
	_ = t.p.Signal(int(unix.SIGKILL))
	_, _ = t.p.Wait()
	t.sock.Close()
}

func errText(err error) string {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}
