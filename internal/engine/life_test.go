package engine

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"keg/internal/builder"
	ctr "keg/internal/container"
	"keg/internal/image"
	"keg/internal/monitor"
	net "keg/internal/network"
)

// busybox is the one program of these tests' images.
func busybox(t *testing.T) string {
	t.Helper()
	for _, p := range []string{"/usr/bin/busybox", "/bin/busybox"} {
		b, err := os.ReadFile(p)
		if err == nil {
			return string(b)
		}
	}
	t.Skip("needs a static busybox (Debian: busybox-static)")
	return ""
}

// liveEngine is a whole engine: real monitors, real network, everything private.
func liveEngine(t *testing.T) *Engine {
	t.Helper()
	needRoot(t)
	root := t.TempDir()
	e := openEngine(t, root, nil)
	t.Cleanup(func() { noMonitor(t, root) })
	t.Cleanup(func() {
		list, err := e.Containers(context.Background(), ListOptions{All: true})
		if err != nil {
			t.Error(err)
		}
		for _, c := range list {
			if err := e.Remove(context.Background(), c.ID, RemoveOptions{Force: true, Volumes: true}); err != nil {
				t.Error(err)
			}
		}
	})
	return e
}

// noMonitor waits for the monitors of an engine, which put things in order after the exit was told.
func noMonitor(t *testing.T, root string) {
	t.Helper()
	for range 200 {
		if !slices.ContainsFunc(processes(), func(words string) bool {
			return strings.HasPrefix(words, monitor.Argv0) && strings.Contains(words, root)
		}) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error("a monitor does not end")
}

// processes are the command lines of all processes.
func processes() (all []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		b, _ := os.ReadFile(f)
		all = append(all, string(b))
	}
	return all
}

func baseImage(t *testing.T, e *Engine) {
	t.Helper()
	addImage(t, e, "base:1", func(c *image.Config) { c.Config.Env = []string{"PATH=/bin"} },
		tarOf(t, map[string]string{"bin/": "", "bin/busybox": busybox(t), "tmp/": "", "etc/": "", "etc/passwd": "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/:/bin/sh\n"}))
}

func runOut(t *testing.T, e *Engine, o CreateOptions) (string, string, monitor.Exit, error) {
	t.Helper()
	var out, errs bytes.Buffer
	o.Config.AttachStdout, o.Config.AttachStderr = true, true
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	exit, err := e.Run(ctx, o, &monitor.Stdio{Out: &out, Err: &errs}, nil)
	return out.String(), errs.String(), exit, err
}

func sh(script string) *container.Config {
	return &container.Config{Image: "base:1", Cmd: []string{"/bin/busybox", "sh", "-c", script}}
}

func TestRunForReal(t *testing.T) {
	e := liveEngine(t)
	baseImage(t, e)
	none := func() *container.HostConfig { return &container.HostConfig{NetworkMode: "none"} }
	out, errs, exit, err := runOut(t, e, CreateOptions{Name: "one", Config: sh("echo out; echo err >&2; exit 7"), Host: none()})
	if err != nil || out != "out\n" || errs != "err\n" || exit.Code != 7 {
		t.Fatalf("got %q %q %v %v", out, errs, exit, err)
	}
	in, err := e.Inspect(t.Context(), "one", true)
	if err != nil || in.State.ExitCode != 7 || in.State.Status != "exited" {
		t.Errorf("got %+v, %v", in.State, err)
	}
	var log []string
	err = e.Logs(t.Context(), "one", ctr.LogOptions{Tail: -1}, func(l ctr.LogEntry) error {
		log = append(log, l.Stream+":"+strings.TrimSuffix(string(l.Line), "\n"))
		return nil
	})
	if err != nil || len(log) != 2 || !strings.Contains(strings.Join(log, " "), "stderr:err") {
		t.Errorf("log %v, %v", log, err)
	}
	_, _, exit, err = runOut(t, e, CreateOptions{Config: &container.Config{Image: "base:1", Cmd: []string{"/nope"}}, Host: none()})
	if !isExit(err, 127) {
		t.Errorf("a missing program: %v %v", exit, err)
	}
	_, _, exit, err = runOut(t, e, CreateOptions{Config: &container.Config{Image: "base:1", Cmd: []string{"/etc/passwd"}}, Host: none()})
	if !isExit(err, 126) {
		t.Errorf("a file that is no program: %v %v", exit, err)
	}
	h := none()
	h.AutoRemove = true
	for i := range 5 { // one name, again and again
		out, _, _, err := runOut(t, e, CreateOptions{Name: "again", Config: sh("id -u; echo $HOSTNAME"), Host: h})
		if err != nil || !strings.HasPrefix(out, "0\n") {
			t.Fatalf("run %d: %q %v", i, out, err)
		}
	}
}

