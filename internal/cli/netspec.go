// --network NAME, or name=NAME,alias=...,ip=...

package cli

import (
	"encoding/csv"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// attachment is one --network.
type attachment struct {
	target     string
	aliases    []string
	links      []string
	driverOpts map[string]string
	ip, ip6    netip.Addr
	linkLocal  []netip.Addr
	mac        string
	priority   int
}

type networkValue struct{ list *[]attachment }

func (n *networkValue) Type() string   { return "network" }
func (n *networkValue) String() string { return "" }

func (n *networkValue) Set(s string) error {
	at, err := parseAttachment(s)
	if err != nil {
		return err
	}
	*n.list = append(*n.list, at)
	return nil
}

func parseAttachment(s string) (attachment, error) {
	if i := strings.IndexByte(s, '='); i <= 0 || i == len(s)-1 {
		return attachment{target: s}, nil
	}
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return attachment{}, err
	}
	var at attachment
	for _, f := range fields {
		if err := at.set(f); err != nil {
			return attachment{}, err
		}
	}
	if at.target == "" {
		return attachment{}, errors.New("network name/id is not specified")
	}
	return at, nil
}

func (at *attachment) set(field string) (err error) {
	key, val, ok := strings.Cut(strings.ToLower(field), "=")
	if !ok || key == "" {
		return fmt.Errorf("invalid field %s", field)
	}
	key, val = strings.TrimSpace(key), strings.TrimSpace(val)
	switch key {
	case "name":
		at.target = val
	case "alias":
		at.aliases = append(at.aliases, val)
	case "ip":
		at.ip, err = netip.ParseAddr(val)
	case "ip6":
		at.ip6, err = netip.ParseAddr(val)
	case "mac-address":
		at.mac = val
	case "link-local-ip":
		var a netip.Addr
		a, err = netip.ParseAddr(val)
		at.linkLocal = append(at.linkLocal, a)
	case "driver-opt":
		if k, _, ok := strings.Cut(val, "="); !ok || k == "" {
			return errors.New("invalid key value pair format in driver options")
		}
		at.driverOpts = withPair(at.driverOpts, val)
	case "gw-priority":
		if at.priority, err = strconv.Atoi(val); err != nil {
			return fmt.Errorf("invalid gw-priority (%s): %w", val, errors.Unwrap(err))
		}
	default:
		return errors.New("invalid field key " + key)
	}
	return err
}

// userDefined: neither of Docker's words for a network nor another container's.
func userDefined(name string) bool {
	switch name {
	case "default", "bridge", "host", "none", "nat":
		return false
	}
	return !container.NetworkMode(name).IsContainer()
}

// endpoints merges --network with the flags that are older than its long form
// (--ip, --link, --network-alias ...); those belong to the first network.
func (o *containerFlags) endpoints() (container.NetworkMode, map[string]*network.EndpointSettings, error) {
	list := o.networks
	if len(list) == 0 {
		list = []attachment{{target: "default"}}
	}
	eps := map[string]*network.EndpointSettings{}
	var custom, builtin bool
	for i, at := range list {
		if userDefined(at.target) {
			custom = true
		} else {
			builtin = true
		}
		if i == 0 {
			if err := o.mergeOld(&at); err != nil {
				return "", nil, err
			}
		}
		ep, plain, err := at.endpoint()
		if err != nil {
			return "", nil, err
		}
		if _, twice := eps[at.target]; twice {
			return "", nil, fmt.Errorf("network %q is specified multiple times", at.target)
		}
		if plain && len(o.networks) == 1 {
			continue // nothing to say about it: NetworkMode names it
		}
		eps[at.target] = ep
	}
	if custom && builtin {
		return "", nil, errors.New("conflicting options: cannot attach both user-defined and non-user-defined network-modes")
	}
	return container.NetworkMode(list[0].target), eps, nil
}

func (o *containerFlags) mergeOld(at *attachment) error {
	for _, c := range []struct {
		both      bool
		flag, per string
	}{
		{len(at.aliases) > 0 && len(o.aliases) > 0, "--network-alias", "alias"},
		{len(at.links) > 0 && len(o.links) > 0, "--link", "links"},
		{at.ip.IsValid() && o.ip != nil, "--ip", "IPv4 address"},
		{at.ip6.IsValid() && o.ip6 != nil, "--ip6", "IPv6 address"},
		{at.mac != "" && o.mac != "", "--mac-address", "MAC address"},
		{len(at.linkLocal) > 0 && len(o.linkLocal) > 0, "--link-local-ip", "link-local IP addresses"},
	} {
		if c.both {
			return fmt.Errorf("conflicting options: cannot specify both %s and per-network %s", c.flag, c.per)
		}
	}
	if len(o.aliases) > 0 {
		at.aliases = o.aliases
	}
	// On the default bridge --link is a legacy link, on others an alias.
	if userDefined(at.target) && len(o.links) > 0 {
		at.links = o.links
	}
	if a, ok := netip.AddrFromSlice(o.ip.To4()); ok {
		at.ip = a
	}
	if a, ok := netip.AddrFromSlice(o.ip6.To16()); ok {
		at.ip6 = a
	}
	if o.mac != "" {
		at.mac = o.mac
	}
	for _, s := range o.linkLocal {
		if a, err := netip.ParseAddr(s); err == nil {
			at.linkLocal = append(at.linkLocal, a)
		}
	}
	return nil
}

// endpoint says whether there is anything in it beside the network's name.
func (at *attachment) endpoint() (ep *network.EndpointSettings, plain bool, err error) {
	switch {
	case strings.TrimSpace(at.target) == "":
		return nil, false, errors.New("no name set for network")
	case !userDefined(at.target) && len(at.aliases) > 0:
		return nil, false, errors.New("network-scoped aliases are only supported for user-defined networks")
	case !userDefined(at.target) && len(at.links) > 0:
		return nil, false, errors.New("links are only supported for user-defined networks")
	}
	ep = &network.EndpointSettings{Aliases: at.aliases, Links: at.links, DriverOpts: at.driverOpts, GwPriority: at.priority}
	plain = len(at.aliases)+len(at.links)+len(at.driverOpts) == 0 && at.priority == 0
	if at.ip.IsValid() || at.ip6.IsValid() || len(at.linkLocal) > 0 {
		plain = false
		ep.IPAMConfig = &network.EndpointIPAMConfig{IPv4Address: at.ip, IPv6Address: at.ip6, LinkLocalIPs: at.linkLocal}
	}
	if at.mac != "" {
		plain = false
		mac, err := net.ParseMAC(strings.TrimSpace(at.mac))
		if err != nil {
			return nil, false, fmt.Errorf("%s is not a valid mac address", at.mac)
		}
		ep.MacAddress = network.HardwareAddr(mac)
	}
	return ep, plain, nil
}
