package rootless

// IPv4 packets as they come out of the tun device, and those that go in. RFC 791, 768, 9293, 792.

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A flow is who speaks to whom.
type flow struct{ from, to netip.AddrPort }

// packet is a view of the bytes of one IPv4 packet.
type packet struct {
	raw     []byte
	payload []byte // after the IP header
	proto   byte
	src     netip.Addr
	dst     netip.Addr
}

// parse takes whole, unfragmented packets only: the kernel puts fragments together before it hands them out.
func parse(b []byte) (p packet, ok bool) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return p, false
	}
	head, size := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if head < 20 || size < head || size > len(b) || binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
		return p, false
	}
	return packet{raw: b[:size], payload: b[head:size], proto: b[9],
		src: netip.AddrFrom4([4]byte(b[12:16])), dst: netip.AddrFrom4([4]byte(b[16:20]))}, true
}

// flow is the packet's, for TCP and UDP.
func (p packet) flow() flow {
	return flow{netip.AddrPortFrom(p.src, binary.BigEndian.Uint16(p.payload)), netip.AddrPortFrom(p.dst, binary.BigEndian.Uint16(p.payload[2:]))}
}

const (
	tcpFin = 1 << iota
	tcpSyn
	tcpRst
	_
	tcpAck
)

// isSyn tells the first packet of a TCP connection.
func (p packet) isSyn() bool {
	return p.proto == unix.IPPROTO_TCP && len(p.payload) >= 20 && p.payload[13]&(tcpFin|tcpSyn|tcpRst|tcpAck) == tcpSyn
}

// datagram is the body of a UDP packet.
func (p packet) datagram() ([]byte, bool) {
	if p.proto != unix.IPPROTO_UDP || len(p.payload) < 8 {
		return nil, false
	}
	n := int(binary.BigEndian.Uint16(p.payload[4:]))
	if n < 8 || n > len(p.payload) {
		return nil, false
	}
	return p.payload[8:n], true
}

// echo is the body of a ping, with its identifier.
func (p packet) echo() (id uint16, body []byte, ok bool) {
	if p.proto != unix.IPPROTO_ICMP || len(p.payload) < 8 || p.payload[0] != 8 || p.payload[1] != 0 {
		return 0, nil, false
	}
	return binary.BigEndian.Uint16(p.payload[4:]), p.payload, true
}

// mark sets the differentiated services code point, by which our own rules know the packet again.
func (p packet) mark(dscp byte) {
	p.raw[1] = p.raw[1]&3 | dscp<<2
	fillSum(p.raw[:len(p.raw)-len(p.payload)], 10, 0)
}

// ipv4 makes room for a packet and writes its header.
func ipv4(proto byte, src, dst netip.Addr, size int) (b, payload []byte) {
	b = make([]byte, 20+size)
	b[0], b[8], b[9] = 4<<4|5, 64, proto
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[6:], 0x4000) // may not be fragmented
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	fillSum(b[:20], 10, 0)
	return b, b[20:]
}

// udp is a datagram that answers f.
func (f flow) answer(body []byte) []byte {
	b, p := ipv4(unix.IPPROTO_UDP, f.to.Addr(), f.from.Addr(), 8+len(body))
	binary.BigEndian.PutUint16(p, f.to.Port())
	binary.BigEndian.PutUint16(p[2:], f.from.Port())
	binary.BigEndian.PutUint16(p[4:], uint16(len(p)))
	copy(p[8:], body)
	pseudo := sum(b[12:20], unix.IPPROTO_UDP+uint32(len(p)))
	fillSum(p, 6, pseudo)
	if p[6] == 0 && p[7] == 0 {
		p[6], p[7] = 0xff, 0xff
	}
	return b
}

// echoReply answers a ping of f's sender with what the far end said.
func echoReply(f flow, id uint16, body []byte) []byte {
	b, p := ipv4(unix.IPPROTO_ICMP, f.to.Addr(), f.from.Addr(), len(body))
	copy(p, body)
	p[0], p[1] = 0, 0
	binary.BigEndian.PutUint16(p[4:], id)
	fillSum(p, 2, 0)
	return b
}

// fillSum writes the Internet checksum of b at its place in b (RFC 1071).
func fillSum(b []byte, at int, start uint32) {
	b[at], b[at+1] = 0, 0
	s := sum(b, start)
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	binary.BigEndian.PutUint16(b[at:], ^uint16(s))
}

func sum(b []byte, s uint32) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}
