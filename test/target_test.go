package test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
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
	e.Setenv("DOCKER_BUILDKIT", "1")
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if exec.Command(client, "-H", "unix://"+sock, "version").Run() == nil {
			for _, archive := range strings.Fields(e.Getenv("CARRIED")) {
				if err := exec.Command(client, "-H", "unix://"+sock, "load", "-q", "-i", archive).Run(); err != nil {
					return stop, err
				}
			}
			return stop, nil
		}
		if time.Now().After(end) {
			b, _ := os.ReadFile(log.Name())
			return stop, fmt.Errorf("Docker's engine does not answer:\n%s", b)
		}
	}
}

// alike are the scripts of what both engines have. Lines of what only keg has are marked [keg] in them.
var alike = []string{"run", "lifecycle", "everyday", "archives", "cp", "digests", "errors", "flags", "lesson", "network", "networks2", "volumes", "rest", "rows", "registry"}

// deviations is why the two engines differ where they do. Each entry tells by the command that differs.
var deviations = []struct {
	reason   string
	commands []string // regular expressions
}{
	{"Docker got it after 20.10", []string{
		`volume-subpath|image-subpath|type=image|bind-create-src`, `start -a holds|rm holds|volumes-from has|exec has|rm -v second|--filter dangling=false|volume prune|volume ls -q$`,
		`cp -q |exec web cat /new`, `images --tree`, `name=inside|network inside|\btwo\b|network connect .* late`, `add-host=db=`, `commit --no-pause`,
		`docker events .*--format json`, `docker (stop|restart) --signal`, `network rm --force`, `stats --no-stream --format json`, `cp -a src/b|/tmp/given`, `save --platform|inspect --format '{{.Architecture}}' imported:arm`,
	}},
	{"Docker reads and writes OCI layouts since 25", []string{
		`all\.tar`, `oci-archive|umoci`, `sko\.tar|from/oci|layout\.tar`, `one\.tar\.\$c`,
	}},
	{"Docker says it in other words since 20.10; keg in the new ones", []string{
		`save nosuch`, `rmi (-f )?nosuch`, `network rm nosuch`, `nosuchcommand`, `--sysctl kernel.core_pattern`, `UPPER$`, `cp web:/nope`,
		`cp src/a web:/no/dir/x`, `cp nosuch:/a`, `--ip 10.78.0.7`, `-d overlay`, `import -c 'RUN true'`, `port web (81|53)$`, `docker rm crate`,
		`docker cp src/a web:/new`, `cp web:/a$`, `update --restart sometimes|update --memory 1m`, `cp src/a web:/work-link/canary`, `pull --platform linux/arm64`,
		`cp src(/a)? web:/way`, `build bad/`, `start --detach-keys`, `"plan"\).Aliases`, `ps --filter status=nope`, `volume rm nosuch`, `login --password x`,
	}},
	{"Docker does so since 23: exec of a program that is not there ends with 127, addresses of version 6 are in brackets, an unknown filter is an error", []string{
		`exec box nosuch`, `docker (container )?port web`, `filter nope=1`, `prune -f --filter name=x`,
	}},
	{"Docker's engine of 20.10 loses what a program says after the end of its input", []string{`attach --sig-proxy=false reads`}},
	{"at times Docker's engine hears too late of a kill for want of memory", []string{`State.OOMKilled`}},
	{"docker diff of 20.10 has no order; keg's is sorted by path", []string{`docker (container )?diff made`}},
	{"keg refuses a hostile archive before it reads on, and names what is wrong with it", []string{`evil`, `code 1 docker load$`}},
	{"an image that only a digest names stays, as with the image store that is Docker's default since 29", []string{
		`sort -u`,
	}},
	{"a base that a build pulls has its name afterwards, so that rebuilds need no registry", []string{`images --format '{{.Repository}}:{{.Tag}}'`, `rmi localhost:5000/kv-web:1.0 registry:2`}},
	{"keg names the owner of a taken port", []string{`--name second -p`}},
	{"a label option that no SELinux reads is refused", []string{`label=colour`}},
	{"on a machine without CAP_SYS_RESOURCE runc runs nothing privileged", []string{`--privileged`}},
	{"a tag that a mirror lacks is asked for at docker.io, which is not here", []string{`pull busybox:nosuchtag`, `run --rm nosuchimage`}},
	{"a memory limit may be set without a swap limit, for which Docker asks", []string{
		`docker update --memory 64m|docker update -m 64m|docker update --cpu-period|HostConfig.Memory}}|pids.max|memory.max|MemUsage`,
	}},
}

