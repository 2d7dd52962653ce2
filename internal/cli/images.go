// keg images.

package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	dimage "github.com/moby/moby/api/types/image"
	"github.com/spf13/cobra"

	"keg/internal/engine"
	"keg/internal/image"
)

type imagesFlags struct {
	all, digests, noTrunc, quiet, tree bool
	format                             string
	filter                             filterValue
}

func newImages(a *app) *cobra.Command {
	o := &imagesFlags{}
	c := &cobra.Command{
		Use:               "images [OPTIONS] [REPOSITORY[:TAG]]",
		Args:              maxArgs(1),
		ValidArgsFunction: a.complete(imageNames, 1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.images(c.Context(), o, firstOf(args...), c.CalledAs() == "images")
		},
	}
	fs := c.Flags()
	fs.BoolVarP(&o.all, "all", "a", false, "Show all images (default hides intermediate images)")
	fs.BoolVar(&o.digests, "digests", false, "Show digests")
	fs.VarP(&o.filter, "filter", "f", "Filter output based on conditions provided")
	fs.StringVar(&o.format, "format", "", formatHelp)
	fs.BoolVar(&o.noTrunc, "no-trunc", false, "Don't truncate output")
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "Only show image IDs")
	fs.BoolVar(&o.tree, "tree", false, "List multi-platform images as a tree")
	return c
}

func (a *app) images(ctx context.Context, o *imagesFlags, ref string, shortForm bool) error {
	if o.tree {
		return a.imageTree(ctx, o, ref)
	}
	format := o.format
	if format == "" && !o.quiet {
		format = a.clientConfig().ImagesFormat
	}
	format = imagesFormat(firstOf(format, "table"), o.quiet, o.digests)
	eng, err := a.engine()
	if err != nil {
		return err
	}
	counted := strings.Contains(format, "json") || strings.Contains(format, "Containers")
	list, err := eng.Images(ctx, engine.ImageListOptions{All: o.all, Ref: ref, Filter: o.filter.f, Uncounted: !counted})
	if err != nil {
		return err
	}
	var rows []*imageRow
	for i := range list {
		rows = append(rows, imageRows(&list[i], o.digests, o.digests || strings.Contains(format, "{{.Digest}}"), !o.noTrunc, a.now())...)
	}
	if err := writeRows(a.out, listing{format, imageHeader()}, rows); err != nil {
		return err
	}
	if _, isCommand := find(imageCommands(), "image", ref); shortForm && len(list) == 0 && isCommand {
		fmt.Fprintf(a.err, "No images found matching %q: did you mean \"%s image %s\"?\n", ref, a.name, ref)
	}
	return nil
}

func imagesFormat(format string, quiet, digest bool) string {
	const raw = "repository: {{ .Repository }}\ntag: {{.Tag}}\n"
	const rawEnd = "image_id: {{.ID}}\ncreated_at: {{.CreatedAt}}\nvirtual_size: {{.Size}}\n"
	const age = "{{if .CreatedSince }}{{.CreatedSince}}{{else}}N/A{{end}}\t{{.Size}}"
	switch {
	case format == "table" && quiet:
		return "{{.ID}}"
	case format == "table" && digest:
		return "table {{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t" + age
	case format == "table":
		return "table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t" + age
	case format == "raw" && quiet:
		return "image_id: {{.ID}}"
	case format == "raw" && digest:
		return raw + "digest: {{.Digest}}\n" + rawEnd
	case format == "raw":
		return raw + rawEnd
	case isTable(format) && digest && !strings.Contains(format, "{{.Digest}}"):
		return format + "\t{{.Digest}}"
	}
	return format
}

func imageHeader() header {
	return header{
		"ID": "IMAGE ID", "Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", "CreatedSince": "CREATED",
		"CreatedAt": "CREATED AT", "Size": "SIZE", "Containers": "CONTAINERS", "SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE",
	}
}

// imageRow is one name of an image as templates see it.
type imageRow struct {
	i                 *dimage.Summary
	repo, tag, digest string
	short             bool
	now               time.Time
}

// imageRows makes a row for each tag of an image, one for each repository that only a
// digest names, and one <none> row for an image without names.
func imageRows(i *dimage.Summary, showDigests, needDigests, short bool, now time.Time) []*imageRow {
	row := func(repo, tag, digest string) *imageRow {
		return &imageRow{i: i, repo: repo, tag: tag, digest: digest, short: short, now: now}
	}
	tags, digests := map[string][]string{}, map[string][]string{}
	for _, s := range i.RepoTags {
		if ref, err := image.ParseReference(s); err == nil && ref.Tag != "" {
			tags[ref.FamiliarName()] = append(tags[ref.FamiliarName()], ref.Tag)
		}
	}
	for _, s := range i.RepoDigests {
		if ref, err := image.ParseReference(s); err == nil && ref.Digest != "" {
			digests[ref.FamiliarName()] = append(digests[ref.FamiliarName()], string(ref.Digest))
		}
	}
	if len(tags)+len(digests) == 0 {
		return []*imageRow{row("<none>", "<none>", "<none>")}
	}
	var rows []*imageRow
	for _, repo := range slices.Sorted(maps.Keys(tags)) {
		ds := digests[repo]
		delete(digests, repo)
		if !needDigests || len(ds) == 0 {
			ds = []string{"<none>"}
		}
		for _, tag := range tags[repo] {
			for _, d := range ds {
				rows = append(rows, row(repo, tag, d))
			}
		}
	}
	for _, repo := range slices.Sorted(maps.Keys(digests)) {
		if !showDigests {
			rows = append(rows, row(repo, "<none>", ""))
			continue
		}
		for _, d := range digests[repo] {
			rows = append(rows, row(repo, "<none>", d))
		}
	}
	return rows
}

func (r *imageRow) MarshalJSON() ([]byte, error) { return marshalRow(r) }

func (r *imageRow) ID() string {
	if r.short {
		return shortID(r.i.ID)
	}
	return r.i.ID
}
func (r *imageRow) Repository() string   { return r.repo }
func (r *imageRow) Tag() string          { return r.tag }
func (r *imageRow) Digest() string       { return r.digest }
func (r *imageRow) CreatedAt() string    { return time.Unix(r.i.Created, 0).String() }
func (r *imageRow) CreatedSince() string { return ago(r.now, time.Unix(r.i.Created, 0)) }
func (r *imageRow) Size() string         { return size3(r.i.Size) }

func (r *imageRow) Containers() string {
	if r.i.Containers == -1 {
		return "N/A"
	}
	return strconv.FormatInt(r.i.Containers, 10)
}

func (r *imageRow) SharedSize() string {
	if r.i.SharedSize == -1 {
		return "N/A"
	}
	return units.HumanSize(float64(r.i.SharedSize))
}

func (r *imageRow) UniqueSize() string {
	if r.i.Size == -1 || r.i.SharedSize == -1 {
		return "N/A"
	}
	return units.HumanSize(float64(r.i.Size - r.i.SharedSize))
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
