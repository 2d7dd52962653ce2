package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

func create(t testing.TB, s *Store, o CreateOptions) Network {
	t.Helper()
	n, err := s.Create(context.Background(), o)
	must(t, err)
	t.Cleanup(func() {
		if err := s.Remove(context.Background(), n.Name); err != nil {
			t.Errorf("remove %s: %v", n.Name, err)
		}
	})
	return n
}

// dig asks 127.0.0.11:53 from inside a namespace.
func dig(t testing.TB, fd int, proto, name string, typ uint16) *dns.Msg {
	t.Helper()
	c, err := try(fd, func() (*dns.Conn, error) {
		return (&dns.Client{Net: proto, Timeout: 3 * time.Second}).Dial("127.0.0.11:53")
	})
	must(t, err)
	defer c.Close()
	m, _, err := (&dns.Client{Net: proto, Timeout: 3 * time.Second}).ExchangeWithConn(new(dns.Msg).SetQuestion(dns.Fqdn(name), typ), c)
	must(t, err)
	return m
}

func answers(m *dns.Msg) string {
	var out []string
	for _, rr := range m.Answer {
		f := strings.Fields(rr.String())
		out = append(out, f[len(f)-1])
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// upstream is the host's resolver: it counts, and answers 203.0.113.<len> for any name.
func upstream(t *testing.T) (asked func() []string) {
	t.Helper()
	must(t, run("ip", "addr", "add", "10.53.53.53/32", "dev", "lo"))
	t.Cleanup(func() { run("ip", "addr", "del", "10.53.53.53/32", "dev", "lo") })
	file := filepath.Join(t.TempDir(), "resolv.conf")
	must(t, os.WriteFile(file, []byte("# host\nnameserver 10.53.53.53\nsearch example.test\noptions edns0\n"), 0o644))
	must(t, unix.Mount(file, "/etc/resolv.conf", "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount("/etc/resolv.conf", unix.MNT_DETACH) })
	names := make(chan string, 100)
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		names <- q.Question[0].Name
		m := new(dns.Msg).SetReply(q)
		m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1},
			A: net.IPv4(203, 0, 113, byte(len(q.Question[0].Name)))})
		w.WriteMsg(m)
	})
	for _, n := range []string{"udp", "tcp"} {
		up := make(chan struct{})
		srv := &dns.Server{Addr: "10.53.53.53:53", Net: n, Handler: h, NotifyStartedFunc: func() { close(up) }}
		go srv.ListenAndServe()
		<-up
		t.Cleanup(func() { srv.Shutdown() })
	}
	return func() (out []string) {
		for {
			select {
			case n := <-names:
				out = append(out, n)
			default:
				return out
			}
		}
	}
}

