package cli

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"keg/internal/engine"
)

func TestTop(t *testing.T) {
	f := &fake{top: container.TopResponse{Titles: []string{"PID", "CMD"}, Processes: [][]string{{"7", "sleep 1"}}}}
	keg(t, f, "top", "web", "-o", "pid,cmd").want(t, 0, "PID                 CMD\n7                   sleep 1\n", "")
	if f.calls[0] != "top -o pid,cmd web" {
		t.Errorf("%q", f.calls)
	}
}

func TestPort(t *testing.T) {
	at := func(ip, port string) network.PortBinding {
		return network.PortBinding{HostIP: mustAddr(ip), HostPort: port}
	}
	f := &fake{inspect: map[string]container.InspectResponse{"web": {NetworkSettings: &container.NetworkSettings{Ports: network.PortMap{
		network.MustParsePort("443/tcp"): {at("127.0.0.1", "8443")},
		network.MustParsePort("80/tcp"):  {at("0.0.0.0", "8080"), at("::", "8080")},
		network.MustParsePort("81/tcp"):  nil,
	}}}, "idle": {}}}
	keg(t, f, "port", "web").want(t, 0, "80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080\n443/tcp -> 127.0.0.1:8443\n", "")
	keg(t, f, "container", "port", "web", "80").want(t, 0, "0.0.0.0:8080\n[::]:8080\n", "")
	keg(t, f, "port", "web", "81/tcp").want(t, 1, "", "no public port '81/tcp' published for web\n")
	keg(t, f, "port", "web", "443/udp").want(t, 1, "", "no public port '443/udp' published for web\n")
	keg(t, f, "port", "idle").want(t, 0, "", "")
}

// sample is a container at one moment, in Docker's record.
func sample(cpu, system uint64) container.StatsResponse {
	s := container.StatsResponse{ID: "0123456789abcdef", Name: "/web"}
	s.CPUStats.CPUUsage.TotalUsage, s.CPUStats.SystemUsage, s.CPUStats.OnlineCPUs = cpu, system, 2
	s.MemoryStats = container.MemoryStats{Usage: 30 << 20, Limit: 100 << 20, Stats: map[string]uint64{"total_inactive_file": 10 << 20}}
	s.Networks = map[string]container.NetworkStats{"eth0": {RxBytes: 1500, TxBytes: 2}, "eth1": {RxBytes: 500}}
	s.BlkioStats.IoServiceBytesRecursive = []container.BlkioStatEntry{{Op: "Read", Value: 4096}, {Op: "write", Value: 8192}, {Op: "Total", Value: 12288}}
	s.PidsStats.Current = 3
	return s
}

func TestStats(t *testing.T) {
	list := []container.Summary{{ID: "0123456789abcdef"}}
	f := &fake{containers: list, samples: []container.StatsResponse{sample(100, 1000), sample(400, 2000)}}
	keg(t, f, "stats", "--no-stream").want(t, 0, `CONTAINER ID   NAME      CPU %     MEM USAGE / LIMIT   MEM %     NET I/O    BLOCK I/O        PIDS
0123456789ab   web       60.00%    20MiB / 100MiB      20.00%    2kB / 2B   4.1kB / 8.19kB   3
`, "")
	if f.list.All {
		t.Error("stats without --all asked for all containers")
	}
	f = &fake{samples: []container.StatsResponse{sample(1, 1)}}
	keg(t, f, "stats", "--no-stream", "--no-trunc", "--format", "{{.Container}} {{.ID}} {{.CPUPerc}}", "web").want(t, 0, "web 0123456789abcdef 0.00%\n", "")
	// A stopped one has nothing.
	f = &fake{containers: list, samples: []container.StatsResponse{{ID: "i", Name: "/off"}}}
	keg(t, f, "stats", "-a", "--no-stream", "--format", "{{.Name}} {{.CPUPerc}} {{.MemUsage}} {{.MemPerc}} {{.NetIO}} {{.BlockIO}} {{.PIDs}}").
		want(t, 0, "off 0.00% 0B / 0B 0.00% 0B / 0B 0B / 0B 0\n", "")
	if !f.list.All {
		t.Error("stats -a asked for running containers only")
	}
	f = &fake{samples: []container.StatsResponse{{}}, err: errors.New("No such container: x")}
	keg(t, f, "stats", "--no-stream", "x").want(t, 1, "", "Error response from daemon: No such container: x\n")
}

