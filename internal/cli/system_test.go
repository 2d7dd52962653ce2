package cli

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	dimage "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/volume"

	"keg/internal/engine"
	"keg/internal/event"
	"keg/internal/fault"
)

func TestInspect(t *testing.T) {
	f := &fake{
		inspect:   map[string]container.InspectResponse{"web": {ID: "c1", Name: "/web", State: &container.State{Status: "running"}}},
		imageInfo: map[string]dimage.InspectResponse{"nginx": {ID: "i1"}},
		volumes:   []volume.Volume{{Name: "data", Driver: "local"}},
	}
	n := network.Inspect{}
	n.Name, n.ID = "mynet", "n1"
	f.networks = []network.Inspect{n}
	r := keg(t, f, "inspect", "web", "nope")
	if r.code != 1 || !strings.HasPrefix(r.out, "[\n    {\n        \"Id\": \"c1\",") || !strings.HasSuffix(r.out, "\n    }\n]\n") || r.err != "Error: No such object: nope\n" {
		t.Errorf("%+v", r)
	}
	keg(t, f, "inspect", "nope").want(t, 1, "[]\n", "Error: No such object: nope\n")
	keg(t, f, "inspect", "-f", "{{.Id}}{{.Name}}", "web").want(t, 0, "c1/web\n", "") // as JSON names it
	keg(t, f, "inspect", "-f", "{{.ID}} {{.State.Status}}", "web").want(t, 0, "c1 running\n", "")
	keg(t, f, "inspect", "-f", "{{.Name}}", "nginx", "data", "mynet").want(t, 1, "data\nmynet\n", "template parsing error: template: :1:2: executing \"\" at <.Name>: can't evaluate field Name in type image.InspectResponse\n")
	keg(t, f, "inspect", "--type", "volume", "web").want(t, 1, "[]\n", "Error response from daemon: get web: no such volume\n")
	keg(t, f, "inspect", "--type", "x", "web").want(t, 1, "", `unknown type: "x": must be one of "container", "image", "network", "volume"`+"\n")
	keg(t, f, "inspect", "--type", "", "web").want(t, 1, "", `type is empty: must be one of "container", "image", "network", "volume"`+"\n")
	keg(t, f, "inspect", "-f", "{{", "web").want(t, 64, "", "template parsing error: template: :1: unclosed action\n")
	keg(t, f, "volume", "inspect", "-f", "{{json .Name}}", "data").want(t, 0, "\"data\"\n", "")
	keg(t, f, "container", "inspect", "nope").want(t, 1, "[]\n", "Error response from daemon: No such container: nope\n")
	keg(t, f, "image", "inspect", "nope").want(t, 1, "[]\n", "Error response from daemon: No such image: nope\n")
	if r := keg(t, f, "network", "inspect", "-f", "json", "mynet"); !strings.HasPrefix(r.out, `[{"Name":"mynet","Id":"n1"`) || strings.Count(r.out, "\n") != 1 {
		t.Errorf("%+v", r)
	}
	if r := keg(t, f, "inspect", "-s", "nginx"); r.err != "WARNING: --size ignored for image\n" {
		t.Errorf("%+v", r)
	}
}

func TestVolumes(t *testing.T) {
	f := &fake{errFor: map[string]error{"nope": fault.NotFoundf("get nope: no such volume")}}
	keg(t, f, "volume", "create", "-o", "type=tmpfs", "--label", "a=b", "data").want(t, 0, "data\n", "")
	if o := f.newVolume; o.Name != "data" || o.Options["type"] != "tmpfs" || o.Labels["a"] != "b" || o.Driver != "local" {
		t.Errorf("%+v", o)
	}
	keg(t, f, "volume", "create", "--name", "a", "b").want(t, 1, "", "conflicting options: cannot specify a volume-name through both --name and as a positional arg\n")
	keg(t, f, "volume", "rm", "a", "nope").want(t, 1, "a\n", "Error response from daemon: get nope: no such volume\n")
	keg(t, f, "volume", "rm", "-f", "nope").want(t, 0, "nope\n", "")
}

