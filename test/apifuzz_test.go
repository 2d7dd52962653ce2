package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestCallsBesideDocker makes the same random valid calls of the Engine API to Docker's engine and to keg serve, and compares the
// status and, of what is answered with JSON, the names and types of the fields. KEG_SEED begins
// another run, KEG_SOAK makes it longer.
func TestCallsBesideDocker(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: Docker's engine does")
	}
	if testing.Short() {
		t.Skip("starting Docker's engine is not short")
	}
	for _, p := range []string{"dockerd", "containerd", "docker"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip("needs Docker's engine and client: ", err)
		}
	}
	seed := uint64(7)
	fmt.Sscan(os.Getenv("KEG_SEED"), &seed)
	calls := 150
	fmt.Sscan(os.Getenv("KEG_SOAK"), &calls)
	theirs, ours := newStreamClient(startDockerd(t, "--storage-driver", "overlay2").sock), newStreamClient(startServe(t))
	root := clientRoot(t)
	for _, c := range []*streamClient{theirs, ours} {
		r, err := c.Post("http://docker/v1.41/images/create?fromSrc=-&repo=box&tag=1", "application/x-tar", bytes.NewReader(root))
		if err != nil || r.StatusCode != 200 {
			t.Fatal(r, err)
		}
		io.Copy(io.Discard, r.Body)
		r.Body.Close()
	}
	g := rand.New(rand.NewPCG(seed, 1))
	seen := map[string]bool{}
	unknownDriver := map[string]bool{}
	for i, begun := 0, time.Now(); i < calls && (os.Getenv("KEG_SOAK") != "" || time.Since(begun) < time.Minute); i++ {
		c := randomCall(g)
		if strings.Contains(c.body, `"Driver":"nope"`) {
			// Docker's engine looks 15 seconds for a plugin of that name before it answers; once is enough.
			if unknownDriver[c.kind] {
				continue
			}
			unknownDriver[c.kind] = true
		}
		want, got := c.ask(t, theirs), c.ask(t, ours)
		d := want.differs(got)
		if d != "" && !seen[c.kind+d] && callsAlike[c.kind] != d {
			seen[c.kind+d] = true
			t.Errorf("seed %d: %s %s %s: %s\nDocker: %.300s\nkeg:    %.300s", seed, c.method, c.path, c.body, d, want.body, got.body)
		}
	}
}

// call is one request; kind is its route.
type call struct{ kind, method, path, body string }

