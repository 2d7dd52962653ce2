// Package private gives tests and benchmarks mounts and a network of their own.
package private

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"github.com/vishvananda/netlink"
)

// Env is set, to 1, where Enter has nothing left to do: programs that start themselves with an empty environment pass it on.
const Env = "KEG_TEST_PRIVATE"

// Enter has root's program run once more in new mount and network namespaces, ends when that one ends, with its status, and
// returns there, with the loopback device up. An ordinary user's program just goes on.
func Enter() {
	if os.Geteuid() != 0 {
		return
	}
	if os.Getenv(Env) == "" {
		os.Exit(again())
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "private network:", err)
		os.Exit(1)
	}
}

func again() int {
	self, err := os.Executable() // not /proc/self/exe: the process would be called that
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), Env+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, "private namespaces:", err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}
