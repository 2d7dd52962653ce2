package api

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
)

// swagger is the description of the newest API, from the module whose types we use.
func swagger(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/moby/api").Output()
	dir := strings.TrimSpace(string(out))
	if err != nil || dir == "" {
		t.Skipf("needs the module of the API's types in this user's cache: %v", err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "swagger.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var (
	pathLine   = regexp.MustCompile(`^  (/\S+):\s*$`)
	methodLine = regexp.MustCompile(`^    (get|post|put|delete|head):\s*$`)
	holes      = regexp.MustCompile(`\{[^}]*\}`)
)

// TestEveryEndpointHasARoute holds the table of routes to the description of the newest version.
func TestEveryEndpointHasARoute(t *testing.T) {
	text := swagger(t)
	if want := fmt.Sprintf("version: %q", MaxVersion); !strings.Contains(text, want) {
		t.Errorf("the newest version of the API is not %s", MaxVersion)
	}
	ours := map[string]bool{}
	for _, r := range routes() {
		ours[r.method+" "+holes.ReplaceAllString(r.path, "{}")] = true
	}
	path, n := "", 0
	for line := range strings.SplitSeq(text[strings.Index(text, "\npaths:"):], "\n") {
		if m := pathLine.FindStringSubmatch(line); m != nil {
			path = m[1]
		}
		m := methodLine.FindStringSubmatch(line)
		if m == nil || path == "" {
			continue
		}
		n++
		if r := strings.ToUpper(m[1]) + " " + holes.ReplaceAllString(path, "{}"); !ours[r] {
			t.Errorf("no route for %s", r)
		}
	}
	if n < 100 {
		t.Errorf("only %d endpoints found in the description", n)
	}
}

// fields answers one GET and returns the names in the object, or in the first of a list.
func fields(t *testing.T, f *fake, path string) map[string]any {
	t.Helper()
	w := ask(f, "GET", path, "")
	b := w.Body.Bytes()
	var m map[string]any
	if w.Code == 200 && b[0] == '[' {
		var list []map[string]any
		if err := json.Unmarshal(b, &list); err != nil || len(list) == 0 {
			t.Fatalf("%s: %s, %v", path, b, err)
		}
		return list[0]
	}
	if err := json.Unmarshal(b, &m); w.Code != 200 || err != nil {
		t.Fatalf("%s: %d %s", path, w.Code, b)
	}
	return m
}

// TestShapesByVersion: which version shows which field, after the API's own history.
func TestShapesByVersion(t *testing.T) {
	for _, c := range []struct {
		path, field string
		from, until string // the versions that show it; "" is open
	}{
		{"/images/a/json", "VirtualSize", "", "1.43"},
		{"/images/a/json", "ContainerConfig", "", "1.44"},
		{"/images/a/json", "DockerVersion", "", "1.51"},
		{"/images/a/json", "Parent", "", "1.51"},
		{"/images/a/json", "Config.Domainname", "", "1.49"},
		{"/images/a/json", "Config.OnBuild", "", "1.51"},
		{"/images/a/json", "Config.WorkingDir", "", "1.51"},
		{"/images/a/json?manifests=1", "Descriptor", "1.48", ""},
		{"/images/a/json", "Descriptor", "1.99", ""}, // never
		{"/images/a/json", "GraphDriver", "", "1.51"},
		{"/containers/web/json", "NetworkSettings.IPAddress", "", "1.51"},
		{"/containers/web/json", "NetworkSettings.Bridge", "", "1.51"},
		{"/containers/web/json", "NetworkSettings.Ports", "", ""},
		{"/containers/web/json", "ImageManifestDescriptor", "1.48", ""},
		{"/containers/json", "Health", "1.52", ""},
		{"/containers/json", "HostConfig.Annotations", "1.46", ""},
		{"/system/df", "LayersSize", "", ""}, // without verbose 1.52 and later answer both
		{"/system/df", "ImageUsage", "1.52", ""},
		{"/system/df?verbose=1", "LayersSize", "", "1.51"},
		{"/system/df?verbose=1", "VolumeUsage.Items", "1.52", ""},
		{"/networks/n", "Status", "1.52", ""},
		{"/info", "BridgeNfIptables", "", "1.49"},
		{"/info", "BridgeNfIp6tables", "", "1.49"},
	} {
		for minor := 25; minor <= int(known(MaxVersion)); minor++ {
			v := fmt.Sprintf("1.%d", minor)
			m := fields(t, newFake(), "/v"+v+c.path)
			want := (c.from == "" || known(c.from) <= known(v)) && (c.until == "" || known(v) <= known(c.until))
			for part := range strings.SplitSeq(c.field, ".") {
				sub, ok := m[part]
				m, _ = sub.(map[string]any)
				if !ok {
					m = nil
					if want {
						t.Errorf("%s%s: no %s", v, c.path, c.field)
					}
					want = false
					break
				}
				if part == c.field[strings.LastIndexByte(c.field, '.')+1:] && !want {
					t.Errorf("%s%s: %s is shown", v, c.path, c.field)
				}
			}
		}
	}
	if w := ask(newFake(), "GET", "/system/df?type=nothing", ""); w.Code != 400 {
		t.Errorf("df of an unknown type: %d", w.Code)
	}
	if m := fields(t, newFake(), "/v1.51/system/df?type=volume"); m["Images"] != nil || m["Volumes"] == nil {
		t.Errorf("df of volumes: %v", m)
	}
}

// TestEventStreams: the type that is asked for, and the fields that went with 1.52.
func TestEventStreams(t *testing.T) {
	client, _ := serve(t, newFake())
	for _, c := range []struct{ version, accept, contentType, begin, status string }{
		{"1.51", "", "application/json", "{", "die"},
		{"1.52", "", "application/jsonl", "{", ""},
		{"1.53", "application/x-ndjson", "application/x-ndjson", "{", ""},
		{"1.53", "text/html, application/json-seq;q=1", "application/json-seq", "\x1e", ""},
	} {
		q, _ := http.NewRequest("GET", "http://docker/v"+c.version+"/events", nil)
		q.Header.Set("Accept", c.accept)
		resp, err := client.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(resp.Body).ReadString('\n')
		resp.Body.Close()
		rest, ok := strings.CutPrefix(line, c.begin)
		var e struct{ Status, Type string }
		jerr := json.Unmarshal([]byte("{"+strings.TrimPrefix(rest, "{")), &e)
		if err != nil || !ok || jerr != nil || resp.Header.Get("Content-Type") != c.contentType || e.Type != "container" || e.Status != c.status {
			t.Errorf("%+v: %q %q, %v, %v", c, resp.Header.Get("Content-Type"), line, err, jerr)
		}
	}
}

// TestWhatVersionsRead: what a body may say depends on the version, too.
func TestWhatVersionsRead(t *testing.T) {
	const mac = `{"Image":"a","MacAddress":"02:00:00:00:00:01"}`
	for v, want := range map[string]int{"1.43": 201, "1.51": 201, "1.52": 400} {
		if w := ask(newFake(), "POST", "/v"+v+"/containers/create", mac); w.Code != want {
			t.Errorf("%s: a MAC address of the container's: %d %s", v, w.Code, w.Body)
		}
	}
	for v, want := range map[string]bool{"1.55": false, "1.56": true} {
		f := newFake()
		ask(f, "POST", "/v"+v+"/containers/create", `{"Image":"a","HostConfig":{"Umask":63}}`)
		if f.created.Host == nil || (f.created.Host.Umask != nil) != want {
			t.Errorf("%s: umask: %+v", v, f.created.Host)
		}
	}
	for v, want := range map[string]int{"1.54": 400, "1.55": 200} {
		if w := ask(newFake(), "GET", "/v"+v+"/images/a/attestations?type=x&statement=1", ""); w.Code != want {
			t.Errorf("%s: attestations: %d %s", v, w.Code, w.Body)
		}
	}
	if w := ask(newFake(), "GET", "/images/a/attestations?platform=linux/amd64&platform=linux/arm64", ""); w.Code != 400 {
		t.Errorf("two platforms: %d", w.Code)
	}
	for path, want := range map[string]int{"/images/a/json?platform=linux/amd64": 200, "/images/a/json?platform=windows/amd64": 404,
		"/images/a/json?platform=linux/amd64&manifests=1": 400, "/images/a/history?platform=windows/amd64": 404,
		"/v1.47/images/a/json?platform=windows/amd64": 200} {
		if w := ask(newFake(), "GET", path, ""); w.Code != want {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
	if w := ask(newFake(), "OPTIONS", "/anything/at/all", ""); w.Code != 200 {
		t.Errorf("OPTIONS: %d", w.Code)
	}
	if w := ask(newFake(), "POST", "/containers/none/start?checkpoint=../out", ""); w.Code != 400 || !strings.Contains(w.Body.String(), `invalid checkpoint ID \"../out\"`) {
		t.Errorf("a checkpoint that leads out: %d %s", w.Code, w.Body)
	}
}

// TestOutsideOfASwarm: every call for swarms and plugins is answered as by an engine that has none.
func TestOutsideOfASwarm(t *testing.T) {
	n := 0
	for _, r := range routes() {
		first := strings.Split(r.path, "/")[1]
		if !slices.Contains([]string{"swarm", "services", "nodes", "tasks", "secrets", "configs"}, first) {
			continue
		}
		n++
		w := ask(newFake(), r.method, holes.ReplaceAllString(r.path, "x"), "")
		want := 503
		if r.path == "/swarm/init" || r.path == "/swarm/join" {
			want = 501 // to become one is not possible
		}
		if w.Code != want {
			t.Errorf("%s %s: %d %s", r.method, r.path, w.Code, w.Body)
		}
		messageOf(t, w.Body.Bytes())
	}
	if n < 30 {
		t.Errorf("only %d calls", n)
	}
	if w := ask(newFake(), "GET", "/plugins", ""); w.Code != 200 || strings.TrimSpace(w.Body.String()) != "[]" {
		t.Errorf("plugins: %d %s", w.Code, w.Body)
	}
	if w := ask(newFake(), "POST", "/plugins/a/b/enable", ""); w.Code != 404 {
		t.Errorf("no plugin: %d %s", w.Code, w.Body)
	}
}

// TestWebSocket attaches before the start, as TestAttachBeforeStart does without a WebSocket.
func TestWebSocket(t *testing.T) {
	f := newFake()
	client, dial := serve(t, f)
	cfg, err := websocket.NewConfig("ws://docker/v1.42/containers/web/attach/ws?stream=1&stdin=1&stdout=1", "http://docker")
	if err != nil {
		t.Fatal(err)
	}
	// A page of another site is refused. A program's library says where it connects to, a word for here, or nothing.
	_, other := serve(t, newFake())
	for _, origin := range []string{"https://evil.com", "http://10.0.0.1", "null", "file://"} {
		if ws, err := websocket.NewClient(cfg, &otherOrigin{other(), origin}); err == nil {
			ws.Close()
			t.Errorf("a page of %s attaches", origin)
		}
	}
	for _, origin := range []string{"http://localhost", "http://localhost:2375", "http://127.0.0.1", ""} {
		ws, err := websocket.NewClient(cfg, &otherOrigin{other(), origin})
		if err != nil {
			t.Errorf("a program with the origin %q: %v", origin, err)
			continue
		}
		ws.Close()
	}
	ws, err := websocket.NewClient(cfg, dial())
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	if resp, err := client.Post("http://docker/v1.42/containers/web/start", "", nil); err != nil || resp.StatusCode != 204 {
		t.Fatalf("start: %v, %v", resp, err)
	}
	_ = ws.SetDeadline(time.Now().Add(10 * time.Second))
	got := make([]byte, 5)
	if _, err := io.ReadFull(ws, got); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := ws.Write([]byte("typed")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(ws, got); err != nil || string(got) != "typed" {
		t.Errorf("%q, %v", got, err)
	}
	if w := ask(newFake(), "GET", "/containers/web/attach/ws", ""); w.Code != 400 {
		t.Errorf("no WebSocket: %d", w.Code)
	}
}

// otherOrigin has another Origin in the handshake, or none.
type otherOrigin struct {
	net.Conn
	origin string
}

func (c *otherOrigin) Write(b []byte) (int, error) {
	header := ""
	if c.origin != "" {
		header = "Origin: " + c.origin + "\r\n"
	}
	if _, err := c.Conn.Write([]byte(strings.Replace(string(b), "Origin: http://docker\r\n", header, 1))); err != nil {
		return 0, err
	}
	return len(b), nil
}
