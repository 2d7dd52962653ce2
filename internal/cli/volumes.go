// keg volume create, ls, rm.

package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/volume"
	"github.com/spf13/cobra"

	"keg/internal/fault"
	vol "keg/internal/volume"
)

func newVolumeCreate(a *app) *cobra.Command {
	var o vol.CreateOptions
	var labels []string
	var name string
	c := &cobra.Command{
		Use:  "create [OPTIONS] [VOLUME]",
		Args: maxArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 && name != "" {
				return failf("conflicting options: cannot specify a volume-name through both --name and as a positional arg")
			}
			o.Name = firstOf(append(args, name)...)
			o.Labels = keyValues(labels)
			eng, err := a.engine()
			if err != nil {
				return err
			}
			v, err := eng.CreateVolume(c.Context(), o)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.out, v.Name)
			return nil
		},
	}
	fs := c.Flags()
	fs.StringVarP(&o.Driver, "driver", "d", "local", "Specify volume driver name")
	fs.Var(newList(&labels, checkLabel), "label", "Set metadata for a volume")
	fs.StringVar(&name, "name", "", "")
	fs.Lookup("name").Hidden = true
	fs.VarP(newMap(&o.Options, nil), "opt", "o", "Set driver specific options")
	elsewhere(c, ofSwarm, "availability", "group", "limit-bytes", "required-bytes", "scope", "secret", "sharing",
		"topology-preferred", "topology-required", "type")
	return c
}

func newVolumeLs(a *app) *cobra.Command {
	var quiet, cluster bool
	var format string
	var filter filterValue
	c := &cobra.Command{
		Use:  "ls [OPTIONS]",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			f := format
			if f == "" && !quiet {
				f = a.clientConfig().VolumesFormat
			}
			eng, err := a.engine()
			if err != nil {
				return err
			}
			vs, err := eng.Volumes(c.Context(), filter.f)
			if err != nil {
				return err
			}
			if cluster {
				vs = nil // those of a swarm
			}
			slices.SortFunc(vs, func(x, y volume.Volume) int { return compareNatural(x.Name, y.Name) })
			rows := make([]*volumeRow, len(vs))
			for i := range vs {
				rows[i] = &volumeRow{&vs[i]}
			}
			return writeRows(a.out, listing{volumeFormat(firstOf(f, "table"), quiet), volumeHeader()}, rows)
		},
	}
	fs := c.Flags()
	fs.BoolVar(&cluster, "cluster", false, "Display only cluster volumes")
	fs.Lookup("cluster").Hidden = true
	fs.VarP(&filter, "filter", "f", `Provide filter values (e.g. "dangling=true")`)
	fs.StringVar(&format, "format", "", formatHelp)
	fs.BoolVarP(&quiet, "quiet", "q", false, "Only display volume names")
	return c
}

func volumeFormat(format string, quiet bool) string {
	switch {
	case format == "table" && quiet:
		return "{{.Name}}"
	case format == "table":
		return "table {{.Driver}}\t{{.Name}}"
	case format == "raw" && quiet:
		return "name: {{.Name}}"
	case format == "raw":
		return `name: {{.Name}}\ndriver: {{.Driver}}\n`
	}
	return format
}

func volumeHeader() header {
	return header{
		"Name": "VOLUME NAME", "Driver": "DRIVER", "Scope": "SCOPE", "Mountpoint": "MOUNTPOINT", "Labels": "LABELS",
		"Links": "LINKS", "Size": "SIZE", "Group": "GROUP", "Availability": "AVAILABILITY", "Status": "STATUS",
	}
}

// volumeRow is one volume as templates see it.
type volumeRow struct{ v *volume.Volume }

func (r *volumeRow) MarshalJSON() ([]byte, error) { return marshalRow(r) }

func (r *volumeRow) Name() string             { return r.v.Name }
func (r *volumeRow) Driver() string           { return r.v.Driver }
func (r *volumeRow) Scope() string            { return r.v.Scope }
func (r *volumeRow) Mountpoint() string       { return r.v.Mountpoint }
func (r *volumeRow) Labels() string           { return joinLabels(r.v.Labels) }
func (r *volumeRow) Label(name string) string { return r.v.Labels[name] }

func (r *volumeRow) Links() string {
	if r.v.UsageData == nil {
		return "N/A"
	}
	return strconv.FormatInt(r.v.UsageData.RefCount, 10)
}

func (r *volumeRow) Size() string {
	if r.v.UsageData == nil {
		return "N/A"
	}
	return units.HumanSize(float64(r.v.UsageData.Size))
}

// Group, Availability and Status are of cluster volumes, which we have not.
func (r *volumeRow) Group() string        { return "N/A" }
func (r *volumeRow) Availability() string { return "N/A" }
func (r *volumeRow) Status() string       { return "N/A" }

func newVolumeRm(a *app) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:               "rm [OPTIONS] VOLUME [VOLUME...]",
		Args:              minArgs(1),
		ValidArgsFunction: a.complete(volumeNames, 0),
		RunE: func(c *cobra.Command, args []string) error {
			return a.each(c.Context(), args, func(ctx context.Context, eng backend, name string) error {
				err := eng.RemoveVolume(ctx, name, force)
				if force && fault.Is(err, fault.NotFound) {
					return nil
				}
				return err
			})
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "Force the removal of one or more volumes")
	return c
}

// compareNatural orders numbers within names by value: web2 before web10.
func compareNatural(a, b string) int {
	for a != "" && b != "" {
		x, restA := number(a)
		y, restB := number(b)
		if x != "" && y != "" {
			if c := compareNumbers(x, y); c != 0 {
				return c
			}
			a, b = restA, restB
			continue
		}
		if a[0] != b[0] {
			return int(a[0]) - int(b[0])
		}
		a, b = a[1:], b[1:]
	}
	return len(a) - len(b)
}

func number(s string) (digits, rest string) {
	i := 0
	for i < len(s) && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	return s[:i], s[i:]
}

func compareNumbers(x, y string) int {
	for len(x) > 1 && x[0] == '0' {
		x = x[1:]
	}
	for len(y) > 1 && y[0] == '0' {
		y = y[1:]
	}
	if len(x) != len(y) {
		return len(x) - len(y)
	}
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}
