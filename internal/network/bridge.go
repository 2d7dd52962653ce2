package network

// Bridges come up at the first use after boot and go when nobody has used them for a
// moment. The caller holds the engine's lock in all of this.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"keg/internal/disk"
	"keg/internal/fault"
)

// up makes sure that the bridge of r exists and the rules know it, and returns its
// index. The common case is one question to the kernel.
func (s *Store) up(st *hostState, r *record, host rtnl) (uint32, error) {
	if n, ok := st.Up[r.Network.Name]; ok {
		if l, err := host.find(n.Bridge); err != nil || l.index != 0 {
			return l.index, err
		}
	}
	unlock, err := lockHost(2 * time.Second)
	if err != nil {
		return 0, err
	}
	defer unlock()
	// No bridge means a fresh boot or nobody attached: leases of another time go now.
	if _, err := s.reapLeases(r.Network.Name); err != nil {
		return 0, err
	}
	if err := s.settleSubnet(r); err != nil {
		return 0, err
	}
	idx, err := makeBridge(r)
	if err != nil {
		return 0, err
	}
	undo := func() { netlink.LinkDel(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: r.Link, Index: int(idx)}}) }
	if err := s.register(st, r); err != nil {
		undo()
		return 0, err
	}
	return idx, nil
}

// settleSubnet looks at the host again: since the record was written another engine or
// a VPN may have taken the subnet. One that keg chose is chosen again.
func (s *Store) settleSubnet(r *record) error {
	host, err := hostPrefixes()
	if err != nil {
		return err
	}
	c, ok := r.config(false)
	if !ok {
		return nil
	}
	by := ""
	for link, ps := range host {
		if link != r.Link && overlapsAny(c.Subnet, ps) {
			by = link
		}
	}
	switch {
	case by == "":
		return nil
	case !r.Auto4:
		if l, err := netlink.LinkByName(by); err == nil && l.Type() == "bridge" {
			return fault.Conflictf("cannot create network %s (%s): conflicts with link %s: networks have overlapping IPv4 (%s)",
				r.Network.ID, r.Link, by, c.Subnet)
		}
		return nil // Docker too lets a user shadow a route
	}
	all, err := s.records()
	if err != nil {
		return err
	}
	var taken []netip.Prefix
	for _, o := range all {
		if oc, ok := o.config(false); ok && o.Network.ID != r.Network.ID {
			taken = append(taken, oc.Subnet)
		}
	}
	sub, err := chooseSubnet(r.Link, taken)
	if err != nil {
		return err
	}
	for i := range r.Network.IPAM.Config {
		if old := &r.Network.IPAM.Config[i]; old.Subnet == c.Subnet {
			old.Subnet, old.Gateway = sub, netip.Addr{}
			old.Gateway = defaultGateway(*old)
		}
	}
	return s.putRecord(r)
}

// makeBridge makes the link, or takes over the one that a crash or an administrator left.
func makeBridge(r *record) (uint32, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = r.Link
	attrs.MTU = r.mtu()
	c4, _ := r.config(false)
	m := macFor(c4.Gateway)
	attrs.HardwareAddr = m[:]
	var br netlink.Link = &netlink.Bridge{LinkAttrs: attrs}
	err := netlink.LinkAdd(br)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return 0, fault.Unsupportedf("make bridge %s: this kernel has no bridges (CONFIG_BRIDGE); use --network host or none", r.Link)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return 0, fmt.Errorf("make bridge %s: %w", r.Link, err)
	}
	existed := err != nil
	if existed || br.Attrs().Index == 0 {
		if br, err = netlink.LinkByName(r.Link); err != nil {
			return 0, fmt.Errorf("make bridge %s: %w", r.Link, err)
		}
	}
	if br.Type() != "bridge" {
		return 0, fault.Conflictf("cannot make bridge %s: a link of type %s has this name", r.Link, br.Type())
	}
	undo := func() {
		if !existed {
			netlink.LinkDel(br)
		}
	}
	if err := setUpBridge(r, br); err != nil {
		undo()
		return 0, fmt.Errorf("set up bridge %s: %w", r.Link, err)
	}
	return uint32(br.Attrs().Index), nil
}

func setUpBridge(r *record, br netlink.Link) error {
	_, six := r.config(true)
	six = six && r.Network.EnableIPv6
	conf := "ipv6/conf/" + r.Link + "/"
	if !six {
		if err := sysctl(conf+"disable_ipv6", "1"); err != nil {
			return err
		}
	} else if err := errors.Join(sysctl(conf+"disable_ipv6", "0"), sysctl(conf+"accept_ra", "0"), sysctl(conf+"keep_addr_on_down", "1")); err != nil {
		return err
	}
	for _, c := range r.Network.IPAM.Config {
		if c.Subnet.Addr().Is6() && !six || !c.Gateway.IsValid() {
			continue
		}
		a := &netlink.Addr{IPNet: &net.IPNet{IP: c.Gateway.AsSlice(), Mask: net.CIDRMask(c.Subnet.Bits(), c.Gateway.BitLen())}}
		if c.Gateway.Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(br, a); err != nil {
			return fmt.Errorf("add address %s: %w", a.IPNet, err)
		}
	}
	return netlink.LinkSetUp(br)
}

