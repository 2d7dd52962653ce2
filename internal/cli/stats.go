// keg stats.

package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"

	"keg/internal/engine"
	"keg/internal/fault"
)

type statsFlags struct {
	all, noStream, noTrunc bool
	format                 string
	every                  time.Duration // between two samples
}

func newStats(a *app) *cobra.Command {
	o := &statsFlags{every: time.Second}
	c := &cobra.Command{
		Use:               "stats [OPTIONS] [CONTAINER...]",
		ValidArgsFunction: a.complete(containerNames(running), 0),
		RunE: func(c *cobra.Command, args []string) error {
			return a.stats(c.Context(), args, o)
		},
	}
	fs := c.Flags()
	fs.BoolVarP(&o.all, "all", "a", false, "Show all containers (default shows just running)")
	fs.StringVar(&o.format, "format", "", formatHelp)
	fs.BoolVar(&o.noStream, "no-stream", false, "Disable streaming stats and only pull the first result")
	fs.BoolVar(&o.noTrunc, "no-trunc", false, "Do not truncate output")
	return c
}

// stats prints a table a second until it is interrupted. The first one comes when there are two
// samples, since a share of the processors needs two.
func (a *app) stats(ctx context.Context, names []string, o *statsFlags) error {
	eng, err := a.engine()
	if err != nil {
		return err
	}
	l := listing{statsFormat(firstOf(o.format, a.clientConfig().StatsFormat, "table")), statsHeader()}
	if _, err := l.parse(); err != nil {
		return err
	}
	if o.noStream {
		o.every = min(o.every, 500*time.Millisecond)
	}
	m := meter{eng: eng, names: names, all: o.all, short: !o.noTrunc, last: map[string]container.StatsResponse{}}
	if err := m.sample(ctx); err != nil {
		return err
	}
	clock := time.NewTicker(o.every)
	defer clock.Stop()
	for {
		select {
		case <-clock.C:
		case <-ctx.Done():
			return errors.Join(context.Canceled, context.Cause(ctx))
		}
		if err := m.sample(ctx); err != nil {
			return err
		}
		var b bytes.Buffer
		if err := writeRows(&b, l, m.rows); err != nil {
			return err
		}
		if o.noStream {
			_, err := b.WriteTo(a.out)
			return err
		}
		if err := a.redraw(b.String()); err != nil {
			return err
		}
	}
}

// redraw prints over what was printed before, on a terminal.
func (a *app) redraw(text string) error {
	if !a.outTTY {
		_, err := io.WriteString(a.out, text)
		return err
	}
	fmt.Fprint(a.rawOut, "\033[H")
	for line := range strings.Lines(text) {
		fmt.Fprint(a.out, strings.TrimSuffix(line, "\n"))
		fmt.Fprint(a.rawOut, "\033[K\n")
	}
	_, err := fmt.Fprint(a.rawOut, "\033[J")
	return err
}

// meter measures containers, at each turn those that are there.
type meter struct {
	eng   backend
	names []string // as asked for; none: all that run
	all   bool
	short bool
	last  map[string]container.StatsResponse
	rows  []*statsRow
}

func (m *meter) sample(ctx context.Context) error {
	names := m.names
	if len(names) == 0 {
		cs, err := m.eng.Containers(ctx, engine.ListOptions{All: m.all})
		if err != nil {
			return err
		}
		for _, c := range cs {
			names = append(names, c.ID)
		}
	}
	samples := make([]container.StatsResponse, len(names))
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i, n := range names {
		slots <- struct{}{}
		wg.Go(func() {
			samples[i], errs[i] = m.eng.Stats(ctx, n)
			<-slots
		})
	}
	wg.Wait()
	m.rows = nil
	var failed []error
	for i, n := range names {
		switch err := errs[i]; {
		case len(m.names) == 0 && fault.Is(err, fault.NotFound):
			continue // it went meanwhile
		case err != nil:
			failed = append(failed, err)
			continue
		}
		s := samples[i]
		if before, ok := m.last[s.ID]; ok {
			s.PreRead, s.PreCPUStats = before.Read, before.CPUStats
		}
		m.last[s.ID] = s
		if len(m.names) == 0 {
			n = s.ID
			if m.short {
				n = shortID(n)
			}
		}
		m.rows = append(m.rows, &statsRow{&s, n, m.short})
	}
	return join(failed)
}

func statsFormat(format string) string {
	if format == "table" {
		return "table {{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}"
	}
	return format
}

func statsHeader() header {
	return header{
		"Container": "CONTAINER", "Name": "NAME", "ID": "CONTAINER ID", "CPUPerc": "CPU %", "MemUsage": "MEM USAGE / LIMIT",
		"MemPerc": "MEM %", "NetIO": "NET I/O", "BlockIO": "BLOCK I/O", "PIDs": "PIDS",
	}
}

// statsRow is one container's use of the machine, as templates see it.
type statsRow struct {
	s     *container.StatsResponse
	asked string
	short bool
}

func (r *statsRow) MarshalJSON() ([]byte, error) { return marshalRow(r) }

func (r *statsRow) Container() string { return r.asked }
func (r *statsRow) Name() string      { return firstOf(strings.TrimPrefix(r.s.Name, "/"), "--") }

func (r *statsRow) ID() string {
	if r.short {
		return shortID(r.s.ID)
	}
	return r.s.ID
}

// CPUPerc: of one processor; 200 % are two of them.
func (r *statsRow) CPUPerc() string {
	used := float64(r.s.CPUStats.CPUUsage.TotalUsage) - float64(r.s.PreCPUStats.CPUUsage.TotalUsage)
	whole := float64(r.s.CPUStats.SystemUsage) - float64(r.s.PreCPUStats.SystemUsage)
	percent := 0.0
	if r.s.PreCPUStats.SystemUsage > 0 && used > 0 && whole > 0 {
		percent = used / whole * float64(r.s.CPUStats.OnlineCPUs) * 100
	}
	return fmt.Sprintf("%.2f%%", percent)
}

// memory is what could not be given up at once: without the cache that nobody used lately.
func (r *statsRow) memory() float64 {
	m := r.s.MemoryStats
	for _, key := range []string{"total_inactive_file", "inactive_file"} { // v1, v2
		if v, ok := m.Stats[key]; ok && v < m.Usage {
			return float64(m.Usage - v)
		}
	}
	return float64(m.Usage)
}

func (r *statsRow) MemUsage() string {
	return units.BytesSize(r.memory()) + " / " + units.BytesSize(float64(r.s.MemoryStats.Limit))
}

func (r *statsRow) MemPerc() string {
	if r.s.MemoryStats.Limit == 0 {
		return "0.00%"
	}
	return fmt.Sprintf("%.2f%%", r.memory()/float64(r.s.MemoryStats.Limit)*100)
}

func (r *statsRow) NetIO() string {
	var in, out float64
	for _, n := range r.s.Networks {
		in += float64(n.RxBytes)
		out += float64(n.TxBytes)
	}
	return inOut(in, out)
}

func (r *statsRow) BlockIO() string {
	var in, out float64
	for _, b := range r.s.BlkioStats.IoServiceBytesRecursive {
		switch strings.ToLower(b.Op[:min(1, len(b.Op))]) {
		case "r":
			in += float64(b.Value)
		case "w":
			out += float64(b.Value)
		}
	}
	return inOut(in, out)
}

func inOut(in, out float64) string {
	return units.HumanSizeWithPrecision(in, 3) + " / " + units.HumanSizeWithPrecision(out, 3)
}

func (r *statsRow) PIDs() string { return strconv.FormatUint(r.s.PidsStats.Current, 10) }
