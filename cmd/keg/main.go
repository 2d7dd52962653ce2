// Command keg is a container engine. It has four doors: the command line, the monitor
// that keg starts for each container (which may be that container's init, too), and for ordinary users the keeper
// of their namespaces and the server of a container's files with ids of its own.
package main

import (
	"os"

	"keg/internal/cli"
	"keg/internal/mirror"
	"keg/internal/monitor"
	"keg/internal/rootless"
)

func main() {
	if monitor.IsInit(os.Args[0]) {
		os.Exit(monitor.Init(os.Args[1:]))
	}
	if len(os.Args) > 1 && os.Args[0] == monitor.Argv0 {
		os.Exit(monitor.Main(os.Args[1:]))
	}
	if os.Args[0] == rootless.Argv0 {
		os.Exit(rootless.Main(os.Args[1:]))
	}
	if os.Args[0] == mirror.Argv0 {
		os.Exit(mirror.Main(os.Args[1:]))
	}
	os.Exit(cli.Main(os.Args))
}
