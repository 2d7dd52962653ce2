// keg save, load, import, export, commit.

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"keg/internal/engine"
	"keg/internal/image"
)

func newSave(a *app) *cobra.Command {
	var output, platform string
	c := &cobra.Command{
		Use:               "save [OPTIONS] IMAGE [IMAGE...]",
		Args:              minArgs(1),
		ValidArgsFunction: a.complete(imageNames, 0),
		RunE: func(c *cobra.Command, args []string) error {
			p, err := platformOf(platform)
			if err != nil {
				return err
			}
			return a.writeArchive(output, "failed to save image", func(eng backend, w io.Writer) error {
				return eng.Save(c.Context(), args, w, engine.SaveOptions{Platform: p})
			})
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "", "Write to a file, instead of STDOUT")
	c.Flags().StringVar(&platform, "platform", "", `Save only the given platform (e.g., "linux/amd64")`)
	return c
}

func newExport(a *app) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:               "export [OPTIONS] CONTAINER",
		Args:              exactArgs(1),
		ValidArgsFunction: a.complete(containerNames(anyState), 1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.writeArchive(output, "failed to export container", func(eng backend, w io.Writer) error {
				return eng.Export(c.Context(), args[0], w)
			})
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "", "Write to a file, instead of STDOUT")
	return c
}

func platformOf(s string) (*image.Platform, error) {
	if s == "" {
		return nil, nil
	}
	p, err := image.ParsePlatform(s)
	if err != nil {
		return nil, failf("invalid platform: %v", err)
	}
	return &p, nil
}

// writeArchive writes to the file, which appears when it is whole, or to standard
// output unless that is a terminal.
func (a *app) writeArchive(output, failed string, write func(backend, io.Writer) error) error {
	if output == "" && a.outTTY {
		return failf("cowardly refusing to save to a terminal. Use the -o flag or redirect")
	}
	if output != "" {
		if err := checkOutput(output); err != nil {
			return failf("%s: %v", failed, err)
		}
	}
	eng, err := a.engine()
	if err != nil {
		return err
	}
	if output == "" {
		return write(eng, a.rawOut)
	}
	return toFile(output, func(w io.Writer) error { return write(eng, w) })
}

// checkOutput is Docker's look at a path that is to be written.
func checkOutput(p string) error {
	if dir := filepath.Dir(filepath.Clean(p)); dir != "." {
		if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("invalid output path: directory %q does not exist", dir)
		}
	}
	st, err := os.Stat(p)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.Mode()&os.ModeDevice != 0 && p != os.DevNull:
		return fmt.Errorf("invalid output path: %q must be a directory or a regular file: got a device", p)
	case st.Mode()&os.ModeIrregular != 0:
		return fmt.Errorf("invalid output path: %q must be a directory or a regular file: got an irregular file", p)
	}
	return nil
}

