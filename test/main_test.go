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
	"testing"
	"time"

	"keg/test/private"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	private.Enter()
	flag.Parse()
	flag.Set("test.parallel", "1") // scripts share the namespace's ports
	testscript.Main(runner{m}, map[string]func(){"retry": retry, "code": code})
}

// runner prepares what all scripts share before the first one runs.
type runner struct{ m *testing.M }

func (r runner) Run() int {
	if err := findBinary(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer stopBases()
	return r.m.Run()
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
