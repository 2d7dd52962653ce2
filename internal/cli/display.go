// Pieces of tables: short ids, ages, labels, ports.

package cli

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
)

// shortID is the 12 digits after an algorithm's name.
func shortID(id string) string {
	if _, hex, ok := strings.Cut(id, ":"); ok {
		id = hex
	}
	return id[:min(12, len(id))]
}

func ago(now, t time.Time) string { return units.HumanDuration(now.Sub(t)) + " ago" }

// size3 is a size with three digits, as in images and ps.
func size3(n int64) string { return units.HumanSizeWithPrecision(float64(n), 3) }

func joinLabels(m map[string]string) string {
	out := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, ",")
}

// ellipsis cuts s to a width in columns; East Asian wide characters take two.
func ellipsis(s string, width int) string {
	if width <= 0 {
		return ""
	}
	if len(s) <= width {
		return s
	}
	used, cut := 0, -1
	for i, r := range s {
		if width == 1 {
			return string(r)
		}
		used += runeWidth(r)
		if used > width-1 && cut < 0 {
			cut = i
		}
	}
	if used <= width {
		return s
	}
	return s[:cut] + "…"
}

func runeWidth(r rune) int {
	switch {
	case r < 0x1100:
		return 1
	case r <= 0x115f, r >= 0x2e80 && r <= 0x303e, r >= 0x3041 && r <= 0xa4cf, r >= 0xac00 && r <= 0xd7a3,
		r >= 0xf900 && r <= 0xfaff, r >= 0xfe30 && r <= 0xfe6f, r >= 0xff00 && r <= 0xff60, r >= 0xffe0 && r <= 0xffe6,
		r >= 0x1f300 && r <= 0x1f64f, r >= 0x1f900 && r <= 0x1f9ff, r >= 0x20000 && r <= 0x3fffd:
		return 2
	}
	return 1
}

// portGroup is a run of ports that are published alike.
type portGroup struct {
	key, ip, proto string
	first, last    uint16
}

func (g portGroup) String() string {
	s := strconv.Itoa(int(g.first))
	if g.first != g.last {
		s += "-" + strconv.Itoa(int(g.last))
	}
	if g.ip != "" {
		s = net.JoinHostPort(g.ip, s) + "->" + s
	}
	return s + "/" + g.proto
}

// displayPorts is the column PORTS: ranges where the host's port equals the
// container's, one by one where it differs.
func displayPorts(ports []container.PortSummary) string {
	ports = slices.Clone(ports)
	slices.SortFunc(ports, func(a, b container.PortSummary) int {
		return cmp.Or(cmp.Compare(a.PrivatePort, b.PrivatePort), a.IP.Compare(b.IP),
			cmp.Compare(a.PublicPort, b.PublicPort), cmp.Compare(a.Type, b.Type))
	})
	var done, mapped []string
	var open []*portGroup
	for _, p := range ports {
		g := portGroup{key: p.Type, proto: p.Type, first: p.PrivatePort, last: p.PrivatePort}
		if p.IP.IsValid() {
			if p.PublicPort != p.PrivatePort {
				host := net.JoinHostPort(p.IP.String(), strconv.Itoa(int(p.PublicPort)))
				mapped = append(mapped, fmt.Sprintf("%s->%d/%s", host, p.PrivatePort, p.Type))
				continue
			}
			g.ip = p.IP.String()
			g.key = g.ip + "/" + p.Type
		}
		i := slices.IndexFunc(open, func(o *portGroup) bool { return o.key == g.key })
		switch {
		case i < 0:
			open = append(open, &g)
		case open[i].last+1 == g.first:
			open[i].last = g.first
		default:
			done = append(done, open[i].String())
			open[i].first, open[i].last = g.first, g.last
		}
	}
	for _, g := range open {
		done = append(done, g.String())
	}
	return strings.Join(append(done, mapped...), ", ")
}

// quoteCommand is the column COMMAND.
func quoteCommand(s string, short bool) string {
	if short {
		s = ellipsis(s, 20)
	}
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\ufffd")
	}
	return strconv.Quote(s)
}
