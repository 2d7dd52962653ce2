// keg why.

package cli

import (
	"fmt"
	"io"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"keg/internal/engine"
)

func newWhy(a *app) *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:               "why [OPTIONS] OBJECT [OBJECT...]",
		Long:              "Tell who refers to an image, layer, blob, volume, container or network, and what would free it",
		Args:              minArgs(1),
		ValidArgsFunction: a.complete(allNames, 0),
		RunE: func(c *cobra.Command, args []string) error {
			print := printReason
			if format != "" {
				t, err := parseObjectTemplate("", format)
				if err != nil {
					return err
				}
				print = func(w io.Writer, r engine.Reason) error { return executeLine(w, t, r) }
			}
			eng, err := a.engine()
			if err != nil {
				return err
			}
			var errs []error
			for i, ref := range args {
				rs, err := eng.Why(c.Context(), ref)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				for j, r := range rs {
					if i+j > 0 && format == "" {
						fmt.Fprintln(a.out)
					}
					if err := print(a.out, r); err != nil {
						return err
					}
				}
			}
			return join(errs)
		},
	}
	c.Flags().StringVarP(&format, "format", "f", "", inspectFormatHelp)
	return c
}

func printReason(w io.Writer, r engine.Reason) error {
	fmt.Fprintf(w, "%s %s", r.Kind, r.Name)
	if r.Name != r.ID && r.ID != "" {
		fmt.Fprintf(w, " (%s)", shortID(r.ID))
	}
	if r.Size > 0 {
		fmt.Fprintf(w, ", %s", units.HumanSize(float64(r.Size)))
	}
	fmt.Fprintln(w)
	if len(r.Users) == 0 {
		fmt.Fprintln(w, "  nothing refers to it")
	}
	for _, u := range r.Users {
		fmt.Fprintf(w, "  %s %s: %s\n", u.Kind, u.Name, u.How)
	}
	if len(r.Free) > 0 {
		fmt.Fprintln(w, "To free it:")
	}
	for _, f := range r.Free {
		fmt.Fprintf(w, "  keg %s\n", f)
	}
	_, err := fmt.Fprintf(w, "That frees %s.\n", units.HumanSize(float64(r.Frees)))
	return err
}
