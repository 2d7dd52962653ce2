package container

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	cdi "tags.cncf.io/container-device-interface/specs-go"
)

var update = flag.Bool("update", false, "rewrite the golden specs")

func pointer[T any](v T) *T { return &v }

const specID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func fakeDevices(p string) ([]specs.LinuxDevice, error) {
	if p == "/dev/fuse" {
		return []specs.LinuxDevice{{Path: p, Type: "c", Major: 10, Minor: 229}}, nil
	}
	if p == "/dev/snd" {
		return []specs.LinuxDevice{{Path: "/dev/snd/seq", Type: "c", Major: 116, Minor: 1}}, nil
	}
	return nil, errors.New("no such file or directory")
}

// TestSpecGolden: what a person asks for, as the whole spec. Read the difference before -update.
func TestSpecGolden(t *testing.T) {
	files := SpecOptions{Hosts: "/c/hosts", Resolv: "/c/resolv.conf", Hostname: "/c/hostname", Devices: fakeDevices}
	for name, c := range map[string]struct {
		config container.Config
		host   container.HostConfig
		mounts []container.MountPoint
		opts   SpecOptions
	}{
		"default": {config: container.Config{Cmd: []string{"sh"}}, opts: files},
		"user": {
			config: container.Config{Entrypoint: []string{"/entry"}, Cmd: []string{"a", "b"}, Env: []string{"PATH=/x", "A=1", "B=2", "A=3"},
				WorkingDir: "/srv", User: "www", Hostname: "web", Tty: true},
			host: container.HostConfig{ConsoleSize: [2]uint{24, 80}},
			opts: SpecOptions{UID: 33, GID: 34, AdditionalGids: []uint32{5, 6}, Home: "/var/www"},
		},
		"limits": {
			config: container.Config{Cmd: []string{"sh"}},
			host: container.HostConfig{OomScoreAdj: 500, Resources: container.Resources{Memory: 64 << 20, NanoCPUs: 1_500_000_000, CPUShares: 512,
				CpusetCpus: "0-1", PidsLimit: pointer(int64(100)), BlkioWeight: 300,
				Ulimits: []*units.Ulimit{{Name: "nofile", Soft: 1024, Hard: 2048}, {Name: "core", Soft: -1, Hard: -1}}}},
		},
		"mounts": {
			config: container.Config{Cmd: []string{"sh"}},
			host: container.HostConfig{ReadonlyRootfs: true, ShmSize: 1 << 20, Tmpfs: map[string]string{"/run": "size=1m,exec", "/tmp": ""},
				Mounts: []mount.Mount{{Type: mount.TypeTmpfs, Target: "/cache", TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 4096, Mode: 0o1777}},
					{Type: mount.TypeBind, Target: "/flat", BindOptions: &mount.BindOptions{NonRecursive: true}}}},
			mounts: []container.MountPoint{
				{Type: mount.TypeVolume, Name: "data", Source: "/v/data/_data", Destination: "/var/lib/data", RW: true},
				{Type: mount.TypeBind, Source: "/src", Destination: "/var/lib/", RW: false, Propagation: "rslave"},
				{Type: mount.TypeBind, Source: "/h", Destination: "/etc/hosts", RW: true},
				{Type: mount.TypeBind, Source: "/f", Destination: "/flat"},
				{Type: mount.TypeTmpfs, Destination: "/cache"}},
			opts: files,
		},
		"privileged": {
			config: container.Config{Cmd: []string{"sh"}},
			host:   container.HostConfig{Privileged: true},
			opts:   SpecOptions{HostDevices: []specs.LinuxDevice{{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232}}},
		},
		"host-modes": {
			config: container.Config{Cmd: []string{"sh"}},
			host:   container.HostConfig{NetworkMode: "host", PidMode: "host", IpcMode: "host", UTSMode: "host", CgroupnsMode: "host"},
		},
		"joined": {
			config: container.Config{Cmd: []string{"sh"}},
			host:   container.HostConfig{NetworkMode: "container:x", PidMode: "container:x", IpcMode: "container:x"},
			opts:   SpecOptions{NetNS: "/proc/7/ns/net", PidNS: "/proc/7/ns/pid", IpcNS: "/proc/7/ns/ipc", ShmPath: "/proc/7/root/dev/shm"},
		},
		"security": {
			config: container.Config{Cmd: []string{"sh"}},
			host: container.HostConfig{CapDrop: []string{"ALL"}, CapAdd: []string{"net_bind_service", "CAP_CHOWN"},
				SecurityOpt: []string{"no-new-privileges", "apparmor=web"}, MaskedPaths: []string{}, ReadonlyPaths: []string{"/proc/sys"},
				Sysctls: map[string]string{"net.core.somaxconn": "1024", "kernel.shmmax": "1"}, Annotations: map[string]string{"a": "b"},
				Resources: container.Resources{Devices: []container.DeviceMapping{{PathOnHost: "/dev/fuse", PathInContainer: "/dev/fuse", CgroupPermissions: "r"},
					{PathOnHost: "/dev/snd", PathInContainer: "/dev/sound"}}, DeviceCgroupRules: []string{"c 10:* rw"}}},
			opts: SpecOptions{Devices: fakeDevices, Masked: []string{"/sys/extra"}},
		},
		"strict": {
			config: container.Config{Cmd: []string{"sh"}},
			host:   container.HostConfig{SecurityOpt: []string{"cap-profile=strict"}},
			opts:   SpecOptions{AppArmor: "keg-default", TimeNS: true},
		},
		// Not tested beyond this: no kernel with SELinux is at hand.
		"selinux": {
			config: container.Config{Cmd: []string{"sh"}},
			host:   container.HostConfig{SecurityOpt: []string{"label=type:web_t", "label=level:s0:c100,c200", "label:user:staff_u"}},
		},
		// Not tested beyond this: no such device is at hand.
		"gpus": {
			config: container.Config{Cmd: []string{"sh"}, Env: []string{"NVIDIA_VISIBLE_DEVICES=void"}},
			host:   container.HostConfig{Resources: container.Resources{DeviceRequests: []container.DeviceRequest{{Count: -1, Capabilities: [][]string{{"gpu"}}}}}},
			opts: SpecOptions{Devices: fakeDevices, CDI: []cdi.ContainerEdits{
				{Env: []string{"NVIDIA_VISIBLE_DEVICES=all"}, Hooks: []*cdi.Hook{{HookName: "createContainer", Path: "/usr/bin/nvidia-cdi-hook", Args: []string{"nvidia-cdi-hook", "update-ldcache"}}},
					Mounts: []*cdi.Mount{{HostPath: "/usr/lib/libcuda.so.1", ContainerPath: "/usr/lib/libcuda.so.1", Options: []string{"ro", "nosuid", "nodev"}}}},
				{DeviceNodes: []*cdi.DeviceNode{{Path: "/dev/nvidia0", Type: "c", Major: 195, Minor: 0, Permissions: "rw"}, {Path: "/dev/fuse"}}, AdditionalGIDs: []uint32{44}}}},
		},
		"init": {config: container.Config{Cmd: []string{"sh"}}, opts: SpecOptions{InitPath: "/usr/bin/tini"}},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Spec(&Record{ID: specID, Config: &c.config, Host: &c.host, Mounts: c.mounts}, c.opts)
			if err != nil {
				t.Fatal(err)
			}
			got, _ := json.MarshalIndent(s, "", "  ")
			file := filepath.Join("testdata", "spec", name+".json")
			if *update {
				os.MkdirAll(filepath.Dir(file), 0o755)
				if err := os.WriteFile(file, append(got, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil || strings.TrimSpace(string(want)) != string(got) {
				t.Errorf("%s differs (%v); got:\n%s", file, err, got)
			}
		})
	}
}

