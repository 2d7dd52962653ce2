package test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

var target = flag.String("target", "keg", "the engine that the scripts drive: keg, or docker (Debian's engine and its client)")

func onDocker() bool { return *target == "docker" }

// dockerTarget starts an engine for one script, all its files below state, and puts its client into the
// script's way. What it returns ends it.
func dockerTarget(e *testscript.Env, state string) (stop func(), err error) {
	sock := filepath.Join(state, "sock")
	os.WriteFile(filepath.Join(state, "daemon.json"), []byte("{}"), 0o600)
	log, err := os.Create(filepath.Join(state, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command("dockerd", "--config-file", filepath.Join(state, "daemon.json"), "--data-root", filepath.Join(state, "data"),
		"--exec-root", filepath.Join(state, "exec"), "--pidfile", filepath.Join(state, "pid"), "-H", "unix://"+sock,
		"--storage-driver", "overlay2", "--registry-mirror", "http://"+hub.addr, "--default-cgroupns-mode", "private")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		cmd.Wait()
		kill.Stop()
	}
	programs := filepath.Join(state, "programs")
	if err := os.Mkdir(programs, 0o755); err != nil {
		return stop, err
	}
	client := "/usr/bin/docker"
	if c := os.Getenv("KEG_TEST_DOCKER"); c != "" {
		client = c
	}
	if err := os.Symlink(client, filepath.Join(programs, "docker")); err != nil {
		return stop, err
	}
	e.Setenv("PATH", programs+":"+e.Getenv("PATH"))
	e.Setenv("DOCKER_HOST", "unix://"+sock)
	e.Setenv("DOCKER_CONFIG", filepath.Join(state, "config"))
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if exec.Command(client, "-H", "unix://"+sock, "version").Run() == nil {
			return stop, nil
		}
		if time.Now().After(end) {
			b, _ := os.ReadFile(log.Name())
			return stop, fmt.Errorf("Docker's engine does not answer:\n%s", b)
		}
	}
}

// alike are the scripts of what both engines have.
var alike = []string{"run", "lifecycle", "everyday", "archives", "cp", "digests", "errors", "flags", "lesson", "network", "networks2", "volumes", "rest", "registry"}

// TestBesideDocker runs these scripts with Docker's engine: go test ./test -run BesideDocker -target docker.
func TestBesideDocker(t *testing.T) {
	if !onDocker() {
		return
	}
	registry := bases(t)
	for _, name := range alike {
		t.Run(name, func(t *testing.T) {
			lines := unlike(t, "script/"+name+".txtar", func(e *testscript.Env) {
				e.Setenv("CONTAINERS_REGISTRIES_CONF", registry)
				e.Setenv("HUB", hub.addr)
			})
			for _, l := range lines {
				t.Log(l)
			}
			t.Logf("%s: %d differences", name, len(lines))
		})
	}
}

// unlike runs a script to its end and lists the lines that fail.
func unlike(t *testing.T, file string, more func(*testscript.Env)) (lines []string) {
	r := &recorder{T: t}
	func() {
		defer func() {
			if x := recover(); x != nil && x != errStopped {
				panic(x)
			}
		}()
		testscript.RunT(r, testscript.Params{
			Files:           []string{file},
			Condition:       condition,
			ContinueOnError: true,
			Setup:           func(e *testscript.Env) error { return prepare(e, more) },
		})
	}()
	if dir := os.Getenv("KEG_TEST_LOGS"); dir != "" {
		os.WriteFile(filepath.Join(dir, filepath.Base(file)), []byte(r.log.String()), 0o644)
	}
	for l := range strings.Lines(r.log.String()) {
		if strings.HasPrefix(l, "FAIL: ") {
			lines = append(lines, strings.TrimSpace(l))
		}
	}
	return lines
}

var errStopped = fmt.Errorf("stopped")

// recorder is a testing.T that fails nothing.
type recorder struct {
	*testing.T
	log strings.Builder
}

func (r *recorder) Skip(args ...any)                      { panic(errStopped) }
func (r *recorder) Fatal(args ...any)                     { fmt.Fprintln(&r.log, args...); panic(errStopped) }
func (r *recorder) FailNow()                              { panic(errStopped) }
func (r *recorder) Log(args ...any)                       { fmt.Fprintln(&r.log, args...) }
func (r *recorder) Parallel()                             {}
func (r *recorder) Verbose() bool                         { return true }
func (r *recorder) Run(name string, f func(testscript.T)) { f(r) }
