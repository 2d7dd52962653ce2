package network

// DNS for containers on user-defined networks. The sockets are inside the container's
// namespace, on a random port of 127.0.0.11; the questions that keg cannot answer are
// asked from the host's namespace, where a resolver on its loopback is reachable too.

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"keg/internal/weakness"
)

const (
	// dnsTTL is short: a restarted container may come back under another address.
	dnsTTL         = 30
	upstreamTries  = 3
	upstreamWait   = 4 * time.Second
	maxForwards    = 256 // questions under way to upstreams
	maxUDPQuestion = 4096
)

// A dnsNetwork is one network whose names the container may know.
type dnsNetwork struct {
	name  string
	names *nameFile
	nets  []netip.Prefix
	links map[string]string // names of this container's own: alias -> name
}

// A resolver answers for one container.
type resolver struct {
	mu        sync.RWMutex
	networks  []dnsNetwork
	upstreams []string // host:port
	external  bool     // false on internal networks only: no question leaves (CVE-2024-29018)

	udp      *net.UDPConn
	tcp      *net.TCPListener
	servers  []*dns.Server
	forwards chan struct{}
	wg       sync.WaitGroup
	ctx      context.Context // ends with the resolver: questions under way are given up
	stop     context.CancelFunc
}

func newResolver(upstreams []netip.Addr) *resolver {
	r := &resolver{forwards: make(chan struct{}, maxForwards)}
	r.ctx, r.stop = context.WithCancel(context.Background())
	for _, a := range upstreams {
		if a != dnsAddr() && len(r.upstreams) < upstreamTries {
			r.upstreams = append(r.upstreams, netip.AddrPortFrom(a, 53).String())
		}
	}
	return r
}

func (r *resolver) join(n dnsNetwork, external bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.networks = append(r.networks, n)
	r.external = r.external || external
}

func (r *resolver) leave(name string, external bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.networks = slices.DeleteFunc(r.networks, func(n dnsNetwork) bool {
		if n.name == name {
			n.names.close()
		}
		return n.name == name
	})
	r.external = external
}

// listen opens the sockets; the calling thread is inside the container's namespace.
func (r *resolver) listen() (err error) {
	at := &net.UDPAddr{IP: dnsAddr().AsSlice()}
	if r.udp, err = net.ListenUDP("udp4", at); err != nil {
		return fmt.Errorf("open DNS socket inside the container: %w", err)
	}
	if r.tcp, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: at.IP}); err != nil {
		r.udp.Close()
		return fmt.Errorf("open DNS socket inside the container: %w", err)
	}
	err = redirectDNS(uint16(r.udp.LocalAddr().(*net.UDPAddr).Port), uint16(r.tcp.Addr().(*net.TCPAddr).Port))
	if err != nil {
		r.udp.Close()
		r.tcp.Close()
	}
	return err
}

// serve starts answering.
func (r *resolver) serve() {
	h := dns.HandlerFunc(r.answer)
	r.servers = []*dns.Server{
		{PacketConn: r.udp, Handler: h, UDPSize: maxUDPQuestion},
		{Listener: r.tcp, Handler: h},
	}
	for _, s := range r.servers {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		r.wg.Add(1)
		go func() {
			defer r.wg.Done()
			s.ActivateAndServe()
		}()
		<-started
	}
}

func (r *resolver) close() {
	r.stop()
	if r.servers == nil {
		if r.udp != nil {
			r.udp.Close()
		}
		if r.tcp != nil {
			r.tcp.Close()
		}
	}
	for _, s := range r.servers {
		s.Shutdown()
	}
	r.wg.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.networks {
		n.names.close()
	}
	r.networks = nil
}

func (r *resolver) answer(w dns.ResponseWriter, q *dns.Msg) {
	if len(q.Question) != 1 {
		w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeFormatError))
		return
	}
	_, overTCP := w.LocalAddr().(*net.TCPAddr)
	if m := r.local(q); m != nil {
		m.Truncate(sizeFor(q, overTCP))
		w.WriteMsg(m)
		return
	}
	select {
	case r.forwards <- struct{}{}:
		defer func() { <-r.forwards }()
	default:
		w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
		return
	}
	m := r.forward(q, overTCP)
	if m == nil {
		m = new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
	}
	if !overTCP {
		m.Truncate(sizeFor(q, false))
	}
	w.WriteMsg(m)
}

