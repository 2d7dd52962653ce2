package network

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	mnet "github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"

	"keg/internal/fault"
)

func subnet(s string) mnet.IPAM {
	return mnet.IPAM{Config: []mnet.IPAMConfig{{Subnet: netip.MustParsePrefix(s)}}}
}

// Records need no privileges.
func TestCreateGetListRemove(t *testing.T) {
	s := Open(t.TempDir(), t.TempDir())
	ctx := context.Background()
	n, err := s.Create(ctx, CreateOptions{Name: "app", Labels: map[string]string{"a": "b"}, IPv6: true})
	must(t, err)
	if n.Driver != "bridge" || n.Scope != "local" || len(n.ID) != 64 || !n.EnableIPv4 || !n.EnableIPv6 || n.Labels["a"] != "b" || len(n.IPAM.Config) != 2 {
		t.Errorf("%+v", n)
	}
	c4, c6 := n.IPAM.Config[0], n.IPAM.Config[1]
	if c4.Gateway != c4.Subnet.Addr().Next() || !c6.Subnet.Addr().Is6() || c6.Subnet.Bits() != 64 || c6.Gateway != c6.Subnet.Addr().Next() {
		t.Errorf("address plan %+v", n.IPAM)
	}
	for _, ref := range []string{"app", n.ID, n.ID[:7]} {
		if got, err := s.Get(ref); err != nil || got.ID != n.ID {
			t.Errorf("get %s: %v, %v", ref, got.ID, err)
		}
	}
	// An id is not taken for the name that another network has.
	other, err := s.Create(ctx, CreateOptions{Name: n.ID})
	must(t, err)
	if got, err := s.Get(n.ID); err != nil || got.Name != "app" {
		t.Errorf("get by an id that is a name, too: %s, %v", got.Name, err)
	}
	must(t, s.Remove(ctx, other.ID))
	all, err := s.List()
	must(t, err)
	var names []string
	for _, n := range all {
		names = append(names, n.Name+"/"+n.Driver)
	}
	if got := strings.Join(names, " "); got != "app/bridge bridge/bridge host/host none/null" {
		t.Errorf("list: %s", got)
	}
	b, err := s.Get("bridge")
	must(t, err)
	if b.IPAM.Config[0].Subnet.Overlaps(c4.Subnet) {
		t.Errorf("two networks on one subnet: %v", c4.Subnet)
	}
	again, err := Open(strings.TrimSuffix(s.root, "/networks"), strings.TrimSuffix(s.run, "/network")).Get("bridge")
	if err != nil || again.ID != b.ID {
		t.Errorf("another process sees another default network: %v", err)
	}
	must(t, s.Remove(ctx, "app"))
	if _, err := s.Get("app"); !fault.Is(err, fault.NotFound) || err.Error() != "network app not found" {
		t.Errorf("after removal: %v", err)
	}
	if _, err := os.Stat(s.netDir("app")); !os.IsNotExist(err) {
		t.Errorf("directory left: %v", err)
	}
}

