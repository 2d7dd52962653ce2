package network

// Leases: networks/<name>/leases/<ip>, one file an address, made with O_EXCL. A lease
// lasts until its owner's namespace is gone, not until its owner has exited: as long
// as the old veth end exists it answers ARP for the address.

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"slices"
	"sort"

	"github.com/moby/moby/api/types/network"

	"keg/internal/disk"
	"keg/internal/fault"
)

// A lease is one endpoint, as written in the file of each of its addresses.
type lease struct {
	Version    int
	ID, Name   string // container
	EndpointID string
	Network    string
	IP4, IP6   netip.Addr
	MAC        network.HardwareAddr
	Veth       string   // the end on the host
	DNSNames   []string `json:",omitempty"`
	Boot       string
	Leaving    bool `json:",omitempty"` // the container has exited
}

func (l *lease) addrs() (out []netip.Addr) {
	for _, a := range []netip.Addr{l.IP4, l.IP6} {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

// leases returns the endpoints of a network. A file that does not parse was torn by a
// crash and holds nothing.
func (s *Store) leases(name string) ([]*lease, error) {
	ents, err := os.ReadDir(s.leaseDir(name))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	var out []*lease
	seen := map[string]bool{}
	for _, e := range ents {
		l := new(lease)
		if disk.IsTemp(e.Name()) || disk.GetJSON(s.leaseFile(name, e.Name()), l) != nil || seen[l.EndpointID] {
			continue
		}
		seen[l.EndpointID] = true
		out = append(out, l)
	}
	return out, nil
}

// leased tells which addresses of a network are taken, by file name only. A network may have a thousand, and every monitor
// asks: the names are all that is kept.
func (s *Store) leased(name string) (taken func(netip.Addr) bool, err error) {
	d, err := os.Open(s.leaseDir(name))
	if errors.Is(err, os.ErrNotExist) {
		return func(netip.Addr) bool { return false }, nil
	}
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	return func(a netip.Addr) bool {
		var room [64]byte
		text := a.AppendTo(room[:0])
		i := sort.Search(len(names), func(i int) bool { return names[i] >= string(text) })
		return i < len(names) && names[i] == string(text)
	}, nil
}

// idle reports whether no address of a network is leased.
func (s *Store) idle(name string) bool {
	d, err := os.Open(s.leaseDir(name))
	if err != nil {
		return true
	}
	defer d.Close()
	names, _ := d.Readdirnames(1)
	return len(names) == 0
}

// pickLease chooses an endpoint's addresses; writeLease makes them its own. The caller
// holds the lock over both.
func (s *Store) pickLease(r *record, l *lease, want *network.EndpointIPAMConfig) (err error) {
	if want == nil {
		want = &network.EndpointIPAMConfig{}
	}
	taken, err := s.leased(r.Network.Name)
	if err != nil {
		return err
	}
	if c, ok := r.config(false); ok {
		if l.IP4, err = s.address(r, c, want.IPv4Address, taken); err != nil {
			return err
		}
	}
	if c, ok := r.config(true); ok && r.Network.EnableIPv6 {
		if l.IP6, err = s.address(r, c, want.IPv6Address, taken); err != nil {
			return err
		}
	} else if want.IPv6Address.IsValid() {
		return fault.Invalidf("user specified IP address is supported only when connecting to networks with user configured subnets: network %s has no IPv6 subnet", r.Network.Name)
	}
	if len(l.MAC) == 0 {
		m := macFor(l.IP4)
		l.MAC = m[:]
	}
	return nil
}

// address picks or checks one address.
func (s *Store) address(r *record, c network.IPAMConfig, want netip.Addr, taken func(netip.Addr) bool) (netip.Addr, error) {
	if !want.IsValid() {
		a, ok := pickAddress(c, taken)
		if !ok {
			return a, fault.Unavailablef("could not find an available IP address in network %s (%s): no available %s addresses on this network's address pools: %s (%s)",
				r.Network.Name, c.Subnet, family(c.Subnet.Addr()), r.Network.Name, r.Network.ID)
		}
		return a, nil
	}
	if r.predefined() || r.Auto4 && want.Is4() {
		return want, fault.Invalidf("invalid config for network %s: invalid endpoint settings:\nuser specified IP address is supported only when connecting to networks with user configured subnets", r.Network.Name)
	}
	if !c.Subnet.Contains(want) {
		return want, fault.Invalidf("invalid config for network %s: invalid endpoint settings:\nno configured subnet contains IP address %s", r.Network.Name, want)
	}
	if reserved(c, want) && want != auxOf(c, want) {
		return want, fault.Deniedf("Address already in use: %s belongs to network %s itself", want, r.Network.Name)
	}
	if taken(want) {
		return want, s.addressTaken(r, want)
	}
	return want, nil
}

// auxOf: an auxiliary address is kept from the pool, but a user may ask for it by number.
func auxOf(c network.IPAMConfig, a netip.Addr) netip.Addr {
	for _, aux := range c.AuxAddress {
		if aux == a {
			return a
		}
	}
	return netip.Addr{}
}

// errLeaving marks a resource whose owner has exited: worth waiting for.
var errLeaving = errors.New("its owner is just leaving")

// addressTaken names the owner; a stale lease is not an answer but is swept away.
func (s *Store) addressTaken(r *record, a netip.Addr) error {
	l := new(lease)
	err := disk.GetJSON(s.leaseFile(r.Network.Name, a.String()), l)
	if err != nil || s.gone(l) {
		return os.Remove(s.leaseFile(r.Network.Name, a.String()))
	}
	if l.Leaving {
		return fault.Deniedf("Address already in use: %s by container %q: %w", a, l.Name, errLeaving)
	}
	return fault.Deniedf("Address already in use: %s belongs to container %q on network %s", a, l.Name, r.Network.Name)
}

// gone reports whether a lease outlived its namespace: of another boot, or of a
// container that exited and whose veth has vanished since.
func (s *Store) gone(l *lease) bool {
	return l.Boot != bootID() || l.Leaving && !linkExists(l.Veth)
}

func (s *Store) writeLease(l *lease) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	for _, a := range l.addrs() {
		f, err := os.OpenFile(s.leaseFile(l.Network, a.String()), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if errors.Is(err, os.ErrNotExist) {
			if err = os.MkdirAll(s.leaseDir(l.Network), 0o700); err == nil {
				f, err = os.OpenFile(s.leaseFile(l.Network, a.String()), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			}
		}
		if err != nil {
			return err
		}
		_, err = f.Write(b)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// markLeaving rewrites the leases of an endpoint: who waits for its address knows why.
func (s *Store) markLeaving(l *lease) error {
	l.Leaving = true
	var errs []error
	for _, a := range s.own(l) {
		errs = append(errs, disk.PutJSONVolatile(s.leaseFile(l.Network, a.String()), l))
	}
	return errors.Join(errs...)
}

// dropLease removes the files that are still this endpoint's.
func (s *Store) dropLease(l *lease) error {
	var errs []error
	for _, a := range s.own(l) {
		errs = append(errs, os.Remove(s.leaseFile(l.Network, a.String())))
	}
	return errors.Join(errs...)
}

// own returns the addresses whose lease still names this endpoint.
func (s *Store) own(l *lease) (out []netip.Addr) {
	for _, a := range l.addrs() {
		got := new(lease)
		if disk.GetJSON(s.leaseFile(l.Network, a.String()), got) == nil && got.EndpointID == l.EndpointID {
			out = append(out, a)
		}
	}
	return out
}

// reapLeases removes the leases whose namespace is gone and returns the others. The
// caller holds the lock.
func (s *Store) reapLeases(name string) ([]*lease, error) {
	ents, err := os.ReadDir(s.leaseDir(name))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	for _, e := range ents {
		l, p := new(lease), s.leaseFile(name, e.Name())
		if err := disk.GetJSON(p, l); err != nil || s.gone(l) {
			if err := os.Remove(p); err != nil {
				return nil, err
			}
		}
	}
	return s.leases(name)
}
