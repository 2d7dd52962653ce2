package network

// Addresses: which subnet a new network gets, which address a new endpoint gets, and
// what a user may ask for. Pure functions over values.

import (
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/network"

	"keg/internal/fault"
)

// A pool is cut into subnets of size bits.
type pool struct {
	base netip.Prefix
	bits int
}

// defaultPools are Docker's (libnetwork ipamutils): 172.17.0.0/16 ... 172.31.0.0/16,
// then 192.168.0.0/20 ... 192.168.240.0/20.
func defaultPools() []pool {
	p := func(s string, bits int) pool { return pool{netip.MustParsePrefix(s), bits} }
	return []pool{
		p("172.17.0.0/16", 16), p("172.18.0.0/16", 16), p("172.19.0.0/16", 16),
		p("172.20.0.0/14", 16), p("172.24.0.0/14", 16), p("172.28.0.0/14", 16),
		p("192.168.0.0/16", 20),
	}
}

// firstFree returns the first subnet of the pools that overlaps nothing taken.
func firstFree(pools []pool, taken []netip.Prefix) (netip.Prefix, error) {
	for _, p := range pools {
		for sub := netip.PrefixFrom(p.base.Addr(), p.bits); p.base.Contains(sub.Addr()); sub = nextSubnet(sub) {
			if !overlapsAny(sub, taken) {
				return sub, nil
			}
		}
	}
	return netip.Prefix{}, fault.Unavailablef("all predefined address pools have been fully subnetted; remove a network (keg network prune) or choose one with --subnet")
}

func overlapsAny(p netip.Prefix, taken []netip.Prefix) bool {
	return slices.ContainsFunc(taken, p.Overlaps)
}

// nextSubnet is the subnet of the same size that follows an IPv4 one.
func nextSubnet(p netip.Prefix) netip.Prefix {
	b := p.Addr().As4()
	n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	n += 1 << (32 - p.Bits())
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}), p.Bits())
}

// randomULA is a /64 of fd00::/8 (RFC 4193) that nobody else has.
func randomULA() netip.Prefix {
	b := [16]byte{0: 0xfd}
	rand.Read(b[1:8])
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}

// pickAddress returns the lowest address of cfg that is not used. The subnet's own
// address, its broadcast, the gateway and auxiliary addresses are never given out.
func pickAddress(cfg network.IPAMConfig, used func(netip.Addr) bool) (netip.Addr, bool) {
	from := cfg.Subnet
	if cfg.IPRange.IsValid() {
		from = cfg.IPRange
	}
	for a := from.Masked().Addr(); from.Contains(a); a = a.Next() {
		if !reserved(cfg, a) && !used(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func reserved(cfg network.IPAMConfig, a netip.Addr) bool {
	if a == cfg.Gateway {
		return true
	}
	for _, aux := range cfg.AuxAddress {
		if a == aux {
			return true
		}
	}
	if cfg.Subnet.Bits() >= a.BitLen()-1 {
		return false // RFC 3021: a /31 has no broadcast
	}
	if a == cfg.Subnet.Masked().Addr() {
		return true
	}
	return a.Is4() && a == lastAddr(cfg.Subnet)
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// defaultGateway is the first address that may be given out.
func defaultGateway(cfg network.IPAMConfig) netip.Addr {
	a, _ := pickAddress(cfg, func(netip.Addr) bool { return false })
	return a
}

// macFor derives a MAC from an IPv4 address as Docker did for ten years: a new owner
// of an address is reached at once, whatever the neighbours have cached.
func macFor(ip netip.Addr) [6]byte {
	if !ip.Is4() {
		var m [6]byte
		rand.Read(m[:])
		m[0] = m[0]&^1 | 2
		return m
	}
	b := ip.As4()
	return [6]byte{0x02, 0x42, b[0], b[1], b[2], b[3]}
}

// validateIPAM checks what a user asked for, with Docker's sentences.
func validateIPAM(cfgs []network.IPAMConfig, ipv6 bool) error {
	var errs []error
	var subnets []netip.Prefix
	for _, c := range cfgs {
		if !c.Subnet.IsValid() {
			errs = append(errs, errors.New("invalid subnet: an ip-range, gateway or auxiliary address needs a subnet"))
			continue
		}
		if c.Subnet.Addr().Is6() && !ipv6 {
			errs = append(errs, fmt.Errorf("invalid subnet %s: IPv6 is not enabled for this network", c.Subnet))
			continue
		}
		errs = append(errs, validateConfig(c)...)
		if overlapsAny(c.Subnet, subnets) {
			errs = append(errs, fmt.Errorf("invalid subnet %s: it overlaps another subnet of this network", c.Subnet))
		}
		subnets = append(subnets, c.Subnet)
	}
	if err := errors.Join(errs...); err != nil {
		return fault.Invalidf("invalid network config:\n%w", err)
	}
	return nil
}

func validateConfig(c network.IPAMConfig) (errs []error) {
	sub, fam := c.Subnet, family(c.Subnet.Addr())
	if sub != sub.Masked() {
		errs = append(errs, fmt.Errorf("invalid subnet %s: it should be %s", sub, sub.Masked()))
	}
	if r := c.IPRange; r.IsValid() {
		switch {
		case family(r.Addr()) != fam:
			errs = append(errs, fmt.Errorf("invalid ip-range %s: parent subnet is an %s block", r, fam))
		case r.Bits() < sub.Bits():
			errs = append(errs, fmt.Errorf("invalid ip-range %s: CIDR block is bigger than its parent subnet %s", r, sub))
		case r != r.Masked():
			errs = append(errs, fmt.Errorf("invalid ip-range %s: it should be %s", r, r.Masked()))
		case !sub.Overlaps(r):
			errs = append(errs, fmt.Errorf("invalid ip-range %s: parent subnet %s doesn't contain ip-range", r, sub))
		}
	}
	if err := validateAddress(c.Gateway, sub); err != nil {
		errs = append(errs, fmt.Errorf("invalid gateway %s: %w", c.Gateway, err))
	}
	for _, name := range slices.Sorted(maps.Keys(c.AuxAddress)) {
		if err := validateAddress(c.AuxAddress[name], sub); err != nil {
			errs = append(errs, fmt.Errorf("invalid auxiliary address %s: %w", name, err))
		}
	}
	return errs
}

func validateAddress(a netip.Addr, sub netip.Prefix) error {
	switch {
	case !a.IsValid():
		return nil
	case family(a) != family(sub.Addr()):
		return fmt.Errorf("parent subnet is an %s block", family(sub.Addr()))
	case !sub.Contains(a):
		return fmt.Errorf("parent subnet %s doesn't contain this address", sub)
	}
	return nil
}

func family(a netip.Addr) string {
	if a.Is6() {
		return "IPv6"
	}
	return "IPv4"
}