func TestNetworkCreate(t *testing.T) {
	f := &fake{}
	keg(t, f, "network", "create", "--subnet", "10.1.0.0/16", "--gateway", "10.1.0.1", "--ip-range", "10.1.2.0/24", "--aux-address", "r=10.1.0.9", "--subnet", "fd00::/64", "--ipv6",
		"--internal", "--label", "a=b", "-o", "mtu=1400", "mynet").want(t, 0, "feedface\n", "")
	o := f.newNetwork
	c := o.IPAM.Config
	if o.Name != "mynet" || o.Driver != "bridge" || !o.Internal || !o.IPv6 || o.Labels["a"] != "b" || o.Options["mtu"] != "1400" || len(c) != 2 ||
		c[0].Gateway.String() != "10.1.0.1" || c[0].IPRange.String() != "10.1.2.0/24" || c[0].AuxAddress["r"] != netip.MustParseAddr("10.1.0.9") || c[1].Subnet.String() != "fd00::/64" {
		t.Errorf("%+v", o)
	}
	for args, want := range map[string]string{
		"--gateway 10.0.0.1":                            "every ip-range or gateway must have a corresponding subnet",
		"--subnet 10.0.0.0/8 --subnet 10.1.0.0/16":      "multiple overlapping subnet configuration is not supported",
		"--subnet 10.0.0.0/24 --gateway 10.1.0.1":       "no matching subnet for gateway 10.1.0.1",
		"--subnet 10.0.0.0/24 --ip-range 10.1.0.0/28":   "no matching subnet for range 10.1.0.0/28",
		"--subnet 10.0.0.0/24 --aux-address x=10.1.0.1": "no matching subnet for aux-address 10.1.0.1",
		"--subnet x": "invalid subnet: invalid CIDR address: x",
		"--subnet 10.0.0.0/24,10.1.0.0/24 --gateway 10.0.0.1,10.0.0.2": "cannot configure multiple gateways (10.0.0.2, 10.0.0.1) for the same subnet (10.0.0.0/24)",
		"--ingress": notSwarm,
	} {
		keg(t, f, append(append([]string{"network", "create"}, strings.Fields(args)...), "x")...).want(t, 1, "", want+"\n")
	}
	f.errFor = map[string]error{"nope": fault.NotFoundf("network nope not found")}
	keg(t, f, "network", "rm", "a", "nope").want(t, 1, "a\n", "Error response from daemon: network nope not found\n")
	keg(t, f, "network", "rm", "-f", "nope").want(t, 0, "", "")
}

func TestPrune(t *testing.T) {
	f := &fake{pruned: engine.Pruned{
		Containers: []string{"c1", "c2"}, Networks: []string{"n1"}, Volumes: []string{"v1"}, BuildCache: []string{"b1"},
		Images: []dimage.DeleteResponse{{Untagged: "x:1"}, {Deleted: "sha256:aa"}}, Reclaimed: 1234567,
	}}
	containers, networks, images := "Deleted Containers:\nc1\nc2\n\n", "Deleted Networks:\nn1\n\n", "Deleted Images:\nuntagged: x:1\ndeleted: sha256:aa\n\n"
	volumes, cache, total := "Deleted Volumes:\nv1\n\n", "Deleted build cache objects:\nb1\n\n", "Total reclaimed space: 1.235MB\n"
	keg(t, f, "system", "prune", "-f").want(t, 0, containers+networks+volumes+images+cache+total, "")
	if o := f.pruneOpt; o.All || o.Volumes || !o.Containers || !o.Networks || !o.Images || !o.BuildCache {
		t.Errorf("system prune: %+v", o)
	}
	keg(t, f, "container", "prune", "-f", "--filter", "until=1h").want(t, 0, containers+total, "")
	if o := f.pruneOpt; !o.Containers || o.Networks || o.Images || o.BuildCache || o.Filter["until"][0] != "1h" {
		t.Errorf("container prune: %+v", o)
	}
	keg(t, f, "image", "prune", "-af").want(t, 0, images+total, "")
	if o := f.pruneOpt; !o.Images || !o.All || o.Containers {
		t.Errorf("image prune: %+v", o)
	}
	keg(t, f, "volume", "prune", "-f").want(t, 0, volumes+total, "")
	if o := f.pruneOpt; !o.Volumes || o.All || o.Containers || o.Images || o.Networks || o.BuildCache {
		t.Errorf("volume prune: %+v", o)
	}
	keg(t, f, "network", "prune", "-f").want(t, 0, networks, "")
	f.pruned.CacheEntries = []engine.CacheEntry{{ID: "0123456789abcdef", Kind: "step", Description: "RUN make\x1b[2J", Size: 1000, Reason: "last used 3 days ago"}}
	keg(t, f, "builder", "prune", "-f", "--max-used-space", "1m").want(t, 0, `ID             KIND      SIZE      DESCRIPTION       REASON
0123456789ab   step      1kB       RUN make\x1b[2J   last used 3 days ago
Total: 1.235MB
`, "")
	if o := f.pruneOpt; !o.BuildCache || o.All || o.MaxUsed != 1<<20 {
		t.Errorf("builder prune: %+v", o)
	}
	f.cache = f.pruned.CacheEntries
	keg(t, f, "builder", "du", "--format", "{{.ID}} {{.Size}} {{.Shared}}").want(t, 0, "0123456789ab 1kB false\n", "")
	if r := kegWith(t, f, "", map[string]string{"KEG_BUILD_QUOTA": "lots"}, "builder", "du"); r.code == 0 || !strings.Contains(r.err, "KEG_BUILD_QUOTA") {
		t.Errorf("a quota that is no number: %+v", r)
	}
	f.pruneOpt = engine.PruneOptions{}
	r := kegWith(t, f, "n\n", nil, "system", "prune", "-a", "--volumes", "--filter", "label=x")
	r.want(t, 1, `WARNING! This will remove:
  - all stopped containers
  - all networks not used by at least one container
  - all anonymous volumes not used by at least one container
  - all images without at least one container associated to them
  - all build cache

  Items to be pruned will be filtered with:
  - label=x

Are you sure you want to continue? [y/N] `, "system prune has been cancelled\n")
	if f.pruneOpt.Containers {
		t.Error("pruned although the answer was no")
	}
	if r := kegWith(t, f, "Y\n", nil, "system", "prune"); r.code != 0 || !f.pruneOpt.Containers {
		t.Errorf("%+v", r)
	}
}

