package network

// Messages to rtnetlink(7), several in one system call. vishvananda/netlink serves
// where time does not matter; a starting container waits for these.

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// An rtnl is a NETLINK_ROUTE socket; it stays in the network namespace of the thread
// that opened it, whoever uses it.
type rtnl struct{ fd int }

// replies lends the memory for what the kernel says of one link, or a part of a list.
var replies = sync.Pool{New: func() any { return new([8 << 10]byte) }}

func openRtnl() (rtnl, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return rtnl{-1}, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	// Nobody waits for ever on a kernel that does not answer.
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10})
	return rtnl{fd}, nil
}

func (r rtnl) close() {
	if r.fd >= 0 {
		unix.Close(r.fd)
	}
}

// A message asks for an acknowledgement; what names it in an error.
type message struct {
	what string
	typ  uint16
	flag uint16
	body []byte
}

const createNew = unix.NLM_F_CREATE | unix.NLM_F_EXCL

func (m message) encode(seq uint32) []byte {
	b := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(m.body))
	binary.NativeEndian.PutUint32(b, uint32(unix.SizeofNlMsghdr+len(m.body)))
	binary.NativeEndian.PutUint16(b[4:], m.typ)
	binary.NativeEndian.PutUint16(b[6:], m.flag|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	binary.NativeEndian.PutUint32(b[8:], seq)
	return pad(append(b, m.body...))
}

// do sends all messages at once and collects their acknowledgements; the kernel works
// through them in order. The first error is returned.
func (r rtnl) do(msgs ...message) error {
	var out []byte
	for i, m := range msgs {
		out = append(out, m.encode(uint32(i+1))...)
	}
	if err := unix.Sendto(r.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("%s: %w", msgs[0].what, err)
	}
	var first error
	err := r.receive(len(msgs), func(h syscall.NlMsghdr, data []byte) {
		if h.Type != unix.NLMSG_ERROR || len(data) < 4 {
			return
		}
		if e := int32(binary.NativeEndian.Uint32(data)); e != 0 && first == nil {
			first = fmt.Errorf("%s: %w", msgs[h.Seq-1].what, syscall.Errno(-e))
		}
	})
	if first != nil {
		return first
	}
	return err
}

// receive hands messages to each until acks of them were acknowledgements.
func (r rtnl) receive(acks int, each func(syscall.NlMsghdr, []byte)) error {
	buf := replies.Get().(*[8 << 10]byte)
	defer replies.Put(buf)
	for acks > 0 {
		n, err := unix.Read(r.fd, buf[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("read rtnetlink answer: %w", err)
		}
		msgs, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return fmt.Errorf("read rtnetlink answer: %w", err)
		}
		for _, m := range msgs {
			each(m.Header, m.Data)
			if m.Header.Type == unix.NLMSG_ERROR || m.Header.Type == unix.NLMSG_DONE {
				acks--
			}
		}
	}
	return nil
}

// A linkState is what the kernel says of a link; the zero value: there is none.
type linkState struct {
	index   uint32
	running bool // carrier seen and queue attached: what is sent is not dropped
}

// find asks for a link by name.
func (r rtnl) find(name string) (linkState, error) {
	return r.query(message{"look up link " + name, unix.RTM_GETLINK, 0,
		join(ifinfo(0, 0), attr(unix.IFLA_IFNAME, cstring(name)), noStats())})
}

// look asks by number.
func (r rtnl) look(index uint32) (linkState, error) {
	return r.query(message{fmt.Sprintf("look up link %d", index), unix.RTM_GETLINK, 0, join(ifinfo(index, 0), noStats())})
}

func noStats() []byte {
	const rtextFilterSkipStats = 1 << 3 // linux/rtnetlink.h
	return attr(unix.IFLA_EXT_MASK, u32(rtextFilterSkipStats))
}

