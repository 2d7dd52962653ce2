// keg update.

package cli

import (
	"context"
	"fmt"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"
)

func newUpdate(a *app) *cobra.Command {
	var u container.UpdateConfig
	var restart string
	var pids int64
	c := &cobra.Command{
		Use:               "update [OPTIONS] CONTAINER [CONTAINER...]",
		Args:              minArgs(1),
		ValidArgsFunction: a.complete(containerNames(anyState), 0),
		RunE: func(c *cobra.Command, args []string) error {
			if c.Flags().NFlag() == 0 {
				return failf("you must provide one or more flags when using this command")
			}
			if c.Flags().Changed("restart") {
				p, err := parseRestart(restart)
				if err != nil {
					return failf("%v", err)
				}
				u.RestartPolicy = p
			}
			if c.Flags().Changed("pids-limit") {
				u.PidsLimit = &pids
			}
			return a.each(c.Context(), args, func(ctx context.Context, eng backend, name string) error {
				warnings, err := eng.Update(ctx, name, u)
				for _, w := range warnings {
					fmt.Fprintln(a.err, "WARNING:", w)
				}
				return err
			})
		},
	}
	fs := c.Flags()
	fs.Uint16Var(&u.BlkioWeight, "blkio-weight", 0, `Block IO (relative weight), between 10 and 1000, or 0 to disable (default 0)`)
	fs.Int64Var(&u.CPUPeriod, "cpu-period", 0, "Limit CPU CFS (Completely Fair Scheduler) period")
	fs.Int64Var(&u.CPUQuota, "cpu-quota", 0, "Limit CPU CFS (Completely Fair Scheduler) quota")
	fs.Int64Var(&u.CPURealtimePeriod, "cpu-rt-period", 0, "Limit the CPU real-time period in microseconds")
	fs.Int64Var(&u.CPURealtimeRuntime, "cpu-rt-runtime", 0, "Limit the CPU real-time runtime in microseconds")
	fs.Int64VarP(&u.CPUShares, "cpu-shares", "c", 0, "CPU shares (relative weight)")
	fs.Var(&cpusValue{&u.NanoCPUs}, "cpus", "Number of CPUs")
	fs.StringVar(&u.CpusetCpus, "cpuset-cpus", "", "CPUs in which to allow execution (0-3, 0,1)")
	fs.StringVar(&u.CpusetMems, "cpuset-mems", "", "MEMs in which to allow execution (0-3, 0,1)")
	fs.VarP(&bytesValue{p: &u.Memory}, "memory", "m", "Memory limit")
	fs.Var(&bytesValue{p: &u.MemoryReservation}, "memory-reservation", "Memory soft limit")
	fs.Var(&bytesValue{p: &u.MemorySwap, unlimited: true}, "memory-swap", "Swap limit equal to memory plus swap: -1 to enable unlimited swap")
	fs.Int64Var(&pids, "pids-limit", 0, "Tune container pids limit (set -1 for unlimited)")
	fs.StringVar(&restart, "restart", "", "Restart policy to apply when a container exits")
	a.completeFlags(c)
	return c
}
