// EXPOSE's port specifications: [ip:][host:]port[-port][/proto]; only the container's
// ports count.
package builder

import (
	"net/netip"
	"strconv"
	"strings"

	"keg/internal/fault"
)

// exposedPorts expands one specification to "port/proto" each.
func exposedPorts(spec string) ([]string, error) {
	ports, proto, _ := strings.Cut(spec, "/")
	if i := strings.LastIndexByte(ports, ':'); i >= 0 {
		front := ports[:i]
		ports = ports[i+1:]
		if j := strings.LastIndexByte(front, ':'); j >= 0 {
			ip := strings.Trim(front[:j], "[]")
			if _, err := netip.ParseAddr(ip); err != nil && ip != "" {
				return nil, fault.Invalidf("invalid IP address: %s", front[:j])
			}
			front = front[j+1:]
		}
		if front != "" {
			if _, _, err := portRange(front); err != nil {
				return nil, fault.Invalidf("invalid hostPort: %s", front)
			}
		}
	}
	if ports == "" {
		return nil, fault.Invalidf("invalid port: %q: no port specified", spec)
	}
	switch proto = strings.ToLower(proto); proto {
	case "":
		proto = "tcp"
	case "tcp", "udp", "sctp":
	default:
		return nil, fault.Invalidf("invalid port: %q: invalid proto: %s", spec, proto)
	}
	first, last, err := portRange(ports)
	if err != nil {
		return nil, fault.Invalidf("invalid containerPort: %s", ports)
	}
	var out []string
	for n := first; n <= last; n++ {
		out = append(out, strconv.Itoa(n)+"/"+proto)
	}
	return out, nil
}

func portRange(s string) (first, last int, err error) {
	a, b, isRange := strings.Cut(s, "-")
	n, err := strconv.ParseUint(a, 10, 16)
	if err != nil {
		return 0, 0, err
	}
	m := n
	if isRange {
		if m, err = strconv.ParseUint(b, 10, 16); err != nil {
			return 0, 0, err
		}
	}
	if m < n {
		return 0, 0, strconv.ErrRange
	}
	return int(n), int(m), nil
}
