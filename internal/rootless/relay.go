package rootless

// What the uplink carries on.

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// The kernel's own patience with a SYN is about two minutes; nobody waits that long.
	dialPatience = 30 * time.Second
	// A connection that was made for a container which is gone meanwhile is closed.
	acceptPatience = 10 * time.Second
	udpIdle        = time.Minute
	pingIdle       = 10 * time.Second
	maxFlows       = 4096 // of each kind
)

// dial is a connection that is being made for a SYN, or was, and waits for the container's.
type dial struct{ conn *net.TCPConn }

// syn connects to where the packet goes. The sender repeats it while we do.
func (u *uplink) syn(p packet) {
	f := p.flow()
	u.mu.Lock()
	defer u.mu.Unlock()
	if d, ok := u.dials[f]; ok {
		if d.conn != nil {
			u.tun.Write(p.raw) // the answer to the first one was lost
		}
		return
	}
	if len(u.dials) >= maxFlows {
		return
	}
	d := &dial{}
	u.dials[f] = d
	p.raw = slices.Clone(p.raw)
	p.payload = p.raw[len(p.raw)-len(p.payload):]
	go u.dial(f, d, p)
}

func (u *uplink) dial(f flow, d *dial, p packet) {
	c, err := net.DialTimeout("tcp4", f.to.String(), dialPatience)
	u.mu.Lock()
	defer u.mu.Unlock()
	if err != nil {
		delete(u.dials, f)
		p.mark(markUnreachable)
		if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ECONNRESET) {
			p.mark(markRefused)
		}
		u.tun.Write(p.raw)
		return
	}
	d.conn = c.(*net.TCPConn)
	u.tun.Write(p.raw)
	time.AfterFunc(acceptPatience, func() {
		if u.take(f) == d {
			d.conn.Close()
		}
	})
}

// take removes what was dialled for f.
func (u *uplink) take(f flow) *dial {
	u.mu.Lock()
	defer u.mu.Unlock()
	d := u.dials[f]
	if d == nil || d.conn == nil {
		return nil
	}
	delete(u.dials, f)
	return d
}

// accept joins the containers' connections with those that were made for them.
func (u *uplink) accept() {
	for {
		c, err := u.tcp.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		d := u.take(flow{c.RemoteAddr().(*net.TCPAddr).AddrPort(), originalDst(c)})
		if d == nil {
			c.SetLinger(0)
			c.Close()
			continue
		}
		go join(c, d.conn)
	}
}

// originalDst is where the container meant to go (SO_ORIGINAL_DST, netfilter).
func originalDst(c *net.TCPConn) (a netip.AddrPort) {
	raw, err := c.SyscallConn()
	if err != nil {
		return a
	}
	_ = raw.Control(func(fd uintptr) {
		var sa unix.RawSockaddrInet4
		size := uint32(unsafe.Sizeof(sa))
		_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_IP, unix.SO_ORIGINAL_DST,
			uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)), 0)
		if e == 0 {
			port := (*[2]byte)(unsafe.Pointer(&sa.Port))
			a = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), binary.BigEndian.Uint16(port[:]))
		}
	})
	return a
}

// join copies both ways (splice(2)); the end of one direction closes only that one.
func join(a, b *net.TCPConn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		half(a, b)
	}()
	half(b, a)
	<-done
	a.Close()
	b.Close()
}

func half(dst, src *net.TCPConn) {
	if _, err := io.Copy(dst, src); err != nil {
		dst.SetLinger(0) // one side was reset: so is the other
		dst.Close()
		src.Close()
		return
	}
	dst.CloseWrite()
}

// datagram sends one on; the first of a pair of ends makes the socket.
func (u *uplink) datagram(f flow, body []byte) {
	u.mu.Lock()
	c := u.udp[f]
	if c == nil && len(u.udp) < maxFlows {
		var err error
		if c, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(f.to)); err == nil {
			u.udp[f] = c
			go u.answers(f, c)
		} else {
			c = nil
		}
	}
	u.mu.Unlock()
	if c != nil {
		c.SetReadDeadline(time.Now().Add(udpIdle))
		c.Write(body)
	}
}

func (u *uplink) answers(f flow, c *net.UDPConn) {
	defer func() {
		u.mu.Lock()
		delete(u.udp, f)
		u.mu.Unlock()
		c.Close()
	}()
	buf := make([]byte, 1<<16)
	for {
		n, err := c.Read(buf)
		if errors.Is(err, unix.ECONNREFUSED) {
			continue // an ICMP error of an earlier one
		}
		if err != nil {
			return
		}
		if n <= tunMTU-28 {
			u.tun.Write(f.answer(buf[:n]))
		}
	}
}

// pingKey is one ping program and what it pings.
type pingKey struct {
	from, to netip.Addr
	id       uint16
}

// pinger is a ping socket (icmp(7)); the kernel gives it an identifier of its own.
type pinger struct{ c net.Conn }

func (u *uplink) ping(p packet, id uint16, body []byte) {
	k := pingKey{p.src, p.dst, id}
	u.mu.Lock()
	g := u.pings[k]
	if g == nil && len(u.pings) < maxFlows {
		if c, err := dialPing(p.dst); err == nil {
			g = &pinger{c}
			u.pings[k] = g
			go u.pongs(k, g)
		}
	}
	u.mu.Unlock()
	if g != nil {
		g.c.SetReadDeadline(time.Now().Add(pingIdle))
		g.c.Write(body)
	}
}

func (u *uplink) pongs(k pingKey, g *pinger) {
	defer func() {
		u.mu.Lock()
		delete(u.pings, k)
		u.mu.Unlock()
		g.c.Close()
	}()
	f := flow{netip.AddrPortFrom(k.from, 0), netip.AddrPortFrom(k.to, 0)}
	buf := make([]byte, 1<<16)
	for {
		n, err := g.c.Read(buf)
		if err != nil {
			return
		}
		if n >= 8 && n <= tunMTU-20 && buf[0] == 0 {
			u.tun.Write(echoReply(f, k.id, buf[:n]))
		}
	}
}
