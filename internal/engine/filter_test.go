package engine

import (
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"
	"github.com/opencontainers/go-digest"

	ctr "keg/internal/container"
	"keg/internal/event"
	"keg/internal/fault"
	"keg/internal/image"
)

func TestUnknownFilterIsRefused(t *testing.T) {
	err := Filter{"name": {"x"}, "nmae": {"x"}}.only("name")
	if !fault.Is(err, fault.Invalid) || err.Error() != "invalid filter 'nmae'" {
		t.Fatalf("got %v", err)
	}
	if err := (Filter{"name": nil}).only("name"); err != nil {
		t.Fatal(err)
	}
}

func TestFilterLabels(t *testing.T) {
	have := map[string]string{"a": "1", "b": ""}
	for _, c := range []struct {
		f    Filter
		want bool
	}{
		{Filter{}, true},
		{Filter{"label": {"a"}}, true},
		{Filter{"label": {"a=1"}}, true},
		{Filter{"label": {"a=2"}}, false},
		{Filter{"label": {"a", "c"}}, false},
		{Filter{"label": {"b="}}, true},
		{Filter{"label!": {"a=1"}}, false},
		{Filter{"label!": {"a=2"}}, true},
		{Filter{"label": {"a"}, "label!": {"c"}}, true},
	} {
		if got := c.f.labels(have); got != c.want {
			t.Errorf("%v: got %v", c.f, got)
		}
	}
}

func TestFilterMatches(t *testing.T) {
	for _, c := range []struct {
		value string
		want  bool
	}{{"web", true}, {"^web$", false}, {"^/web-1$", true}, {"eb-", true}, {"db", false}, {"web-1", true}, {"[", false}} {
		if got := (Filter{"name": {c.value}}).matches("name", "web-1", "/web-1"); got != c.want {
			t.Errorf("%q: got %v", c.value, got)
		}
	}
}

func TestFilterUntil(t *testing.T) {
	now := time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)
	for _, c := range []struct {
		value string
		want  time.Time
	}{
		{"24h", now.Add(-24 * time.Hour)},
		{"10m30s", now.Add(-10*time.Minute - 30*time.Second)},
		{"2026-01-01", time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)},
		{"2026-01-01T10:11:12", time.Date(2026, 1, 1, 10, 11, 12, 0, time.UTC)},
		{"2026-01-01T10:11:12.5Z", time.Date(2026, 1, 1, 10, 11, 12, 5e8, time.UTC)},
		{"2026-01-01T10:11:12+02:00", time.Date(2026, 1, 1, 8, 11, 12, 0, time.UTC)},
		{"1700000000", time.Unix(1700000000, 0)},
		{"1700000000.25", time.Unix(1700000000, 25e7)},
	} {
		got, err := Filter{"until": {c.value}}.until(now)
		if err != nil || !got.Equal(c.want) {
			t.Errorf("%s: got %v, %v; want %v", c.value, got, err, c.want)
		}
	}
	for _, bad := range [][]string{{"yesterday"}, {"1h", "2h"}, {"12.x"}} {
		if _, err := (Filter{"until": bad}).until(now); !fault.Is(err, fault.Invalid) {
			t.Errorf("%v: got %v", bad, err)
		}
	}
}

// TestFilterUntilFirst: of several the earliest counts, as in docker images.
func TestFilterUntilFirst(t *testing.T) {
	now := time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)
	got, err := Filter{"until": {"1h", "24h", "2h"}}.untilFirst(now)
	if err != nil || !got.Equal(now.Add(-24*time.Hour)) {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := (Filter{"until": {"1h", "yesterday"}}).untilFirst(now); !fault.Is(err, fault.Invalid) {
		t.Errorf("got %v", err)
	}
}

func TestFilterAnnotations(t *testing.T) {
	have := map[string]string{"a": "b", "c": ""}
	for want, ok := range map[string]bool{"a": true, "a=b": true, "a=c": false, "d": false, "c=": true} {
		if got := (Filter{"annotation": {want}}).all("annotation", have); got != ok {
			t.Errorf("%s: %v", want, got)
		}
	}
}

// TestSubnetStatuses: Docker counts the address of the network, the broadcast address and the gateway as in use.
func TestSubnetStatuses(t *testing.T) {
	p := netip.MustParsePrefix
	for _, c := range []struct {
		config network.IPAMConfig
		held   []string
		want   network.SubnetStatus
	}{
		{network.IPAMConfig{Subnet: p("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.0.0.1")}, nil, network.SubnetStatus{IPsInUse: 3, DynamicIPsAvailable: 253}},
		{network.IPAMConfig{Subnet: p("10.0.0.0/24"), IPRange: p("10.0.0.128/25"), Gateway: netip.MustParseAddr("10.0.0.1")}, []string{"10.0.0.129", "10.0.0.2", "10.1.0.1"},
			network.SubnetStatus{IPsInUse: 5, DynamicIPsAvailable: 126}},
		{network.IPAMConfig{Subnet: p("fd00::/64"), Gateway: netip.MustParseAddr("fd00::1")}, nil, network.SubnetStatus{IPsInUse: 2, DynamicIPsAvailable: math.MaxUint64}},
	} {
		var held []netip.Addr
		for _, a := range c.held {
			held = append(held, netip.MustParseAddr(a))
		}
		if got := subnetStatuses([]network.IPAMConfig{c.config}, held)[c.config.Subnet]; got != c.want {
			t.Errorf("%v: %+v, want %+v", c.config.Subnet, got, c.want)
		}
	}
}

