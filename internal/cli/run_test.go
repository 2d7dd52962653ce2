package cli

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"keg/internal/engine"
	"keg/internal/fault"
	"keg/internal/monitor"
)

func TestRunPassesTheProgramThrough(t *testing.T) {
	f := &fake{out: "hello\n", errs: "oops\n", end: monitor.Exit{Code: 42}}
	keg(t, f, "run", "--rm", "img", "sh", "-c", "exit 42").want(t, 42, "hello\n", "oops\n")
	if got := strings.Join(f.create.Config.Cmd, " "); got != "sh -c exit 42" || !f.create.Host.AutoRemove {
		t.Errorf("command %q, rm %v", got, f.create.Host.AutoRemove)
	}
	if f.stdio.In != nil {
		t.Error("stdin is attached without -i")
	}
	if keg(t, f, "run", "-i", "img"); f.stdio.In == nil {
		t.Error("stdin is not attached with -i")
	}
}

func TestRunDetachedPrintsTheID(t *testing.T) {
	f := &fake{warnings: []string{"no swap"}}
	keg(t, f, "run", "-d", "img").want(t, 0, "0123456789ab\n", "WARNING: no swap\n")
	if f.stdio != nil || f.create.Config.AttachStdout {
		t.Error("a detached container is attached")
	}
	keg(t, f, "run", "-d", "-a", "stdin", "img").want(t, 1, "", "conflicting options: cannot specify both --attach and --detach\n")
}

func TestRunErrors(t *testing.T) {
	conflict := fault.Conflictf(`Conflict. The container name "/x" is already in use by container "0123". You have to remove (or rename) that container to be able to reuse that name.`)
	hint := "\n\nRun 'keg run --help' for more information\n"
	for _, c := range []struct {
		err  error
		code int
		want string
	}{
		{conflict, 125, "keg: Error response from daemon: " + conflict.Error() + hint},
		{&engine.ExitError{Code: 127, Err: errors.New(`exec: "nope": executable file not found in $PATH`)}, 127, `keg: Error response from daemon: exec: "nope": executable file not found in $PATH` + hint},
		{&engine.ExitError{Code: 126, Err: errors.New("permission denied")}, 126, "keg: Error response from daemon: permission denied" + hint},
	} {
		keg(t, &fake{err: c.err}, "run", "--name", "x", "img").want(t, c.code, "", c.want)
	}
	keg(t, &fake{}, "run", "--pull=x", "img").want(t, 125, "", `keg: invalid pull option: 'x': must be one of "always", "missing" or "never"`+hint)
	keg(t, &fake{}, "run", "-it", "img").want(t, 1, "", "the input device is not a TTY\n")
	keg(t, &fake{}, "run", "--platform", "foo/bar/baz/x", "img").want(t, 125, "", `keg: invalid platform "foo/bar/baz/x": want os/arch[/variant], such as linux/amd64`+hint)
}

func TestRunTellsThePull(t *testing.T) {
	f := &fake{pullEvents: []engine.PullEvent{
		{ID: "latest", Status: "Pulling from library/img"},
		{ID: "aaaaaaaaaaaa", Status: "Pulling fs layer"},
		{ID: "aaaaaaaaaaaa", Status: "Downloading", Current: 10, Total: 100},
		{ID: "aaaaaaaaaaaa", Status: "Extracting", Total: 100},
		{ID: "aaaaaaaaaaaa", Status: "Pull complete"},
		{Status: "Digest: sha256:00"},
		{Status: "Status: Downloaded newer image for img:latest"},
	}}
	lines := "latest: Pulling from library/img\naaaaaaaaaaaa: Pulling fs layer\naaaaaaaaaaaa: Pull complete\nDigest: sha256:00\nStatus: Downloaded newer image for img:latest\n"
	keg(t, f, "run", "-d", "img").want(t, 0, "0123456789ab\n", "Unable to find image 'img:latest' locally\n"+lines)
	keg(t, f, "run", "-d", "--pull", "always", "img").want(t, 0, "0123456789ab\n", lines)
	keg(t, f, "run", "-d", "-q", "img").want(t, 0, "0123456789ab\n", "")
	keg(t, f, "create", "img").want(t, 0, "0123456789ab\n", "Unable to find image 'img:latest' locally\n"+lines)
}

