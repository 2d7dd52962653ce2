package sandbox

// Resource limits: names, and what may be raised.

import (
	"fmt"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

var limitNames = [...]string{unix.RLIMIT_CPU: "CPU", unix.RLIMIT_FSIZE: "FSIZE", unix.RLIMIT_DATA: "DATA",
	unix.RLIMIT_STACK: "STACK", unix.RLIMIT_CORE: "CORE", unix.RLIMIT_RSS: "RSS", unix.RLIMIT_NPROC: "NPROC",
	unix.RLIMIT_NOFILE: "NOFILE", unix.RLIMIT_MEMLOCK: "MEMLOCK", unix.RLIMIT_AS: "AS", unix.RLIMIT_LOCKS: "LOCKS",
	unix.RLIMIT_SIGPENDING: "SIGPENDING", unix.RLIMIT_MSGQUEUE: "MSGQUEUE", unix.RLIMIT_NICE: "NICE",
	unix.RLIMIT_RTPRIO: "RTPRIO", unix.RLIMIT_RTTIME: "RTTIME"}

func limitName(n int) string { return "RLIMIT_" + limitNames[n] }

func limitNumber(name string) (int, bool) {
	for n, s := range limitNames {
		if "RLIMIT_"+s == strings.ToUpper(name) {
			return n, true
		}
	}
	return 0, false
}

// soft limit of open files when a spec says nothing. The Go runtime raised ours to the
// hard limit; programs that close every possible descriptor suffer from such numbers.
const defaultFiles = 1024

type getLimits func(resource int) (soft, hard uint64)

func getLimit(resource int) (uint64, uint64) {
	var r unix.Rlimit
	if unix.Getrlimit(resource, &r) != nil {
		return 0, unix.RLIM_INFINITY
	}
	return r.Cur, r.Max
}

// parseLimits reads a spec's limits. One that this process cannot raise is cut to what it has, with
// a warning: a container that starts with less is better than none.
func parseLimits(rs []specs.POSIXRlimit, get getLimits, mayRaise bool) (out []limit, warnings []string, err error) {
	seen := map[int]bool{}
	for _, r := range rs {
		n, ok := limitNumber(r.Type)
		if !ok {
			return nil, nil, fault.Invalidf("unknown resource limit %q", r.Type)
		}
		if seen[n] {
			return nil, nil, fault.Invalidf("resource limit %s is given twice", r.Type)
		}
		seen[n] = true
		if r.Soft > r.Hard {
			return nil, nil, fault.Invalidf("resource limit %s: soft limit %d is above the hard limit %d", r.Type, r.Soft, r.Hard)
		}
		l := limit{n, r.Soft, r.Hard}
		if _, hard := get(n); !mayRaise && l.cap > hard {
			warnings = append(warnings, fmt.Sprintf("%s: cannot raise the hard limit to %d without CAP_SYS_RESOURCE; it stays %d", limitName(n), l.cap, hard))
			l.cap, l.soft = hard, min(l.soft, hard)
		}
		out = append(out, l)
	}
	if !seen[unix.RLIMIT_NOFILE] {
		_, hard := get(unix.RLIMIT_NOFILE)
		out = append(out, limit{unix.RLIMIT_NOFILE, min(hard, defaultFiles), hard})
	}
	return out, warnings, nil
}

// Attainable is p without the capabilities and the raised limits that this process cannot give, and what
// was left out: for runtimes that fail where the sandbox warns.
func Attainable(p *specs.Process) (*specs.Process, []string) {
	out := *p
	own := ownCaps()
	var warnings []string
	if c := p.Capabilities; c != nil {
		keep := func(names []string) (kept []string) {
			for _, n := range names {
				if bit, ok := capNumbers()[strings.ToUpper(n)]; ok && own.has(bit) {
					kept = append(kept, n)
				}
			}
			return kept
		}
		out.Capabilities = &specs.LinuxCapabilities{Bounding: keep(c.Bounding), Effective: keep(c.Effective), Permitted: keep(c.Permitted),
			Inheritable: keep(c.Inheritable), Ambient: keep(c.Ambient)}
		if lost := len(c.Bounding) - len(out.Capabilities.Bounding); lost > 0 {
			warnings = append(warnings, fmt.Sprintf("%d capabilities that the engine itself lacks are left out", lost))
		}
	}
	out.Rlimits = nil
	for _, r := range p.Rlimits {
		if n, ok := limitNumber(r.Type); ok && !own.has(unix.CAP_SYS_RESOURCE) {
			if _, hard := getLimit(n); r.Hard > hard {
				warnings = append(warnings, fmt.Sprintf("%s: cannot raise the hard limit to %d without CAP_SYS_RESOURCE; it stays %d", r.Type, r.Hard, hard))
				r.Hard, r.Soft = hard, min(r.Soft, hard)
			}
		}
		out.Rlimits = append(out.Rlimits, r)
	}
	return &out, warnings
}
