package monitor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	dcontainer "github.com/moby/moby/api/types/container"
	cdi "tags.cncf.io/container-device-interface/specs-go"

	"keg/internal/container"
	"keg/internal/fault"
)

const gpus = `{"cdiVersion":"0.6.0","kind":"nvidia.com/gpu","containerEdits":{"env":["ALL=1"]},
"devices":[{"name":"0","containerEdits":{"env":["GPU=0"]}},{"name":"all","containerEdits":{"env":["GPU=all"]}}]}`

func TestLookCDI(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	os.WriteFile(filepath.Join(a, "gpu.json"), []byte(gpus), 0o644)
	os.WriteFile(filepath.Join(b, "net.yaml"), []byte("kind: vendor.com/net\n"), 0o644)
	dirs := []string{a, b, "/nowhere"}
	if e, err := lookCDI(dirs, nil); e != nil || err != nil {
		t.Error(e, err)
	}
	e, err := lookCDI(dirs, []string{"nvidia.com/gpu=all", "nvidia.com/gpu=0"})
	if err != nil || len(e) != 3 || e[0].Env[0] != "ALL=1" || e[1].Env[0] != "GPU=all" || e[2].Env[0] != "GPU=0" {
		t.Errorf("%+v %v", e, err)
	}
	// What lies in a later directory wins.
	os.WriteFile(filepath.Join(b, "gpu.json"), []byte(strings.ReplaceAll(gpus, "GPU=0", "GPU=newer")), 0o644)
	if e, err := lookCDI(dirs, []string{"nvidia.com/gpu=0"}); err != nil || e[1].Env[0] != "GPU=newer" {
		t.Errorf("%+v %v", e, err)
	}
	for _, name := range []string{"nvidia.com/gpu=7", "nvidia.com/gpu", "vendor.com/net=x", ""} {
		if _, err := lookCDI(dirs, []string{name}); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "net.yaml is YAML") {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, bad := range []string{"", "null", "[]", `{"kind":"x"}`, `{"cdiVersion":"0.6.0","kind":"gpu"}`, "{"} {
		os.WriteFile(filepath.Join(b, "bad.json"), []byte(bad), 0o644)
		if _, err := lookCDI(dirs, []string{"nvidia.com/gpu=0"}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "bad.json") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzDescription(f *testing.F) {
	f.Add([]byte(gpus))
	f.Add([]byte(`{"cdiVersion":"1","kind":"a/b","devices":[null,{"name":"x","containerEdits":{"deviceNodes":[null],"mounts":[null],"hooks":[null]}}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		file := filepath.Join(t.TempDir(), "x.json")
		os.WriteFile(file, body, 0o644)
		s, err := description(file)
		if err != nil {
			return
		}
		for i := range s.Devices {
			o := container.SpecOptions{CDI: []cdi.ContainerEdits{s.ContainerEdits, s.Devices[i].ContainerEdits}}
			r := &container.Record{ID: strings.Repeat("a", 64), Config: &dcontainer.Config{Cmd: []string{"x"}}, Host: &dcontainer.HostConfig{}}
			_, _ = container.Spec(r, o)
		}
	})
}