func TestStatsOfMemoryV2(t *testing.T) {
	r := statsRow{s: &container.StatsResponse{MemoryStats: container.MemoryStats{Usage: 5 << 20, Limit: 10 << 20, Stats: map[string]uint64{"inactive_file": 1 << 20}}}}
	if got := r.MemUsage(); got != "4MiB / 10MiB" {
		t.Error(got)
	}
	r.s.MemoryStats.Stats["inactive_file"] = 6 << 20 // more than there is: a race of two files
	if got := r.MemPerc(); got != "50.00%" {
		t.Error(got)
	}
}

func TestUpdate(t *testing.T) {
	f := &fake{}
	keg(t, f, "update", "--cpus", "1.5", "-m", "64m", "--memory-swap", "-1", "--pids-limit", "-1", "--restart", "on-failure:3", "a", "b").want(t, 0, "a\nb\n", "")
	u := f.update
	if u.NanoCPUs != 1.5e9 || u.Memory != 64<<20 || u.MemorySwap != -1 || u.PidsLimit == nil || *u.PidsLimit != -1 ||
		u.RestartPolicy != (container.RestartPolicy{Name: "on-failure", MaximumRetryCount: 3}) {
		t.Errorf("%+v", u)
	}
	keg(t, f, "update", "-c", "5", "a").want(t, 0, "a\n", "")
	if f.update.CPUShares != 5 || f.update.PidsLimit != nil || f.update.RestartPolicy.Name != "" {
		t.Errorf("%+v", f.update)
	}
	keg(t, f, "update", "a").want(t, 1, "", "you must provide one or more flags when using this command\n")
	keg(t, f, "update", "--restart", ":3", "a").want(t, 1, "", "invalid restart policy format: no policy provided before colon\n")
}

func TestStartBoot(t *testing.T) {
	f := &fake{booted: []engine.Booted{{Name: "a"}, {Name: "b", Err: errors.New("port 80 is taken")}, {Name: "c"}}}
	keg(t, f, "start", "--boot").want(t, 1, "a\nc\n", "b: Error response from daemon: port 80 is taken\nfailed to start containers: b\n")
	if r := keg(t, f, "start", "--boot", "x"); r.code != 1 || !strings.Contains(r.err, "accepts no arguments") {
		t.Errorf("%+v", r)
	}
	if r := keg(t, f, "start"); r.code != 1 || !strings.Contains(r.err, "requires at least 1 argument") {
		t.Errorf("%+v", r)
	}
}

func TestSystemInstall(t *testing.T) {
	dir := t.TempDir()
	if r := kegWith(t, &fake{}, "", nil, "--root", "/a", "--run-root", "/b", "system", "install", "--prefix", dir); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	b, err := os.ReadFile(filepath.Join(dir, "etc/systemd/system/multi-user.target.wants", "keg-boot.service"))
	if err != nil || !strings.Contains(string(b), " --root /a --run-root /b start --boot\n") {
		t.Errorf("%v\n%s", err, b)
	}
	if r := keg(t, &fake{}, "system", "install", "--prefix", dir); r.code != 0 { // again
		t.Errorf("%+v", r)
	}
	if r := keg(t, &fake{}, "system", "install", "--prefix", dir, "--remove"); r.code != 0 {
		t.Errorf("%+v", r)
	}
	if _, err := os.Lstat(filepath.Join(dir, "etc/systemd/system", "keg-boot.service")); !os.IsNotExist(err) {
		t.Error(err)
	}
	if r := kegWith(t, &fake{}, "", nil, "--root", "/a b", "system", "install", "--print"); r.code != 1 || !strings.Contains(r.err, `"/a b" cannot be written into a unit`) {
		t.Errorf("%+v", r)
	}
}

func TestNetworkConnect(t *testing.T) {
	f := &fake{}
	keg(t, f, "network", "connect", "--alias", "a,b", "--alias", "c", "--ip", "10.0.0.9", "--ip6", "fd00::9", "--link", "db:d",
		"--driver-opt", "k=v", "--gw-priority", "7", "mine", "web").want(t, 0, "", "")
	s := f.endpoint
	if strings.Join(s.Aliases, " ") != "a b c" || s.IPAMConfig.IPv4Address != mustAddr("10.0.0.9") || s.IPAMConfig.IPv6Address != mustAddr("fd00::9") ||
		s.Links[0] != "db:d" || s.DriverOpts["k"] != "v" || s.GwPriority != 7 {
		t.Errorf("%+v", s)
	}
	keg(t, f, "network", "disconnect", "-f", "mine", "web").want(t, 0, "", "")
	keg(t, f, "network", "reload").want(t, 0, "", "")
	if got := strings.Join(f.calls, "; "); got != "connect mine web; disconnect mine web; reload" || !f.forced {
		t.Error(got)
	}
	keg(t, f, "network", "connect", "--driver-opt", "k", "mine", "web").want(t, 1, "", "invalid key value pair format in driver options\n")
}

