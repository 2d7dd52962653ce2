package sandbox

// The plan as data: a program is a list of steps, each one system call with named
// descriptors, results of earlier steps and literal values as arguments. Building one
// needs no privileges; bind gives it the numbers and addresses of this process.

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const sysClone3 = unix.SYS_CLONE3

type argKind uint8

const (
	argInt argKind = iota
	argSlot
	argFD   // a descriptor of the parent, by name
	argText // address of a NUL-terminated string
	argMem  // address of these bytes
	argVec  // address of a NULL-terminated vector of strings
	argProg // address of a struct sock_fprog for these bytes
)

type arg struct {
	kind argKind
	n    int64
	text string
	mem  []byte
	vec  []string
}

func num[T ~int | ~int32 | ~int64 | ~uint | ~uint32 | ~uint64 | ~uintptr](n T) arg {
	return arg{n: int64(n)}
}
func slot(n int) arg        { return arg{kind: argSlot, n: int64(n)} }
func fd(name string) arg    { return arg{kind: argFD, text: name} }
func text(s string) arg     { return arg{kind: argText, text: s} }
func mem(b []byte) arg      { return arg{kind: argMem, mem: b} }
func vector(v []string) arg { return arg{kind: argVec, vec: v} }
func filter(b []byte) arg   { return arg{kind: argProg, mem: b} }

// step is one operation of the child. act and object make the error message.
type step struct {
	nr     uintptr
	args   []arg
	save   int // slot + 1
	flags  uint8
	pass   []pass
	shared string // steps with the same name here share the memory of their first address
	act    string // "mount", "open", ...
	object string // what it is done to, as the user knows it
}

// program is what a child does, first to last.
type program struct {
	steps []step
	slots int
}

// newProgram has room for n steps, so that none is copied when it grows.
func newProgram(n int) *program { return &program{steps: make([]step, 0, n)} }

// add appends a step; the methods of the result refine it.
func (p *program) add(act, object string, nr uintptr, args ...arg) *program {
	p.steps = append(p.steps, step{nr: nr, args: args, act: act, object: object})
	return p
}

func (p *program) top() *step { return &p.steps[len(p.steps)-1] }

// result keeps the last step's result and returns the argument that stands for it.
func (p *program) result() arg {
	p.slots++
	p.top().save = p.slots
	return slot(p.slots - 1)
}

// ignore lets the last step fail with e, skipping the next skip steps.
func (p *program) ignore(e syscall.Errno, skip int) *program {
	p.top().pass = append(p.top().pass, pass{uint16(e), uint16(skip)})
	return p
}

func (p *program) flag(f uint8) *program {
	p.top().flags |= f
	return p
}

// execStep is the number of the first execve.
func (p *program) execStep() int {
	for i := range p.steps {
		if nr := p.steps[i].nr; nr == unix.SYS_EXECVE || nr == opFail {
			return i
		}
	}
	return len(p.steps)
}

// explain is the error for step i failing with e.
func (p *program) explain(i int, e syscall.Errno) error {
	if i < 0 || i >= len(p.steps) {
		return fmt.Errorf("sandbox: step %d of %d: %w", i, len(p.steps), e)
	}
	s := &p.steps[i]
	if s.object == "" {
		return fmt.Errorf("%s: %w", s.act, e)
	}
	return fmt.Errorf("%s %s: %w", s.act, s.object, e)
}

// String lists the program, one step a line, for golden tests and for people.
func (p *program) String() string {
	var b strings.Builder
	for i := range p.steps {
		s := &p.steps[i]
		fmt.Fprintf(&b, "%s %s: ", s.act, s.object)
		if s.save > 0 {
			fmt.Fprintf(&b, "$%d = ", s.save-1)
		}
		fmt.Fprintf(&b, "%s(", callName(s.nr))
		for j, a := range s.args {
			if j > 0 {
				b.WriteString(", ")
			}
			b.WriteString(a.String())
		}
		b.WriteString(")")
		for _, q := range s.pass {
			fmt.Fprintf(&b, " [%s", unix.ErrnoName(syscall.Errno(q.errno)))
			if q.skip > 0 {
				fmt.Fprintf(&b, " skips %d", q.skip)
			}
			b.WriteString("]")
		}
		b.WriteString("\n")
	}
	return b.String()
}

