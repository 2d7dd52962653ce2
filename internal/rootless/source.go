package rootless

// The client of a published port stays who it is: the monitor speaks to the container with the client's
// address (IP_TRANSPARENT), and a mark leads the answers, which are for somebody outside, back to the
// monitor's socket.

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"keg/internal/weakness"
)

const (
	sourceMark  = 0x6b6567 // of what our sockets send
	answerMark  = 0x6b6568 // of what comes back
	sourceTable = 0x6b6568

	sourceTableName = "keg-source"
)

// Speaks makes a dialler inside the user's network speak in the name of client. It cannot for a client
// on the loopback, whom no container could answer.
func Speaks(d *net.Dialer, client, target netip.AddrPort) bool {
	a := client.Addr().Unmap()
	if weakness.Of("NW6") || !a.Is4() || a.IsLoopback() || !target.Addr().Unmap().Is4() {
		return false
	}
	d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, client.Port()))
	d.Control = func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) {
			err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, sourceMark))
		})
		return errors.Join(cerr, err)
	}
	return true
}

// openSource makes route and rules; the calling thread is inside the user's network.
func openSource() error {
	if _, err := setUp("lo", func(l netlink.Link) error { return sourceRoute(l.Attrs().Index) }); err != nil {
		return err
	}
	c, err := nftables.New()
	if err != nil {
		return err
	}
	sourceRules(c, c.AddTable(&nftables.Table{Name: sourceTableName, Family: nftables.TableFamilyIPv4}))
	if err := c.Flush(); err != nil {
		return fmt.Errorf("make the rules of the clients' addresses: %w", err)
	}
	return nil
}

// sourceRoute delivers marked answers here, whomever they are for.
func sourceRoute(lo int) error {
	rule := netlink.NewRule()
	rule.Family, rule.Mark, rule.Table = unix.AF_INET, answerMark, sourceTable
	if err := netlink.RuleAdd(rule); err != nil {
		return err
	}
	all := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: lo, Dst: all, Table: sourceTable, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST})
}

// sourceRules remember with a connection that our sockets' mark was on it, and mark the answers:
//
//	chain mark { type filter hook output priority -150
//		meta mark 0x6b6567 ct mark set meta mark
//	}
//	chain back { type filter hook prerouting priority -150
//		ct mark 0x6b6567 meta mark set 0x6b6568
//	}
func sourceRules(c *nftables.Conn, t *nftables.Table) {
	chain := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Name: name, Table: t, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityMangle})
	}
	word := func(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }
	equal := &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: word(sourceMark)}
	c.AddRule(&nftables.Rule{Table: t, Chain: chain("mark", nftables.ChainHookOutput), Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, equal, &expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true}}})
	c.AddRule(&nftables.Rule{Table: t, Chain: chain("back", nftables.ChainHookPrerouting), Exprs: []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, equal, &expr.Immediate{Register: 1, Data: word(answerMark)}, &expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true}}})
}
