package container

// Limits and devices of a spec.

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"keg/internal/fault"
)

// DefaultPids is the limit of processes without --pids-limit (security.md DS2).
const DefaultPids = 4096

func resources(r *Record, o SpecOptions, l *specs.Linux) error {
	res, err := Resources(&r.Host.Resources)
	if err != nil {
		return err
	}
	l.Resources = res
	if err := blockIO(&r.Host.Resources, o, res); err != nil {
		return err
	}
	return devices(r.Host, o, l)
}

// Resources turns Docker's limits into OCI's; it is also what docker update needs.
func Resources(h *container.Resources) (*specs.LinuxResources, error) {
	res := &specs.LinuxResources{Memory: memory(h), Pids: pids(h)}
	cpu, err := cpu(h)
	res.CPU = cpu
	if h.BlkioWeight != 0 {
		res.BlockIO = &specs.LinuxBlockIO{Weight: &h.BlkioWeight}
	}
	return res, err
}

func pids(h *container.Resources) *specs.LinuxPids {
	n := int64(DefaultPids)
	if h.PidsLimit != nil {
		if n = *h.PidsLimit; n <= 0 {
			n = -1
		}
	}
	return &specs.LinuxPids{Limit: &n}
}

// memory: without a swap limit Docker allows as much swap as memory.
func memory(h *container.Resources) *specs.LinuxMemory {
	m := &specs.LinuxMemory{}
	set := false
	put := func(dst **int64, v int64) {
		if v != 0 {
			*dst, set = &v, true
		}
	}
	swap := h.MemorySwap
	if h.Memory > 0 && swap == 0 {
		swap = 2 * h.Memory
	}
	put(&m.Limit, h.Memory)
	put(&m.Reservation, h.MemoryReservation)
	put(&m.Swap, swap)
	if h.MemorySwappiness != nil && *h.MemorySwappiness >= 0 {
		v := uint64(*h.MemorySwappiness)
		m.Swappiness, set = &v, true
	}
	if h.OomKillDisable != nil && *h.OomKillDisable {
		m.DisableOOMKiller, set = h.OomKillDisable, true
	}
	if !set {
		return nil
	}
	return m
}

func cpu(h *container.Resources) (*specs.LinuxCPU, error) {
	c := &specs.LinuxCPU{Cpus: h.CpusetCpus, Mems: h.CpusetMems}
	if h.CPUShares != 0 {
		v := uint64(h.CPUShares)
		c.Shares = &v
	}
	if h.NanoCPUs != 0 {
		if h.CPUQuota != 0 || h.CPUPeriod != 0 {
			return nil, fault.Invalidf("Conflicting options: Nano CPUs and CPU Period cannot both be set.")
		}
		period := uint64(100_000)
		quota := h.NanoCPUs * int64(period) / 1e9
		c.Period, c.Quota = &period, &quota
	}
	if h.CPUPeriod != 0 {
		v := uint64(h.CPUPeriod)
		c.Period = &v
	}
	if h.CPUQuota != 0 {
		v := h.CPUQuota
		c.Quota = &v
	}
	if h.CPURealtimePeriod != 0 {
		v := uint64(h.CPURealtimePeriod)
		c.RealtimePeriod = &v
	}
	if h.CPURealtimeRuntime != 0 {
		v := h.CPURealtimeRuntime
		c.RealtimeRuntime = &v
	}
	if *c == (specs.LinuxCPU{}) {
		return nil, nil
	}
	return c, nil
}

func blockIO(h *container.Resources, o SpecOptions, res *specs.LinuxResources) error {
	b := &specs.LinuxBlockIO{}
	if h.BlkioWeight != 0 {
		w := h.BlkioWeight
		b.Weight = &w
	}
	for _, d := range h.BlkioWeightDevice {
		dev, err := oneDevice(d.Path, o)
		if err != nil {
			return err
		}
		w := specs.LinuxWeightDevice{Weight: &d.Weight}
		w.Major, w.Minor = dev.Major, dev.Minor
		b.WeightDevice = append(b.WeightDevice, w)
	}
	for _, t := range []struct {
		in  []*blkiodev.ThrottleDevice
		out *[]specs.LinuxThrottleDevice
	}{{h.BlkioDeviceReadBps, &b.ThrottleReadBpsDevice}, {h.BlkioDeviceWriteBps, &b.ThrottleWriteBpsDevice},
		{h.BlkioDeviceReadIOps, &b.ThrottleReadIOPSDevice}, {h.BlkioDeviceWriteIOps, &b.ThrottleWriteIOPSDevice}} {
		for _, d := range t.in {
			dev, err := oneDevice(d.Path, o)
			if err != nil {
				return err
			}
			x := specs.LinuxThrottleDevice{Rate: d.Rate}
			x.Major, x.Minor = dev.Major, dev.Minor
			*t.out = append(*t.out, x)
		}
	}
	if b.Weight != nil || b.WeightDevice != nil || b.ThrottleReadBpsDevice != nil || b.ThrottleWriteBpsDevice != nil ||
		b.ThrottleReadIOPSDevice != nil || b.ThrottleWriteIOPSDevice != nil {
		res.BlockIO = b
	}
	return nil
}

