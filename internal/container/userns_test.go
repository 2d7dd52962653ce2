package container

import (
	"reflect"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestParseUserns(t *testing.T) {
	for mode, want := range map[string]Userns{
		"":                          {UID: -1, GID: -1},
		"host":                      {UID: -1, GID: -1},
		"auto":                      {Auto: true, UID: -1, GID: -1},
		"auto:size=1000":            {Auto: true, Size: 1000, UID: -1, GID: -1},
		"keep-id":                   {KeepID: true, UID: -1, GID: -1},
		"keep-id:uid=1000,gid=1001": {KeepID: true, UID: 1000, GID: 1001},
	} {
		got, err := ParseUserns(mode)
		if err != nil || got != want {
			t.Errorf("%q: %+v %v", mode, got, err)
		}
	}
	for _, mode := range []string{"x", "auto:", "auto:size=0", "auto:size=99999999999", "auto:uid=1", "keep-id:size=4", "keep-id:uid=", "host:x", "container:a"} {
		if _, err := ParseUserns(mode); err == nil {
			t.Errorf("%q is taken", mode)
		}
	}
}

func TestSwapIDs(t *testing.T) {
	for _, c := range []struct {
		inside, outer, size uint32
		want                []specs.LinuxIDMapping
	}{
		{0, 0, 10, []specs.LinuxIDMapping{{Size: 10}}},
		{4, 0, 10, []specs.LinuxIDMapping{{ContainerID: 0, HostID: 4, Size: 1}, {ContainerID: 1, HostID: 1, Size: 3}, {ContainerID: 4, HostID: 0, Size: 1}, {ContainerID: 5, HostID: 5, Size: 5}}},
		{40, 0, 10, []specs.LinuxIDMapping{{ContainerID: 0, HostID: 9, Size: 1}, {ContainerID: 1, HostID: 1, Size: 8}, {ContainerID: 40, HostID: 0, Size: 1}}},
		{40, 0, 1, []specs.LinuxIDMapping{{ContainerID: 40, HostID: 0, Size: 1}}},
	} {
		if got := SwapIDs(c.inside, c.outer, c.size); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%+v: %+v", c, got)
		}
	}
}

func FuzzSwapIDs(f *testing.F) {
	f.Add(uint32(1000), uint32(100))
	f.Fuzz(func(t *testing.T, inside, size uint32) {
		if size == 0 {
			return
		}
		in, out := map[uint32]bool{}, map[uint32]bool{}
		for _, m := range SwapIDs(inside, 0, size) {
			if m.Size == 0 || in[m.ContainerID] || out[m.HostID] || m.HostID+m.Size > size {
				t.Fatalf("%d of %d: %+v", inside, size, m)
			}
			in[m.ContainerID], out[m.HostID] = true, true
		}
		if !in[inside] || !out[0] {
			t.Fatalf("%d of %d: the caller is not inside", inside, size)
		}
	})
}
