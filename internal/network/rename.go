package network

// A container that runs gets another name, and names of its own for others (links).

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"

	"keg/internal/disk"
)

// Rename makes the names of user-defined networks answer the container's new name and no
// longer the old one.
func (a *Attachment) Rename(ctx context.Context, name string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.released || a.req.Name == name {
		return nil
	}
	l, err := a.s.lock(ctx)
	if err != nil {
		return err
	}
	defer l.Unlock()
	a.req.Name, a.own.Name = name, name
	errs := []error{a.s.putOwner(a.own)}
	for _, e := range a.ends {
		e.lease.Name, e.lease.DNSNames = name, dnsNames(e.rec, e.ask, a.req)
		for _, ip := range a.s.own(e.lease) {
			errs = append(errs, disk.PutJSONVolatile(a.s.leaseFile(e.lease.Network, ip.String()), e.lease))
		}
		if e.rec.userDefined() {
			errs = append(errs, a.s.addNames(e.lease))
		}
	}
	return errors.Join(errs...)
}

// linksOf are the names that only this container knows: alias -> name on the network, in
// lower case. Links are "container" or "container:alias".
func linksOf(s network.EndpointSettings) map[string]string {
	m := map[string]string{}
	for _, l := range s.Links {
		name, alias, ok := strings.Cut(l, ":")
		if !ok {
			alias = name
		}
		if name = strings.TrimPrefix(name, "/"); name != "" && alias != "" {
			m[strings.ToLower(alias)] = strings.ToLower(name)
		}
	}
	return m
}

// of finds a name on this network: its own, one with the network's name after it, or a link.
func (n *dnsNetwork) of(name string) (t nameTable, names []string) {
	t = n.names.load()
	names = []string{name}
	if short, ok := strings.CutSuffix(name, "."+strings.ToLower(n.name)); ok {
		names = append(names, short)
	}
	for _, s := range slices.Clone(names) {
		if to, ok := n.links[s]; ok && !slices.Contains(names, to) {
			names = append(names, to)
		}
	}
	return t, names
}
