// keg inspect, and inspect of each kind of object.

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"keg/internal/fault"
	"keg/internal/image"
)

// finder returns one kind of object by name or id.
type finder struct {
	kind  string
	sized bool // --size means something for it
	find  func(ctx context.Context, eng backend, name string, size bool) (any, error)
}

func findContainer() finder {
	return finder{"container", true, func(ctx context.Context, eng backend, name string, size bool) (any, error) {
		return eng.Inspect(ctx, name, size)
	}}
}

func findImage() finder {
	return finder{"image", false, func(ctx context.Context, eng backend, name string, _ bool) (any, error) {
		return eng.InspectImage(ctx, name)
	}}
}

func findNetwork() finder {
	return finder{"network", false, func(ctx context.Context, eng backend, name string, _ bool) (any, error) {
		return eng.InspectNetwork(ctx, name)
	}}
}

func findVolume() finder {
	return finder{"volume", false, func(ctx context.Context, eng backend, name string, _ bool) (any, error) {
		return eng.InspectVolume(ctx, name)
	}}
}

func newInspect(a *app) *cobra.Command {
	var format, kind string
	var size bool
	c := &cobra.Command{
		Use:               "inspect [OPTIONS] NAME|ID [NAME|ID...]",
		Args:              minArgs(1),
		ValidArgsFunction: a.complete(allNames, 0),
		RunE: func(c *cobra.Command, args []string) error {
			finders := []finder{findContainer(), findImage(), findNetwork(), findVolume()}
			if c.Flags().Changed("type") {
				f, err := ofKind(finders, kind)
				if err != nil {
					return err
				}
				finders = f
			}
			return a.inspect(c.Context(), finders, args, format, size)
		},
	}
	fs := c.Flags()
	fs.StringVarP(&format, "format", "f", "", inspectFormatHelp)
	fs.BoolVarP(&size, "size", "s", false, "Display total file sizes if the type is container")
	fs.StringVar(&kind, "type", "", "Only inspect objects of the given type")
	if a.completing {
		_ = c.RegisterFlagCompletionFunc("type", fixed("container", "image", "network", "volume"))
	}
	return c
}

func ofKind(finders []finder, kind string) ([]finder, error) {
	var kinds []string
	for _, f := range finders {
		if f.kind == kind {
			return []finder{f}, nil
		}
		kinds = append(kinds, f.kind)
	}
	all := strings.Join(kinds, `", "`)
	if kind == "" {
		return nil, failf(`type is empty: must be one of "%s"`, all)
	}
	return nil, failf(`unknown type: %q: must be one of "%s"`, kind, all)
}

func newContainerInspect(a *app) *cobra.Command {
	var size bool
	c := a.inspectCommand("inspect [OPTIONS] CONTAINER [CONTAINER...]", findContainer(), containerNames(anyState), &size)
	c.Flags().BoolVarP(&size, "size", "s", false, "Display total file sizes")
	return c
}

func newImageInspect(a *app) *cobra.Command {
	var remote bool
	var platform string
	f := findImage()
	local := f.find
	f.find = func(ctx context.Context, eng backend, name string, size bool) (any, error) {
		if remote {
			return inspectRemote(ctx, eng, name, platform)
		}
		return local(ctx, eng, name, size)
	}
	c := a.inspectCommand("inspect [OPTIONS] IMAGE [IMAGE...]", f, imageNames, new(bool))
	c.Flags().StringVar(&platform, "platform", "", `Inspect the image for this platform ("os[/arch[/variant]]")`)
	c.Flags().BoolVar(&remote, "remote", false, "Ask the registry, without pulling")
	inspect := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		if !remote {
			if err := a.onPlatform(c.Context(), args, platform); err != nil {
				return err
			}
		}
		return inspect(c, args)
	}
	return c
}

// inspectRemote describes an image of a registry.
func inspectRemote(ctx context.Context, eng backend, name, platform string) (any, error) {
	ref, err := image.ParseReference(name)
	if err != nil {
		return nil, failf("%v", err)
	}
	var want *image.Platform
	if platform != "" {
		p, err := image.ParsePlatform(platform)
		if err != nil {
			return nil, failf("%v", err)
		}
		want = &p
	}
	return eng.InspectRemote(ctx, ref, want)
}

