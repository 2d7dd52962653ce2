// Package clients drives keg with programs that others wrote: testcontainers in Go and in Node, and Docker Compose. It is a module
// of its own, so that keg depends on none of them; scripts/clients fetches them and runs this.
package clients

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const isolated = "KEG_TEST_ISOLATED"

// TestMain runs the tests in network and mount namespaces of their own: these clients remove what they meet.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run()) // they skip
	}
	if os.Getenv(isolated) != "" {
		if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v: %s", err, out)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), isolated+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(cmd.ProcessState.ExitCode())
}

// An engine is keg on directories of its own.
type engine struct {
	t      *testing.T
	binary string
	state  string
}

// newEngine makes one; at the end of the test nothing of it may be left on the host.
func newEngine(t *testing.T) *engine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: starts containers with networks")
	}
	binary := os.Getenv("KEG_TEST_BINARY")
	if binary == "" {
		t.Fatal("KEG_TEST_BINARY names no keg; scripts/clients sets it")
	}
	state, err := os.MkdirTemp("", "kc") // short, for the socket
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{t, binary, state}
	before := e.onHost()
	t.Cleanup(func() {
		if ids := strings.Fields(e.keg(nil, "ps", "-aq")); len(ids) > 0 {
			e.keg(nil, append([]string{"rm", "-f"}, ids...)...)
		}
		var left []string
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			if left = e.onHost(); slices.Equal(left, before) {
				break
			}
		}
		if !slices.Equal(left, before) {
			t.Errorf("left on the host: %q, before: %q", left, before)
		}
		os.RemoveAll(state)
	})
	return e
}

func (e *engine) socket() string { return filepath.Join(e.state, "run", "keg.sock") }

// env is that of a client which uses the server.
func (e *engine) env() []string {
	return append(os.Environ(), "DOCKER_HOST=unix://"+e.socket(), "HOME="+e.state, "DOCKER_CONFIG=",
		"TESTCONTAINERS_RYUK_DISABLED=true") // its image comes from Docker Hub
}

// keg runs a command of the engine and returns what it prints.
func (e *engine) keg(stdin io.Reader, args ...string) string {
	e.t.Helper()
	cmd := exec.Command(e.binary, append([]string{"--root", filepath.Join(e.state, "root"), "--run-root", filepath.Join(e.state, "run")}, args...)...)
	cmd.Stdin = stdin
	cmd.Env = append(os.Environ(), "HOME="+e.state)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		e.t.Fatalf("keg %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return out.String()
}

// serve starts keg serve for the rest of the test.
func (e *engine) serve() {
	e.t.Helper()
	srv := exec.Command(e.binary, "--root", filepath.Join(e.state, "root"), "--run-root", filepath.Join(e.state, "run"), "serve")
	srv.Env = append(os.Environ(), "HOME="+e.state)
	srv.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var log bytes.Buffer
	srv.Stdout, srv.Stderr = &log, &log
	if err := srv.Start(); err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() {
		srv.Process.Signal(syscall.SIGTERM)
		srv.Wait()
		if e.t.Failed() || strings.Contains(log.String(), "panic") {
			e.t.Errorf("keg serve: %s", log.String())
		}
	})
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("unix", e.socket()); err == nil {
			c.Close()
			return
		}
	}
	e.t.Fatal("keg serve does not listen")
}

// onHost lists what an engine could leave: mounts, links, tables of rules, processes.
func (e *engine) onHost() (all []string) {
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		all = append(all, "mount "+strings.Fields(line)[4])
	}
	links, _ := net.Interfaces()
	for _, l := range links {
		all = append(all, "link "+l.Name)
	}
	tables, _ := exec.Command("nft", "list", "tables").Output()
	for line := range strings.Lines(string(tables)) {
		all = append(all, "nft "+strings.TrimSpace(line))
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if b, _ := os.ReadFile(p); bytes.HasPrefix(b, []byte("keg-")) && bytes.Contains(b, []byte(e.state)) {
			all = append(all, "process "+string(bytes.ReplaceAll(b, []byte{0}, []byte(" "))))
		}
	}
	slices.Sort(all)
	return all
}
