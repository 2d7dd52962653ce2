package monitor

// Networks between the RUN steps of one build. Making and giving back one takes as long as
// a short step, so the next step that asks for the same takes over what an earlier one
// left: its processes are dead, and nothing in the box of a step can change addresses,
// routes or rules. What a privileged step had is never used again.

import (
	"context"
	"errors"
	"strings"
	"sync"

	"keg/internal/network"
)

// pool holds networks that no step uses.
type pool struct {
	mu   sync.Mutex
	free map[string][]*network.Attachment
}

// kind tells steps that may follow each other in a network: its files name hosts.
func (s Step) kind() string {
	return strings.Join(append([]string{s.Network, s.Hostname}, s.ExtraHosts...), "\x00")
}

func (p *pool) take(s Step) *network.Attachment {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.free[s.kind()]
	if len(list) == 0 || s.Privileged {
		return nil
	}
	a := list[len(list)-1]
	p.free[s.kind()] = list[:len(list)-1]
	return a
}

// give takes back what a step had. Only what all processes have left is used again.
func (p *pool) give(s Step, a *network.Attachment, left bool) error {
	if s.Privileged || !left {
		return a.Release()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.free == nil {
		p.free = map[string][]*network.Attachment{}
	}
	p.free[s.kind()] = append(p.free[s.kind()], a)
	return nil
}

// close releases all. No step runs any more.
func (p *pool) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, list := range p.free {
		for _, a := range list {
			errs = append(errs, a.Release())
		}
	}
	p.free = nil
	return errors.Join(errs...)
}

// network is that of an earlier step, or a new one, made beside the mounts.
func (s *steps) network(ctx context.Context, m *monitor, st Step) <-chan attached {
	if a := s.idle.take(st); a != nil {
		c := make(chan attached, 1)
		c <- attached{a: a, hosts: a.Hosts, resolv: a.Resolv}
		return c
	}
	return m.attachNetwork(ctx, nil)
}
