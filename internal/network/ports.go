package network

// Published ports: the monitor binds and listens on each, which is both the
// reservation and the way in for the host itself. Nothing here needs the lock but the
// words of a conflict.

import (
	"bufio"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
)

// A portal is a host port that this process holds.
type portal struct {
	published
	listener *net.TCPListener
	packet   *net.UDPConn
}

func (p *portal) close() {
	if p.listener != nil {
		p.listener.Close()
	}
	if p.packet != nil {
		p.packet.Close()
	}
}

// A want is one binding, as asked for.
type want struct {
	port     network.Port // of the container
	addrs    []netip.Addr // to bind, all on one port number
	optional bool         // of the second address: a host may lack IPv6
	ports    [2]uint16    // first and last host port to try; 0: the kernel picks
}

// wants orders a port map: explicit ports before picked ones, so that none is picked
// that another binding asks for.
func wants(m network.PortMap, defaultIP netip.Addr) ([]want, error) {
	var out []want
	for port, binds := range m {
		if p := port.Proto(); p != network.TCP && p != network.UDP {
			return nil, fault.Unsupportedf("cannot publish %s: keg publishes tcp and udp ports", port)
		}
		if len(binds) == 0 {
			continue // exposed, not published
		}
		for _, b := range binds {
			w := want{port: port}
			var err error
			if w.ports, err = portRange(b.HostPort); err != nil {
				return nil, err
			}
			switch {
			case b.HostIP.IsValid():
				w.addrs = []netip.Addr{b.HostIP.Unmap()}
			case defaultIP.IsValid() && !defaultIP.IsUnspecified():
				w.addrs = []netip.Addr{defaultIP}
			default:
				w.addrs, w.optional = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}, true
			}
			out = append(out, w)
		}
	}
	slices.SortStableFunc(out, func(a, b want) int {
		return cmp.Or(cmp.Compare(b2i(a.ports[0] == 0), b2i(b.ports[0] == 0)),
			cmp.Compare(a.port.Num(), b.port.Num()), cmp.Compare(a.port.Proto(), b.port.Proto()),
			cmp.Compare(a.ports[0], b.ports[0]))
	})
	return out, nil
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func portRange(s string) (r [2]uint16, err error) {
	if s == "" {
		return r, nil
	}
	lo, hi, isRange := strings.Cut(s, "-")
	if !isRange {
		hi = lo
	}
	for i, v := range []string{lo, hi} {
		n, err := strconv.ParseUint(v, 10, 16)
		if err != nil {
			return r, fault.Invalidf("invalid hostPort: %s", s)
		}
		r[i] = uint16(n)
	}
	if r[0] > r[1] || isRange && r[0] == 0 {
		return r, fault.Invalidf("invalid hostPort: %s", s)
	}
	return r, nil
}

// open binds w; the portals share one port number. An error of the last port tried is returned.
func (w want) open(ctx context.Context) ([]*portal, error) {
	if w.ports[0] == 0 {
		var err error
		for range 32 { // a port that is free for one family may be taken for the other
			var ps []*portal
			if ps, err = w.openAt(ctx, 0); err == nil || !errors.Is(err, unix.EADDRINUSE) {
				return ps, err
			}
		}
		return nil, err
	}
	for p := uint32(w.ports[0]); ; p++ {
		ps, err := w.openAt(ctx, uint16(p))
		if err == nil || !errors.Is(err, unix.EADDRINUSE) || p == uint32(w.ports[1]) {
			return ps, err
		}
	}
}

func (w want) openAt(ctx context.Context, port uint16) (ps []*portal, err error) {
	for i, a := range w.addrs {
		p, err := listen(ctx, string(w.port.Proto()), netip.AddrPortFrom(a, port))
		if err != nil {
			if i > 0 && w.optional && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) {
				return ps, nil
			}
			for _, p := range ps {
				p.close()
			}
			return nil, err
		}
		p.TargetPort = w.port.Num()
		ps, port = append(ps, p), p.HostPort
	}
	return ps, nil
}

// listen binds one address. For tcp6 and udp6 the net package sets IPV6_V6ONLY; for
// TCP SO_REUSEADDR, so connections in TIME_WAIT do not hold the port; never for UDP,
// where it would let two processes share it.
func listen(ctx context.Context, proto string, ap netip.AddrPort) (*portal, error) {
	var p *portal
	var err error
	outside(func() { p, err = bind(ctx, proto, ap) })
	return p, err
}

func bind(ctx context.Context, proto string, ap netip.AddrPort) (*portal, error) {
	fam := "4"
	if ap.Addr().Is6() {
		fam = "6"
	}
	p := &portal{published: published{Proto: proto, HostIP: ap.Addr()}}
	var lc net.ListenConfig
	if proto == "udp" {
		c, err := lc.ListenPacket(ctx, proto+fam, ap.String())
		if err != nil {
			return nil, err
		}
		p.packet = c.(*net.UDPConn)
		p.HostPort = p.packet.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		return p, nil
	}
	l, err := lc.Listen(ctx, proto+fam, ap.String())
	if err != nil {
		return nil, err
	}
	p.listener = l.(*net.TCPListener)
	p.HostPort = p.listener.Addr().(*net.TCPAddr).AddrPort().Port()
	return p, nil
}

