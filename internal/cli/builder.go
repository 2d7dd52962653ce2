// keg builder prune and keg builder du.

package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"keg/internal/engine"
)

func newBuilderPrune(a *app) *cobra.Command {
	return a.prune(pruneCommand{
		cancelled: "build cache", noTotal: true,
		flags: func(c *cobra.Command, o *engine.PruneOptions) {
			fs := c.Flags()
			fs.BoolVarP(&o.All, "all", "a", false, "Remove all build cache, not just what no image needs")
			fs.Var(&bytesValue{p: &o.MaxUsed}, "max-used-space", "Maximum amount of disk space allowed to keep for cache")
			fs.Var(&bytesValue{p: &o.MaxUsed}, "keep-storage", "")
			fs.Lookup("keep-storage").Hidden = true
		},
		what: func(_ *cobra.Command, o *engine.PruneOptions) string {
			o.BuildCache = true
			switch {
			case o.MaxUsed > 0:
				return "WARNING! This will remove the least recently used build cache until " + units.HumanSize(float64(o.MaxUsed)) + " are left." + sure
			case o.All:
				return "WARNING! This will remove all build cache." + sure
			}
			return "WARNING! This will remove all dangling build cache." + sure
		},
		print: func(w io.Writer, p engine.Pruned) {
			printCache(w, p.CacheEntries)
			fmt.Fprintln(w, "Total:", units.HumanSize(float64(p.Reclaimed)))
		},
	})
}

func newBuilderDu(a *app) *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:  "du [OPTIONS]",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			eng, err := a.engine()
			if err != nil {
				return err
			}
			list, err := eng.BuildCache(c.Context())
			if err != nil {
				return err
			}
			if format != "" {
				rows := make([]*cacheRow, len(list))
				for i := range list {
					rows[i] = &cacheRow{&list[i]}
				}
				return writeRows(a.out, listing{format, cacheHeader()}, rows)
			}
			printCache(a.out, list)
			var total int64
			for _, e := range list {
				total += e.Size
			}
			fmt.Fprintln(a.out, "Total:", units.HumanSize(float64(total)))
			return nil
		},
	}
	c.Flags().StringVar(&format, "format", "", formatHelp)
	return c
}

func printCache(w io.Writer, list []engine.CacheEntry) {
	if len(list) == 0 {
		return
	}
	rows := make([]*cacheRow, len(list))
	for i := range list {
		rows[i] = &cacheRow{&list[i]}
	}
	format := "table {{.ID}}\t{{.Kind}}\t{{.Size}}\t{{.Description}}\t{{.Reason}}"
	_ = writeRows(w, listing{format, cacheHeader()}, rows)
}

func cacheHeader() header {
	return header{"ID": "ID", "Kind": "KIND", "Size": "SIZE", "Description": "DESCRIPTION", "Reason": "REASON",
		"Shared": "SHARED", "CreatedAt": "CREATED", "LastUsedAt": "LAST USED"}
}

// cacheRow is an entry of the build cache, as templates see it.
type cacheRow struct{ e *engine.CacheEntry }

func (r *cacheRow) MarshalJSON() ([]byte, error) { return marshalRow(r) }
func (r *cacheRow) ID() string                   { return r.e.ID[:min(12, len(r.e.ID))] }
func (r *cacheRow) Kind() string                 { return r.e.Kind }
func (r *cacheRow) Size() string                 { return units.HumanSize(float64(r.e.Size)) }
func (r *cacheRow) Reason() string               { return r.e.Reason }
func (r *cacheRow) Shared() string               { return fmt.Sprint(r.e.Shared) }
func (r *cacheRow) CreatedAt() string            { return r.e.Created.Format(time.RFC3339) }
func (r *cacheRow) LastUsedAt() string           { return r.e.Used.Format(time.RFC3339) }

// Description is foreign text, and long for a table.
func (r *cacheRow) Description() string { return cutRunes(oneLine(r.e.Description), 60) }

func cutRunes(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-3]) + "..."
	}
	return s
}
