// keg pull, push, tag, rmi.

package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"keg/internal/engine"
	"keg/internal/fault"
	"keg/internal/image"
)

type pullFlags struct {
	all      bool
	quiet    bool
	platform string
}

func newPull(a *app) *cobra.Command {
	o := &pullFlags{platform: a.env["DOCKER_DEFAULT_PLATFORM"]}
	c := &cobra.Command{
		Use:               "pull [OPTIONS] NAME[:TAG|@DIGEST]",
		Args:              exactArgs(1),
		ValidArgsFunction: a.complete(imageNames, 1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.pull(c.Context(), args[0], o)
		},
	}
	fs := c.Flags()
	fs.BoolVarP(&o.all, "all-tags", "a", false, "Download all tagged images in the repository")
	fs.StringVar(&o.platform, "platform", o.platform, "Set platform if the image has several")
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "Suppress verbose output")
	fs.Bool("disable-content-trust", true, "")
	fs.Lookup("disable-content-trust").Hidden = true
	return c
}

// parseRemote reads the name of an image in a registry, and says which tag is meant
// when none was given.
func (a *app) parseRemote(name string, quiet bool) (image.Reference, error) {
	ref, err := image.ParseReference(name)
	if err != nil {
		return ref, failf("%v", err)
	}
	if ref.Digest == "" && ref.Tag == image.DefaultTag && !hasTag(name) && !quiet {
		fmt.Fprintln(a.out, "Using default tag:", ref.Tag)
	}
	return ref, nil
}

// hasTag: is there a tag in what was typed? A colon before a slash is a port.
func hasTag(name string) bool {
	for i := len(name) - 1; i >= 0 && name[i] != '/'; i-- {
		if name[i] == ':' {
			return true
		}
	}
	return false
}

func (a *app) pull(ctx context.Context, name string, o *pullFlags) error {
	if o.all {
		return a.pullAll(ctx, name, o)
	}
	ref, err := a.parseRemote(name, o.quiet)
	if err != nil {
		return err
	}
	opt, err := o.options()
	if err != nil {
		return err
	}
	eng, err := a.engine()
	if err != nil {
		return err
	}
	opt.Progress = a.newProgress(a.rawOut, a.outTTY, o.quiet).event
	p, err := eng.Pull(ctx, ref, opt)
	if err != nil {
		return err
	}
	a.tellMoved(p)
	fmt.Fprintln(a.out, ref)
	return nil
}

// tellMoved says that a name leads elsewhere now; containers made before keep the old image.
func (a *app) tellMoved(p engine.Pulled) {
	if words := p.Moved(); words != "" {
		fmt.Fprintln(a.err, words)
	}
}

// pullAll pulls every tag; the name must not have one.
func (a *app) pullAll(ctx context.Context, name string, o *pullFlags) error {
	ref, err := image.ParseRepository(name)
	if err != nil {
		return failf("%v", err)
	}
	if ref.Tag != "" || ref.Digest != "" {
		return failf("tag can't be used with --all-tags/-a")
	}
	opt, err := o.options()
	if err != nil {
		return err
	}
	eng, err := a.engine()
	if err != nil {
		return err
	}
	opt.Progress = a.newProgress(a.rawOut, a.outTTY, o.quiet).event
	all, err := eng.PullAll(ctx, ref, opt)
	for _, p := range all {
		a.tellMoved(p)
	}
	if err != nil {
		return err
	}
	fmt.Fprintln(a.out, ref.Name())
	return nil
}

func (o *pullFlags) options() (engine.PullOptions, error) {
	opt := engine.PullOptions{}
	if o.platform != "" {
		p, err := image.ParsePlatform(o.platform)
		if err != nil {
			return opt, failf("%v", err)
		}
		opt.Platform = &p
	}
	return opt, nil
}

func newPush(a *app) *cobra.Command {
	var quiet, all bool
	var compression, platform string
	c := &cobra.Command{
		Use:               "push [OPTIONS] NAME[:TAG]",
		Args:              exactArgs(1),
		ValidArgsFunction: a.complete(imageNames, 1),
		RunE: func(c *cobra.Command, args []string) error {
			if compression != "" && compression != string(image.Gzip) && compression != string(image.Zstd) {
				return failf("--compression: %q is not one of gzip, zstd", compression)
			}
			if all {
				return a.pushAll(c.Context(), args[0], compression, quiet)
			}
			ref, err := a.parseRemote(args[0], quiet)
			if err != nil {
				return err
			}
			if err := a.onPlatform(c.Context(), args[:1], platform); err != nil {
				return err
			}
			return a.push(c.Context(), ref, compression, quiet)
		},
	}
	fs := c.Flags()
	fs.BoolVarP(&all, "all-tags", "a", false, "Push all tags of an image to the repository")
	fs.StringVar(&platform, "platform", "", "Push the image for this platform, or fail")
	fs.StringVar(&compression, "compression", "", `Compression of layers that were built here ("gzip", "zstd"; default: as last time)`)
	fs.BoolVarP(&quiet, "quiet", "q", false, "Suppress verbose output")
	fs.Bool("disable-content-trust", true, "")
	fs.Lookup("disable-content-trust").Hidden = true
	return c
}