func TestCreateRefuses(t *testing.T) {
	s := Open(t.TempDir(), t.TempDir())
	ctx := context.Background()
	if _, err := s.Create(ctx, CreateOptions{Name: "app", IPAM: subnet("10.90.0.0/24")}); err != nil {
		t.Fatal(err)
	}
	cfg := func(c mnet.IPAMConfig) mnet.IPAM { return mnet.IPAM{Config: []mnet.IPAMConfig{c}} }
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	for _, c := range []struct {
		o    CreateOptions
		kind fault.Kind
		text string
	}{
		{CreateOptions{Name: "app"}, fault.Conflict, "network with name app already exists"},
		{CreateOptions{Name: "bridge"}, fault.Denied, "operation is not permitted on predefined bridge network "},
		{CreateOptions{Name: " "}, fault.Invalid, "name is empty"},
		{CreateOptions{Name: "../x"}, fault.Invalid, "only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"},
		{CreateOptions{Name: "x", Driver: "macvlan"}, fault.NotFound, "could not find plugin macvlan"},
		{CreateOptions{Name: "x", Driver: "host"}, fault.Denied, `only one instance of "host" network is allowed`},
		{CreateOptions{Name: "x", IPAM: subnet("10.90.0.0/25")}, fault.Denied, "Pool overlaps with other one on this address space"},
		{CreateOptions{Name: "x", IPAM: subnet("10.91.0.1/24")}, fault.Invalid, "invalid subnet 10.91.0.1/24: it should be 10.91.0.0/24"},
		{CreateOptions{Name: "x", IPAM: subnet("fd01::/64")}, fault.Invalid, "IPv6 is not enabled"},
		{CreateOptions{Name: "x", IPAM: cfg(mnet.IPAMConfig{Subnet: p("10.91.0.0/24"), Gateway: a("10.92.0.1")})}, fault.Invalid,
			"invalid gateway 10.92.0.1: parent subnet 10.91.0.0/24 doesn't contain this address"},
		{CreateOptions{Name: "x", IPAM: cfg(mnet.IPAMConfig{Subnet: p("10.91.0.0/24"), IPRange: p("10.91.0.0/16")})}, fault.Invalid,
			"invalid ip-range 10.91.0.0/16: CIDR block is bigger than its parent subnet 10.91.0.0/24"},
		{CreateOptions{Name: "x", IPAM: cfg(mnet.IPAMConfig{Subnet: p("10.91.0.0/24"), AuxAddress: map[string]netip.Addr{"r": a("10.0.0.1")}})}, fault.Invalid,
			"invalid auxiliary address r: parent subnet 10.91.0.0/24 doesn't contain this address"},
		{CreateOptions{Name: "x", Options: map[string]string{optICC: "maybe"}}, fault.Invalid, "is not a valid bool"},
		{CreateOptions{Name: "x", Options: map[string]string{optBridge: "a/b"}}, fault.Invalid, "not a valid link name"},
		{CreateOptions{Name: "x", Options: map[string]string{optMode4: "routed"}}, fault.Unsupported, "is not supported"},
	} {
		_, err := s.Create(ctx, c.o)
		if !fault.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.text) {
			t.Errorf("%+v: %v (%v), want %q (%v)", c.o, err, fault.KindOf(err), c.text, c.kind)
		}
	}
	if err := s.Remove(ctx, "host"); !fault.Is(err, fault.Denied) || err.Error() != "host is a pre-defined network and cannot be removed" {
		t.Errorf("remove host: %v", err)
	}
	if err := s.Remove(ctx, "nope"); !fault.Is(err, fault.NotFound) {
		t.Errorf("remove unknown: %v", err)
	}
}

func TestRecordKeepsUnknownFields(t *testing.T) {
	s := Open(t.TempDir(), t.TempDir())
	_, err := s.Create(context.Background(), CreateOptions{Name: "app"})
	must(t, err)
	b, err := os.ReadFile(s.netFile("app"))
	must(t, err)
	must(t, os.WriteFile(s.netFile("app"), []byte(`{"Future":42,`+string(b[1:])), 0o600))
	r, err := s.getRecord("app")
	must(t, err)
	must(t, s.putRecord(r))
	if b, _ := os.ReadFile(s.netFile("app")); !strings.Contains(string(b), `"Future":42`) {
		t.Errorf("a newer field is gone: %s", b)
	}
}

