package sandbox

// One more process in a running container.

import (
	"context"
	"errors"
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
	"keg/internal/sandbox/cgroup"
)

// Exec runs p in the namespaces, cgroup and confinement of the running container
// whose init is pid; spec is the container's spec (seccomp, capabilities default).
func Exec(ctx context.Context, pid int, spec *specs.Spec, p *specs.Process, o Options) (_ *Process, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if spec.Linux == nil || p == nil {
		return nil, fault.Invalidf("the spec has no linux section or no process")
	}
	inner := *spec
	inner.Process = inherit(p, spec.Process)
	s := &start{box: newBox(&inner, &o)}
	defer s.box.close()
	if err := s.decideExec(); err != nil {
		return nil, err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("container process %d: %w", pid, notRunning(err))
	}
	s.box.keepFD("init", fd)
	if s.layout.ns.mnt != "" {
		root, err := os.OpenFile(procFile(pid, "root"), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, fmt.Errorf("open the container's root: %w", err)
		}
		s.box.keep("root", root)
	}
	if err := s.group(pid); err != nil {
		return nil, err
	}
	if p.Terminal {
		if err := s.execTerminal(pid); err != nil {
			return nil, err
		}
	}
	return s.runExec(ctx, fd)
}

// inherit fills in what an exec takes from its container.
func inherit(p, of *specs.Process) *specs.Process {
	out := *p
	if of == nil {
		return &out
	}
	if out.Capabilities == nil {
		out.Capabilities = of.Capabilities
	}
	out.NoNewPrivileges = out.NoNewPrivileges || of.NoNewPrivileges
	if out.ApparmorProfile == "" {
		out.ApparmorProfile = of.ApparmorProfile
	}
	if out.SelinuxLabel == "" {
		out.SelinuxLabel = of.SelinuxLabel
	}
	if out.Rlimits == nil {
		out.Rlimits = of.Rlimits
	}
	if out.OOMScoreAdj == nil {
		out.OOMScoreAdj = of.OOMScoreAdj
	}
	return &out
}

func notRunning(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return fault.Conflictf("the container is not running")
	}
	return err
}

func (s *start) decideExec() error {
	spec, o, l := s.box.spec, s.box.o, &s.layout
	p, warnings, err := newProcess(spec.Process, o, s.box.inUserNS())
	if err != nil {
		return err
	}
	l.process = *p
	l.warn(warnings...)
	// An own list of namespaces: those that the container does not share with us.
	l.ns.own = map[int]bool{}
	l.ns.mnt = "the engine's"
	for _, ns := range spec.Linux.Namespaces {
		if flag, ok := namespaceFlag(ns.Type); ok {
			l.ns.own[flag] = true
			if flag == unix.CLONE_NEWNS {
				l.ns.mnt = ns.Path
			}
		}
	}
	if o.NetNS >= 0 {
		l.ns.own[unix.CLONE_NEWNET] = true
	}
	l.makeCwd = false
	l.hold = o.Hold || o.Go != nil
	l.closeFirst = len(o.Private)
	if err := s.box.borrowProc(l); err != nil {
		return err
	}
	return l.process.confine(spec, o)
}

// group finds the container's cgroup.
func (s *start) group(pid int) (err error) {
	if path := s.box.o.Cgroup; path != "" {
		s.box.group, err = cgroup.Open(path)
		if err == nil && linux.InUserNS() && !s.box.group.Exists() {
			s.box.group = nil // the user was given none
		}
	} else {
		s.box.group, err = cgroup.Of(pid)
	}
	return err
}

