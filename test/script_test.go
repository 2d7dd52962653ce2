package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keg/test/private"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScript runs what needs an engine, as root.
func TestScript(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: containers, bridges and mounts")
	}
	registry := bases(t)
	run(t, "script", func(e *testscript.Env) {
		e.Setenv("CONTAINERS_REGISTRIES_CONF", registry)
		e.Setenv("HUB", hub.addr)
	})
}

// TestLanguages runs what needs the bases of programming languages.
func TestLanguages(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: containers, bridges and mounts")
	}
	registry := bases(t)
	languageBases(t)
	run(t, "script/languages", func(e *testscript.Env) {
		e.Setenv("CONTAINERS_REGISTRIES_CONF", registry)
		e.Setenv("HUB", hub.addr)
	})
}

// TestUserScript runs what everybody may do.
func TestUserScript(t *testing.T) { run(t, "script/user", func(*testscript.Env) {}) }

func run(t *testing.T, dir string, more func(*testscript.Env)) {
	testscript.Run(t, testscript.Params{
		Dir:       dir,
		Condition: condition, ContinueOnError: os.Getenv("KEG_TEST_CONTINUE") != "",
		Setup: func(e *testscript.Env) error { return prepare(e, more) },
	})
}

// prepare gives a script directories of its own, and looks at the host when it is over.
func prepare(e *testscript.Env, more func(*testscript.Env)) error {
	// Short: socket paths and overlay options have limits of their own.
	state, err := os.MkdirTemp("", "k-")
	if err != nil {
		return err
	}
	os.Chmod(state, 0o755)
	e.Setenv("KEG_ROOT", filepath.Join(state, "root"))
	e.Setenv("KEG_RUN_ROOT", filepath.Join(state, "run"))
	e.Setenv("HOME", filepath.Join(state, "home"))
	e.Setenv("DOCKER_CONFIG", "")
	e.Setenv(private.Env, os.Getenv(private.Env)) // retry and code are this binary, too
	e.Setenv("TERM", "xterm")
	if w := os.Getenv("KEG_WEAKEN"); w != "" {
		e.Setenv("KEG_WEAKEN", w)
	}
	e.Setenv("PATH", bin+":"+e.Getenv("PATH")+":/usr/sbin:/sbin")
	more(e)
	if onDocker() {
		stop, err := dockerTarget(e, state)
		if stop != nil {
			e.Defer(func() { stop(); os.RemoveAll(state) })
		}
		return err
	}
	before := host(state)
	e.Defer(func() {
		left := settle(state, before)
		cleanUp(e, state)
		remove(e, state)
		if left != "" {
			e.T().Fatal("left on the host:\n" + left)
		}
	})
	return nil
}

// remove deletes the engine's directories; what containers of an ordinary user left belongs to
// his subordinate ids.
func remove(e *testscript.Env, state string) {
	if os.RemoveAll(state) == nil {
		return
	}
	cmd := exec.Command("unshare", "--user", "--map-root-user", "--map-users=auto", "--map-groups=auto", "rm", "-rf", state)
	if out, err := cmd.CombinedOutput(); err != nil {
		e.T().Log(string(out), err)
	}
}

// settle waits up to 5 s for the host to look as before and returns what does not.
func settle(state string, before []string) (left string) {
	for range 50 {
		if left = difference(before, host(state)); left == "" {
			return ""
		}
		time.Sleep(100 * time.Millisecond)
	}
	return left
}

// cleanUp ends what a failed script left: containers of its own engine only.
func cleanUp(e *testscript.Env, state string) {
	keg := func(args ...string) []byte {
		cmd := exec.Command(filepath.Join(bin, "keg"), args...)
		cmd.Env = e.Vars
		out, _ := cmd.Output()
		return out
	}
	if _, err := os.Stat(filepath.Join(state, "root")); err != nil {
		return
	}
	if ids := strings.Fields(string(keg("ps", "-aq"))); len(ids) > 0 {
		keg(append([]string{"rm", "-f"}, ids...)...)
	}
}