func TestNetworksAreIsolated(t *testing.T) {
	s := lab(t)
	create(t, s, CreateOptions{Name: "red"})
	create(t, s, CreateOptions{Name: "blue"})
	r := attach(t, s, publish(request("r", "red"), "80/tcp", hostPort("18500")))
	b := attach(t, s, request("b", "blue"))
	both := attach(t, s, request("both", "red", "blue"))
	whoami(t, r.NetNS, 80)
	to := r.ip("red").String() + ":80"
	if _, _, err := ask(b.NetNS, to, "x"); err == nil {
		t.Error("one network reaches another")
	}
	if _, _, err := ask(both.NetNS, to, "x"); err != nil {
		t.Errorf("a member of both: %v", err)
	}
	// What is published, is published for containers too.
	gw := b.Endpoints["blue"].Gateway.String()
	if _, echo, err := ask(b.NetNS, gw+":18500", "x"); err != nil || echo != "x" {
		t.Errorf("published port from another network: %q, %v", echo, err)
	}
	if both.Endpoints["blue"].Gateway == both.Endpoints["red"].Gateway {
		t.Error("two networks with one gateway")
	}
	if err := s.Remove(context.Background(), "red"); !fault.Is(err, fault.Denied) ||
		!strings.Contains(err.Error(), "error while removing network: network red has active endpoints (") || !strings.Contains(err.Error(), `name:"r" id:"`) {
		t.Errorf("remove in use: %v", err)
	}
	n, err := s.Get("red")
	must(t, err)
	if e := n.Containers[r.own.ID]; e.Name != "r" || e.IPv4Address.Addr() != r.ip("red") || len(n.Containers) != 2 {
		t.Errorf("containers %v", n.Containers)
	}
	weaken(t, s, func(c string, r rule) []rule {
		if c == "forward" && r.do == drop {
			return nil
		}
		return []rule{r}
	})
	if _, _, err := ask(b.NetNS, to, "x"); err != nil {
		t.Errorf("without the rules nothing changes: %v", err)
	}
	// NW3: an external flush is healed by the next Attach, ports included.
	must(t, run("nft", "flush", "ruleset"))
	attach(t, s, request("healer", "blue"))
	if _, _, err := ask(b.NetNS, to, "x"); err == nil {
		t.Error("isolation is not back after a flush")
	}
	must(t, run("nft", "flush", "ruleset"))
	must(t, s.Reload(context.Background()))
	if _, _, err := ask(b.NetNS, to, "x"); err == nil {
		t.Error("isolation is not back after Reload")
	}
	fw, err := openFirewall(s.mustState(t).Table)
	must(t, err)
	defer fw.close()
	if els, err := fw.conn.GetSetElements(fw.set(natMaps()[1])); err != nil || len(els) != 1 {
		t.Errorf("published ports after Reload: %v, %v", els, err)
	}
}

func (s *Store) mustState(t testing.TB) *hostState {
	t.Helper()
	st, err := s.state()
	must(t, err)
	return st
}

func TestICCOff(t *testing.T) {
	s := lab(t)
	create(t, s, CreateOptions{Name: "quiet", Options: map[string]string{optICC: "false"}})
	a := attach(t, s, request("a", "quiet"))
	b := attach(t, s, publish(request("b", "quiet"), "80/tcp", hostPort("18510")))
	whoami(t, b.NetNS, 80)
	if _, _, err := ask(a.NetNS, b.ip("quiet").String()+":80", "x"); err == nil {
		t.Error("containers reach each other with icc=false")
	}
	if _, _, err := ask(here(t), "127.0.0.1:18510", "x"); err != nil {
		t.Errorf("the host: %v", err)
	}
}

func TestIPv6Network(t *testing.T) {
	s := lab(t)
	create(t, s, CreateOptions{Name: "six", IPv6: true, IPAM: mnet.IPAM{Config: []mnet.IPAMConfig{{Subnet: netip.MustParsePrefix("fd77:1::/64")}}}})
	a := attach(t, s, request("a", "six"))
	b := attach(t, s, publish(request("b", "six"), "80/tcp", hostPort("18520")))
	whoami(t, b.NetNS, 80)
	e := b.Endpoints["six"]
	if e.GlobalIPv6Address.String() != "fd77:1::3" || e.GlobalIPv6PrefixLen != 64 || e.IPv6Gateway.String() != "fd77:1::1" {
		t.Errorf("%+v", e)
	}
	who, _, err := ask(a.NetNS, "[fd77:1::3]:80", "x")
	if err != nil || who != "fd77:1::2" {
		t.Errorf("who %q, %v", who, err)
	}
	if who, _, err := ask(here(t), "[::1]:18520", "x"); err != nil || who != "fd77:1::1" {
		t.Errorf("published on ::1: who %q, %v", who, err)
	}
	if got := answers(dig(t, a.NetNS, "udp", "b", 28)); got != "fd77:1::3" {
		t.Errorf("AAAA %q", got)
	}
	if !strings.Contains(string(a.Hosts), "::1\tlocalhost ip6-localhost") || !strings.Contains(string(a.Hosts), "fd77:1::2\t"+a.req.Hostname) {
		t.Errorf("hosts: %s", a.Hosts)
	}
	ra := in(t, a.NetNS, func() (string, error) { return readSysctl("ipv6/conf/eth0/accept_ra"), nil })
	if ra != "0" {
		t.Errorf("accept_ra %q", ra)
	}
	c := attach(t, s, request("c", "bridge"))
	if off := in(t, c.NetNS, func() (string, error) { return readSysctl("ipv6/conf/eth0/disable_ipv6"), nil }); off != "1" {
		t.Errorf("disable_ipv6 %q on an IPv4 network", off)
	}
}

