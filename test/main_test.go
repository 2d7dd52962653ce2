// Package test runs the real binary: scripts of commands with what they print, in
// network and mount namespaces of their own, each ending with a look for leaks.
package test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/vishvananda/netlink"
)

const isolated = "KEG_TEST_ISOLATED"

func TestMain(m *testing.M) {
	if os.Geteuid() == 0 && os.Getenv(isolated) == "" {
		os.Exit(isolate())
	}
	flag.Parse()
	flag.Set("test.parallel", "1") // scripts share the namespace's ports
	testscript.Main(runner{m}, map[string]func(){"retry": retry, "code": code})
}

// runner prepares what all scripts share before the first one runs.
type runner struct{ m *testing.M }

func (r runner) Run() int {
	if os.Geteuid() == 0 {
		if err := loopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	if err := findBinary(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer stopBases()
	return r.m.Run()
}

// isolate runs this test binary again in namespaces of its own.
func isolate() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), isolated+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// bin is the directory with keg under the names that scripts call.
var bin string

// findBinary links the binary under test (KEG_TEST_BINARY, or built now).
func findBinary() error {
	dir, err := os.MkdirTemp("", "kegbin-")
	if err != nil {
		return err
	}
	bin = dir
	keg := os.Getenv("KEG_TEST_BINARY")
	if keg == "" {
		keg = filepath.Join(dir, "built")
		cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", keg, "keg/cmd/keg")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build keg: %w\n%s", err, out)
		}
	}
	for _, name := range []string{"keg", "docker", "podman"} {
		if err := os.Symlink(keg, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return os.Chmod(dir, 0o755)
}

// retry runs its arguments until they succeed, for 10 seconds; what the last try printed
// is what it prints.
func retry() {
	deadline := time.Now().Add(10 * time.Second)
	for {
		cmd := exec.Command(os.Args[1], os.Args[2:]...)
		out, err := cmd.CombinedOutput()
		if err == nil || time.Now().After(deadline) {
			os.Stdout.Write(out)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// code runs its arguments and succeeds when they exit with the status that comes first.
func code() {
	cmd := exec.Command(os.Args[2], os.Args[3:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if got := strconv.Itoa(cmd.ProcessState.ExitCode()); got != os.Args[1] {
		fmt.Fprintf(os.Stderr, "exit status %s, want %s\n", got, os.Args[1])
		os.Exit(1)
	}
}
