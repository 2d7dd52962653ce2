package sandbox

// The plan of a container's first process: from clone to execve, as data.

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// layout is all that the plan depends on; descriptors are names.
type layout struct {
	process
	ns         namespaces
	closeFirst int // number of descriptors "close0" ... that no child may hold
	tasks      int // number of cgroup v1 tasks files "tasks0" ...
	hostname   string
	domainname string
	sysctls    []sysctl
	mounts     []attachment
	masks      []mask
	readonly   []string
	rootRO     bool
	rootProp   uint64 // MS_SHARED ... when the root shall not be private
	console    bool   // "console" is the target for the terminal
	hold       bool
	hooks      bool   // wait for the parent's hooks before the root is entered
	ordered    bool   // mountinfo lists the mounts in the spec's order
	offsets    string // of an own time namespace; ""
	joinUser   bool   // join "userns"; the other namespaces are made from inside
	hostProc   bool   // "procfs" is the engine's, where no other can be made
}

const (
	emptyPath   = unix.AT_EMPTY_PATH
	moveByFDs   = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
	inContainer = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
)

// planStart lists what the child does. No path of the image is used before the old root is gone,
// and no path of the host is used at all.
func planStart(l *layout) *program {
	p := newProgram(224)
	for i := 0; i < l.closeFirst; i++ {
		p.add("close", "what only the engine may hold", unix.SYS_CLOSE, fd(fmt.Sprint("close", i)))
	}
	p.dieWithParent(&l.process)
	p.signals()
	for i := 0; i < l.tasks; i++ {
		p.add("join", "cgroup", unix.SYS_WRITE, fd(fmt.Sprint("tasks", i)), text("0"), num(1))
	}
	if l.ns.clone&unix.CLONE_NEWUSER != 0 {
		p.barrier("the user namespace's maps")
		p.add("become", "root of the user namespace", unix.SYS_SETRESGID, num(0), num(0), num(0))
		p.add("become", "root of the user namespace", unix.SYS_SETRESUID, num(0), num(0), num(0))
	}
	if l.joinUser {
		p.enterUser(l.ns.clone)
	}
	p.join(l.ns.joins)
	if l.ns.cgroup {
		p.add("unshare", "the cgroup namespace", unix.SYS_UNSHARE, num(unix.CLONE_NEWCGROUP))
	}
	p.clocks(l)
	p.names(l)
	if l.ns.clone&unix.CLONE_NEWNET != 0 {
		p.loopback()
	}
	made, proc := p.filesystems(l)
	if l.hooks {
		p.tell(reportHooks)
		p.barrier("the hooks")
	}
	p.enterRoot()
	p.attach(l, made)
	p.protect(l)
	if l.ns.mnt != "" {
		p.takeAlong()
	}
	p.lsm(proc, &l.process)
	p.streams(&l.process)
	p.workdir(&l.process)
	p.finish(&l.process, l.hold)
	return p
}

// takeAlong goes to a mount namespace that is not the container's own without mounting anything there: the
// furnished tree becomes a detached copy that lives as long as the container's root does. Whoever owns that
// namespace sees none of it, and has nothing to clean up.
func (p *program) takeAlong() {
	p.add("copy", "the furnished root", unix.SYS_OPEN_TREE, num(unix.AT_FDCWD), text("/"), num(unix.OPEN_TREE_CLONE|unix.O_CLOEXEC|unix.AT_RECURSIVE))
	tree := p.result()
	p.add("join", "the mount namespace", unix.SYS_SETNS, fd("mntns"), num(unix.CLONE_NEWNS))
	p.chroot(tree)
}

func (p *program) chroot(root arg) {
	p.add("enter", "the root", unix.SYS_FCHDIR, root)
	p.add("change the root to", "the container's", unix.SYS_CHROOT, text("."))
}

