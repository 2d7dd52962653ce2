package network

// The firewall as the kernel has it: one table, family inet, told over netlink in one
// transaction, so that packets see the old rules or the new ones.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A firewall is a connection to one table.
//
// Closing the socket waits until the kernel has freed what transactions removed
// (nft_rcv_nl_event), some 10 ms; so close returns at once and lets that happen behind.
type firewall struct {
	conn  *nftables.Conn
	table *nftables.Table
}

func openFirewall(table string) (*firewall, error) {
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return &firewall{c, &nftables.Table{Name: table, Family: nftables.TableFamilyINet}}, nil
}

func (f *firewall) close() { go f.conn.CloseLasting() }

// exists asks for the table; an external `nft flush ruleset` takes it away.
func (f *firewall) exists() bool {
	t, err := f.conn.ListTableOfFamily(f.table.Name, f.table.Family)
	return err == nil && t != nil
}

// apply makes the table be the plan, whatever it was, and adds the ports.
func (f *firewall) apply(chains []chain, ports []published) error {
	c := f.conn
	c.AddTable(f.table)
	for _, m := range natMaps() {
		if err := c.AddSet(f.set(m), nil); err != nil {
			return err
		}
	}
	c.FlushTable(f.table)
	for _, ch := range chains {
		prio := nftables.ChainPriority(ch.prio)
		nc := c.AddChain(&nftables.Chain{Name: ch.name, Table: f.table, Type: nftables.ChainType(ch.kind),
			Hooknum: hookOf(ch.hook), Priority: &prio})
		for _, r := range ch.rules {
			c.AddRule(&nftables.Rule{Table: f.table, Chain: nc, Exprs: compile(r)})
		}
	}
	if err := f.queue(ports, c.SetAddElements); err != nil {
		return err
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write nftables table %s: %w", f.table.Name, err)
	}
	return nil
}

func hookOf(name string) *nftables.ChainHook {
	switch name {
	case "prerouting":
		return nftables.ChainHookPrerouting
	case "postrouting":
		return nftables.ChainHookPostrouting
	case "output":
		return nftables.ChainHookOutput
	}
	return nftables.ChainHookForward
}

