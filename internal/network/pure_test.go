package network

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/nftables"
	mnet "github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	p := filepath.Join("testdata", name)
	if *update {
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(p, []byte(got), 0o644))
	}
	want, err := os.ReadFile(p)
	must(t, err)
	if got != string(want) {
		t.Errorf("%s differs; got:\n%s\nwant:\n%s", p, got, want)
	}
}

func TestPlan(t *testing.T) {
	p := netip.MustParsePrefix
	up := map[string]upNetwork{
		"bridge": {Bridge: "keg-00000001", V4: p("172.17.0.0/16"), Masquerade: true},
		"six":    {Bridge: "br-six", V4: p("172.18.0.0/16"), V6: p("fd00:1::/64"), Masquerade: true, NoICC: true},
		"inner":  {Bridge: "br-inner", V4: p("10.1.0.0/24"), Internal: true, Masquerade: true},
		"plain":  {Bridge: "br-plain", V4: p("10.2.0.0/24")},
	}
	for name, router := range map[string]bool{"plan.nft": false, "plan-new-router.nft": true} {
		var b strings.Builder
		for _, c := range plan(up, router) {
			b.WriteString(c.String())
		}
		golden(t, name, b.String())
	}
	for _, c := range plan(up, true) { // every rule has an encoding
		for _, r := range c.rules {
			if len(compile(r)) == 0 {
				t.Errorf("no expressions for %s", r)
			}
		}
	}
}

// What the kernel has is what the plan says, as nft(8) prints it.
func TestPlanIsWhatTheKernelHas(t *testing.T) {
	lab(t)
	p := netip.MustParsePrefix
	up := map[string]upNetwork{
		"bridge": {Bridge: "keg-00000001", V4: p("172.17.0.0/16"), V6: p("fd00:1::/64"), Masquerade: true},
		"inner":  {Bridge: "br-inner", V4: p("10.1.0.0/24"), Internal: true, NoICC: true},
	}
	fw, err := openFirewall("keg_test")
	must(t, err)
	defer fw.close()
	must(t, fw.apply(plan(up, true), nil))
	t.Cleanup(func() { must(t, fw.remove()) })
	out, err := outputOf("nft", "list", "table", "inet", "keg_test")
	if err != nil {
		t.Skip("needs nft: ", err)
	}
	// nft leaves out what an expression implies, and adds what it cannot know.
	have := strings.NewReplacer("meta nfproto ipv4 ", "", "meta nfproto ipv6 ", "").Replace(out)
	for _, c := range plan(up, true) {
		for _, r := range c.rules {
			if !strings.Contains(have, "\t"+r.String()+"\n") {
				t.Errorf("the kernel lacks %q:\n%s", r, out)
			}
		}
	}
}

func TestNatMapOfAPort(t *testing.T) {
	a := netip.MustParseAddr
	for _, c := range []struct{ host, target, want string }{
		{"0.0.0.0", "172.17.0.2", "any4"},
		{"192.0.2.1", "172.17.0.2", "exact4"},
		{"127.0.0.1", "172.17.0.2", ""},
		{"::", "172.17.0.2", ""}, // the monitor carries it
		{"::", "fd00::2", "any6"},
		{"2001:db8::1", "fd00::2", "exact6"},
		{"::1", "fd00::2", ""},
	} {
		m, _ := published{HostIP: a(c.host), Target: a(c.target)}.natMap()
		if m.name != c.want {
			t.Errorf("%s -> %s: %q, want %q", c.host, c.target, m.name, c.want)
		}
	}
}

func TestFirstFreeSubnet(t *testing.T) {
	p := netip.MustParsePrefix
	var taken []netip.Prefix
	var got []string
	for {
		sub, err := firstFree(defaultPools(), taken)
		if err != nil {
			break
		}
		got, taken = append(got, sub.String()), append(taken, sub)
	}
	if len(got) != 31 || got[0] != "172.17.0.0/16" || got[3] != "172.20.0.0/16" || got[14] != "172.31.0.0/16" || got[15] != "192.168.0.0/20" || got[30] != "192.168.240.0/20" {
		t.Errorf("order of subnets: %v", got)
	}
	for _, c := range []struct{ taken, want string }{
		{"172.17.5.0/24", "172.18.0.0/16"},
		{"172.16.0.0/12", "192.168.0.0/20"},
		{"10.0.0.0/8", "172.17.0.0/16"},
	} {
		if sub, err := firstFree(defaultPools(), []netip.Prefix{p(c.taken)}); err != nil || sub != p(c.want) {
			t.Errorf("beside %s: %v, %v; want %s", c.taken, sub, err, c.want)
		}
	}
}

