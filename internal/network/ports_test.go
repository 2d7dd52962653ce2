package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	mnet "github.com/moby/moby/api/types/network"

	"keg/internal/fault"
)

// port is the host port that was given to a container port.
func (a *Attachment) port(t testing.TB, p string) string {
	t.Helper()
	b := a.Ports[mnet.MustParsePort(p)]
	if len(b) == 0 {
		t.Fatalf("port %s is not published: %v", p, a.Ports)
	}
	return b[0].HostPort
}

func TestPublishedPortFromEverywhere(t *testing.T) {
	s := lab(t)
	out, us, them := newHost(t, 1)
	a := attach(t, s, publish(request("web", "bridge"), "80/tcp", hostPort("")))
	whoami(t, a.NetNS, 80)
	p := a.port(t, "80/tcp")
	if got := a.Ports[mnet.MustParsePort("80/tcp")]; len(got) != 2 || got[0].HostIP != netip.IPv4Unspecified() || got[1].HostIP != netip.IPv6Unspecified() || got[1].HostPort != p {
		t.Errorf("ports %v", got)
	}
	other := attach(t, s, request("other", "bridge"))
	gw := a.Endpoints["bridge"].Gateway.String()
	me := here(t)
	for _, c := range []struct {
		name string
		fd   int
		addr string
		who  string // the client as the server sees it
	}{
		{"outside, client seen", out, us.String(), them.String()},
		{"loopback", me, "127.0.0.1", gw},
		{"loopback v6", me, "[::1]", gw},
		{"own address", me, us.String(), gw},
		{"neighbour container", other.NetNS, us.String(), gw},
		{"neighbour container, gateway", other.NetNS, gw, gw},
		{"hairpin", a.NetNS, us.String(), gw},
	} {
		text := strings.Repeat("x", 1<<20)
		who, echo, err := ask(c.fd, c.addr+":"+p, text)
		if err != nil || who != c.who || echo != text {
			t.Errorf("%s: who %q want %q, %d bytes back, err %v", c.name, who, c.who, len(echo), err)
		}
	}
}

func TestPublishedOnLoopbackIsNotForNeighbours(t *testing.T) {
	s := lab(t)
	out, us, _ := newHost(t, 1)
	a := attach(t, s, publish(request("web", "bridge"), "80/tcp",
		mnet.PortBinding{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: "8081"}))
	whoami(t, a.NetNS, 80)
	if _, echo, err := ask(here(t), "127.0.0.1:8081", "x"); err != nil || echo != "x" {
		t.Errorf("loopback: %q %v", echo, err)
	}
	// The neighbour routes 127.0.0.1 at us, and we would accept it but for the rule.
	wire := "wire1"
	must(t, sysctl("ipv4/conf/"+wire+"/route_localnet", "1"))
	in(t, out, func() (int, error) {
		return 0, run("sh", "-c", "ip addr del 127.0.0.1/8 dev lo; sysctl -qw net.ipv4.conf.all.route_localnet=1; ip route add 127.0.0.1 via "+us.String()+" src 198.51.101.2")
	})
	for _, to := range []string{"127.0.0.1:8081", us.String() + ":8081"} {
		if _, _, err := ask(out, to, "x"); err == nil {
			t.Errorf("a neighbour reached %s", to)
		}
	}
	weaken(t, s, func(c string, r rule) []rule {
		if c == "raw" {
			return nil
		}
		return []rule{r}
	})
	if _, _, err := ask(out, "127.0.0.1:8081", "x"); err != nil {
		t.Errorf("without the rule nothing changes: %v", err)
	}
}

func TestNoDirectRoute(t *testing.T) {
	s := lab(t)
	out, us, _ := newHost(t, 1)
	a := attach(t, s, publish(request("web", "bridge"), "80/tcp", hostPort("")))
	whoami(t, a.NetNS, 80)
	whoami(t, a.NetNS, 81)
	in(t, out, func() (int, error) { return 0, run("ip", "route", "replace", "172.16.0.0/12", "via", us.String()) })
	for _, p := range []string{":80", ":81"} {
		if _, _, err := ask(out, a.ip("bridge").String()+p, "x"); err == nil {
			t.Errorf("a neighbour reached the container's own address, port %s", p)
		}
	}
	// The twin: the same neighbour through the published port.
	if _, echo, err := ask(out, us.String()+":"+a.port(t, "80/tcp"), "x"); err != nil || echo != "x" {
		t.Errorf("published: %q, %v", echo, err)
	}
	weaken(t, s, func(c string, r rule) []rule {
		if c == "forward" && r.do == drop {
			return nil
		}
		return []rule{r}
	})
	if _, _, err := ask(out, a.ip("bridge").String()+":81", "x"); err != nil {
		t.Errorf("without the rules nothing changes: %v", err)
	}
}