// TestBesideDocker runs these scripts with Docker's engine: go test ./test -run BesideDocker -target docker. Without that it
// looks after the list of differences.
func TestBesideDocker(t *testing.T) {
	if !onDocker() {
		deviationsAreOfScripts(t)
		return
	}
	registry := bases(t)
	dir := t.TempDir()
	carriedImages(t, dir)
	used := map[string]bool{}
	total, same := 0, 0
	for _, name := range alike {
		t.Run(name, func(t *testing.T) {
			checks, lines := unlike(t, "script/"+name+".txtar", func(e *testscript.Env) {
				e.Setenv("CONTAINERS_REGISTRIES_CONF", registry)
				e.Setenv("HUB", hub.addr)
				e.Setenv("CARRIED", spokenOf(t, dir, "script/"+name+".txtar"))
			})
			total, same = total+checks, same+checks-len(lines)
			for _, l := range lines {
				if p := explained(l.command); p != "" {
					used[p] = true
				} else {
					t.Errorf("%s:%d: %s\n%s", name, l.line, l.command, l.why)
				}
			}
		})
	}
	for _, d := range deviations {
		for _, c := range d.commands {
			if !used[c] && !t.Failed() && !strings.HasPrefix(d.reason, "at times") {
				t.Errorf("%q (%s) explains nothing", c, d.reason)
			}
		}
	}
	t.Logf("%d commands and checks, %d alike, %d for %d reasons not", total, same, total-same, len(deviations))
}

// deviationsAreOfScripts is what can be said of the list without Docker: it is short, and each entry is about
// a command that is in the scripts.
func deviationsAreOfScripts(t *testing.T) {
	if len(deviations) > 15 {
		t.Errorf("%d reasons why the engines differ; at most 15 are meant", len(deviations))
	}
	var commands []string
	for _, name := range alike {
		text, err := os.ReadFile("script/" + name + ".txtar")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if _, c, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "exec "); ok {
				commands = append(commands, c)
			}
		}
	}
	for _, d := range deviations {
		for _, c := range d.commands {
			if !slices.ContainsFunc(commands, regexp.MustCompile(c).MatchString) {
				t.Errorf("no script has a command like %q (%s)", c, d.reason)
			}
		}
	}
}

// explained finds the entry for a command.
func explained(command string) string {
	for _, d := range deviations {
		for _, c := range d.commands {
			if regexp.MustCompile(c).MatchString(command) {
				return c
			}
		}
	}
	return ""
}

// carriedImages makes archives of the images that keg carries, for the other engine, in dir.
func carriedImages(t *testing.T, dir string) {
	t.Run("carried", func(t *testing.T) {
		e := newEngine(t)
		for _, i := range []string{"shell", "web", "registry"} {
			e.keg("create", "--name", i, "keg/"+i)
			e.keg("save", "-o", filepath.Join(dir, i+".tar"), "keg/"+i)
		}
	})
}

// spokenOf are the archives of the carried images that a script speaks of.
func spokenOf(t *testing.T, dir, script string) string {
	text, err := os.ReadFile(script)
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, i := range []string{"shell", "web", "registry"} {
		if regexp.MustCompile(`\bkeg/` + i + `\b`).Match(text) {
			files = append(files, filepath.Join(dir, i+".tar"))
		}
	}
	return strings.Join(files, " ")
}

// deviation is a line of a script that failed, with the command that it is about.
type deviation struct {
	line    int
	command string
	why     string
}

// unlike runs a script to its end, counts the commands and checks in it, and lists those that fail.
func unlike(t *testing.T, file string, more func(*testscript.Env)) (checks int, lines []deviation) {
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
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	script, _, _ := strings.Cut(string(text), "\n-- ")
	source := strings.Split(script, "\n")
	for _, l := range source {
		if regexp.MustCompile(`^(! )?(exec|stdout|stderr|cmp|grep|exists)\b`).MatchString(l) {
			checks++
		}
	}
	failed := regexp.MustCompile(`(?m)^FAIL: [^ ]*:(\d+): (.*)$`)
	for _, m := range failed.FindAllStringSubmatch(r.log.String(), -1) {
		n, _ := strconv.Atoi(m[1])
		d := deviation{line: n, why: m[2]}
		for ; n > 0 && d.command == ""; n-- {
			if _, c, ok := strings.Cut(source[n-1], "exec "); ok && !strings.HasPrefix(source[n-1], "#") {
				d.command = c
			}
		}
		lines = append(lines, d)
	}
	return checks, lines
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
