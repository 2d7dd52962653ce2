package engine

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	ctr "keg/internal/container"
	"keg/internal/fault"
	vol "keg/internal/volume"
)

func TestParseBind(t *testing.T) {
	for _, c := range []struct {
		spec string
		want container.MountPoint
	}{
		{"/host:/in", container.MountPoint{Type: "bind", Source: "/host", Destination: "/in", RW: true, Propagation: "rprivate"}},
		{"/host/./x:/in/:ro", container.MountPoint{Type: "bind", Source: "/host/x", Destination: "/in", Mode: "ro", Propagation: "rprivate"}},
		{"/host:/in:ro,rslave", container.MountPoint{Type: "bind", Source: "/host", Destination: "/in", Mode: "ro,rslave", Propagation: "rslave"}},
		{"data:/in", container.MountPoint{Type: "volume", Name: "data", Destination: "/in", Mode: "z", RW: true}},
		{"data:/in:ro", container.MountPoint{Type: "volume", Name: "data", Destination: "/in", Mode: "ro"}},
		{"/in", container.MountPoint{Type: "volume", Destination: "/in", Mode: "z", RW: true}},
		{"/in:ro", container.MountPoint{Type: "volume", Destination: "/in", Mode: "ro"}},
	} {
		got, err := parseBind(c.spec)
		if err != nil || got.MountPoint != c.want {
			t.Errorf("%s: got %+v, %v", c.spec, got.MountPoint, err)
		}
	}
	for spec, want := range map[string]string{
		"":               "invalid volume specification: ''",
		"a:b:c:d":        "invalid volume specification: 'a:b:c:d'",
		"/host:/in:rx":   "invalid mode: rx",
		"data:in":        `invalid volume specification: 'data:in': invalid mount config for type "volume": invalid mount path: 'in' mount path must be absolute`,
		"../x:/in":       `"../x" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path`,
		"/host:in:ro":    `invalid volume specification: '/host:in:ro': invalid mount config for type "bind": invalid mount path: 'in' mount path must be absolute`,
		"/host:/in:ro:z": "invalid volume specification: '/host:/in:ro:z'",
	} {
		if _, err := parseBind(spec); err == nil || err.Error() != want {
			t.Errorf("%s: got %v", spec, err)
		}
	}
}

func TestParseMount(t *testing.T) {
	for _, c := range []struct {
		m   mount.Mount
		err string
	}{
		{mount.Mount{Type: "bind", Source: "/a", Target: "/b"}, ""},
		{mount.Mount{Type: "bind", Target: "/b"}, `invalid mount config for type "bind": field Source must not be empty`},
		{mount.Mount{Type: "bind", Source: "a", Target: "/b"}, `invalid mount config for type "bind": invalid mount path: 'a' mount path must be absolute`},
		{mount.Mount{Type: "volume", Target: ""}, `invalid mount config for type "volume": field Target must not be empty`},
		{mount.Mount{Type: "volume", Target: "b"}, `invalid mount config for type "volume": invalid mount path: 'b' mount path must be absolute`},
		{mount.Mount{Type: "tmpfs", Source: "x", Target: "/b"}, `invalid mount config for type "tmpfs": field Source must not be specified`},
		{mount.Mount{Type: "magic", Target: "/b"}, `invalid mount config for type "magic": keg mounts bind, volume, tmpfs and image`},
	} {
		_, err := parseMount(c.m)
		if got := errText(err); got != c.err {
			t.Errorf("%+v: got %q", c.m, got)
		}
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestDestinationsThatConfineAreRefused(t *testing.T) {
	for dest, typ := range map[string]mount.Type{"/proc": "volume", "/proc/self/attr": "bind", "/sys": "volume", "/sys/fs": "tmpfs",
		"/x/../proc": "bind", "/": "bind", "relative": "volume"} {
		if err := checkDestination(container.MountPoint{Type: typ, Destination: dest}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s on %s: got %v", typ, dest, err)
		}
	}
	for dest, typ := range map[string]mount.Type{"/processes": "volume", "/sys/fs/cgroup": "bind", "/data": "volume"} {
		if err := checkDestination(container.MountPoint{Type: typ, Destination: dest}); err != nil {
			t.Errorf("%s on %s: %v", typ, dest, err)
		}
	}
}

func TestMountsOfAContainer(t *testing.T) {
	dir := t.TempDir()
	e := &Engine{volumes: vol.Open(dir), containers: ctr.Open(dir)}
	e.events = journal(dir)
	src := filepath.Join(dir, "made")
	r := &ctr.Record{ID: ctr.NewID(), Config: &container.Config{Volumes: map[string]struct{}{"/anon": {}, "/named": {}, "/tmp": {}}},
		Host: &container.HostConfig{Binds: []string{"data:/named", src + ":/bind:ro"}, Tmpfs: map[string]string{"/tmp": ""}}}
	var u undo
	mps, err := e.mounts(t.Context(), r, &u)
	if err != nil {
		t.Fatal(err)
	}
	if len(mps) != 3 || mps[0].Destination != "/anon" || len(mps[0].Name) != 64 || mps[1].Source != src || mps[1].RW || mps[2].Name != "data" {
		t.Fatalf("got %+v", mps)
	}
	if st, err := os.Stat(src); err != nil || !st.IsDir() {
		t.Errorf("-v did not make its source: %v", err)
	}
	failed := error(fault.Conflictf("x"))
	u.onError(&failed)
	if vs, err := e.volumes.List(); err != nil || len(vs) != 0 {
		t.Errorf("after a failure the volumes %v stay, %v", vs, err)
	}
	r.Host = &container.HostConfig{Mounts: []mount.Mount{{Type: "bind", Source: filepath.Join(dir, "missing"), Target: "/x"}}}
	if _, err := e.mounts(t.Context(), r, &u); errText(err) != `invalid mount config for type "bind": bind source path does not exist: `+filepath.Join(dir, "missing") {
		t.Errorf("got %v", err)
	}
}
