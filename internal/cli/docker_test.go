package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	stdnet "net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	dimage "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/volume"
)

// docker is Docker's own client, talking to a server of this test: what it sends and
// prints is what we must send and print.
type docker struct {
	t      *testing.T
	bin    string
	sock   string
	dir    string
	mu     sync.Mutex
	create map[string]any // the last body of POST /containers/create
	answer map[string]any // path after the version -> JSON
}

func newDocker(t *testing.T) *docker {
	t.Helper()
	bin, err := exec.LookPath("docker")
	if err != nil {
		t.Skip("needs Docker's client to compare with: not installed")
	}
	// A path of a Unix socket is short; t.TempDir's may not be.
	dir, err := os.MkdirTemp("", "keg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d := &docker{t: t, bin: bin, dir: dir, sock: filepath.Join(dir, "s"), answer: map[string]any{}}
	l, err := stdnet.Listen("unix", d.sock)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(d.serve))
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	if out, err := d.run("version", "--format", "{{.Server.Version}}"); err != nil || !strings.Contains(out, "1.0") {
		t.Skipf("needs Docker's own client: %s answers %q (%v)", bin, out, err)
	}
	return d
}

func (d *docker) serve(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w.Header().Set("Api-Version", "1.47")
	w.Header().Set("Ostype", "linux")
	path := r.URL.Path
	if strings.HasPrefix(path, "/v1.") {
		_, path, _ = strings.Cut(path[1:], "/")
		path = "/" + path
	}
	w.Header().Set("Content-Type", "application/json")
	switch {
	case path == "/_ping":
	case path == "/version":
		fmt.Fprint(w, `{"Version":"1.0","ApiVersion":"1.47"}`)
	case path == "/containers/create":
		d.create = nil
		_ = json.NewDecoder(r.Body).Decode(&d.create)
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, `{"Id":"0123456789ab","Warnings":[]}`)
	case d.answer[path] != nil:
		_ = json.NewEncoder(w).Encode(d.answer[path])
	default:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintf(w, `{"message":"no such path %s"}`, path)
	}
}

func (d *docker) run(args ...string) (string, error) {
	c := exec.CommandContext(d.t.Context(), d.bin, args...)
	c.Env = []string{"DOCKER_HOST=unix://" + d.sock, "HOME=" + d.dir, "PATH=" + os.Getenv("PATH"), "FROM_CALLER=yes"}
	if tz, ok := os.LookupEnv("TZ"); ok {
		c.Env = append(c.Env, "TZ="+tz)
	}
	c.Dir = d.dir
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	return out.String() + errs.String(), err
}

// prune drops what is empty, so that null, [] and a missing key are one.
func prune(v any) any {
	switch x := v.(type) {
	case map[string]any:
		m := map[string]any{}
		for k, e := range x {
			if p := prune(e); p != nil {
				m[k] = p
			}
		}
		if len(m) > 0 {
			return m
		}
		return nil
	case []any:
		var s []any
		for _, e := range x {
			s = append(s, prune(e))
		}
		if len(s) > 0 {
			return s
		}
		return nil
	case string:
		if x != "" {
			return x
		}
	case float64:
		if x != 0 {
			return x
		}
	case bool:
		if x {
			return x
		}
	}
	return nil
}

