// keg ps.

package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"

	"keg/internal/engine"
	"keg/internal/image"
)

type psFlags struct {
	all, quiet, size, noTrunc, latest bool
	last                              int
	format                            string
	filter                            filterValue
}

func newPs(a *app) *cobra.Command {
	o := &psFlags{}
	c := &cobra.Command{
		Use:  "ps [OPTIONS]",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ps(c.Context(), o, c.Flags().Changed("size"))
		},
	}
	fs := c.Flags()
	fs.BoolVarP(&o.all, "all", "a", false, "Show all containers (default shows just running)")
	fs.VarP(&o.filter, "filter", "f", "Filter output based on conditions provided")
	fs.StringVar(&o.format, "format", "", formatHelp)
	fs.IntVarP(&o.last, "last", "n", -1, "Show n last created containers (includes all states)")
	fs.BoolVarP(&o.latest, "latest", "l", false, "Show the latest created container (includes all states)")
	fs.BoolVar(&o.noTrunc, "no-trunc", false, "Don't truncate output")
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "Only display container IDs")
	fs.BoolVarP(&o.size, "size", "s", false, "Display total file sizes")
	return c
}

func (a *app) ps(ctx context.Context, o *psFlags, sizeSaid bool) error {
	format := o.format
	switch {
	case format == "":
		format = a.clientConfig().PsFormat
	case o.quiet:
		fmt.Fprintln(a.err, "WARNING: Ignoring custom format, because both --format and --quiet are set.")
	}
	list := engine.ListOptions{All: o.all, Last: o.last, Size: o.size, Filter: o.filter.f}
	if o.latest && o.last == -1 {
		list.Last = 1
	}
	if o.format != "" {
		used, err := usesSize(o.format)
		if err != nil {
			return err
		}
		list.Size = list.Size || used && !o.quiet && !sizeSaid
	}
	eng, err := a.engine()
	if err != nil {
		return err
	}
	cs, err := eng.Containers(ctx, list)
	if err != nil {
		return err
	}
	rows := make([]*containerRow, len(cs))
	for i := range cs {
		rows[i] = &containerRow{c: &cs[i], short: !o.noTrunc, now: a.now()}
	}
	if err := writeRows(a.out, listing{containerFormat(format, o.quiet, list.Size), containerHeader()}, rows); err != nil {
		return err
	}
	if !o.quiet && (format == "" || format == "table") {
		for _, c := range eng.Outdated(ctx, cs) {
			fmt.Fprintf(a.err, "%s: image updated; recreate to use it (%s was %s, is %s)\n", c.Container, c.Image, shortID(string(c.Was)), shortID(string(c.Now)))
		}
	}
	return nil
}

// usesSize reports whether the template asks for .Size, which costs a walk over each
// container's files.
func usesSize(format string) (bool, error) {
	l := listing{format: format}
	t, err := l.parse()
	if err != nil {
		return false, failf("failed to parse template: %v", strings.TrimPrefix(err.Error(), "template parsing error: "))
	}
	return sizeAsked(t)
}

func sizeAsked(t *template.Template) (bool, error) {
	probe := &containerRow{c: &container.Summary{}}
	if err := t.Execute(io.Discard, probe); err != nil {
		return false, failf("failed to execute template: %v", err)
	}
	return probe.sized, nil
}

func containerFormat(format string, quiet, size bool) string {
	const columns = "table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}"
	const raw = `container_id: {{.ID}}
image: {{.Image}}
command: {{.Command}}
created_at: {{.CreatedAt}}
state: {{- pad .State 1 0}}
status: {{- pad .Status 1 0}}
names: {{.Names}}
labels: {{- pad .Labels 1 0}}
ports: {{- pad .Ports 1 0}}
`
	switch {
	case quiet && format == "raw":
		return "container_id: {{.ID}}"
	case quiet:
		return "{{.ID}}"
	case format == "raw" && size:
		return raw + "size: {{.Size}}\n"
	case format == "raw":
		return raw
	case format != "" && format != "table":
		return format
	case size:
		return columns + "\t{{.Size}}"
	}
	return columns
}

