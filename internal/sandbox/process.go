package sandbox

// The last stage, shared by a container's first process and by exec: standard streams,
// working directory, limits, credentials, filter, execve.

import (
	"encoding/binary"
	"fmt"
	"path"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/linux"
	"keg/internal/weakness"
)

// process is everything about a process that its last stage needs; a value, no descriptors.
type process struct {
	args, env   []string
	cwd         string
	uid, gid    uint32
	groups      []uint32
	umask       uint32
	caps        capSets
	own         capSet // of the engine
	lastCap     int
	noNewPrivs  bool
	filter      []byte
	filterFlags uint
	limits      []limit
	tty         bool
	files       int // further descriptors, 3 and up
	personality int64
	inUserNS    bool
	makeCwd     bool
	apparmor    string
	selinux     string   // label of the program
	outlive     bool     // go on when whoever cloned it ends
	listens     bool     // the go-ahead comes through the socket "go"
	scheduler   []byte   // struct sched_attr
	ioPriority  int      // of ioprio_set(2), 0: not said
	warnings    []string // what could not be had
}

type limit struct {
	resource  int
	soft, cap uint64
}

// Where the parent's descriptors lie by name; stdio are "stdin", "stdout", "stderr", the control
// socket is "ctl", the terminal's end "tty", further files "file0" ...
const ctl = "ctl"

var stdio = [3]string{"stdin", "stdout", "stderr"}

// signals gives the child default dispositions: what the engine ignores, a program must not.
func (p *program) signals() {
	dfl := make([]byte, 32)
	for s := 1; s < 32; s++ {
		if s != int(unix.SIGKILL) && s != int(unix.SIGSTOP) {
			p.add("reset signal", fmt.Sprint(s), unix.SYS_RT_SIGACTION, num(s), mem(dfl), num(0), num(8))
		}
	}
	p.add("unblock", "signals", unix.SYS_RT_SIGPROCMASK, num(unix.SIG_SETMASK), mem(make([]byte, 8)), num(0), num(8))
}

// dieWithParent: the kernel kills the child when the thread that cloned it ends.
func (p *program) dieWithParent(c *process) {
	if c.outlive {
		return
	}
	p.add("tie the process to", "its monitor", unix.SYS_PRCTL, num(unix.PR_SET_PDEATHSIG), num(int(unix.SIGKILL)))
}

// barrier waits for a byte of the parent; its end ends the child too.
func (p *program) barrier(why string) {
	p.add("wait for", why, unix.SYS_READ, fd(ctl), mem(make([]byte, 8)), num(1)).flag(wantSome)
}

// tell reports a milestone to the parent.
func (p *program) tell(step uint64) {
	b := make([]byte, 16)
	binary.NativeEndian.PutUint64(b, step)
	p.add("report to", "the monitor", unix.SYS_WRITE, fd(ctl), mem(b), num(16))
}

// streams makes a session and puts the standard streams in place.
func (p *program) streams(c *process) {
	p.add("start", "a session", unix.SYS_SETSID)
	// A session keyring of its own, not the engine's. It is anonymous and ends with the process.
	p.add("join", "a new session keyring", unix.SYS_KEYCTL, num(unix.KEYCTL_JOIN_SESSION_KEYRING), num(0)).
		ignore(unix.ENOSYS, 0).ignore(unix.EPERM, 0)
	src := stdio
	if c.tty {
		src = [3]string{"tty", "tty", "tty"}
		p.add("take", "the controlling terminal", unix.SYS_IOCTL, fd("tty"), num(unix.TIOCSCTTY), num(0))
	}
	for i, name := range src {
		p.add("connect", stdio[i], unix.SYS_DUP3, fd(name), num(i), num(0))
	}
}