func TestTheLifeOfAService(t *testing.T) {
	e := liveEngine(t)
	baseImage(t, e)
	port := network.MustParsePort("8080/tcp")
	o := CreateOptions{Name: "web", Config: sh("mkdir /www; echo hello > /www/index.html; exec /bin/busybox httpd -f -p 8080 -h /www"),
		Host: &container.HostConfig{PortBindings: network.PortMap{port: {{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: "0"}}}}}
	o.Config.ExposedPorts = network.PortSet{port: {}}
	var id string
	if _, err := e.Run(t.Context(), o, nil, func(c Created) error { id = c.ID; return nil }); err != nil {
		t.Fatal(err)
	}
	in, err := e.Inspect(t.Context(), "web", false)
	if err != nil || !in.State.Running || len(in.NetworkSettings.Ports[port]) == 0 {
		t.Fatalf("got %+v %+v, %v", in.State, in.NetworkSettings, err)
	}
	url := "http://127.0.0.1:" + in.NetworkSettings.Ports[port][0].HostPort + "/"
	if body := fetch(t, url); body != "hello\n" {
		t.Errorf("got %q", body)
	}
	list, err := e.Containers(t.Context(), ListOptions{})
	if err != nil || len(list) != 1 || !strings.HasPrefix(list[0].Status, "Up ") || len(list[0].Ports) != 1 {
		t.Errorf("got %+v, %v", list, err)
	}
	var out bytes.Buffer
	exit, err := e.Exec(t.Context(), "web", monitor.ExecRequest{Cmd: []string{"/bin/busybox", "cat", "/www/index.html"}}, monitor.Stdio{Out: &out})
	if err != nil || exit.Code != 0 || out.String() != "hello\n" {
		t.Errorf("exec: %q %v %v", out.String(), exit, err)
	}
	n, err := e.InspectNetwork(t.Context(), "bridge")
	if err != nil || n.Containers[id].Name != "web" {
		t.Errorf("got %+v, %v", n.Containers, err)
	}
	zero := 0
	if err := e.Stop(t.Context(), "web", StopOptions{Timeout: &zero}); err != nil {
		t.Fatal(err)
	}
	if in, err := e.Inspect(t.Context(), "web", false); err != nil || in.State.Running || in.State.ExitCode != 137 {
		t.Errorf("got %+v, %v", in.State, err)
	}
	if _, err := e.Start(t.Context(), "web", nil); err != nil {
		t.Fatal(err)
	}
	if err := e.Remove(t.Context(), "web", RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Prune(t.Context(), PruneOptions{All: true, Containers: true, Images: true, BuildCache: true}); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, e); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func fetch(t *testing.T, url string) string {
	t.Helper()
	c := http.Client{Timeout: 5 * time.Second}
	var last error
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		res, err := c.Get(url)
		if last = err; err != nil {
			if pause(t.Context(), 20*time.Millisecond) != nil {
				break
			}
			continue
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	t.Fatal(last)
	return ""
}

func TestNetworksOfTheEngine(t *testing.T) {
	e := liveEngine(t)
	baseImage(t, e)
	n, err := e.CreateNetwork(t.Context(), net.CreateOptions{Name: "front", Labels: map[string]string{"k": "v"}})
	if err != nil {
		t.Fatal(err)
	}
	ns, err := e.Networks(t.Context(), Filter{"type": {"custom"}, "label": {"k=v"}})
	if err != nil || len(ns) != 1 || ns[0].ID != n.ID {
		t.Errorf("got %+v, %v", ns, err)
	}
	if ns, err := e.Networks(t.Context(), Filter{"dangling": {"true"}}); err != nil || len(ns) != 1 {
		t.Errorf("got %+v, %v", ns, err)
	}
	if _, err := e.Networks(t.Context(), Filter{"nope": {""}}); errText(err) != "invalid filter 'nope'" {
		t.Errorf("got %v", err)
	}
	p, err := e.Prune(t.Context(), PruneOptions{Networks: true})
	if err != nil || len(p.Networks) != 1 || p.Networks[0] != "front" {
		t.Errorf("got %+v, %v", p, err)
	}
}

func TestBuildRunPushPullForReal(t *testing.T) {
	e := liveEngine(t)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"Dockerfile": "FROM base:1\nCOPY page /page\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"/bin/busybox wc -c < /page > /size\"]\nLABEL k=v\nCMD [\"/bin/busybox\", \"cat\", \"/page\", \"/size\"]\n",
		"page":       "a page\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	baseImage(t, e)
	addr, stop := serveRegistry(t, e, filepath.Join(t.TempDir(), "registry"))
	defer stop()
	name := strings.Replace(addr, "127.0.0.1", "localhost", 1) + "/site:1"
	tag := refs(t, name)[0]
	build := func() int {
		cached := 0
		if _, err := e.Build(t.Context(), builder.Options{Context: dir, Tags: []image.Reference{tag}}, func(ev builder.Event) {
			if ev.Cached {
				cached++
			}
		}); err != nil {
			t.Fatal(err)
		}
		return cached
	}
	build()
	run := func() {
		t.Helper()
		out, _, _, err := runOut(t, e, CreateOptions{Config: &container.Config{Image: name}, Host: &container.HostConfig{NetworkMode: "none", AutoRemove: true}})
		if err != nil || out != "a page\n7\n" {
			t.Fatalf("got %q, %v", out, err)
		}
	}
	run()
	if n := build(); n < 2 {
		t.Errorf("%d steps were cached", n)
	}
	h, err := e.History(t.Context(), name)
	if err != nil || h[0].ID == "<missing>" || h[1].ID != "<missing>" {
		t.Errorf("got %+v, %v", h, err)
	}
	pushed, err := e.Push(t.Context(), tag, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.RemoveImage(t.Context(), name, false); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Prune(t.Context(), PruneOptions{All: true, Images: true, BuildCache: true}); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, e); len(left) != 0 && !onlySteps(left) {
		t.Errorf("left: %v", left)
	}
	if p, err := e.Pull(t.Context(), tag, PullOptions{}); err != nil || p.Digest != pushed.Digest || !p.Newer {
		t.Fatalf("got %+v, %v", p, err)
	}
	run()
}

// onlySteps: the build cache keeps its own skeleton.
func onlySteps(left []string) bool {
	for _, l := range left {
		if !strings.HasPrefix(l, "steps/") {
			return false
		}
	}
	return true
}

func TestKilledMonitor(t *testing.T) {
	e := liveEngine(t)
	baseImage(t, e)
	if _, err := e.Run(t.Context(), CreateOptions{Name: "web", Config: sh("sleep 1000"), Host: &container.HostConfig{NetworkMode: "none"}}, nil, nil); err != nil {
		t.Fatal(err)
	}
	in, err := e.Inspect(t.Context(), "web", false)
	if err != nil {
		t.Fatal(err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", in.State.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var parent int
	if _, err := fmt.Sscan(strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))[1], &parent); err != nil || parent < 2 {
		t.Fatal(parent, err)
	}
	p, err := os.FindProcess(parent)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); ; {
		in, err = e.Inspect(t.Context(), "web", false)
		if err != nil {
			t.Fatal(err)
		}
		if !in.State.Running || time.Now().After(end) {
			break
		}
	}
	if in.State.Running || in.State.ExitCode != 137 || in.State.Error == "" {
		t.Errorf("got %+v", in.State)
	}
	if _, err := e.Start(t.Context(), "web", nil); err != nil {
		t.Errorf("it cannot be started again: %v", err)
	}
}
