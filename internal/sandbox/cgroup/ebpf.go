package cgroup

// Device rules on v2: one small eBPF program per group, built and attached by hand.

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Fields of struct bpf_cgroup_dev_ctx (linux/bpf.h): u32 access_type (access<<16 | type), major, minor.
const (
	devBlock, devChar      = 1, 2
	accessMknod            = 1
	accessRead             = 2
	accessWrite            = 4
	offType, offMaj, offMi = 0, 4, 8
)

// insn encodes one eBPF instruction.
func insn(code, dst, src uint8, off int16, imm int32) []byte {
	b := make([]byte, 8)
	b[0], b[1] = code, src<<4|dst
	binary.NativeEndian.PutUint16(b[2:], uint16(off))
	binary.NativeEndian.PutUint32(b[4:], uint32(imm))
	return b
}

const (
	ldxW    = unix.BPF_LDX | unix.BPF_W | 0x60 // BPF_MEM
	movReg  = 0xbf
	movImm  = 0xb7
	and32   = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	rsh32   = unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K
	jne     = 0x55 // BPF_JMP | BPF_JNE | BPF_K
	jneReg  = 0x5d
	bpfExit = 0x95
)

// deviceProgram evaluates the rules last to first: the last one that matches decides, which is
// what playing a list in order means. Registers: r2 type, r3 access, r4 major, r5 minor.
func deviceProgram(rules []specs.LinuxDeviceCgroup) []byte {
	var out []byte
	add := func(i []byte) { out = append(out, i...) }
	add(insn(ldxW, 2, 1, offType, 0))
	add(insn(movReg, 3, 2, 0, 0))
	add(insn(and32, 2, 0, 0, 0xffff))
	add(insn(rsh32, 3, 0, 0, 16))
	add(insn(ldxW, 4, 1, offMaj, 0))
	add(insn(ldxW, 5, 1, offMi, 0))
	for i := len(rules) - 1; i >= 0; i-- {
		r := &rules[i]
		body := ruleBody(r)
		add(body)
		if wide(r) == "a" {
			return out
		}
	}
	add(insn(movImm, 0, 0, 0, 0))
	add(insn(bpfExit, 0, 0, 0, 0))
	return out
}

// ruleBody tests one rule and returns its verdict, or falls through.
func ruleBody(r *specs.LinuxDeviceCgroup) []byte {
	verdict := int32(0)
	if r.Allow {
		verdict = 1
	}
	var tests [][]byte // each a sequence ending in a jump whose offset is set below
	if t := wide(r); t != "a" {
		n := int32(devChar)
		if t == "b" {
			n = devBlock
		}
		tests = append(tests, insn(jne, 2, 0, 0, n))
		if mask := accessMask(r.Access); mask != accessMknod|accessRead|accessWrite {
			// Allowing: all that is asked must be in the rule. Denying: anything of it.
			if r.Allow {
				tests = append(tests, append(append(insn(movReg, 1, 3, 0, 0), insn(and32, 1, 0, 0, mask)...), insn(jneReg, 1, 3, 0, 0)...))
			} else {
				tests = append(tests, append(append(insn(movReg, 1, 3, 0, 0), insn(and32, 1, 0, 0, mask)...), insn(0x15, 1, 0, 0, 0)...))
			}
		}
		if r.Major != nil && *r.Major >= 0 {
			tests = append(tests, insn(jne, 4, 0, 0, int32(*r.Major)))
		}
		if r.Minor != nil && *r.Minor >= 0 {
			tests = append(tests, insn(jne, 5, 0, 0, int32(*r.Minor)))
		}
	}
	end := append(insn(movImm, 0, 0, 0, verdict), insn(bpfExit, 0, 0, 0, 0)...)
	total := len(end)
	for _, t := range tests {
		total += len(t)
	}
	var out []byte
	for _, t := range tests {
		out = append(out, t...)
		binary.NativeEndian.PutUint16(out[len(out)-6:], uint16((total-len(out))/8))
	}
	return append(out, end...)
}

func accessMask(a string) (m int32) {
	if a == "" {
		a = "rwm"
	}
	for _, c := range a {
		switch c {
		case 'r':
			m |= accessRead
		case 'w':
			m |= accessWrite
		case 'm':
			m |= accessMknod
		}
	}
	return m
}

// attachDevices loads the program for rules and attaches it to the group at dir.
func attachDevices(dir int, rules []specs.LinuxDeviceCgroup) error {
	fd, err := loadDevices(deviceProgram(rules))
	if err != nil {
		return fmt.Errorf("load device rules: %w", err)
	}
	defer unix.Close(fd)
	attach := struct{ target, prog, typ, flags uint32 }{uint32(dir), uint32(fd), unix.BPF_CGROUP_DEVICE, unix.BPF_F_ALLOW_MULTI}
	if _, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attach), unsafe.Sizeof(attach)); err != nil {
		return fmt.Errorf("attach device rules: %w", err)
	}
	return nil
}

// progLoad is the part of union bpf_attr (linux/bpf.h) for BPF_PROG_LOAD. Addresses are pointers, since what they lead to
// may move with the stack until the call.
type progLoad struct {
	progType, insnCount uint32
	insns, license      *byte
	logLevel, logSize   uint32
	log                 *byte
	kernVersion, flags  uint32
	name                [16]byte
}

// loadDevices gives the verified program's descriptor.
func loadDevices(code []byte) (int, error) {
	license := []byte("Apache\x00")
	load := progLoad{progType: unix.BPF_PROG_TYPE_CGROUP_DEVICE, insnCount: uint32(len(code) / 8), insns: &code[0], license: &license[0]}
	copy(load.name[:], "keg_devices")
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&load), unsafe.Sizeof(load))
	if err != nil {
		return loadWithLog(&load, err)
	}
	return fd, nil
}

// loadWithLog tries once more for the verifier's words; asked for at once, a log that overflows is an error. It has a
// function of its own because the log is on the stack, which grows for good.
func loadWithLog(load *progLoad, first error) (int, error) {
	log := make([]byte, 64<<10)
	load.logLevel, load.logSize, load.log = 1, uint32(len(log)), &log[0]
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(load), unsafe.Sizeof(*load))
	if err != nil {
		return -1, fmt.Errorf("%w (%s)", first, unix.ByteSliceToString(log))
	}
	return fd, nil
}

func bpf(cmd int, attr unsafe.Pointer, size uintptr) (int, error) {
	for {
		r, _, e := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(attr), size)
		if e == unix.EAGAIN || e == unix.EINTR { // the verifier was interrupted
			continue
		}
		if e != 0 {
			return -1, e
		}
		return int(r), nil
	}
}
