package engine

import (
	"context"
	"errors"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/moby/moby/api/types/network"

	"keg/internal/fault"
	net "keg/internal/network"
)

func predefined(name string) bool {
	return name == network.NetworkBridge || name == network.NetworkHost || name == network.NetworkNone
}

// CreateNetwork makes a user-defined network.
func (e *Engine) CreateNetwork(ctx context.Context, o net.CreateOptions) (network.Inspect, error) {
	n, err := e.networks.Create(ctx, o)
	if err == nil {
		e.networkEvent("create", n.ID, n.Name, n.Driver)
	}
	return n, err
}

// Networks lists by name.
func (e *Engine) Networks(ctx context.Context, f Filter) ([]network.Inspect, error) {
	if err := f.only("dangling", "driver", "id", "label", "label!", "name", "scope", "type"); err != nil {
		return nil, err
	}
	dangling, danglingSet, err := f.boolean("dangling")
	if err != nil {
		return nil, err
	}
	all, err := e.networks.List()
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	if danglingSet {
		list, err := e.all(ctx)
		if err != nil {
			return nil, err
		}
		for _, c := range list {
			for name := range c.Networks {
				used[name] = true
			}
		}
	}
	return slices.DeleteFunc(all, func(n network.Inspect) bool {
		kind := "custom"
		if predefined(n.Name) {
			kind = "builtin"
		}
		return danglingSet && dangling != (kind == "custom" && !used[n.Name]) ||
			!f.exact("driver", n.Driver) || !f.prefix("id", n.ID) || !f.labels(n.Labels) ||
			!f.matches("name", n.Name) || !f.exact("scope", n.Scope) || !f.exact("type", kind)
	}), nil
}

// InspectNetwork adds the containers that are attached.
func (e *Engine) InspectNetwork(ctx context.Context, name string) (network.Inspect, error) {
	n, err := e.networks.Get(name)
	if err != nil {
		return n, err
	}
	list, err := e.all(ctx)
	if err != nil {
		return n, err
	}
	n.Containers = map[string]network.EndpointResource{}
	var held []netip.Addr
	for _, c := range list {
		s := c.st.Networks[n.Name]
		if s == nil || !isLive(c.st.Status) {
			continue
		}
		n.Containers[c.ID] = network.EndpointResource{
			Name: c.Name, EndpointID: s.EndpointID, MacAddress: s.MacAddress,
			IPv4Address: prefixOf(s.IPAddress, s.IPPrefixLen), IPv6Address: prefixOf(s.GlobalIPv6Address, s.GlobalIPv6PrefixLen),
		}
		held = append(held, s.IPAddress, s.GlobalIPv6Address)
	}
	n.Status = &network.Status{IPAM: network.IPAMStatus{Subnets: subnetStatuses(n.IPAM.Config, held)}}
	return n, nil
}

// subnetStatuses counts the addresses of each subnet: held by containers, by the gateway and others that were
// reserved, and the two (in IPv6 one) that no host has.
func subnetStatuses(subnets []network.IPAMConfig, held []netip.Addr) network.SubnetStatuses {
	out := network.SubnetStatuses{}
	for _, c := range subnets {
		taken := map[netip.Addr]bool{c.Subnet.Masked().Addr(): true, c.Gateway: true}
		if c.Subnet.Addr().Is4() {
			taken[lastOf(c.Subnet)] = true
		}
		for _, a := range c.AuxAddress {
			taken[a] = true
		}
		for _, a := range held {
			taken[a] = true
		}
		pool := c.IPRange
		if !pool.IsValid() {
			pool = c.Subnet
		}
		free := hosts(pool)
		var st network.SubnetStatus
		for a := range taken {
			if c.Subnet.Contains(a) {
				st.IPsInUse++
			}
			if pool.Contains(a) && free > 0 && free < math.MaxUint64 {
				free--
			}
		}
		st.DynamicIPsAvailable = free
		out[c.Subnet] = st
	}
	return out
}

// hosts counts the addresses of a prefix, as far as a number holds them.
func hosts(p netip.Prefix) uint64 {
	n := p.Addr().BitLen() - p.Bits()
	if n >= 64 {
		return math.MaxUint64
	}
	return 1 << n
}

// lastOf is the broadcast address of an IPv4 prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

func prefixOf(a netip.Addr, bits int) netip.Prefix {
	if !a.IsValid() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, bits)
}

// leavePatience is how long a container that has ended may take to let its networks go.
const leavePatience = 3 * time.Second

// leaving tells whether the endpoints, by container, are only those of containers that have just ended. What their records say of
// networks does not count: who was disconnected after the end may still have its endpoint.
func leaving[E any](list []one, endpoints map[string]E, now time.Time) (yes bool) {
	for _, c := range list {
		_, on := endpoints[c.ID]
		switch {
		case !on:
		case isLive(c.st.Status):
			return false
		case now.Sub(c.st.Finished) < leavePatience:
			yes = true
		}
	}
	return yes
}

// RemoveNetwork deletes a network without active endpoints.
func (e *Engine) RemoveNetwork(ctx context.Context, name string) error {
	n, err := e.networks.Get(name)
	if err != nil {
		return err
	}
	err = e.networks.Remove(ctx, n.Name)
	for fault.Is(err, fault.Denied) && !predefined(n.Name) {
		// The end of a container is told before its endpoints are taken down.
		now, nerr := e.networks.Get(n.Name)
		list, lerr := e.all(ctx)
		if nerr == nil && len(now.Containers) == 0 { // they went meanwhile, or it is refused for another reason
			err = e.networks.Remove(ctx, n.Name)
			break
		}
		if errors.Join(nerr, lerr) != nil || !leaving(list, now.Containers, time.Now()) {
			return err
		}
		if perr := pause(ctx, settleStep); perr != nil {
			return perr
		}
		err = e.networks.Remove(ctx, n.Name)
	}
	if err != nil {
		return err
	}
	e.networkEvent("destroy", n.ID, n.Name, n.Driver)
	return nil
}
