package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// client runs a program of others in dir and returns both its streams; three minutes are the end of it.
func (e *engine) client(dir string, stdin []byte, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env, cmd.Stdin = dir, e.env(), bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// A project is a directory with a compose.yaml, and Compose that acts on it.
type project struct {
	*engine
	dir     string
	compose []string // the command, without arguments
	env     []string
}

var composeFiles = map[string]string{
	"compose.yaml": `name: demo
services:
  web:
    build:
      context: .
      args: {WORD: built}
    ports: ["127.0.0.1:18080:80"]
    depends_on:
      db: {condition: service_healthy}
    environment: {A: b}
    stop_grace_period: 0s
    networks:
      default: {interface_name: inside0}
  db:
    image: busybox
    command: ["sh", "-c", "echo db is up; touch /tmp/ok; exec sleep 1000"]
    healthcheck: {test: ["CMD", "test", "-e", "/tmp/ok"], interval: 1s, start_interval: 100ms, start_period: 10s}
    stop_grace_period: 0s
    volumes: ["data:/data"]
    networks:
      default: {aliases: [database]}
volumes:
  data: {}
`,
	"Dockerfile": `FROM busybox
ARG WORD
RUN mkdir /www && echo $WORD > /www/word
CMD ["httpd", "-f", "-p", "80", "-h", "/www"]
`,
}

// newProject makes the directory; the program is that of scripts/clients.
func newProject(t *testing.T) *project {
	t.Helper()
	program := os.Getenv("KEG_TEST_COMPOSE")
	if program == "" {
		t.Skip("needs Docker Compose: scripts/clients builds it")
	}
	p := &project{engine: newEngine(t), compose: []string{program}}
	p.dir = filepath.Join(p.state, "demo")
	if err := os.Mkdir(p.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range composeFiles {
		if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p.busybox()
	p.env = append(p.engine.env(), "COMPOSE_MENU=false", "COMPOSE_PROGRESS=plain", "COMPOSE_ANSI=never")
	return p
}

// try runs Compose: its standard output, its standard error and its exit status.
func (p *project) try(stdin string, args ...string) (out, errs string, code int) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.compose[0], append(p.compose[1:], args...)...)
	cmd.Dir, cmd.Env, cmd.Stdin = p.dir, p.env, strings.NewReader(stdin)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	err := cmd.Run()
	if ended := (*exec.ExitError)(nil); err != nil && (!errors.As(err, &ended) || ended.ExitCode() < 0) {
		p.t.Fatalf("compose %s: %v\n%s%s", strings.Join(args, " "), err, o.String(), e.String())
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

// do is try for what has to succeed.
func (p *project) do(args ...string) string {
	p.t.Helper()
	out, errs, code := p.try("", args...)
	if code != 0 {
		p.t.Fatalf("compose %s: %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// says checks what a command prints on its standard output, line by line and to the byte.
func (p *project) says(want string, args ...string) {
	p.t.Helper()
	if got := p.do(args...); got != want {
		p.t.Errorf("compose %s:\n%q, want\n%q", strings.Join(args, " "), got, want)
	}
}

// comesToSay is says for what takes its time after the command before.
func (p *project) comesToSay(want string, args ...string) {
	p.t.Helper()
	for end := time.Now().Add(20 * time.Second); p.do(args...) != want && time.Now().Before(end); {
		time.Sleep(50 * time.Millisecond)
	}
	p.says(want, args...)
}

// listed is ps as Compose's JSON has it.
type listed struct {
	ID, Name, Image, Service, State, Health string
	ExitCode                                int
	Publishers                              []struct {
		URL, Protocol             string
		TargetPort, PublishedPort int
	}
}

func (p *project) ps() map[string]listed {
	p.t.Helper()
	all := map[string]listed{}
	for line := range strings.Lines(p.do("ps", "-a", "--format", "json")) {
		var c listed
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			p.t.Fatalf("%v in %s", err, line)
		}
		all[c.Name] = c
	}
	return all
}

// states is each container's state, by name.
func (p *project) states() string {
	p.t.Helper()
	var all []string
	for name, c := range p.ps() {
		all = append(all, strings.TrimPrefix(name, "demo-")+"="+c.State)
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func (p *project) are(want string) {
	p.t.Helper()
	if got := p.states(); got != want {
		p.t.Errorf("containers are %s, want %s", got, want)
	}
}

// TestCompose: the life of a project, by Docker Compose against keg serve.
func TestCompose(t *testing.T) {
	p := newProject(t)
	p.serve()

	p.do("up", "-d", "--build")
	all := p.ps()
	web, db := all["demo-web-1"], all["demo-db-1"]
	if len(all) != 2 || web.State != "running" || web.Image != "demo-web" || db.State != "running" || db.Health != "healthy" || db.Image != "busybox" {
		t.Fatalf("ps: %+v", all)
	}
	if len(web.Publishers) != 1 || web.Publishers[0].URL != "127.0.0.1" || web.Publishers[0].PublishedPort != 18080 || web.Publishers[0].TargetPort != 80 {
		t.Errorf("ports: %+v", web.Publishers)
	}
	if got := get(t, "http://127.0.0.1:18080/word"); got != "built\n" {
		t.Errorf("the port: %q", got)
	}
	if got := p.do("up", "-d"); p.ps()["demo-web-1"].ID != web.ID {
		t.Errorf("the second up makes another container: %s", got)
	}

	p.says("db-1  | db is up\n", "logs", "--no-color", "db")
	p.says("db\nweb\n", "config", "--services")
	p.says("127.0.0.1:18080\n", "port", "web", "80")
	p.says("built\nb\n", "exec", "-T", "web", "sh", "-c", "cat /www/word; echo $A")
	p.says("built\n", "exec", "-T", "db", "wget", "-qO-", "http://web/word")
	p.says("inside0\nlo\n", "exec", "-T", "web", "ls", "/sys/class/net")
	if out := p.do("exec", "-T", "web", "nslookup", "database"); !strings.Contains(out, "database") || strings.Contains(out, "NXDOMAIN") {
		t.Errorf("the alias: %s", out)
	}
	if out, errs, code := p.try("typed", "exec", "-T", "web", "sh", "-c", "cat; echo err >&2; exit 7"); out != "typed" || !strings.HasPrefix(errs, "err\n") || code != 7 {
		t.Errorf("exec: %q %q %d", out, errs, code)
	}
	if out := p.do("top", "web"); !regexp.MustCompile(`(?m)^web .*httpd -f -p 80 -h /www$`).MatchString(out) {
		t.Errorf("top: %s", out)
	}
	var images []struct{ ContainerName, Repository, Tag string }
	if err := json.Unmarshal([]byte(p.do("images", "--format", "json")), &images); err != nil || len(images) != 2 {
		t.Errorf("images: %+v, %v", images, err)
	}
	for _, im := range images {
		if want := map[string]string{"demo-web-1": "demo-web", "demo-db-1": "busybox"}[im.ContainerName]; im.Repository != want || im.Tag != "latest" {
			t.Errorf("images: %+v", im)
		}
	}
	p.says("oneoff\n", "run", "--rm", "-T", "db", "echo", "oneoff")
	p.are("db-1=running web-1=running")

	local := filepath.Join(p.dir, "word")
	p.do("cp", "web:/www/word", local)
	if b, err := os.ReadFile(local); err != nil || string(b) != "built\n" {
		t.Errorf("cp out: %q, %v", b, err)
	}
	if err := os.WriteFile(local, []byte("copied\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p.do("cp", local, "web:/www/word")
	if got := get(t, "http://127.0.0.1:18080/word"); got != "copied\n" {
		t.Errorf("cp in: %q", got)
	}

	// What happens in a restart, as events tell it.
	since := time.Now().Add(-time.Millisecond)
	p.do("restart", "-t", "0", "db")
	var actions []string
	out, _, _ := p.try("", "events", "--json", "--since", since.Format(time.RFC3339Nano), "--until", time.Now().Format(time.RFC3339Nano), "db")
	for line := range strings.Lines(out) { // it takes the end of the answer for an error, whoever gives it
		var e struct{ Service, Action string }
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Service != "db" {
			t.Errorf("event %s: %v", line, err)
		}
		if !strings.HasPrefix(e.Action, "exec_") && !strings.HasPrefix(e.Action, "health_status") {
			actions = append(actions, e.Action)
		}
	}
	for _, a := range []string{"kill", "die", "stop", "start", "restart"} {
		if !slices.Contains(actions, a) {
			t.Errorf("events of a restart: %q", actions)
		}
	}
	if again := p.ps()["demo-db-1"]; again.ID != db.ID || again.State != "running" {
		t.Errorf("after the restart: %+v", again)
	}
	p.comesToSay("db-1  | db is up\ndb-1  | db is up\n", "logs", "--no-color", "db")

	p.do("stop")
	p.are("db-1=exited web-1=exited")
	p.do("start")
	p.are("db-1=running web-1=running")
	p.do("pause", "db")
	p.are("db-1=paused web-1=running")
	p.do("unpause", "db")
	p.do("scale", "db=3")
	p.are("db-1=running db-2=running db-3=running web-1=running")
	p.do("scale", "db=1")
	p.are("db-1=running web-1=running")

	// A volume outlives its container.
	p.do("exec", "-T", "db", "sh", "-c", "echo kept > /data/file")
	p.do("up", "-d", "--force-recreate", "db")
	if p.ps()["demo-db-1"].ID == db.ID {
		t.Error("not another container")
	}
	p.says("kept\n", "exec", "-T", "db", "cat", "/data/file")

	p.do("kill", "web")
	if c := p.ps()["demo-web-1"]; c.State != "exited" || c.ExitCode != 137 {
		t.Errorf("killed: %+v", c)
	}
	p.do("down", "-v", "--rmi", "local")
	p.gone()
}

// gone: nothing of the project is left, but for the image that was there before.
func (p *project) gone() {
	p.t.Helper()
	for _, c := range []struct{ want, args string }{
		{"", "ps -aq"},
		{"", "volume ls -q"},
		{"bridge\nhost\nnone\n", "network ls --format {{.Name}}"},
		{"busybox\n", "images --format {{.Repository}}"},
	} {
		if got := p.keg(nil, strings.Fields(c.args)...); got != c.want {
			p.t.Errorf("keg %s: %q", c.args, got)
		}
	}
}

// TestComposeAttached: up in the foreground shows what a container prints, each line once, through restarts. It sleeps, since Compose
// asks about a container that ended whether it is being restarted: that should still be so.
func TestComposeAttached(t *testing.T) {
	p := newProject(t)
	p.serve()
	text := `name: demo
services:
  again:
    image: busybox
    command: ["sh", "-c", "n=$$(cat /data/n 2>/dev/null); echo again 1$$n; echo 1$$n > /data/n; sleep 1; exit 3"]
    deploy: {restart_policy: {condition: on-failure, max_attempts: 2}}
    volumes: ["data:/data"]
volumes: {data: {}}
`
	if err := os.WriteFile(filepath.Join(p.dir, "compose.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	out := p.do("up")
	for line, n := range map[string]int{"again-1  | again 1\n": 1, "again-1  | again 11\n": 1, "again-1  | again 111\n": 1, "again-1 exited with code 3": 3} {
		if strings.Count(out, line) != n {
			t.Errorf("%q is there %d times in\n%s", line, strings.Count(out, line), out)
		}
	}
	p.do("down", "-v")
	p.gone()
}

// TestKegCompose: keg compose finds Compose as a plugin, and is its server where none is up.
func TestKegCompose(t *testing.T) {
	p := newProject(t)
	plugins := filepath.Join(p.state, ".docker", "cli-plugins")
	if err := os.MkdirAll(plugins, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(p.compose[0], filepath.Join(plugins, "docker-compose")); err != nil {
		b, err := os.ReadFile(p.compose[0])
		if err == nil {
			err = os.WriteFile(filepath.Join(plugins, "docker-compose"), b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	p.compose = []string{p.binary, "--root", filepath.Join(p.state, "root"), "--run-root", filepath.Join(p.state, "run"), "compose"}
	p.env = slices.DeleteFunc(p.env, func(kv string) bool { return strings.HasPrefix(kv, "DOCKER_") })
	p.do("up", "-d", "--build")
	p.are("db-1=running web-1=running")
	if _, err := os.Stat(p.socket()); err == nil {
		t.Error("a server is left")
	}
	if got := get(t, "http://127.0.0.1:18080/word"); got != "built\n" {
		t.Errorf("the port: %q", got)
	}
	p.says("db-1  | db is up\n", "logs", "--no-color", "db")
	if out, _, code := p.try("typed", "exec", "-T", "web", "sh", "-c", "cat; exit 7"); out != "typed" || code != 7 {
		t.Errorf("exec: %q %d", out, code)
	}
	p.do("down", "-v", "--rmi", "local")
	p.gone()
}
