package engine

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/opencontainers/cgroups"

	ctr "keg/internal/container"
	"keg/internal/fault"
)

func TestParsePS(t *testing.T) {
	got, err := parsePS("  PID USER COMMAND\n    7 root sh -c a b\n    - root thread\n    8 root other\n    - root thread of another\n", []string{"7"})
	if err != nil || len(got.Processes) != 2 || got.Processes[0][2] != "sh -c a b" || got.Processes[1][2] != "thread" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := parsePS("USER\nroot\n", nil); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	if err := checkPSOptions([]string{"-o", "pid,user=PID"}); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}

func TestParseStat(t *testing.T) {
	boot := time.Unix(1000, 0)
	line := "42 (a) b (c) S 7 1 1 34817 1 0 0 0 0 0 150 50 0 0 20 0 1 0 2000 0 0\n"
	p, err := parseStat([]byte(line), boot)
	if err != nil || p.pid != 42 || p.ppid != 7 || p.cmd != "[a) b (c]" || p.used != 2*time.Second || !p.started.Equal(boot.Add(20*time.Second)) {
		t.Errorf("%+v, %v", p, err)
	}
	if got := ttyName(p.tty) + clock(p.used+time.Hour); got != "pts/101:00:02" {
		t.Error(got)
	}
	if got := p.load(p.started.Add(8 * time.Second)); got != 25 {
		t.Error(got)
	}
	for _, bad := range []string{"", "1 (x", "1 (x) S 1"} {
		if _, err := parseStat([]byte(bad), boot); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestParseNetDev(t *testing.T) {
	text := "Inter-|   Receive\n face |bytes\n    lo: 9 9 9 9 0 0 0 0 9 9 9 9 0 0 0 0\n  eth0:100 2 0 1 0 0 0 0 300 4 5 6 0 0 0 0\n"
	all := parseNetDev([]byte(text))
	if e := all["eth0"]; len(all) != 1 || e.RxBytes != 100 || e.RxDropped != 1 || e.TxBytes != 300 || e.TxErrors != 5 {
		t.Errorf("%+v", all)
	}
}

func TestFillStats(t *testing.T) {
	c := cgroups.NewStats()
	c.MemoryStats.Usage.Limit = 1 << 62
	c.BlkioStats.IoServicedRecursive = []cgroups.BlkioStatEntry{{Op: "Read", Value: 3}}
	var v1, v2 container.StatsResponse
	fillStats(&v1, c, false)
	fillStats(&v2, c, true)
	if v1.MemoryStats.Limit >= 1<<62 || v1.MemoryStats.Limit == 0 {
		t.Errorf("no limit is shown as %d", v1.MemoryStats.Limit)
	}
	if len(v1.BlkioStats.IoServicedRecursive) != 1 || v2.BlkioStats.IoServicedRecursive != nil {
		t.Error("operations are counted on v1 only")
	}
	if n, err := systemTime(); err != nil || n == 0 {
		t.Error(n, err)
	}
}

func TestUpdateLimits(t *testing.T) {
	n := int64(7)
	c := container.Resources{NanoCPUs: 5, Memory: 10, MemorySwap: 20, CPUShares: 3}
	if err := updateLimits(&c, &container.Resources{Memory: 15, PidsLimit: &n}); err != nil || c.Memory != 15 || c.CPUShares != 3 || *c.PidsLimit != 7 {
		t.Errorf("%+v, %v", c, err)
	}
	for _, u := range []container.Resources{{CPUPeriod: 1}, {CPUQuota: 1}, {Memory: 30}} {
		before := c
		if err := updateLimits(&c, &u); !fault.Is(err, fault.Conflict) || c.Memory != before.Memory {
			t.Errorf("%+v: %v", u, err)
		}
	}
	h := container.HostConfig{AutoRemove: true}
	if err := updatePolicy(&h, container.RestartPolicy{Name: "always"}); !fault.Is(err, fault.Conflict) {
		t.Error(err)
	}
	if err := updatePolicy(&h, container.RestartPolicy{Name: "sometimes"}); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}

func TestStartsAtBoot(t *testing.T) {
	ran := time.Unix(1, 0)
	for _, c := range []struct {
		policy container.RestartPolicyMode
		retry  int
		st     ctr.State
		want   bool
	}{
		{"always", 0, ctr.State{Status: "exited", Started: ran, ManualStop: true}, true},
		{"always", 0, ctr.State{Status: "created"}, false},
		{"always", 0, ctr.State{Status: "running", Started: ran}, false},
		{"unless-stopped", 0, ctr.State{Status: "exited", Started: ran}, true},
		{"unless-stopped", 0, ctr.State{Status: "exited", Started: ran, ManualStop: true}, false},
		{"on-failure", 0, ctr.State{Status: "exited", Started: ran, ExitCode: 1}, false},
		{"on-failure", 0, ctr.State{Status: "exited", Started: ran, Error: "monitor lost: the host was restarted"}, true},
		{"on-failure", 2, ctr.State{Status: "exited", Started: ran, Error: "monitor lost", RestartCount: 2}, false},
		{"no", 0, ctr.State{Status: "exited", Started: ran, Error: "monitor lost"}, false},
	} {
		h := &container.HostConfig{RestartPolicy: container.RestartPolicy{Name: c.policy, MaximumRetryCount: c.retry}}
		if got := startsAtBoot(one{&ctr.Record{Host: h}, &c.st}); got != c.want {
			t.Errorf("%s %+v: %v", c.policy, c.st, got)
		}
	}
}

func TestBootOrder(t *testing.T) {
	make := func(id, net string, links ...string) one {
		return one{&ctr.Record{ID: id, Name: "n" + id, Host: &container.HostConfig{NetworkMode: container.NetworkMode(net), Links: links}}, &ctr.State{}}
	}
	got := inOrder([]one{make("a", "container:c"), make("b", "bridge", "/na:x"), make("c", "bridge"), make("d", "container:e"), make("e", "container:d")})
	var ids []string
	for _, c := range got {
		ids = append(ids, c.ID)
	}
	if s := strings.Join(ids, ""); s != "cabed" {
		t.Error(s)
	}
}

// A network is waited for while those who have just ended let it go, and only then.
func TestNetworksOfTheLeaving(t *testing.T) {
	now := time.Now()
	on := func(id string, status container.ContainerState, ago time.Duration) one {
		return one{&ctr.Record{ID: id}, &ctr.State{Status: status, Finished: now.Add(-ago)}}
	}
	list := []one{on("just", container.StateExited, 10*time.Millisecond), on("long", container.StateExited, time.Hour), on("runs", container.StateRunning, time.Hour)}
	for ids, want := range map[string]bool{"": false, "just": true, "long": false, "runs": false, "just runs": false, "just long": true, "gone": false} {
		endpoints := map[string]network.EndpointResource{}
		for id := range strings.FieldsSeq(ids) {
			endpoints[id] = network.EndpointResource{}
		}
		if got := leaving(list, endpoints, now); got != want {
			t.Errorf("endpoints of %q: %v", ids, got)
		}
	}
}

func TestNetModeConflicts(t *testing.T) {
	h := &container.HostConfig{NetworkMode: "container:x", ExtraHosts: []string{"a:1.2.3.4"}}
	if err := checkNetMode(&container.Config{}, h); err == nil || err.Error() != "conflicting options: custom host-to-IP mapping and the network mode" {
		t.Error(err)
	}
	h = &container.HostConfig{NetworkMode: "host", Links: []string{"a"}}
	if err := checkNetMode(&container.Config{}, h); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	if err := checkNetMode(&container.Config{Hostname: "h"}, &container.HostConfig{NetworkMode: "bridge"}); err != nil {
		t.Error(err)
	}
}

func TestPruneFiltersOfOneKind(t *testing.T) {
	o := PruneOptions{Images: true, Filter: Filter{"dangling": {"false"}}}
	if err := o.checkFilter(); err != nil || !o.All {
		t.Errorf("%+v, %v", o, err)
	}
	o = PruneOptions{Volumes: true, Filter: Filter{"all": {"1"}}}
	if err := o.checkFilter(); err != nil || !o.All {
		t.Errorf("%+v, %v", o, err)
	}
	o = PruneOptions{Images: true, Filter: Filter{"dangling": {"true"}}}
	if err := o.checkFilter(); err != nil || o.All {
		t.Errorf("%+v, %v", o, err)
	}
	o = PruneOptions{Containers: true, Images: true, Filter: Filter{"dangling": {"false"}}}
	if err := o.checkFilter(); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}

func TestHexPrefix(t *testing.T) {
	for ref, want := range map[string]string{"sha256:abcd": "abcd", "0123": "0123"} {
		if got, ok := hexPrefix(ref); !ok || got != want {
			t.Errorf("%s: %q %v", ref, got, ok)
		}
	}
	if slices.ContainsFunc([]string{"abc", "web", "sha256:", "ABCD"}, func(s string) bool { _, ok := hexPrefix(s); return ok }) {
		t.Error("a name passed for a digest")
	}
}
