package network

// /etc/hosts and /etc/resolv.conf of a container, as text.

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"keg/internal/fault"
)

// hostEntry is a line that a container's own addresses add.
type hostEntry struct {
	addr  netip.Addr
	names string
}

// hostsFile is what Docker writes (libnetwork/etchosts): localhost, the IPv6 lines
// where the container has IPv6, extra hosts, its own addresses.
func hostsFile(ipv6 bool, extra, own []hostEntry) []byte {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n")
	if ipv6 {
		b.WriteString("::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	}
	for _, e := range slices.Concat(extra, own) {
		if e.addr.Is4() || ipv6 {
			fmt.Fprintf(&b, "%s\t%s\n", e.addr, e.names)
		}
	}
	return []byte(b.String())
}

// parseExtraHosts reads --add-host: "name:ip", "name=ip"; "host-gateway" is gateway.
func parseExtraHosts(list []string, gateway netip.Addr) ([]hostEntry, error) {
	var out []hostEntry
	for _, h := range list {
		i := strings.IndexAny(h, ":=")
		if i <= 0 {
			return nil, fault.Invalidf("bad format for add-host: %q", h)
		}
		name, ip := h[:i], strings.Trim(h[i+1:], "[]")
		if ip == "host-gateway" {
			if gateway.IsValid() {
				out = append(out, hostEntry{gateway, name})
			}
			continue
		}
		a, err := netip.ParseAddr(ip)
		if err != nil {
			return nil, fault.Invalidf("invalid IP address in add-host: %q", ip)
		}
		out = append(out, hostEntry{a, name})
	}
	return out, nil
}

// resolvConf is a parsed resolv.conf(5).
type resolvConf struct {
	servers []netip.Addr
	search  []string
	options []string
	other   []string
}

func parseResolv(text string) (c resolvConf) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0][0] == '#' || f[0][0] == ';' {
			continue
		}
		switch args := f[1:]; f[0] {
		case "nameserver":
			if len(args) > 0 {
				if a, err := netip.ParseAddr(args[0]); err == nil {
					c.servers = append(c.servers, a)
				}
			}
		case "domain", "search":
			if len(args) > 0 {
				c.search = args
			}
		case "options":
			c.options = append(c.options, args...)
		default:
			c.other = append(c.other, strings.TrimRight(line, "\n"))
		}
	}
	return c
}

func (c resolvConf) text() []byte {
	var b strings.Builder
	for _, s := range c.servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(c.search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(c.search, " "))
	}
	if len(c.options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(c.options, " "))
	}
	for _, o := range c.other {
		b.WriteString(o + "\n")
	}
	return []byte(b.String())
}

// resolvFiles are where the host says whom it asks: its resolv.conf, and what
// systemd-resolved forwards to.
type resolvFiles struct{ host, upstream string }

func hostResolvFiles() resolvFiles {
	return resolvFiles{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}
}

// load returns the host's configuration. Servers on the host's loopback are unreachable
// from elsewhere: they are replaced by their upstreams, at last by public ones.
func (f resolvFiles) load() (resolvConf, error) {
	b, err := os.ReadFile(f.host)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return resolvConf{}, fmt.Errorf("read the host's DNS configuration: %w", err)
	}
	c := parseResolv(string(b))
	if slices.ContainsFunc(c.servers, netip.Addr.IsLoopback) {
		if b, err := os.ReadFile(f.upstream); err == nil {
			c.servers = parseResolv(string(b)).servers
		}
	}
	c.servers = slices.DeleteFunc(c.servers, netip.Addr.IsLoopback)
	return c, nil
}

// withOptions applies --dns, --dns-search and --dns-option.
func (c resolvConf) with(r Request) (resolvConf, error) {
	if len(r.DNS) > 0 {
		c.servers = nil
		for _, s := range r.DNS {
			a, err := netip.ParseAddr(s)
			if err != nil {
				return c, fault.Invalidf("bad nameserver address: %s is not an ip address", s)
			}
			c.servers = append(c.servers, a)
		}
	}
	if len(r.Search) > 0 {
		c.search = slices.DeleteFunc(slices.Clone(r.Search), func(s string) bool { return s == "." })
	}
	if len(r.Options) > 0 {
		c.options = slices.Clone(r.Options)
	}
	return c, nil
}

// direct is for containers that ask the servers themselves.
func (c resolvConf) direct(ipv6, chosen bool) resolvConf {
	if !chosen && !ipv6 {
		c.servers = slices.DeleteFunc(slices.Clone(c.servers), netip.Addr.Is6)
	}
	if len(c.servers) == 0 {
		c.servers = []netip.Addr{netip.AddrFrom4([4]byte{8, 8, 8, 8}), netip.AddrFrom4([4]byte{8, 8, 4, 4})}
	}
	return c
}

// internal is for containers on a user-defined network: they ask 127.0.0.11, which
// asks the servers.
func (c resolvConf) internal() resolvConf {
	c.servers = []netip.Addr{dnsAddr()}
	c.options = slices.DeleteFunc(slices.Clone(c.options), func(o string) bool {
		v, ok := strings.CutPrefix(o, "ndots:")
		n, err := strconv.Atoi(v)
		return ok && (err != nil || n < 0)
	})
	if !slices.ContainsFunc(c.options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
		c.options = append(c.options, "ndots:0")
	}
	return c
}

// HostMode returns /etc/hosts and /etc/resolv.conf for a container in the host's own
// network: those of the host, with what the request adds. Loopback resolvers work there.
func (s *Store) HostMode(r Request) (hosts, resolv []byte, err error) {
	hosts, err = os.ReadFile("/etc/hosts")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, fmt.Errorf("read the host's hosts file: %w", err)
	}
	extra, err := parseExtraHosts(r.ExtraHosts, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	if err != nil {
		return nil, nil, err
	}
	if len(hosts) > 0 && hosts[len(hosts)-1] != '\n' {
		hosts = append(hosts, '\n')
	}
	for _, e := range extra {
		hosts = fmt.Appendf(hosts, "%s\t%s\n", e.addr, e.names)
	}
	b, err := os.ReadFile(hostResolvFiles().host)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, fmt.Errorf("read the host's DNS configuration: %w", err)
	}
	c, err := parseResolv(string(b)).with(r)
	return hosts, c.text(), err
}
