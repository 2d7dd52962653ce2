package network

// The firewall as a value: plan turns the networks that are up into chains and rules,
// nft.go tells them to the kernel. A rule prints as nft(8) would show it, which is
// what the golden tests compare.

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"keg/internal/weakness"
)

// A key is what a match looks at.
type key string

const (
	keyIif     key = "iifname"
	keyOif     key = "oifname"
	keyIifKind key = "meta iifkind"
	keyOifKind key = "meta oifkind"
	keySrc     key = "saddr"          // ip or ip6
	keyDst     key = "daddr"          // ip or ip6
	keyState   key = "ct state"       // established,related
	keyStatus  key = "ct status"      // dnat
	keyLocal   key = "fib daddr type" // local
)

type match struct {
	key key
	not bool
	val string
}

func is(k key, v string) match    { return match{k, false, v} }
func isNot(k key, v string) match { return match{k, true, v} }

func (m match) String() string {
	k, v := string(m.key), m.val
	switch m.key {
	case keyIif, keyOif, keyIifKind, keyOifKind:
		v = strconv.Quote(v)
	case keySrc, keyDst:
		if netip.MustParsePrefix(v).Addr().Is6() {
			k = "ip6 " + k
		} else {
			k = "ip " + k
		}
	}
	if m.not {
		return k + " != " + v
	}
	return k + " " + v
}

// A verb ends a rule.
type verb string

const (
	accept     verb = "accept"
	drop       verb = "drop"
	ret        verb = "return"
	masquerade verb = "masquerade"
)

// natMap says how published ports are looked up: by the exact host address or by any
// local one, for each family.
type natMap struct {
	id    uint32
	name  string
	six   bool
	exact bool
}

func natMaps() []natMap {
	return []natMap{{1, "exact4", false, true}, {2, "any4", false, false}, {3, "exact6", true, true}, {4, "any6", true, false}}
}

func (m natMap) verb() verb {
	ip := "ip"
	if m.six {
		ip = "ip6"
	}
	k := "meta l4proto . th dport"
	if m.exact {
		k = "meta l4proto . " + ip + " daddr . th dport"
	}
	return verb("dnat " + ip + " to " + k + " map @" + m.name)
}

type rule struct {
	match []match
	do    verb
}

func on(do verb, m ...match) rule { return rule{m, do} }

func (r rule) String() string {
	var parts []string
	for _, m := range r.match {
		parts = append(parts, m.String())
	}
	return strings.Join(append(parts, string(r.do)), " ")
}

type chain struct {
	name, kind, hook string
	prio             int
	rules            []rule
}

func (c chain) String() string {
	s := "chain " + c.name + " { type " + c.kind + " hook " + c.hook + " priority " + strconv.Itoa(c.prio) + "; policy accept;\n"
	for _, r := range c.rules {
		s += "\t" + r.String() + "\n"
	}
	return s + "}\n"
}

// plan is the whole firewall of an engine. newRouter says that keg turned forwarding
// on: then the host must not start to route between its own physical links.
func plan(up map[string]upNetwork, newRouter bool) []chain {
	var nets []upNetwork
	for _, n := range up {
		nets = append(nets, n)
	}
	slices.SortFunc(nets, func(a, b upNetwork) int { return strings.Compare(a.Bridge, b.Bridge) })
	return []chain{
		{"raw", "filter", "prerouting", -300, rawRules()},
		{"publish", "nat", "prerouting", -100, publishRules(nets)},
		{"masquerade", "nat", "postrouting", 100, masqueradeRules(nets)},
		{"forward", "filter", "forward", 0, forwardRules(nets, newRouter)},
	}
}

// A port published on 127.0.0.1 must not answer a neighbour that routes 127.0.0.0/8 at
// us, even where route_localnet is on.
func rawRules() []rule {
	if weakness.Of("NW1") {
		return nil
	}
	return []rule{on(drop, is(keyDst, "127.0.0.0/8"), isNot(keyIif, "lo"))}
}

// Published ports. Containers reach them through the listening monitor instead, so that
// hairpin and other networks need no exception; and a destination that is not this
// host's is none of our business (CVE-2025-67499).
func publishRules(nets []upNetwork) (out []rule) {
	for _, n := range nets {
		out = append(out, on(ret, is(keyIif, n.Bridge)))
	}
	for _, m := range natMaps() {
		if weakness.Of("NW2") {
			out = append(out, on(m.verb()))
			continue
		}
		out = append(out, on(m.verb(), is(keyLocal, "local")))
	}
	return out
}

func masqueradeRules(nets []upNetwork) (out []rule) {
	for _, n := range nets {
		if n.Internal || !n.Masquerade {
			continue
		}
		for _, p := range []netip.Prefix{n.V4, n.V6} {
			if p.IsValid() {
				out = append(out, on(masquerade, is(keySrc, p.String()), isNot(keyOif, n.Bridge)))
			}
		}
	}
	return out
}

// Nothing is forwarded into a bridge but answers and what we translated; so neither
// another network nor a neighbour with a direct route reaches a container. Whoever
// leaves is not held up, except from an internal network.
func forwardRules(nets []upNetwork, newRouter bool) []rule {
	out := []rule{on(accept, is(keyState, "established,related"))}
	for _, n := range nets {
		if n.Internal {
			out = append(out,
				on(drop, is(keyIif, n.Bridge), isNot(keyOif, n.Bridge)),
				on(drop, is(keyOif, n.Bridge), isNot(keyIif, n.Bridge)))
		}
		within := accept
		if n.NoICC {
			within = drop
		}
		// Seen here only with br_netfilter.
		out = append(out, on(within, is(keyIif, n.Bridge), is(keyOif, n.Bridge)))
	}
	for _, n := range nets {
		if !n.Internal {
			out = append(out, on(accept, is(keyOif, n.Bridge), is(keyStatus, "dnat")))
		}
		out = append(out, on(drop, is(keyOif, n.Bridge)))
	}
	if newRouter {
		// Physical links have no kind, so the match itself fails on them.
		out = append(out, on(accept, isNot(keyIifKind, "")), on(accept, isNot(keyOifKind, "")), on(drop))
	}
	return out
}

// A published port as it is: bound on the host, answered in the container.
type published struct {
	Proto      string
	HostIP     netip.Addr // unspecified: any
	HostPort   uint16
	Target     netip.Addr
	TargetPort uint16
}

// natMap is where the kernel looks the port up. Loopback is served by the monitor
// only, and so is a host address of the other family.
func (p published) natMap() (natMap, bool) {
	if p.HostIP.IsLoopback() || !p.Target.IsValid() || p.HostIP.Is4() != p.Target.Is4() {
		return natMap{}, false
	}
	for _, m := range natMaps() {
		if m.six == p.HostIP.Is6() && m.exact == !p.HostIP.IsUnspecified() {
			return m, true
		}
	}
	return natMap{}, false
}
