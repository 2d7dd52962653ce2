// keg system df.

package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"keg/internal/engine"
	"keg/internal/image"
)

func newDf(a *app) *cobra.Command {
	var format string
	var verbose bool
	c := &cobra.Command{
		Use:  "df [OPTIONS]",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			eng, err := a.engine()
			if err != nil {
				return err
			}
			us, err := eng.DiskUsage(c.Context())
			if err != nil {
				return err
			}
			if verbose {
				return a.dfVerbose(c.Context(), eng, us, firstOf(format, "table"))
			}
			rows := make([]*usageRow, len(us))
			for i := range us {
				rows[i] = &usageRow{&us[i]}
			}
			return writeRows(a.out, listing{usageFormat(firstOf(format, "table")), usageHeader()}, rows)
		},
	}
	c.Flags().StringVar(&format, "format", "", formatHelp)
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "Show detailed information on space usage")
	return c
}

func usageFormat(format string) string {
	switch format {
	case "table":
		return "table {{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}"
	case "raw":
		return "type: {{.Type}}\ntotal: {{.TotalCount}}\nactive: {{.Active}}\nsize: {{.Size}}\nreclaimable: {{.Reclaimable}}\n"
	}
	return format
}

func usageHeader() header {
	return header{"Type": "TYPE", "TotalCount": "TOTAL", "Active": "ACTIVE", "Size": "SIZE", "Reclaimable": "RECLAIMABLE"}
}

// usageRow is one kind of thing that takes space, as templates see it.
type usageRow struct{ u *engine.Usage }

func (r *usageRow) MarshalJSON() ([]byte, error) { return marshalRow(r) }
func (r *usageRow) Type() string                 { return r.u.Type }
func (r *usageRow) TotalCount() string           { return strconv.Itoa(r.u.Total) }
func (r *usageRow) Active() string               { return strconv.Itoa(r.u.Active) }
func (r *usageRow) Size() string                 { return units.HumanSize(float64(r.u.Size)) }

func (r *usageRow) Reclaimable() string {
	s := units.HumanSize(float64(r.u.Reclaimable))
	if r.u.Size > 0 && r.u.Type != "Build Cache" {
		s += fmt.Sprintf(" (%d%%)", r.u.Reclaimable*100/r.u.Size)
	}
	return s
}

// usageView is what a template of df -v sees.
type usageView struct {
	Images     []*imageRow
	Containers []*containerRow
	Volumes    []*volumeRow
}

func (a *app) dfVerbose(ctx context.Context, eng backend, us []engine.Usage, format string) error {
	v, err := a.usageView(ctx, eng, format == "table")
	if err != nil {
		return err
	}
	if format != "table" {
		t, err := parseObjectTemplate("", format)
		if err != nil {
			return err
		}
		return executeLine(a.out, t, v)
	}
	var b bytes.Buffer
	if err := writeUsage(&b, v); err != nil {
		return err
	}
	for _, u := range us {
		if u.Type == "Build Cache" {
			fmt.Fprintf(&b, "\nBuild cache usage: %s\n", units.HumanSize(float64(u.Size)))
		}
	}
	_, err = b.WriteTo(a.out)
	return err
}

func (a *app) usageView(ctx context.Context, eng backend, short bool) (v usageView, err error) {
	is, err := eng.Images(ctx, engine.ImageListOptions{})
	if err != nil {
		return v, err
	}
	for i := range is {
		row := &imageRow{i: &is[i], repo: "<none>", tag: "<none>", short: short, now: a.now()}
		if len(is[i].RepoTags) > 0 {
			if ref, err := image.ParseReference(is[i].RepoTags[0]); err == nil {
				row.repo, row.tag = ref.FamiliarName(), ref.Tag
			}
		}
		v.Images = append(v.Images, row)
	}
	cs, err := eng.Containers(ctx, engine.ListOptions{All: true, Size: true})
	if err != nil {
		return v, err
	}
	for i := range cs {
		cs[i].SizeRootFs = 0 // the image's part is above
		v.Containers = append(v.Containers, &containerRow{c: &cs[i], short: short, now: a.now()})
	}
	vs, err := eng.Volumes(ctx, nil)
	for i := range vs {
		v.Volumes = append(v.Volumes, &volumeRow{&vs[i]})
	}
	return v, err
}

func writeUsage(w io.Writer, v usageView) error {
	io.WriteString(w, "Images space usage:\n\n")
	const images = "table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.SharedSize}}\t{{.UniqueSize}}\t{{.Containers}}"
	if err := writeRows(w, listing{images, imageHeader()}, v.Images); err != nil {
		return err
	}
	io.WriteString(w, "\nContainers space usage:\n\n")
	const containers = "table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.LocalVolumes}}\t{{.Size}}\t{{.RunningFor}}\t{{.Status}}\t{{.Names}}"
	if err := writeRows(w, listing{containers, containerHeader()}, v.Containers); err != nil {
		return err
	}
	io.WriteString(w, "\nLocal Volumes space usage:\n\n")
	return writeRows(w, listing{"table {{.Name}}\t{{.Links}}\t{{.Size}}", volumeHeader()}, v.Volumes)
}