func TestStaticAddresses(t *testing.T) {
	s := lab(t)
	create(t, s, CreateOptions{Name: "fix", IPAM: mnet.IPAM{Config: []mnet.IPAMConfig{{
		Subnet: netip.MustParsePrefix("10.95.0.0/24"), IPRange: netip.MustParsePrefix("10.95.0.128/25"),
		Gateway: netip.MustParseAddr("10.95.0.254"), AuxAddress: map[string]netip.Addr{"x": netip.MustParseAddr("10.95.0.128")},
	}}}})
	want := func(ip string) Request {
		r := request("c"+ip, "fix")
		r.Endpoints[0].Settings.IPAMConfig = &mnet.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr(ip)}
		return r
	}
	if a := attach(t, s, request("dyn", "fix")); a.ip("fix").String() != "10.95.0.129" {
		t.Errorf("first of the range: %v", a.ip("fix"))
	}
	r := want("10.95.0.7")
	r.Endpoints[0].Settings.MacAddress = mnet.HardwareAddr{2, 0, 0, 0, 0, 7}
	a := attach(t, s, r)
	if e := a.Endpoints["fix"]; e.IPAddress.String() != "10.95.0.7" || e.MacAddress.String() != "02:00:00:00:00:07" || e.Gateway.String() != "10.95.0.254" {
		t.Errorf("%+v", e)
	}
	for ip, text := range map[string]string{"10.95.0.7": "Address already in use", "10.95.0.254": "Address already in use", "10.96.0.1": "no configured subnet contains IP address 10.96.0.1"} {
		if _, err := s.Attach(context.Background(), want(ip)); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", ip, err)
		}
	}
	// Whoever has exited is waited for: its namespace goes some time after Release began.
	done := make(chan error)
	go func() { done <- a.Release() }()
	for !s.isLeaving(t, "fix", "10.95.0.7") {
		time.Sleep(100 * time.Microsecond)
	}
	attach(t, s, want("10.95.0.7"))
	must(t, <-done)
	auto := request("auto", "bridge")
	auto.Endpoints[0].Settings.IPAMConfig = &mnet.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("172.17.0.9")}
	if _, err := s.Attach(context.Background(), auto); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "only when connecting to networks with user configured subnets") {
		t.Errorf("static address on the default network: %v", err)
	}
}

func (s *Store) isLeaving(t testing.TB, net, ip string) bool {
	t.Helper()
	ls, err := s.leases(net)
	must(t, err)
	for _, l := range ls {
		if l.IP4.String() == ip {
			return l.Leaving
		}
	}
	return true
}

func TestEnginesSideBySide(t *testing.T) {
	ls := labs(t, 2)
	one, two := ls[0], ls[1]
	a := attach(t, one, publish(request("a", "bridge"), "80/tcp", hostPort("")))
	b := attach(t, two, publish(request("b", "bridge"), "80/tcp", hostPort("")))
	if a.ip("bridge") == b.ip("bridge") {
		t.Errorf("both on %v", a.ip("bridge"))
	}
	whoami(t, a.NetNS, 80)
	whoami(t, b.NetNS, 80)
	if _, _, err := ask(b.NetNS, a.ip("bridge").String()+":80", "x"); err == nil {
		t.Error("one engine's container reaches the other's")
	}
	out, us, them := newHost(t, 1)
	for _, p := range []string{a.port(t, "80/tcp"), b.port(t, "80/tcp")} {
		if who, _, err := ask(out, us.String()+":"+p, "x"); err != nil || who != them.String() {
			t.Errorf("port %s: who %q, %v", p, who, err)
		}
	}
}