// TestCreateSendsWhatDockerSends gives the same flags to both and compares the
// requests that come out.
func TestCreateSendsWhatDockerSends(t *testing.T) {
	d := newDocker(t)
	t.Chdir(d.dir)
	for name, text := range map[string]string{
		"env": "# comment\nA=1\n\n  B=with space \nFROM_CALLER\nMISSING\nC=\n", "labels": "x=1\ny\n", "seccomp.json": "{ \"defaultAction\": \"SCMP_ACT_ALLOW\" }",
	} {
		if err := os.WriteFile(filepath.Join(d.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, line := range []string{
		"img", "img sh -c true", "-it img sh", "-i img", "-a stdin -a STDERR img", "--rm img", "-d-not img",
		"-p 8080:80 img", "-p 80 img", "-p 127.0.0.1:8080:80/udp img", "-p 127.0.0.1::80 img", "-p [::1]:8080:80 img", "-p ::1:8080:80 img",
		"-p 8000-8002:80-82 img", "-p 8000-8010:80 img", "-p 80-82 img", "-p 8080:80/sctp img", "-p published=8080,target=80 img", "-p published=53,target=53,protocol=udp img",
		"-p 8080:80 -p 8081:80 img", "-p 8080:99999 img", "-p 99999:80 img", "-p 8000-8001:80-82 img", "-p 8080:80/foo img", "-p x:80 img", "-p 1.2.3:80:80 img", "-p 8080: img", "-p =1 img", "-p 90-80:80 img",
		"--expose 80 --expose 90-92/udp img", "--expose x img", "-P img",
		"-v data:/data img", "-v /anon img", "-v data:/data:ro img", "-v ./x:/x img", "-v ../x:/x:ro,z img", "-v /a:/b:rw,rshared img", "-v :/x img", "-v /a: img", "-v ~/x:/x img",
		"--mount type=bind,src=/a,dst=/b img", "--mount type=volume,src=v,target=/v,readonly,volume-nocopy img", "--mount type=tmpfs,dst=/t,tmpfs-size=64m,tmpfs-mode=1770 img",
		"--mount type=bind,source=./rel,target=/b,bind-propagation=rslave img", "--mount type=volume,dst=/v,volume-driver=local,volume-opt=type=nfs,volume-label=a=b,volume-subpath=x img",
		"--mount type=bind,src=/a,dst=/b,readonly=maybe img", "--mount foo img", "--mount type=bind,foo=bar img", "--mount type=tmpfs,volume-nocopy,dst=/x img", "--mount type=bind,src=/a,dst=/b,bind-recursive=readonly img", "--mount dst=/x,ro=false img",
		"--mount type=image,src=alpine,dst=/i,image-subpath=etc img", "--mount type=bind,bind-recursive=disabled,src=/a,dst=/b img",
		"--tmpfs /run --tmpfs /tmp:size=1m,exec img",
		"-e A=1 -e FROM_CALLER -e MISSING -e E= img", "-e = img", "--env-file env img", "--env-file env -e A=2 img", "--env-file none img",
		"-l a=b -l c img", "--label-file labels -l x=2 img", "-l =x img",
		"-w /x -u 1:2 --group-add audio --entrypoint /bin/sh img -c true", "--entrypoint= img", "-h host --domainname d img",
		"--network host img", "--network none img", "--network net1 --network-alias a --ip 10.0.0.5 img", "--network name=net1,alias=a,ip=10.0.0.5,driver-opt=x=y img", "--net bridge img",
		"--network net1 --network net2 img", "--network net1 --network net1 img", "--network host --network net1 img", "--network container:x img", "--network-alias a img", "--network net1 --link db:d img", "--link db img", "--link a:b:c img",
		"--network net1 --ip6 2001:db8::1 --mac-address 92:d0:c6:0a:29:33 --link-local-ip 169.254.1.1 img", "--mac-address zz img", "--network name=net1,ip=1.2.3.4 --ip 1.2.3.5 img", "--network foo=bar img",
		"--add-host a:1.2.3.4 --add-host b=::1 --add-host c:host-gateway img", "--add-host a img", "--add-host a:x img", "--add-host a:[::1] img",
		"--dns 1.1.1.1 --dns-search example.com --dns-search . --dns-option ndots:2 img", "--dns x img", "--dns-search -bad img", "--dns-search 123 img",
		"--init --read-only --privileged img", "--init=false img",
		"-m 512m --memory-swap 1g --memory-reservation 256m --memory-swappiness 10 img", "-m 1x img", "--memory-swap -1 img", "--memory-swappiness 101 img",
		"--cpus 1.5 img", "--cpus x img", "--cpus 0.0000000001 img", "-c 512 --cpu-period 100000 --cpu-quota 50000 --cpuset-cpus 0-1 --cpuset-mems 0 img", "--cpu-rt-period 1000 --cpu-rt-runtime 500 img",
		"--pids-limit 100 img", "--pids-limit -1 img", "--ulimit nofile=1024:2048 --ulimit core=0 img", "--ulimit foo=1 img", "--ulimit nofile=2:1 img", "--shm-size 128m img",
		"--sysctl net.core.somaxconn=1024 --sysctl kernel.sem=1 img", "--sysctl vm.swappiness=1 img", "--sysctl net.x img",
		"--cap-add NET_ADMIN --cap-drop ALL img", "--cap-add cap_chown --cap-add CHOWN --cap-add sys_time --cap-drop chown --cap-drop kill img", "--cap-add all --cap-add chown --cap-drop all img", "--security-opt no-new-privileges img", "--security-opt seccomp=unconfined --security-opt apparmor=x img", "--security-opt seccomp=seccomp.json img",
		"--security-opt seccomp=none.json img", "--security-opt foo img", "--security-opt systempaths=unconfined img", "--security-opt label:disable img",
		"--device /dev/null img", "--device /dev/null:/dev/x:r img", "--device /dev/null:rw img", "--device /dev/null:/dev/y img", "--device null img", "--device /dev/null:/dev/x:z img", "--device a:b:c:d img", "--device vendor.com/class=name img",
		"--device-cgroup-rule=foo img", "--device-read-bps /dev/sda:1mb --device-write-iops /dev/sda:100 --blkio-weight 100 --blkio-weight-device /dev/sda:200 img", "--blkio-weight-device /dev/sda:5 img", "--device-read-bps sda:1 img", "--device-read-iops /dev/sda:x img",
		"--gpus all img", "--gpus 2 img", "--gpus device=0 img", "--gpus x img",
		"--pid host --ipc host --uts host --userns host --cgroupns private img", "--pid container:x --ipc container:y img", "--pid x img", "--uts x img", "--userns x img", "--cgroupns x img",
		"--cgroup-parent /x --oom-score-adj 100 --oom-kill-disable img",
		"--restart always img", "--restart on-failure:3 img", "--restart unless-stopped img", "--restart :3 img", "--restart on-failure:x img", "--restart always --rm img",
		"--stop-signal SIGINT --stop-timeout 3 img", "--log-driver none --log-opt a=b img", "--log-driver local --log-opt max-size=1m img",
		"--health-cmd true --health-interval 5s --health-timeout 1s --health-retries 3 --health-start-period 10s --health-start-interval 1s img", "--no-healthcheck img", "--no-healthcheck --health-cmd x img", "--health-interval -1s img",
		"--volumes-from a:ro --volumes-from b --volume-driver local img", "--runtime runc img", "--annotation a=b img", "--storage-opt size=1g img", "--storage-opt x img",
		"--name web img", "--pull never img", "--pull x img", "--cidfile cid img", "--attach foo img", "--stop-timeout x img", "--isolation default img", "--name", "--nosuchflag img",
	} {
		args := strings.Fields(line)
		theirs, theirErr := d.run(append([]string{"create"}, args...)...)
		d.mu.Lock()
		sent := d.create
		d.create = nil
		d.mu.Unlock()
		os.Remove(filepath.Join(d.dir, "cid"))

		f := &fake{}
		ours := kegWith(t, f, "", map[string]string{"FROM_CALLER": "yes", "HOME": d.dir}, append([]string{"create"}, args...)...)
		os.Remove(filepath.Join(d.dir, "cid"))
		if theirErr != nil {
			want := strings.ReplaceAll(theirs, "docker", "keg")
			if ours.code != theirErr.(*exec.ExitError).ExitCode() || ours.err != want && !reworded(ours.err) {
				t.Errorf("create %s:\nours (%d): %sdocker (%v): %s", line, ours.code, ours.err, theirErr, want)
			}
			continue
		}
		if ours.code != 0 {
			t.Errorf("create %s: exit %d: %s\ndocker accepts it", line, ours.code, ours.err)
			continue
		}
		compareRequests(t, line, sent, f)
	}
}

// reworded: sentences that clients newer than the one of a distribution say otherwise.
func reworded(s string) bool {
	for _, newer := range []string{"--expose: invalid start port", "invalid value for 'readonly': invalid boolean value", "unknown option 'foo' in", "--env-file: open", "invalid --security-opt",
		"--userns: invalid USER mode \"x\": want"} {
		if strings.Contains(s, newer) {
			return true
		}
	}
	return false
}

func compareRequests(t *testing.T, line string, sent map[string]any, f *fake) {
	t.Helper()
	req := map[string]any{}
	for _, part := range []any{f.create.Config, map[string]any{
		"HostConfig":       f.create.Host,
		"NetworkingConfig": map[string]any{"EndpointsConfig": f.create.Networks},
	}} {
		b, err := json.Marshal(part)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &req); err != nil {
			t.Fatal(err)
		}
	}
	// The client of API 1.47 says MAC address of the first network twice.
	delete(sent, "MacAddress")
	if h, ok := sent["HostConfig"].(map[string]any); ok {
		delete(h, "ConsoleSize")
		delete(req["HostConfig"].(map[string]any), "ConsoleSize")
		sortAny(h["Binds"]) // the client keeps both in maps on the way
		sortAny(sent["Env"])
		sortAny(req["Env"])
		sortAny(req["HostConfig"].(map[string]any)["Binds"])
	}
	want, got := prune(sent), prune(req)
	if !reflect.DeepEqual(want, got) {
		w, _ := json.Marshal(want)
		g, _ := json.Marshal(got)
		t.Errorf("create %s:\nours   %s\ndocker %s", line, g, w)
	}
}

func sortAny(v any) {
	s, _ := v.([]any)
	for i := range s {
		for j := i + 1; j < len(s); j++ {
			if fmt.Sprint(s[j]) < fmt.Sprint(s[i]) {
				s[i], s[j] = s[j], s[i]
			}
		}
	}
}

// TestTablesAreDockers compares what both print for the same objects.
func TestTablesAreDockers(t *testing.T) {
	d := newDocker(t)
	now := time.Now()
	f := &fake{}
	f.containers = []container.Summary{
		{
			ID: strings.Repeat("a1", 32), Names: []string{"/web", "/other/link"}, Image: "nginx:1.27", ImageID: "sha256:" + strings.Repeat("b2", 32),
			Command: "/docker-entrypoint.sh nginx -g 'daemon off;'", Created: now.Add(-3 * time.Hour).Unix(), State: "running", Status: "Up 3 hours (healthy)",
			Ports: []container.PortSummary{
				{PrivatePort: 80, PublicPort: 8080, Type: "tcp", IP: mustAddr("0.0.0.0")}, {PrivatePort: 80, PublicPort: 8080, Type: "tcp", IP: mustAddr("::")},
				{PrivatePort: 443, Type: "tcp"}, {PrivatePort: 9000, PublicPort: 9000, Type: "udp", IP: mustAddr("127.0.0.1")}, {PrivatePort: 9001, PublicPort: 9001, Type: "udp", IP: mustAddr("127.0.0.1")},
			},
			Labels: map[string]string{"b": "2", "a": "1", "com.example.some-thing": "x"}, SizeRw: 1234, SizeRootFs: 187654321,
			Mounts:          []container.MountPoint{{Name: strings.Repeat("c3", 32), Driver: "local"}, {Source: "/srv"}},
			NetworkSettings: &container.NetworkSettingsSummary{Networks: map[string]*network.EndpointSettings{"bridge": {}}},
		},
		{
			ID: strings.Repeat("d4", 32), Names: []string{"/größe"}, Image: "sha256:" + strings.Repeat("b2", 32), ImageID: "sha256:" + strings.Repeat("b2", 32),
			Command: "日本語のコマンドです日本語のコマンドです", Created: now.Add(-40 * 24 * time.Hour).Unix(), State: "exited", Status: "Exited (137) 5 weeks ago",
		},
	}
	f.images = []dimage.Summary{
		{ID: "sha256:" + strings.Repeat("b2", 32), RepoTags: []string{"nginx:1.27", "nginx:latest"}, RepoDigests: []string{"nginx@sha256:" + strings.Repeat("e5", 32)}, Created: now.Add(-90 * 24 * time.Hour).Unix(), Size: 187654321, SharedSize: -1, Containers: -1},
		{ID: "sha256:" + strings.Repeat("f6", 32), Created: now.Add(-45 * time.Minute).Unix(), Size: 999, SharedSize: 1, Containers: 2},
		{ID: "sha256:" + strings.Repeat("a7", 32), RepoTags: []string{"localhost:5000/team/app:1.0"}, Created: now.Add(-2 * time.Hour).Unix(), Size: 5_000_000, SharedSize: -1, Containers: -1},
	}
	f.history = []dimage.HistoryResponseItem{
		{ID: "sha256:" + strings.Repeat("b2", 32), Created: now.Add(-5 * time.Hour).Unix(), CreatedBy: "COPY index.html /usr/share/nginx/html/ # buildkit", Size: 31, Comment: "buildkit.dockerfile.v0"},
		{ID: "<missing>", Created: now.Add(-90 * 24 * time.Hour).Unix(), CreatedBy: "CMD\t[\"nginx\"]", Size: 0},
		{ID: "<missing>", Created: 0, CreatedBy: "ADD rootfs", Size: 8_100_000},
	}
	f.volumes = []volume.Volume{{Name: "web10", Driver: "local", Scope: "local", Mountpoint: "/m"}, {Name: "web2", Driver: "local", Scope: "local", Labels: map[string]string{"a": "b"}}}
	for _, n := range []string{"none", "bridge", "my-net"} {
		x := network.Inspect{}
		x.ID, x.Name, x.Driver, x.Scope = strings.Repeat(fmt.Sprintf("%02x", len(n)), 32), n, "bridge", "local"
		f.networks = append(f.networks, x)
	}
	for path, v := range map[string]any{
		"/containers/json": f.containers, "/images/json": f.images, "/images/nginx/history": f.history,
		"/volumes": map[string]any{"Volumes": f.volumes}, "/networks": f.networks,
	} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		d.mu.Lock()
		d.answer[path] = json.RawMessage(b)
		d.mu.Unlock()
	}
	for _, args := range [][]string{
		{"ps"}, {"ps", "-a", "--no-trunc"}, {"ps", "-q"}, {"ps", "-s"}, {"ps", "--format", "raw"}, {"ps", "-s", "--format", "raw"}, {"ps", "-q", "--format", "raw"},
		{"ps", "--format", "{{.Names}}: {{.Ports}} {{.Label \"a\"}} {{.Mounts}} {{.LocalVolumes}} {{.Networks}} {{.State}}"},
		{"ps", "--format", `table {{.Names}}\t{{.Size}}\t{{.Labels}}\t{{.Label "com.example.some-thing"}}`},
		{"ps", "--format", "table {{upper .Names}}\t{{join (split .Image \":\") \"/\"}}\t{{truncate .ID 4}}\t{{pad .State 1 2}}\t{{title .State}}\t{{lower .Names}}"},
		{"ps", "--format", "{{json .Names}} {{println .ID}}"}, {"ps", "--format", "{{.Foo}}"}, {"ps", "--format", "{{"}, {"container", "ls", "--format", "{{.CreatedAt}}"},
		{"images"}, {"images", "--digests"}, {"images", "--no-trunc"}, {"images", "-q"}, {"images", "--format", "raw"}, {"images", "--digests", "--format", "raw"}, {"images", "--format", "{{.Repository}}:{{.Tag}} {{.Digest}} {{.Containers}} {{.SharedSize}} {{.UniqueSize}} {{.CreatedAt}}"},
		{"images", "--format", "json"}, {"images", "--format", "table {{.ID}}", "--digests"}, {"image", "ls"},
		{"history", "nginx"}, {"history", "--no-trunc", "nginx"}, {"history", "-H=false", "nginx"}, {"history", "-q", "nginx"}, {"history", "--format", "json", "nginx"}, {"history", "--format", "{{.Size}} {{.CreatedAt}}", "nginx"},
		{"volume", "ls"}, {"volume", "ls", "-q"}, {"volume", "ls", "--format", "raw"}, {"volume", "ls", "--format", "json"}, {"volume", "ls", "--format", "table {{.Name}}\t{{.Mountpoint}}\t{{.Labels}}\t{{.Links}}\t{{.Scope}}"},
		{"network", "ls"}, {"network", "ls", "-q"}, {"network", "ls", "--no-trunc"}, {"network", "ls", "--format", "raw"}, {"network", "ls", "--format", "{{.Name}} {{.IPv6}} {{.Internal}} {{.CreatedAt}}"},
	} {
		theirs, err := d.run(args...)
		code := 0
		if err != nil {
			code = err.(*exec.ExitError).ExitCode()
		}
		ours := kegNow(t, f, now, args...)
		got, want := ours.out+ours.err, theirs
		for from, to := range map[string]string{"*formatter.ContainerContext": "*cli.containerRow"} {
			want = strings.ReplaceAll(want, from, to)
		}
		if strings.Contains(strings.Join(args, " "), "json") && args[0] != "ps" {
			got, want = jsonLines(got), jsonLines(want)
		}
		if got != want || ours.code != code {
			t.Errorf("%q: ours (%d):\n%s\ndocker (%d):\n%s", args, ours.code, got, code, want)
		}
	}
}

// jsonLines keeps the keys that the older client knows too.
func jsonLines(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		m := map[string]any{}
		if json.Unmarshal([]byte(line), &m) != nil {
			b.WriteString(line)
			continue
		}
		for _, k := range []string{"VirtualSize"} {
			delete(m, k)
		}
		out, _ := json.Marshal(m)
		b.Write(append(out, '\n'))
	}
	return b.String()
}
