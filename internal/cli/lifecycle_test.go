package cli

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"

	ctr "keg/internal/container"
	"keg/internal/fault"
	"keg/internal/monitor"
)

func TestEachContainer(t *testing.T) {
	missing := fault.NotFoundf("No such container: nope")
	for _, c := range []struct {
		args string
		call string
	}{
		{"stop web", "stop web"}, {"restart web", "restart web"}, {"kill web", "kill  web"}, {"kill -s HUP web", "kill HUP web"},
		{"pause web", "pause web"}, {"unpause web", "unpause web"}, {"rm web", "rm web"}, {"start web", "start web"}, {"container rm web", "rm web"}, {"container remove web", "rm web"},
	} {
		f := &fake{}
		keg(t, f, strings.Fields(c.args)...).want(t, 0, "web\n", "")
		if len(f.calls) != 1 || f.calls[0] != c.call {
			t.Errorf("%s: calls %q", c.args, f.calls)
		}
	}
	f := &fake{errFor: map[string]error{"nope": missing, "bad": errors.New("worse")}}
	keg(t, f, "stop", "a", "nope", "bad", "b").want(t, 1, "a\nb\n", "Error response from daemon: No such container: nope\nError response from daemon: worse\n")
	keg(t, f, "start", "a", "nope").want(t, 1, "a\n", "Error response from daemon: No such container: nope\nfailed to start containers: nope\n")
	keg(t, f, "rm", "-f", "nope", "a").want(t, 0, "a\n", "")
	keg(t, f, "rm", "nope").want(t, 1, "", "Error response from daemon: No such container: nope\n")
	keg(t, f, "rm", "/").want(t, 1, "", "container name cannot be empty\n")
	keg(t, &fake{err: fault.Errorf(fault.NotModified, "is stopped already")}, "stop", "web").want(t, 0, "web\n", "")
	keg(t, &fake{}, "stop").want(t, 1, "", "keg: 'keg stop' requires at least 1 argument\n\nUsage:  keg stop [OPTIONS] CONTAINER [CONTAINER...]\n\nSee 'keg stop --help' for more information\n")
}

func TestStopOptions(t *testing.T) {
	f := &fake{}
	keg(t, f, "stop", "web")
	if f.stop.Timeout != nil || f.stop.Signal != "" {
		t.Errorf("defaults %+v", f.stop)
	}
	keg(t, f, "stop", "-t", "3", "-s", "INT", "web")
	if *f.stop.Timeout != 3 || f.stop.Signal != "INT" {
		t.Errorf("options %+v", f.stop)
	}
	if keg(t, f, "restart", "--time", "0", "web"); *f.stop.Timeout != 0 {
		t.Errorf("--time: %+v", f.stop)
	}
	keg(t, f, "stop", "--time", "1", "--timeout", "2", "web").want(t, 1, "", "conflicting options: cannot specify both --timeout and --time\n")
	if keg(t, f, "rm", "-fv", "web"); !f.remove.Force || !f.remove.Volumes {
		t.Errorf("rm %+v", f.remove)
	}
}

func TestWaitAndRename(t *testing.T) {
	f := &fake{code: 137, errFor: map[string]error{"nope": errors.New("No such container: nope")}}
	keg(t, f, "wait", "web", "nope").want(t, 1, "137\n", "Error response from daemon: No such container: nope\n")
	keg(t, f, "rename", "a", "b").want(t, 0, "", "")
	if got := f.calls[len(f.calls)-1]; got != "rename a b" {
		t.Errorf("call %q", got)
	}
}

func attached(tty bool, st container.State) map[string]container.InspectResponse {
	return map[string]container.InspectResponse{"web": {ID: "id1", State: &st, Config: &container.Config{Tty: tty, OpenStdin: true}, HostConfig: &container.HostConfig{}}}
}