func (r rtnl) query(m message) (l linkState, err error) {
	if err := unix.Sendto(r.fd, m.encode(1), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return l, fmt.Errorf("%s: %w", m.what, err)
	}
	var fail error
	err = r.receive(1, func(h syscall.NlMsghdr, data []byte) {
		switch {
		case h.Type == unix.RTM_NEWLINK && len(data) >= unix.SizeofIfInfomsg:
			l.index = binary.NativeEndian.Uint32(data[4:])
			l.running = binary.NativeEndian.Uint32(data[8:])&unix.IFF_RUNNING != 0
		case h.Type == unix.NLMSG_ERROR && len(data) >= 4:
			if e := int32(binary.NativeEndian.Uint32(data)); e != 0 && e != -int32(unix.ENODEV) {
				fail = fmt.Errorf("%s: %w", m.what, syscall.Errno(-e))
			}
		}
	})
	if fail != nil {
		return l, fail
	}
	return l, err
}

// awaitRunning returns when a link sends what it is given. The kernel notices a carrier
// in a work queue of its own; until then packets are dropped, and a lost first ARP
// request costs a second. From 6.8 on the question itself makes it look (linkwatch_sync_dev).
func (r rtnl) awaitRunning(index uint32, patience time.Duration) (bool, error) {
	for end := time.Now().Add(patience); ; time.Sleep(200 * time.Microsecond) {
		l, err := r.look(index)
		if err != nil || l.running {
			return l.running, err
		}
		if time.Now().After(end) {
			return false, nil
		}
	}
}

// awaitIPv6 returns when a link replies for its IPv6 address. Even without duplicate
// detection it joins the address's solicited-node group (RFC 4291, 2.7.1) in a work
// queue of the kernel; a neighbour that asks before gets no answer and waits a second.
func (r rtnl) awaitIPv6(index uint32, a netip.Addr, patience time.Duration) error {
	b := a.As16()
	group := netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]})
	for end := time.Now().Add(patience); ; time.Sleep(200 * time.Microsecond) {
		ok, err := r.joined(index, group)
		if err != nil || ok || time.Now().After(end) {
			return err
		}
	}
}

func (r rtnl) joined(index uint32, group netip.Addr) (found bool, err error) {
	const rtmGetMulticast, ifaMulticast = 58, 7 // linux/rtnetlink.h, linux/if_addr.h
	m := message{"list multicast groups", rtmGetMulticast, unix.NLM_F_DUMP, []byte{unix.AF_INET6, 0, 0, 0, 0, 0, 0, 0}}
	if err := unix.Sendto(r.fd, m.encode(1), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return false, fmt.Errorf("%s: %w", m.what, err)
	}
	want := attr(ifaMulticast, group.AsSlice())
	err = r.receive(1, func(h syscall.NlMsghdr, data []byte) {
		if h.Type != unix.NLMSG_ERROR && len(data) >= unix.SizeofIfAddrmsg && binary.NativeEndian.Uint32(data[4:]) == index {
			found = found || bytes.HasPrefix(data[unix.SizeofIfAddrmsg:], want)
		}
	})
	return found, err
}

// linkExists is find in the namespace of the calling thread, with a socket of its own.
func linkExists(name string) bool {
	r, err := openRtnl()
	if err != nil {
		return true // unknown: better believed to exist
	}
	defer r.close()
	l, err := r.find(name)
	return l.index != 0 || err != nil
}

// A vethPair is one end on a bridge of this namespace, the other end inside another.
type vethPair struct {
	host   string
	bridge uint32 // index
	netns  int    // descriptor
	inside string // eth0
	mac    []byte
	mtu    int
}

// message makes both ends at once; the inner one is born inside, so it never shows up here. It gets a number of the kernel's choice:
// one that is asked for counts only when the outer one asks as well (veth_newlink).
func (v vethPair) message() message {
	mtu := []byte(nil)
	if v.mtu > 0 {
		mtu = attr(unix.IFLA_MTU, u32(uint32(v.mtu)))
	}
	peer := join(ifinfo(0, 0),
		attr(unix.IFLA_IFNAME, cstring(v.inside)),
		attr(unix.IFLA_ADDRESS, v.mac), mtu,
		attr(unix.IFLA_NET_NS_FD, u32(uint32(v.netns))))
	const vethInfoPeer = 1 // linux/veth.h
	return message{"make veth " + v.host, unix.RTM_NEWLINK, createNew, join(
		ifinfo(0, unix.IFF_UP),
		attr(unix.IFLA_IFNAME, cstring(v.host)), mtu,
		attr(unix.IFLA_MASTER, u32(v.bridge)),
		attr(unix.IFLA_LINKINFO, join(
			attr(unix.IFLA_INFO_KIND, cstring("veth")),
			attr(unix.IFLA_INFO_DATA, attr(vethInfoPeer, peer)))))}
}