func lookDevices(p string, o SpecOptions) ([]specs.LinuxDevice, error) {
	if o.Devices == nil {
		return nil, fault.Invalidf("error gathering device information while adding custom device %q: not looked up", p)
	}
	d, err := o.Devices(p)
	if err != nil {
		return nil, fault.As(fault.Invalid, fmt.Errorf("error gathering device information while adding custom device %q: %w", p, err))
	}
	return d, nil
}

func oneDevice(p string, o SpecOptions) (specs.LinuxDevice, error) {
	d, err := lookDevices(p, o)
	if err != nil {
		return specs.LinuxDevice{}, err
	}
	if len(d) != 1 {
		return specs.LinuxDevice{}, fault.Invalidf("%q is not a device", p)
	}
	return d[0], nil
}

// defaultDevices: making nodes is harmless without access, which starts with none.
func defaultDevices() []specs.LinuxDeviceCgroup {
	return []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		allow("c", 1, 3), allow("c", 1, 5), allow("c", 1, 7), allow("c", 1, 8), allow("c", 1, 9),
		allow("c", 5, 0), allow("c", 5, 1), allow("c", 5, 2), allow("c", 136, -1),
		allow("c", 10, 200), // tun: inert without a node, missed when forbidden
	}
}

func allow(t string, major, minor int64) specs.LinuxDeviceCgroup {
	d := specs.LinuxDeviceCgroup{Allow: true, Type: t, Access: "rwm"}
	if major >= 0 {
		d.Major = &major
	}
	if minor >= 0 {
		d.Minor = &minor
	}
	return d
}

func devices(h *container.HostConfig, o SpecOptions, l *specs.Linux) error {
	if h.Privileged {
		l.Devices = o.HostDevices
		l.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		return nil
	}
	rules := defaultDevices()
	if caps, err := capabilities(h); err == nil && slices.Contains(caps, "CAP_MKNOD") {
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Access: "m"},
			specs.LinuxDeviceCgroup{Allow: true, Type: "b", Access: "m"})
	}
	for _, d := range h.Devices {
		found, err := lookDevices(d.PathOnHost, o)
		if err != nil {
			return err
		}
		access := d.CgroupPermissions
		if access == "" {
			access = "rwm"
		}
		for _, f := range found {
			r := allow(f.Type, f.Major, f.Minor)
			r.Access = access
			rules = append(rules, r)
			f.Path = path.Join(d.PathInContainer, strings.TrimPrefix(f.Path, d.PathOnHost))
			l.Devices = append(l.Devices, f)
		}
	}
	for _, s := range h.DeviceCgroupRules {
		r, err := deviceRule(s)
		if err != nil {
			return err
		}
		rules = append(rules, r)
	}
	l.Resources.Devices = rules
	return nil
}

// deviceRule parses "c 10:200 rwm".
func deviceRule(s string) (specs.LinuxDeviceCgroup, error) {
	bad := fault.Invalidf("invalid device cgroup rule format: '%s'", s)
	f := strings.Fields(s)
	if len(f) != 3 || !strings.Contains("abc", f[0]) || len(f[0]) != 1 || strings.Trim(f[2], "rwm") != "" {
		return specs.LinuxDeviceCgroup{}, bad
	}
	ma, mi, ok := strings.Cut(f[1], ":")
	major, ok1 := deviceNumber(ma)
	minor, ok2 := deviceNumber(mi)
	if !ok || !ok1 || !ok2 {
		return specs.LinuxDeviceCgroup{}, bad
	}
	r := allow(f[0], major, minor)
	r.Access = f[2]
	return r, nil
}

func deviceNumber(s string) (int64, bool) {
	if s == "*" {
		return -1, true
	}
	n, err := strconv.ParseUint(s, 10, 32)
	return int64(n), err == nil
}