// enterUser joins a user namespace and goes on as a child born in new namespaces that belong to
// it. With CLONE_PARENT the child is ours, too.
func (p *program) enterUser(clone uint64) {
	p.add("join", "the user namespace", unix.SYS_SETNS, fd("userns"), num(unix.CLONE_NEWUSER))
	p.add("become", "root of the user namespace", unix.SYS_SETRESGID, num(0), num(0), num(0))
	p.add("become", "root of the user namespace", unix.SYS_SETRESUID, num(0), num(0), num(0))
	if clone&cloneNewTime != 0 { // clone(2) takes the bit for a signal's
		p.add("unshare", "the time namespace", unix.SYS_UNSHARE, num(cloneNewTime))
		clone &^= cloneNewTime
	}
	p.add("clone into", "the container's namespaces", unix.SYS_CLONE, num(clone|unix.CLONE_PARENT|uint64(unix.SIGCHLD)), num(0), num(0), num(0), num(0)).
		flag(parentExit)
}

func (p *program) join(js []joined) {
	for _, j := range js {
		p.add("join", "namespace "+j.path, unix.SYS_SETNS, fd(j.name), num(j.flag))
	}
}

// clocks makes a time namespace with offsets, which must be said before anybody is in it. We are
// from execve on (Linux 6.1).
func (p *program) clocks(l *layout) {
	if l.offsets == "" {
		return
	}
	p.add("unshare", "the time namespace", unix.SYS_UNSHARE, num(cloneNewTime))
	p.add("open", "the clocks' offsets", unix.SYS_OPENAT, num(unix.AT_FDCWD), text("/proc/self/timens_offsets"), num(unix.O_WRONLY|unix.O_CLOEXEC))
	f := p.result()
	p.add("set", "the clocks' offsets", unix.SYS_WRITE, f, text(l.offsets), num(len(l.offsets)))
	p.add("close", "the clocks' offsets", unix.SYS_CLOSE, f)
}

func (p *program) names(l *layout) {
	if l.hostname != "" {
		p.add("set hostname", l.hostname, unix.SYS_SETHOSTNAME, text(l.hostname), num(len(l.hostname)))
	}
	if l.domainname != "" {
		p.add("set domainname", l.domainname, unix.SYS_SETDOMAINNAME, text(l.domainname), num(len(l.domainname)))
	}
}

// loopback brings "lo" up in a network namespace that nobody else prepares.
func (p *program) loopback() {
	p.add("open", "a socket", unix.SYS_SOCKET, num(unix.AF_INET), num(unix.SOCK_DGRAM|unix.SOCK_CLOEXEC), num(0))
	s := p.result()
	req := make([]byte, 40) // struct ifreq
	copy(req, "lo")
	binary.NativeEndian.PutUint16(req[16:], unix.IFF_UP|unix.IFF_RUNNING)
	p.add("bring up", "lo", unix.SYS_IOCTL, s, num(unix.SIOCSIFFLAGS), mem(req))
	p.add("close", "a socket", unix.SYS_CLOSE, s)
}

// filesystems makes the mounts that show the child's own namespaces, still detached. A private procfs
// comes first: parameters are written through it, where nothing of the image can be in
// the way (CVE-2025-52881).
func (p *program) filesystems(l *layout) (made map[int]arg, proc arg) {
	made = map[int]arg{}
	hasProc := false
	for i := range l.mounts {
		m := &l.mounts[i]
		if m.source != "" || !madeByChild(m.fstype) {
			continue
		}
		made[i] = p.newMount(m.object, m.fstype, m.opts)
		if m.fstype == "proc" && !hasProc && len(m.opts.data) == 0 {
			proc, hasProc = made[i], true
		}
	}
	if len(l.sysctls) == 0 && l.apparmor == "" && l.selinux == "" {
		return made, proc
	}
	if !hasProc {
		proc = p.procfs(l)
	}
	how := openHow(unix.O_WRONLY|unix.O_CLOEXEC, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV|unix.RESOLVE_NO_SYMLINKS)
	for _, s := range l.sysctls {
		p.add("open sysctl", s.file, unix.SYS_OPENAT2, proc, text("sys/"+s.file), mem(how), num(len(how)))
		f := p.result()
		p.add("set sysctl", s.file+" to "+s.value, unix.SYS_WRITE, f, text(s.value), num(len(s.value)))
		p.add("close sysctl", s.file, unix.SYS_CLOSE, f)
	}
	return made, proc
}

// procfs is one in which nothing of the image is.
func (p *program) procfs(l *layout) arg {
	if l.hostProc {
		return fd("procfs")
	}
	return p.newMount("a private procfs", "proc", mountOptions{})
}

// OwnProfile is the AppArmor profile that allows what is still to be done before execve.
const OwnProfile = "keg-default"