// openPorts binds everything or nothing.
func (s *Store) openPorts(ctx context.Context, r Request, endpointID string, ws []want) (ps []*portal, m network.PortMap, err error) {
	m = network.PortMap{}
	for _, w := range ws {
		got, err := w.open(ctx)
		if err != nil {
			for _, p := range ps {
				p.close()
			}
			return nil, nil, fault.As(s.kindOfBind(err), fmt.Errorf("driver failed programming external connectivity on endpoint %s (%s): %w", r.Name, endpointID, s.bindError(ctx, w, err)))
		}
		for _, p := range got {
			m[w.port] = append(m[w.port], network.PortBinding{HostIP: p.HostIP, HostPort: strconv.Itoa(int(p.HostPort))})
		}
		ps = append(ps, got...)
	}
	return ps, m, nil
}

func (s *Store) kindOfBind(err error) fault.Kind {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fault.Conflict
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fault.Invalid
	case errors.Is(err, unix.EACCES):
		return fault.Denied
	}
	return fault.Unknown
}

// bindError says in Docker's words that a port is taken, by whom, and which one is free.
func (s *Store) bindError(ctx context.Context, w want, err error) error {
	port, proto := w.ports[0], string(w.port.Proto())
	at := netip.AddrPortFrom(w.addrs[0], port)
	if errors.Is(err, unix.EACCES) && linux.InUserNS() {
		first := ""
		outside(func() { first = readSysctl("ipv4/ip_unprivileged_port_start") })
		return fmt.Errorf("failed to bind host port %s/%s: %w; ordinary users may publish ports from %s up, allow lower ones with: sudo sysctl net.ipv4.ip_unprivileged_port_start=%d",
			at, proto, errnoOf(err), first, port)
	}
	if !errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("failed to bind host port %s/%s: %w", at, proto, errnoOf(err))
	}
	if w.ports[0] != w.ports[1] {
		return fmt.Errorf("all ports are allocated: none of %d-%d/%s is free on %s", w.ports[0], w.ports[1], proto, w.addrs[0])
	}
	hint := ""
	if free := nextFree(ctx, w); free != 0 {
		hint = fmt.Sprintf("; port %d is free", free)
	}
	if o := s.portOwner(proto, at); o != nil {
		//lint:ignore ST1005 Docker's words
		e := fmt.Errorf("Bind for %s failed: port is already allocated by container %q%s", at, o.Name, hint)
		if o.Leaving || deserted(o.NetNS) {
			return fmt.Errorf("%w: %w", e, errLeaving)
		}
		return e
	}
	if who := socketOwner(proto, port); who != "" {
		hint = " by " + who + hint
	}
	//lint:ignore ST1005 Docker's words
	return fmt.Errorf("Bind for %s failed: port is already allocated%s (failed to bind host port %s/%s: address already in use)", at, hint, at, proto)
}

// errnoOf strips what net puts around: the sentence names the address already.
func errnoOf(err error) error {
	var no unix.Errno
	if errors.As(err, &no) {
		return no
	}
	return err
}

// nextFree looks for a port that could be asked for instead.
func nextFree(ctx context.Context, w want) uint16 {
	for p := uint32(w.ports[0]) + 1; p <= min(65535, uint32(w.ports[0])+64); p++ {
		if ps, err := w.openAt(ctx, uint16(p)); err == nil {
			for _, q := range ps {
				q.close()
			}
			return uint16(p)
		}
	}
	return 0
}

// portOwner finds the container of this engine that holds a port.
func (s *Store) portOwner(proto string, at netip.AddrPort) *owner {
	all, _ := s.owners()
	for _, o := range all {
		for _, p := range o.Ports {
			clash := p.HostIP == at.Addr() || p.HostIP.IsUnspecified() || at.Addr().IsUnspecified()
			if p.Proto == proto && p.HostPort == at.Port() && clash {
				return o
			}
		}
	}
	return nil
}

// socketOwner names the process that has a port open, as far as /proc shows it.
func socketOwner(proto string, port uint16) string {
	inodes := map[string]bool{}
	for _, f := range []string{proto, proto + "6"} {
		listeningInodes("/proc/net/"+f, proto, port, inodes)
	}
	if len(inodes) == 0 {
		return ""
	}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		l, err := os.Readlink(fd)
		if err != nil || !inodes[l] {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		comm, _ := os.ReadFile("/proc/" + pid + "/comm")
		return fmt.Sprintf("process %s (pid %s)", strings.TrimSpace(string(comm)), pid)
	}
	return ""
}

// listeningInodes collects "socket:[inode]" of the listening sockets on port; the
// columns of /proc/net/tcp are sl, local, remote, st, ..., inode (proc(5)).
func listeningInodes(path, proto string, port uint16, into map[string]bool) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		c := strings.Fields(sc.Text())
		if len(c) < 10 || proto == "tcp" && c[3] != "0A" {
			continue
		}
		_, hexPort, _ := strings.Cut(c[1], ":")
		if b, err := hex.DecodeString(hexPort); err == nil && len(b) == 2 && uint16(b[0])<<8|uint16(b[1]) == port {
			into["socket:["+c[9]+"]"] = true
		}
	}
}
