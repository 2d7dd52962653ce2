// keg images --tree.

package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	dimage "github.com/moby/moby/api/types/image"

	"keg/internal/engine"
	"keg/internal/image"
)

// treeRow is one line: a name of an image, or below it a platform.
type treeRow struct {
	name, id, disk, content, extra string
}

// imageTree prints images with their platforms below them.
func (a *app) imageTree(ctx context.Context, o *imagesFlags, ref string) error {
	switch {
	case o.quiet:
		return failf("--quiet is not yet supported with --tree")
	case o.noTrunc:
		return failf("--no-trunc is not yet supported with --tree")
	case o.digests:
		return failf("--show-digest is not yet supported with --tree")
	case o.format != "":
		return failf("--format is not yet supported with --tree")
	}
	eng, err := a.engine()
	if err != nil {
		return err
	}
	list, err := eng.Images(ctx, engine.ImageListOptions{All: o.all, Ref: ref, Filter: o.filter.f, Manifests: true})
	if err != nil {
		return err
	}
	rows := []treeRow{{"IMAGE", "ID", "DISK USAGE", "CONTENT SIZE", "EXTRA"}}
	for i := range list {
		rows = append(rows, treeRows(&list[i])...)
	}
	width := 0
	for _, r := range rows {
		width = max(width, utf8.RuneCountInString(r.name))
	}
	for _, r := range rows {
		pad := strings.Repeat(" ", width-utf8.RuneCountInString(r.name))
		line := fmt.Sprintf("%s%s   %-12s   %10s   %12s   %s", r.name, pad, r.id, r.disk, r.content, r.extra)
		fmt.Fprintln(a.out, strings.TrimRight(line, " "))
	}
	return nil
}

// treeRows are the lines of an image: each of its names, then its platforms.
func treeRows(i *dimage.Summary) (rows []treeRow) {
	var disk, content int64
	used := false
	var below []treeRow
	for n, m := range i.Manifests {
		if m.Kind != dimage.ManifestKindImage || m.ImageData == nil {
			continue
		}
		branch := "├─ "
		if n == len(i.Manifests)-1 {
			branch = "└─ "
		}
		r := treeRow{branch + image.FormatPlatform(m.ImageData.Platform), shortID(m.ID), size3(m.Size.Total), size3(m.Size.Content), ""}
		if len(m.ImageData.Containers) > 0 {
			r.extra, used = "U", true
		}
		disk, content = disk+m.Size.Total, content+m.Size.Content
		below = append(below, r)
	}
	names := slices.Clone(i.RepoTags)
	if len(names) == 0 {
		names = []string{"<untagged>"}
	}
	for n, name := range names {
		r := treeRow{name: name}
		if n == len(names)-1 {
			r = treeRow{name, shortID(i.ID), size3(disk), size3(content), ""}
			if used {
				r.extra = "U"
			}
		}
		rows = append(rows, r)
	}
	return append(rows, below...)
}
