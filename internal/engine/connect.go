package engine

import (
	"context"
	"fmt"
	"strings"

	"github.com/moby/moby/api/types/network"

	ctr "keg/internal/container"
	"keg/internal/fault"
	net "keg/internal/network"
)

// tellMonitor does something on the monitor of a container, if one runs.
func (e *Engine) tellMonitor(ctx context.Context, id string, tell func(live, context.Context) error) error {
	st, err := e.now(ctx, id)
	if err != nil || !isLive(st.Status) {
		return err
	}
	c, err := e.monitors.Dial(ctx, id)
	if fault.Is(err, fault.Conflict) { // it ended meanwhile
		return nil
	}
	if err != nil {
		return err
	}
	defer c.Close()
	if err := tell(c, ctx); !fault.Is(err, fault.Conflict) {
		return err
	}
	if st, err = e.now(ctx, id); err == nil && !isLive(st.Status) {
		return nil
	}
	return tell(c, ctx)
}

// ConnectNetwork adds a container to a network: at once when it runs, and at every start from
// now on.
func (e *Engine) ConnectNetwork(ctx context.Context, name, ref string, s network.EndpointSettings) error {
	n, err := e.networks.Get(name)
	if err != nil {
		return err
	}
	r, st, err := e.view(ctx, ref)
	if err != nil {
		return err
	}
	if err := connectable(r, n); err != nil {
		return err
	}
	s.NetworkID = n.ID
	err = e.containers.Edit(r.ID, func(r *ctr.Record) error {
		if r.Networks[n.Name] != nil {
			return fault.Deniedf("endpoint with name %s already exists in network %s", r.Name, n.Name)
		}
		if r.Networks == nil {
			r.Networks = map[string]*network.EndpointSettings{}
		}
		r.Networks[n.Name] = &s
		return nil
	})
	if err != nil {
		return err
	}
	if isLive(st.Status) {
		err = e.tellMonitor(ctx, r.ID, func(c live, ctx context.Context) error {
			_, err := c.Connect(ctx, net.Endpoint{Network: n.Name, Settings: s})
			return err
		})
		if err != nil {
			_ = e.containers.Edit(r.ID, func(r *ctr.Record) error { delete(r.Networks, n.Name); return nil })
			return err
		}
	}
	e.report("network", "connect", n.ID, map[string]string{"name": n.Name, "type": n.Driver, "container": r.ID})
	return nil
}

// connectable refuses what has no network of its own to add to.
func connectable(r *ctr.Record, n network.Inspect) error {
	mode := r.Host.NetworkMode
	switch {
	case mode.IsContainer(), mode.IsHost():
		return fault.Deniedf("container sharing network namespace with another container or host cannot be connected to any other network")
	case mode.IsNone():
		return fault.Deniedf("container cannot be connected to multiple networks with one of the networks in private (none) mode")
	case n.Driver == "host":
		return fault.Deniedf("container cannot be disconnected from host network or connected to host network")
	case n.Driver == "null":
		return fault.Deniedf("container cannot be connected to multiple networks with one of the networks in private (none) mode")
	}
	return nil
}

// DisconnectNetwork takes a container off a network. With force what a container that is gone
// left there is cleaned up.
func (e *Engine) DisconnectNetwork(ctx context.Context, name, ref string, force bool) error {
	n, err := e.networks.Get(name)
	if err != nil {
		return err
	}
	r, st, err := e.view(ctx, ref)
	if force && fault.Is(err, fault.NotFound) {
		return e.forgetEndpoint(n, ref)
	}
	if err != nil {
		return err
	}
	if r.Host.NetworkMode.IsHost() && n.Driver == "host" {
		return fault.Deniedf("container cannot be disconnected from host network or connected to host network")
	}
	var old *network.EndpointSettings
	err = e.containers.Edit(r.ID, func(r *ctr.Record) error {
		if old = r.Networks[n.Name]; old == nil {
			return fault.Deniedf("container %s is not connected to network %s", r.ID, n.Name)
		}
		delete(r.Networks, n.Name)
		return nil
	})
	if err != nil {
		return err
	}
	if isLive(st.Status) {
		err := e.tellMonitor(ctx, r.ID, func(c live, ctx context.Context) error { return c.Disconnect(ctx, n.Name) })
		if err != nil {
			_ = e.containers.Edit(r.ID, func(r *ctr.Record) error { r.Networks[n.Name] = old; return nil })
			return err
		}
	}
	e.report("network", "disconnect", n.ID, map[string]string{"name": n.Name, "type": n.Driver, "container": r.ID})
	return nil
}

func (e *Engine) forgetEndpoint(n network.Inspect, ref string) error {
	for id, c := range n.Containers {
		if c.Name == strings.TrimPrefix(ref, "/") || id == ref {
			return e.networks.Clean(id)
		}
	}
	return fault.NotFoundf("%s", fmt.Sprintf("endpoint %s not found", ref))
}

// ReloadNetworks tells the kernel the firewall's rules again.
func (e *Engine) ReloadNetworks(ctx context.Context) error { return e.networks.Reload(ctx) }