func randomCall(g *rand.Rand) call {
	pick := func(words ...string) string { return words[g.IntN(len(words))] }
	name := pick("a", "b", "c")
	flag := pick("0", "1", "true", "false")
	k := pick("list", "create", "create", "inspect", "start", "start", "stop", "kill", "restart", "pause", "unpause", "rename", "remove", "top", "logs", "changes",
		"wait", "exec", "archive", "resize", "update", "stats",
		"images", "image", "history", "tag", "rmi", "commit", "volumes", "volume", "mkvolume", "rmvolume", "networks", "network", "mknetwork", "rmnetwork",
		"connect", "disconnect", "prune", "ping", "version", "df", "events", "swarm", "plugins")
	c := func(method, path, body string) call { return call{k, method, path, body} }
	switch k {
	case "list":
		return c("GET", "/containers/json?all="+flag+"&limit="+pick("0", "1", "2")+pick("", `&filters={"status":["running"]}`, `&filters={"name":["a"]}`, `&filters={"label":{"x=y":true}}`), "")
	case "create":
		return c("POST", "/containers/create?name="+name, `{"Image":"`+pick("box:1", "box:1", "box:1", "nobox")+`","Cmd":["`+pick("sleep\",\"1000", "true", "sh\",\"-c\",\"echo x; exit 3")+`"],"Labels":{"x":"`+pick("y", "z")+
			`"},"Tty":`+pick("true", "false")+`,"HostConfig":{"Memory":`+pick("0", "67108864", "1")+`,"NetworkMode":"`+pick("none", "bridge", "host")+`","RestartPolicy":{"Name":"`+pick("no", "on-failure", "never")+`"},"Binds":`+pick("null", `["v1:/v"]`)+`}}`)
	case "inspect":
		return c("GET", "/containers/"+name+"/json?size="+flag, "")
	case "start", "pause", "unpause":
		return c("POST", "/containers/"+name+"/"+k, "")
	case "stop", "restart":
		return c("POST", "/containers/"+name+"/"+k+"?t=0", "")
	case "kill":
		return c("POST", "/containers/"+name+"/kill?signal="+pick("KILL", "9", "NOPE", "SIGKILL"), "")
	case "rename":
		return c("POST", "/containers/"+name+"/rename?name="+pick("a", "b", "c", "-"), "")
	case "remove":
		return c("DELETE", "/containers/"+name+"?v=1&force="+flag, "")
	case "top":
		return c("GET", "/containers/"+name+"/top", "")
	case "logs":
		return c("GET", "/containers/"+name+"/logs?stdout="+flag+"&tail="+pick("all", "1", "0"), "")
	case "changes":
		return c("GET", "/containers/"+name+"/changes", "")
	case "wait":
		return c("POST", "/containers/nowhere/wait", "")
	case "exec":
		return c("POST", "/containers/"+name+"/exec", `{"Cmd":`+pick(`["true"]`, `[]`)+`,"AttachStdout":true}`)
	case "archive":
		return c(pick("HEAD", "GET"), "/containers/"+name+"/archive?path="+pick("/bin", "/nowhere", ""), "")
	case "resize":
		return c("POST", "/containers/"+name+"/resize?h="+pick("10", "x")+"&w=20", "")
	case "update":
		return c("POST", "/containers/"+name+"/update", `{"Memory":`+pick("67108864", "1")+`,"MemorySwap":-1}`)
	case "stats":
		return c("GET", "/containers/"+name+"/stats?stream=0&one-shot=1", "")
	case "images":
		return c("GET", "/images/json?all="+flag+pick("", `&filters={"dangling":["true"]}`, `&filters={"reference":["box"]}`, `&filters={"nope":["x"]}`), "")
	case "image":
		return c("GET", "/images/"+pick("box:1", "box:2", "nobox")+"/json", "")
	case "history":
		return c("GET", "/images/"+pick("box:1", "nobox")+"/history", "")
	case "tag":
		if g.IntN(8) == 0 {
			return c("POST", "/images/box:1/tag?repo=BOX", "")
		}
		return c("POST", "/images/"+pick("box:1", "nobox")+"/tag?repo="+pick("box", "other/x")+"&tag="+pick("2", "3"), "")
	case "rmi":
		return c("DELETE", "/images/"+pick("box:2", "box:3", "other/x:2", "nobox"), "")
	case "commit":
		return c("POST", "/commit?container="+name+"&repo=other/x&tag=2", "{}")
	case "volumes":
		return c("GET", "/volumes"+pick("", `?filters={"dangling":["true"]}`, `?filters={"name":["v"]}`), "")
	case "volume":
		return c("GET", "/volumes/"+pick("v1", "v2"), "")
	case "mkvolume":
		return c("POST", "/volumes/create", `{"Name":"`+pick("v1", "v2", "bad name")+`","Driver":"`+pick("local", "nope")+`","Labels":{"a":"b"}}`)
	case "rmvolume":
		return c("DELETE", "/volumes/"+pick("v1", "v2")+"?force="+flag, "")
	case "networks":
		return c("GET", "/networks"+pick("", `?filters={"driver":["bridge"]}`, `?filters={"type":["custom"]}`), "")
	case "network":
		return c("GET", "/networks/"+pick("bridge", "n1", "n2", "none"), "")
	case "mknetwork":
		return c("POST", "/networks/create", `{"Name":"`+pick("n1", "n2", "bridge")+`","CheckDuplicate":true,"Driver":"`+pick("bridge", "bridge", "nope")+`"}`)
	case "rmnetwork":
		return c("DELETE", "/networks/"+pick("n1", "n2", "bridge"), "")
	case "connect", "disconnect":
		return c("POST", "/networks/"+pick("n1", "n2")+"/"+k, `{"Container":"`+name+`"}`)
	case "prune":
		return c("POST", "/"+pick("containers", "volumes", "networks")+"/prune", "")
	case "ping":
		return c(pick("GET", "HEAD"), "/_ping", "")
	case "version":
		return c("GET", "/version", "")
	case "df":
		return c("GET", "/system/df", "")
	case "events":
		return c("GET", "/events?since=1&until=2", "")
	case "swarm":
		return c(pick("GET", "POST"), pick("/services", "/nodes", "/secrets", "/tasks/x"), "")
	}
	return c("GET", pick("/plugins", "/plugins/nope/json"), "")
}

// callsAlike are differences that were looked at, by kind of call.
var callsAlike = map[string]string{
	"version": "keg lacks .BuildTime string, .Components[].Details.BuildTime string", // the same source makes the same binary
	"image":   "keg lacks .GraphDriver.Data.* string",                                // as Docker's with containerd's images
	"tag":     "status 500, keg 400",                                                 // a name that is none; newer Docker: 400
}

type answer struct {
	code  int
	body  string
	shape []string
}

func (c call) ask(t *testing.T, to *streamClient) (a answer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, c.method, "http://docker/v1.41"+strings.NewReplacer(`"`, "%22", "{", "%7B", "}", "%7D").Replace(c.path), strings.NewReader(c.body))
	if err != nil {
		t.Fatal(err)
	}
	if c.body != "" {
		q.Header.Set("Content-Type", "application/json")
	}
	r, err := to.Do(q)
	if err != nil {
		t.Fatal(to.sock, c, err)
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(r.Body)
	a.code, a.body = r.StatusCode, string(b)
	var v any
	if json.Unmarshal(b, &v) == nil {
		shapeOf("", v, &a.shape)
		slices.Sort(a.shape)
		a.shape = slices.Compact(a.shape)
	}
	return a
}

// shapeOf lists the fields of a value with their types; the keys of maps that users fill are not fields.
func shapeOf(at string, v any, out *[]string) {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			switch at {
			case ".Labels", ".Config.Labels", ".NetworkSettings.Networks", ".Containers", ".Options", ".GraphDriver.Data":
				k = "*"
			}
			shapeOf(at+"."+k, x, out)
		}
	case []any:
		for _, x := range v {
			shapeOf(at+"[]", x, out)
		}
	case nil: // Docker sends null and nothing for one another
	default:
		*out = append(*out, fmt.Sprintf("%s %T", at, v))
	}
}

// differs tells what is not the same, "" when nothing is.
func (a answer) differs(b answer) string {
	if a.code != b.code {
		return fmt.Sprintf("status %d, keg %d", a.code, b.code)
	}
	var missing []string
	for _, f := range a.shape {
		if !slices.Contains(b.shape, f) {
			missing = append(missing, f)
		}
	}
	if len(missing) > 0 {
		return "keg lacks " + strings.Join(missing, ", ")
	}
	return ""
}
