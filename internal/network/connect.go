package network

// Connect and Disconnect: one endpoint of a running container comes or goes.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

func (a *Attachment) connect(ctx context.Context, e Endpoint) (_ *network.EndpointSettings, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.released {
		return nil, fault.Conflictf("container %s is not running", a.req.Name)
	}
	rec, err := a.s.find(ctx, e.Network)
	if err != nil {
		return nil, err
	}
	if err := rec.notUsable(); err != nil {
		return nil, err
	}
	if rec.Network.Driver != "bridge" {
		return nil, fault.Deniedf("container cannot be connected to network %s: it has no endpoints (driver %q)", rec.Network.Name, rec.Network.Driver)
	}
	if a.endOn(rec.Network.Name) != nil {
		return nil, fault.Deniedf("endpoint with name %s already exists in network %s", a.req.Name, rec.Network.Name)
	}
	if err := checkInterfaceName(e.Settings.DriverOpts[optIfname], nil); err != nil {
		return nil, err
	}
	n := newEnd(rec, e.Settings, a.req)
	if err := a.reserveEnd(ctx, n); err != nil {
		return nil, err
	}
	before := gateway(a.ends)
	a.ends = append(a.ends, n)
	defer func() {
		if err != nil {
			a.unplug(context.WithoutCancel(ctx), n)
		}
	}()
	if err := a.plugRunning(ctx, n); err != nil {
		return nil, err
	}
	if gw := gateway(a.ends); gw != before {
		if err := a.route(gw); err != nil {
			return nil, err
		}
	}
	if err := a.answerOn(ctx, n); err != nil {
		return nil, err
	}
	return a.Endpoints[rec.Network.Name], a.rewrite()
}

func (a *Attachment) endOn(name string) *end {
	for _, e := range a.ends {
		if e.rec.Network.Name == name {
			return e
		}
	}
	return nil
}

// reserveEnd is tryReserve for one more endpoint.
func (a *Attachment) reserveEnd(ctx context.Context, n *end) error {
	return a.s.wait(ctx, func(last bool) (bool, error) {
		err := a.tryReserveEnd(ctx, n)
		if errors.Is(err, errLeaving) && !last {
			return false, nil
		}
		return err == nil, err
	})
}

func (a *Attachment) tryReserveEnd(ctx context.Context, n *end) (err error) {
	l, err := a.s.lock(ctx)
	if err != nil {
		return err
	}
	defer l.Unlock()
	rest := a.ends
	a.ends = []*end{n}
	err = a.bringUp()
	a.ends = rest
	if err != nil {
		return err
	}
	if err := a.s.pickLease(n.rec, n.lease, n.ask.IPAMConfig); err != nil {
		return err
	}
	had := a.own.Leases
	a.own.Leases = append(slices.Clone(had), n.lease)
	defer func() {
		if err != nil {
			a.own.Leases = had
			a.s.dropNames(n.lease)
			a.s.dropLease(n.lease)
			a.s.putOwner(a.own)
		}
	}()
	if err := a.s.putOwner(a.own); err != nil {
		return err
	}
	return a.s.settle(n)
}

// plugRunning makes the veth pair under the name that is asked for, or the first free eth<n>.
func (a *Attachment) plugRunning(ctx context.Context, n *end) error {
	host, err := openRtnl()
	if err != nil {
		return err
	}
	defer host.close()
	name := n.ask.DriverOpts[optIfname]
	for i := 0; ; i++ {
		word := cmp.Or(name, fmt.Sprintf("eth%d", i))
		l, err := a.ns.rt.find(word)
		if err != nil {
			return err
		}
		if l.index == 0 {
			name = word
			break
		}
		if name != "" {
			return fault.Conflictf("container %s has an interface %s already; choose another %s", a.req.Name, name, optIfname)
		}
	}
	if n.rec.Network.EnableIPv6 {
		err := inside(ctx, a.ns.fd, func() error {
			return errors.Join(sysctl("ipv6/conf/default/disable_ipv6", "0"), sysctl("ipv6/conf/default/accept_ra", "0"))
		})
		if err != nil {
			return err
		}
	}
	return n.plug(host, a.ns, name)
}

// answerOn lets the container know the names of a network; its first user-defined one
// starts the resolver.
func (a *Attachment) answerOn(ctx context.Context, n *end) error {
	a.Endpoints[n.rec.Network.Name] = n.settings()
	if a.dns == nil {
		if !n.rec.userDefined() {
			return nil
		}
		conf, err := a.hostResolv()
		if err != nil {
			return err
		}
		r := newResolver(conf.direct(true, true).servers)
		if err := inside(ctx, a.ns.fd, r.listen); err != nil {
			return err
		}
		r.serve()
		a.dns, a.ns.dns = r, r
		for _, e := range a.ends {
			a.joinDNS(e)
		}
		return nil
	}
	a.joinDNS(n)
	return nil
}

func (a *Attachment) disconnect(ctx context.Context, name string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	rec, err := a.s.find(ctx, name)
	if err != nil {
		return err
	}
	n := a.endOn(rec.Network.Name)
	if n == nil || a.released {
		return fault.Deniedf("container %s is not connected to network %s", a.req.Name, rec.Network.Name)
	}
	before := gateway(a.ends)
	if err := a.unplug(ctx, n); err != nil {
		return err
	}
	if gw := gateway(a.ends); gw != before {
		if err := a.route(gw); err != nil {
			return err
		}
	}
	return a.rewrite()
}

// unplug removes an endpoint from everywhere.
func (a *Attachment) unplug(ctx context.Context, n *end) error {
	l, err := a.s.lock(ctx)
	if err != nil {
		return err
	}
	defer l.Unlock()
	errs := []error{a.unpublishOn(n), a.s.dropNames(n.lease)}
	if a.dns != nil {
		rest := slices.DeleteFunc(slices.Clone(a.ends), func(e *end) bool { return e == n })
		a.dns.leave(n.rec.Network.Name, gateway(rest) != nil)
	}
	host, err := openRtnl()
	if err != nil {
		return err
	}
	defer host.close()
	if err := host.do(deleteLink(n.lease.Veth)); err != nil && !errors.Is(err, unix.ENODEV) {
		errs = append(errs, err)
	}
	a.ends = slices.DeleteFunc(a.ends, func(e *end) bool { return e == n })
	a.own.Leases = slices.DeleteFunc(slices.Clone(a.own.Leases), func(o *lease) bool { return o == n.lease })
	delete(a.Endpoints, n.rec.Network.Name)
	var flows []flow
	for _, ip := range n.lease.addrs() {
		flows = append(flows, flowsOf(ip)...)
	}
	return errors.Join(append(errs, forget(flows...), a.s.putOwner(a.own), a.s.dropLease(n.lease))...)
}

// unpublishOn closes the ports whose target is on n; the lock is held.
func (a *Attachment) unpublishOn(n *end) error {
	onIt := func(p published) bool { return slices.Contains(n.lease.addrs(), p.Target) }
	gone := slices.DeleteFunc(slices.Clone(a.own.Ports), func(p published) bool { return !onIt(p) })
	if len(gone) == 0 {
		return nil
	}
	a.own.Ports = slices.DeleteFunc(slices.Clone(a.own.Ports), onIt)
	for _, p := range a.proxies {
		if onIt(p.portal.published) {
			p.stopListening()
		}
	}
	a.Ports = network.PortMap{}
	return a.fw.unpublish(gone)
}
