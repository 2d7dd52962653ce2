// keg top and keg port.

package cli

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/moby/moby/api/types/network"
	"github.com/spf13/cobra"
)

func newTop(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:               "top CONTAINER [ps OPTIONS]",
		Args:              minArgs(1),
		ValidArgsFunction: a.complete(containerNames(running), 1),
		RunE: func(c *cobra.Command, args []string) error {
			eng, err := a.engine()
			if err != nil {
				return err
			}
			t, err := eng.Top(c.Context(), args[0], args[1:])
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(a.out, 20, 1, 3, ' ', 0)
			fmt.Fprintln(w, strings.Join(t.Titles, "\t"))
			for _, p := range t.Processes {
				fmt.Fprintln(w, strings.Join(p, "\t"))
			}
			return w.Flush()
		},
	}
	c.Flags().SetInterspersed(false) // what follows belongs to ps
	return c
}

func newPort(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "port CONTAINER [PRIVATE_PORT[/PROTO]]",
		Args:              rangeArgs(1, 2),
		ValidArgsFunction: a.complete(containerNames(running), 1),
		RunE: func(c *cobra.Command, args []string) error {
			eng, err := a.engine()
			if err != nil {
				return err
			}
			r, err := eng.Inspect(c.Context(), args[0], false)
			if err != nil {
				return err
			}
			var ports network.PortMap
			if r.NetworkSettings != nil {
				ports = r.NetworkSettings.Ports
			}
			lines := publishedLines(ports)
			if len(args) == 2 {
				if lines, err = publishedAs(ports, args[0], args[1]); err != nil {
					return err
				}
			}
			if len(lines) > 0 {
				fmt.Fprintln(a.out, strings.Join(lines, "\n"))
			}
			return nil
		},
	}
}

// publishedLines: "80/tcp -> 0.0.0.0:8080".
func publishedLines(ports network.PortMap) (lines []string) {
	for p, bs := range ports {
		for _, b := range bs {
			lines = append(lines, p.String()+" -> "+hostPort(b))
		}
	}
	slices.SortFunc(lines, compareNatural)
	return lines
}

// publishedAs are the places of one port of the container.
func publishedAs(ports network.PortMap, name, port string) (lines []string, err error) {
	p, err := network.ParsePort(port)
	if err != nil {
		return nil, failf("invalid port '%s': %v", port, err)
	}
	for _, b := range ports[p] {
		lines = append(lines, hostPort(b))
	}
	if len(lines) == 0 {
		return nil, failf("no public port '%s' published for %s", port, name)
	}
	slices.SortFunc(lines, compareNatural)
	return lines, nil
}

func hostPort(b network.PortBinding) string {
	ip := ""
	if b.HostIP.IsValid() {
		ip = b.HostIP.String()
	}
	return net.JoinHostPort(ip, b.HostPort)
}
