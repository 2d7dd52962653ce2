package seccomp

// What a policy means: for each interface and number, the rules that decide, in order.

import (
	"runtime"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

// rule matches when all its comparisons do; its action is a SECCOMP_RET_* value.
type rule struct {
	args   []specs.LinuxSeccompArg
	action uint32
}

// verdict decides one call: the first rule that matches, else otherwise.
type verdict struct {
	rules     []rule
	otherwise uint32
}

// policy is the meaning of a specs.LinuxSeccomp for one interface.
type policy struct {
	abi   abi
	calls map[uint32]verdict // by number without the interface's bit
	// missing decides calls that the policy cannot have thought of: numbers that the
	// interface does not have, or newer than the newest one that the policy names.
	missing  uint32
	fallback uint32          // for all other calls
	known    map[uint32]bool // numbers of the interface, up to the newest named one
	newest   uint32
}

const noSuchCall = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)

func action(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	n := uint32(unix.EPERM)
	if errno != nil {
		if *errno > 4095 {
			return 0, fault.Invalidf("seccomp: errno %d is out of range", *errno)
		}
		n = uint32(*errno)
	}
	switch a {
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | n, nil
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | n, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	case specs.ActNotify:
		return 0, fault.Unsupportedf("seccomp: action %s needs a listener, which keg does not have", a)
	}
	return 0, fault.Invalidf("seccomp: unknown action %q", a)
}

func flags(fs []specs.LinuxSeccompFlag) (out uint, err error) {
	for _, f := range fs {
		switch f {
		case "SECCOMP_FILTER_FLAG_TSYNC": // the process has one thread
		case specs.LinuxSeccompFlagLog:
			out |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			out |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		default:
			return 0, fault.Invalidf("seccomp: unknown flag %q", f)
		}
	}
	return out, nil
}

func native() specs.Arch {
	if runtime.GOARCH == "arm64" {
		return specs.ArchAARCH64
	}
	return specs.ArchX86_64
}

// interpret returns the policy for each interface that it covers; the machine's own always.
func interpret(p *specs.LinuxSeccomp) (out []policy, err error) {
	archs := []specs.Arch{native()}
	for _, a := range p.Architectures {
		if _, ok := abiOf(a); ok && !slices.Contains(archs, a) {
			archs = append(archs, a)
		}
	}
	fallback, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	for _, a := range archs {
		abi, _ := abiOf(a)
		pol, err := interpretFor(p, abi, fallback)
		if err != nil {
			return nil, err
		}
		out = append(out, pol)
	}
	return out, nil
}

func interpretFor(p *specs.LinuxSeccomp, a abi, fallback uint32) (policy, error) {
	numbers := tables()[a.name]
	pol := policy{abi: a, calls: map[uint32]verdict{}, fallback: fallback, missing: fallback, known: map[uint32]bool{}}
	for i := range p.Syscalls {
		s := &p.Syscalls[i]
		act, err := action(s.Action, s.ErrnoRet)
		if err != nil {
			return pol, err
		}
		for _, name := range s.Names {
			n, ok := numbers[name]
			if !ok {
				continue
			}
			if n < privateCalls {
				pol.newest = max(pol.newest, n)
			}
			if act == fallback {
				continue // says nothing new; must not hide a later rule either (as in runc)
			}
			v := pol.calls[n]
			rules, err := split(s.Args, act)
			if err != nil {
				return pol, err
			}
			v.rules = append(v.rules, rules...)
			v.otherwise = fallback
			pol.calls[n] = v
		}
	}
	denies := fallback != unix.SECCOMP_RET_ALLOW && fallback != unix.SECCOMP_RET_LOG
	if denies && fallback&unix.SECCOMP_RET_ACTION_FULL != unix.SECCOMP_RET_TRACE {
		pol.missing = noSuchCall
	}
	for _, n := range numbers {
		if n <= pol.newest || n >= privateCalls {
			pol.known[n] = true
		}
	}
	return pol, nil
}

// privateCalls is where arm's own calls begin (set_tls and the like).
const privateCalls = 0xf0000

// split makes rules of one entry's comparisons. All must hold, except that several on the same
// argument are alternatives: that is how runc reads such an entry.
func split(args []specs.LinuxSeccompArg, act uint32) ([]rule, error) {
	seen := map[uint]bool{}
	twice := false
	for _, a := range args {
		if a.Index > 5 {
			return nil, fault.Invalidf("seccomp: a system call has no argument %d", a.Index)
		}
		switch a.Op {
		case specs.OpEqualTo, specs.OpNotEqual, specs.OpMaskedEqual, specs.OpGreaterThan,
			specs.OpGreaterEqual, specs.OpLessThan, specs.OpLessEqual:
		default:
			return nil, fault.Invalidf("seccomp: unknown comparison %q", a.Op)
		}
		twice = twice || seen[a.Index]
		seen[a.Index] = true
	}
	if !twice {
		return []rule{{args, act}}, nil
	}
	var out []rule
	for _, a := range args {
		out = append(out, rule{[]specs.LinuxSeccompArg{a}, act})
	}
	return out, nil
}