// lsm asks for an AppArmor profile and an SELinux label from the next execve on. The engine's own profile comes
// now, when all mounts are made: a change at execve clears the signal that ends the program with its
// monitor. Of others it is not known whether they would let us go on. self is a link of procfs itself, so links are allowed here; magic ones are not.
func (p *program) lsm(proc arg, c *process) {
	how := openHow(unix.O_WRONLY|unix.O_CLOEXEC, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV|unix.RESOLVE_NO_MAGICLINKS)
	attr, word := "exec", "exec "
	if c.apparmor == OwnProfile {
		attr, word = "current", "changeprofile "
	}
	for _, m := range []struct{ who, file, act, name, text string }{
		{"AppArmor's " + attr + " attribute", "self/attr/apparmor/" + attr, "apply AppArmor profile", c.apparmor, word + c.apparmor},
		{"SELinux's exec attribute", "self/attr/exec", "apply SELinux label", c.selinux, c.selinux},
	} {
		if m.name == "" {
			continue
		}
		p.add("open", m.who, unix.SYS_OPENAT2, proc, text(m.file), mem(how), num(len(how)))
		f := p.result()
		p.add(m.act, m.name, unix.SYS_WRITE, f, text(m.text), num(len(m.text)))
		p.add("close", m.who, unix.SYS_CLOSE, f)
	}
}

// newMount is fsopen, fsconfig, fsmount.
func (p *program) newMount(object, fstype string, o mountOptions) arg {
	p.add("open file system for", object, unix.SYS_FSOPEN, text(fstype), num(unix.FSOPEN_CLOEXEC))
	ctx := p.result()
	for _, f := range o.flags {
		p.add("set option "+f+" of", object, unix.SYS_FSCONFIG, ctx, num(unix.FSCONFIG_SET_FLAG), text(f), num(0), num(0))
	}
	p.add("set source of", object, unix.SYS_FSCONFIG, ctx, num(unix.FSCONFIG_SET_STRING), text("source"), text(fstype), num(0))
	for _, d := range o.data {
		k, v, has := cut(d)
		if has {
			p.add("set option "+d+" of", object, unix.SYS_FSCONFIG, ctx, num(unix.FSCONFIG_SET_STRING), text(k), text(v), num(0))
		} else {
			p.add("set option "+d+" of", object, unix.SYS_FSCONFIG, ctx, num(unix.FSCONFIG_SET_FLAG), text(k), num(0), num(0))
		}
	}
	p.add("create file system for", object, unix.SYS_FSCONFIG, ctx, num(unix.FSCONFIG_CMD_CREATE), num(0), num(0), num(0))
	p.add("mount", object, unix.SYS_FSMOUNT, ctx, num(unix.FSMOUNT_CLOEXEC), num(o.set|o.allSet))
	return p.result()
}

// enterRoot replaces the host's tree by the detached root. Mounted over "/", it needs no
// directory of the host; after the pivot the host's tree lies on top of ours and goes.
func (p *program) enterRoot() {
	p.add("make mounts private", "/", unix.SYS_MOUNT, num(0), text("/"), num(0), num(unix.MS_REC|unix.MS_PRIVATE), num(0))
	p.add("mount", "the root", unix.SYS_MOVE_MOUNT, fd("root"), text(""), num(unix.AT_FDCWD), text("/"), num(unix.MOVE_MOUNT_F_EMPTY_PATH))
	p.add("enter", "the root", unix.SYS_FCHDIR, fd("root"))
	p.add("pivot to", "the root", unix.SYS_PIVOT_ROOT, text("."), text("."))
	p.add("unmount", "the host's root", unix.SYS_UMOUNT2, text("."), num(unix.MNT_DETACH))
	p.add("change to", "/", unix.SYS_CHDIR, text("/"))
}

// open adds an openat2 of a path in the container.
func (p *program) open(act, file string, flags uint64) *program {
	how := openHow(flags|unix.O_CLOEXEC, inContainer)
	return p.add(act, file, unix.SYS_OPENAT2, num(unix.AT_FDCWD), text(file), mem(how), num(len(how)))
}

