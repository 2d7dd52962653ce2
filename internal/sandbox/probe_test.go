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
	if args[0] == "exe" {
		var st unix.Statfs_t
		_, err := os.OpenFile("/proc/self/exe", os.O_WRONLY, 0)
		fmt.Println(unix.Statfs("/proc/self/exe", &st), st.Flags&unix.ST_RDONLY != 0, err != nil)
		return 0
	}
	return 2
}

func TestExecutableIsReadOnly(t *testing.T) {
	needRoot(t)
	f, err := Executable()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("/proc/self/fd/3", "probe", "exe")
	cmd.ExtraFiles = []*os.File{f}
	cmd.Path = fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "<nil> true true\n" {
		t.Errorf("%q %v", out, err)
	}
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