func TestPickAddress(t *testing.T) {
	cfg := func(sub, gw, rng string) mnet.IPAMConfig {
		c := mnet.IPAMConfig{Subnet: netip.MustParsePrefix(sub)}
		if gw != "" {
			c.Gateway = netip.MustParseAddr(gw)
		}
		if rng != "" {
			c.IPRange = netip.MustParsePrefix(rng)
		}
		return c
	}
	for _, c := range []struct {
		cfg  mnet.IPAMConfig
		used string
		want string
	}{
		{cfg("10.0.0.0/24", "10.0.0.1", ""), "", "10.0.0.2"},
		{cfg("10.0.0.0/24", "10.0.0.1", ""), "10.0.0.2 10.0.0.3", "10.0.0.4"},
		{cfg("10.0.0.0/24", "10.0.0.254", ""), "", "10.0.0.1"},
		{cfg("10.0.0.0/24", "10.0.0.1", "10.0.0.128/30"), "", "10.0.0.128"},
		{cfg("10.0.0.0/30", "10.0.0.1", ""), "10.0.0.2", "invalid IP"}, // .3 is the broadcast
		{cfg("10.0.0.0/31", "10.0.0.0", ""), "", "10.0.0.1"},
		{cfg("fd00::/64", "fd00::1", ""), "", "fd00::2"},
	} {
		got, _ := pickAddress(c.cfg, func(a netip.Addr) bool { return strings.Contains(" "+c.used+" ", " "+a.String()+" ") })
		if got.String() != c.want {
			t.Errorf("%+v, used %q: %v, want %s", c.cfg, c.used, got, c.want)
		}
	}
	if m := macFor(netip.MustParseAddr("172.17.0.2")); m != [6]byte{2, 0x42, 172, 17, 0, 2} {
		t.Errorf("mac %x", m)
	}
}