func TestDf(t *testing.T) {
	f := &fake{usage: []engine.Usage{
		{Type: "Images", Total: 3, Active: 1, Size: 187654321, Reclaimable: 100000000}, {Type: "Containers"},
		{Type: "Local Volumes", Total: 1, Active: 1, Size: 10}, {Type: "Build Cache", Total: 5, Size: 1000, Reclaimable: 1000},
	}}
	keg(t, f, "system", "df").want(t, 0, `TYPE            TOTAL     ACTIVE    SIZE      RECLAIMABLE
Images          3         1         187.7MB   100MB (53%)
Containers      0         0         0B        0B
Local Volumes   1         1         10B       0B (0%)
Build Cache     5         0         1kB       1kB
`, "")
	keg(t, f, "system", "df", "--format", "{{.Type}}={{.Size}}").want(t, 0, "Images=187.7MB\nContainers=0B\nLocal Volumes=10B\nBuild Cache=1kB\n", "")
	if r := keg(t, f, "system", "df", "--format", "json"); !strings.HasPrefix(r.out, `{"Active":"1","Reclaimable":"100MB (53%)","Size":"187.7MB","TotalCount":"3","Type":"Images"}`) {
		t.Errorf("%+v", r)
	}
	f.containers = []container.Summary{{ID: "c1", Names: []string{"/web"}, SizeRw: 5, SizeRootFs: 10, Created: fixedNow.Add(-time.Hour).Unix()}}
	f.images = []dimage.Summary{{ID: "sha256:i1", RepoTags: []string{"x:1"}, Size: 7, SharedSize: 2, Containers: 1, Created: fixedNow.Add(-2 * time.Hour).Unix()}}
	f.volumes = []volume.Volume{{Name: "v", UsageData: &volume.UsageData{RefCount: 1, Size: 9}}}
	f.cacheUse = []engine.CacheUse{{ID: "0123456789abcdef", Type: "regular", Size: 1000, Created: fixedNow.Add(-time.Hour), Used: fixedNow.Add(-time.Minute), Uses: 2, Shared: true}}
	keg(t, f, "system", "df", "-v").want(t, 0, `Images space usage:

REPOSITORY   TAG       IMAGE ID   CREATED       SIZE      SHARED SIZE   UNIQUE SIZE   CONTAINERS
x            1         i1         2 hours ago   7B        2B            5B            1

Containers space usage:

CONTAINER ID   IMAGE        COMMAND   LOCAL VOLUMES   SIZE      CREATED             STATUS    NAMES
c1             <no image>   ""        0               5B        About an hour ago             web

Local Volumes space usage:

VOLUME NAME   LINKS     SIZE
v             1         9B

Build cache usage: 1kB

CACHE ID       CACHE TYPE   SIZE      CREATED             LAST USED            USAGE     SHARED
0123456789ab   regular      1kB       About an hour ago   About a minute ago   2         true
`, "")
	keg(t, f, "system", "df", "-v", "--format", "{{range .BuildCache}}{{.ID}} {{.InUse}}{{end}}").want(t, 0, "0123456789abcdef false\n", "")
}