// workdir changes to c.cwd, making what is missing, component by component so that no
// magic link of /proc is followed (CVE-2024-21626), and proves that the result is
// below the root: the kernel's getcwd says "(unreachable)" otherwise.
func (p *program) workdir(c *process) {
	how := openHow(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, unix.RESOLVE_NO_MAGICLINKS)
	if weakness.Of("RT2") {
		how = openHow(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	at := num(unix.AT_FDCWD)
	p.add("change to", "/", unix.SYS_CHDIR, text("/"))
	if c.makeCwd {
		for _, name := range strings.Split(strings.Trim(path.Clean("/"+c.cwd), "/"), "/") {
			if name == "" {
				break
			}
			p.add("make working directory", c.cwd, unix.SYS_MKDIRAT, at, text(name), num(0o755)).
				ignore(unix.EEXIST, 0).ignore(unix.EROFS, 0).ignore(unix.EACCES, 0)
			p.add("open working directory", c.cwd, unix.SYS_OPENAT2, at, text(name), mem(how), num(len(how)))
			at = p.result()
		}
	} else if path.Clean("/"+c.cwd) != "/" {
		p.add("open working directory", c.cwd, unix.SYS_OPENAT2, at, text(path.Clean("/"+c.cwd)), mem(how), num(len(how)))
		at = p.result()
	}
	if at.kind == argSlot {
		p.add("change to working directory", c.cwd, unix.SYS_FCHDIR, at)
	}
	if weakness.Of("RT2") {
		return
	}
	buf := mem(make([]byte, unix.PathMax))
	p.add("look at working directory", c.cwd, unix.SYS_GETCWD, buf, num(unix.PathMax))
	// The same memory: bind gives each argument its own, so the check goes by step.
	p.steps[len(p.steps)-1].shared = "cwd"
	p.add("working directory is outside of the container:", c.cwd, opCheck, buf, num('/'), num(int(unix.ENOENT)))
	p.steps[len(p.steps)-1].shared = "cwd"
}

func openHow(flags, resolve uint64) []byte {
	b := make([]byte, 24)
	binary.NativeEndian.PutUint64(b, flags)
	binary.NativeEndian.PutUint64(b[16:], resolve)
	return b
}

// finish is the end of every program: from here on nothing is left to the engine but
// what the program is told to be.
func (p *program) finish(c *process, hold bool) {
	for _, l := range c.limits {
		p.add("set limit", limitName(l.resource), unix.SYS_PRLIMIT64, num(0), num(l.resource), mem(l.bytes()), num(0))
	}
	if c.personality >= 0 {
		p.add("set personality", fmt.Sprintf("%#x", c.personality), unix.SYS_PERSONALITY, num(c.personality))
	}
	p.schedule(c)
	p.credentials(c)
	p.dieWithParent(c)
	for i := 0; i < c.files; i++ {
		p.add("pass on descriptor", fmt.Sprint(3+i), unix.SYS_DUP3, fd(fmt.Sprintf("file%d", i)), num(3+i), num(0))
	}
	// Now, not at execve: a held process must not keep other containers' things open.
	above := fd(ctl + "+1")
	if c.listens {
		p.add("keep", "the socket of the go-ahead", unix.SYS_DUP3, fd("go"), above, num(unix.O_CLOEXEC))
		above = fd(ctl + "+2")
	}
	p.add("close", "descriptors of the engine", unix.SYS_CLOSE_RANGE, num(3+c.files), fd(ctl+"-1"), num(0))
	p.add("close", "descriptors of the engine", unix.SYS_CLOSE_RANGE, above, num(0xffffffff), num(0))
	if hold {
		p.tell(reportReady)
	}
	if c.listens {
		p.add("wait for", "the go-ahead", unix.SYS_ACCEPT4, fd(ctl+"+1"), num(0), num(0), num(unix.SOCK_CLOEXEC))
		p.add("talk to", "whoever starts the container", unix.SYS_DUP3, p.result(), fd(ctl), num(unix.O_CLOEXEC))
	}
	p.barrier("the go-ahead")
	p.add("set umask", fmt.Sprintf("%04o", c.umask), unix.SYS_UMASK, num(c.umask))
	p.add("mark", "the rest close-on-exec", unix.SYS_CLOSE_RANGE, num(3+c.files), num(0xffffffff), num(unix.CLOSE_RANGE_CLOEXEC))
	p.lock(c)
	p.execute(c)
}

// credentials drops what the program may never have and becomes its user. CAP_SYS_ADMIN stays until
// the filter is loaded, unless no_new_privs makes it unnecessary.
func (p *program) credentials(c *process) {
	for n := 0; n <= c.lastCap; n++ {
		if !c.caps.bounding.has(n) {
			p.add("drop capability", fmt.Sprint(n), unix.SYS_PRCTL, num(unix.PR_CAPBSET_DROP), num(n)).ignore(unix.EINVAL, 0)
		}
	}
	p.add("keep capabilities", "across the change of user", unix.SYS_PRCTL, num(unix.PR_SET_KEEPCAPS), num(1))
	groups := make([]byte, 4*len(c.groups))
	for i, g := range c.groups {
		binary.NativeEndian.PutUint32(groups[4*i:], g)
	}
	if weakness.Of("RT9") {
		groups, c.groups = groups[:0], nil
	}
	// Always said, so that no group of the engine's remains (CVE-2022-36109).
	s := p.add("set groups", fmt.Sprint(c.groups), unix.SYS_SETGROUPS, num(len(c.groups)), mem(groups))
	if len(c.groups) == 0 && (c.inUserNS || linux.SingleID()) {
		s.ignore(unix.EPERM, 0) // setgroups is denied in an unprivileged user namespace
	}
	p.add("become group", fmt.Sprint(c.gid), unix.SYS_SETRESGID, num(c.gid), num(c.gid), num(c.gid))
	p.add("become user", fmt.Sprint(c.uid), unix.SYS_SETRESUID, num(c.uid), num(c.uid), num(c.uid))
	p.add("forget", "to keep capabilities", unix.SYS_PRCTL, num(unix.PR_SET_KEEPCAPS), num(0))
}

// lock loads the filter and the final capabilities.
func (p *program) lock(c *process) {
	if c.noNewPrivs {
		p.add("set", "no_new_privs", unix.SYS_PRCTL, num(unix.PR_SET_NO_NEW_PRIVS), num(1), num(0), num(0), num(0))
		p.capset(c.caps)
		p.seccomp(c)
		return
	}
	if c.filter != nil {
		// A change of user cleared the effective set; loading the filter needs it.
		admin := capSet(1 << unix.CAP_SYS_ADMIN)
		p.capset(capSets{permitted: c.caps.permitted | admin, effective: c.caps.effective | admin, inheritable: c.caps.inheritable})
		p.seccomp(c)
	}
	p.capset(c.caps)
}

func (p *program) capset(s capSets) {
	hdr := make([]byte, 8)
	binary.NativeEndian.PutUint32(hdr, unix.LINUX_CAPABILITY_VERSION_3)
	data := make([]byte, 24)
	if weakness.Of("RT8") {
		s.inheritable = s.permitted
	}
	for i, set := range []capSet{s.effective, s.permitted, s.inheritable} {
		binary.NativeEndian.PutUint32(data[4*i:], uint32(set))
		binary.NativeEndian.PutUint32(data[12+4*i:], uint32(set>>32))
	}
	p.add("set", "capabilities", unix.SYS_CAPSET, mem(hdr), mem(data))
	for n := 0; n < 64 && s.ambient != 0; n++ {
		if s.ambient.has(n) && s.permitted.has(n) && s.inheritable.has(n) {
			p.add("raise ambient capability", fmt.Sprint(n), unix.SYS_PRCTL, num(unix.PR_CAP_AMBIENT), num(unix.PR_CAP_AMBIENT_RAISE), num(n), num(0), num(0))
		}
	}
}

func (p *program) seccomp(c *process) {
	if c.filter != nil {
		p.add("load", "the seccomp filter", unix.SYS_SECCOMP, num(unix.SECCOMP_SET_MODE_FILTER), num(c.filterFlags), filter(c.filter))
	}
}

// execute tries the places where the program may be, as execvp(3) does; a directory of
// PATH that has no such file, or one that may not be run, is passed over.
func (p *program) execute(c *process) {
	for _, file := range candidates(c.args[0], c.env) {
		p.add("exec", file, unix.SYS_EXECVE, text(file), vector(c.args), vector(c.env))
		if file != c.args[0] {
			p.ignore(unix.ENOENT, 0).ignore(unix.EACCES, 0).ignore(unix.ENOTDIR, 0)
		}
	}
	p.add("find", c.args[0], opFail, num(int(unix.ENOENT)))
}

// candidates are the files that argv[0] may mean. Relative directories of PATH are left out,
// as os/exec leaves them out.
func candidates(name string, env []string) (out []string) {
	if strings.Contains(name, "/") {
		return []string{name}
	}
	if name == "" {
		return nil
	}
	for _, dir := range strings.Split(lookupEnv(env, "PATH"), ":") {
		if strings.HasPrefix(dir, "/") {
			out = append(out, path.Join(dir, name))
		}
	}
	return out
}

func lookupEnv(env []string, key string) (value string) {
	for _, e := range env {
		if k, v, ok := strings.Cut(e, "="); ok && k == key {
			value = v
		}
	}
	return value
}

// execError is the error of a failed execve in the words of Docker and runc. exists tells that the
// file itself is there.
func execError(c *process, s *step, e syscall.Errno, exists bool) error {
	name := c.args[0]
	code := 126
	var msg string
	switch {
	case s.nr == opFail:
		return &ExecError{127, fmt.Errorf("exec: %q: executable file not found in $PATH", name)}
	case e == unix.ENOENT && exists:
		code, msg = 127, fmt.Sprintf("exec %s: %s (the file is there; the interpreter or loader that it names is not)", s.object, e.Error())
	case e == unix.ENOENT || e == unix.ENOTDIR:
		code, msg = 127, fmt.Sprintf("exec: %q: stat %s: %s", name, name, e.Error())
	case e == unix.EACCES || e == unix.EPERM:
		msg = fmt.Sprintf("exec: %q: permission denied", name)
	default:
		msg = fmt.Sprintf("exec %s: %s", s.object, e.Error())
	}
	return &ExecError{code, &execFailure{msg, e}}
}

type execFailure struct {
	msg   string
	errno syscall.Errno
}

func (e *execFailure) Error() string { return e.msg }
func (e *execFailure) Unwrap() error { return e.errno }

func (l limit) bytes() []byte {
	b := make([]byte, 16)
	binary.NativeEndian.PutUint64(b, l.soft)
	binary.NativeEndian.PutUint64(b[8:], l.cap)
	return b
}

// newProcess takes the last stage's facts from a spec.
func newProcess(p *specs.Process, o *Options, userNS bool) (*process, []string, error) {
	if p == nil || len(p.Args) == 0 {
		return nil, nil, errNoCommand
	}
	for _, s := range append(append([]string{p.Cwd}, p.Args...), p.Env...) {
		if strings.IndexByte(s, 0) >= 0 {
			return nil, nil, errNul
		}
	}
	c := &process{args: p.Args, env: p.Env, cwd: p.Cwd, uid: p.User.UID, gid: p.User.GID, umask: 0o022,
		noNewPrivs: p.NoNewPrivileges, tty: p.Terminal, files: len(o.Files), personality: -1,
		own: ownCaps(), lastCap: lastCap(), makeCwd: true, apparmor: p.ApparmorProfile}
	c.outlive, c.listens = o.Outlive || o.Go != nil, o.Go != nil
	if err := c.priorities(p); err != nil {
		return nil, nil, err
	}
	if p.User.Umask != nil {
		c.umask = *p.User.Umask
	}
	c.groups = append([]uint32{}, p.User.AdditionalGids...)
	if linux.SingleID() {
		c.groups = nil // there is one id, and setgroups(2) is denied
	}
	var warnings []string
	caps, unknown := parseCaps(p.Capabilities)
	if userNS {
		c.own = ^capSet(0) // whoever makes a user namespace has everything in it
	}
	c.inUserNS = userNS
	for _, u := range unknown {
		warnings = append(warnings, "unknown capability "+u+" is ignored")
	}
	c.caps = caps.within(c.own)
	if lost := caps.bounding &^ c.own; lost != 0 {
		warnings = append(warnings, "capabilities that the engine itself lacks are left out: "+strings.Join(capNames(lost), " "))
	}
	limits, w, err := parseLimits(p.Rlimits, getLimit, !userNS && c.own.has(unix.CAP_SYS_RESOURCE))
	c.limits = limits
	return c, append(warnings, w...), err
}
