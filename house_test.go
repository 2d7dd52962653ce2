package keg

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// Who may import whom (ARCHITECTURE.md "Rooms"). A room that is not listed may import
// only the open ones.
var (
	open  = []string{"fault", "disk", "linux", "image", "weakness"}
	rooms = map[string][]string{
		"fault": {}, "linux": {}, "weakness": {}, "disk": {"linux", "fault"}, "image": {"fault", "weakness"},
		"launch": {}, "dockerfile": {}, "volume": {}, "event": {}, "rootless": {}, "store": {}, "registry": {}, "container": {},
		"layer": {}, "mirror": {}, "network": {"rootless"}, "sandbox": {"sandbox/cgroup", "sandbox/seccomp"},
		"sandbox/cgroup": {}, "sandbox/seccomp": {},
		"delegate": {"sandbox", "sandbox/cgroup", "sandbox/seccomp"},
		"oci":      {"sandbox", "sandbox/cgroup"},
		"snapshot": {"layer"},
		"monitor":  {"launch", "rootless", "mirror", "container", "delegate", "sandbox", "sandbox/cgroup", "snapshot", "network", "volume", "event"},
		"builder":  {"dockerfile", "store", "layer", "snapshot"},
		"builtin":  {"store", "layer"},
		"engine": {"builder", "delegate", "monitor", "registry", "container", "layer", "snapshot", "store", "network",
			"volume", "sandbox", "sandbox/cgroup", "builtin", "event", "rootless"},
		"grpc": {}, "buildsession": {"grpc"}, "buildcontrol": {"grpc"},
		"api": {"grpc", "buildsession", "buildcontrol", "engine", "container", "network", "volume", "event", "builder", "monitor", "registry"},
		"cli": {"engine", "container", "network", "volume", "event", "builder", "monitor", "api",
			"registry", "sandbox", "oci", "builtin", "rootless", "launch"},
	}
	// What costs too much at every start (docs/decisions/0007).
	banned = []string{"google.golang.org/grpc", "github.com/prometheus/", "github.com/docker/cli/cli/command",
		"github.com/compose-spec/", "github.com/moby/buildkit/solver", "github.com/moby/buildkit/client",
		"github.com/distribution/reference", "github.com/aws/", "cloud.google.com/", "github.com/Azure/azure-sdk"}
)

type pkg struct {
	ImportPath string
	Doc        string
	Imports    []string
	Deps       []string
}

func list(t *testing.T, args ...string) (ps []pkg) {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list", "-json=ImportPath,Doc,Imports,Deps"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return ps
		} else if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
}

func TestRoomsImportOnlyWhatTheyMay(t *testing.T) {
	open := slices.Clone(open)
	for _, p := range list(t, "./internal/...") {
		room := strings.TrimPrefix(p.ImportPath, "keg/internal/")
		may, known := rooms[room]
		if !known {
			t.Errorf("room %s is not in the plan of the house", room)
		}
		if p.Doc == "" {
			t.Errorf("room %s has no doc comment that tells its place", room)
		}
		for _, imp := range p.Imports {
			other, ours := strings.CutPrefix(imp, "keg/internal/")
			if !ours || slices.Contains(may, other) {
				continue
			}
			if slices.Contains(open, room) || !slices.Contains(open, other) {
				t.Errorf("%s must not import %s", room, other)
			}
		}
	}
}

func TestBinaryIsLean(t *testing.T) {
	for _, p := range list(t, "./cmd/keg") {
		for _, dep := range p.Deps {
			for _, b := range banned {
				if strings.HasPrefix(dep, b) {
					t.Errorf("cmd/keg depends on %s", dep)
				}
			}
		}
	}
}