func TestFilterBoolean(t *testing.T) {
	for v, want := range map[string]bool{"true": true, "1": true, "false": false, "0": false, "TRUE": true} {
		got, set, err := Filter{"dangling": {v}}.boolean("dangling")
		if got != want || !set || err != nil {
			t.Errorf("%s: %v %v %v", v, got, set, err)
		}
	}
	if _, _, err := (Filter{"dangling": {"perhaps"}}).boolean("dangling"); err == nil || err.Error() != "invalid filter 'dangling=perhaps'" {
		t.Errorf("got %v", err)
	}
}

// sample is a running web server and an exited job, as list shows them.
func sample() (web, job one) {
	at := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	base := []digest.Digest{digest.FromString("base")}
	web = one{&ctr.Record{ID: strings.Repeat("ab", 32), Name: "web", Created: at.Add(time.Hour), ImageID: digest.FromString("web"),
		Stack:    append(base, digest.FromString("page")),
		Config:   &container.Config{Labels: map[string]string{"tier": "front"}, ExposedPorts: network.PortSet{network.MustParsePort("80"): {}}},
		Host:     &container.HostConfig{},
		Networks: map[string]*network.EndpointSettings{"front": {NetworkID: "feed"}},
		Mounts:   []container.MountPoint{{Type: "volume", Name: "data", Destination: "/data"}},
	}, &ctr.State{Status: container.StateRunning, Started: at, Health: &container.Health{Status: container.Healthy},
		Ports: network.PortMap{network.MustParsePort("80"): {{HostPort: "8080"}}}}}
	job = one{&ctr.Record{ID: strings.Repeat("cd", 32), Name: "job", Created: at, ImageID: digest.FromString("base"), Stack: base,
		Config: &container.Config{}, Host: &container.HostConfig{}, Networks: map[string]*network.EndpointSettings{"bridge": {}}},
		&ctr.State{Status: container.StateExited, ExitCode: 3, Started: at, Finished: at}}
	return web, job
}

func TestContainerFilters(t *testing.T) {
	web, job := sample()
	for _, c := range []struct {
		name     string
		o        ListOptions
		web, job bool
	}{
		{"running only", ListOptions{}, true, false},
		{"all", ListOptions{All: true}, true, true},
		{"last", ListOptions{Last: 5}, true, true},
		{"id prefix", ListOptions{All: true, Filter: Filter{"id": {"abab"}}}, true, false},
		{"name", ListOptions{All: true, Filter: Filter{"name": {"jo"}}}, false, true},
		{"either name", ListOptions{All: true, Filter: Filter{"name": {"jo", "we"}}}, true, true},
		{"label", ListOptions{All: true, Filter: Filter{"label": {"tier=front"}}}, true, false},
		{"status shows stopped ones", ListOptions{Filter: Filter{"status": {"exited"}}}, false, true},
		{"exited", ListOptions{All: true, Filter: Filter{"exited": {"3"}}}, false, true},
		{"exited 0 is not running", ListOptions{All: true, Filter: Filter{"exited": {"0"}}}, false, false},
		{"before", ListOptions{All: true, Filter: Filter{"before": {"web"}}}, false, true},
		{"since", ListOptions{All: true, Filter: Filter{"since": {"cdcd"}}}, true, false},
		{"volume by name", ListOptions{All: true, Filter: Filter{"volume": {"data"}}}, true, false},
		{"volume by path", ListOptions{All: true, Filter: Filter{"volume": {"/data"}}}, true, false},
		{"network", ListOptions{All: true, Filter: Filter{"network": {"front"}}}, true, false},
		{"network by id", ListOptions{All: true, Filter: Filter{"network": {"fee"}}}, true, false},
		{"publish", ListOptions{All: true, Filter: Filter{"publish": {"80/tcp"}}}, true, false},
		{"publish range", ListOptions{All: true, Filter: Filter{"publish": {"70-90"}}}, true, false},
		{"publish udp", ListOptions{All: true, Filter: Filter{"publish": {"80/udp"}}}, false, false},
		{"expose", ListOptions{All: true, Filter: Filter{"expose": {"80"}}}, true, false},
		{"health", ListOptions{All: true, Filter: Filter{"health": {"healthy"}}}, true, false},
		{"no health", ListOptions{All: true, Filter: Filter{"health": {"none"}}}, false, true},
		{"is-task", ListOptions{All: true, Filter: Filter{"is-task": {"true"}}}, false, false},
		{"is no task", ListOptions{All: true, Filter: Filter{"is-task": {"false"}}}, true, true},
	} {
		pick, err := (&Engine{}).containerPicker(t.Context(), c.o, []one{web, job})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if pick(web) != c.web || pick(job) != c.job {
			t.Errorf("%s: web %v, job %v", c.name, pick(web), pick(job))
		}
	}
	for _, f := range []Filter{{"status": {"sleeping"}}, {"exited": {"x"}}, {"health": {"ill"}}, {"is-task": {"x"}}, {"publish": {"x"}}, {"expose": {"9-1"}}} {
		if _, err := (&Engine{}).containerPicker(t.Context(), ListOptions{Filter: f}, nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("%v: got %v", f, err)
		}
	}
	if _, err := (&Engine{}).containerPicker(t.Context(), ListOptions{Filter: Filter{"since": {"gone"}}}, []one{web}); err == nil || err.Error() != "No such container: gone" {
		t.Errorf("got %v", err)
	}
}

