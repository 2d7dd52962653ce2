package network

// What the host looks like: routes, links, sysctls; and the lock that engines on one
// host share.

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
)

// whole asks again for a list that changed while the kernel told it (NLM_F_DUMP_INTR), as it does where many containers start
// at once. What is told after many tries is better than nothing.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range 50 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return all, nil
}

// hostPrefixes are the prefixes that this host already routes, by link name.
func hostPrefixes() (map[string][]netip.Prefix, error) {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return nil, err
	}
	name := map[int]string{}
	for _, l := range links {
		name[l.Attrs().Index] = l.Attrs().Name
	}
	out := map[string][]netip.Prefix{}
	routes, err := whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, unix.AF_INET) })
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		if a, ok := netip.AddrFromSlice(r.Dst.IP.To4()); ok {
			bits, _ := r.Dst.Mask.Size()
			if bits > 0 {
				out[name[r.LinkIndex]] = append(out[name[r.LinkIndex]], netip.PrefixFrom(a, bits))
			}
		}
	}
	// A link that is down routes nothing yet has its address.
	addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, unix.AF_INET) })
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok {
			bits, _ := a.Mask.Size()
			out[name[a.LinkIndex]] = append(out[name[a.LinkIndex]], netip.PrefixFrom(ip, bits).Masked())
		}
	}
	return out, nil
}

// chooseSubnet picks a subnet for the bridge called link that neither the host routes
// nor other records of this engine have.
func chooseSubnet(link string, taken []netip.Prefix) (netip.Prefix, error) {
	host, err := hostPrefixes()
	if err != nil {
		return netip.Prefix{}, err
	}
	if linux.InUserNS() { // containers shall reach the host's neighbours, too
		outside(func() {
			neighbours, _ := hostPrefixes()
			for _, ps := range neighbours {
				taken = append(taken, ps...)
			}
		})
	}
	for l, ps := range host {
		if l != link {
			taken = append(taken, ps...)
		}
	}
	return firstFree(defaultPools(), taken)
}

// uplinkMTU is the MTU of the default route's link, at most 1500: a larger one inside
// loses packets on hosts in tunnels and clouds.
func uplinkMTU() int {
	mtu := 1500
	routes, err := whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, unix.AF_INET) })
	if err != nil {
		return mtu
	}
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
			continue
		}
		if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil && l.Attrs().MTU > 0 {
			mtu = min(mtu, l.Attrs().MTU)
		}
	}
	return mtu
}

// lockHost serialises engines that make bridges in this network namespace. The lock is
// a flock(2) on the namespace itself, so it needs no agreed path and ends with its
// holder. Anything in the namespace could hold it for ever, so the wait is bounded and
// going without it only risks two engines choosing one subnet at the same moment.
func lockHost(patience time.Duration) (unlock func(), err error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil || time.Now().After(end) {
			return func() { f.Close() }, nil
		}
	}
}

// sysctl writes with plain system calls: package os would ask for polling first, four
// more of them each time. A file that is not there belongs to a kernel without IPv6.
func sysctl(path, value string) error {
	fd, err := unix.Open("/proc/sys/net/"+path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err == nil {
		_, err = unix.Write(fd, []byte(value))
		unix.Close(fd)
	}
	if err != nil {
		return fmt.Errorf("set net/%s=%s: %w", path, value, err)
	}
	return nil
}

func readSysctl(path string) string {
	b, _ := os.ReadFile("/proc/sys/net/" + path)
	return strings.TrimSpace(string(b))
}

// enableForwarding turns forwarding on where it is off and returns what was changed.
func enableForwarding(v6 bool) (changed forwarding, err error) {
	if readSysctl("ipv4/ip_forward") == "0" {
		if err := sysctl("ipv4/ip_forward", "1"); err != nil {
			return changed, fault.Unsupportedf("enable forwarding (net.ipv4.ip_forward=1), without which containers reach nothing: %w", err)
		}
		changed.V4 = true
	}
	if v6 && readSysctl("ipv6/conf/all/forwarding") == "0" {
		keepRouterAdvertisements()
		if err := sysctl("ipv6/conf/all/forwarding", "1"); err != nil {
			return changed, fault.Unsupportedf("enable IPv6 forwarding (net.ipv6.conf.all.forwarding=1): %w", err)
		}
		changed.V6 = true
	}
	return changed, nil
}

// keepRouterAdvertisements: a forwarding host ignores router advertisements unless
// accept_ra is 2 (kernel ip-sysctl), and would lose its own default route.
func keepRouterAdvertisements() {
	ents, _ := os.ReadDir("/proc/sys/net/ipv6/conf")
	for _, e := range ents {
		if p := "ipv6/conf/" + e.Name() + "/accept_ra"; readSysctl(p) == "1" {
			sysctl(p, "2")
		}
	}
}

// restoreForwarding turns off what keg turned on, unless somebody else seems to rely
// on it: an interface that is up and virtual (bridge, veth, tunnel) and not ours.
func restoreForwarding(f forwarding) error {
	if f == (forwarding{}) {
		return nil
	}
	links, err := whole(netlink.LinkList)
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Type() != "device" && l.Attrs().Flags&unix.IFF_UP != 0 {
			return nil
		}
	}
	if f.V4 {
		err = sysctl("ipv4/ip_forward", "0")
	}
	if f.V6 && err == nil {
		err = sysctl("ipv6/conf/all/forwarding", "0")
	}
	return err
}