func TestHostsFile(t *testing.T) {
	a := netip.MustParseAddr
	extra, err := parseExtraHosts([]string{"db:10.0.0.9", "v6=[fd00::9]", "host.docker.internal:host-gateway"}, a("172.17.0.1"))
	must(t, err)
	own := []hostEntry{{a("172.17.0.2"), "web.example web"}, {a("fd00::2"), "web.example web"}}
	if got, want := string(hostsFile(false, extra, own)), "127.0.0.1\tlocalhost\n10.0.0.9\tdb\n172.17.0.1\thost.docker.internal\n172.17.0.2\tweb.example web\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	golden(t, "hosts6", string(hostsFile(true, extra, own)))
	for _, bad := range []string{"nocolon", ":1.2.3.4", "x:notanip", ""} {
		if _, err := parseExtraHosts([]string{bad}, netip.Addr{}); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestResolvConf(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		must(t, os.WriteFile(p, []byte(text), 0o644))
		return p
	}
	upstream := write("upstream", "nameserver 192.0.2.53\nnameserver 192.0.2.54\nsearch ignored\n")
	none := filepath.Join(dir, "none")
	for _, c := range []struct {
		name, host, up string
		r              Request
		direct, inside string
	}{
		{"copied", "# x\nnameserver 10.0.0.53\nnameserver fd00::53\nsearch a.test b.test\noptions edns0 ndots:2\nsortlist 1.2.3.4\n", none, Request{},
			"nameserver 10.0.0.53\nsearch a.test b.test\noptions edns0 ndots:2\nsortlist 1.2.3.4\n",
			"nameserver 127.0.0.11\nsearch a.test b.test\noptions edns0 ndots:2\nsortlist 1.2.3.4\n"},
		{"systemd-resolved", "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch corp.test\n", upstream, Request{},
			"nameserver 192.0.2.53\nnameserver 192.0.2.54\nsearch corp.test\noptions edns0 trust-ad\n",
			"nameserver 127.0.0.11\nsearch corp.test\noptions edns0 trust-ad ndots:0\n"},
		{"only loopback", "nameserver 127.0.0.1\n", none, Request{},
			"nameserver 8.8.8.8\nnameserver 8.8.4.4\n", "nameserver 127.0.0.11\noptions ndots:0\n"},
		{"empty", "", none, Request{}, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n", "nameserver 127.0.0.11\noptions ndots:0\n"},
		{"chosen", "nameserver 10.0.0.53\nsearch a.test\noptions edns0\n", none, Request{DNS: []string{"1.1.1.1", "127.0.0.1"}, Search: []string{"."}, Options: []string{"timeout:1"}},
			"nameserver 1.1.1.1\nnameserver 127.0.0.1\noptions timeout:1\n", "nameserver 127.0.0.11\noptions timeout:1 ndots:0\n"},
		{"bad ndots", "nameserver 10.0.0.53\noptions ndots:-1\n", none, Request{},
			"nameserver 10.0.0.53\noptions ndots:-1\n", "nameserver 127.0.0.11\noptions ndots:0\n"},
	} {
		conf, err := resolvFiles{write("resolv.conf", c.host), c.up}.load()
		must(t, err)
		conf, err = conf.with(c.r)
		must(t, err)
		if got := string(conf.direct(false, len(c.r.DNS) > 0).text()); got != c.direct {
			t.Errorf("%s, direct: %q, want %q", c.name, got, c.direct)
		}
		if got := string(conf.internal().text()); got != c.inside {
			t.Errorf("%s, inside: %q, want %q", c.name, got, c.inside)
		}
	}
	if _, err := (resolvConf{}).with(Request{DNS: []string{"one.one"}}); err == nil {
		t.Error("a name as DNS server is accepted")
	}
}

func TestHostMode(t *testing.T) {
	s := Open(t.TempDir(), t.TempDir())
	want, _ := os.ReadFile("/etc/hosts")
	hosts, resolv, err := s.HostMode(Request{ExtraHosts: []string{"db:10.0.0.9"}, DNS: []string{"1.1.1.1"}})
	must(t, err)
	if !strings.HasPrefix(string(hosts), string(want)) || !strings.HasSuffix(string(hosts), "\n10.0.0.9\tdb\n") {
		t.Errorf("hosts: %s", hosts)
	}
	if !strings.HasPrefix(string(resolv), "nameserver 1.1.1.1\n") {
		t.Errorf("resolv.conf: %s", resolv)
	}
}

func TestNamesFile(t *testing.T) {
	text := "172.18.0.2 e1 web Alias\nfd00::2 e1 web Alias\n172.18.0.3 e2 db alias\ntorn\n"
	tab := parseNames(text)
	if len(tab.byName["web"]) != 2 || len(tab.byName["alias"]) != 3 || tab.byAddr[netip.MustParseAddr("172.18.0.3")] != "db" {
		t.Errorf("%+v", tab)
	}
	if got := withoutEndpoint(text, "e1"); got != "172.18.0.3 e2 db alias\n" {
		t.Errorf("left %q", got)
	}
}

func TestReverseAddr(t *testing.T) {
	for name, want := range map[string]string{
		"2.0.18.172.in-addr.arpa.": "172.18.0.2",
		"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.7.7.d.f.ip6.arpa.": "fd77:1::2",
		"x.in-addr.arpa.": "invalid IP",
		"2.ip6.arpa.":     "invalid IP",
		"web.":            "invalid IP",
	} {
		if a, _ := reverseAddr(name); a.String() != want {
			t.Errorf("%s: %v, want %s", name, a, want)
		}
	}
}

func TestWantsOrderAndRefuse(t *testing.T) {
	m := mnet.PortMap{
		mnet.MustParsePort("80/tcp"):  {{HostPort: ""}, {HostPort: "8080"}},
		mnet.MustParsePort("53/udp"):  {{HostPort: "0"}},
		mnet.MustParsePort("443/tcp"): {{HostPort: "8443-8445", HostIP: netip.MustParseAddr("127.0.0.1")}},
		mnet.MustParsePort("9/tcp"):   nil, // exposed only
	}
	ws, err := wants(m, netip.Addr{})
	must(t, err)
	var got []string
	for _, w := range ws {
		got = append(got, w.port.String()+"="+strings.Trim(strings.Join(strings.Fields(netip.AddrPortFrom(w.addrs[0], w.ports[0]).String()), " "), " "))
	}
	if s := strings.Join(got, " "); s != "80/tcp=0.0.0.0:8080 443/tcp=127.0.0.1:8443 53/udp=0.0.0.0:0 80/tcp=0.0.0.0:0" {
		t.Errorf("order: %s", s)
	}
	for port, bind := range map[string]string{"80/sctp": "80", "80/tcp": "x", "81/tcp": "9-8", "82/tcp": "70000", "83/tcp": "0-5"} {
		if _, err := wants(mnet.PortMap{mnet.MustParsePort(port): {{HostPort: bind}}}, netip.Addr{}); err == nil {
			t.Errorf("%s on %q is accepted", port, bind)
		}
	}
}

func TestGateway(t *testing.T) {
	e := func(name string, prio int, internal bool) *end {
		n := &end{rec: &record{}}
		n.rec.Network.Name, n.rec.Network.Internal, n.ask.GwPriority = name, internal, prio
		return n
	}
	for _, c := range []struct {
		ends []*end
		want string
	}{
		{[]*end{e("b", 0, false), e("a", 0, false)}, "a"},
		{[]*end{e("b", 5, false), e("a", 0, false)}, "b"},
		{[]*end{e("a", 0, true), e("b", 0, false)}, "b"},
		{[]*end{e("a", 0, true)}, ""},
	} {
		got := ""
		if g := gateway(c.ends); g != nil {
			got = g.rec.Network.Name
		}
		if got != c.want {
			t.Errorf("gateway %q, want %q", got, c.want)
		}
	}
}

func TestChoosePass(t *testing.T) {
	ip := &nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4}
	ours := &nftables.Table{Name: "keg_1", Family: nftables.TableFamilyINet}
	drop, accept := nftables.ChainPolicyDrop, nftables.ChainPolicyAccept
	fwd := func(tb *nftables.Table, p *nftables.ChainPolicy) *nftables.Chain {
		return &nftables.Chain{Name: "FORWARD", Table: tb, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Policy: p}
	}
	user := &nftables.Chain{Name: "DOCKER-USER", Table: ip}
	for _, c := range []struct {
		chains []*nftables.Chain
		want   string
	}{
		{[]*nftables.Chain{fwd(ip, &drop)}, "ip filter FORWARD"},
		{[]*nftables.Chain{fwd(ip, &drop), user}, "ip filter DOCKER-USER"},
		{[]*nftables.Chain{fwd(ip, &accept), user}, ""},
		{[]*nftables.Chain{fwd(ours, &drop)}, ""},
	} {
		var got []string
		for _, f := range choosePass(c.chains) {
			got = append(got, f.String())
		}
		if strings.Join(got, ",") != c.want {
			t.Errorf("got %v, want %q", got, c.want)
		}
	}
}

func TestListsThatChange(t *testing.T) {
	tries := 0
	got, err := whole(func() ([]int, error) {
		if tries++; tries < 3 {
			return []int{1}, netlink.ErrDumpInterrupted
		}
		return []int{1, 2}, nil
	})
	if err != nil || len(got) != 2 || tries != 3 {
		t.Errorf("%v, %v after %d tries", got, err, tries)
	}
	if got, err := whole(func() ([]int, error) { return []int{1}, netlink.ErrDumpInterrupted }); err != nil || len(got) != 1 {
		t.Errorf("a list that never stands still: %v, %v", got, err)
	}
	if _, err := whole(func() ([]int, error) { return nil, unix.EPERM }); err != unix.EPERM {
		t.Error(err)
	}
}