func (a *app) push(ctx context.Context, ref image.Reference, compression string, quiet bool) error {
	eng, err := a.engine()
	if err != nil {
		return err
	}
	p := a.newProgress(a.rawOut, a.outTTY, quiet)
	p.event(engine.PullEvent{Status: "The push refers to repository [" + ref.Name() + "]"})
	d, err := eng.PushWith(ctx, ref, engine.PushOptions{Compression: image.Compression(compression), Progress: p.event})
	if err != nil {
		return err
	}
	if quiet {
		fmt.Fprintln(a.out, ref)
		return nil
	}
	fmt.Fprintf(a.out, "%s: digest: %s size: %d\n", firstOf(ref.Tag, string(ref.Digest)), d.Digest, d.Size)
	return nil
}

func (a *app) pushAll(ctx context.Context, name, compression string, quiet bool) error {
	repo, err := image.ParseReference(name)
	if err != nil {
		return failf("%v", err)
	}
	if hasTag(name) || repo.Digest != "" {
		return failf("tag can't be used with --all-tags/-a")
	}
	eng, err := a.engine()
	if err != nil {
		return err
	}
	list, err := eng.Images(ctx, engine.ImageListOptions{Ref: repo.FamiliarName()})
	if err != nil {
		return err
	}
	found := false
	for _, i := range list {
		for _, t := range i.RepoTags {
			ref, err := image.ParseReference(t)
			if err != nil || ref.Name() != repo.Name() {
				continue
			}
			found = true
			if err := a.push(ctx, ref, compression, quiet); err != nil {
				return err
			}
		}
	}
	if !found {
		return fault.NotFoundf("An image does not exist locally with the tag: %s", repo.FamiliarName())
	}
	return nil
}

func newTag(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "tag SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
		Args:              exactArgs(2),
		ValidArgsFunction: a.complete(imageNames, 2),
		RunE: func(c *cobra.Command, args []string) error {
			eng, err := a.engine()
			if err != nil {
				return err
			}
			return eng.Tag(c.Context(), args[0], args[1])
		},
	}
}

func newRmi(a *app) *cobra.Command {
	var force, noPrune bool
	var platforms []string
	c := &cobra.Command{
		Use:               "rmi [OPTIONS] IMAGE [IMAGE...]",
		Args:              minArgs(1),
		ValidArgsFunction: a.complete(imageNames, 0),
		RunE: func(c *cobra.Command, args []string) error {
			for _, p := range platforms {
				if err := a.onPlatform(c.Context(), args, p); err != nil {
					return err
				}
			}
			return a.removeImages(c.Context(), args, force)
		},
	}
	fs := c.Flags()
	fs.BoolVarP(&force, "force", "f", false, "Force removal of the image")
	fs.BoolVar(&noPrune, "no-prune", false, "Do not delete untagged parents (there are none)")
	fs.StringSliceVar(&platforms, "platform", nil, `Remove only if the image is for this platform ("os[/arch[/variant]]")`)
	return c
}

// onPlatform fails for the first image that is for another platform; "" is any.
func (a *app) onPlatform(ctx context.Context, names []string, platform string) error {
	if platform == "" {
		return nil
	}
	p, err := platformOf(platform)
	if err != nil {
		return err
	}
	eng, err := a.engine()
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := eng.OnPlatform(ctx, n, p); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) removeImages(ctx context.Context, names []string, force bool) error {
	eng, err := a.engine()
	if err != nil {
		return err
	}
	var errs []error
	fatal := !force // with -f an image that is not there is no failure
	for _, n := range names {
		gone, err := eng.RemoveImage(ctx, n, force)
		for _, d := range gone {
			if d.Deleted != "" {
				fmt.Fprintln(a.out, "Deleted:", d.Deleted)
			} else {
				fmt.Fprintln(a.out, "Untagged:", d.Untagged)
			}
		}
		if err != nil {
			fatal = fatal || !fault.Is(err, fault.NotFound)
			errs = append(errs, err)
		}
	}
	if fatal {
		return join(errs)
	}
	for _, err := range errs {
		fmt.Fprintln(a.err, sentence(err))
	}
	return nil
}