// isolate keeps a bridge port from talking to other isolated ones: icc=false without
// leaning on br_netfilter.
func isolate(host string, index uint32) message {
	const brportIsolated = 33 // linux/if_link.h
	m := message{"isolate " + host, unix.RTM_SETLINK, 0, join(ifinfo(index, 0),
		attr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, attr(brportIsolated, []byte{1})))}
	m.body[0] = unix.AF_BRIDGE
	return m
}

func linkDown(index uint32) message {
	m := message{fmt.Sprintf("set link %d down", index), unix.RTM_NEWLINK, 0, ifinfo(index, unix.IFF_UP)}
	binary.NativeEndian.PutUint32(m.body[8:], 0) // the flag stays in the change mask
	return m
}

func linkUp(index uint32) message {
	return message{fmt.Sprintf("set link %d up", index), unix.RTM_NEWLINK, 0, ifinfo(index, unix.IFF_UP)}
}

// addAddr gives a link an address; without duplicate detection, since leases are unique.
func addAddr(index uint32, p netip.Prefix) message {
	fam := byte(unix.AF_INET)
	ifa := []byte{0, byte(p.Bits()), 0, unix.RT_SCOPE_UNIVERSE, 0, 0, 0, 0}
	if p.Addr().Is6() {
		fam = unix.AF_INET6
		ifa[2] = unix.IFA_F_NODAD
	}
	ifa[0] = fam
	binary.NativeEndian.PutUint32(ifa[4:], index)
	a := p.Addr().AsSlice()
	body := join(ifa, attr(unix.IFA_LOCAL, a), attr(unix.IFA_ADDRESS, a))
	if fam == unix.AF_INET {
		body = join(body, attr(unix.IFA_BROADCAST, lastAddr(p).AsSlice()))
	}
	return message{"add address " + p.String(), unix.RTM_NEWADDR, createNew, body}
}

func defaultRoute(index uint32, via netip.Addr) message {
	fam := byte(unix.AF_INET)
	if via.Is6() {
		fam = unix.AF_INET6
	}
	rt := []byte{fam, 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST, 0, 0, 0, 0}
	return message{"set default route via " + via.String(), unix.RTM_NEWROUTE, unix.NLM_F_CREATE | unix.NLM_F_REPLACE,
		join(rt, attr(unix.RTA_GATEWAY, via.AsSlice()), attr(unix.RTA_OIF, u32(index)))}
}

func deleteLink(name string) message {
	return message{"delete link " + name, unix.RTM_DELLINK, 0, join(ifinfo(0, 0), attr(unix.IFLA_IFNAME, cstring(name)))}
}

// ifinfo is struct ifinfomsg; a flag set in up is also set in the change mask.
func ifinfo(index, up uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], index)
	binary.NativeEndian.PutUint32(b[8:], up)
	binary.NativeEndian.PutUint32(b[12:], up)
	return b
}

func attr(typ uint16, v []byte) []byte {
	b := make([]byte, unix.SizeofRtAttr, unix.SizeofRtAttr+len(v)+3)
	binary.NativeEndian.PutUint16(b, uint16(unix.SizeofRtAttr+len(v)))
	binary.NativeEndian.PutUint16(b[2:], typ)
	return pad(append(b, v...))
}

func pad(b []byte) []byte {
	for len(b)%unix.NLMSG_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

func join(parts ...[]byte) (out []byte) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func u32(v uint32) []byte     { return binary.NativeEndian.AppendUint32(nil, v) }
func cstring(s string) []byte { return append([]byte(s), 0) }
