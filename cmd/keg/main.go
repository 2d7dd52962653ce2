// Command keg is a container engine. It has two doors: the command line, and the
// monitor that keg starts for each container (which may be that container's init, too).
package main

import (
	"os"

	"keg/internal/cli"
	"keg/internal/monitor"
)

func main() {
	if monitor.IsInit(os.Args[0]) {
		os.Exit(monitor.Init(os.Args[1:]))
	}
	if len(os.Args) > 1 && os.Args[0] == monitor.Argv0 {
		os.Exit(monitor.Main(os.Args[1:]))
	}
	os.Exit(cli.Main(os.Args))
}
