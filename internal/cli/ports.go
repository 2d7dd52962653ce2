// -p and --expose.

package cli

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/network"
)

// parsePorts reads the specs of -p: [[ip:][hostPort[-last]]:]port[-last][/proto], or
// published=8080,target=80[,protocol=udp].
func parsePorts(specs []string) (network.PortSet, network.PortMap, error) {
	exposed, bound := network.PortSet{}, network.PortMap{}
	for _, s := range specs {
		if strings.Contains(s, "=") {
			long, err := shortPortSpec(s)
			if err != nil {
				return nil, nil, err
			}
			s = long
		}
		if err := addPort(s, exposed, bound); err != nil {
			return nil, nil, err
		}
	}
	return exposed, bound, nil
}

func shortPortSpec(s string) (string, error) {
	p := map[string]string{"protocol": "tcp"}
	for field := range strings.SplitSeq(s, ",") {
		k, v, ok := strings.Cut(field, "=")
		if !ok || k == "" {
			return "", fmt.Errorf("invalid publish opts format (should be name=value but got '%s')", field)
		}
		p[k] = v
	}
	return p["published"] + ":" + p["target"] + "/" + p["protocol"], nil
}

func addPort(spec string, exposed network.PortSet, bound network.PortMap) error {
	ip, host, ctr := splitPort(spec)
	ctr, proto, _ := strings.Cut(ctr, "/")
	if proto = strings.ToLower(proto); proto == "" {
		proto = "tcp"
	}
	if proto != "tcp" && proto != "udp" && proto != "sctp" {
		return errors.New("invalid proto: " + proto)
	}
	if ctr == "" {
		return fmt.Errorf("no port specified: %s<empty>", spec)
	}
	addr, err := hostAddress(ip)
	if err != nil {
		return err
	}
	first, last, err := portRange(ctr)
	if err != nil {
		return errors.New("invalid containerPort: " + ctr)
	}
	var hFirst, hLast uint16
	if host != "" {
		if hFirst, hLast, err = portRange(host); err != nil {
			return errors.New("invalid hostPort: " + host)
		}
		// One container port may be given a range to pick from.
		if last-first != hLast-hFirst && first != last {
			return fmt.Errorf("invalid ranges specified for container and host Ports: %s and %s", ctr, host)
		}
	}
	for i := 0; i <= int(last-first); i++ {
		p, _ := network.PortFrom(first+uint16(i), network.IPProtocol(proto))
		exposed[p] = struct{}{}
		b := network.PortBinding{HostIP: addr}
		switch {
		case host == "":
		case first == last && hFirst != hLast:
			b.HostPort = fmt.Sprintf("%d-%d", hFirst, hLast)
		default:
			b.HostPort = strconv.Itoa(int(hFirst) + i)
		}
		bound[p] = append(bound[p], b)
	}
	return nil
}

// splitPort cuts ip:host:container from the right, since the address may hold colons.
func splitPort(s string) (ip, host, ctr string) {
	parts := strings.Split(s, ":")
	switch n := len(parts); n {
	case 1:
		return "", "", s
	case 2:
		return "", parts[0], parts[1]
	case 3:
		return parts[0], parts[1], parts[2]
	default:
		return strings.Join(parts[:n-2], ":"), parts[n-2], parts[n-1]
	}
}

func hostAddress(ip string) (netip.Addr, error) {
	if ip == "" {
		return netip.Addr{}, nil
	}
	if ip[0] == '[' {
		h, _, err := net.SplitHostPort(ip + ":")
		if err != nil {
			return netip.Addr{}, fmt.Errorf("invalid IP address %v: %w", ip, err)
		}
		ip = h
	}
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return netip.Addr{}, errors.New("invalid IP address: " + ip)
	}
	return a, nil
}

func portRange(s string) (first, last uint16, err error) {
	from, to, isRange := strings.Cut(s, "-")
	f, err := strconv.ParseUint(from, 10, 16)
	if err != nil || !isRange {
		return uint16(f), uint16(f), err
	}
	t, err := strconv.ParseUint(to, 10, 16)
	if err == nil && t < f {
		err = errors.New("invalid range")
	}
	return uint16(f), uint16(t), err
}

// addExposed adds --expose's port[-last][/proto] to the set.
func addExposed(specs []string, exposed network.PortSet) error {
	for _, s := range specs {
		r, err := network.ParsePortRange(s)
		if err != nil {
			return fmt.Errorf("invalid range format for --expose: %w", err)
		}
		for p := range r.All() {
			exposed[p] = struct{}{}
		}
	}
	return nil
}
