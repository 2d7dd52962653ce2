package network

// A laboratory: when root, the tests run again in a network and mount namespace of
// their own, where bridges, rules and routes disturb nobody and vanish with the process.

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"keg/test/private"

	"github.com/google/nftables"
	mnet "github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	private.Enter()
	os.Exit(m.Run())
}

// lab is an engine on an empty host. At the end it checks that nothing is left.
func lab(t testing.TB) *Store {
	t.Helper()
	return labs(t, 1)[0]
}

func labs(t testing.TB, n int) (all []*Store) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces, bridges and nftables rules")
	}
	before := snapshot(t)
	for range n {
		s := Open(t.TempDir(), t.TempDir())
		s.linger = 20 * time.Millisecond
		all = append(all, s)
	}
	t.Cleanup(func() {
		for _, s := range all {
			if err := s.Settle(context.Background()); err != nil {
				t.Errorf("settle: %v", err)
			}
		}
		if after := snapshot(t); after != before {
			t.Errorf("left on the host:\n%s\nbefore:\n%s", after, before)
		}
	})
	return all
}

// snapshot is what a leak would show up in.
func snapshot(t testing.TB) string {
	t.Helper()
	var out []string
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		out = append(out, "link "+l.Attrs().Name)
	}
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, tb := range tables {
		rules, _ := c.ListChainsOfTableFamily(tb.Family)
		for _, ch := range rules {
			rs, _ := c.GetRules(ch.Table, ch)
			if ch.Table.Name == tb.Name {
				out = append(out, fmt.Sprintf("table %s chain %s: %d rules", tb.Name, ch.Name, len(rs)))
			}
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// newHost is another machine on the wire: a namespace with a veth to this one.
func newHost(t testing.TB, n int) (fd int, ours, theirs netip.Addr) {
	t.Helper()
	ours = netip.AddrFrom4([4]byte{198, 51, byte(100 + n), 1})
	theirs = netip.AddrFrom4([4]byte{198, 51, byte(100 + n), 2})
	r := (&Store{}).startNetNS(netnsOptions{})()
	if r.err != nil {
		t.Fatal(r.err)
	}
	name := fmt.Sprintf("wire%d", n)
	v := vethPair{host: name, netns: r.ns.fd, inside: "eth0", mac: []byte{2, 0, 0, 0, 1, byte(n)}}
	m := v.message()
	host, err := openRtnl()
	if err != nil {
		t.Fatal(err)
	}
	defer host.close()
	if err := host.do(m); err != nil {
		t.Fatal(err)
	}
	l, err := host.find(name)
	must(t, err)
	idx := l.index
	must(t, host.do(addAddr(idx, netip.PrefixFrom(ours, 24)), linkUp(idx)))
	must(t, r.ns.rt.do(addAddr(2, netip.PrefixFrom(theirs, 24)), linkUp(2), defaultRoute(2, ours)))
	for _, l := range []struct {
		r   rtnl
		idx uint32
	}{{host, idx}, {r.ns.rt, 2}} {
		if ok, err := l.r.awaitRunning(l.idx, 2*time.Second); !ok || err != nil {
			t.Fatalf("wire %d: carrier %v, %v", n, ok, err)
		}
	}
	t.Cleanup(func() {
		host, _ := openRtnl()
		defer host.close()
		host.do(deleteLink(name))
		r.ns.close()
	})
	return r.ns.fd, ours, theirs
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var testID byte

func request(name string, nets ...string) Request {
	testID++
	r := Request{ID: strings.Repeat(fmt.Sprintf("%02x", testID), 32), Name: name}
	r.Hostname = r.ID[:12]
	for _, n := range nets {
		r.Endpoints = append(r.Endpoints, Endpoint{Network: n})
	}
	return r
}

func publish(r Request, port string, binds ...mnet.PortBinding) Request {
	if r.Publish == nil {
		r.Publish = mnet.PortMap{}
	}
	r.Publish[mnet.MustParsePort(port)] = binds
	return r
}

func hostPort(p string) mnet.PortBinding { return mnet.PortBinding{HostPort: p} }

func attach(t testing.TB, s *Store, r Request) *Attachment {
	t.Helper()
	a, err := s.Attach(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Release(); err != nil {
			t.Errorf("release %s: %v", r.Name, err)
		}
	})
	return a
}

func (a *Attachment) ip(network string) netip.Addr { return a.Endpoints[network].IPAddress }

// in runs f inside a namespace.
func in[T any](t testing.TB, fd int, f func() (T, error)) T {
	t.Helper()
	v, err := try(fd, f)
	must(t, err)
	return v
}

func try[T any](fd int, f func() (T, error)) (v T, err error) {
	e := inside(context.Background(), fd, func() error { v, err = f(); return nil })
	if e != nil {
		err = e
	}
	return v, err
}

// whoami serves, in the namespace, the client's address and a tag to whoever connects,
// then echoes.
func whoami(t testing.TB, fd int, port int, tag ...string) (stop func()) {
	t.Helper()
	l := in(t, fd, func() (net.Listener, error) { return net.Listen("tcp", fmt.Sprintf(":%d", port)) })
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprintln(c, strings.Join(append([]string{c.RemoteAddr().(*net.TCPAddr).IP.String()}, tag...), " "))
				io.Copy(c, c)
			}()
		}
	}()
	return func() { l.Close() }
}

// ask connects from a namespace, sends text, half-closes, and returns client address and echo.
func ask(fd int, addr string, text string) (who, echo string, err error) {
	c, err := try(fd, func() (net.Conn, error) { return net.DialTimeout("tcp", addr, time.Second) })
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	go func() {
		io.Copy(c, strings.NewReader(text))
		c.(*net.TCPConn).CloseWrite()
	}()
	b, err := io.ReadAll(c)
	first, rest, _ := bytes.Cut(b, []byte("\n"))
	return string(first), string(rest), err
}

// here is the namespace of the engine itself.
func here(t testing.TB) int {
	t.Helper()
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// weaken applies the firewall with some of its rules changed or left out: a test that
// still passes then proves nothing.
func weaken(t testing.TB, s *Store, change func(c string, r rule) []rule) {
	t.Helper()
	st, err := s.state()
	must(t, err)
	chains := plan(st.Up, st.Forward.V4)
	for i, c := range chains {
		chains[i].rules = nil
		for _, r := range c.rules {
			chains[i].rules = append(chains[i].rules, change(c.name, r)...)
		}
	}
	fw, err := openFirewall(st.Table)
	must(t, err)
	defer fw.close()
	ports, err := s.livePorts()
	must(t, err)
	must(t, fw.apply(chains, ports))
}

func run(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %v: %w: %s", name, args, err, out)
	}
	return nil
}

func outputOf(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	return string(out), err
}