// register puts r among the networks that are up: forwarding, rules, state.
func (s *Store) register(st *hostState, r *record) error {
	if st.Table == "" {
		b, err := s.getRecord("bridge")
		if err != nil {
			return err
		}
		st.Table = "keg_" + b.Network.ID[:8]
	}
	changed, err := enableForwarding(r.Network.EnableIPv6)
	if err != nil {
		return err
	}
	st.Forward.V4 = st.Forward.V4 || changed.V4
	st.Forward.V6 = st.Forward.V6 || changed.V6
	n := upNetwork{Bridge: r.Link, Internal: r.Network.Internal, NoICC: !r.option(optICC, true), Masquerade: r.option(optMasq, true)}
	if c, ok := r.config(false); ok {
		n.V4 = c.Subnet
	}
	if c, ok := r.config(true); ok && r.Network.EnableIPv6 {
		n.V6 = c.Subnet
	}
	if n.Firewall, n.Blocked, err = letThrough(st.Table, r.Link); err != nil {
		return err
	}
	st.Up[r.Network.Name] = n
	// The state first: what it names can be taken back, whatever happens next.
	if err := s.putState(st); err != nil {
		return err
	}
	return s.rebuild(st)
}

// rebuild makes the table anew from the records: all networks that are up, all live ports.
func (s *Store) rebuild(st *hostState) error {
	fw, err := openFirewall(st.Table)
	if err != nil {
		return err
	}
	defer fw.close()
	if len(st.Up) == 0 {
		return fw.remove()
	}
	ports, err := s.livePorts()
	if err != nil {
		return err
	}
	return fw.apply(plan(st.Up, st.Forward.V4 || st.Forward.V6), ports)
}

func (s *Store) livePorts() ([]published, error) {
	all, err := s.owners()
	if err != nil {
		return nil, err
	}
	var ports []published
	for _, o := range all {
		if !o.Leaving {
			ports = append(ports, o.Ports...)
		}
	}
	return ports, nil
}

// down takes the bridge of a network away, and with the last one the table and what
// else was changed on the host. Nothing happens for a network that is not up.
func (s *Store) down(name string) error {
	st, err := s.state()
	if err != nil {
		return err
	}
	n, ok := st.Up[name]
	if !ok {
		return nil
	}
	if l, err := netlink.LinkByName(n.Bridge); err == nil && l.Type() == "bridge" {
		if err := netlink.LinkDel(l); err != nil {
			return fmt.Errorf("delete bridge %s: %w", n.Bridge, err)
		}
	}
	delete(st.Up, name)
	if err := stopLetting(st.Table, n); err != nil {
		return err
	}
	if err := s.rebuild(st); err != nil {
		return err
	}
	if len(st.Up) == 0 {
		if err := restoreForwarding(st.Forward); err != nil {
			return err
		}
		st.Forward = forwarding{}
	}
	return s.putState(st)
}

func (s *Store) reload(ctx context.Context) error {
	l, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer l.Unlock()
	st, err := s.state()
	if err != nil || len(st.Up) == 0 {
		return err
	}
	for name, n := range st.Up {
		if n.Firewall, n.Blocked, err = letThrough(st.Table, n.Bridge); err != nil {
			return err
		}
		st.Up[name] = n
	}
	if err := s.putState(st); err != nil {
		return err
	}
	return s.rebuild(st)
}

func (s *Store) teardown(ctx context.Context) error {
	l, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer l.Unlock()
	return s.teardownIdle(func(string) bool { return true })
}

func (s *Store) teardownIdle(want func(name string) bool) error {
	st, err := s.state()
	if err != nil {
		return err
	}
	var errs []error
	for name := range st.Up {
		if _, err := s.reapLeases(name); err != nil {
			errs = append(errs, err)
		} else if s.idle(name) && want(name) {
			errs = append(errs, s.down(name))
		}
	}
	return errors.Join(errs...)
}

func (s *Store) settleDown(ctx context.Context) error {
	for {
		st, err := s.state()
		if err != nil || !s.anyIdle(st) {
			return err
		}
		turn, err := disk.TryLock(s.lingerFile())
		if err != nil || turn == nil {
			return err // somebody else lingers, and will look again after letting go
		}
		err = s.lingerTurn(ctx)
		turn.Unlock()
		if err != nil {
			return err
		}
	}
}

func (s *Store) anyIdle(st *hostState) bool {
	for name := range st.Up {
		if s.idle(name) {
			return true
		}
	}
	return false
}

// lingerTurn returns when no network is idle, or ctx ends.
func (s *Store) lingerTurn(ctx context.Context) error {
	for {
		st, err := s.state()
		if err != nil || !s.anyIdle(st) {
			return err
		}
		wait := s.linger
		for name := range st.Up {
			if s.idle(name) {
				wait = min(wait, s.linger-s.idleFor(name))
			}
		}
		if wait > 0 {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(wait):
			}
			continue
		}
		l, err := s.lock(ctx)
		if err != nil {
			return err
		}
		err = s.teardownIdle(func(name string) bool { return s.idleFor(name) >= s.linger })
		l.Unlock()
		if err != nil {
			return err
		}
	}
}

// idleFor is how long ago the last lease came or went: the directory's own mtime.
func (s *Store) idleFor(name string) time.Duration {
	fi, err := os.Stat(s.leaseDir(name))
	if err != nil {
		return s.linger
	}
	return time.Since(fi.ModTime())
}
