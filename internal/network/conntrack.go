package network

// Connection tracking remembers where packets of a flow go. When an address or a port
// changes hands, what is remembered of its former owner must go, or packets of an old
// client are sent to a dead address.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Attributes of ctnetlink that x/sys lacks (linux/netfilter/nfnetlink_conntrack.h).
const (
	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaFilter     = 25

	ctaTupleIP    = 1
	ctaTupleProto = 2

	ctaIPv4Src = 1
	ctaIPv6Src = 3

	ctaProtoNum     = 1
	ctaProtoDstPort = 3

	ctaFilterOrig  = 1
	ctaFilterReply = 2

	// Which members of a tuple count (CTA_FILTER_F_*, net/netfilter/nf_conntrack_netlink.c).
	filterIPSrc    = 1 << 0
	filterProtoNum = 1 << 3
	filterProtoDst = 1 << 5
	ctDelete       = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2 // IPCTNL_MSG_CT_DELETE
	sizeofNfgenmsg = 4
)

// A flow is what to forget: flows from an address, flows whose answers come from it, or flows
// to a port of this host that were not translated, or to somebody else.
type flow struct {
	family   byte
	from     netip.Addr // source of the original direction
	answerer netip.Addr // source of the answers
	proto    byte
	port     uint16 // destination of the original direction
}

// flowsOf are those from an address, and those translated to it.
func flowsOf(a netip.Addr) []flow {
	fam := familyOf(a)
	return []flow{{family: fam, from: a}, {family: fam, answerer: a}}
}

// flowsTo are those to a published port.
func flowsTo(p published) flow {
	return flow{family: familyOf(p.HostIP), proto: protoNumber(p.Proto), port: p.HostPort}
}

func familyOf(a netip.Addr) byte {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// message asks the kernel (6.8 or newer) to forget the flow in one pass over its table.
func (f flow) message() message {
	body := []byte{f.family, unix.NFNETLINK_V0, 0, 0}
	var origFlags, replyFlags uint32
	source := func(a netip.Addr) []byte {
		typ := uint16(ctaIPv4Src)
		if a.Is6() {
			typ = ctaIPv6Src
		}
		return attr(ctaTupleIP|unix.NLA_F_NESTED, attr(typ, a.AsSlice()))
	}
	switch {
	case f.from.IsValid():
		origFlags = filterIPSrc
		body = join(body, attr(ctaTupleOrig|unix.NLA_F_NESTED, source(f.from)))
	case f.answerer.IsValid():
		replyFlags = filterIPSrc
		body = join(body, attr(ctaTupleReply|unix.NLA_F_NESTED, source(f.answerer)))
	default:
		origFlags = filterProtoNum | filterProtoDst
		body = join(body, attr(ctaTupleOrig|unix.NLA_F_NESTED, attr(ctaTupleProto|unix.NLA_F_NESTED, join(
			attr(ctaProtoNum, []byte{f.proto}),
			attr(ctaProtoDstPort, []byte{byte(f.port >> 8), byte(f.port)})))))
	}
	flags := func(typ uint16, v uint32) []byte { return attr(typ, binary.NativeEndian.AppendUint32(nil, v)) }
	return message{"forget connections", ctDelete, 0, join(body, attr(ctaFilter|unix.NLA_F_NESTED,
		join(flags(ctaFilterOrig, origFlags), flags(ctaFilterReply, replyFlags))))}
}

// MatchConntrackFlow is for kernels that do not filter themselves.
func (f flow) MatchConntrackFlow(c *netlink.ConntrackFlow) bool {
	is := func(ip net.IP, a netip.Addr) bool {
		b, ok := netip.AddrFromSlice(ip)
		return ok && b.Unmap() == a.Unmap()
	}
	switch {
	case f.from.IsValid():
		return is(c.Forward.SrcIP, f.from)
	case f.answerer.IsValid():
		return is(c.Reverse.SrcIP, f.answerer)
	}
	return c.Forward.Protocol == f.proto && c.Forward.DstPort == f.port
}

// forget removes flows from connection tracking.
func forget(flows ...flow) error {
	if len(flows) == 0 {
		return nil
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("open conntrack: %w", err)
	}
	n := rtnl{fd}
	defer func() { go n.close() }() // see firewall.close
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10})
	for _, f := range flows {
		err := n.do(f.message())
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) { // before Linux 6.8
			_, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.InetFamily(f.family), f)
		}
		if err != nil {
			return fmt.Errorf("forget connections: %w", err)
		}
	}
	return nil
}
