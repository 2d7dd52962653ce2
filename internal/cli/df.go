// keg system df.

package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

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
	BuildCache []*dfCacheRow
}

func (a *app) dfVerbose(ctx context.Context, eng backend, us []engine.Usage, format string) error {
	d, err := eng.DiskDetail(ctx)
	if err != nil {
		return err
	}
	v := a.usageView(d, format == "table")
	if format != "table" {
		t, err := parseObjectTemplate("", format)
		if err != nil {
			return err
		}
		return executeLine(a.out, t, v)
	}
	var b bytes.Buffer
	if err := writeUsage(&b, v, us); err != nil {
		return err
	}
	_, err = b.WriteTo(a.out)
	return err
}

func (a *app) usageView(d engine.DiskDetail, short bool) (v usageView) {
	for i := range d.Images {
		x := &d.Images[i]
		row := &imageRow{i: x, repo: "<none>", tag: "<none>", short: short, now: a.now()}
		if len(x.RepoTags) > 0 {
			if ref, err := image.ParseReference(x.RepoTags[0]); err == nil {
				row.repo, row.tag = ref.FamiliarName(), ref.Tag
			}
		}
		v.Images = append(v.Images, row)
	}
	for i := range d.Containers {
		d.Containers[i].SizeRootFs = 0 // the image's part is above
		v.Containers = append(v.Containers, &containerRow{c: &d.Containers[i], short: short, now: a.now()})
	}
	for i := range d.Volumes {
		v.Volumes = append(v.Volumes, &volumeRow{&d.Volumes[i]})
	}
	for i := range d.BuildCache {
		v.BuildCache = append(v.BuildCache, &dfCacheRow{&d.BuildCache[i], short, a.now()})
	}
	return v
}

func writeUsage(w io.Writer, v usageView, us []engine.Usage) error {
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
	if err := writeRows(w, listing{"table {{.Name}}\t{{.Links}}\t{{.Size}}", volumeHeader()}, v.Volumes); err != nil {
		return err
	}
	for _, u := range us {
		if u.Type == "Build Cache" {
			fmt.Fprintf(w, "\nBuild cache usage: %s\n\n", units.HumanSize(float64(u.Size)))
		}
	}
	const cache = "table {{.ID}}\t{{.CacheType}}\t{{.Size}}\t{{.CreatedSince}}\t{{.LastUsedSince}}\t{{.UsageCount}}\t{{.Shared}}"
	return writeRows(w, listing{cache, dfCacheHeader()}, v.BuildCache)
}

func dfCacheHeader() header {
	return header{"ID": "CACHE ID", "CacheType": "CACHE TYPE", "Size": "SIZE", "CreatedSince": "CREATED",
		"LastUsedSince": "LAST USED", "UsageCount": "USAGE", "Shared": "SHARED", "Description": "DESCRIPTION", "InUse": "IN USE"}
}

// dfCacheRow is one step of the build cache, as templates see it.
type dfCacheRow struct {
	c     *engine.CacheUse
	short bool
	now   time.Time
}

func (r *dfCacheRow) MarshalJSON() ([]byte, error) { return marshalRow(r) }

func (r *dfCacheRow) ID() string {
	if r.short {
		return shortID(r.c.ID)
	}
	return r.c.ID
}
func (r *dfCacheRow) CacheType() string     { return r.c.Type }
func (r *dfCacheRow) Description() string   { return r.c.Text }
func (r *dfCacheRow) Size() string          { return units.HumanSizeWithPrecision(float64(r.c.Size), 3) }
func (r *dfCacheRow) CreatedAt() string     { return r.c.Created.String() }
func (r *dfCacheRow) CreatedSince() string  { return ago(r.now, r.c.Created) }
func (r *dfCacheRow) LastUsedAt() string    { return r.c.Used.String() }
func (r *dfCacheRow) LastUsedSince() string { return ago(r.now, r.c.Used) }
func (r *dfCacheRow) UsageCount() string    { return strconv.Itoa(r.c.Uses) }
func (r *dfCacheRow) InUse() string         { return strconv.FormatBool(r.c.InUse) }
func (r *dfCacheRow) Shared() string        { return strconv.FormatBool(r.c.Shared) }