func TestInfoAndVersion(t *testing.T) {
	f := &fake{info: engine.Info{Name: "host", Running: 2, Containers: 3, Storage: "overlay", BackingFS: "ext4", CgroupVersion: "1", MemTotal: 1 << 30, Root: "/r",
		Features: []engine.Feature{{Name: "overlay", OK: true, Text: "layers are stacked by the kernel."}, {Name: "cgroup2", Text: "memory.high is missing."}}, Warnings: []string{"no swap limit"}}}
	r := keg(t, f, "info")
	for _, line := range []string{" Containers: 3\n  Running: 2\n", " Storage Driver: overlay\n  Backing Filesystem: ext4\n", " Total Memory: 1GiB\n", " Docker Root Dir: /r\n",
		" Offered by this host:\n  overlay: layers are stacked by the kernel.\n Lacking on this host:\n  cgroup2: memory.high is missing.\n"} {
		if !strings.Contains(r.out, line) {
			t.Errorf("info lacks %q:\n%s", line, r.out)
		}
	}
	if r.err != "WARNING: no swap limit\n" {
		t.Errorf("stderr %q", r.err)
	}
	keg(t, f, "info", "--format", "{{.ServerVersion}} {{.Driver}} {{.ContainersRunning}} {{.Swarm.LocalNodeState}}").want(t, 0, version+" overlay 2 inactive\n", "")
	keg(t, f, "info", "--format", "{{").want(t, 64, "", "template parsing error: template: :1: unclosed action\n")
	keg(t, nil, "version", "--format", "{{.Server.Version}} {{.Client.Version}} {{(index .Server.Components 0).Name}}").want(t, 0, version+" "+version+" Engine\n", "")
	keg(t, nil, "version", "-f", "{{").want(t, 64, "", "template parsing error: template: version:1: unclosed action\n")
	r = keg(t, nil, "version")
	for _, word := range []string{"Client:\n Version:           " + version, "Server: keg\n Engine:\n", "  Kernel:           ", "  Cgroup version:   ", "  Storage:          overlay on "} {
		if !strings.Contains(r.out, word) {
			t.Errorf("version lacks %q:\n%s", word, r.out)
		}
	}
}

func TestEvents(t *testing.T) {
	m := event.Message{Type: "container", Action: "die", Actor: events.Actor{ID: "abc", Attributes: map[string]string{"name": "web", "exitCode": "1"}}, TimeNano: time.Date(2026, 1, 2, 3, 4, 5, 6, time.Local).UnixNano()}
	f := &fake{messages: []event.Message{m}}
	at := time.Unix(0, m.TimeNano).Format(logTime)
	keg(t, f, "events", "--since", "1h", "--until", "1m").want(t, 0, at+" container die abc (exitCode=1, name=web)\n", "")
	keg(t, f, "events", "--until", "1m", "--format", "{{.Action}} {{.Actor.ID}}").want(t, 0, "die abc\n", "")
	if r := keg(t, f, "events", "--until", "1m", "--format", "{{.Nope}}"); r.code != 64 || !strings.HasPrefix(r.err, "Error parsing format: ") {
		t.Errorf("%+v", r)
	}
}

func TestCheck(t *testing.T) {
	keg(t, &fake{}, "system", "check").want(t, 0, "All is well.\n", "")
	f := &fake{problems: []engine.Problem{{Object: "blob sha256:aa", Text: "is damaged", Repaired: true}}}
	keg(t, f, "system", "check").want(t, 1, "blob sha256:aa: is damaged\n", "1 problem found; run 'keg system check --repair' to move what is damaged aside\n")
	keg(t, f, "system", "check", "--repair").want(t, 0, "blob sha256:aa: is damaged (repaired)\n", "")
}
