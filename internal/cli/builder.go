// keg builder prune and keg builder du.

package cli

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"keg/internal/engine"
)

func newBuilderPrune(a *app) *cobra.Command {
	var verbose bool
	var name string
	return a.prune(pruneCommand{
		cancelled: "build cache", noTotal: true,
		flags: func(c *cobra.Command, o *engine.PruneOptions) {
			fs := c.Flags()
			fs.BoolVarP(&o.All, "all", "a", false, "Remove all build cache, not just what no image needs")
			fs.Var(&bytesValue{p: &o.MaxUsed}, "max-used-space", "Maximum amount of disk space allowed to keep for cache")
			fs.Var(&bytesValue{p: &o.MinFree}, "min-free-space", "Target amount of free disk space after pruning")
			fs.Var(&bytesValue{p: &o.Reserved}, "reserved-space", "Amount of disk space always allowed to keep for cache")
			fs.Var(&bytesValue{p: &o.Reserved}, "keep-storage", "")
			fs.Lookup("keep-storage").Hidden = true
			fs.BoolVar(&verbose, "verbose", false, "Provide a more verbose output")
			bindTimeout(fs)
			bindBuilder(fs, &name)
		},
		what: func(_ *cobra.Command, o *engine.PruneOptions) string {
			o.BuildCache = true
			switch {
			case o.MaxUsed > 0 || o.MinFree > 0 || o.Reserved > 0:
				return "WARNING! This will remove the least recently used build cache" + until(o) + "." + sure
			case o.All:
				return "WARNING! This will remove all build cache." + sure
			}
			return "WARNING! This will remove all dangling build cache." + sure
		},
		print: func(w io.Writer, p engine.Pruned) {
			if verbose {
				printVerbose(w, p.CacheEntries)
			} else {
				printCache(w, p.CacheEntries)
			}
			fmt.Fprintln(w, "Total:", units.HumanSize(float64(p.Reclaimed)))
		},
	})
}

// until words the sizes of a prune.
func until(o *engine.PruneOptions) string {
	var all []string
	for _, x := range []struct {
		n     int64
		words string
	}{{o.MaxUsed, "until at most %s are left"}, {o.MinFree, "until %s of the disk are free"}, {o.Reserved, "and leave %s in any case"}} {
		if x.n > 0 {
			all = append(all, fmt.Sprintf(x.words, units.HumanSize(float64(x.n))))
		}
	}
	return " " + strings.Join(all, ", ")
}

func newBuilderDu(a *app) *cobra.Command {
	var format, name string
	var verbose bool
	var filter filterValue
	c := &cobra.Command{
		Use:  "du [OPTIONS]",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			eng, err := a.engine()
			if err != nil {
				return err
			}
			list, err := eng.BuildCache(c.Context(), filter.f)
			if err != nil {
				return err
			}
			verbose = verbose || format == "pretty"
			if format != "" && !verbose {
				rows := make([]*cacheRow, len(list))
				for i := range list {
					rows[i] = &cacheRow{&list[i]}
				}
				return writeRows(a.out, listing{format, cacheHeader()}, rows)
			}
			if verbose {
				printVerbose(a.out, list)
			} else {
				printCache(a.out, list)
			}
			var total int64
			for _, e := range list {
				total += e.Size
			}
			fmt.Fprintln(a.out, "Total:", units.HumanSize(float64(total)))
			return nil
		},
	}
	c.Flags().StringVar(&format, "format", "", formatHelp)
	c.Flags().BoolVar(&verbose, "verbose", false, `Shorthand for "--format=pretty"`)
	c.Flags().Var(&filter, "filter", "Provide filter values")
	bindTimeout(c.Flags())
	bindBuilder(c.Flags(), &name)
	return c
}

// printVerbose has the lines of docker buildx du --verbose.
func printVerbose(w io.Writer, list []engine.CacheEntry) {
	t := tabwriter.NewWriter(w, 1, 8, 1, '\t', 0)
	for i := range list {
		r := &cacheRow{&list[i]}
		for _, kv := range [][2]string{{"ID", r.e.ID}, {"Created at", r.e.Created.UTC().String()}, {"Mutable", r.Mutable()}, {"Reclaimable", "true"},
			{"Shared", r.Shared()}, {"Size", r.Size()}, {"Description", oneLine(r.e.Description)}, {"Last used", units.HumanDuration(time.Since(r.e.Used)) + " ago"},
			{"Type", r.Type()}, {"Reason", r.Reason()}} {
			fmt.Fprintf(t, "%s:\t%s\n", kv[0], kv[1])
		}
		fmt.Fprintln(t)
	}
	_ = t.Flush()
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
		"Shared": "SHARED", "CreatedAt": "CREATED", "LastUsedAt": "LAST USED", "Type": "TYPE", "Mutable": "MUTABLE", "Reclaimable": "RECLAIMABLE"}
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
func (r *cacheRow) Type() string                 { return r.e.Type() }
func (r *cacheRow) Mutable() string              { return fmt.Sprint(r.e.Type() == "exec.cachemount") }
func (r *cacheRow) Reclaimable() string          { return "true" }

// Description is foreign text, and long for a table.
func (r *cacheRow) Description() string { return cutRunes(oneLine(r.e.Description), 60) }

func cutRunes(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-3]) + "..."
	}
	return s
}
