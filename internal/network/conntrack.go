package network

// Connection tracking remembers where packets of a flow go. When an address or a port
// changes hands, what is remembered of its former owner must go, or packets of an old
// client are sent to a dead address.

import (
	"encoding/binary"
	"fmt"
	"net/netip"

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

// A flow is what to forget.
type flow struct {
	orig, reply []byte // tuples
	origFlags   uint32
	replyFlags  uint32
	family      byte
}

// flowsOf are those from an address, and those translated to it.
func flowsOf(a netip.Addr) []flow {
	fam, typ := byte(unix.AF_INET), uint16(ctaIPv4Src)
	if a.Is6() {
		fam, typ = unix.AF_INET6, ctaIPv6Src
	}
	src := attr(ctaTupleIP|unix.NLA_F_NESTED, attr(typ, a.AsSlice()))
	return []flow{
		{family: fam, orig: src, origFlags: filterIPSrc},
		{family: fam, reply: src, replyFlags: filterIPSrc},
	}
}

// flowsTo are those to a port of this host that were not translated, or to somebody else.
func flowsTo(p published) flow {
	fam := byte(unix.AF_INET)
	if p.HostIP.Is6() {
		fam = unix.AF_INET6
	}
	tuple := attr(ctaTupleProto|unix.NLA_F_NESTED, join(
		attr(ctaProtoNum, []byte{protoNumber(p.Proto)}),
		attr(ctaProtoDstPort, []byte{byte(p.HostPort >> 8), byte(p.HostPort)})))
	return flow{family: fam, orig: tuple, origFlags: filterProtoNum | filterProtoDst}
}

func (f flow) message() message {
	body := []byte{f.family, unix.NFNETLINK_V0, 0, 0}
	if f.orig != nil {
		body = join(body, attr(ctaTupleOrig|unix.NLA_F_NESTED, f.orig))
	}
	if f.reply != nil {
		body = join(body, attr(ctaTupleReply|unix.NLA_F_NESTED, f.reply))
	}
	flags := func(typ uint16, v uint32) []byte { return attr(typ, binary.NativeEndian.AppendUint32(nil, v)) }
	return message{"forget connections", ctDelete, 0, join(body, attr(ctaFilter|unix.NLA_F_NESTED,
		join(flags(ctaFilterOrig, f.origFlags), flags(ctaFilterReply, f.replyFlags))))}
}

// forget removes flows from connection tracking; each is one pass over its table, in the kernel.
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
		if err := n.do(f.message()); err != nil {
			return err
		}
	}
	return nil
}
