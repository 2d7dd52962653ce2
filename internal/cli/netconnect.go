// keg network connect, disconnect, reload.

package cli

import (
	"net"
	"net/netip"

	"github.com/moby/moby/api/types/network"
	"github.com/spf13/cobra"
)

func newNetworkConnect(a *app) *cobra.Command {
	var aliases, links, linkLocal, options []string
	var ip, ip6 net.IP
	var priority int
	c := &cobra.Command{
		Use:               "connect [OPTIONS] NETWORK CONTAINER",
		Args:              exactArgs(2),
		ValidArgsFunction: a.completeConnect(false),
		RunE: func(c *cobra.Command, args []string) error {
			at := attachment{target: args[0], aliases: aliases, links: links, priority: priority}
			for _, o := range options {
				if err := at.set("driver-opt=" + o); err != nil {
					return failf("%v", err)
				}
			}
			s, err := connectSettings(at, ip, ip6, linkLocal)
			if err != nil {
				return failf("%v", err)
			}
			eng, err := a.engine()
			if err != nil {
				return err
			}
			return eng.ConnectNetwork(c.Context(), args[0], args[1], s)
		},
	}
	fs := c.Flags()
	fs.StringSliceVar(&aliases, "alias", nil, "Add network-scoped alias for the container")
	fs.StringSliceVar(&options, "driver-opt", nil, "driver options for the network")
	fs.IntVar(&priority, "gw-priority", 0, "Highest gw-priority provides the default gateway. Accepts positive and negative values.")
	fs.IPVar(&ip, "ip", nil, `IPv4 address (e.g., "172.30.100.104")`)
	fs.IPVar(&ip6, "ip6", nil, `IPv6 address (e.g., "2001:db8::33")`)
	fs.Var(newList(&links, checkLink), "link", "Add link to another container")
	fs.StringSliceVar(&linkLocal, "link-local-ip", nil, "Add a link-local address for the container")
	return c
}

func connectSettings(at attachment, ip, ip6 net.IP, linkLocal []string) (s network.EndpointSettings, err error) {
	if a, ok := netip.AddrFromSlice(ip.To4()); ok {
		at.ip = a
	}
	if a, ok := netip.AddrFromSlice(ip6.To16()); ok {
		at.ip6 = a
	}
	for _, l := range linkLocal {
		a, err := netip.ParseAddr(l)
		if err != nil {
			return s, err
		}
		at.linkLocal = append(at.linkLocal, a)
	}
	// Whether this network takes aliases and addresses is for the engine to say: the name may
	// be an id.
	s = network.EndpointSettings{Aliases: at.aliases, Links: at.links, DriverOpts: at.driverOpts, GwPriority: at.priority}
	if at.ip.IsValid() || at.ip6.IsValid() || len(at.linkLocal) > 0 {
		s.IPAMConfig = &network.EndpointIPAMConfig{IPv4Address: at.ip, IPv6Address: at.ip6, LinkLocalIPs: at.linkLocal}
	}
	return s, nil
}

func newNetworkDisconnect(a *app) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:               "disconnect [OPTIONS] NETWORK CONTAINER",
		Args:              exactArgs(2),
		ValidArgsFunction: a.completeConnect(true),
		RunE: func(c *cobra.Command, args []string) error {
			eng, err := a.engine()
			if err != nil {
				return err
			}
			return eng.DisconnectNetwork(c.Context(), args[0], args[1], force)
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "Force the container to disconnect from a network")
	return c
}

// completeConnect: a network first, then a container, of that network if it is to leave it.
func (a *app) completeConnect(member bool) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return a.complete(networkNames, 1)(c, args, word)
		}
		if len(args) > 1 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names := containerNames(anyState)
		if eng, err := a.engine(); err == nil && member {
			if n, err := eng.InspectNetwork(c.Context(), args[0]); err == nil {
				var out []string
				for _, e := range n.Containers {
					out = append(out, e.Name)
				}
				return out, cobra.ShellCompDirectiveNoFileComp
			}
		}
		return a.complete(names, 2)(c, args, word)
	}
}

func newNetworkReload(a *app) *cobra.Command {
	return &cobra.Command{
		Use:  "reload",
		Long: "Write the firewall's rules again, after another program took them away",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			eng, err := a.engine()
			if err != nil {
				return err
			}
			return eng.ReloadNetworks(c.Context())
		},
	}
}
