package network

// What the caller of Attach sees: endpoint settings, /etc/hosts, /etc/resolv.conf.

import (
	"net/netip"

	"github.com/moby/moby/api/types/network"
)

// files fills what the caller sees.
func (a *Attachment) files(conf resolvConf) error {
	a.Endpoints = map[string]*network.EndpointSettings{}
	for _, e := range a.ends {
		a.Endpoints[e.rec.Network.Name] = e.settings()
		a.joinDNS(e)
	}
	if a.dns != nil {
		a.dns.serve()
	}
	return a.write(conf)
}

// rewrite makes Hosts and Resolv anew after the endpoints changed.
func (a *Attachment) rewrite() error {
	conf, err := a.hostResolv()
	if err != nil {
		return err
	}
	return a.write(conf)
}

func (a *Attachment) write(conf resolvConf) error {
	host := a.req.Hostname
	if a.req.Domainname != "" {
		host += "." + a.req.Domainname + " " + a.req.Hostname
	}
	var own []hostEntry
	for _, e := range a.ends {
		for _, ip := range e.lease.addrs() {
			if host != "" {
				own = append(own, hostEntry{ip, host})
			}
		}
	}
	var gwAddr netip.Addr
	if gw := gateway(a.ends); gw != nil {
		c, _ := gw.rec.config(false)
		gwAddr = c.Gateway
	}
	extra, err := parseExtraHosts(a.req.ExtraHosts, gwAddr)
	if err != nil {
		return err
	}
	a.Hosts = hostsFile(a.ipv6(), extra, own)
	if a.dns != nil {
		a.Resolv = conf.internal().text()
	} else {
		a.Resolv = conf.direct(a.ipv6(), len(a.req.DNS) > 0).text()
	}
	return nil
}

// joinDNS lets the resolver, if there is one, know a network; only one that leads out
// lets questions out.
func (a *Attachment) joinDNS(e *end) {
	switch {
	case a.dns == nil:
	case e.rec.userDefined():
		n := a.s.dnsNetwork(e.rec)
		n.links = linksOf(e.ask)
		a.dns.join(n, !e.rec.Network.Internal)
	default:
		a.dns.join(dnsNetwork{name: e.rec.Network.Name, names: &nameFile{}}, true)
	}
}

func (s *Store) dnsNetwork(r *record) dnsNetwork {
	n := dnsNetwork{name: r.Network.Name, names: &nameFile{path: s.namesFile(r.Network.Name)}}
	for _, c := range r.Network.IPAM.Config {
		n.nets = append(n.nets, c.Subnet)
	}
	return n
}

func (a *Attachment) hostResolv() (resolvConf, error) {
	c, err := hostResolvFiles().load()
	if err != nil {
		return c, err
	}
	return c.with(a.req)
}

// settings is what inspect shows of an endpoint.
func (e *end) settings() *network.EndpointSettings {
	out := e.ask.Copy()
	out.NetworkID, out.EndpointID = e.rec.Network.ID, e.lease.EndpointID
	out.MacAddress, out.DNSNames = e.lease.MAC, e.lease.DNSNames
	if c, ok := e.rec.config(false); ok && e.lease.IP4.IsValid() {
		out.IPAddress, out.IPPrefixLen = e.lease.IP4, c.Subnet.Bits()
		if !e.rec.Network.Internal {
			out.Gateway = c.Gateway
		}
	}
	if c, ok := e.rec.config(true); ok && e.lease.IP6.IsValid() {
		out.GlobalIPv6Address, out.GlobalIPv6PrefixLen = e.lease.IP6, c.Subnet.Bits()
		if !e.rec.Network.Internal {
			out.IPv6Gateway = c.Gateway
		}
	}
	return out
}
