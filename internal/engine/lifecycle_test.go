package engine

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"

	ctr "keg/internal/container"
	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/monitor"
	vol "keg/internal/volume"
)

// withImage is an engine with fake monitors and the image web:1.
func withImage(t *testing.T) (*Engine, *fakeMonitors) {
	t.Helper()
	e := newEngine(t, newFakeRegistry())
	addImage(t, e, "web:1", func(c *image.Config) { c.Config.Volumes = map[string]struct{}{"/data": {}} },
		tarOf(t, map[string]string{"bin/": "", "bin/sh": "x"}))
	return e, withMonitors(e)
}

func createNamed(t *testing.T, e *Engine, name string) Created {
	t.Helper()
	c, err := e.Create(t.Context(), CreateOptions{Name: name, Config: &container.Config{Image: "web:1"}, Host: &container.HostConfig{NetworkMode: "none"}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func started(t *testing.T, e *Engine, m *fakeMonitors, name string) (string, *fakeLive) {
	t.Helper()
	id := createNamed(t, e, name).ID
	if _, err := e.Start(t.Context(), name, nil); err != nil {
		t.Fatal(err)
	}
	return id, m.lives[id]
}

func status(t *testing.T, e *Engine, ref string) container.ContainerState {
	t.Helper()
	in, err := e.Inspect(t.Context(), ref, false)
	if err != nil {
		t.Fatal(err)
	}
	return in.State.Status
}

func TestCreateWritesWhatDockerWouldShow(t *testing.T) {
	e, _ := withImage(t)
	id := createNamed(t, e, "web").ID
	in, err := e.Inspect(t.Context(), id[:12], true)
	if err != nil {
		t.Fatal(err)
	}
	if in.Name != "/web" || in.Config.Hostname != id[:12] || in.Path != "/bin/sh" || in.State.Status != "created" || len(in.Mounts) != 1 || in.Mounts[0].Destination != "/data" {
		t.Errorf("got %+v", in)
	}
	if in.SizeRootFs == nil || *in.SizeRootFs == 0 {
		t.Errorf("size %v", in.SizeRootFs)
	}
	list, err := e.Containers(t.Context(), ListOptions{All: true})
	if err != nil || len(list) != 1 || list[0].Status != "Created" || list[0].Image != "web:1" || list[0].Command != "/bin/sh" {
		t.Errorf("got %+v, %v", list, err)
	}
	_, err = e.Create(t.Context(), CreateOptions{Name: "web", Config: &container.Config{Image: "web:1"}, Host: &container.HostConfig{NetworkMode: "none"}})
	if want := fmt.Sprintf("Conflict. The container name \"/web\" is already in use by container %q.", id); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v", err)
	}
}

func TestAFailedCreateLeavesNothing(t *testing.T) {
	e, _ := withImage(t)
	createNamed(t, e, "web")
	before := fmt.Sprint(leftovers(t, e))
	for name, o := range map[string]CreateOptions{
		"name in use":    {Name: "web", Config: &container.Config{Image: "web:1"}, Host: &container.HostConfig{NetworkMode: "none"}},
		"no container":   {Config: &container.Config{Image: "web:1"}, Host: &container.HostConfig{NetworkMode: "none", PidMode: "container:nobody"}},
		"bad env":        {Config: &container.Config{Image: "web:1", Env: []string{"=x"}}, Host: &container.HostConfig{NetworkMode: "none"}},
		"bad tmpfs":      {Config: &container.Config{Image: "web:1"}, Host: &container.HostConfig{NetworkMode: "none", Tmpfs: map[string]string{"x": ""}}},
		"bad ipc":        {Config: &container.Config{Image: "web:1"}, Host: &container.HostConfig{NetworkMode: "none", IpcMode: "x"}},
		"bad health":     {Config: &container.Config{Image: "web:1", Healthcheck: &container.HealthConfig{Interval: 1}}, Host: &container.HostConfig{NetworkMode: "none"}},
		"bad mount":      {Config: &container.Config{Image: "web:1"}, Host: &container.HostConfig{NetworkMode: "none", Binds: []string{"vol:/x", "/a:/b:rx"}}},
		"bad restart":    {Config: &container.Config{Image: "web:1"}, Host: &container.HostConfig{AutoRemove: true, RestartPolicy: container.RestartPolicy{Name: "always"}}},
		"mount on /proc": {Config: &container.Config{Image: "web:1"}, Host: &container.HostConfig{NetworkMode: "none", Binds: []string{"vol:/proc"}}},
	} {
		if _, err := e.Create(t.Context(), o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if after := fmt.Sprint(leftovers(t, e)); after != before {
		t.Errorf("before %s\nafter  %s", before, after)
	}
}

func TestCreateWithoutTheImage(t *testing.T) {
	e, _ := withImage(t)
	e.remote.(*fakeRegistry).down = fault.Deniedf("pull access denied")
	o := CreateOptions{Config: &container.Config{Image: "gone"}, Pull: "never"}
	if _, err := e.Create(t.Context(), o); !fault.Is(err, fault.NotFound) || err.Error() != "No such image: gone:latest" {
		t.Errorf("got %v", err)
	}
	o.Pull = ""
	var evs []PullEvent
	o.Progress = func(ev PullEvent) { evs = append(evs, ev) }
	if _, err := e.Create(t.Context(), o); !fault.Is(err, fault.Denied) {
		t.Errorf("got %v", err)
	}
	if len(evs) != 1 || evs[0] != (PullEvent{}) {
		t.Errorf("a pull that fails at once is not announced: %v", evs)
	}
	if exit, err := e.Run(t.Context(), o, nil, nil); exit.Code != 125 || !isExit(err, 125) {
		t.Errorf("got %v, %v", exit, err)
	}
}

func isExit(err error, code int) bool {
	var x *ExitError
	return errors.As(err, &x) && x.Code == code
}

func TestStartStopRemove(t *testing.T) {
	e, m := withImage(t)
	id, l := started(t, e, m, "web")
	if status(t, e, "web") != "running" {
		t.Fatal("it does not run")
	}
	if _, err := e.Start(t.Context(), "web", nil); err != nil {
		t.Errorf("starting what runs is no error for Docker: %v", err)
	}
	want := `cannot remove container "/web": container is running: stop the container before removing or force remove`
	if err := e.Remove(t.Context(), "web", RemoveOptions{}); errText(err) != want || !fault.Is(err, fault.Conflict) {
		t.Errorf("got %v", err)
	}
	if err := e.Pause(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	if err := e.Pause(t.Context(), "web"); errText(err) != "container "+id+" is already paused" {
		t.Errorf("got %v", err)
	}
	if err := e.Remove(t.Context(), "web", RemoveOptions{}); errText(err) != `cannot remove container "/web": container is paused and must be unpaused first` {
		t.Errorf("got %v", err)
	}
	if _, err := e.Exec(t.Context(), "web", monitor.ExecRequest{Cmd: []string{"x"}}, monitor.Stdio{}); errText(err) != "Container web is paused, unpause the container before exec" {
		t.Errorf("got %v", err)
	}
	if _, err := e.Start(t.Context(), "web", nil); !isExit(err, 125) || errText(err) != "cannot start a paused container, try unpause instead" {
		t.Errorf("got %v", err)
	}
	if err := e.Unpause(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	if err := e.Unpause(t.Context(), "web"); errText(err) != "container "+id+" is not paused" {
		t.Errorf("got %v", err)
	}
	l.linger = 50 * time.Millisecond
	if err := e.Stop(t.Context(), "web", StopOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := e.Stop(t.Context(), "web", StopOptions{}); err != nil {
		t.Errorf("stopping twice: %v", err)
	}
	if _, err := e.Exec(t.Context(), "web", monitor.ExecRequest{Cmd: []string{"x"}}, monitor.Stdio{}); errText(err) != "container "+id+" is not running" {
		t.Errorf("got %v", err)
	}
	if err := e.Kill(t.Context(), "web", "TERM"); errText(err) != "cannot kill container: web: container "+id+" is not running" {
		t.Errorf("got %v", err)
	}
	if _, err := e.Attach(t.Context(), "web", monitor.Stdio{}); errText(err) != "cannot attach to a stopped container, start it first" {
		t.Errorf("got %v", err)
	}
	// The monitor still holds the lock: a start and a removal wait for it.
	if _, err := e.Start(t.Context(), "web", nil); err != nil {
		t.Fatalf("start of a container that is just exiting: %v", err)
	}
	m.lives[id].linger = 50 * time.Millisecond
	if err := e.Remove(t.Context(), "web", RemoveOptions{Force: true, Volumes: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Inspect(t.Context(), "web", false); errText(err) != "No such container: web" {
		t.Errorf("got %v", err)
	}
	if vs, _ := e.volumes.List(); len(vs) != 0 {
		t.Errorf("rm -v left %v", vs)
	}
	if keys, _ := e.snapshots.Keys(); len(keys) != 0 {
		t.Errorf("the writable layer is left: %v", keys)
	}
}

func TestADeadMonitorIsCleanedUpOnSight(t *testing.T) {
	e, m := withImage(t)
	id, l := started(t, e, m, "web")
	l.lock.Close() // killed
	list, err := e.Containers(t.Context(), ListOptions{All: true})
	if err != nil || len(list) != 1 || list[0].State != "exited" || !strings.HasPrefix(list[0].Status, "Exited (137)") {
		t.Errorf("got %+v, %v", list, err)
	}
	if len(m.reaps) != 1 || m.reaps[0] != id {
		t.Errorf("reaped %v", m.reaps)
	}
}

func TestAnEarlierBootIsCleanedUpOnSight(t *testing.T) {
	e, m := withImage(t)
	id := createNamed(t, e, "web").ID
	if err := e.containers.PutState(id, &ctr.State{Status: "running", BootID: "another", Started: time.Now()}, true); err != nil {
		t.Fatal(err)
	}
	if s := status(t, e, "web"); s != "exited" || len(m.reaps) != 1 {
		t.Errorf("status %s, reaped %v", s, m.reaps)
	}
}

func TestWaitConditions(t *testing.T) {
	e, m := withImage(t)
	id, l := started(t, e, m, "web")
	// A wait has seen the state of its beginning once it asks for the monitor.
	wait := func(c container.WaitCondition) chan string {
		got, before := make(chan string, 1), m.dials.Load()
		go func() {
			code, err := e.Wait(t.Context(), id, c)
			got <- fmt.Sprint(code, err)
		}()
		for m.dials.Load() == before {
			if err := pause(t.Context(), time.Millisecond); err != nil {
				t.Fatal(err)
			}
		}
		return got
	}
	stopped, removed := wait(container.WaitConditionNotRunning), wait(container.WaitConditionRemoved)
	l.end(3)
	if got := <-stopped; got != "3 <nil>" {
		t.Errorf("not-running: %s", got)
	}
	if code, err := e.Wait(t.Context(), "web", ""); code != 3 || err != nil {
		t.Errorf("of a stopped one: %d, %v", code, err)
	}
	next := wait(container.WaitConditionNextExit)
	if _, err := e.Start(t.Context(), "web", nil); err != nil {
		t.Fatal(err)
	}
	m.lives[id].end(4)
	if got := <-next; got != "4 <nil>" {
		t.Errorf("next-exit: %s", got)
	}
	if err := e.Remove(t.Context(), "web", RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	// Which of the exits a removal wait saw last depends on when it looked.
	if got := <-removed; got != "4 <nil>" && got != "3 <nil>" {
		t.Errorf("removed: %s", got)
	}
	if _, err := e.Wait(t.Context(), "web", ""); !fault.Is(err, fault.NotFound) {
		t.Errorf("got %v", err)
	}
}

func TestRunReportsAndCleansUpAFailedStart(t *testing.T) {
	e, m := withImage(t)
	m.fail = codedError{127}
	o := CreateOptions{Config: &container.Config{Image: "web:1"}, Host: &container.HostConfig{NetworkMode: "none", AutoRemove: true}}
	var id string
	_, err := e.Run(t.Context(), o, nil, func(c Created) error { id = c.ID; return nil })
	if !isExit(err, 127) || id == "" {
		t.Errorf("got %v, id %q", err, id)
	}
	if list, _ := e.Containers(t.Context(), ListOptions{All: true}); len(list) != 0 {
		t.Errorf("--rm left %v", list)
	}
	o.Host.AutoRemove = false
	if _, err := e.Run(t.Context(), o, nil, nil); !isExit(err, 127) {
		t.Errorf("got %v", err)
	}
	if list, _ := e.Containers(t.Context(), ListOptions{All: true}); len(list) != 1 {
		t.Errorf("without --rm the container stays: %v", list)
	}
	if _, err := e.Run(t.Context(), o, nil, func(Created) error { return errors.New("cidfile exists") }); !isExit(err, 125) {
		t.Errorf("got %v", err)
	}
	if list, _ := e.Containers(t.Context(), ListOptions{All: true}); len(list) != 1 {
		t.Errorf("a container whose id could not be told stays: %v", list)
	}
}

type codedError struct{ code int }

func (c codedError) Error() string { return "exec: \"nope\": executable file not found in $PATH" }
func (c codedError) ExitCode() int { return c.code }

func TestStoppingTakesSignalAndTimeoutFromTheConfig(t *testing.T) {
	three := 3
	r := &ctr.Record{Config: &container.Config{StopSignal: "SIGQUIT", StopTimeout: &three}}
	if sig, d, err := stopping(r, StopOptions{}); sig != 3 || d != 3 || err != nil {
		t.Errorf("got %d %d %v", sig, d, err)
	}
	zero := 0
	if sig, d, _ := stopping(r, StopOptions{Signal: "9", Timeout: &zero}); sig != 9 || d != 0 {
		t.Errorf("got %d %d", sig, d)
	}
	if sig, d, _ := stopping(&ctr.Record{Config: &container.Config{}}, StopOptions{}); sig != 15 || d != 10 {
		t.Errorf("got %d %d", sig, d)
	}
	if _, _, err := stopping(r, StopOptions{Signal: "SIGNOPE"}); errText(err) != "invalid signal: SIGNOPE" {
		t.Errorf("got %v", err)
	}
}

func TestVolumesInUseStay(t *testing.T) {
	e, _ := withImage(t)
	v, err := e.CreateVolume(t.Context(), vol.CreateOptions{Name: "data", Labels: map[string]string{"k": "v"}})
	if err != nil || v.Name != "data" {
		t.Fatal(v, err)
	}
	c, err := e.Create(t.Context(), CreateOptions{Name: "web", Config: &container.Config{Image: "web:1"},
		Host: &container.HostConfig{NetworkMode: "none", Binds: []string{"data:/d"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.RemoveVolume(t.Context(), "data", true); errText(err) != "remove data: volume is in use - ["+c.ID+"]" || !fault.Is(err, fault.Conflict) {
		t.Errorf("got %v", err)
	}
	vs, err := e.Volumes(t.Context(), Filter{"dangling": {"false"}, "name": {"dat"}})
	if err != nil || len(vs) != 1 {
		t.Errorf("got %v, %v", vs, err)
	}
	if vs, _ := e.Volumes(t.Context(), Filter{"label": {"k=v"}, "dangling": {"true"}}); len(vs) != 0 {
		t.Errorf("got %v", vs)
	}
	if _, err := e.Volumes(t.Context(), Filter{"nope": {"x"}}); errText(err) != "invalid filter 'nope'" {
		t.Errorf("got %v", err)
	}
	if err := e.Remove(t.Context(), "web", RemoveOptions{Volumes: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.InspectVolume(t.Context(), "data"); err != nil {
		t.Errorf("rm -v took a named volume: %v", err)
	}
	if err := e.RemoveVolume(t.Context(), "data", false); err != nil {
		t.Error(err)
	}
	if err := e.RemoveVolume(t.Context(), "data", true); err != nil {
		t.Errorf("forced removal of nothing: %v", err)
	}
}

func TestRename(t *testing.T) {
	e, _ := withImage(t)
	createNamed(t, e, "web")
	createNamed(t, e, "db")
	if err := e.Rename(t.Context(), "web", "www"); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Inspect(t.Context(), "www", false); err != nil {
		t.Error(err)
	}
	if err := e.Rename(t.Context(), "www", "db"); !fault.Is(err, fault.Conflict) {
		t.Errorf("got %v", err)
	}
	if err := e.Rename(t.Context(), "www", "www"); errText(err) != "Renaming a container with the same name as its current name" {
		t.Errorf("got %v", err)
	}
	if err := e.Rename(t.Context(), "www", ""); errText(err) != "Neither old nor new names may be empty" {
		t.Errorf("got %v", err)
	}
}
