package seccomp

// A policy as classic BPF. Per interface: a binary search over ranges of numbers that share a
// verdict; a leaf compares arguments, rule by rule, and returns.

import (
	"encoding/binary"
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

// insn is struct sock_filter.
type insn struct {
	code   uint16
	jt, jf uint8
	k      uint32
}

const (
	load = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	jeq  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	jge  = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	jgt  = unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K
	jset = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	jump = unix.BPF_JMP | unix.BPF_JA
	and  = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	rets = unix.BPF_RET | unix.BPF_K
)

// Offsets in struct seccomp_data: number, architecture, instruction pointer, six arguments.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

// maxInsns is the kernel's limit for one filter (BPF_MAXINSNS).
const maxInsns = 4096

func build(p *specs.LinuxSeccomp) (Filter, error) {
	if p.ListenerPath != "" {
		return Filter{}, fault.Unsupportedf("seccomp: a listener (%s) is not supported", p.ListenerPath)
	}
	fl, err := flags(p.Flags)
	if err != nil {
		return Filter{}, err
	}
	policies, err := interpret(p)
	if err != nil {
		return Filter{}, err
	}
	code := assemble(policies)
	if len(code) > maxInsns {
		return Filter{}, fault.Invalidf("seccomp: the policy needs %d instructions, the kernel takes %d", len(code), maxInsns)
	}
	return Filter{encode(code), fl}, nil
}

// assemble dispatches on the architecture; a program of one that is not covered is killed.
func assemble(policies []policy) []insn {
	out := []insn{{code: load, k: offArch}}
	done := map[uint32]bool{}
	for i := range policies {
		arch := policies[i].abi.audit
		if done[arch] {
			continue
		}
		done[arch] = true
		out = append(out, over(insn{code: jeq, k: arch}, section(arch, policies))...)
	}
	return append(out, insn{code: rets, k: unix.SECCOMP_RET_KILL_PROCESS})
}

// over runs body when test holds and goes past it otherwise.
func over(test insn, body []insn) []insn {
	if len(body) <= 255 {
		test.jf = uint8(len(body))
		return append([]insn{test}, body...)
	}
	test.jf = 0
	test.jt = 1
	return append([]insn{test, {code: jump, k: uint32(len(body))}}, body...)
}

// section is the code for one architecture, of one or two interfaces.
func section(arch uint32, policies []policy) []insn {
	out := []insn{{code: load, k: offNumber}}
	var plain *policy
	for i := range policies {
		p := &policies[i]
		switch {
		case p.abi.audit != arch:
		case p.abi.bit != 0:
			body := append([]insn{{code: and, k: ^p.abi.bit}}, search(spans(p))...)
			out = append(out, over(insn{code: jset, k: p.abi.bit}, body)...)
		default:
			plain = p
		}
	}
	if plain == nil {
		return append(out, insn{code: rets, k: unix.SECCOMP_RET_KILL_PROCESS})
	}
	// Numbers with another interface's bit that is not covered lie beyond the newest call.
	return append(out, search(spans(plain))...)
}

// span is a range of numbers, from up to the next span, with one verdict.
type span struct {
	from uint32
	v    verdict
}

func spans(p *policy) []span {
	var out []span
	push := func(from uint32, v verdict) {
		if n := len(out); n > 0 && len(v.rules) == 0 && len(out[n-1].v.rules) == 0 && out[n-1].v.otherwise == v.otherwise {
			return
		}
		out = append(out, span{from, v})
	}
	numbers := make([]uint32, 0, len(p.known))
	for n := range p.known {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	next := uint32(0)
	for _, n := range numbers {
		if n > next {
			push(next, verdict{otherwise: p.missing})
		}
		v, ok := p.calls[n]
		if !ok {
			v = verdict{otherwise: p.fallback}
		}
		push(n, simplify(v))
		next = n + 1
	}
	push(next, verdict{otherwise: p.missing})
	return out
}

// simplify cuts the rules behind one without conditions.
func simplify(v verdict) verdict {
	for i, r := range v.rules {
		if len(r.args) == 0 {
			v.otherwise, v.rules = r.action, v.rules[:i]
			break
		}
	}
	return v
}

// search finds the number in A among spans.
func search(s []span) []insn {
	if len(s) == 1 {
		return leaf(&s[0].v)
	}
	mid := len(s) / 2
	lo, hi := search(s[:mid]), search(s[mid:])
	if len(lo) <= 255 {
		out := append([]insn{{code: jge, k: s[mid].from, jt: uint8(len(lo))}}, lo...)
		return append(out, hi...)
	}
	out := append([]insn{{code: jge, k: s[mid].from, jf: 1}, {code: jump, k: uint32(len(lo))}}, lo...)
	return append(out, hi...)
}

func leaf(v *verdict) (out []insn) {
	for i := range v.rules {
		out = append(out, v.rules[i].code()...)
	}
	return append(out, insn{code: rets, k: v.otherwise})
}

// code tests the rule's comparisons; where one does not hold it goes past the end.
func (r *rule) code() []insn {
	var out []insn
	type exit struct {
		at   int
		onJt bool
	}
	var exits []exit
	add := func(i insn) { out = append(out, i) }
	unless := func(i insn) { add(i); exits = append(exits, exit{len(out) - 1, false}) } // leave when it does not hold
	when := func(i insn) { add(i); exits = append(exits, exit{len(out) - 1, true}) }    // leave when it holds
	for _, a := range r.args {
		lo, hi := uint32(a.Value), uint32(a.Value>>32)
		loAt, hiAt := uint32(offArgs+8*a.Index), uint32(offArgs+8*a.Index+4)
		add(insn{code: load, k: hiAt})
		switch a.Op {
		case specs.OpEqualTo:
			unless(insn{code: jeq, k: hi})
			add(insn{code: load, k: loAt})
			unless(insn{code: jeq, k: lo})
		case specs.OpNotEqual:
			add(insn{code: jeq, k: hi, jf: 2}) // different already: past the low word
			add(insn{code: load, k: loAt})
			when(insn{code: jeq, k: lo})
		case specs.OpMaskedEqual: // Value is the mask
			add(insn{code: and, k: hi})
			unless(insn{code: jeq, k: uint32(a.ValueTwo >> 32)})
			add(insn{code: load, k: loAt})
			add(insn{code: and, k: lo})
			unless(insn{code: jeq, k: uint32(a.ValueTwo)})
		case specs.OpGreaterThan, specs.OpGreaterEqual:
			last := insn{code: jgt, k: lo}
			if a.Op == specs.OpGreaterEqual {
				last.code = jge
			}
			add(insn{code: jgt, k: hi, jt: 3}) // greater already: past the low word
			unless(insn{code: jeq, k: hi})
			add(insn{code: load, k: loAt})
			unless(last)
		case specs.OpLessThan, specs.OpLessEqual:
			last := insn{code: jge, k: lo}
			if a.Op == specs.OpLessEqual {
				last.code = jgt
			}
			add(insn{code: jge, k: hi, jf: 3}) // less already: past the low word
			unless(insn{code: jeq, k: hi})
			add(insn{code: load, k: loAt})
			when(last)
		}
	}
	end := len(out) + 1
	for _, e := range exits {
		if d := uint8(end - e.at - 1); e.onJt {
			out[e.at].jt = d
		} else {
			out[e.at].jf = d
		}
	}
	return append(out, insn{code: rets, k: r.action})
}

func encode(code []insn) []byte {
	b := make([]byte, 0, 8*len(code))
	for _, i := range code {
		b = binary.NativeEndian.AppendUint16(b, i.code)
		b = append(b, i.jt, i.jf)
		b = binary.NativeEndian.AppendUint32(b, i.k)
	}
	return b
}

func (i insn) String() string { return fmt.Sprintf("%#04x %d %d %#x", i.code, i.jt, i.jf, i.k) }
