package sandbox

// After the birth: waiting, signals, release.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

// Wait reaps the process and returns its exit code (128+n for signal n). It holds no thread
// while it waits: the runtime's poller watches the pidfd.
func (p *Process) Wait() (code int, err error) {
	c, err := p.PidFD.SyscallConn()
	if err != nil {
		return -1, err
	}
	var info unix.Siginfo
	var waitErr error
	err = c.Read(func(fd uintptr) bool {
		for {
			info = unix.Siginfo{}
			waitErr = unix.Waitid(unix.P_PIDFD, int(fd), &info, unix.WEXITED|unix.WNOHANG|unix.WALL, nil)
			if !errors.Is(waitErr, unix.EINTR) {
				break
			}
		}
		// WNOHANG with a living child succeeds and says nothing.
		return waitErr != nil || info.Signo != 0
	})
	if err = errors.Join(err, waitErr); err != nil {
		return -1, fmt.Errorf("wait for process %d: %w", p.Pid, err)
	}
	p.PidFD.Close()
	return exitCode(&info), nil
}

// Signal goes through the pidfd.
func (p *Process) Signal(sig int) error {
	c, err := p.PidFD.SyscallConn()
	if err != nil {
		return err
	}
	var e error
	if err := c.Control(func(fd uintptr) { e = unix.PidfdSendSignal(int(fd), unix.Signal(sig), nil, 0) }); err != nil {
		return fmt.Errorf("signal process %d: %w", p.Pid, os.ErrProcessDone)
	}
	if errors.Is(e, unix.ESRCH) {
		e = os.ErrProcessDone
	}
	if e != nil {
		return fmt.Errorf("signal process %d: %w", p.Pid, e)
	}
	return nil
}

// Release lets a held process go on to execve.
func (p *Process) Release() error {
	h := p.held
	if h == nil {
		return fault.Conflictf("process %d is not held", p.Pid)
	}
	p.held = nil
	return h.t.release(context.Background())
}

// siginfo of SIGCHLD has the status behind signal, errno, code, padding, pid and uid
// (sigaction(2)); x/sys does not name it.
func exitCode(i *unix.Siginfo) int {
	status := *(*int32)(unsafe.Add(unsafe.Pointer(i), 24))
	const exited = 1 // CLD_EXITED; otherwise killed or dumped by the signal
	if i.Code == exited {
		return int(status)
	}
	return 128 + int(status)
}
