// keg system check.

package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"keg/internal/engine"
)

func newCheck(a *app) *cobra.Command {
	var repair bool
	c := &cobra.Command{
		Use:  "check [OPTIONS]",
		Long: "Verify what is stored: read every blob and record and say what is damaged.\nExit status 1 means that something is damaged.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			eng, err := a.engine()
			if err != nil {
				return err
			}
			n, left := 0, 0
			err = eng.Check(c.Context(), repair, func(p engine.Problem) {
				n++
				state := ""
				if p.Repaired {
					state = " (repaired)"
				} else {
					left++
				}
				fmt.Fprintf(a.out, "%s: %s%s\n", p.Object, p.Text, state)
			})
			switch {
			case err != nil:
				return err
			case n == 0:
				fmt.Fprintln(a.out, "All is well.")
			case left > 0:
				return failf("%d %s found; run '%s system check --repair' to move what is damaged aside", left, plural("problem", left), a.name)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&repair, "repair", false, "Move damaged data aside, so that it is fetched or built again")
	return c
}
