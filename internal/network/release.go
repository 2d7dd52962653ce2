package network

// Giving back. The order: listeners, names, rules, the namespace; and when the kernel
// has really let go of the namespace, connection tracking and the addresses.

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Quiesce frees the published ports and stops answering DNS. It takes microseconds:
// called before the exit code is reported, the next user of a port need not wait.
// Connections under way go on until Release.
func (a *Attachment) Quiesce() {
	a.quiet.Do(func() {
		for _, p := range a.proxies {
			p.stopListening()
		}
	})
}

func (a *Attachment) release() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.released {
		return nil
	}
	a.released = true
	a.Quiesce()
	for _, p := range a.proxies {
		defer p.finish(2 * time.Second)
	}
	err := a.s.leave(a.own, a.fw)
	if a.dns != nil && a.ns != nil {
		a.dns.close()
	}
	if a.ns != nil {
		a.ns.dns = nil
		a.ns.close()
		a.NetNS = -1
	}
	err = errors.Join(err, a.s.finish(a.own))
	if a.fw != nil {
		a.fw.close()
	}
	return err
}

func (s *Store) clean(id string) error {
	if err := validName(id); err != nil {
		return err
	}
	o, err := s.getOwner(id)
	if o == nil || err != nil {
		return err
	}
	if err := s.leave(o, nil); err != nil {
		return err
	}
	return s.finish(o)
}

// leave is the part that needs no waiting. fw may be nil.
func (s *Store) leave(o *owner, fw *firewall) error {
	if len(o.Leases) == 0 {
		return nil
	}
	l, err := s.lock(context.Background())
	if err != nil {
		return err
	}
	defer l.Unlock()
	now, err := s.getOwner(o.ID)
	if err != nil || now == nil || !sameLeases(now, o) {
		return err // given back already, or the id is somebody else's by now
	}
	now.Leaving = true
	errs := []error{s.giveBackPorts(now, fw)}
	now.Ports = nil
	errs = append(errs, s.putOwner(now))
	for _, l := range now.Leases {
		errs = append(errs, s.dropNames(l), s.markLeaving(l))
	}
	return errors.Join(errs...)
}

func sameLeases(a, b *owner) bool {
	return slices.EqualFunc(a.Leases, b.Leases, func(x, y *lease) bool { return x.EndpointID == y.EndpointID })
}

// giveBackPorts removes the rules of ports that are still this owner's. A port that
// somebody took meanwhile was taken out of the record.
func (s *Store) giveBackPorts(o *owner, fw *firewall) error {
	if len(o.Ports) == 0 {
		return nil
	}
	if fw == nil {
		st, err := s.state()
		if err != nil || st.Table == "" {
			return err
		}
		if fw, err = openFirewall(st.Table); err != nil {
			return err
		}
		defer fw.close()
	}
	return fw.unpublish(o.Ports)
}

// finish waits until the namespace is gone and then frees the addresses. What keeps it
// longer than grace (a socket that still tries to deliver, a container that shares it)
// loses the link: deleting a veth costs 16 ms, but afterwards nobody answers for the address.
func (s *Store) finish(o *owner) error {
	if len(o.Leases) == 0 {
		return nil
	}
	if err := s.awaitVeths(o); err != nil {
		return err
	}
	var flows []flow
	for _, l := range o.Leases {
		for _, a := range l.addrs() {
			flows = append(flows, flowsOf(a)...)
		}
	}
	errs := []error{forget(flows...)}
	l, err := s.lock(context.Background())
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	defer l.Unlock()
	return errors.Join(append(errs, s.dropLeases(o), s.forgetOwner(o))...)
}

// awaitVeths returns when the ends on the host are gone.
func (s *Store) awaitVeths(o *owner) error {
	host, err := openRtnl()
	if err != nil {
		return err
	}
	defer host.close()
	left := slices.Clone(o.Leases)
	for end := time.Now().Add(s.grace); ; time.Sleep(2 * time.Millisecond) {
		left = slices.DeleteFunc(left, func(l *lease) bool {
			st, err := host.find(l.Veth)
			return err == nil && st.index == 0
		})
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(end) {
			return deleteVeths(host, left)
		}
	}
}

func deleteVeths(host rtnl, ls []*lease) error {
	var errs []error
	for _, l := range ls {
		if err := host.do(deleteLink(l.Veth)); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (s *Store) dropLeases(o *owner) error {
	var errs []error
	for _, l := range o.Leases {
		errs = append(errs, s.dropLease(l))
	}
	return errors.Join(errs...)
}

// giveBack undoes a reservation whose namespace never had a link: nothing to wait for.
func (s *Store) giveBack(o *owner, fw *firewall) error {
	errs := []error{s.giveBackPorts(o, fw)}
	for _, l := range o.Leases {
		errs = append(errs, s.dropNames(l))
	}
	return errors.Join(append(errs, s.dropLeases(o))...)
}

// disown takes the ports that o has just bound out of the records of others: those have
// exited, and must not remove the new rules with their own.
func (s *Store) disown(o *owner) error {
	all, err := s.owners()
	if err != nil {
		return err
	}
	var errs []error
	for _, other := range all {
		if other.ID == o.ID {
			continue
		}
		n := len(other.Ports)
		other.Ports = slices.DeleteFunc(other.Ports, func(p published) bool {
			return slices.ContainsFunc(o.Ports, func(q published) bool {
				return p.Proto == q.Proto && p.HostIP == q.HostIP && p.HostPort == q.HostPort
			})
		})
		if len(other.Ports) != n {
			errs = append(errs, s.putOwner(other))
		}
	}
	return errors.Join(errs...)
}

// forgetOwner removes the record if it is still about these endpoints.
func (s *Store) forgetOwner(o *owner) error {
	now, err := s.getOwner(o.ID)
	if err != nil || now == nil || !sameLeases(now, o) {
		return err
	}
	if err := os.Remove(s.ownerFile(o.ID)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// evict makes room for a new life of a container whose last one left a record: its
// monitor died, or has not got round to Release. The caller holds the lock.
func (s *Store) evict(id string) error {
	o, err := s.getOwner(id)
	if err != nil || o == nil {
		return err
	}
	host, err := openRtnl()
	if err != nil {
		return err
	}
	defer host.close()
	if err := deleteVeths(host, o.Leases); err != nil {
		return err
	}
	if err := s.giveBack(o, nil); err != nil {
		return err
	}
	return s.forgetOwner(o)
}
