// Package cli is the command line. One file a command: parse, call the engine, print.
//
// A start builds only the command that was asked for: commands() is a table of names
// and constructors, and Main looks one up. Long forms (keg container ls) are the same
// constructors in another table.
package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"keg/internal/builtin"
	"keg/internal/launch"
)

// Set by the linker: -X keg/internal/cli.version=... -X keg/internal/cli.commit=...
var (
	version = "0.1.0-dev"
	commit  = "unknown"
)

// Main runs the command line and returns the exit status. args[0] is the name that
// keg was called by: docker and podman behave the same and appear in usage, the name
// of a carried program (hello, web, sh ...) runs that program.
func Main(args []string) int {
	name := "keg"
	if len(args) > 0 {
		name = filepath.Base(args[0])
	}
	if rest, ok := launch.Runtime(args); ok {
		return ociMain(os.Stdout, rest)
	}
	if len(args) == 2 && (args[1] == "--version" || args[1] == "-v") && isEngine(name) {
		printVersionLine(os.Stdout, name)
		return 0
	}
	if !isEngine(name) {
		if code, ok := builtin.Applet(name, args[1:]); ok {
			return code
		}
		name = "keg" // a renamed or versioned binary: keg-1.2
	}
	return newApp(name, os.Environ(), os.Stdin, os.Stdout, os.Stderr).main(context.Background(), args[1:])
}

func isEngine(name string) bool { return name == "keg" || name == "docker" || name == "podman" }

// printVersionLine has Docker's shape: scripts take the third word.
func printVersionLine(w io.Writer, name string) {
	if name == "docker" {
		name = "Docker"
	}
	fmt.Fprintf(w, "%s version %s, build %s\n", name, version, commit)
}
