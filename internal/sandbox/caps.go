package sandbox

// Capabilities by name, as bits.

import (
	"strings"
	"sync"

	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// capSet is a bit set of capabilities, bit n being capability n.
type capSet uint64

func (s capSet) has(n int) bool { return s>>uint(n)&1 != 0 }

var capNumbers = sync.OnceValue(func() map[string]int {
	m := map[string]int{}
	for _, c := range capability.ListKnown() {
		m["CAP_"+strings.ToUpper(c.String())] = int(c)
	}
	return m
})

// lastCap is the highest capability of the running kernel.
var lastCap = sync.OnceValue(func() int {
	n := unix.CAP_LAST_CAP
	for n > 0 {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(n), 0, 0, 0); err == nil {
			break
		}
		n--
	}
	for n < 63 {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(n+1), 0, 0, 0); err != nil {
			break
		}
		n++
	}
	return n
})

// capSets are a process's five sets.
type capSets struct {
	bounding, effective, permitted, inheritable, ambient capSet
}

// parseCaps reads the sets of a spec; nil means none at all. Names that nobody knows are
// returned, to be warned about.
func parseCaps(c *specs.LinuxCapabilities) (s capSets, unknown []string) {
	if c == nil {
		return s, nil
	}
	set := func(names []string) (out capSet) {
		for _, n := range names {
			if bit, ok := capNumbers()[strings.ToUpper(n)]; ok {
				out |= 1 << uint(bit)
			} else {
				unknown = append(unknown, n)
			}
		}
		return out
	}
	s.bounding, s.effective, s.permitted = set(c.Bounding), set(c.Effective), set(c.Permitted)
	s.inheritable, s.ambient = set(c.Inheritable), set(c.Ambient)
	return s, unknown
}

// within cuts the sets down to what the engine itself has; the kernel refuses more.
func (s capSets) within(own capSet) capSets {
	s.bounding &= own
	s.effective &= own
	s.permitted &= own
	s.inheritable &= own
	s.ambient &= own
	return s
}

func capNames(s capSet) (out []string) {
	for _, c := range capability.ListKnown() {
		if s.has(int(c)) {
			out = append(out, "CAP_"+strings.ToUpper(c.String()))
		}
	}
	return out
}

// ownCaps reads what this process may give away: its permitted set.
var ownCaps = sync.OnceValue(func() capSet {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) != nil {
		return 0
	}
	return capSet(data[0].Permitted) | capSet(data[1].Permitted)<<32
})

// Capabilities lists all that this build knows.
func Capabilities() []string { return capNames(1<<(unix.CAP_LAST_CAP+1) - 1) }
