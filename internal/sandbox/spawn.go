package sandbox

// The one thread that clones. A child's PDEATHSIG fires when the *thread* that made it
// ends (prctl(2)), so this thread is locked to its goroutine and never exits.

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"keg/internal/weakness"
)

// birth asks the spawner for one child.
type birth struct {
	program   *program
	fds       map[string]int // the program's descriptors
	keepBelow int            // numbers below are the child's own
	flags     uint64
	cgroup    int // descriptor of a cgroup v2 directory to be born in, or -1
	pidns     int // descriptor of a pid namespace (or pidfd) to be born in, or -1

	pid, pidfd int
	parentEnd  *os.File // of the control socket
}

// spawner runs functions on the cloning thread. The thread has a umask of 0 of its own, so
// that what is made there has the modes that were asked for.
var spawner = sync.OnceValue(func() chan<- func() {
	c := make(chan func())
	go func() {
		runtime.LockOSThread()
		if unix.Unshare(unix.CLONE_FS) == nil {
			unix.Umask(0)
		}
		for f := range c {
			f()
		}
	}()
	return c
})

// onSpawner runs f there.
func onSpawner(f func() error) (err error) {
	done := make(chan struct{})
	spawner() <- func() {
		defer close(done)
		err = f()
	}
	<-done
	return err
}

// spawn clones b's child and returns when the parent's side is done.
func spawn(b *birth) error { return onSpawner(b.deliver) }

// deliver makes the control socket here and not earlier: another child that was cloned meanwhile
// would hold this one's end, and keep it open.
func (b *birth) deliver() (err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make a socket pair: %w", err)
	}
	end, err := unix.FcntlInt(uintptr(pair[1]), unix.F_DUPFD_CLOEXEC, b.keepBelow+1) // room for ctl-1; ctl+1 may be taken by the child
	unix.Close(pair[1])
	if err != nil {
		unix.Close(pair[0])
		return fmt.Errorf("make a socket pair: %w", err)
	}
	defer unix.Close(end)
	b.fds[ctl], b.fds[ctl+"-1"], b.fds[ctl+"+1"], b.fds[ctl+"+2"] = end, end-1, end+1, end+2
	m, err := b.program.bind(b.fds)
	if err == nil {
		err = b.clone(m, end)
	}
	if err != nil {
		unix.Close(pair[0])
		return err
	}
	_ = unix.SetNonblock(pair[0], true)
	b.parentEnd = os.NewFile(uintptr(pair[0]), "control socket")
	return nil
}

func (b *birth) clone(m *machine, ctl int) (err error) {
	if b.pidns >= 0 {
		// setns changes only where this thread's children are born; undone below.
		own, err := os.Open("/proc/thread-self/ns/pid")
		if err != nil {
			return err
		}
		defer own.Close()
		if err := unix.Setns(b.pidns, unix.CLONE_NEWPID); err != nil {
			return fmt.Errorf("enter the pid namespace: %w", err)
		}
		defer func() {
			if e := unix.Setns(int(own.Fd()), unix.CLONE_NEWPID); e != nil && err == nil {
				err = fmt.Errorf("leave the pid namespace: %w", e)
			}
		}()
	}
	// Whoever shares a pid namespace with the child must not trace it or open its
	// descriptors, not even in its first instant: it inherits "not dumpable".
	dumpable, _ := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if dumpable == 1 && !weakness.Of("RT13") {
		_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
		defer func() { _ = unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) }()
	}
	c := &cloneArgs{flags: b.flags | unix.CLONE_PIDFD, exitSignal: uint64(unix.SIGCHLD),
		pidfd: uint64(uintptr(unsafe.Pointer(&m.pidfd)))}
	m.w.ctl = uintptr(ctl)
	if b.cgroup >= 0 {
		c.flags |= unix.CLONE_INTO_CGROUP
		c.cgroup = uint64(b.cgroup)
	}
	pid, e := cloneRun(c, &m.w)
	runtime.KeepAlive(m)
	if e != 0 {
		return fmt.Errorf("clone: %w", e)
	}
	b.pid, b.pidfd = int(pid), int(m.pidfd)
	_ = unix.SetNonblock(b.pidfd, true) // so that os.NewFile gives it to the poller
	return nil
}