// A record written while the other engine was down names the same subnet.
func TestSubnetIsChosenAgain(t *testing.T) {
	ls := labs(t, 2)
	one, two := ls[0], ls[1]
	n1, err := one.Get("bridge")
	must(t, err)
	n2, err := two.Get("bridge")
	must(t, err)
	if n1.IPAM.Config[0].Subnet != n2.IPAM.Config[0].Subnet {
		t.Fatalf("not the case to test: %v %v", n1.IPAM, n2.IPAM)
	}
	a := attach(t, one, request("a", "bridge"))
	b := attach(t, two, request("b", "bridge"))
	if a.ip("bridge") == b.ip("bridge") {
		t.Errorf("both on %v", a.ip("bridge"))
	}
	if n, _ := two.Get("bridge"); !n.IPAM.Config[0].Subnet.Contains(b.ip("bridge")) {
		t.Errorf("the record says %v, the container has %v", n.IPAM.Config, b.ip("bridge"))
	}
}

func TestOtherFirewallsLetUsThrough(t *testing.T) {
	s := lab(t)
	for _, chain := range []string{"FORWARD", "DOCKER-USER"} {
		t.Run(chain, func(t *testing.T) {
			must(t, run("nft", "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }"))
			if chain == "DOCKER-USER" {
				must(t, run("nft", "add chain ip filter DOCKER-USER; add rule ip filter FORWARD jump DOCKER-USER"))
			}
			t.Cleanup(func() { run("nft", "delete table ip filter") })
			out, us, them := newHost(t, 1)
			a := attach(t, s, publish(request("web", "bridge"), "80/tcp", hostPort("")))
			whoami(t, a.NetNS, 80)
			whoami(t, out, 81)
			if who, _, err := ask(out, us.String()+":"+a.port(t, "80/tcp"), "x"); err != nil || who != them.String() {
				t.Errorf("in: who %q, %v", who, err)
			}
			if _, _, err := ask(a.NetNS, them.String()+":81", "x"); err != nil {
				t.Errorf("out: %v", err)
			}
			where, err := s.Firewalls()
			if err != nil || len(where) != 1 || !strings.Contains(where[0], "two rules in ip filter "+chain+" let bridge keg-") {
				t.Errorf("said %v, %v", where, err)
			}
			must(t, a.Release())
			must(t, s.Teardown(context.Background()))
			for _, l := range strings.Split(snapshot(t), "\n") {
				if strings.HasPrefix(l, "table filter chain "+chain) && !strings.HasSuffix(l, ": 0 rules") {
					t.Errorf("left: %s", l)
				}
			}
		})
	}
}

func TestForwardingIsPutBack(t *testing.T) {
	s := lab(t)
	must(t, sysctl("ipv4/ip_forward", "0"))
	a := attach(t, s, request("a", "bridge"))
	if readSysctl("ipv4/ip_forward") != "1" {
		t.Error("forwarding is off")
	}
	must(t, a.Release())
	must(t, s.Settle(context.Background()))
	if readSysctl("ipv4/ip_forward") != "0" {
		t.Error("forwarding stays on with nobody left")
	}
}

func TestConnectAndDisconnect(t *testing.T) {
	s := lab(t)
	upstream(t)
	create(t, s, CreateOptions{Name: "late", IPv6: true})
	a := attach(t, s, publish(request("a", "bridge"), "80/tcp", hostPort("18800")))
	b := attach(t, s, request("b", "late"))
	whoami(t, b.NetNS, 80)
	whoami(t, a.NetNS, 80)
	ctx := context.Background()
	e, err := a.Connect(ctx, Endpoint{Network: "late", Settings: mnet.EndpointSettings{Aliases: []string{"alpha"}}})
	must(t, err)
	for _, to := range []netip.Addr{b.ip("late"), b.Endpoints["late"].GlobalIPv6Address} {
		if _, _, err := ask(a.NetNS, netip.AddrPortFrom(to, 80).String(), "x"); err != nil {
			t.Errorf("to %v: %v", to, err)
		}
	}
	if got := answers(dig(t, b.NetNS, "udp", "alpha", 1)); got != e.IPAddress.String() {
		t.Errorf("alias %q", got)
	}
	if got := answers(dig(t, a.NetNS, "udp", "b", 1)); got != b.ip("late").String() {
		t.Errorf("the connected one resolves %q", got)
	}
	if !strings.Contains(string(a.Resolv), "127.0.0.11") || !strings.Contains(string(a.Hosts), e.IPAddress.String()) {
		t.Errorf("files: %s %s", a.Resolv, a.Hosts)
	}
	if _, err := a.Connect(ctx, Endpoint{Network: "late"}); !fault.Is(err, fault.Denied) || err.Error() != "endpoint with name a already exists in network late" {
		t.Errorf("twice: %v", err)
	}
	must(t, a.Disconnect(ctx, "late"))
	if _, _, err := ask(a.NetNS, b.ip("late").String()+":80", "x"); err == nil {
		t.Error("still connected")
	}
	if n, _ := s.Get("late"); len(n.Containers) != 1 {
		t.Errorf("containers %v", n.Containers)
	}
	if err := a.Disconnect(ctx, "late"); !fault.Is(err, fault.Denied) || err.Error() != "container a is not connected to network late" {
		t.Errorf("twice: %v", err)
	}
	if _, _, err := ask(here(t), "127.0.0.1:18800", "x"); err != nil {
		t.Errorf("the published port, meanwhile: %v", err)
	}
	must(t, a.Disconnect(ctx, "bridge"))
	if _, _, err := ask(here(t), "127.0.0.1:18800", "x"); err == nil {
		t.Error("published without a network")
	}
}