func containerHeader() header {
	return header{
		"ID": "CONTAINER ID", "Names": "NAMES", "Image": "IMAGE", "Command": "COMMAND", "CreatedAt": "CREATED AT",
		"RunningFor": "CREATED", "Ports": "PORTS", "State": "STATE", "Status": "STATUS", "Size": "SIZE",
		"Labels": "LABELS", "Mounts": "MOUNTS", "LocalVolumes": "LOCAL VOLUMES", "Networks": "NETWORKS",
		"Platform": "PLATFORM", "HealthStatus": "HEALTH STATUS",
	}
}

// containerRow is one container as templates see it.
type containerRow struct {
	c     *container.Summary
	short bool
	now   time.Time
	sized bool // Size was asked for
}

func (r *containerRow) MarshalJSON() ([]byte, error) { return marshalRow(r) }

func (r *containerRow) ID() string {
	if r.short {
		return shortID(r.c.ID)
	}
	return r.c.ID
}

// Names leaves out names that are legacy links (name/alias) when short.
func (r *containerRow) Names() string {
	var names []string
	for _, n := range r.c.Names {
		n = strings.TrimPrefix(n, "/")
		switch {
		case !r.short:
			names = append(names, n)
		case !strings.Contains(n, "/"):
			return n
		}
	}
	return strings.Join(names, ",")
}

func (r *containerRow) Image() string {
	switch {
	case r.c.Image == "":
		return "<no image>"
	case !r.short:
		return r.c.Image
	}
	if short := shortID(r.c.ImageID); short != "" && short == shortID(r.c.Image) {
		return short
	}
	ref, err := image.ParseReference(r.c.Image)
	if err != nil || ref.Digest == "" {
		return r.c.Image
	}
	ref.Digest = ""
	return ref.Familiar()
}

func (r *containerRow) Command() string   { return quoteCommand(r.c.Command, r.short) }
func (r *containerRow) CreatedAt() string { return time.Unix(r.c.Created, 0).String() }
func (r *containerRow) RunningFor() string {
	return ago(r.now, time.Unix(r.c.Created, 0))
}
func (r *containerRow) Ports() string            { return displayPorts(r.c.Ports) }
func (r *containerRow) State() string            { return string(r.c.State) }
func (r *containerRow) Status() string           { return r.c.Status }
func (r *containerRow) Labels() string           { return joinLabels(r.c.Labels) }
func (r *containerRow) Label(name string) string { return r.c.Labels[name] }

func (r *containerRow) Size() string {
	r.sized = true
	if r.c.SizeRootFs > 0 {
		return fmt.Sprintf("%s (virtual %s)", size3(r.c.SizeRw), size3(r.c.SizeRootFs))
	}
	return size3(r.c.SizeRw)
}

func (r *containerRow) Mounts() string {
	var names []string
	for _, m := range r.c.Mounts {
		n := firstOf(m.Name, m.Source)
		if r.short {
			n = ellipsis(n, 15)
		}
		names = append(names, n)
	}
	return strings.Join(names, ",")
}

func (r *containerRow) LocalVolumes() string {
	n := 0
	for _, m := range r.c.Mounts {
		if m.Driver == "local" {
			n++
		}
	}
	return strconv.Itoa(n)
}

func (r *containerRow) Networks() string {
	if r.c.NetworkSettings == nil {
		return ""
	}
	return strings.Join(sortedKeys(r.c.NetworkSettings.Networks), ",")
}

func (r *containerRow) Platform() string {
	if d := r.c.ImageManifestDescriptor; d != nil && d.Platform != nil {
		return image.FormatPlatform(*d.Platform)
	}
	return ""
}

func (r *containerRow) HealthStatus() string {
	if r.c.Health != nil && r.c.Health.Status != "" {
		return string(r.c.Health.Status)
	}
	// "Up 2 minutes (healthy)", "Up 1 second (health: starting)"
	_, h, ok := strings.Cut(r.c.Status, "(")
	h = strings.TrimPrefix(strings.TrimSuffix(h, ")"), "health: ")
	switch s := container.HealthStatus(h); s {
	case container.Healthy, container.Unhealthy, container.Starting:
		if ok {
			return h
		}
	}
	return ""
}
