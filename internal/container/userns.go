package container

// --userns: whose ids a container's are.

import (
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"keg/internal/fault"
)

// Userns is a parsed user namespace mode.
type Userns struct {
	Auto   bool   // a range of ids of the container's own
	KeepID bool   // the caller keeps his ids
	Size   uint32 // of the range; 0: as it fits
	// UID and GID are who the caller is inside, with KeepID; -1: who he is outside.
	UID, GID int64
}

// Own tells whether the container has a user namespace.
func (u Userns) Own() bool { return u.Auto || u.KeepID }

// maxIDs bounds the ids of a container: 65536 are what images use.
const maxIDs = 1 << 24

// ParseUserns reads "", "host", "auto[:size=N]" and "keep-id[:uid=N,gid=N]".
func ParseUserns(mode string) (u Userns, err error) {
	u = Userns{UID: -1, GID: -1}
	kind, rest, more := strings.Cut(mode, ":")
	switch kind {
	case "auto":
		u.Auto = true
	case "keep-id":
		u.KeepID = true
	case "", "host":
		if !more {
			return u, nil
		}
		fallthrough
	default:
		return u, fault.Invalidf("invalid USER mode %q: want host, auto[:size=N] or keep-id[:uid=N,gid=N]", mode)
	}
	if !more {
		return u, nil
	}
	for _, kv := range strings.Split(rest, ",") {
		k, v, _ := strings.Cut(kv, "=")
		n, err := strconv.ParseUint(v, 10, 32)
		switch {
		case err != nil || n >= 1<<32-1:
			return u, fault.Invalidf("invalid USER mode %q: %q is not a number of ids", mode, v)
		case u.Auto && k == "size" && n > 0 && n <= maxIDs:
			u.Size = uint32(n)
		case u.KeepID && k == "uid":
			u.UID = int64(n)
		case u.KeepID && k == "gid":
			u.GID = int64(n)
		default:
			return u, fault.Invalidf("invalid USER mode %q: unknown option %q", mode, kv)
		}
	}
	return u, nil
}

// SwapIDs maps size ids to themselves, but that inside and outer trade places: the caller, who is
// outer in the engine's namespace, is inside in the container's, and the file system needs no shift.
func SwapIDs(inside, outer, size uint32) (out []specs.LinuxIDMapping) {
	if inside == outer {
		return []specs.LinuxIDMapping{{Size: size}}
	}
	lo, hi := min(inside, outer), max(inside, outer)
	add := func(in, out1, n uint32) {
		if n > 0 {
			out = append(out, specs.LinuxIDMapping{ContainerID: in, HostID: out1, Size: n})
		}
	}
	add(0, 0, lo)
	if hi < size {
		add(lo, hi, 1)
		add(lo+1, lo+1, hi-lo-1)
		add(hi, lo, 1)
		add(hi+1, hi+1, size-hi-1)
		return out
	}
	// An id beyond those that exist: it takes the place of the other, who gets the last one.
	if lo+1 < size {
		add(lo, size-1, 1)
		add(lo+1, lo+1, size-lo-2)
	}
	add(hi, lo, 1)
	return out
}