// attach puts the detached mounts in place, in the spec's order.
func (p *program) attach(l *layout, made map[int]arg) {
	for i := range l.mounts {
		m := &l.mounts[i]
		src, ok := made[i]
		if !ok {
			src = fd(m.source)
		}
		target := fd(m.target)
		if m.target == "" || l.ordered {
			p.open("open mount target", m.path, unix.O_PATH)
			target = p.result()
		}
		p.add("mount", m.object, unix.SYS_MOVE_MOUNT, src, text(""), target, text(""), num(moveByFDs))
		if l.ordered {
			src = p.renumber(m, src, target)
		}
		if ok && m.opts.propagation != 0 {
			p.setattr("set propagation of", m.object, src, m.opts.spread, 0, m.opts.propagation)
		}
	}
	if l.console {
		// The very terminal that we opened, whatever lies at its path (CVE-2025-52565).
		p.add("clone", "the terminal", unix.SYS_OPEN_TREE, fd("tty"), text(""), num(unix.OPEN_TREE_CLONE|unix.O_CLOEXEC|emptyPath))
		t := p.result()
		at := fd("console")
		if l.ordered {
			p.open("open mount target", "/dev/console", unix.O_PATH|unix.O_NOFOLLOW)
			at = p.result()
		}
		p.add("mount", "the terminal on /dev/console", unix.SYS_MOVE_MOUNT, t, text(""), at, text(""), num(moveByFDs))
	}
}

// renumber replaces a mount by a younger copy: since Linux 6.8 mountinfo lists mounts by number, and
// those that the parent made are all older than those of the child.
func (p *program) renumber(m *attachment, old, target arg) arg {
	unbindable := m.opts.propagation == unix.MS_UNBINDABLE
	if unbindable {
		p.setattr("make clonable", m.object, old, m.opts.spread, 0, unix.MS_PRIVATE)
	}
	p.add("clone", m.object, unix.SYS_OPEN_TREE, old, text(""), num(unix.OPEN_TREE_CLONE|unix.O_CLOEXEC|emptyPath|unix.AT_RECURSIVE))
	young := p.result()
	p.add("take away the older", m.object, unix.SYS_UMOUNT2, text(m.path), num(unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW))
	p.add("mount", m.object, unix.SYS_MOVE_MOUNT, young, text(""), target, text(""), num(moveByFDs))
	if unbindable {
		p.setattr("set propagation of", m.object, young, m.opts.spread, 0, unix.MS_UNBINDABLE)
	}
	return young
}

func (p *program) setattr(act, object string, on arg, recursive bool, set, propagation uint64) {
	b := make([]byte, 32)
	binary.NativeEndian.PutUint64(b, set)
	binary.NativeEndian.PutUint64(b[16:], propagation)
	flags := emptyPath
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	p.add(act, object, unix.SYS_MOUNT_SETATTR, on, text(""), num(flags), mem(b), num(len(b)))
}

// protect makes paths read-only and hides others. A path that does not exist needs neither;
// every other failure is one (CVE-2025-31133).
func (p *program) protect(l *layout) {
	for _, r := range l.readonly {
		p.open("open read-only path", r, unix.O_PATH).ignore(unix.ENOENT, 3)
		at := p.result()
		p.add("clone read-only path", r, unix.SYS_OPEN_TREE, at, text(""), num(unix.OPEN_TREE_CLONE|unix.O_CLOEXEC|emptyPath|unix.AT_RECURSIVE))
		t := p.result()
		p.setattr("make read-only", r, t, true, unix.MOUNT_ATTR_RDONLY, 0)
		p.add("mount read-only", r, unix.SYS_MOVE_MOUNT, t, text(""), at, text(""), num(moveByFDs))
	}
	for _, m := range l.masks {
		p.open("open masked path", m.path, unix.O_PATH).ignore(unix.ENOENT, 1)
		at := p.result()
		p.add("mask", m.path, unix.SYS_MOVE_MOUNT, fd(m.source), text(""), at, text(""), num(moveByFDs))
	}
	if l.rootRO {
		p.setattr("make read-only", "/", fd("root"), false, unix.MOUNT_ATTR_RDONLY, 0)
	}
	if l.rootProp != 0 {
		p.setattr("set propagation of", "/", fd("root"), true, 0, l.rootProp)
	}
}

func cut(d string) (k, v string, has bool) {
	for i := range d {
		if d[i] == '=' {
			return d[:i], d[i+1:], true
		}
	}
	return d, "", false
}
