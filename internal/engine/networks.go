package engine

import (
	"context"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/network"

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
	for _, c := range list {
		s := c.st.Networks[n.Name]
		if s == nil || !isLive(c.st.Status) {
			continue
		}
		n.Containers[c.ID] = network.EndpointResource{
			Name: c.Name, EndpointID: s.EndpointID, MacAddress: s.MacAddress,
			IPv4Address: prefixOf(s.IPAddress, s.IPPrefixLen), IPv6Address: prefixOf(s.GlobalIPv6Address, s.GlobalIPv6PrefixLen),
		}
	}
	return n, nil
}

func prefixOf(a netip.Addr, bits int) netip.Prefix {
	if !a.IsValid() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, bits)
}

// RemoveNetwork deletes a network without active endpoints.
func (e *Engine) RemoveNetwork(ctx context.Context, name string) error {
	n, err := e.networks.Get(name)
	if err != nil {
		return err
	}
	if err := e.networks.Remove(ctx, n.Name); err != nil {
		return err
	}
	e.networkEvent("destroy", n.ID, n.Name, n.Driver)
	return nil
}
