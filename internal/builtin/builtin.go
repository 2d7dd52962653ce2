// Package builtin is the images that keg carries, made of its own binary: keg/hello,
// keg/web, keg/registry, keg/shell. They are usable offline with FROM and run, listed
// once used, copied once and never linked to the installed binary.
package builtin

import (
	"cmp"
	"io"
	"os"
	"strconv"
	"time"

	"keg/internal/image"
)

// created is the commit's time in Unix seconds, set by the linker; a binary built
// without it uses its own modification time.
var created string

// Image is one carried image.
type Image struct {
	Ref    image.Reference
	Config *image.Config // RootFS.DiffIDs and History are filled by the one who unpacks
	Layers []Layer       // bottom first
}

// Layer is a layer that is made on demand. Equal layers of several images give equal
// bytes, so they are kept once.
type Layer struct {
	CreatedBy string
	// Tar streams the uncompressed, reproducible tar.
	Tar func() io.ReadCloser
}

const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// recipe is what an image is made of; the table below is the whole list.
type recipe struct {
	name   string
	layers []layerPlan
	config func(*image.Config)
}

func recipes() []recipe {
	base, tools := baseLayer(), toolsLayer()
	return []recipe{
		{"keg/hello", []layerPlan{base, linkLayer("hello")}, func(c *image.Config) {
			c.Config.Cmd = []string{"/bin/hello"}
		}},
		{"keg/web", []layerPlan{base, tools, webLayer()}, func(c *image.Config) {
			c.Config.Cmd = []string{"web", "--root", webRoot}
			c.Config.ExposedPorts = map[string]struct{}{"80/tcp": {}}
			c.Config.StopSignal = "SIGTERM"
		}},
		{"keg/registry", []layerPlan{base, linkLayer("registry")}, func(c *image.Config) {
			c.Config.Entrypoint = []string{"/usr/bin/keg", "registry", "serve"}
			c.Config.Cmd = []string{"--addr", ":5000", "--dir", "/var/lib/registry"}
			c.Config.ExposedPorts = map[string]struct{}{"5000/tcp": {}}
			c.Config.Volumes = map[string]struct{}{"/var/lib/registry": {}}
		}},
		{"keg/shell", []layerPlan{base, tools}, func(c *image.Config) {
			c.Config.Cmd = []string{"sh"}
		}},
	}
}

// Find returns the carried image of that name (docker.io/keg/hello:latest and so on).
func Find(ref image.Reference) (Image, bool) {
	if ref.Registry != image.DefaultRegistry || ref.Digest != "" || ref.Tag != image.DefaultTag {
		return Image{}, false
	}
	for _, r := range recipes() {
		if r.name == ref.Repository {
			return r.image(ref), true
		}
	}
	return Image{}, false
}

// Names lists the carried images.
func Names() (names []string) {
	for _, r := range recipes() {
		names = append(names, r.name)
	}
	return names
}

func (r recipe) image(ref image.Reference) Image {
	t := birth()
	cfg := &image.Config{}
	cfg.Created = &t
	cfg.Platform = image.Host()
	cfg.Platform.Variant = ""
	cfg.RootFS.Type = "layers"
	cfg.Config.Env = []string{searchPath}
	cfg.Config.Labels = map[string]string{"org.opencontainers.image.title": r.name}
	r.config(cfg)
	im := Image{Ref: ref, Config: cfg}
	for _, l := range r.layers {
		im.Layers = append(im.Layers, Layer{l.createdBy, l.open})
	}
	return im
}

func birth() time.Time {
	if sec, err := strconv.ParseInt(created, 10, 64); err == nil {
		return time.Unix(sec, 0).UTC()
	}
	if st, err := os.Stat(self); err == nil {
		return st.ModTime().UTC().Truncate(time.Second)
	}
	return time.Unix(0, 0).UTC()
}

// Applet runs the program that a carried image's entrypoint names (hello, web, sh, ls
// ...) and returns its exit code; ok is false for names that are no applets.
func Applet(name string, args []string) (code int, ok bool) {
	run, ok := applets(name)
	if !ok {
		return 0, false
	}
	return run(cmp.Or(name, "sh"), args), true
}
