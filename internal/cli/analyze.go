// keg image analyze, keg image tree.

package cli

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"keg/internal/engine"
	"keg/internal/image"
)

func newImageAnalyze(a *app) *cobra.Command {
	var format string
	c := &cobra.Command{
		Use: "analyze [OPTIONS] IMAGE",
		Long: "Tell why an image is heavy: what each line of its Dockerfile weighs, what later lines replace or\n" +
			"remove, duplicates, caches of package managers, the largest files, and what a slim base would save",
		Args:              exactArgs(1),
		ValidArgsFunction: a.complete(imageNames, 1),
		RunE: func(c *cobra.Command, args []string) error {
			print := printAnalysis
			if format != "" {
				t, err := parseObjectTemplate("", format)
				if err != nil {
					return err
				}
				print = func(w io.Writer, r *engine.Analysis) error { return executeLine(w, t, r) }
			}
			eng, err := a.engine()
			if err != nil {
				return err
			}
			r, err := eng.Analyze(c.Context(), args[0])
			if err != nil {
				return err
			}
			return print(a.out, r)
		},
	}
	c.Flags().StringVarP(&format, "format", "f", "", inspectFormatHelp)
	return c
}

func printAnalysis(w io.Writer, r *engine.Analysis) error {
	t := &analysisText{Writer: tabwriter.NewWriter(w, 0, 8, 3, ' ', 0), w: w}
	t.line("Image:\t%s", strings.TrimSpace(r.Name+" "+image.ShortID(string(r.ID))+" "+r.Platform))
	t.line("Size:\t%s in %d layers", size3(r.Size), len(r.Layers))
	t.line("Visible:\t%s in %d files (%s)", size3(r.Visible), r.Files, percent(r.Visible, r.Size))
	t.heading("LAYER\tSIZE\tFILES\tREPLACED\tREMOVED\tLINE")
	for _, l := range r.Layers {
		t.line("%d\t%s\t%d\t%s\t%s\t%s", l.Layer, size3(l.Size), l.Files, size3(l.Replaced.Size), size3(l.Removed.Size), ellipsis(strings.Join(strings.Fields(l.Line), " "), 72))
	}
	if len(r.Hidden) > 0 {
		t.heading("HIDDEN\tSIZE\tHOW\tPATH")
		for _, h := range r.Hidden {
			t.line("%d\t%s\t%s by %d\t%s", h.Layer, size3(h.Size), h.How, h.By, h.Path)
		}
	}
	if len(r.Duplicates) > 0 {
		t.heading("DUPLICATES\tSIZE\tWASTED\tPATHS")
		for _, d := range r.Duplicates {
			t.line("%d\t%s\t%s\t%s", len(d.Paths), size3(d.Size), size3(d.Wasted), somePaths(d.Paths, 3))
		}
	}
	if len(r.Caches) > 0 {
		t.heading("CACHE\tSIZE\tLAYER\tPATH\tADVICE")
		for _, c := range r.Caches {
			t.line("%s\t%s\t%s\t%s\t%s", c.Tool, size3(c.Size), numbers(c.Layers), c.Path, c.Advice)
		}
	}
	t.heading("LARGEST\tSIZE\tPATH")
	for _, f := range r.Largest {
		t.line("%d\t%s\t%s", f.Layer, size3(f.Size), f.Path)
	}
	t.base(r.Base)
	return t.Flush()
}

type analysisText struct {
	*tabwriter.Writer
	w io.Writer
}

func (t *analysisText) line(format string, args ...any) { fmt.Fprintf(t, format+"\n", args...) }

// heading begins a table with columns of its own.
func (t *analysisText) heading(columns string) {
	t.Flush()
	fmt.Fprintf(t, "\n%s\n", columns)
}

func (t *analysisText) base(b *engine.BaseComparison) {
	if b == nil {
		return
	}
	t.Flush()
	on := ""
	if b.Name != "" {
		on = fmt.Sprintf(" (its base is %s)", b.Name)
	}
	if b.Measured {
		fmt.Fprintf(t.w, "\nThe base %s instead of one of %s would save %s%s.\n", b.Slim, size3(b.Size), size3(b.Saves), on)
		return
	}
	fmt.Fprintf(t.w, "\nA slim base would save about %s%s:\n", size3(b.Saves), on)
	for _, h := range b.Heavy {
		s := fmt.Sprintf("  %s of %s", size3(h.Size), h.What)
		if len(h.Packages) > 0 {
			s += ": " + strings.Join(h.Packages, ", ")
		}
		fmt.Fprintln(t.w, s)
	}
}

func percent(part, whole int64) string {
	if whole == 0 {
		return "100%"
	}
	return strconv.FormatInt(part*100/whole, 10) + "%"
}

func somePaths(ps []string, n int) string {
	if len(ps) <= n {
		return strings.Join(ps, " ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(ps[:n], " "), len(ps)-n)
}

func numbers(ns []int) string {
	var s []string
	for _, n := range ns {
		s = append(s, strconv.Itoa(n))
	}
	return strings.Join(s, ",")
}

// newImageTree is keg images --tree by a name of its own.
func newImageTree(a *app) *cobra.Command {
	o := &imagesFlags{}
	c := &cobra.Command{
		Use:               "tree [OPTIONS] [REPOSITORY[:TAG]]",
		Args:              maxArgs(1),
		ValidArgsFunction: a.complete(imageNames, 1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.imageTree(c.Context(), o, firstOf(args...))
		},
	}
	c.Flags().BoolVarP(&o.all, "all", "a", false, "Show all images (default hides intermediate images)")
	c.Flags().VarP(&o.filter, "filter", "f", "Filter output based on conditions provided")
	return c
}
