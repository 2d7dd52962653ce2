package engine

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/cgroups"

	ctr "keg/internal/container"
	"keg/internal/fault"
	"keg/internal/linux"
	"keg/internal/sandbox/cgroup"
)

// Stats measures a container once, in the Engine API's record; what is a rate needs two
// samples. One that does not run has its name and zeroes.
func (e *Engine) Stats(ctx context.Context, ref string) (container.StatsResponse, error) {
	r, st, err := e.view(ctx, ref)
	if err != nil {
		return container.StatsResponse{}, err
	}
	s := container.StatsResponse{ID: r.ID, Name: "/" + r.Name, OSType: "linux", Read: time.Now()}
	if st.Status != container.StateRunning && st.Status != container.StatePaused {
		return s, nil
	}
	g, err := cgroup.Open(st.CgroupPath)
	if err != nil {
		return s, err
	}
	c, err := g.Stats()
	if os.IsNotExist(err) {
		return s, nil // it ended meanwhile
	}
	if err != nil {
		return s, fault.Unavailablef("measure container %s: %w", r.ID, err)
	}
	fillStats(&s, c, g.Unified())
	s.CPUStats.SystemUsage, err = systemTime()
	if err != nil {
		return s, err
	}
	s.Networks, err = e.netStats(r, st)
	return s, err
}

// fillStats translates the cgroup's numbers into the API's.
func fillStats(s *container.StatsResponse, c *cgroups.Stats, unified bool) {
	u := c.CpuStats.CpuUsage
	s.CPUStats = container.CPUStats{
		CPUUsage: container.CPUUsage{TotalUsage: u.TotalUsage, PercpuUsage: u.PercpuUsage,
			UsageInKernelmode: u.UsageInKernelmode, UsageInUsermode: u.UsageInUsermode},
		OnlineCPUs: uint32(runtime.NumCPU()),
		ThrottlingData: container.ThrottlingData{Periods: c.CpuStats.ThrottlingData.Periods,
			ThrottledPeriods: c.CpuStats.ThrottlingData.ThrottledPeriods, ThrottledTime: c.CpuStats.ThrottlingData.ThrottledTime},
	}
	m := c.MemoryStats
	s.MemoryStats = container.MemoryStats{Usage: m.Usage.Usage, MaxUsage: m.Usage.MaxUsage, Stats: m.Stats,
		Failcnt: m.Usage.Failcnt, Limit: m.Usage.Limit}
	// No limit is a very large number: then the host's memory is the limit.
	if total := uint64(max(0, linux.MemTotal())); s.MemoryStats.Limit == 0 || s.MemoryStats.Limit > total {
		s.MemoryStats.Limit = total
	}
	s.PidsStats = container.PidsStats{Current: c.PidsStats.Current, Limit: c.PidsStats.Limit}
	s.BlkioStats.IoServiceBytesRecursive = blkio(c.BlkioStats.IoServiceBytesRecursive)
	if !unified {
		s.BlkioStats.IoServicedRecursive = blkio(c.BlkioStats.IoServicedRecursive)
	}
}

func blkio(in []cgroups.BlkioStatEntry) []container.BlkioStatEntry {
	out := make([]container.BlkioStatEntry, len(in))
	for i, b := range in {
		out[i] = container.BlkioStatEntry{Major: b.Major, Minor: b.Minor, Op: b.Op, Value: b.Value}
	}
	return out
}

// systemTime is what all processors did since boot, idling included, in nanoseconds.
func systemTime() (uint64, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	f := strings.Fields(line)
	if len(f) < 8 || f[0] != "cpu" {
		return 0, fault.Unavailablef("unreadable /proc/stat: %q", line)
	}
	var sum uint64
	for _, s := range f[1:8] { // user to softirq; guests are in user already
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return 0, fault.Unavailablef("unreadable /proc/stat: %q", line)
		}
		sum += n
	}
	return sum * uint64(tick), nil
}

// netStats counts the container's own interfaces; none in the host's network.
func (e *Engine) netStats(r *ctr.Record, st *ctr.State) (map[string]container.NetworkStats, error) {
	if r.Host.NetworkMode.IsHost() || st.Pid <= 0 {
		return nil, nil
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(st.Pid) + "/net/dev")
	if os.IsNotExist(err) || err != nil && strings.Contains(err.Error(), "no such process") {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseNetDev(b), nil
}

// parseNetDev reads proc_pid_net(5) "/proc/net/dev": 8 numbers received, 8 sent.
func parseNetDev(b []byte) map[string]container.NetworkStats {
	all := map[string]container.NetworkStats{}
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		name, rest, ok := strings.Cut(sc.Text(), ":")
		f := strings.Fields(rest)
		if name = strings.TrimSpace(name); !ok || len(f) < 12 || name == "lo" {
			continue
		}
		n := func(i int) uint64 {
			v, _ := strconv.ParseUint(f[i], 10, 64)
			return v
		}
		all[name] = container.NetworkStats{RxBytes: n(0), RxPackets: n(1), RxErrors: n(2), RxDropped: n(3),
			TxBytes: n(8), TxPackets: n(9), TxErrors: n(10), TxDropped: n(11)}
	}
	return all
}
