// keg system prune, and prune of each kind of object.

package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"keg/internal/engine"
)

// pruneCommand asks before it prunes; print says what went.
type pruneCommand struct {
	cancelled string
	what      func(c *cobra.Command, o *engine.PruneOptions) (warning string)
	print     func(w io.Writer, p engine.Pruned)
	flags     func(c *cobra.Command, o *engine.PruneOptions)
	noTotal   bool
}

func (a *app) prune(p pruneCommand) *cobra.Command {
	var o engine.PruneOptions
	var force bool
	var filter filterValue
	c := &cobra.Command{
		Use:  "prune [OPTIONS]",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o.Filter = filter.f
			warning := p.what(c, &o)
			if !force {
				ok, err := a.confirm(c.Context(), warning)
				if err != nil {
					return err
				}
				if !ok {
					return failf("%s prune has been cancelled", p.cancelled)
				}
			}
			eng, err := a.engine()
			if err != nil {
				return err
			}
			gone, err := eng.Prune(c.Context(), o)
			if err != nil {
				return err
			}
			p.print(a.out, gone)
			if !p.noTotal {
				fmt.Fprintln(a.out, "Total reclaimed space:", units.HumanSize(float64(gone.Reclaimed)))
			}
			return nil
		},
	}
	fs := c.Flags()
	if p.flags != nil {
		p.flags(c, &o)
	}
	fs.Var(&filter, "filter", `Provide filter values (e.g. "until=<timestamp>")`)
	fs.BoolVarP(&force, "force", "f", false, "Do not prompt for confirmation")
	return c
}

// confirm asks a question that only y or yes answers with yes.
func (a *app) confirm(ctx context.Context, question string) (bool, error) {
	fmt.Fprint(a.out, question+" [y/N] ")
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(a.in).ReadString('\n')
		answer <- strings.TrimSpace(line)
	}()
	select {
	case s := <-answer:
		return strings.EqualFold(s, "y") || strings.EqualFold(s, "yes"), nil
	case <-ctx.Done():
		fmt.Fprintln(a.out)
		return false, errors.Join(context.Canceled, context.Cause(ctx))
	}
}

const sure = "\nAre you sure you want to continue?"

func deleted(w io.Writer, title string, names []string) {
	if len(names) == 0 {
		return
	}
	fmt.Fprintf(w, "%s:\n%s\n\n", title, strings.Join(names, "\n"))
}

func deletedImages(w io.Writer, p engine.Pruned) {
	if len(p.Images) == 0 {
		return
	}
	fmt.Fprintln(w, "Deleted Images:")
	for _, d := range p.Images {
		if d.Untagged != "" {
			fmt.Fprintln(w, "untagged:", d.Untagged)
		} else {
			fmt.Fprintln(w, "deleted:", d.Deleted)
		}
	}
	fmt.Fprintln(w)
}

func newContainerPrune(a *app) *cobra.Command {
	return a.prune(pruneCommand{
		cancelled: "container",
		what: func(_ *cobra.Command, o *engine.PruneOptions) string {
			o.Containers = true
			return "WARNING! This will remove all stopped containers." + sure
		},
		print: func(w io.Writer, p engine.Pruned) { deleted(w, "Deleted Containers", p.Containers) },
	})
}

func newImagePrune(a *app) *cobra.Command {
	return a.prune(pruneCommand{
		cancelled: "image",
		flags: func(c *cobra.Command, o *engine.PruneOptions) {
			c.Flags().BoolVarP(&o.All, "all", "a", false, "Remove all unused images, not just dangling ones")
		},
		what: func(_ *cobra.Command, o *engine.PruneOptions) string {
			o.Images = true
			if o.All {
				return "WARNING! This will remove all images without at least one container associated to them." + sure
			}
			return "WARNING! This will remove all dangling images." + sure
		},
		print: deletedImages,
	})
}

func newVolumePrune(a *app) *cobra.Command {
	return a.prune(pruneCommand{
		cancelled: "volume",
		flags: func(c *cobra.Command, o *engine.PruneOptions) {
			c.Flags().BoolVarP(&o.All, "all", "a", false, "Remove all unused volumes, not just anonymous ones")
		},
		what: func(_ *cobra.Command, o *engine.PruneOptions) string {
			o.Volumes = true
			if o.All {
				return "WARNING! This will remove all local volumes not used by at least one container." + sure
			}
			return "WARNING! This will remove anonymous local volumes not used by at least one container." + sure
		},
		print: func(w io.Writer, p engine.Pruned) { deleted(w, "Deleted Volumes", p.Volumes) },
	})
}

func newNetworkPrune(a *app) *cobra.Command {
	return a.prune(pruneCommand{
		cancelled: "network", noTotal: true,
		what: func(_ *cobra.Command, o *engine.PruneOptions) string {
			o.Networks = true
			return "WARNING! This will remove all custom networks not used by at least one container." + sure
		},
		print: func(w io.Writer, p engine.Pruned) { deleted(w, "Deleted Networks", p.Networks) },
	})
}

func newSystemPrune(a *app) *cobra.Command {
	return a.prune(pruneCommand{
		cancelled: "system",
		flags: func(c *cobra.Command, o *engine.PruneOptions) {
			c.Flags().BoolVarP(&o.All, "all", "a", false, "Remove all unused images, not just dangling ones")
			c.Flags().BoolVar(&o.Volumes, "volumes", false, "Prune anonymous volumes")
		},
		what: systemPrune,
		print: func(w io.Writer, p engine.Pruned) {
			deleted(w, "Deleted Containers", p.Containers)
			deleted(w, "Deleted Networks", p.Networks)
			deleted(w, "Deleted Volumes", p.Volumes)
			deletedImages(w, p)
			deleted(w, "Deleted build cache objects", p.BuildCache)
		},
	})
}

func systemPrune(_ *cobra.Command, o *engine.PruneOptions) string {
	o.Containers, o.Networks, o.Images, o.BuildCache = true, true, true, true
	things := []string{"all stopped containers", "all networks not used by at least one container"}
	if o.Volumes {
		things = append(things, "all anonymous volumes not used by at least one container")
	}
	if o.All {
		things = append(things, "all images without at least one container associated to them", "all build cache")
	} else {
		things = append(things, "all dangling images", "unused build cache")
	}
	var b strings.Builder
	b.WriteString("WARNING! This will remove:\n")
	for _, t := range things {
		b.WriteString("  - " + t + "\n")
	}
	if len(o.Filter) > 0 {
		b.WriteString("\n  Items to be pruned will be filtered with:\n")
		for _, k := range sortedKeys(o.Filter) {
			for _, v := range o.Filter[k] {
				b.WriteString("  - " + k + "=" + v + "\n")
			}
		}
	}
	return b.String() + sure
}
