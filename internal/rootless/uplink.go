package rootless

// The way out of the user's network: a tun device with the default route. What comes out of it is
// carried on by the keeper, which is in the host's network, with the host's sockets:
//
//	TCP   the first packet (SYN) makes the keeper connect to where it goes. When that worked the packet
//	      goes back in, and a rule leads it, and with it the connection, to a socket of the
//	      keeper's: both ends are the kernel's TCP. When it was refused the packet goes back marked,
//	      and a rule answers it with a reset.
//	UDP   each pair of ends has a socket.
//	ICMP  pings, where the host lets ordinary users ping.
//
// The first packet passes the bridge untracked, so that connection tracking knows only the second
// passage, which is the one that is translated.

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"unsafe"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	tunName = "keg0"
	// Larger than any packet: what is not TCP goes out in one piece.
	tunMTU = 65520
	// Code points that no application uses (RFC 2474, pools for local use).
	markRefused     = 0x3f
	markUnreachable = 0x3b
	tableName       = "keg-uplink"
)

// tunAddr is an address for benchmarks (RFC 2544), which no network has.
func tunAddr() netip.Addr { return netip.AddrFrom4([4]byte{198, 18, 0, 1}) }

// uplink carries packets between the tun device and the host.
type uplink struct {
	tun *os.File
	tcp *net.TCPListener // inside

	mu    sync.Mutex
	dials map[flow]*dial
	udp   map[flow]*net.UDPConn
	pings map[pingKey]*pinger
}

// openUplink makes device, rules and socket; the calling thread is inside the user's network.
func openUplink() (u *uplink, err error) {
	tun, err := openTun()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			tun.Close()
		}
	}()
	if err := setUpTun(); err != nil {
		return nil, err
	}
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: tunAddr().AsSlice()})
	if err != nil {
		return nil, err
	}
	if err := uplinkRules(uint16(l.Addr().(*net.TCPAddr).Port)); err != nil {
		l.Close()
		return nil, fmt.Errorf("make the rules of the way out: %w", err)
	}
	return &uplink{tun: tun, tcp: l, dials: map[flow]*dial{}, udp: map[flow]*net.UDPConn{}, pings: map[pingKey]*pinger{}}, nil
}

func openTun() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("open /dev/net/tun: %w; containers reach nothing outside, load it with: sudo modprobe tun", err)
	}
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w; containers reach nothing outside, allow it with: sudo chmod 666 /dev/net/tun", err)
	}
	var req struct {
		name  [16]byte
		flags uint16
		_     [22]byte
	}
	copy(req.name[:], tunName)
	req.flags = unix.IFF_TUN | unix.IFF_NO_PI
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFF, uintptr(unsafe.Pointer(&req))); e != 0 {
		unix.Close(fd)
		return nil, fmt.Errorf("make the device %s: %w", tunName, e)
	}
	return os.NewFile(uintptr(fd), tunName), nil
}

func setUpTun() error {
	l, err := setUp(tunName, addressTun)
	if err != nil {
		return err
	}
	all := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: all, Scope: netlink.SCOPE_LINK})
}

// setUp gives a device what it needs before it is switched on.
func setUp(name string, prepare func(netlink.Link) error) (netlink.Link, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	if err = prepare(l); err == nil {
		err = netlink.LinkSetUp(l)
	}
	if err != nil {
		return nil, fmt.Errorf("set up %s: %w", name, err)
	}
	return l, nil
}

func addressTun(l netlink.Link) error {
	// Packets come back in with the sender's address, which belongs to a bridge.
	for _, name := range []string{"all/rp_filter", tunName + "/rp_filter"} {
		if err := os.WriteFile(filepath.Join("/proc/sys/net/ipv4/conf", name), []byte("0"), 0); err != nil {
			return err
		}
	}
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+tunName+"/disable_ipv6", []byte("1"), 0) // there may be no IPv6
	if err := netlink.LinkSetMTU(l, tunMTU); err != nil {
		return err
	}
	return netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: tunAddr().AsSlice(), Mask: net.CIDRMask(32, 32)}})
}

// uplinkRules tells the kernel:
//
//	chain first { type filter hook prerouting priority -310
//		iifname "keg0" ip dscp 0x3f meta l4proto tcp reject with tcp reset
//		iifname "keg0" ip dscp 0x3b reject with icmp host-unreachable
//		iifname != "keg0" meta l4proto tcp tcp flags & (fin|syn|rst|ack) == syn fib daddr oifname "keg0" notrack
//	}
//	chain in { type nat hook prerouting priority -110
//		iifname "keg0" meta l4proto tcp dnat to 198.18.0.1:port
//	}
func uplinkRules(port uint16) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	t := c.AddTable(&nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4})
	chain := func(name string, kind nftables.ChainType, prio int) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Name: name, Table: t, Type: kind, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(nftables.ChainPriority(prio))})
	}
	first, in := chain("first", nftables.ChainTypeFilter, -310), chain("in", nftables.ChainTypeNAT, -110)
	add := func(ch *nftables.Chain, parts ...[]expr.Any) {
		r := &nftables.Rule{Table: t, Chain: ch}
		for _, p := range parts {
			r.Exprs = append(r.Exprs, p...)
		}
		c.AddRule(r)
	}
	tun := linkName(tunName)
	link := func(op expr.CmpOp) []expr.Any {
		return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: tun}}
	}
	tcp := []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}}}
	masked := func(base expr.PayloadBase, at uint32, mask, want byte) []expr.Any {
		return []expr.Any{&expr.Payload{DestRegister: 1, Base: base, Offset: at, Len: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{want}}}
	}
	add(first, link(expr.CmpOpEq), masked(expr.PayloadBaseNetworkHeader, 1, 0xfc, markRefused<<2), tcp,
		[]expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
	add(first, link(expr.CmpOpEq), masked(expr.PayloadBaseNetworkHeader, 1, 0xfc, markUnreachable<<2),
		[]expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 1}})
	add(first, link(expr.CmpOpNeq), tcp, masked(expr.PayloadBaseTransportHeader, 13, tcpFin|tcpSyn|tcpRst|tcpAck, tcpSyn),
		[]expr.Any{&expr.Fib{Register: 1, ResultOIFNAME: true, FlagDADDR: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: tun}, &expr.Notrack{}})
	add(in, link(expr.CmpOpEq), tcp, []expr.Any{
		&expr.Immediate{Register: 1, Data: tunAddr().AsSlice()},
		&expr.Immediate{Register: 2, Data: []byte{byte(port >> 8), byte(port)}},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2, Specified: true}})
	return c.Flush()
}

// linkName is a device's name as rules compare it.
func linkName(name string) []byte {
	return append([]byte(name), make([]byte, unix.IFNAMSIZ-len(name))...)
}

// serve runs until the device is closed, which is when the keeper ends.
func (u *uplink) serve() {
	go u.accept()
	buf := make([]byte, 1<<16)
	for {
		n, err := u.tun.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		p, ok := parse(buf[:n])
		if !ok {
			continue
		}
		if p.isSyn() {
			u.syn(p)
		} else if body, ok := p.datagram(); ok {
			u.datagram(p.flow(), body)
		} else if id, body, ok := p.echo(); ok {
			u.ping(p, id, body)
		}
	}
}
