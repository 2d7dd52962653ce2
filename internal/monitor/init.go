package monitor

// The third door: keg as a container's init (--init) where no other one is installed.

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"syscall"

	"golang.org/x/sys/unix"
)

// IsInit tells from argv[0] that the binary was started as a container's init.
func IsInit(argv0 string) bool { return path.Base(argv0) == "docker-init" }

// Init runs args (after a leading "--") as its child, passes signals on, reaps whatever is left
// to it, and returns the child's exit status.
func Init(args []string) int {
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "docker-init: no command")
		return 1
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	file, err := exec.LookPath(args[0])
	if err != nil {
		fmt.Fprintf(os.Stderr, "[FATAL docker-init] exec %s failed: %v\n", args[0], errors.Unwrap(err))
		return 127
	}
	p, err := os.StartProcess(file, args, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Env: os.Environ(),
		Sys: &syscall.SysProcAttr{Foreground: terminal(), Setpgid: true}})
	if err != nil {
		fmt.Fprintf(os.Stderr, "[FATAL docker-init] exec %s failed: %v\n", args[0], err)
		return 126
	}
	for s := range signals {
		if s == unix.SIGCHLD {
			if code, over := reap(p.Pid); over {
				return code
			}
			continue
		}
		if n, ok := s.(unix.Signal); ok && n != unix.SIGURG { // the Go runtime's own
			unix.Kill(p.Pid, n)
		}
	}
	return 0
}

// terminal tells whether stdin is one, which the child then is to have in the foreground.
func terminal() bool {
	_, err := unix.IoctlGetTermios(0, unix.TCGETS)
	return err == nil
}

// reap collects every child that has ended, and tells when child did.
func reap(child int) (code int, over bool) {
	for {
		var st unix.WaitStatus
		pid, err := unix.Wait4(-1, &st, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return code, over
		}
		if pid == child {
			if code, over = st.ExitStatus(), true; st.Signaled() {
				code = 128 + int(st.Signal())
			}
		}
	}
}
