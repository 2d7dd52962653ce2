package container

// --gpus and --device vendor.com/class=name: devices that the host describes (Container Device Interface,
// github.com/cncf-tags/container-device-interface/SPEC.md). Applied here, found by whoever makes the spec.

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	cdi "tags.cncf.io/container-device-interface/specs-go"

	"keg/internal/fault"
)

// gpuKind is what --gpus means: the only vendor that Docker's flag knows.
const gpuKind = "nvidia.com/gpu"

const maxGPUs = 1024

// CDIDevices are the qualified names of the devices that a host configuration asks for.
func CDIDevices(h *container.HostConfig) (names []string, err error) {
	for _, r := range h.DeviceRequests {
		gpu := slices.ContainsFunc(r.Capabilities, func(and []string) bool { return slices.Contains(and, "gpu") })
		switch {
		case r.Driver == "cdi":
			names = append(names, r.DeviceIDs...)
		case !gpu || r.Driver != "" && r.Driver != "nvidia":
			return nil, fault.Invalidf("could not select device driver %q with capabilities: %v", r.Driver, r.Capabilities)
		case len(r.DeviceIDs) > 0:
			for _, id := range r.DeviceIDs {
				names = append(names, gpuKind+"="+id)
			}
		case r.Count > maxGPUs:
			return nil, fault.Invalidf("%d GPUs: at most %d can be asked for by number", r.Count, maxGPUs)
		case r.Count < 0:
			names = append(names, gpuKind+"=all")
		default:
			for i := range r.Count {
				names = append(names, gpuKind+"="+strconv.Itoa(i))
			}
		}
	}
	return names, nil
}

// edit applies what a device asks for, in the interface's order.
func edit(s *specs.Spec, e *cdi.ContainerEdits, o SpecOptions) error {
	if slices.Contains(e.DeviceNodes, nil) || slices.Contains(e.Mounts, nil) || slices.Contains(e.Hooks, nil) {
		return fault.Invalidf("a device's description has a null among its devices, mounts or hooks")
	}
	s.Process.Env = MergeEnv(s.Process.Env, e.Env)
	for _, d := range e.DeviceNodes {
		if err := editDevice(s, d, o); err != nil {
			return err
		}
	}
	for _, m := range e.Mounts {
		if err := editMount(s, m); err != nil {
			return err
		}
	}
	for _, h := range e.Hooks {
		if err := editHook(s, h); err != nil {
			return err
		}
	}
	for _, gid := range e.AdditionalGIDs {
		if gid != 0 && !slices.Contains(s.Process.User.AdditionalGids, gid) {
			s.Process.User.AdditionalGids = append(s.Process.User.AdditionalGids, gid)
		}
	}
	return nil
}

func editDevice(s *specs.Spec, d *cdi.DeviceNode, o SpecOptions) error {
	n := specs.LinuxDevice{Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor, FileMode: d.FileMode, UID: d.UID, GID: d.GID}
	if n.Type == "" || n.Major == 0 && n.Type != "p" {
		host := d.HostPath
		if host == "" {
			host = d.Path
		}
		found, err := oneDevice(host, o)
		if err != nil {
			return err
		}
		n.Type, n.Major, n.Minor = found.Type, found.Major, found.Minor
		if n.FileMode == nil {
			n.FileMode = found.FileMode
		}
	}
	s.Linux.Devices = append(s.Linux.Devices, n)
	if n.Type == "c" || n.Type == "b" {
		r := allow(n.Type, n.Major, n.Minor)
		if r.Access = d.Permissions; r.Access == "" {
			r.Access = "rwm"
		}
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, r)
	}
	return nil
}

func editMount(s *specs.Spec, m *cdi.Mount) error {
	dst := path.Clean(m.ContainerPath)
	kind := m.Type
	if kind == "" {
		kind = "bind"
	}
	if !path.IsAbs(dst) || within(dst, "/proc") || dst == "/" {
		return fault.Invalidf("a device's description mounts %s on %q, which is not allowed", m.HostPath, m.ContainerPath)
	}
	opts := m.Options
	if kind == "bind" && !slices.Contains(opts, "bind") && !slices.Contains(opts, "rbind") {
		opts = append([]string{"rbind"}, opts...)
	}
	s.Mounts = append(s.Mounts, specs.Mount{Destination: dst, Source: m.HostPath, Type: kind, Options: opts})
	return nil
}

func editHook(s *specs.Spec, h *cdi.Hook) error {
	if s.Hooks == nil {
		s.Hooks = &specs.Hooks{}
	}
	x := specs.Hook{Path: h.Path, Args: h.Args, Env: h.Env, Timeout: h.Timeout}
	switch strings.ToLower(h.HookName) {
	case "prestart":
		//lint:ignore SA1019 still asked for
		s.Hooks.Prestart = append(s.Hooks.Prestart, x)
	case "createruntime":
		s.Hooks.CreateRuntime = append(s.Hooks.CreateRuntime, x)
	case "createcontainer":
		s.Hooks.CreateContainer = append(s.Hooks.CreateContainer, x)
	case "startcontainer":
		s.Hooks.StartContainer = append(s.Hooks.StartContainer, x)
	case "poststart":
		s.Hooks.Poststart = append(s.Hooks.Poststart, x)
	case "poststop":
		s.Hooks.Poststop = append(s.Hooks.Poststop, x)
	default:
		return fault.Invalidf("a device's description has the unknown hook %q", h.HookName)
	}
	return nil
}