func newVolumeInspect(a *app) *cobra.Command {
	return a.inspectCommand("inspect [OPTIONS] VOLUME [VOLUME...]", findVolume(), volumeNames, new(bool))
}

func newNetworkInspect(a *app) *cobra.Command {
	c := a.inspectCommand("inspect [OPTIONS] NETWORK [NETWORK...]", findNetwork(), networkNames, new(bool))
	c.Flags().BoolP("verbose", "v", false, "Verbose output for diagnostics")
	return c
}

func (a *app) inspectCommand(use string, f finder, names nameSource, size *bool) *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:               use,
		Args:              minArgs(1),
		ValidArgsFunction: a.complete(names, 0),
		RunE: func(c *cobra.Command, args []string) error {
			return a.inspect(c.Context(), []finder{f}, args, format, *size)
		},
	}
	c.Flags().StringVarP(&format, "format", "f", "", inspectFormatHelp)
	return c
}

// inspect prints what was found before the errors about the rest.
func (a *app) inspect(ctx context.Context, finders []finder, names []string, format string, size bool) error {
	w, err := newObjectWriter(format)
	if err != nil {
		return err
	}
	eng, err := a.engine()
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range names {
		v, err := a.findAny(ctx, eng, finders, n, size)
		if err == nil {
			err = w.add(v)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	if _, err := a.out.Write(w.bytes()); err != nil {
		return err
	}
	return join(errs)
}

func (a *app) findAny(ctx context.Context, eng backend, finders []finder, name string, size bool) (any, error) {
	for _, f := range finders {
		v, err := f.find(ctx, eng, name, size && f.sized)
		if err != nil && len(finders) > 1 && (fault.Is(err, fault.NotFound) || fault.Is(err, fault.Invalid)) {
			continue
		}
		if err == nil && size && !f.sized {
			fmt.Fprintln(a.err, "WARNING: --size ignored for", f.kind)
		}
		return v, err
	}
	return nil, failf("Error: No such object: %s", name)
}

// objectWriter collects objects: an array indented by four spaces, compact JSON, or a
// template's output a line each.
type objectWriter struct {
	add   func(any) error
	bytes func() []byte
}

func newObjectWriter(format string) (*objectWriter, error) {
	if format != "" && format != "json" {
		return newTemplateWriter(format)
	}
	var all []json.RawMessage
	w := &objectWriter{add: func(v any) error {
		b, err := json.Marshal(v)
		all = append(all, b)
		return err
	}}
	w.bytes = func() []byte {
		if len(all) == 0 {
			return []byte("[]\n")
		}
		joined := append(append([]byte("["), bytes.Join(rawSlices(all), []byte(","))...), ']')
		if format == "json" {
			return append(joined, '\n')
		}
		var b bytes.Buffer
		_ = json.Indent(&b, joined, "", "    ") // what Marshal wrote is valid
		b.WriteByte('\n')
		return b.Bytes()
	}
	return w, nil
}

func rawSlices(rs []json.RawMessage) [][]byte {
	out := make([][]byte, len(rs))
	for i := range rs {
		out[i] = rs[i]
	}
	return out
}

// newTemplateWriter runs the template on the object; a field that the object's type
// lacks is looked for in its JSON, so that names as inspect shows them work too.
func newTemplateWriter(format string) (*objectWriter, error) {
	t, err := parseObjectTemplate("", format)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	add := func(v any) error {
		var b bytes.Buffer
		if first := t.Execute(&b, v); first != nil {
			raw, err := asMap(v)
			if err != nil {
				return err
			}
			b.Reset()
			if t.Option("missingkey=error").Execute(&b, raw) != nil {
				return failf("template parsing error: %v", first)
			}
		}
		b.WriteByte('\n')
		_, _ = b.WriteTo(&out)
		return nil
	}
	return &objectWriter{add, func() []byte {
		if out.Len() == 0 {
			return []byte("\n")
		}
		return out.Bytes()
	}}, nil
}

// asMap is the object as its JSON says.
func asMap(v any) (any, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var raw any
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	return raw, d.Decode(&raw)
}