// sizeFor is how much the asker takes (RFC 6891).
func sizeFor(q *dns.Msg, overTCP bool) int {
	if overTCP {
		return dns.MaxMsgSize
	}
	if o := q.IsEdns0(); o != nil {
		return max(dns.MinMsgSize, int(o.UDPSize()))
	}
	return dns.MinMsgSize
}

// local answers from the names of the networks; nil when they do not know.
func (r *resolver) local(q *dns.Msg) *dns.Msg {
	r.mu.RLock()
	defer r.mu.RUnlock()
	ask := q.Question[0]
	if ask.Qclass != dns.ClassINET {
		return nil
	}
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	if ask.Qtype == dns.TypePTR {
		return r.reverse(m, ask.Name)
	}
	addrs, known := r.lookup(ask.Name)
	if !known {
		return nil
	}
	for _, a := range addrs {
		h := dns.RR_Header{Name: ask.Name, Rrtype: ask.Qtype, Class: dns.ClassINET, Ttl: dnsTTL}
		switch {
		case ask.Qtype == dns.TypeA && a.Is4():
			m.Answer = append(m.Answer, &dns.A{Hdr: h, A: a.AsSlice()})
		case ask.Qtype == dns.TypeAAAA && a.Is6():
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: h, AAAA: a.AsSlice()})
		}
	}
	return m // known without such a record: an empty answer, not an error
}

// lookup finds "name" on all networks and "name.network" on one.
func (r *resolver) lookup(name string) ([]netip.Addr, bool) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	var out []netip.Addr
	for _, n := range r.networks {
		t, names := n.of(name)
		for _, s := range names {
			out = append(out, t.byName[s]...)
		}
	}
	return out, len(out) > 0
}

// reverse answers for our own subnets; what is unknown there is known nowhere.
func (r *resolver) reverse(m *dns.Msg, name string) *dns.Msg {
	a, ok := reverseAddr(name)
	if !ok {
		return nil
	}
	for _, n := range r.networks {
		if host, ok := n.names.load().byAddr[a]; ok {
			m.Answer = append(m.Answer, &dns.PTR{
				Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: dnsTTL},
				Ptr: dns.Fqdn(host + "." + n.name),
			})
			return m
		}
		if slices.ContainsFunc(n.nets, func(p netip.Prefix) bool { return p.Contains(a) }) {
			m.Rcode = dns.RcodeNameError
			return m
		}
	}
	return nil
}

// reverseAddr reads 2.0.18.172.in-addr.arpa. and the nibbles of ip6.arpa.
func reverseAddr(name string) (netip.Addr, bool) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if s, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		l := strings.Split(s, ".")
		slices.Reverse(l)
		a, err := netip.ParseAddr(strings.Join(l, "."))
		return a, err == nil && a.Is4()
	}
	s, ok := strings.CutSuffix(name, ".ip6.arpa")
	l := strings.Split(s, ".")
	if !ok || len(l) != 32 {
		return netip.Addr{}, false
	}
	slices.Reverse(l)
	var b strings.Builder
	for i, n := range l {
		if i > 0 && i%4 == 0 {
			b.WriteByte(':')
		}
		b.WriteString(n)
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil && a.Is6()
}

// forward asks the upstreams in turn, over the transport of the question.
func (r *resolver) forward(q *dns.Msg, overTCP bool) *dns.Msg {
	r.mu.RLock()
	ups, external := r.upstreams, r.external
	r.mu.RUnlock()
	if !external && !weakness.Of("NW5") {
		return nil
	}
	var last *dns.Msg
	for _, up := range ups {
		m, err := exchange(r.ctx, q, up, overTCP)
		if err != nil {
			continue
		}
		if m.Rcode == dns.RcodeServerFailure || m.Rcode == dns.RcodeRefused {
			last = m
			continue
		}
		return m
	}
	return last
}

// exchange is a fresh socket for each question: a random port and id against forgery.
func exchange(ctx context.Context, q *dns.Msg, up string, overTCP bool) (*dns.Msg, error) {
	c := &dns.Client{Timeout: upstreamWait, UDPSize: maxUDPQuestion}
	if overTCP {
		c.Net = "tcp"
	}
	ask := q.Copy()
	ask.Id = dns.Id()
	conn, err := c.DialContext(ctx, up)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	m, _, err := c.ExchangeWithConn(ask, conn)
	if m == nil || err != nil && !errors.Is(err, dns.ErrBuf) {
		return nil, err
	}
	m.Id = q.Id
	return m, nil
}
