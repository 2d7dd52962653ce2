package rootless

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// A question of dig's, as tcpdump showed it: 172.17.0.2.40000 > 192.0.2.53.53.
func question() []byte {
	b, _ := hex.DecodeString("4500" + "0020" + "12340000" + "4011" + "0000" + "ac110002" + "c0000235" +
		"9c40" + "0035" + "000c" + "0000" + "01020304")
	fillSum(b[:20], 10, 0)
	return b
}

func TestAnswerGoesBack(t *testing.T) {
	p, ok := parse(question())
	if !ok {
		t.Fatal("not a packet")
	}
	body, ok := p.datagram()
	if !ok || !bytes.Equal(body, []byte{1, 2, 3, 4}) {
		t.Fatalf("%x %v", body, ok)
	}
	f := p.flow()
	if f.from != netip.MustParseAddrPort("172.17.0.2:40000") || f.to != netip.MustParseAddrPort("192.0.2.53:53") {
		t.Fatal(f)
	}
	a, ok := parse(f.answer([]byte("yes")))
	if !ok || a.flow() != (flow{f.to, f.from}) {
		t.Fatalf("%x", a.raw)
	}
	if got := sum(a.raw[:20], 0); uint16(got)+uint16(got>>16) != 0xffff {
		t.Errorf("checksum of the header: %x", got)
	}
	whole := sum(a.payload, sum(a.raw[12:20], unix.IPPROTO_UDP+uint32(len(a.payload))))
	if uint16(whole)+uint16(whole>>16) != 0xffff {
		t.Errorf("checksum of the datagram: %x", whole)
	}
}

func TestPingIsAnsweredUnderItsOwnNumber(t *testing.T) {
	_, b := ipv4(unix.IPPROTO_ICMP, netip.MustParseAddr("172.17.0.2"), netip.MustParseAddr("192.0.2.1"), 12)
	b[0] = 8
	binary.BigEndian.PutUint16(b[4:], 77)
	whole, _ := ipv4(unix.IPPROTO_ICMP, netip.MustParseAddr("172.17.0.2"), netip.MustParseAddr("192.0.2.1"), 12)
	copy(whole[20:], b)
	p, _ := parse(whole)
	id, body, ok := p.echo()
	if !ok || id != 77 {
		t.Fatal(id, ok)
	}
	r, ok := parse(echoReply(flow{netip.AddrPortFrom(p.src, 0), netip.AddrPortFrom(p.dst, 0)}, 99, body))
	if !ok || r.src != p.dst || r.dst != p.src || r.payload[0] != 0 || binary.BigEndian.Uint16(r.payload[4:]) != 99 {
		t.Fatalf("%x", r.raw)
	}
}

func TestOnlyFirstPacketsAreSyns(t *testing.T) {
	b, p := ipv4(unix.IPPROTO_TCP, netip.MustParseAddr("172.17.0.2"), netip.MustParseAddr("192.0.2.1"), 20)
	for flags, want := range map[byte]bool{tcpSyn: true, tcpSyn | tcpAck: false, tcpAck: false, tcpRst: false, tcpSyn | tcpFin: false, tcpSyn | 0xc0: true} {
		p[13] = flags
		q, ok := parse(b)
		if !ok || q.isSyn() != want {
			t.Errorf("flags %x: %v", flags, q.isSyn())
		}
	}
	q, _ := parse(b)
	q.mark(markRefused)
	if b[1] != markRefused<<2 {
		t.Errorf("%x", b[:20])
	}
	if got := sum(b[:20], 0); uint16(got)+uint16(got>>16) != 0xffff {
		t.Errorf("checksum of a marked header: %x", got)
	}
}

// Containers send what they like.
func FuzzPacket(f *testing.F) {
	f.Add(question())
	f.Add([]byte{0x4f, 0, 0, 20})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := parse(b)
		if !ok {
			return
		}
		if p.isSyn() {
			p.flow()
			p.mark(markRefused)
		}
		if body, ok := p.datagram(); ok {
			if len(body) > len(b) {
				t.Error("a body longer than its packet")
			}
			p.flow().answer(body)
		}
		if id, body, ok := p.echo(); ok {
			echoReply(flow{netip.AddrPortFrom(p.src, 0), netip.AddrPortFrom(p.dst, 0)}, id, body)
		}
	})
}