func TestCidfile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cid")
	keg(t, &fake{err: errors.New("no")}, "run", "--cidfile", path, "img")
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a run that failed leaves the file: %v", err)
	}
	keg(t, &fake{}, "run", "-d", "--cidfile", path, "img").want(t, 0, "0123456789ab\n", "")
	if b, _ := os.ReadFile(path); string(b) != "0123456789ab" {
		t.Errorf("file holds %q", b)
	}
	keg(t, &fake{}, "run", "-d", "--cidfile", path, "img").want(t, 125, "",
		"keg: container ID file found, make sure the other container isn't running or delete "+path+"\n\nRun 'keg run --help' for more information\n")
}

func TestRunGivesProxiesOfConfigJSON(t *testing.T) {
	home := t.TempDir()
	os.Mkdir(filepath.Join(home, ".docker"), 0o700)
	os.WriteFile(filepath.Join(home, ".docker", "config.json"), []byte(`{"proxies":{"default":{"httpProxy":"http://p:1"}},"psFormat":"{{.ID}}"}`), 0o600)
	f := &fake{}
	kegWith(t, f, "", map[string]string{"HOME": home}, "create", "-e", "HTTP_PROXY=mine", "img")
	if got := strings.Join(f.create.Config.Env, " "); got != "http_proxy=http://p:1 HTTP_PROXY=mine" {
		t.Errorf("environment %q", got)
	}
}

// An interrupt ends the pull, but not a program that runs: that gets the signal.
func TestDetachable(t *testing.T) {
	parent, interrupt := context.WithCancel(t.Context())
	before, _, cancel := detachable(parent)
	defer cancel()
	after, keep, cancel2 := detachable(parent)
	defer cancel2()
	keep()
	interrupt()
	<-before.Done()
	if after.Err() != nil {
		t.Error("the context of a program that runs ends with the interrupt")
	}
}

func TestExec(t *testing.T) {
	f := &fake{out: "x\n", end: monitor.Exit{Code: 3}}
	kegWith(t, f, "", map[string]string{"B": "2"}, "exec", "-i", "-e", "A=1", "-e", "B", "-u", "1:2", "-w", "/x", "--privileged", "web", "ls", "-l").want(t, 3, "x\n", "")
	r := f.exec
	if strings.Join(r.Cmd, " ") != "ls -l" || strings.Join(r.Env, " ") != "A=1 B=2" || r.User != "1:2" || r.Dir != "/x" || !r.Privileged || !r.Stdin || f.stdio.In == nil {
		t.Errorf("request %+v", r)
	}
	keg(t, f, "exec", "-d", "web", "ls").want(t, 0, "", "")
	if !f.exec.Detach {
		t.Error("-d is not passed on")
	}
	keg(t, f, "exec", "-it", "web", "sh").want(t, 1, "", "the input device is not a TTY\n")
	keg(t, f, "exec", "web").want(t, 1, "", "keg: 'keg exec' requires at least 2 arguments\n\nUsage:  keg exec [OPTIONS] CONTAINER COMMAND [ARG...]\n\nSee 'keg exec --help' for more information\n")
	f.err = &engine.ExitError{Code: 126, Err: errors.New("not executable")}
	keg(t, f, "exec", "web", "x").want(t, 126, "x\n", "Error response from daemon: not executable\n")
}

func TestDetachKeys(t *testing.T) {
	for spec, want := range map[string]string{"": "", "ctrl-p,ctrl-q": "\x10\x11", "a,b": "ab", "ctrl-@": "\x00", "ctrl-[": "\x1b", "ctrl-_": "\x1f", "DEL": "\x7f"} {
		if got, err := parseKeys(spec); err != nil || string(got) != want {
			t.Errorf("%q: %q, %v", spec, got, err)
		}
	}
	for _, bad := range []string{"ctrl-", "ab", "ctrl-A", "ctrl-pp", ","} {
		if _, err := parseKeys(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}
