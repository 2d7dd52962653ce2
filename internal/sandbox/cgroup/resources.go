package cgroup

// The limits of a spec, written by opencontainers/cgroups.

import (
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Set applies the limits of r, devices excepted; on a running group too. What the host has no
// controller for is returned as warnings.
func (g *Group) Set(r *specs.LinuxResources) (warnings []string, err error) {
	if r == nil {
		return nil, nil
	}
	res, err := convert(r, g.unified)
	if err != nil {
		return nil, err
	}
	if g.unified {
		return g.setV2(r, res)
	}
	for _, c := range v1Controllers {
		if !c.wanted(r) {
			continue
		}
		dir := g.dir(c.name)
		if dir == "" {
			warnings = append(warnings, noController(c.name))
			continue
		}
		if err := c.set.Set(dir, res); errors.Is(err, os.ErrNotExist) {
			warnings = append(warnings, fmt.Sprintf("this kernel's %s controller lacks a limit that was asked for: %s", c.name, reason(err)))
		} else if err != nil {
			return warnings, fmt.Errorf("limit %s: %w", c.name, err)
		}
	}
	return warnings, nil
}

func (g *Group) setV2(r *specs.LinuxResources, res *cgroups.Resources) (warnings []string, err error) {
	dir := g.v2()
	if dir == "" {
		return []string{"there is no cgroup: limits do not apply"}, nil
	}
	have, err := os.ReadFile(dir + "/cgroup.controllers")
	if err != nil {
		return nil, err
	}
	for _, c := range v1Controllers {
		if c.wanted(r) && !containsWord(string(have), c.v2) {
			warnings = append(warnings, noController(c.v2))
			c.drop(res)
		}
	}
	m, err := fs2.NewManager(&cgroups.Cgroup{Resources: &cgroups.Resources{}}, dir)
	if err != nil {
		return warnings, err
	}
	return warnings, m.Set(res)
}

func noController(name string) string {
	return fmt.Sprintf("the %s cgroup controller is not available: its limits are discarded", name)
}

type setter interface {
	Set(path string, r *cgroups.Resources) error
}

// controller says when one is needed, and how its part of the limits is left out.
type controller struct {
	name, v2 string
	set      setter
	wanted   func(*specs.LinuxResources) bool
	drop     func(*cgroups.Resources)
}

var v1Controllers = [...]controller{
	{"cpuset", "cpuset", &fs.CpusetGroup{},
		func(r *specs.LinuxResources) bool { return r.CPU != nil && r.CPU.Cpus+r.CPU.Mems != "" },
		func(r *cgroups.Resources) { r.CpusetCpus, r.CpusetMems = "", "" }},
	{"memory", "memory", &fs.MemoryGroup{},
		func(r *specs.LinuxResources) bool {
			m := r.Memory
			return m != nil && (value(m.Limit) != 0 || value(m.Reservation) != 0 || value(m.Swap) != 0 || m.Swappiness != nil || value(m.DisableOOMKiller))
		},
		func(r *cgroups.Resources) { r.Memory, r.MemorySwap, r.MemoryReservation = 0, 0, 0 }},
	{"cpu", "cpu", &fs.CpuGroup{},
		func(r *specs.LinuxResources) bool {
			c := r.CPU
			return c != nil && (value(c.Shares) != 0 || value(c.Quota) != 0 || value(c.Period) != 0 || value(c.RealtimePeriod) != 0 || value(c.RealtimeRuntime) != 0 || c.Burst != nil || c.Idle != nil)
		},
		func(r *cgroups.Resources) {
			r.CpuShares, r.CpuWeight, r.CpuQuota, r.CpuPeriod, r.CpuBurst, r.CPUIdle = 0, 0, 0, 0, nil, nil
		}},
	{"pids", "pids", &fs.PidsGroup{},
		func(r *specs.LinuxResources) bool { return r.Pids != nil && r.Pids.Limit != nil && *r.Pids.Limit != 0 },
		func(r *cgroups.Resources) { r.PidsLimit = nil }},
	{"blkio", "io", &fs.BlkioGroup{},
		func(r *specs.LinuxResources) bool {
			b := r.BlockIO
			return b != nil && (value(b.Weight) != 0 || value(b.LeafWeight) != 0 || len(b.WeightDevice)+len(b.ThrottleReadBpsDevice)+
				len(b.ThrottleWriteBpsDevice)+len(b.ThrottleReadIOPSDevice)+len(b.ThrottleWriteIOPSDevice) > 0)
		},
		func(r *cgroups.Resources) {
			r.BlkioWeight, r.BlkioLeafWeight, r.BlkioWeightDevice = 0, 0, nil
			r.BlkioThrottleReadBpsDevice, r.BlkioThrottleWriteBpsDevice = nil, nil
			r.BlkioThrottleReadIOPSDevice, r.BlkioThrottleWriteIOPSDevice = nil, nil
		}},
	{"hugetlb", "hugetlb", &fs.HugetlbGroup{},
		func(r *specs.LinuxResources) bool { return len(r.HugepageLimits) > 0 },
		func(r *cgroups.Resources) { r.HugetlbLimit = nil }},
}

// convert says a spec's limits in the library's words.
func convert(r *specs.LinuxResources, v2 bool) (*cgroups.Resources, error) {
	out := &cgroups.Resources{SkipDevices: true}
	if m := r.Memory; m != nil {
		out.Memory, out.MemoryReservation, out.MemorySwap = value(m.Limit), value(m.Reservation), value(m.Swap)
		out.MemorySwappiness = m.Swappiness
		out.OomKillDisable = m.DisableOOMKiller != nil && *m.DisableOOMKiller
	}
	if c := r.CPU; c != nil {
		out.CpuShares, out.CpuQuota, out.CpuPeriod = value(c.Shares), value(c.Quota), value(c.Period)
		out.CpuRtRuntime, out.CpuRtPeriod = value(c.RealtimeRuntime), value(c.RealtimePeriod)
		out.CpuBurst, out.CPUIdle = c.Burst, c.Idle
		out.CpusetCpus, out.CpusetMems = c.Cpus, c.Mems
	}
	if r.Pids != nil && r.Pids.Limit != nil && *r.Pids.Limit != 0 {
		out.PidsLimit = r.Pids.Limit
	}
	if b := r.BlockIO; b != nil {
		out.BlkioWeight, out.BlkioLeafWeight = value(b.Weight), value(b.LeafWeight)
		for _, w := range b.WeightDevice {
			out.BlkioWeightDevice = append(out.BlkioWeightDevice, cgroups.NewWeightDevice(w.Major, w.Minor, value(w.Weight), value(w.LeafWeight)))
		}
		out.BlkioThrottleReadBpsDevice = throttles(b.ThrottleReadBpsDevice)
		out.BlkioThrottleWriteBpsDevice = throttles(b.ThrottleWriteBpsDevice)
		out.BlkioThrottleReadIOPSDevice = throttles(b.ThrottleReadIOPSDevice)
		out.BlkioThrottleWriteIOPSDevice = throttles(b.ThrottleWriteIOPSDevice)
	}
	for _, h := range r.HugepageLimits {
		out.HugetlbLimit = append(out.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: h.Pagesize, Limit: h.Limit})
	}
	if v2 {
		out.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(out.CpuShares)
		out.Unified = r.Unified
	}
	return out, nil
}

func throttles(ts []specs.LinuxThrottleDevice) (out []*cgroups.ThrottleDevice) {
	for _, t := range ts {
		out = append(out, cgroups.NewThrottleDevice(t.Major, t.Minor, t.Rate))
	}
	return out
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