func TestAncestorCoversDescendants(t *testing.T) {
	web, job := sample()
	base := ancestor{job.ImageID, job.Stack}
	if !base.of(job.Record) || !base.of(web.Record) {
		t.Error("both come from the base")
	}
	if own := (ancestor{web.ImageID, web.Stack}); own.of(job.Record) {
		t.Error("the job does not come from the web image")
	}
	if empty := (ancestor{digest.FromString("scratch"), nil}); empty.of(web.Record) {
		t.Error("an image without layers is nobody's ancestor")
	}
}

func TestPortSummaries(t *testing.T) {
	got := portSummaries(
		network.PortSet{network.MustParsePort("80"): {}, network.MustParsePort("53/udp"): {}},
		network.PortMap{network.MustParsePort("80"): {{HostPort: "8081"}, {HostPort: "8080"}}})
	want := []container.PortSummary{{PrivatePort: 53, Type: "udp"}, {PrivatePort: 80, PublicPort: 8080, Type: "tcp"}, {PrivatePort: 80, PublicPort: 8081, Type: "tcp"}}
	if len(got) != len(want) {
		t.Fatalf("got %v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%d: got %v, want %v", i, got[i], want[i])
		}
	}
}

func TestImagePatterns(t *testing.T) {
	ref, err := image.ParseReference("quay.io/team/web:1.0")
	if err != nil {
		t.Fatal(err)
	}
	nginx, _ := image.ParseReference("nginx:1.27-alpine")
	for _, c := range []struct {
		pattern string
		ref     image.Reference
		want    bool
	}{
		{"quay.io/team/web", ref, true}, {"quay.io/team/web:1.0", ref, true}, {"quay.io/*/web", ref, true},
		{"*/web", ref, false}, {"*:1.0", ref, false}, {"nginx", nginx, true}, {"ngin*", nginx, true}, {"nginx:1.2*", nginx, true},
		{"nginx:1.28", nginx, false}, {"docker.io/library/nginx", nginx, true}, {"*", nginx, true},
	} {
		if got := matchesAny([]string{c.pattern}, c.ref); got != c.want {
			t.Errorf("%s on %s: got %v", c.pattern, c.ref.Familiar(), got)
		}
	}
}

func TestEventFilters(t *testing.T) {
	id := strings.Repeat("ab", 32)
	die := event.Message{Type: events.ContainerEventType, Action: events.ActionDie, Scope: "local",
		Actor: events.Actor{ID: id, Attributes: map[string]string{"name": "web", "image": "nginx", "tier": "front"}}}
	healthy := event.Message{Type: events.ContainerEventType, Action: events.ActionHealthStatusHealthy,
		Actor: events.Actor{ID: id, Attributes: map[string]string{"name": "web"}}}
	for _, c := range []struct {
		f    Filter
		m    event.Message
		want bool
	}{
		{Filter{}, die, true},
		{Filter{"event": {"die"}}, die, true},
		{Filter{"event": {"start"}}, die, false},
		{Filter{"event": {"health_status"}}, healthy, true},
		{Filter{"event": {"health_status: healthy"}}, healthy, true},
		{Filter{"container": {"web"}}, die, true},
		{Filter{"container": {"abab"}}, die, true},
		{Filter{"container": {"db"}}, die, false},
		{Filter{"type": {"image"}}, die, false},
		{Filter{"image": {"nginx"}}, die, true},
		{Filter{"label": {"tier=front"}}, die, true},
		{Filter{"label": {"tier=back"}}, die, false},
		{Filter{"volume": {"data"}}, die, false},
	} {
		if got := wantsEvent(c.f, c.m); got != c.want {
			t.Errorf("%v on %s: got %v", c.f, c.m.Action, got)
		}
	}
}
