package network

// The proxy behind a portal: what comes from the host itself (loopback, ::1, its own
// addresses) and from containers goes through here; what comes from outside is
// translated by the kernel and never seen.

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"keg/internal/rootless"
)

// A proxy carries one portal.
type proxy struct {
	portal *portal
	target netip.AddrPort
	home   func(func() error) error // runs a function where the container can be reached
	away   bool                     // that is not here: the client is known to the container only by what we say

	mu     sync.Mutex
	conns  map[*net.TCPConn]struct{} // open ends, for shutdown
	wg     sync.WaitGroup
	closed bool
}

func startProxy(p *portal, home func(func() error) error, away bool) *proxy {
	x := &proxy{portal: p, home: home, away: away, target: netip.AddrPortFrom(p.Target, p.TargetPort), conns: map[*net.TCPConn]struct{}{}}
	x.wg.Add(1)
	go func() {
		defer x.wg.Done()
		if p.listener != nil {
			x.acceptAll()
		} else {
			newUDPProxy(p.packet, x.target, home).serve()
		}
	}()
	return x
}

// stopListening frees the port at once; connections go on.
func (x *proxy) stopListening() { x.portal.close() }

// finish waits for the connections, whose far ends have just died, and cuts off what
// is left after grace.
func (x *proxy) finish(grace time.Duration) {
	done := make(chan struct{})
	go func() { x.wg.Wait(); close(done) }()
	select {
	case <-done:
		return
	case <-time.After(grace):
	}
	x.mu.Lock()
	x.closed = true
	for c := range x.conns {
		c.Close()
	}
	x.mu.Unlock()
	<-done
}

func (x *proxy) acceptAll() {
	pause := time.Duration(0)
	for {
		c, err := x.portal.listener.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors or memory: others may give some back
			pause = min(max(5*time.Millisecond, 2*pause), time.Second)
			time.Sleep(pause)
			continue
		}
		pause = 0
		x.wg.Add(1)
		go func() {
			defer x.wg.Done()
			x.relay(c)
		}()
	}
}

func (x *proxy) track(c *net.TCPConn) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return false
	}
	x.conns[c] = struct{}{}
	return true
}

func (x *proxy) drop(c *net.TCPConn) {
	c.Close()
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.conns, c)
}

// relay copies both ways. io.Copy between TCP connections is splice(2); the end of one
// direction closes only that one.
func (x *proxy) relay(client *net.TCPConn) {
	if !x.track(client) {
		client.Close()
		return
	}
	defer x.drop(client)
	server, err := x.dial(client.RemoteAddr().(*net.TCPAddr).AddrPort())
	if err != nil {
		client.SetLinger(0) // a reset, as if nobody listened
		return
	}
	if !x.track(server) {
		server.Close()
		return
	}
	defer x.drop(server)
	back := make(chan struct{})
	go func() {
		defer close(back)
		half(client, server)
	}()
	half(server, client)
	<-back
}

func (x *proxy) dial(client netip.AddrPort) (c *net.TCPConn, err error) {
	err = x.home(func() error {
		d := net.Dialer{Timeout: 10 * time.Second}
		if x.away && rootless.Speaks(&d, client, x.target) {
			if up, err := d.Dial("tcp", x.target.String()); err == nil {
				c = up.(*net.TCPConn)
				return nil
			}
			d = net.Dialer{Timeout: 10 * time.Second} // in our own name, then
		}
		up, err := d.Dial("tcp", x.target.String())
		if err == nil {
			c = up.(*net.TCPConn)
		}
		return err
	})
	return c, err
}

func half(dst, src *net.TCPConn) {
	if _, err := io.Copy(dst, src); err != nil {
		// One side was reset: the other must not wait for its keep-alive.
		dst.SetLinger(0)
		dst.Close()
		src.Close()
		return
	}
	dst.CloseWrite()
}
