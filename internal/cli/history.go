// keg history.

package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	dimage "github.com/moby/moby/api/types/image"
	"github.com/spf13/cobra"
)

func newHistory(a *app) *cobra.Command {
	var human, noTrunc, quiet bool
	var format, platform string
	c := &cobra.Command{
		Use:               "history [OPTIONS] IMAGE",
		Args:              exactArgs(1),
		ValidArgsFunction: a.complete(imageNames, 1),
		RunE: func(c *cobra.Command, args []string) error {
			eng, err := a.engine()
			if err != nil {
				return err
			}
			if err := a.onPlatform(c.Context(), args, platform); err != nil {
				return err
			}
			items, err := eng.History(c.Context(), args[0])
			if err != nil {
				return err
			}
			rows := make([]*historyRow, len(items))
			for i := range items {
				rows[i] = &historyRow{h: &items[i], short: !noTrunc, human: human, now: a.now()}
			}
			if err := writeRows(a.out, listing{historyFormat(firstOf(format, "table"), quiet, human), historyHeader()}, rows); err != nil {
				return err
			}
			if format == "" && !quiet {
				a.tellBase(c.Context(), eng, args[0], len(items))
			}
			return nil
		},
	}
	fs := c.Flags()
	fs.StringVar(&format, "format", "", formatHelp)
	fs.BoolVarP(&human, "human", "H", true, "Print sizes and dates in human readable format")
	fs.BoolVar(&noTrunc, "no-trunc", false, "Don't truncate output")
	fs.StringVar(&platform, "platform", "", `Show the history of the image for this platform ("os[/arch[/variant]]")`)
	fs.BoolVarP(&quiet, "quiet", "q", false, "Only show image IDs")
	return c
}

// tellBase says on the side which lines are not the image's own.
func (a *app) tellBase(ctx context.Context, eng backend, ref string, lines int) {
	name, n, err := eng.Base(ctx, ref)
	switch {
	case err != nil || name == "" || n == 0 || n > lines:
	case n == 1:
		fmt.Fprintf(a.err, "The last line is that of the base, %s.\n", name)
	default:
		fmt.Fprintf(a.err, "The last %d lines are those of the base, %s.\n", n, name)
	}
}

func historyFormat(format string, quiet, human bool) string {
	switch {
	case format != "table":
		return format
	case quiet:
		return "{{.ID}}"
	case human:
		return "table {{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}"
	}
	return "table {{.ID}}\t{{.CreatedAt}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}"
}

func historyHeader() header {
	return header{"ID": "IMAGE", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "CreatedBy": "CREATED BY", "Size": "SIZE", "Comment": "COMMENT"}
}

// historyRow is one step of an image as templates see it.
type historyRow struct {
	h            *dimage.HistoryResponseItem
	short, human bool
	now          time.Time
}

func (r *historyRow) MarshalJSON() ([]byte, error) { return marshalRow(r) }

func (r *historyRow) ID() string {
	if r.short {
		return shortID(r.h.ID)
	}
	return r.h.ID
}

func (r *historyRow) CreatedAt() string { return time.Unix(r.h.Created, 0).Format(time.RFC3339) }

// CreatedSince says nothing about the year 2000 and before: reproducible builds set
// such times.
func (r *historyRow) CreatedSince() string {
	switch {
	case !r.human:
		return r.CreatedAt()
	case r.h.Created <= time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Unix():
		return "N/A"
	}
	return ago(r.now, time.Unix(r.h.Created, 0))
}

func (r *historyRow) CreatedBy() string {
	s := strings.ReplaceAll(r.h.CreatedBy, "\t", " ")
	if r.short {
		return ellipsis(s, 45)
	}
	return s
}

func (r *historyRow) Size() string {
	if r.human {
		return size3(r.h.Size)
	}
	return strconv.FormatInt(r.h.Size, 10)
}

func (r *historyRow) Comment() string { return r.h.Comment }
