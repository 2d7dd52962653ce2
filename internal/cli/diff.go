// keg diff.

package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newDiff(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "diff CONTAINER",
		Args:              exactArgs(1),
		ValidArgsFunction: a.complete(containerNames(anyState), 1),
		RunE: func(c *cobra.Command, args []string) error {
			eng, err := a.engine()
			if err != nil {
				return err
			}
			changes, err := eng.Diff(c.Context(), args[0])
			if err != nil {
				return err
			}
			for _, x := range changes {
				fmt.Fprintf(a.out, "%c %s\n", "CAD"[x.Kind], x.Path)
			}
			return nil
		},
	}
}
