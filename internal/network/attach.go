package network

// Attach: from a request to a namespace with addresses, ports and names. The namespace
// is made beside the reservation; the reservation is the only part under the lock.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/weakness"
)

// Attachment is what was made. The monitor keeps it until the container ended.
type Attachment struct {
	NetNS         int // descriptor of the namespace
	Endpoints     map[string]*network.EndpointSettings
	Ports         network.PortMap // with the ports that were picked
	Hosts, Resolv []byte          // contents of /etc/hosts and /etc/resolv.conf

	s       *Store
	req     Request
	ns      *netns
	dns     *resolver
	own     *owner
	ends    []*end
	proxies []*proxy
	fw      *firewall

	mu       sync.Mutex
	quiet    sync.Once
	released bool
}

// An end is one endpoint while it is made.
type end struct {
	rec    *record
	ask    network.EndpointSettings
	lease  *lease
	bridge uint32
	index  uint32 // of the end inside
}

func (s *Store) attach(ctx context.Context, r Request) (_ *Attachment, err error) {
	if err := validName(r.ID); err != nil {
		return nil, err
	}
	a := &Attachment{NetNS: -1, s: s, req: r,
		own: &owner{Version: recordVersion, ID: r.ID, Name: r.Name, Boot: bootID()}}
	if err := a.resolve(ctx); err != nil {
		return nil, err
	}
	conf, err := a.hostResolv()
	if err != nil {
		return nil, err
	}
	six := a.ipv6()
	if slices.ContainsFunc(a.ends, func(e *end) bool { return e.rec.userDefined() }) {
		a.dns = newResolver(conf.direct(true, true).servers)
	}
	making := s.startNetNS(netnsOptions{ipv6: six, dns: a.dns, given: r.NetNS})
	defer func() {
		if err != nil {
			a.abandon(making)
		}
	}()
	if err := a.reserve(ctx, making); err != nil {
		return nil, err
	}
	if err := a.link(); err != nil {
		return nil, err
	}
	if err := a.files(conf); err != nil {
		return nil, err
	}
	return a, nil
}

// resolve finds the networks that are asked for.
func (a *Attachment) resolve(ctx context.Context) error {
	if len(a.req.Endpoints) > 0 {
		if err := a.s.ensurePredefined(ctx); err != nil {
			return err
		}
	}
	for _, e := range a.req.Endpoints {
		rec, err := a.s.find(ctx, e.Network)
		if err != nil {
			return err
		}
		if err := rec.notUsable(); err != nil {
			return err
		}
		if rec.Network.Driver != "bridge" {
			return fault.Invalidf("container cannot be connected to network %s: it has no endpoints (driver %q)", rec.Network.Name, rec.Network.Driver)
		}
		if slices.ContainsFunc(a.ends, func(o *end) bool { return o.rec.Network.ID == rec.Network.ID }) {
			return fault.Invalidf("network %s is asked for twice", rec.Network.Name)
		}
		if err := checkInterfaceName(e.Settings.DriverOpts[optIfname], a.ends); err != nil {
			return err
		}
		a.ends = append(a.ends, newEnd(rec, e.Settings, a.req))
	}
	// eth0 is the one that would be the gateway, whatever order the caller's map had.
	slices.SortStableFunc(a.ends, func(x, y *end) int {
		return cmp.Or(-cmp.Compare(x.ask.GwPriority, y.ask.GwPriority), cmp.Compare(x.rec.Network.Name, y.rec.Network.Name))
	})
	return nil
}

func newEnd(rec *record, ask network.EndpointSettings, r Request) *end {
	id := newID()
	return &end{rec: rec, ask: ask, lease: &lease{
		Version: recordVersion, ID: r.ID, Name: r.Name, EndpointID: id, Network: rec.Network.Name,
		MAC: ask.MacAddress, Veth: "veth" + id[:11], DNSNames: dnsNames(rec, ask, r), Boot: bootID(),
	}}
}