func TestNamesOnUserDefinedNetwork(t *testing.T) {
	s := lab(t)
	asked := upstream(t)
	create(t, s, CreateOptions{Name: "app"})
	create(t, s, CreateOptions{Name: "far"})
	db := request("db", "app")
	db.Endpoints[0].Settings.Aliases = []string{"Database", "pool"}
	b := attach(t, s, db)
	r := request("web", "app")
	r.Endpoints[0].Settings.Aliases = []string{"pool"}
	a := attach(t, s, r)
	attach(t, s, request("stranger", "far"))

	ip, self := b.ip("app").String(), a.ip("app").String()
	rev, _ := dns.ReverseAddr(ip)
	for _, c := range []struct {
		name string
		typ  uint16
		want string
	}{
		{"db", dns.TypeA, ip},
		{"DB", dns.TypeA, ip},
		{"database", dns.TypeA, ip},
		{"db.app", dns.TypeA, ip},
		{db.ID[:12], dns.TypeA, ip},
		{"web", dns.TypeA, self},
		{"db", dns.TypeAAAA, ""},
		{"db", dns.TypeMX, ""},
		{rev, dns.TypePTR, "db.app."},
	} {
		for _, proto := range []string{"udp", "tcp"} {
			m := dig(t, a.NetNS, proto, c.name, c.typ)
			if m.Rcode != dns.RcodeSuccess || answers(m) != c.want {
				t.Errorf("%s %s %s: %q (%s), want %q", proto, c.name, dns.TypeToString[c.typ], answers(m), dns.RcodeToString[m.Rcode], c.want)
			}
		}
	}
	both := []string{ip, self}
	slices.Sort(both)
	if got := answers(dig(t, a.NetNS, "udp", "pool", dns.TypeA)); got != strings.Join(both, " ") {
		t.Errorf("shared alias: %q, want %q", got, both)
	}
	unknown, _ := dns.ReverseAddr(netip.MustParseAddr(ip).Next().Next().Next().String())
	if m := dig(t, a.NetNS, "udp", unknown, dns.TypePTR); m.Rcode != dns.RcodeNameError {
		t.Errorf("unknown address of our own subnet: %s", dns.RcodeToString[m.Rcode])
	}
	if n := asked(); len(n) != 0 {
		t.Errorf("questions about our own names left the machine: %v", n)
	}
	// What is not ours is asked upstream, from the host: 10.53.53.53 is on its loopback.
	for _, name := range []string{"stranger", "www.example.org"} {
		for _, proto := range []string{"udp", "tcp"} {
			if got := answers(dig(t, a.NetNS, proto, name, dns.TypeA)); got != fmt.Sprintf("203.0.113.%d", len(name)+1) {
				t.Errorf("%s %s: %q", proto, name, got)
			}
		}
	}
	if n := asked(); len(n) != 4 {
		t.Errorf("upstream saw %v", n)
	}
	if got, want := string(a.Resolv), "nameserver 127.0.0.11\nsearch example.test\noptions edns0 ndots:0\n"; got != want {
		t.Errorf("resolv.conf %q, want %q", got, want)
	}
	// A server of the container's own on port 53 is not in the way, nor taken over.
	udpWhoami(t, a.NetNS, 53)
	if got, err := udpAsk(a.NetNS, "127.0.0.1:53", "x"); err != nil || got != "127.0.0.1 x" {
		t.Errorf("own server: %q, %v", got, err)
	}
	must(t, b.Release())
	if m := dig(t, a.NetNS, "udp", "database", dns.TypeA); strings.Contains(answers(m), ip) {
		t.Errorf("who has exited still has a name: %v", m.Answer)
	}
	start := time.Now()
	for range 50 {
		dig(t, a.NetNS, "udp", "web", dns.TypeA)
	}
	if d := time.Since(start) / 50; d > 5*time.Millisecond {
		t.Errorf("an answer takes %v", d)
	} else {
		t.Logf("an answer takes %v, with entering the namespace", d)
	}
}

func TestInternalNetworkLeaksNothing(t *testing.T) {
	s := lab(t)
	asked := upstream(t)
	out, us, them := newHost(t, 1)
	create(t, s, CreateOptions{Name: "inner", Internal: true})
	a := attach(t, s, publish(request("a", "inner"), "80/tcp", hostPort("18400")))
	b := attach(t, s, request("b", "inner"))
	whoami(t, out, 80)
	whoami(t, b.NetNS, 80)
	if m := dig(t, a.NetNS, "udp", "secret.example.org", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("external name: %s", dns.RcodeToString[m.Rcode])
	}
	if n := asked(); len(n) != 0 {
		t.Errorf("questions left an internal network: %v", n)
	}
	if got := answers(dig(t, a.NetNS, "udp", "b", dns.TypeA)); got != b.ip("inner").String() {
		t.Errorf("name inside: %q", got)
	}
	if _, _, err := ask(a.NetNS, them.String()+":80", "x"); err == nil {
		t.Error("an internal network reaches outside")
	}
	if _, _, err := ask(a.NetNS, b.ip("inner").String()+":80", "x"); err != nil {
		t.Errorf("inside: %v", err)
	}
	if len(a.Ports) != 0 || a.Endpoints["inner"].Gateway.IsValid() {
		t.Errorf("ports %v, gateway %v", a.Ports, a.Endpoints["inner"].Gateway)
	}
	_ = us
	// A second, ordinary network opens both again.
	create(t, s, CreateOptions{Name: "outer"})
	c := attach(t, s, request("c", "inner", "outer"))
	if _, _, err := ask(c.NetNS, them.String()+":80", "x"); err != nil {
		t.Errorf("second network: %v", err)
	}
	if got := answers(dig(t, c.NetNS, "udp", "x.org", dns.TypeA)); got != "203.0.113.6" {
		t.Errorf("second network: %q", got)
	}
	if e := c.Endpoints["outer"]; e.Gateway.String() == "" || c.Endpoints["inner"].DNSNames[0] != "c" {
		t.Errorf("endpoints %+v", e)
	}
}
