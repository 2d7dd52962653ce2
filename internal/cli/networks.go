// keg network create, ls, rm.

package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/network"
	"github.com/spf13/cobra"

	"keg/internal/fault"
	net "keg/internal/network"
)

type networkFlags struct {
	net.CreateOptions
	labels                    []string
	subnets, ranges, gateways []string
	aux                       map[string]string
	ipv4                      bool
	scope, ipamDriver         string
	ingress                   bool
}

func newNetworkCreate(a *app) *cobra.Command {
	o := &networkFlags{}
	c := &cobra.Command{
		Use:  "create [OPTIONS] NETWORK",
		Args: exactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			req, err := o.options(args[0])
			if err != nil {
				return failf("%v", err)
			}
			eng, err := a.engine()
			if err != nil {
				return err
			}
			n, err := eng.CreateNetwork(c.Context(), req)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.out, n.ID)
			return nil
		},
	}
	fs := c.Flags()
	fs.BoolVar(&o.Attachable, "attachable", false, "Enable manual container attachment")
	fs.Var(newMap(&o.aux, nil), "aux-address", "Auxiliary IPv4 or IPv6 addresses used by Network driver")
	fs.StringVar(&o.ConfigFrom, "config-from", "", "The network from which to copy the configuration")
	fs.BoolVar(&o.ConfigOnly, "config-only", false, "Create a configuration only network")
	fs.StringVarP(&o.Driver, "driver", "d", "bridge", "Driver to manage the Network")
	fs.StringSliceVar(&o.gateways, "gateway", nil, "IPv4 or IPv6 Gateway for the master subnet")
	fs.BoolVar(&o.ingress, "ingress", false, "Create swarm routing-mesh network")
	fs.BoolVar(&o.Internal, "internal", false, "Restrict external access to the network")
	fs.StringSliceVar(&o.ranges, "ip-range", nil, "Allocate container ip from a sub-range")
	fs.StringVar(&o.ipamDriver, "ipam-driver", "default", "IP Address Management Driver")
	fs.Var(newMap(&o.IPAM.Options, nil), "ipam-opt", "Set IPAM driver specific options")
	fs.BoolVar(&o.ipv4, "ipv4", true, "Enable or disable IPv4 address assignment")
	fs.BoolVar(&o.IPv6, "ipv6", false, "Enable or disable IPv6 address assignment")
	fs.Var(newList(&o.labels, checkLabel), "label", "Set metadata on a network")
	fs.VarP(newMap(&o.Options, nil), "opt", "o", "Set driver specific options")
	fs.StringVar(&o.scope, "scope", "", `Control the network's scope ("local")`)
	fs.StringSliceVar(&o.subnets, "subnet", nil, "Subnet in CIDR format that represents a network segment")
	return c
}

func (o *networkFlags) options(name string) (net.CreateOptions, error) {
	switch {
	case o.ingress, o.scope == "swarm":
		//lint:ignore ST1005 Docker's words
		return net.CreateOptions{}, errors.New(notSwarm)
	case o.scope != "" && o.scope != "local":
		return net.CreateOptions{}, fmt.Errorf("invalid --scope %q: want local", o.scope)
	case !o.ipv4:
		return net.CreateOptions{}, errors.New("networks without IPv4 are not supported: leave out --ipv4=false")
	}
	req := o.CreateOptions
	req.Name = name
	if req.ConfigFrom != "" {
		req.Driver = ""
	}
	req.Labels = keyValues(o.labels)
	req.IPAM.Driver = o.ipamDriver
	var err error
	req.IPAM.Config, err = o.ipam()
	return req, err
}

// ipam sorts ranges, gateways and auxiliary addresses to the subnets that hold them.
func (o *networkFlags) ipam() ([]network.IPAMConfig, error) {
	if len(o.subnets) < len(o.ranges) || len(o.subnets) < len(o.gateways) {
		return nil, errors.New("every ip-range or gateway must have a corresponding subnet")
	}
	var out []network.IPAMConfig
	for _, s := range o.subnets {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("invalid subnet: invalid CIDR address: %s", s)
		}
		for _, other := range out {
			if other.Subnet.Overlaps(p) {
				return nil, errors.New("multiple overlapping subnet configuration is not supported")
			}
		}
		out = append(out, network.IPAMConfig{Subnet: p, AuxAddress: map[string]netip.Addr{}})
	}
	within := func(a netip.Addr) *network.IPAMConfig {
		if i := slices.IndexFunc(out, func(c network.IPAMConfig) bool { return c.Subnet.Contains(a) }); i >= 0 {
			return &out[i]
		}
		return nil
	}
	for _, s := range o.ranges {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("invalid CIDR address: %s", s)
		}
		switch c := within(p.Addr()); {
		case c == nil:
			return nil, fmt.Errorf("no matching subnet for range %s", s)
		case c.IPRange.IsValid():
			return nil, fmt.Errorf("cannot configure multiple ranges (%s, %s) on the same subnet (%s)", s, c.IPRange, c.Subnet)
		default:
			c.IPRange = p
		}
	}
	for _, s := range o.gateways {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("invalid argument %q for --gateway: it is no IP address", s)
		}
		switch c := within(a); {
		case c == nil:
			return nil, fmt.Errorf("no matching subnet for gateway %s", s)
		case c.Gateway.IsValid():
			return nil, fmt.Errorf("cannot configure multiple gateways (%s, %s) for the same subnet (%s)", s, c.Gateway, c.Subnet)
		default:
			c.Gateway = a
		}
	}
	for name, s := range o.aux {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, err
		}
		c := within(a)
		if c == nil {
			return nil, fmt.Errorf("no matching subnet for aux-address %s", s)
		}
		c.AuxAddress[name] = a
	}
	return out, nil
}