// execTerminal takes a pair from the container's devpts. /dev/ptmx is opened below the root of
// the container's init, links of its own tree included, and must turn out to be a ptmx.
func (s *start) execTerminal(pid int) error {
	root, err := os.OpenFile(procFile(pid, "root"), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("open the container's root: %w", err)
	}
	defer root.Close()
	master, slave, err := openTerminalIn(int(root.Fd()))
	if err != nil {
		return fmt.Errorf("open a terminal: %w", err)
	}
	s.box.console = master
	s.box.keep("tty", slave)
	if cs := s.box.spec.Process.ConsoleSize; cs != nil {
		_ = unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(cs.Height), Col: uint16(cs.Width)})
	}
	var st unix.Stat_t
	if unix.Fstat(int(slave.Fd()), &st) == nil {
		_ = unix.Fchown(int(slave.Fd()), int(hostID(s.layout.uid, s.box.uidMap())), int(st.Gid))
	}
	return nil
}

func openTerminalIn(root int) (master, slave *os.File, err error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	at, err := unix.Openat2(root, "dev/pts", &how)
	if err != nil {
		return nil, nil, &os.PathError{Op: "open", Path: "/dev/pts", Err: err}
	}
	defer unix.Close(at)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(at, &fs); err != nil || fs.Type != unix.DEVPTS_SUPER_MAGIC {
		return nil, nil, fmt.Errorf("the container's /dev/pts is not a devpts")
	}
	return openTerminal(at, "ptmx")
}

// runExec plans and clones. With a user namespace the child joins everything itself and
// clones once more; else it is born in the pid namespace and joins the rest.
func (s *start) runExec(ctx context.Context, init int) (*Process, error) {
	b, l := s.box, &s.layout
	into, err := b.joinCgroup(l)
	if err != nil {
		return nil, err
	}
	if err := b.stdio(l); err != nil {
		return nil, err
	}
	l.warn(b.warnings...)
	t := &talk{o: b.o, c: &l.process, program: planExec(l), console: b.console, oomScore: oomScore(b.spec.Process.OOMScoreAdj), second: l.inUserNS, exec: true}
	pidns := -1
	if !l.inUserNS && l.ns.own[unix.CLONE_NEWPID] {
		pidns = init
	}
	p, err := t.begin(ctx, &birth{program: t.program, fds: b.fds, keepBelow: 3 + len(b.o.Files), cgroup: into, pidns: pidns})
	if err != nil && b.console != nil {
		b.console.Close()
	}
	return p, err
}

// planExec lists what the child of an exec does.
func planExec(l *layout) *program {
	p := newProgram(96)
	for i := 0; i < l.closeFirst; i++ {
		p.add("close", "what only the engine may hold", unix.SYS_CLOSE, fd(fmt.Sprint("close", i)))
	}
	p.dieWithParent(&l.process)
	p.signals()
	for i := 0; i < l.tasks; i++ {
		p.add("join", "cgroup", unix.SYS_WRITE, fd(fmt.Sprint("tasks", i)), text("0"), num(1))
	}
	if l.apparmor != "" || l.selinux != "" {
		p.lsm(p.procfs(l), &l.process)
	}
	flags := 0
	for f := range l.ns.own {
		flags |= f
	}
	if !l.inUserNS {
		flags &^= unix.CLONE_NEWPID // born there
	}
	if flags != 0 {
		p.add("join", "the container's namespaces", unix.SYS_SETNS, fd("init"), num(flags))
	}
	if l.ns.mnt != "" {
		p.chroot(fd("root")) // it is in no namespace
	}
	if l.inUserNS {
		p.add("become", "root of the user namespace", unix.SYS_SETRESGID, num(0), num(0), num(0))
		p.add("become", "root of the user namespace", unix.SYS_SETRESUID, num(0), num(0), num(0))
		// Only a child is in the pid namespace. With CLONE_PARENT it is ours, too.
		p.add("clone into", "the container's pid namespace", unix.SYS_CLONE, num(unix.CLONE_PARENT|int(unix.SIGCHLD)), num(0), num(0), num(0), num(0)).
			flag(parentExit)
	}
	p.streams(&l.process)
	p.workdir(&l.process)
	p.finish(&l.process, l.hold)
	return p
}