// toFile writes a file that appears whole or not at all.
func toFile(p string, write func(io.Writer) error) (err error) {
	if st, serr := os.Stat(p); serr == nil && !st.Mode().IsRegular() { // a FIFO, /dev/null
		f, err := os.OpenFile(p, os.O_WRONLY, 0)
		if err != nil {
			return failf("%v", err)
		}
		return errors.Join(write(f), f.Close())
	}
	f, err := os.CreateTemp(filepath.Dir(p), ".tmp-")
	if err != nil {
		return failf("%v", err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if err := write(f); err != nil {
		f.Close()
		return err
	}
	if err := errors.Join(f.Close(), os.Rename(f.Name(), p)); err != nil {
		return failf("%v", err)
	}
	return nil
}

func newLoad(a *app) *cobra.Command {
	var input, platform string
	var quiet bool
	c := &cobra.Command{
		Use:  "load [OPTIONS]",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.load(c.Context(), input, platform, quiet)
		},
	}
	fs := c.Flags()
	fs.StringVarP(&input, "input", "i", "", "Read from tar archive file, instead of STDIN")
	fs.BoolVarP(&quiet, "quiet", "q", false, "Suppress the load output")
	fs.StringVar(&platform, "platform", "", `Load only the given platform (e.g., "linux/amd64")`)
	return c
}

func (a *app) load(ctx context.Context, input, platform string, quiet bool) error {
	p, err := platformOf(platform)
	if err != nil {
		return err
	}
	in := a.in
	if input != "" {
		f, err := os.Open(input)
		if err != nil {
			return failf("%v", err)
		}
		defer f.Close()
		in = f
	} else if a.inTTY {
		return failf("requested load from stdin, but stdin is empty")
	}
	eng, err := a.engine()
	if err != nil {
		return err
	}
	opt := engine.LoadOptions{Platform: p}
	if a.outTTY && !quiet { // a file gets the names only, as with Docker
		opt.Progress = a.newProgress(a.rawOut, true, false).event
	}
	loaded, err := eng.Load(ctx, in, opt)
	for _, l := range loaded {
		if l.Moved != "" {
			fmt.Fprintf(a.out, "The image %s already exists, renaming the old one with ID %s to empty string\n", l.Ref.Familiar(), l.Moved)
		}
		if l.Ref.Repository != "" {
			fmt.Fprintln(a.out, "Loaded image:", l.Ref.Familiar())
		} else {
			fmt.Fprintln(a.out, "Loaded image ID:", l.ID)
		}
	}
	return err
}

func newImport(a *app) *cobra.Command {
	var o engine.ImportOptions
	var platform string
	c := &cobra.Command{
		Use:  "import [OPTIONS] file|URL|- [REPOSITORY[:TAG]]",
		Args: minArgs(1),
		RunE: func(c *cobra.Command, args []string) (err error) {
			if o.Platform, err = platformOf(platform); err != nil {
				return err
			}
			o.Source = args[0]
			if len(args) > 1 {
				o.Repository = args[1]
			}
			return a.importImage(c.Context(), o)
		},
	}
	fs := c.Flags()
	fs.VarP(newList(&o.Changes, nil), "change", "c", "Apply Dockerfile instruction to the created image")
	fs.StringVarP(&o.Message, "message", "m", "", "Set commit message for imported image")
	fs.StringVar(&platform, "platform", a.env["DOCKER_DEFAULT_PLATFORM"], "Set platform if server is multi-platform capable")
	return c
}

func (a *app) importImage(ctx context.Context, o engine.ImportOptions) error {
	eng, err := a.engine()
	if err != nil {
		return err
	}
	in := a.in
	switch {
	case o.Source == "-":
	case isURL(o.Source):
		body, err := engine.OpenURL(ctx, o.Source)
		if err != nil {
			return err
		}
		defer body.Close()
		in = body
	default:
		f, err := os.Open(o.Source)
		if err != nil {
			return failf("%v", err)
		}
		defer f.Close()
		in, o.Source = f, "-"
	}
	id, err := eng.Import(ctx, in, o)
	if err != nil {
		return err
	}
	fmt.Fprintln(a.out, id)
	return nil
}

func isURL(s string) bool {
	return strings.HasPrefix(s, "http://") || strings.HasPrefix(s, "https://")
}

func newCommit(a *app) *cobra.Command {
	var o engine.CommitOptions
	pause := true
	c := &cobra.Command{
		Use:               "commit [OPTIONS] CONTAINER [REPOSITORY[:TAG]]",
		ValidArgsFunction: a.complete(containerNames(anyState), 1),
		Args: func(c *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return argsError(c, "requires at least 1 and at most 2 arguments", "See")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if c.Flags().Changed("pause") {
				if c.Flags().Changed("no-pause") {
					return failf("conflicting options: --no-pause and --pause cannot be used together")
				}
				o.NoPause = !pause
			}
			if len(args) > 1 {
				o.Repository = args[1]
			}
			eng, err := a.engine()
			if err != nil {
				return err
			}
			id, err := eng.Commit(c.Context(), args[0], o)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.out, id)
			return nil
		},
	}
	fs := c.Flags()
	fs.StringVarP(&o.Author, "author", "a", "", `Author (e.g., "John Hannibal Smith <hannibal@a-team.com>")`)
	fs.VarP(newList(&o.Changes, nil), "change", "c", "Apply Dockerfile instruction to the created image")
	fs.StringVarP(&o.Message, "message", "m", "", "Commit message")
	fs.BoolVar(&o.NoPause, "no-pause", false, "Do not pause container during commit")
	fs.BoolVarP(&pause, "pause", "p", true, "Pause container during commit")
	fs.Lookup("pause").Hidden = true // deprecated by Docker 29
	return c
}