func TestOtherHostsSamePortIsNotTaken(t *testing.T) {
	s := lab(t)
	out, _, them := newHost(t, 1)
	out2, _, _ := newHost(t, 2)
	a := attach(t, s, publish(request("web", "bridge"), "80/tcp", hostPort("8082")))
	whoami(t, a.NetNS, 80, "in web")
	whoami(t, out, 8082)
	client := attach(t, s, request("client", "bridge"))
	// The answer must come from the other host: it sees us masqueraded, not the container.
	who, _, err := ask(client.NetNS, them.String()+":8082", "x")
	if err != nil || who != "198.51.101.1" {
		t.Errorf("container to another host: who %q, %v", who, err)
	}
	who, _, err = ask(out2, them.String()+":8082", "x")
	if err != nil || who != "198.51.102.2" {
		t.Errorf("host to host through us: who %q, %v", who, err)
	}
	if who, _, err := ask(out2, "198.51.101.1:8082", "x"); err != nil || who != "198.51.102.2 in web" {
		t.Errorf("the published port itself: who %q, %v", who, err)
	}
	weaken(t, s, func(_ string, r rule) []rule {
		r.match = slices.DeleteFunc(r.match, func(m match) bool { return m.key == keyLocal })
		return []rule{r}
	})
	if who, _, err := ask(out2, them.String()+":8082", "x"); err != nil || who != "198.51.102.2 in web" {
		t.Errorf("without the match the connection is not hijacked: %q, %v", who, err)
	}
}

func TestUDP(t *testing.T) {
	s := lab(t)
	out, us, them := newHost(t, 1)
	a := attach(t, s, publish(request("dns", "bridge"), "53/udp", hostPort("")))
	udpWhoami(t, a.NetNS, 53)
	p := a.port(t, "53/udp")
	gw := a.Endpoints["bridge"].Gateway.String()
	other := attach(t, s, request("other", "bridge"))
	me := here(t)
	for _, c := range []struct {
		name string
		fd   int
		addr string
		who  string
	}{
		{"outside", out, us.String(), them.String()},
		{"loopback", me, "127.0.0.1", gw},
		{"loopback v6", me, "[::1]", gw},
		{"own address", me, us.String(), gw},
		{"container, answer from the address asked", other.NetNS, us.String(), gw},
	} {
		for i := range 2 {
			got, err := udpAsk(c.fd, c.addr+":"+p, fmt.Sprint("q", i))
			if err != nil || got != c.who+fmt.Sprint(" q", i) {
				t.Errorf("%s: %q want %q, %v", c.name, got, c.who, err)
			}
		}
	}
}

func udpWhoami(t testing.TB, fd, port int) {
	t.Helper()
	c := in(t, fd, func() (*net.UDPConn, error) { return net.ListenUDP("udp", &net.UDPAddr{Port: port}) })
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 2048)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			c.WriteToUDPAddrPort([]byte(from.Addr().Unmap().String()+" "+string(b[:n])), from)
		}
	}()
}

// udpAsk uses a connected socket: an answer from another address is not seen.
func udpAsk(fd int, addr, text string) (string, error) {
	c, err := try(fd, func() (net.Conn, error) { return net.Dial("udp", addr) })
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := c.Write([]byte(text)); err != nil {
		return "", err
	}
	b := make([]byte, 2048)
	n, err := c.Read(b)
	return string(b[:n]), err
}