func TestSpecRefuses(t *testing.T) {
	vol := func(dst string) []container.MountPoint {
		return []container.MountPoint{{Type: mount.TypeVolume, Source: "/v", Destination: dst}}
	}
	for name, c := range map[string]struct {
		host   container.HostConfig
		mounts []container.MountPoint
		want   string
	}{
		"volume on /proc":      {mounts: vol("/proc"), want: "inside /proc"},
		"volume below /proc":   {mounts: vol("/proc/self/.."), want: "inside /proc"},
		"volume below /sys":    {mounts: vol("/sys/fs"), want: "inside /sys"},
		"dotted way to /proc":  {mounts: vol("/a/../proc/x"), want: "inside /proc"},
		"volume on /":          {mounts: vol("/"), want: "can't be '/'"},
		"relative":             {mounts: vol("x"), want: "absolute"},
		"tmpfs on /proc":       {host: container.HostConfig{Tmpfs: map[string]string{"/proc/x": ""}}, want: "inside /proc"},
		"sysctl of the host":   {host: container.HostConfig{Sysctls: map[string]string{"kernel.core_pattern": "|x"}}, want: "not in a separate kernel namespace"},
		"sysctl smuggled":      {host: container.HostConfig{Sysctls: map[string]string{"net.a=1+kernel.core_pattern": "x"}}, want: "characters"},
		"sysctl up and out":    {host: container.HostConfig{Sysctls: map[string]string{"net/../kernel/core_pattern": "x"}}, want: "not valid"},
		"net sysctl on host":   {host: container.HostConfig{NetworkMode: "host", Sysctls: map[string]string{"net.x": "1"}}, want: "host network"},
		"unknown capability":   {host: container.HostConfig{CapAdd: []string{"FLY"}}, want: `invalid CapAdd: unknown capability: "CAP_FLY"`},
		"unknown profile":      {host: container.HostConfig{SecurityOpt: []string{"cap-profile=loose"}}, want: "unknown capability profile"},
		"label without value":  {host: container.HostConfig{SecurityOpt: []string{"label=type:"}}, want: "invalid --security-opt"},
		"label with a field":   {host: container.HostConfig{SecurityOpt: []string{"label=type:a:s0:c1"}}, want: "invalid --security-opt"},
		"label of no kind":     {host: container.HostConfig{SecurityOpt: []string{"label=colour:red"}}, want: "invalid --security-opt"},
		"unknown option":       {host: container.HostConfig{SecurityOpt: []string{"sandbox=off"}}, want: "invalid --security-opt"},
		"no-new-privileges=no": {host: container.HostConfig{SecurityOpt: []string{"no-new-privileges=no"}}, want: "invalid --security-opt"},
		"cgroups writable":     {host: container.HostConfig{SecurityOpt: []string{"writable-cgroups"}}, want: "needs cgroup version 2"},
		"cgroups neither":      {host: container.HostConfig{SecurityOpt: []string{"writable-cgroups=potato"}}, want: "invalid --security-opt"},
		"unknown propagation":  {mounts: []container.MountPoint{{Source: "/v", Destination: "/x", Propagation: "up"}}, want: "propagation"},
		"device":               {host: container.HostConfig{Resources: container.Resources{Devices: []container.DeviceMapping{{PathOnHost: "/nope"}}}}, want: "error gathering device information"},
		"device rule":          {host: container.HostConfig{Resources: container.Resources{DeviceCgroupRules: []string{"c 1:2 rwx"}}}, want: "invalid device cgroup rule"},
		"cpus twice":           {host: container.HostConfig{Resources: container.Resources{NanoCPUs: 1, CPUQuota: 1}}, want: "Conflicting options"},
	} {
		_, err := Spec(&Record{ID: specID, Config: &container.Config{Cmd: []string{"sh"}}, Host: &c.host, Mounts: c.mounts}, SpecOptions{Devices: fakeDevices})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Spec(&Record{ID: specID, Config: &container.Config{}, Host: &container.HostConfig{}}, SpecOptions{}); err == nil {
		t.Error("no command was accepted")
	}
	if _, err := Spec(newRecord("x"), SpecOptions{Home: "/a\nroot2::0:0"}); err == nil {
		t.Error("a newline in HOME was accepted")
	}
}

// The positive twins: what looks alike and must go on working.
func TestSpecAllows(t *testing.T) {
	r := newRecord("x")
	r.Mounts = []container.MountPoint{{Type: mount.TypeBind, Source: "/proc", Destination: "/host/proc"},
		{Type: mount.TypeBind, Source: "/sys", Destination: "/sys"}, {Type: mount.TypeBind, Source: "/l", Destination: "/proc/meminfo"},
		{Type: mount.TypeVolume, Source: "/v", Destination: "/processed"}}
	r.Host.Sysctls = map[string]string{"net.ipv4.conf.eth0.forwarding": "1"}
	if _, err := Spec(r, SpecOptions{}); err != nil {
		t.Error(err)
	}
}

// TestWritableCgroups: only below its own cgroup, and only where no release_agent is.
func TestWritableCgroups(t *testing.T) {
	for opt, want := range map[string]string{"writable-cgroups": "rw", "writable-cgroups=true": "rw", "writable-cgroups=false": "ro", "no-new-privileges": "ro"} {
		r := newRecord("x")
		r.Host.SecurityOpt = []string{opt}
		s, err := Spec(r, SpecOptions{CgroupV2: true})
		if err != nil {
			t.Errorf("%s: %v", opt, err)
			continue
		}
		for _, m := range s.Mounts {
			if m.Destination == "/sys/fs/cgroup" && m.Options[0] != want || m.Destination == "/sys" && m.Options[3] != "ro" {
				t.Errorf("%s: %s is %v", opt, m.Destination, m.Options)
			}
		}
	}
	r := newRecord("x")
	r.Host.SecurityOpt, r.Host.CgroupnsMode = []string{"writable-cgroups"}, "host"
	if _, err := Spec(r, SpecOptions{CgroupV2: true}); err == nil {
		t.Error("the host's cgroups became writable")
	}
}

func TestCapabilitySets(t *testing.T) {
	for _, c := range []struct {
		add, drop []string
		n         int
		has, not  string
		profile   string
	}{
		{profile: "strict", n: 11, has: "CAP_SYS_CHROOT", not: "CAP_MKNOD"},
		{profile: "strict", n: 11, not: "CAP_NET_RAW"},
		{profile: "strict", n: 11, not: "CAP_AUDIT_WRITE"},
		{profile: "strict", add: []string{"NET_RAW"}, drop: []string{"KILL"}, n: 11, has: "CAP_NET_RAW", not: "CAP_KILL"},
		{profile: "strict", add: []string{"ALL"}, n: 41, has: "CAP_MKNOD"},
		{profile: "docker", n: 14, has: "CAP_MKNOD"},
		{n: 14, has: "CAP_CHOWN", not: "CAP_SYS_ADMIN"},
		{drop: []string{"ALL"}, n: 0},
		{drop: []string{"all"}, add: []string{"kill"}, n: 1, has: "CAP_KILL"},
		{add: []string{"ALL"}, n: 41, has: "CAP_SYS_ADMIN"},
		{add: []string{"ALL"}, drop: []string{"MKNOD"}, n: 40, not: "CAP_MKNOD"},
		{add: []string{"SYS_PTRACE"}, drop: []string{"CAP_NET_RAW"}, n: 14, has: "CAP_SYS_PTRACE", not: "CAP_NET_RAW"},
	} {
		got, err := capabilities(&container.HostConfig{CapAdd: c.add, CapDrop: c.drop, SecurityOpt: profileOption(c.profile)})
		if err != nil || len(got) != c.n || c.has != "" && !slices.Contains(got, c.has) || slices.Contains(got, c.not) {
			t.Errorf("+%v -%v = %d %v, %v", c.add, c.drop, len(got), got, err)
		}
	}
}

func profileOption(name string) []string {
	if name == "" {
		return nil
	}
	return []string{"cap-profile=" + name}
}

func TestMergeEnv(t *testing.T) {
	got := MergeEnv([]string{"A=1", "B=2"}, []string{"B=3", "C=4", "A", "D"})
	if fmt.Sprint(got) != "[B=3 C=4]" {
		t.Error(got)
	}
	// What one container adds is no other's, though both start from one image's list (CVE-2020-14370).
	image := append(make([]string, 0, 16), "A=1", "B=2")
	one, two := MergeEnv(image, []string{"B=3", "ONE=1"}), MergeEnv(image, []string{"TWO=2"})
	if fmt.Sprint(one, two, image) != "[A=1 B=3 ONE=1] [A=1 B=2 TWO=2] [A=1 B=2]" {
		t.Error(one, two, image)
	}
}

func TestCDIDevices(t *testing.T) {
	gpu := [][]string{{"gpu"}}
	for _, c := range []struct {
		asked container.DeviceRequest
		want  string
	}{
		{container.DeviceRequest{Count: -1, Capabilities: gpu}, "[nvidia.com/gpu=all]"},
		{container.DeviceRequest{Count: 2, Capabilities: gpu}, "[nvidia.com/gpu=0 nvidia.com/gpu=1]"},
		{container.DeviceRequest{DeviceIDs: []string{"GPU-1"}, Capabilities: [][]string{{"compute", "gpu"}}}, "[nvidia.com/gpu=GPU-1]"},
		{container.DeviceRequest{Driver: "cdi", DeviceIDs: []string{"v.com/x=y"}}, "[v.com/x=y]"},
	} {
		got, err := CDIDevices(&container.HostConfig{Resources: container.Resources{DeviceRequests: []container.DeviceRequest{c.asked}}})
		if err != nil || fmt.Sprint(got) != c.want {
			t.Errorf("%+v: %v %v", c.asked, got, err)
		}
	}
	if _, err := CDIDevices(&container.HostConfig{Resources: container.Resources{DeviceRequests: []container.DeviceRequest{{Driver: "amd", Capabilities: gpu}}}}); err == nil {
		t.Error("an unknown driver was accepted")
	}
}
