// keg volume clone, export, import, rename.

package cli

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
)

func newVolumeClone(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "clone SOURCE TARGET",
		Args:              exactArgs(2),
		ValidArgsFunction: a.complete(volumeNames, 1),
		RunE: func(c *cobra.Command, args []string) error {
			eng, err := a.engine()
			if err != nil {
				return err
			}
			v, err := eng.CloneVolume(c.Context(), args[0], args[1])
			if err != nil {
				return err
			}
			fmt.Fprintln(a.out, v.Name)
			return nil
		},
	}
}

func newVolumeRename(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "rename VOLUME NEW_NAME",
		Args:              exactArgs(2),
		ValidArgsFunction: a.complete(volumeNames, 1),
		RunE: func(c *cobra.Command, args []string) error {
			eng, err := a.engine()
			if err != nil {
				return err
			}
			return eng.RenameVolume(c.Context(), args[0], args[1])
		},
	}
}

func newVolumeExport(a *app) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:               "export [OPTIONS] VOLUME",
		Args:              exactArgs(1),
		ValidArgsFunction: a.complete(volumeNames, 1),
		RunE: func(c *cobra.Command, args []string) error {
			if output == "" && a.outTTY {
				return failf("cowardly refusing to save to a terminal. Use the -o flag or redirect")
			}
			eng, err := a.engine()
			if err != nil {
				return err
			}
			if output == "" || output == "-" {
				return eng.ExportVolume(c.Context(), args[0], a.rawOut)
			}
			return toFile(output, func(w io.Writer) error { return eng.ExportVolume(c.Context(), args[0], w) })
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "", "Write to a file, instead of STDOUT")
	return c
}

func newVolumeImport(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "import VOLUME [FILE|-]",
		Args:              rangeArgs(1, 2),
		ValidArgsFunction: a.complete(volumeNames, 1),
		RunE: func(c *cobra.Command, args []string) error {
			in := a.in
			if len(args) == 2 && args[1] != "-" {
				f, err := os.Open(args[1])
				if err != nil {
					return failf("%v", err)
				}
				defer f.Close()
				in = f
			} else if a.inTTY {
				return failf("requested import from a terminal: name a file or redirect")
			}
			eng, err := a.engine()
			if err != nil {
				return err
			}
			return eng.ImportVolume(c.Context(), args[0], in)
		},
	}
}
