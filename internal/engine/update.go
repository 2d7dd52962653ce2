package engine

import (
	"context"
	"errors"

	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"

	ctr "keg/internal/container"
	"keg/internal/fault"
)

// Update changes limits and restart policy of a container: at once when it runs, and at every
// start from now on. Zero values stay as they are. Warnings tell what has no effect.
func (e *Engine) Update(ctx context.Context, ref string, u container.UpdateConfig) (warnings []string, err error) {
	r, st, err := e.view(ctx, ref)
	if err != nil {
		return nil, err
	}
	cannot := func(err error) error {
		return fault.Errorf(fault.KindOf(err), "Cannot update container %s: %w", r.ID, err)
	}
	if st.Status == container.StateRemoving || st.Status == container.StateDead {
		return nil, cannot(fault.Conflictf(`Container is marked for removal and cannot be "update".`))
	}
	var before container.HostConfig
	err = e.containers.Edit(r.ID, func(r *ctr.Record) error {
		before = *r.Host
		if err := updateLimits(&r.Host.Resources, &u.Resources); err != nil {
			return err
		}
		if err := updatePolicy(r.Host, u.RestartPolicy); err != nil {
			return err
		}
		if err := checkHost(r.Config, r.Host); err != nil {
			return unfit{err}
		}
		normalise(r.Config, r.Host)
		return nil
	})
	var bad unfit
	if errors.As(err, &bad) {
		return nil, bad.error // in Docker's words without "cannot update"
	}
	if err != nil {
		return nil, cannot(err)
	}
	if err := e.tellMonitor(ctx, r.ID, live.Update); err != nil {
		_ = e.containers.Edit(r.ID, func(r *ctr.Record) error {
			r.Host.Resources, r.Host.RestartPolicy = before.Resources, before.RestartPolicy
			return nil
		})
		return nil, cannot(err)
	}
	e.containerEvent("update", r, nil)
	if limited(&u.Resources) {
		warnings = noLimits()
	}
	return warnings, nil
}

// unfit is a value that no container may have.
type unfit struct{ error }

func updatePolicy(h *container.HostConfig, p container.RestartPolicy) error {
	if p.Name == "" {
		return nil
	}
	if err := container.ValidateRestartPolicy(p); err != nil {
		return fault.As(fault.Invalid, err)
	}
	if h.AutoRemove && !p.IsNone() {
		return fault.Conflictf("Restart policy cannot be updated because AutoRemove is enabled for the container")
	}
	h.RestartPolicy = p
	return nil
}

// updateLimits applies Docker's rules to what may change together.
func updateLimits(c, u *container.Resources) error {
	for _, x := range []struct {
		bad bool
		why string
	}{
		{u.NanoCPUs > 0 && c.CPUPeriod > 0, "Nano CPUs cannot be updated as CPU Period has already been set"},
		{u.NanoCPUs > 0 && c.CPUQuota > 0, "Nano CPUs cannot be updated as CPU Quota has already been set"},
		{u.CPUPeriod > 0 && c.NanoCPUs > 0, "CPU Period cannot be updated as NanoCPUs has already been set"},
		{u.CPUQuota > 0 && c.NanoCPUs > 0, "CPU Quota cannot be updated as NanoCPUs has already been set"},
	} {
		if x.bad {
			return fault.Conflictf("Conflicting options: %s", x.why)
		}
	}
	if u.Memory > 0 && c.MemorySwap > 0 && u.Memory > c.MemorySwap && u.MemorySwap == 0 {
		return fault.Conflictf("Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time")
	}
	if u.MemorySwap > 0 && orElse(u.Memory, c.Memory) == 0 {
		return fault.Invalidf("You should always set the Memory limit when using Memoryswap limit, see usage")
	}
	for _, f := range []struct{ to, from *int64 }{
		{&c.CPUShares, &u.CPUShares}, {&c.NanoCPUs, &u.NanoCPUs}, {&c.CPUPeriod, &u.CPUPeriod}, {&c.CPUQuota, &u.CPUQuota},
		{&c.CPURealtimePeriod, &u.CPURealtimePeriod}, {&c.CPURealtimeRuntime, &u.CPURealtimeRuntime},
		{&c.Memory, &u.Memory}, {&c.MemorySwap, &u.MemorySwap}, {&c.MemoryReservation, &u.MemoryReservation},
	} {
		*f.to = orElse(*f.from, *f.to)
	}
	for _, f := range []struct{ to, from *[]*blkiodev.ThrottleDevice }{
		{&c.BlkioDeviceReadBps, &u.BlkioDeviceReadBps}, {&c.BlkioDeviceWriteBps, &u.BlkioDeviceWriteBps},
		{&c.BlkioDeviceReadIOps, &u.BlkioDeviceReadIOps}, {&c.BlkioDeviceWriteIOps, &u.BlkioDeviceWriteIOps},
	} {
		if len(*f.from) > 0 {
			*f.to = *f.from
		}
	}
	if len(u.BlkioWeightDevice) > 0 {
		c.BlkioWeightDevice = u.BlkioWeightDevice
	}
	c.BlkioWeight = orElse(u.BlkioWeight, c.BlkioWeight)
	c.CpusetCpus, c.CpusetMems = orElse(u.CpusetCpus, c.CpusetCpus), orElse(u.CpusetMems, c.CpusetMems)
	if u.PidsLimit != nil {
		c.PidsLimit = u.PidsLimit
	}
	return nil
}