func TestVolumesMove(t *testing.T) {
	dir := t.TempDir()
	f := &fake{archive: "tar"}
	keg(t, f, "volume", "export", "v").want(t, 0, "tar", "")
	file := filepath.Join(dir, "v.tar")
	keg(t, f, "volume", "export", "-o", file, "v").want(t, 0, "", "")
	if b, err := os.ReadFile(file); string(b) != "tar" {
		t.Errorf("%q, %v", b, err)
	}
	// A failed export leaves what was there before, and no half file.
	f.err = errors.New("no such volume: w")
	keg(t, f, "volume", "export", "-o", file, "w").want(t, 1, "", "Error response from daemon: no such volume: w\n")
	if ents, _ := os.ReadDir(dir); len(ents) != 1 {
		t.Errorf("%v", ents)
	}
	f.err = nil
	kegWith(t, f, "other", nil, "volume", "import", "v", "-").want(t, 0, "", "")
	if f.archive != "other" {
		t.Error(f.archive)
	}
	keg(t, f, "volume", "import", "v", file).want(t, 0, "", "")
	if f.archive != "tar" {
		t.Error(f.archive)
	}
	keg(t, f, "volume", "clone", "v", "w").want(t, 0, "w\n", "")
	keg(t, f, "volume", "rename", "v", "w").want(t, 0, "", "")
	if r := keg(t, f, "volume", "import", "v", filepath.Join(dir, "none")); r.code != 1 || !strings.Contains(r.err, "no such file") {
		t.Errorf("%+v", r)
	}
}

func TestWhy(t *testing.T) {
	f := &fake{reasons: map[string][]engine.Reason{"v": {{
		Kind: "volume", ID: "v", Name: "v", Size: 1500, Frees: 1500, Free: []string{"rm web", "volume rm v"},
		Users: []engine.Referrer{{Kind: "container", Name: "web", How: "exited, mounted on /d"}},
	}}}}
	keg(t, f, "why", "v", "nosuch").want(t, 1, `volume v, 1.5kB
  container web: exited, mounted on /d
To free it:
  keg rm web
  keg volume rm v
That frees 1.5kB.
`, "Error response from daemon: No such object: nosuch\n")
	keg(t, f, "why", "--format", "{{.Kind}} {{(index .Users 0).Name}}", "v").want(t, 0, "volume web\n", "")
}

func TestSearch(t *testing.T) {
	keg(t, &fake{}, "search", "--limit", "5", "web").want(t, 0, "NAME      DESCRIPTION                           STARS     OFFICIAL\nnginx     Official build of Nginx. It serves.   20000     [OK]\n", "")
	keg(t, &fake{}, "search", "--format", "{{.Name}}", "web").want(t, 0, "nginx\n", "")
	if r := keg(t, &fake{}, "search"); r.code != 1 || !strings.Contains(r.err, "requires 1 argument") {
		t.Errorf("%+v", r)
	}
}

func TestOnlyContext(t *testing.T) {
	keg(t, &fake{}, "context", "show").want(t, 0, "default\n", "")
	keg(t, &fake{}, "context", "use", "default").want(t, 0, "default\n", "Current context is now \"default\"\n")
	if r := keg(t, &fake{}, "context", "use", "other"); r.code != 1 || !strings.Contains(r.err, `context "other": context not found`) {
		t.Errorf("%+v", r)
	}
	if r := keg(t, &fake{}, "context", "ls"); !strings.HasPrefix(r.out, "NAME ") || !strings.Contains(r.out, "\ndefault * ") || !strings.Contains(r.out, "unix://") {
		t.Errorf("%+v", r)
	}
	if r := keg(t, &fake{}, "context", "inspect", "--format", "{{.Endpoints.docker.Host}}"); !strings.HasPrefix(r.out, "unix://") {
		t.Errorf("%+v", r)
	}
}