// remove deletes the table.
func (f *firewall) remove() error {
	f.conn.DelTable(f.table)
	err := f.conn.Flush()
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// publish adds the ports. The caller has bound them, so an element that is in the way
// is of a container that has exited: it is replaced, after leftover was called.
func (f *firewall) publish(ports []published, leftover func() error) error {
	if err := f.queue(ports, f.conn.SetAddElements); err != nil {
		return err
	}
	err := f.conn.Flush()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := leftover(); err != nil {
		return err
	}
	for _, p := range ports {
		if err := f.unpublish([]published{p}); err != nil {
			return err
		}
	}
	if err := f.queue(ports, f.conn.SetAddElements); err != nil {
		return err
	}
	return f.conn.Flush()
}

// unpublish deletes elements; those that are gone already are fine.
func (f *firewall) unpublish(ports []published) error {
	if err := f.queue(ports, f.conn.SetDeleteElements); err != nil {
		return err
	}
	err := f.conn.Flush()
	if err == nil || len(ports) == 0 || !errors.Is(err, unix.ENOENT) {
		return err
	}
	if len(ports) == 1 {
		return nil
	}
	var errs []error // one that is gone fails the whole transaction
	for _, p := range ports {
		errs = append(errs, f.unpublish([]published{p}))
	}
	return errors.Join(errs...)
}

func (f *firewall) queue(ports []published, put func(*nftables.Set, []nftables.SetElement) error) error {
	for _, m := range natMaps() {
		var els []nftables.SetElement
		for _, p := range ports {
			if got, ok := p.natMap(); ok && got == m {
				els = append(els, element(m, p))
			}
		}
		if len(els) == 0 {
			continue
		}
		if err := put(f.set(m), els); err != nil {
			return err
		}
	}
	return nil
}

func (f *firewall) set(m natMap) *nftables.Set {
	addr := nftables.TypeIPAddr
	if m.six {
		addr = nftables.TypeIP6Addr
	}
	key := []nftables.SetDatatype{nftables.TypeInetProto, nftables.TypeInetService}
	if m.exact {
		key = []nftables.SetDatatype{nftables.TypeInetProto, addr, nftables.TypeInetService}
	}
	// An id of our own: the library draws them from an unguarded global.
	return &nftables.Set{Table: f.table, ID: m.id, Name: m.name, IsMap: true, Concatenation: true,
		KeyType:  nftables.MustConcatSetType(key...),
		DataType: nftables.MustConcatSetType(addr, nftables.TypeInetService)}
}

func element(m natMap, p published) nftables.SetElement {
	key := []byte{protoNumber(p.Proto), 0, 0, 0}
	if m.exact {
		key = append(key, p.HostIP.AsSlice()...)
	}
	return nftables.SetElement{
		Key: append(key, portBytes(p.HostPort)...),
		Val: append(p.Target.AsSlice(), portBytes(p.TargetPort)...),
	}
}

// portBytes is a port in a concatenation: padded to a register.
func portBytes(p uint16) []byte { return []byte{byte(p >> 8), byte(p), 0, 0} }

func protoNumber(p string) byte {
	if p == "udp" {
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_TCP
}

// Registers: concatenations use the 4-byte ones, NFT_REG32_00 = 8 and on.
const reg0 = unix.NFT_REG32_00

// Keys that golang.org/x/sys lacks (linux/netfilter/nf_tables.h).
const (
	metaIifKind expr.MetaKey = 26
	metaOifKind expr.MetaKey = 27
)

func compile(r rule) (out []expr.Any) {
	for _, m := range r.match {
		out = append(out, compileMatch(m)...)
	}
	switch r.do {
	case accept:
		return append(out, &expr.Verdict{Kind: expr.VerdictAccept})
	case drop:
		return append(out, &expr.Verdict{Kind: expr.VerdictDrop})
	case ret:
		return append(out, &expr.Verdict{Kind: expr.VerdictReturn})
	case masquerade:
		return append(out, &expr.Masq{})
	}
	for _, m := range natMaps() {
		if m.verb() == r.do {
			return append(out, compileNat(m)...)
		}
	}
	panic("no such verb: " + string(r.do))
}

func compileMatch(m match) []expr.Any {
	op := expr.CmpOpEq
	if m.not {
		op = expr.CmpOpNeq
	}
	meta := func(k expr.MetaKey) []expr.Any {
		name := make([]byte, unix.IFNAMSIZ)
		copy(name, m.val)
		return []expr.Any{&expr.Meta{Key: k, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: name}}
	}
	switch m.key {
	case keyIif:
		return meta(expr.MetaKeyIIFNAME)
	case keyOif:
		return meta(expr.MetaKeyOIFNAME)
	case keyIifKind:
		return meta(metaIifKind)
	case keyOifKind:
		return meta(metaOifKind)
	case keyState:
		return ctBits(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
	case keyStatus:
		const ipsDstNat = 1 << 5 // linux/netfilter/nf_conntrack_common.h
		return ctBits(expr.CtKeySTATUS, ipsDstNat)
	case keyLocal:
		return []expr.Any{
			&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
			&expr.Cmp{Op: op, Register: 1, Data: u32(unix.RTN_LOCAL)},
		}
	case keySrc, keyDst:
		return addrMatch(m.key == keySrc, op, netip.MustParsePrefix(m.val))
	}
	panic("no such key: " + string(m.key))
}

func ctBits(k expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: 1, Key: k},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: u32(bits), Xor: u32(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: u32(0)},
	}
}

func addrMatch(src bool, op expr.CmpOp, p netip.Prefix) []expr.Any {
	proto, off, n := byte(unix.NFPROTO_IPV4), uint32(12), uint32(4)
	if p.Addr().Is6() {
		proto, off, n = unix.NFPROTO_IPV6, 8, 16
	}
	if !src {
		off += n
	}
	mask := make([]byte, n)
	for i := range p.Bits() {
		mask[i/8] |= 1 << (7 - i%8)
	}
	return append(nfproto(proto),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: n},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: n, Mask: mask, Xor: make([]byte, n)},
		&expr.Cmp{Op: op, Register: 1, Data: p.Masked().Addr().AsSlice()})
}

func nfproto(proto byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
	}
}

// compileNat looks proto, perhaps address, and port up and translates to what it found.
func compileNat(m natMap) []expr.Any {
	proto, off, n, fam := byte(unix.NFPROTO_IPV4), uint32(16), uint32(4), uint32(unix.NFPROTO_IPV4)
	if m.six {
		proto, off, n, fam = unix.NFPROTO_IPV6, 24, 16, unix.NFPROTO_IPV6
	}
	out := append(nfproto(proto), &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg0})
	port := uint32(reg0 + 1)
	if m.exact {
		out = append(out, &expr.Payload{DestRegister: port, Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: n})
		port += n / 4
	}
	return append(out,
		&expr.Payload{DestRegister: port, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg0, DestRegister: reg0, IsDestRegSet: true, SetName: m.name},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: fam, RegAddrMin: reg0, RegProtoMin: reg0 + n/4, Specified: true})
}

// redirectDNS, called inside a container's namespace, sends what a container asks 127.0.0.11:53 to where the answering sockets
// are: port 53 itself stays free for a server of the container's own.
func redirectDNS(udp, tcp uint16) error {
	c, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	defer func() { go c.CloseLasting() }()
	t := c.AddTable(&nftables.Table{Name: "keg_dns", Family: nftables.TableFamilyIPv4})
	ch := c.AddChain(&nftables.Chain{Name: "output", Table: t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest})
	for proto, port := range map[byte]uint16{unix.IPPROTO_UDP: udp, unix.IPPROTO_TCP: tcp} {
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: dnsAddr().AsSlice()},
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0, 53}},
			&expr.Immediate{Register: 1, Data: dnsAddr().AsSlice()},
			&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, port)},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2, Specified: true},
		}})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("redirect 127.0.0.11:53 inside the container: %w", err)
	}
	return nil
}

func dnsAddr() netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, 11}) }
