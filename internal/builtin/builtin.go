// Package builtin is the images that keg carries, made of its own binary: keg/hello,
// keg/web, keg/registry, keg/shell. They are usable offline with FROM and run, listed
// once used, copied once and never linked to the installed binary.
package builtin

import (
	"io"

	"keg/internal/image"
)

// Image is one carried image.
type Image struct {
	Ref    image.Reference
	Config *image.Config // RootFS.DiffIDs and History are filled by the one who unpacks
	Layers []Layer       // bottom first
}

// Layer is a layer that is made on demand.
type Layer struct {
	CreatedBy string
	// Tar streams the uncompressed, reproducible tar.
	Tar func() io.ReadCloser
}

// Find returns the carried image of that name (docker.io/keg/hello:latest and so on).
func Find(ref image.Reference) (Image, bool) { panic("unwritten") }

// Applet runs the program that a carried image's entrypoint names (hello, web, sh, ls
// ...) and returns its exit code; ok is false for names that are no applets.
func Applet(name string, args []string) (code int, ok bool) { panic("unwritten") }
