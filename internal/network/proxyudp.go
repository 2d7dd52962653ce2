package network

// UDP has no connections, so each client gets an association that ends when nothing
// was heard for a while.

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	udpIdle = 90 * time.Second
	// maxAssociations bounds what one port can make the monitor hold.
	maxAssociations = 1024
)

type udpProxy struct {
	front  *net.UDPConn
	target netip.AddrPort
	home   func(func() error) error
	idle   time.Duration

	mu    sync.Mutex
	assoc map[udpClient]*net.UDPConn
	wg    sync.WaitGroup
}

// A udpClient is told apart by its address and by the one it spoke to: the answer must
// come from there.
type udpClient struct {
	from netip.AddrPort
	to   netip.Addr
}

func newUDPProxy(front *net.UDPConn, target netip.AddrPort, home func(func() error) error) *udpProxy {
	return &udpProxy{front: front, target: target, home: home, idle: udpIdle, assoc: map[udpClient]*net.UDPConn{}}
}

// serve runs until the front is closed.
func (u *udpProxy) serve() {
	wantPktinfo(u.front)
	buf, oob := make([]byte, 64<<10), make([]byte, 128)
	for {
		n, on, _, from, err := u.front.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			break
		}
		if err != nil {
			continue // an ICMP error of an earlier answer
		}
		c := udpClient{netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), pktinfoDst(oob[:on])}
		if back := u.connect(c); back != nil {
			back.Write(buf[:n])
		}
	}
	u.mu.Lock()
	for _, c := range u.assoc {
		c.Close()
	}
	u.mu.Unlock()
	u.wg.Wait()
}

func (u *udpProxy) connect(c udpClient) *net.UDPConn {
	u.mu.Lock()
	defer u.mu.Unlock()
	if back, ok := u.assoc[c]; ok {
		back.SetReadDeadline(time.Now().Add(u.idle))
		return back
	}
	if len(u.assoc) >= maxAssociations {
		return nil
	}
	var back *net.UDPConn
	err := u.home(func() (err error) {
		back, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(u.target))
		return err
	})
	if err != nil {
		return nil
	}
	back.SetReadDeadline(time.Now().Add(u.idle))
	u.assoc[c] = back
	u.wg.Add(1)
	go u.answers(c, back)
	return back
}

func (u *udpProxy) answers(c udpClient, back *net.UDPConn) {
	defer u.wg.Done()
	defer func() {
		u.mu.Lock()
		delete(u.assoc, c)
		u.mu.Unlock()
		back.Close()
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := back.Read(buf)
		if errors.Is(err, unix.ECONNREFUSED) {
			continue // nobody listens yet; the client may try again
		}
		if err != nil {
			return
		}
		back.SetReadDeadline(time.Now().Add(u.idle))
		u.front.WriteMsgUDPAddrPort(buf[:n], pktinfoSrc(c.to), c.from)
	}
}

// wantPktinfo asks for the destination address of each datagram (ip(7) IP_PKTINFO).
func wantPktinfo(c *net.UDPConn) {
	rc, err := c.SyscallConn()
	if err != nil {
		return
	}
	rc.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	})
}

// pktinfoDst reads the address that a datagram was sent to; zero when not told.
func pktinfoDst(oob []byte) netip.Addr {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.Addr{}
	}
	for _, m := range msgs {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= 12:
			return netip.AddrFrom4([4]byte(m.Data[8:12]))
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= 16:
			return netip.AddrFrom16([16]byte(m.Data[:16]))
		}
	}
	return netip.Addr{}
}

// pktinfoSrc makes an answer leave from the address that was asked.
func pktinfoSrc(a netip.Addr) []byte {
	switch {
	case a.Is4():
		b := a.As4()
		return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: b})
	case a.Is6():
		info := unix.Inet6Pktinfo{Addr: a.As16()}
		return unix.PktInfo6(&info)
	}
	return nil
}