func newNetworkLs(a *app) *cobra.Command {
	var quiet, noTrunc bool
	var format string
	var filter filterValue
	c := &cobra.Command{
		Use:  "ls [OPTIONS]",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			f := format
			if f == "" && !quiet {
				f = a.clientConfig().NetworksFormat
			}
			eng, err := a.engine()
			if err != nil {
				return err
			}
			ns, err := eng.Networks(c.Context(), filter.f)
			if err != nil {
				return err
			}
			slices.SortFunc(ns, func(x, y network.Inspect) int { return compareNatural(x.Name, y.Name) })
			rows := make([]*networkRow, len(ns))
			for i := range ns {
				rows[i] = &networkRow{&ns[i], !noTrunc}
			}
			return writeRows(a.out, listing{networkFormat(firstOf(f, "table"), quiet), networkHeader()}, rows)
		},
	}
	fs := c.Flags()
	fs.VarP(&filter, "filter", "f", `Provide filter values (e.g. "driver=bridge")`)
	fs.StringVar(&format, "format", "", formatHelp)
	fs.BoolVar(&noTrunc, "no-trunc", false, "Do not truncate the output")
	fs.BoolVarP(&quiet, "quiet", "q", false, "Only display network IDs")
	return c
}

func networkFormat(format string, quiet bool) string {
	switch {
	case format == "table" && quiet:
		return "{{.ID}}"
	case format == "table":
		return "table {{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}"
	case format == "raw" && quiet:
		return "network_id: {{.ID}}"
	case format == "raw":
		return `network_id: {{.ID}}\nname: {{.Name}}\ndriver: {{.Driver}}\nscope: {{.Scope}}\n`
	}
	return format
}

func networkHeader() header {
	return header{
		"ID": "NETWORK ID", "Name": "NAME", "Driver": "DRIVER", "Scope": "SCOPE", "IPv4": "IPV4", "IPv6": "IPV6",
		"Internal": "INTERNAL", "Labels": "LABELS", "CreatedAt": "CREATED AT",
	}
}

// networkRow is one network as templates see it.
type networkRow struct {
	n     *network.Inspect
	short bool
}

func (r *networkRow) MarshalJSON() ([]byte, error) { return marshalRow(r) }

func (r *networkRow) ID() string {
	if r.short {
		return shortID(r.n.ID)
	}
	return r.n.ID
}
func (r *networkRow) Name() string             { return r.n.Name }
func (r *networkRow) Driver() string           { return r.n.Driver }
func (r *networkRow) Scope() string            { return r.n.Scope }
func (r *networkRow) IPv4() string             { return strconv.FormatBool(r.n.EnableIPv4) }
func (r *networkRow) IPv6() string             { return strconv.FormatBool(r.n.EnableIPv6) }
func (r *networkRow) Internal() string         { return strconv.FormatBool(r.n.Internal) }
func (r *networkRow) Labels() string           { return joinLabels(r.n.Labels) }
func (r *networkRow) Label(name string) string { return r.n.Labels[name] }
func (r *networkRow) CreatedAt() string        { return r.n.Created.String() }

func newNetworkRm(a *app) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:               "rm NETWORK [NETWORK...]",
		Args:              minArgs(1),
		ValidArgsFunction: a.complete(networkNames, 0),
		RunE: func(c *cobra.Command, args []string) error {
			return a.each(c.Context(), args, func(ctx context.Context, eng backend, name string) error {
				err := eng.RemoveNetwork(ctx, strings.TrimSpace(name))
				if force && fault.Is(err, fault.NotFound) {
					return errSkipped
				}
				return err
			})
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "Do not error if the network does not exist")
	return c
}
