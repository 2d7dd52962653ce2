package sandbox

// Scheduling and input/output priority of a process.

import (
	"encoding/binary"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

var policies = [...]struct {
	name   specs.LinuxSchedulerPolicy
	number uint32
}{{specs.SchedOther, 0}, {specs.SchedFIFO, 1}, {specs.SchedRR, 2}, {specs.SchedBatch, 3}, {specs.SchedISO, 4}, {specs.SchedIdle, 5}, {specs.SchedDeadline, 6}}

var schedulerFlags = [...]struct {
	name specs.LinuxSchedulerFlag
	bit  uint64
}{{specs.SchedFlagResetOnFork, 1}, {specs.SchedFlagReclaim, 2}, {specs.SchedFlagDLOverrun, 4}, {specs.SchedFlagKeepPolicy, 8},
	{specs.SchedFlagKeepParams, 16}, {specs.SchedFlagUtilClampMin, 32}, {specs.SchedFlagUtilClampMax, 64}}

// priorities reads both from a spec's process.
func (c *process) priorities(p *specs.Process) (err error) {
	if p.Scheduler != nil {
		if c.scheduler, err = schedAttr(p.Scheduler); err != nil {
			return err
		}
	}
	if io := p.IOPriority; io != nil {
		class := map[specs.IOPriorityClass]int{specs.IOPRIO_CLASS_RT: 1, specs.IOPRIO_CLASS_BE: 2, specs.IOPRIO_CLASS_IDLE: 3}[io.Class]
		if class == 0 || io.Priority < 0 || io.Priority > 7 {
			return fault.Invalidf("invalid ioPriority %s %d: a class and 0 to 7 are expected", io.Class, io.Priority)
		}
		c.ioPriority = class<<13 | io.Priority
	}
	return nil
}

// schedAttr is struct sched_attr of sched_setattr(2).
func schedAttr(s *specs.Scheduler) ([]byte, error) {
	b := make([]byte, 48)
	binary.NativeEndian.PutUint32(b, 48)
	known := false
	for _, p := range policies {
		if p.name == s.Policy {
			binary.NativeEndian.PutUint32(b[4:], p.number)
			known = true
		}
	}
	if !known {
		return nil, fault.Invalidf("unknown scheduler policy %q", s.Policy)
	}
	var flags uint64
	for _, name := range s.Flags {
		bit := uint64(0)
		for _, f := range schedulerFlags {
			if f.name == name {
				bit = f.bit
			}
		}
		if bit == 0 {
			return nil, fault.Invalidf("unknown scheduler flag %q", name)
		}
		flags |= bit
	}
	binary.NativeEndian.PutUint64(b[8:], flags)
	binary.NativeEndian.PutUint32(b[16:], uint32(s.Nice))
	binary.NativeEndian.PutUint32(b[20:], uint32(s.Priority))
	binary.NativeEndian.PutUint64(b[24:], s.Runtime)
	binary.NativeEndian.PutUint64(b[32:], s.Deadline)
	binary.NativeEndian.PutUint64(b[40:], s.Period)
	return b, nil
}

// schedule sets them while the process still may.
func (p *program) schedule(c *process) {
	if c.scheduler != nil {
		p.add("set", "the scheduler", unix.SYS_SCHED_SETATTR, num(0), mem(c.scheduler), num(0))
	}
	if c.ioPriority != 0 {
		p.add("set", "the input/output priority", unix.SYS_IOPRIO_SET, num(1), num(0), num(c.ioPriority))
	}
}
