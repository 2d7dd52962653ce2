package sandbox

// What the test binary does as another process: inside containers, or as a monitor of its own.

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func probe(args []string) int {
	if len(args) == 3 && args[0] == "monitor" {
		return monitor(args[1], args[2])
	}
	return 2
}

// monitor starts a container with descriptor 3 as its standard output and kills itself.
func monitor(root, group string) int {
	fd, err := cloneTree(unix.AT_FDCWD, root, true)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	out := os.NewFile(3, "out")
	p, err := Start(context.Background(), dockerSpec("sleep", "1000"), Options{Root: fd, NetNS: -1, Cgroup: group, Stdio: [3]*os.File{nil, out, out}})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(p.Pid)
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	return 0
}

func startInOtherProcess(t *testing.T, root string, out *os.File) int {
	t.Helper()
	group := cgroupName(t)
	cmd := exec.Command("/proc/self/exe", "probe", "monitor", root, group)
	cmd.ExtraFiles = []*os.File{out}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	r, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(r).ReadString('\n')
	_ = cmd.Wait()
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(line)
	}
	t.Cleanup(func() { removeGroup(t, group) })
	return pid
}