func TestStartAttachedAndAttach(t *testing.T) {
	f := &fake{out: "x\n", end: monitor.Exit{Code: 5}, inspect: attached(false, container.State{Running: true})}
	keg(t, f, "start", "-a", "web").want(t, 5, "x\n", "")
	if f.stdio.In != nil {
		t.Error("start -a attaches stdin")
	}
	if keg(t, f, "start", "-ai", "web"); f.stdio.In == nil {
		t.Error("start -i does not attach stdin")
	}
	keg(t, f, "start", "-a", "web", "db").want(t, 1, "", "you cannot start and attach multiple containers at once\n")
	keg(t, f, "attach", "web").want(t, 5, "x\n", "")
	if keg(t, f, "attach", "--no-stdin", "web"); f.stdio.In != nil {
		t.Error("attach --no-stdin attaches stdin")
	}
	f.end = monitor.Exit{Detached: true}
	keg(t, f, "attach", "web").want(t, 1, "x\n", "read escape sequence\n")
	keg(t, f, "start", "-a", "web").want(t, 0, "x\n", "")
	for st, want := range map[container.State]string{
		{}:                                "cannot attach to a stopped container, start it first\n",
		{Running: true, Paused: true}:     "cannot attach to a paused container, unpause it first\n",
		{Running: true, Restarting: true}: "cannot attach to a restarting container, wait until it is running\n",
	} {
		keg(t, &fake{inspect: attached(false, st)}, "attach", "web").want(t, 1, "", want)
	}
	keg(t, f, "attach", "nope").want(t, 1, "", "Error response from daemon: No such container: nope\n")
}

func TestLogs(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 60, time.UTC)
	f := &fake{logs: []ctr.LogEntry{
		{Stream: "stdout", Time: at, Line: []byte("one")},
		{Stream: "stderr", Time: at, Line: []byte("two")},
		{Stream: "stdout", Time: at, Line: []byte("three "), Partial: true},
		{Stream: "stdout", Time: at, Line: []byte("four")},
		{Stream: "stdout", Time: at, Line: []byte("five"), Partial: true},
	}}
	keg(t, f, "logs", "web").want(t, 0, "one\nthree four\nfive", "two\n")
	stamp := "2026-01-02T03:04:05.000000060Z "
	keg(t, f, "logs", "-t", "web").want(t, 0, stamp+"one\n"+stamp+"three four\n"+stamp+"five", stamp+"two\n")
	keg(t, f, "logs", "-f", "-n", "7", "--since", "10m", "--until", "2026-01-02T03:04:05Z", "web")
	o := f.logOpt
	if !o.Follow || o.Tail != 7 || !o.Since.Equal(fixedNow.Add(-10*time.Minute)) || !o.Until.Equal(at.Truncate(time.Second)) {
		t.Errorf("options %+v", o)
	}
	if keg(t, f, "logs", "web"); f.logOpt.Tail != -1 || !f.logOpt.Since.IsZero() {
		t.Errorf("defaults %+v", f.logOpt)
	}
	keg(t, f, "logs", "--since", "yesterday", "web").want(t, 1, "", `invalid value for "since": failed to parse value as time or duration: "yesterday"`+"\n")
}

func TestParseTime(t *testing.T) {
	now := fixedNow
	for s, want := range map[string]time.Time{
		"1h30m": now.Add(-90 * time.Minute), "1700000000": time.Unix(1700000000, 0), "1700000000.5": time.Unix(1700000000, 5e8),
		"2026-01-02T03:04:05.5+01:00": time.Date(2026, 1, 2, 2, 4, 5, 5e8, time.UTC), "2026-01-02T03:04Z": time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC),
		"2026-01-02": time.Date(2026, 1, 2, 0, 0, 0, 0, time.Local), "2026-01-02T03:04:05": time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local), "": {},
	} {
		if got, err := parseTime(s, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v; want %v", s, got, err, want)
		}
	}
	for _, bad := range []string{"x", "1700000000.", "1.1234567890", "2026-13-01"} {
		if _, err := parseTime(bad, now); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}
