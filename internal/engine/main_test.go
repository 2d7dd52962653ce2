package engine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"keg/internal/monitor"
)

// TestMain runs the tests in private network and mount namespaces when it may, and is the
// monitor when an engine under test starts one.
func TestMain(m *testing.M) {
	if os.Args[0] == monitor.Argv0 {
		os.Exit(monitor.Main(os.Args[1:]))
	}
	if os.Geteuid() == 0 && os.Getenv("KEG_TEST_PRIVATE") == "" {
		os.Exit(inPrivate())
	}
	os.Exit(m.Run())
}

func inPrivate() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "KEG_TEST_PRIVATE=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// private tells tests that need root why they cannot run.
func private(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces, mounts and a bridge")
	}
	loopback(t)
}

// loopback is down in a new network namespace; an ordinary user stays in the host's.
func loopback(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Skipf("needs ip(8): %v: %s", err, out)
	}
}