// dnsNames are name, aliases, short id, host name; none on the default network.
func dnsNames(rec *record, ask network.EndpointSettings, r Request) (out []string) {
	if !rec.userDefined() {
		return nil
	}
	for _, n := range slices.Concat([]string{r.Name}, ask.Aliases, []string{r.ID[:min(12, len(r.ID))], r.Hostname}) {
		// One word each: the names file is lines of words.
		if n != "" && !strings.ContainsAny(n, " \t\r\n") && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

func (a *Attachment) ipv6() bool {
	return slices.ContainsFunc(a.ends, func(e *end) bool { return e.rec.Network.EnableIPv6 })
}

// gateway is the end with the default route: the highest priority, then one that leads
// out, then the first name.
func gateway(ends []*end) *end {
	var best *end
	for _, e := range ends {
		if e.rec.Network.Internal {
			continue
		}
		if best == nil || e.ask.GwPriority > best.ask.GwPriority ||
			e.ask.GwPriority == best.ask.GwPriority && e.rec.Network.Name < best.rec.Network.Name {
			best = e
		}
	}
	return best
}

// reserve takes addresses, ports and names. What is held by a container that has
// exited is waited for.
func (a *Attachment) reserve(ctx context.Context, making func() netnsResult) error {
	if len(a.ends) == 0 {
		a.Ports = network.PortMap{}
		return a.await(making) // loopback only: nothing to hold, nothing to write down
	}
	return a.s.wait(ctx, func(last bool) (bool, error) {
		err := a.tryReserve(ctx, making)
		if errors.Is(err, errLeaving) && !last {
			return false, nil
		}
		return err == nil, err
	})
}

func (a *Attachment) tryReserve(ctx context.Context, making func() netnsResult) (err error) {
	s := a.s
	l, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer l.Unlock()
	if err := s.evict(a.req.ID); err != nil {
		return err
	}
	if err := a.bringUp(); err != nil {
		return err
	}
	for _, e := range a.ends {
		if err := s.pickLease(e.rec, e.lease, e.ask.IPAMConfig); err != nil {
			return err
		}
	}
	portals, err := a.openPorts(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			a.unreserve(portals)
		}
	}()
	if err := a.await(making); err != nil {
		return err
	}
	a.own.NetNS, a.own.Leases, a.own.Ports = a.ns.inode, nil, nil
	for _, e := range a.ends {
		a.own.Leases = append(a.own.Leases, e.lease)
	}
	for _, p := range portals {
		a.own.Ports = append(a.own.Ports, p.published)
	}
	// The owner's record first: from it a crash at any later point is cleaned up.
	if err := s.putOwner(a.own); err != nil {
		return err
	}
	for _, e := range a.ends {
		if err := s.settle(e); err != nil {
			return err
		}
	}
	if err := a.publish(); err != nil {
		return err
	}
	for _, p := range portals {
		a.proxies = append(a.proxies, startProxy(p, s.home, s.away()))
	}
	return nil
}

// await collects the namespace once.
func (a *Attachment) await(making func() netnsResult) error {
	if a.ns != nil {
		return nil
	}
	r := making()
	if r.err != nil {
		return r.err
	}
	a.ns, a.NetNS = r.ns, r.ns.fd
	return nil
}

// bringUp makes sure that bridges and table are there.
func (a *Attachment) bringUp() error {
	s := a.s
	st, err := s.state()
	if err != nil {
		return err
	}
	host, err := openRtnl()
	if err != nil {
		return err
	}
	defer host.close()
	for _, e := range a.ends {
		if e.bridge, err = s.up(st, e.rec, host); err != nil {
			return err
		}
	}
	if a.fw == nil {
		if a.fw, err = openFirewall(st.Table); err != nil {
			return err
		}
	}
	if !a.fw.exists() && !weakness.Of("NW3") {
		return s.rebuild(st)
	}
	return nil
}

// settle writes an endpoint down.
func (s *Store) settle(e *end) error {
	if err := s.writeLease(e.lease); err != nil {
		return err
	}
	if len(e.lease.DNSNames) == 0 {
		return nil
	}
	return s.addNames(e.lease)
}

// openPorts binds what is to be published, on the end that leads out.
func (a *Attachment) openPorts(ctx context.Context) ([]*portal, error) {
	a.Ports = network.PortMap{}
	gw := gateway(a.ends)
	if gw == nil || len(a.req.Publish) == 0 {
		return nil, nil // Docker too ignores ports of internal networks
	}
	def, _ := netip.ParseAddr(gw.rec.Network.Options[optHostIP])
	ws, err := wants(a.req.Publish, def)
	if err != nil {
		return nil, err
	}
	portals, ports, err := a.s.openPorts(ctx, a.req, gw.lease.EndpointID, ws)
	if err != nil {
		return nil, err
	}
	for _, p := range portals {
		p.Target = gw.lease.IP4
		if p.HostIP.Is6() && gw.lease.IP6.IsValid() {
			p.Target = gw.lease.IP6
		}
	}
	a.Ports = ports
	return portals, nil
}

// publish tells the kernel about the ports.
func (a *Attachment) publish() error {
	if len(a.own.Ports) == 0 {
		return nil
	}
	var stale []flow
	for _, p := range a.own.Ports {
		if p.Proto == "udp" {
			stale = append(stale, flowsTo(p)) // a client that asked before must not be remembered
		}
	}
	if err := a.fw.publish(a.own.Ports, func() error { return a.s.disown(a.own) }); err != nil {
		return fmt.Errorf("publish ports: %w", err)
	}
	return forget(stale...)
}

// unreserve gives back what tryReserve took; the lock is held and no veth exists yet.
func (a *Attachment) unreserve(portals []*portal) {
	for _, p := range portals {
		p.close()
	}
	a.s.giveBack(a.own, a.fw)
	a.s.forgetOwner(a.own)
}

// link makes the veth pairs and what is inside.
func (a *Attachment) link() error {
	if len(a.ends) == 0 {
		return nil
	}
	host, err := openRtnl()
	if err != nil {
		return err
	}
	defer host.close()
	names := interfaceNames(a.ends)
	for i, e := range a.ends {
		if err := e.plug(host, a.ns, names[i]); err != nil {
			return err
		}
	}
	return a.route(gateway(a.ends))
}

// bridgePorts is how many ports a bridge has: BR_MAX_PORTS of the kernel's net/bridge/br_private.h, less
// number 0, which it keeps.
const bridgePorts = 1023

// interfaceNames are those that the endpoints ask for, and eth<n>, the lowest that is free, for the others.
func interfaceNames(ends []*end) []string {
	names := make([]string, len(ends))
	for i, e := range ends {
		names[i] = e.ask.DriverOpts[optIfname]
	}
	n := 0
	for i := range names {
		for ; names[i] == ""; n++ {
			if free := fmt.Sprintf("eth%d", n); !slices.Contains(names, free) {
				names[i] = free
			}
		}
	}
	return names
}

// checkInterfaceName refuses what the kernel would not have, or would fill in ("eth%d").
func checkInterfaceName(name string, ends []*end) error {
	if name == "" {
		return nil
	}
	if len(name) >= unix.IFNAMSIZ || name == "." || name == ".." || name == "lo" || strings.ContainsAny(name, "/:% \t\r\n\v\f\x00") {
		return fault.Invalidf("invalid interface name %q (%s): 1 to %d bytes without spaces, slashes, colons and percent signs, and not lo",
			name, optIfname, unix.IFNAMSIZ-1)
	}
	for _, o := range ends {
		if o.ask.DriverOpts[optIfname] == name {
			return fault.Invalidf("interface name %q is asked for twice, on the networks %s and another; choose another %s", name, o.rec.Network.Name, optIfname)
		}
	}
	return nil
}

// plug makes one veth pair with the inner end addressed and up.
func (e *end) plug(host rtnl, ns *netns, name string) error {
	v := vethPair{host: e.lease.Veth, bridge: e.bridge, netns: ns.fd, inside: name, mac: e.lease.MAC, mtu: e.rec.mtu()}
	err := host.do(v.message())
	switch {
	case errors.Is(err, unix.EXFULL):
		return fault.As(fault.Unavailable, fmt.Errorf("network %s is full: the kernel gives a bridge at most %d ports, one for each container, "+
			"and %s has them all; make another network with keg network create", e.rec.Network.Name, bridgePorts, e.rec.Link))
	case errors.Is(err, unix.EEXIST): // some modules put links of their own into every namespace
		return fault.Conflictf("container has an interface %s already; choose another name for that on network %s (%s)", name, e.rec.Network.Name, optIfname)
	case err != nil:
		return err
	}
	inner, err := ns.rt.find(name) // the kernel counts on where a link was taken away
	if err != nil {
		return err
	}
	e.index = inner.index
	if !e.rec.Network.EnableIPv6 {
		sysctl("ipv6/conf/"+v.host+"/disable_ipv6", "1") // quiet only: no link-local noise on the bridge
	}
	outer, err := host.find(v.host)
	if err != nil {
		return err
	}
	if !e.rec.option(optICC, true) {
		if err := host.do(isolate(v.host, outer.index)); err != nil {
			return err
		}
	}
	msgs := []message{}
	for _, six := range []bool{false, true} {
		if c, ok := e.rec.config(six); ok && e.addr(six).IsValid() {
			msgs = append(msgs, addAddr(e.index, netip.PrefixFrom(e.addr(six), c.Subnet.Bits())))
		}
	}
	if err := ns.rt.do(append(msgs, linkUp(e.index))...); err != nil {
		return err
	}
	return e.awaitCarrier(host, ns, outer.index)
}

// awaitCarrier returns when both ends and the bridge carry packets.
func (e *end) awaitCarrier(host rtnl, ns *netns, outer uint32) error {
	if _, err := ns.rt.awaitRunning(e.index, time.Second); err != nil {
		return err
	}
	if _, err := host.awaitRunning(outer, time.Second); err != nil {
		return err
	}
	ok, err := host.awaitRunning(e.bridge, 2*time.Millisecond)
	if err == nil && !ok {
		// Before 6.8 the kernel takes up to a second to see that a bridge got its first
		// port; one that is set up with the port in place works at once.
		err = host.do(linkDown(e.bridge), linkUp(e.bridge))
	}
	if err != nil || !e.lease.IP6.IsValid() {
		return err
	}
	if err := ns.rt.awaitIPv6(e.index, e.lease.IP6, time.Second); err != nil {
		return err
	}
	c, _ := e.rec.config(true)
	return host.awaitIPv6(e.bridge, c.Gateway, time.Second)
}

func (e *end) addr(six bool) netip.Addr {
	if six {
		return e.lease.IP6
	}
	return e.lease.IP4
}

// route sets the default routes through gw, and for IPv6 through whichever end has it.
func (a *Attachment) route(gw *end) error {
	if gw == nil {
		return nil
	}
	var msgs []message
	if c, ok := gw.rec.config(false); ok && gw.lease.IP4.IsValid() {
		msgs = append(msgs, defaultRoute(gw.index, c.Gateway))
	}
	six := gw
	if !gw.lease.IP6.IsValid() {
		six = gateway(slices.DeleteFunc(slices.Clone(a.ends), func(e *end) bool { return !e.lease.IP6.IsValid() }))
	}
	if six != nil {
		if c, ok := six.rec.config(true); ok && six.lease.IP6.IsValid() {
			msgs = append(msgs, defaultRoute(six.index, c.Gateway))
		}
	}
	if len(msgs) == 0 {
		return nil
	}
	return a.ns.rt.do(msgs...)
}

// abandon undoes a failed Attach.
func (a *Attachment) abandon(making func() netnsResult) {
	if a.ns == nil {
		if r := making(); r.err == nil {
			a.ns = r.ns
		}
	}
	a.release()
}
