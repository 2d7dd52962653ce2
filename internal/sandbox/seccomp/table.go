package seccomp

// System call numbers by name, for every architecture that a filter may meet.

import (
	_ "embed"
	"strconv"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

//go:embed syscalls.txt
var syscallText string

// x32Bit marks a call of the x32 interface; its architecture is that of x86_64.
const x32Bit = 0x40000000

// abi is one calling interface.
type abi struct {
	name  string // in syscalls.txt
	audit uint32 // AUDIT_ARCH_*
	bit   uint32 // set in every number
}

func abiOf(a specs.Arch) (abi, bool) {
	switch a {
	case specs.ArchX86_64:
		return abi{"x86_64", unix.AUDIT_ARCH_X86_64, 0}, true
	case specs.ArchX86:
		return abi{"x86", unix.AUDIT_ARCH_I386, 0}, true
	case specs.ArchX32:
		return abi{"x32", unix.AUDIT_ARCH_X86_64, x32Bit}, true
	case specs.ArchAARCH64:
		return abi{"aarch64", unix.AUDIT_ARCH_AARCH64, 0}, true
	case specs.ArchARM:
		return abi{"arm", unix.AUDIT_ARCH_ARM, 0}, true
	}
	return abi{}, false
}

// tables holds name -> number by interface. It is read only when a filter is compiled.
var tables = sync.OnceValue(func() map[string]map[string]uint32 {
	all := map[string]map[string]uint32{}
	for line := range strings.Lines(syscallText) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] == "#" {
			continue
		}
		t := make(map[string]uint32, len(f))
		for _, pair := range f[1:] {
			name, n, _ := strings.Cut(pair, "=")
			if v, err := strconv.ParseUint(n, 10, 32); err == nil {
				t[name] = uint32(v)
			}
		}
		all[f[0]] = t
	}
	// x32 shares the numbers of x86_64 except for the calls that have their own.
	x32 := all["x32"]
	for name, n := range all["x86_64"] {
		if _, own := x32[name]; !own && n < 512 {
			x32[name] = n
		}
	}
	return all
})
