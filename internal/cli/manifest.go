// keg manifest.

package cli

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"keg/internal/engine"
	"keg/internal/fault"
	"keg/internal/image"
)

func manifestCommands() []entry {
	return []entry{
		{name: "annotate", short: "Add additional information to a local image manifest", make: newManifestAnnotate},
		{name: "create", short: "Create a local manifest list for annotating and pushing to a registry", make: newManifestCreate},
		{name: "inspect", short: "Display an image manifest, or manifest list", make: newManifestInspect},
		{name: "push", short: "Push a manifest list to a repository", make: newManifestPush},
		{name: "rm", short: "Delete one or more manifest lists from local storage", make: newManifestRm},
	}
}

// references parses names of images in registries.
func references(names []string) (refs []image.Reference, err error) {
	for _, n := range names {
		ref, err := image.ParseReference(n)
		if err != nil {
			return nil, failf("%v", err)
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

// insecureFlag: loopback needs it not, others are named in daemon.json or registries.conf.
func insecureFlag(c *cobra.Command) {
	c.Flags().Bool("insecure", false, "Allow communication with an insecure registry")
	c.Flags().Lookup("insecure").Hidden = true
}

func newManifestInspect(a *app) *cobra.Command {
	var verbose bool
	c := &cobra.Command{
		Use:  "inspect [OPTIONS] [MANIFEST_LIST] MANIFEST",
		Long: "Display an image manifest, or manifest list. Nothing is pulled; with --verbose the\nconfigs of the images are shown as well.",
		Args: minArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			refs, err := references(args)
			if err != nil {
				return err
			}
			eng, err := a.engine()
			if err != nil {
				return err
			}
			ref := refs[len(refs)-1]
			if verbose {
				return a.inspectRemote(c, eng, ref)
			}
			if x, err := eng.ManifestList(ref); err == nil {
				return a.indented(x)
			} else if !fault.Is(err, fault.NotFound) {
				return err
			}
			_, doc, err := eng.RemoteManifest(c.Context(), ref)
			if err != nil {
				return err
			}
			return a.indented(json.RawMessage(doc))
		},
	}
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "Output additional info including layers and platform")
	insecureFlag(c)
	return c
}

// remoteImage is one image of manifest inspect -v, with Docker's names of its fields.
type remoteImage struct {
	Ref        string
	Descriptor image.Descriptor
	Raw        []byte
	Docker     *image.Manifest `json:"SchemaV2Manifest,omitempty"`
	OCI        *image.Manifest `json:"OCIManifest,omitempty"`
	Config     *image.Config   `json:",omitempty"`
}

func (a *app) inspectRemote(c *cobra.Command, eng backend, ref image.Reference) error {
	all, err := eng.RemoteImages(c.Context(), ref)
	if err != nil {
		return err
	}
	var out []remoteImage
	for _, im := range all {
		r := remoteImage{Ref: im.Ref.String(), Descriptor: im.Desc, Raw: im.Raw, Config: im.Config}
		if im.Desc.MediaType == image.MediaDockerManifest {
			r.Docker = im.Manifest
		} else {
			r.OCI = im.Manifest
		}
		out = append(out, r)
	}
	if len(out) == 1 { // as Docker: an image is an object, an index a list
		return a.indented(out[0])
	}
	return a.indented(out)
}

func (a *app) indented(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "   "); err != nil {
		return err
	}
	fmt.Fprintln(a.out, out.String())
	return nil
}

func newManifestCreate(a *app) *cobra.Command {
	var amend bool
	c := &cobra.Command{
		Use:  "create MANIFEST_LIST MANIFEST [MANIFEST...]",
		Args: minArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			refs, err := references(args)
			if err != nil {
				return err
			}
			eng, err := a.engine()
			if err != nil {
				return err
			}
			if err := eng.CreateManifestList(c.Context(), refs[0], refs[1:], amend); err != nil {
				return err
			}
			fmt.Fprintln(a.out, "Created manifest list", refs[0])
			return nil
		},
	}
	c.Flags().BoolVarP(&amend, "amend", "a", false, "Amend an existing manifest list")
	insecureFlag(c)
	return c
}

func newManifestAnnotate(a *app) *cobra.Command {
	var an engine.Annotation
	c := &cobra.Command{
		Use:  "annotate [OPTIONS] MANIFEST_LIST MANIFEST",
		Args: exactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			refs, err := references(args)
			if err != nil {
				return err
			}
			eng, err := a.engine()
			if err != nil {
				return err
			}
			return eng.AnnotateManifestList(c.Context(), refs[0], refs[1], an)
		},
	}
	fs := c.Flags()
	fs.StringVar(&an.Architecture, "arch", "", "Set architecture")
	fs.StringVar(&an.OS, "os", "", "Set operating system")
	fs.StringSliceVar(&an.OSFeatures, "os-features", nil, "Set operating system feature")
	fs.StringVar(&an.OSVersion, "os-version", "", "Set operating system version")
	fs.StringVar(&an.Variant, "variant", "", "Set architecture variant")
	return c
}

func newManifestPush(a *app) *cobra.Command {
	var purge bool
	c := &cobra.Command{
		Use:  "push [OPTIONS] MANIFEST_LIST",
		Args: exactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			refs, err := references(args)
			if err != nil {
				return err
			}
			eng, err := a.engine()
			if err != nil {
				return err
			}
			d, err := eng.PushManifestList(c.Context(), refs[0], purge)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.out, d)
			return nil
		},
	}
	c.Flags().BoolVarP(&purge, "purge", "p", false, "Remove the local manifest list after push")
	insecureFlag(c)
	return c
}

func newManifestRm(a *app) *cobra.Command {
	return &cobra.Command{
		Use:  "rm MANIFEST_LIST [MANIFEST_LIST...]",
		Args: minArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			refs, err := references(args)
			if err != nil {
				return err
			}
			eng, err := a.engine()
			if err != nil {
				return err
			}
			var errs []error
			for _, ref := range refs {
				if err := eng.RemoveManifestList(ref); err != nil {
					errs = append(errs, err)
				}
			}
			return join(errs)
		},
	}
}