func TestTakenPortNamesItsOwner(t *testing.T) {
	s := lab(t)
	s.patience = 50 * time.Millisecond
	attach(t, s, publish(request("db", "bridge"), "80/tcp", hostPort("18080")))
	_, err := s.Attach(context.Background(), publish(request("web", "bridge"), "80/tcp", hostPort("18080")))
	// Nobody lives in db's namespace, so it counts as leaving: waited for, then refused.
	if !fault.Is(err, fault.Conflict) {
		t.Fatalf("kind of %v", err)
	}
	for _, want := range []string{
		"driver failed programming external connectivity on endpoint web (",
		"Bind for 0.0.0.0:18080 failed: port is already allocated", `container "db"`, "port 18081 is free",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q lacks %q", err, want)
		}
	}
	l, err := net.Listen("tcp4", "127.0.0.1:18090")
	must(t, err)
	defer l.Close()
	_, err = s.Attach(context.Background(), publish(request("web", "bridge"), "80/tcp", hostPort("18090")))
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "process network.test (pid ") {
		t.Errorf("port of another process: %v", err)
	}
	_, err = s.Attach(context.Background(), publish(request("web", "bridge"), "80/tcp",
		mnet.PortBinding{HostIP: netip.MustParseAddr("203.0.113.9"), HostPort: "80"}))
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "cannot assign requested address") {
		t.Errorf("foreign address: %v", err)
	}
}

func TestPortRangePicksTheFirstFree(t *testing.T) {
	s := lab(t)
	for _, want := range []string{"18100", "18101"} {
		a := attach(t, s, publish(request("r"+want, "bridge"), "80/tcp", hostPort("18100-18101")))
		if got := a.port(t, "80/tcp"); got != want {
			t.Errorf("picked %s, want %s", got, want)
		}
	}
	_, err := s.Attach(context.Background(), publish(request("third", "bridge"), "80/tcp", hostPort("18100-18101")))
	if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "all ports are allocated") {
		t.Errorf("full range: %v", err)
	}
}

func TestFailedAttachLeavesNothing(t *testing.T) {
	s := lab(t)
	r := publish(request("bad", "bridge"), "80/tcp", hostPort("18200"))
	r.Publish[mnet.MustParsePort("81/tcp")] = []mnet.PortBinding{hostPort("18200")}
	if _, err := s.Attach(context.Background(), r); err == nil {
		t.Fatal("one port published twice")
	}
	if ls, _ := s.leases("bridge"); len(ls) != 0 {
		t.Errorf("leases left: %v", ls)
	}
	if os, _ := s.owners(); len(os) != 0 {
		t.Errorf("owners left: %v", os)
	}
	a := attach(t, s, publish(request("good", "bridge"), "80/tcp", hostPort("18200")))
	if a.ip("bridge").String() != "172.17.0.2" {
		t.Errorf("address %v", a.ip("bridge"))
	}
}

// A client keeps its source port; connection tracking must not keep its former server.
func TestOldFlowsAreForgotten(t *testing.T) {
	s := lab(t)
	out, us, them := newHost(t, 1)
	c := in(t, out, func() (net.Conn, error) { return net.Dial("udp", us.String()+":18900") })
	defer c.Close()
	talk := func() string {
		var got string
		for range 3 { // an ICMP error of the question before may come first
			c.SetDeadline(time.Now().Add(300 * time.Millisecond))
			c.Write([]byte("q"))
			b := make([]byte, 100)
			if n, err := c.Read(b); err == nil {
				got = string(b[:n])
				break
			}
		}
		return got
	}
	if got := talk(); got != "" {
		t.Fatalf("nobody listens, yet %q", got)
	}
	r := publish(request("a", "bridge"), "53/udp", hostPort("18900"))
	a, err := s.Attach(context.Background(), r)
	must(t, err)
	l := in(t, a.NetNS, func() (*net.UDPConn, error) { return net.ListenUDP("udp", &net.UDPAddr{Port: 53}) })
	go func() {
		b := make([]byte, 100)
		for {
			n, from, err := l.ReadFromUDP(b)
			if err != nil {
				return
			}
			l.WriteToUDP([]byte("a "+string(b[:n])), from)
		}
	}()
	if got := talk(); got != "a q" {
		t.Errorf("asked before it was published: %q", got)
	}
	l.Close()
	must(t, a.Release())
	attach(t, s, request("placeholder", "bridge")) // takes a's address
	b := attach(t, s, publish(request("b", "bridge"), "53/udp", hostPort("18900")))
	if b.ip("bridge") == a.ip("bridge") {
		t.Fatal("not the case to test: same address")
	}
	udpWhoami(t, b.NetNS, 53)
	if got := talk(); got != them.String()+" q" {
		t.Errorf("after the server changed: %q", got)
	}
}