func (a arg) String() string {
	switch a.kind {
	case argSlot:
		return fmt.Sprintf("$%d", a.n)
	case argFD:
		return "<" + a.text + ">"
	case argText:
		return fmt.Sprintf("%q", a.text)
	case argMem:
		if len(bytes.Trim(a.mem, "\x00")) == 0 {
			return fmt.Sprintf("0*%d", len(a.mem))
		}
		return fmt.Sprintf("%x", a.mem)
	case argVec:
		return fmt.Sprintf("%q", a.vec)
	case argProg:
		return "filter"
	}
	if a.n > 4096 {
		return fmt.Sprintf("%#x", a.n)
	}
	return fmt.Sprint(a.n)
}

// machine is a bound program: one block of memory that the child walks.
type machine struct {
	ops    []machineOp
	slots  []uintptr
	arena  []byte
	used   int
	shared map[string]uintptr
	w      walker
	pidfd  int32 // written by clone
}

// bind turns the program into numbers. fds gives the number of each named descriptor.
func (p *program) bind(fds map[string]int) (*machine, error) {
	m := &machine{ops: make([]machineOp, len(p.steps)), slots: make([]uintptr, p.slots+1), arena: make([]byte, p.memory()), shared: map[string]uintptr{}}
	for i := range p.steps {
		s, o := &p.steps[i], &m.ops[i]
		o.nr, o.flags, o.save = s.nr, s.flags, uint8(s.save)
		copy(o.pass[:], s.pass)
		used := 0
		for j, a := range s.args {
			switch a.kind {
			case argInt:
				o.a[j] = uintptr(a.n)
			case argSlot:
				if used == len(o.slots) {
					return nil, fmt.Errorf("%s %s: too many results as arguments", s.act, s.object)
				}
				o.slots[used], o.arg[used] = uint8(a.n+1), uint8(j)
				used++
			case argFD:
				n, ok := fds[a.text]
				if !ok {
					return nil, fmt.Errorf("%s %s: no descriptor %q", s.act, s.object, a.text)
				}
				o.a[j] = uintptr(n)
			default:
				at, ok := m.shared[s.shared]
				if s.shared == "" || !ok {
					at = m.put(a)
				}
				if s.shared != "" {
					m.shared[s.shared] = at
				}
				o.a[j] = at
			}
		}
	}
	if p.slots > 250 || m.used > len(m.arena) {
		return nil, fmt.Errorf("sandbox: program too large (%d results)", p.slots)
	}
	m.w = walker{ops: unsafe.Pointer(&m.ops[0]), n: uintptr(len(m.ops)),
		slots: unsafe.Pointer(&m.slots[0]), arena: unsafe.Pointer(&m.arena[0])}
	return m, nil
}

func aligned(n int) int { return (n + 7) &^ 7 }

// memory is the size of everything that arguments point to.
func (p *program) memory() (n int) {
	for i := range p.steps {
		for _, a := range p.steps[i].args {
			switch a.kind {
			case argText:
				n += aligned(len(a.text) + 1)
			case argMem:
				n += aligned(len(a.mem))
			case argProg:
				n += aligned(len(a.mem)) + 16
			case argVec:
				n += 8 * (len(a.vec) + 1)
				for _, s := range a.vec {
					n += aligned(len(s) + 1)
				}
			}
		}
	}
	return n + 8
}

func (m *machine) bytes(b string, room int) uintptr {
	at := m.used
	m.used += aligned(room)
	copy(m.arena[at:], b)
	return m.addr(at)
}

// addr is the address of arena[at]. Heap memory does not move, and the caller keeps m
// alive until the child has its copy.
func (m *machine) addr(at int) uintptr { return uintptr(unsafe.Pointer(&m.arena[at])) }

func (m *machine) put(a arg) uintptr {
	switch a.kind {
	case argText:
		return m.bytes(a.text, len(a.text)+1)
	case argMem:
		return m.bytes(string(a.mem), len(a.mem))
	case argProg:
		code := m.bytes(string(a.mem), len(a.mem))
		at := m.used
		m.used += 16
		binary.NativeEndian.PutUint16(m.arena[at:], uint16(len(a.mem)/8))
		binary.NativeEndian.PutUint64(m.arena[at+8:], uint64(code))
		return m.addr(at)
	}
	at := m.used
	m.used += 8 * (len(a.vec) + 1)
	for i, s := range a.vec {
		binary.NativeEndian.PutUint64(m.arena[at+8*i:], uint64(m.bytes(s, len(s)+1)))
	}
	return m.addr(at)
}
