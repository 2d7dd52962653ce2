// keg cp.

package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"keg/internal/engine"
)

type cpFlags struct{ archive, follow, quiet bool }

func newCp(a *app) *cobra.Command {
	o := &cpFlags{}
	c := &cobra.Command{
		Use:               "cp [OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-",
		Args:              exactArgs(2),
		ValidArgsFunction: a.completeCp,
		RunE: func(c *cobra.Command, args []string) error {
			if args[0] == "" {
				return failf("source can not be empty")
			}
			if args[1] == "" {
				return failf("destination can not be empty")
			}
			err := a.cp(c.Context(), args[0], args[1], o)
			var host *engine.HostError
			if errors.As(err, &host) {
				return failf("%v", host.Err)
			}
			return err
		},
	}
	fs := c.Flags()
	fs.BoolVarP(&o.archive, "archive", "a", false, "Archive mode (copy all uid/gid information)")
	fs.BoolVarP(&o.follow, "follow-link", "L", false, "Always follow symbol link in SRC_PATH")
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "Suppress progress output during copy. Progress output is automatically suppressed if no terminal is attached")
	return c
}

func (a *app) completeCp(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 1 || strings.Contains(typed, "/") || strings.Contains(typed, ":") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	names, _ := a.complete(containerNames(anyState), 0)(c, nil, typed)
	for i := range names {
		names[i] += ":"
	}
	return names, cobra.ShellCompDirectiveNoSpace
}

// splitCp tells CONTAINER:PATH from a path of the host: what begins with "/" or "." is one.
func splitCp(arg string) (container, path string) {
	if filepath.IsAbs(arg) {
		return "", arg
	}
	c, p, ok := strings.Cut(arg, ":")
	if !ok || strings.HasPrefix(c, ".") {
		return "", arg
	}
	return c, p
}

func (a *app) cp(ctx context.Context, source, destination string, o *cpFlags) error {
	from, src := splitCp(source)
	to, dst := splitCp(destination)
	opt := engine.CopyOptions{Archive: o.archive, Follow: o.follow}
	switch {
	case from != "" && to != "":
		return failf("copying between containers is not supported")
	case from != "":
		return a.copyOut(ctx, from, src, dst, opt, o.quiet)
	case to != "":
		return a.copyIn(ctx, src, to, dst, opt, o.quiet)
	}
	return failf("must specify at least one container source")
}

func (a *app) copyOut(ctx context.Context, ref, src, dst string, o engine.CopyOptions, quiet bool) error {
	if dst == "-" {
		eng, err := a.engine()
		if err != nil {
			return err
		}
		_, err = eng.CopyFrom(ctx, ref, src, o.Follow, a.rawOut)
		return err
	}
	dst, err := localPath(dst)
	if err != nil {
		return err
	}
	if err := checkOutput(dst); err != nil {
		return failf("%v", err)
	}
	eng, err := a.engine()
	if err != nil {
		return err
	}
	done := a.copyProgress(&o, "Copying from container", quiet)
	n, err := eng.CopyOut(ctx, ref, src, dst, o)
	done(n, err)
	return err
}

func (a *app) copyIn(ctx context.Context, src, ref, dst string, o engine.CopyOptions, quiet bool) error {
	eng, err := a.engine()
	if err != nil {
		return err
	}
	if src == "-" {
		return eng.CopyTo(ctx, ref, dst, a.in, o)
	}
	if src, err = localPath(src); err != nil {
		return err
	}
	done := a.copyProgress(&o, "Copying to container", quiet)
	n, err := eng.CopyIn(ctx, src, ref, dst, o)
	done(n, err)
	return err
}

// localPath makes a path absolute and keeps a trailing slash or dot, which mean something.
func localPath(p string) (string, error) {
	abs, err := filepath.Abs(p)
	if err != nil {
		return "", failf("%v", err)
	}
	switch {
	case p == "." || strings.HasSuffix(p, "/."):
		return strings.TrimSuffix(abs, "/") + "/.", nil
	case strings.HasSuffix(p, "/") && abs != "/":
		return abs + "/", nil
	}
	return abs, nil
}

// copyProgress shows on a terminal how much was copied, and at the end, everywhere, what.
func (a *app) copyProgress(o *engine.CopyOptions, head string, quiet bool) func(engine.Copied, error) {
	if quiet {
		return func(engine.Copied, error) {}
	}
	drawn := false
	if a.errTTY {
		o.Progress = func(n int64) {
			drawn = true
			fmt.Fprintf(a.rawErr, "\r\x1b[2K%s - %s", head, humanSize3(n))
		}
	}
	return func(c engine.Copied, err error) {
		if drawn {
			fmt.Fprint(a.rawErr, "\r\x1b[2K")
		}
		if err == nil {
			fmt.Fprintln(a.err, "Successfully copied", humanSize3(c.Bytes), "to", c.To)
		}
	}
}

func humanSize3(n int64) string { return units.HumanSizeWithPrecision(float64(n), 3) }