// TestInterfaceNames: an endpoint may say what its interface is called; the others are eth<n>, without gaps.
func TestInterfaceNames(t *testing.T) {
	s := lab(t)
	for _, n := range []string{"one", "two", "three", "four"} {
		create(t, s, CreateOptions{Name: n})
	}
	named := func(network, name string) Endpoint {
		return Endpoint{Network: network, Settings: mnet.EndpointSettings{DriverOpts: map[string]string{optIfname: name}}}
	}
	links := func(a *Attachment) string {
		return in(t, a.NetNS, func() (string, error) {
			all, err := netlink.LinkList()
			var names []string
			for _, l := range all {
				if addrs, _ := netlink.AddrList(l, netlink.FAMILY_V4); len(addrs) > 0 {
					names = append(names, l.Attrs().Name+"/"+addrs[0].IP.String())
				}
			}
			return strings.Join(names, " "), err
		})
	}
	r := request("a", "one", "two", "bridge")
	r.Endpoints[0] = named("one", "eth1")
	a := attach(t, s, r)
	want := fmt.Sprintf("lo/127.0.0.1 eth0/%s eth1/%s eth2/%s", a.ip("bridge"), a.ip("one"), a.ip("two"))
	if got := links(a); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	ctx := context.Background()
	_, err := a.Connect(ctx, named("three", "inside0"))
	must(t, err)
	_, err = a.Connect(ctx, Endpoint{Network: "four"})
	must(t, err)
	want += fmt.Sprintf(" inside0/%s eth3/%s", a.ip("three"), a.ip("four"))
	if got := links(a); got != want {
		t.Errorf("connected: got  %s\nwant %s", got, want)
	}
	one := a.ip("one").String()
	must(t, a.Disconnect(ctx, "one"))
	if _, err := a.Connect(ctx, named("one", "inside0")); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "container a has an interface inside0 already") {
		t.Errorf("a name that is taken: %v", err)
	}
	_, err = a.Connect(ctx, named("one", "inside1"))
	must(t, err)
	want = strings.Replace(want, "eth1/"+one, "", 1) + fmt.Sprintf(" inside1/%s", a.ip("one"))
	if got := links(a); !slices.Equal(strings.Fields(got), strings.Fields(want)) {
		t.Errorf("connected again: got  %s\nwant %s", got, want)
	}
	for _, name := range []string{"lo", "a/b", "a b", "eth%d", "sixteen-letters-", ".."} {
		bad := request("b")
		bad.Endpoints = []Endpoint{named("one", name)}
		if _, err := s.Attach(ctx, bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	twice := request("b")
	twice.Endpoints = []Endpoint{named("one", "same"), named("two", "same")}
	if _, err := s.Attach(ctx, twice); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "asked for twice") {
		t.Errorf("twice: %v", err)
	}
}

func TestSettleKeepsWhatIsUsed(t *testing.T) {
	s := lab(t)
	a := attach(t, s, request("a", "bridge"))
	must(t, s.Settle(context.Background()))
	if _, err := netlink.LinkByName(s.mustState(t).Up["bridge"].Bridge); err != nil {
		t.Errorf("bridge in use: %v", err)
	}
	must(t, s.Teardown(context.Background()))
	if len(s.mustState(t).Up) != 1 {
		t.Error("teardown took a bridge in use")
	}
	must(t, a.Release())
}
