package seccomp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	profile "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

// call is struct seccomp_data.
type call struct {
	nr, arch uint32
	args     [6]uint64
}

// evaluate runs a filter as the kernel does (net/core/filter.c), for the instructions that
// the kernel allows in one and that we emit; anything else fails the test.
func evaluate(t testing.TB, code []byte, c call) uint32 {
	t.Helper()
	var data [64]byte
	binary.NativeEndian.PutUint32(data[0:], c.nr)
	binary.NativeEndian.PutUint32(data[4:], c.arch)
	for i, a := range c.args {
		binary.NativeEndian.PutUint64(data[16+8*i:], a)
	}
	var acc uint32
	for pc := 0; pc < len(code)/8; pc++ {
		i := code[8*pc:]
		op, jt, jf, k := binary.NativeEndian.Uint16(i), i[2], i[3], binary.NativeEndian.Uint32(i[4:])
		branch := func(b bool) {
			if b {
				pc += int(jt)
			} else {
				pc += int(jf)
			}
		}
		switch op {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			if k%4 != 0 || k >= 64 {
				t.Fatalf("load at %d", k)
			}
			acc = binary.NativeEndian.Uint32(data[k:])
		case unix.BPF_JMP | unix.BPF_JEQ:
			branch(acc == k)
		case unix.BPF_JMP | unix.BPF_JGT:
			branch(acc > k)
		case unix.BPF_JMP | unix.BPF_JGE:
			branch(acc >= k)
		case unix.BPF_JMP | unix.BPF_JSET:
			branch(acc&k != 0)
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(k)
		case unix.BPF_ALU | unix.BPF_AND:
			acc &= k
		case unix.BPF_RET:
			return k
		default:
			t.Fatalf("instruction %d: unknown code %#x", pc, op)
		}
	}
	t.Fatal("fell off the end")
	return 0
}

// holds is a comparison in the words of libseccomp's manual (seccomp_rule_add(3)).
func holds(a specs.LinuxSeccompArg, v uint64) bool {
	switch a.Op {
	case specs.OpEqualTo:
		return v == a.Value
	case specs.OpNotEqual:
		return v != a.Value
	case specs.OpMaskedEqual:
		return v&a.Value == a.ValueTwo
	case specs.OpGreaterThan:
		return v > a.Value
	case specs.OpGreaterEqual:
		return v >= a.Value
	case specs.OpLessThan:
		return v < a.Value
	case specs.OpLessEqual:
		return v <= a.Value
	}
	panic(a.Op)
}

func ret(a specs.LinuxSeccompAction, errno *uint) uint32 {
	n := uint32(1)
	if errno != nil {
		n = uint32(*errno)
	}
	return map[specs.LinuxSeccompAction]uint32{specs.ActAllow: 0x7fff0000, specs.ActErrno: 0x00050000 | n, specs.ActKillProcess: 0x80000000,
		specs.ActKill: 0, specs.ActKillThread: 0, specs.ActTrap: 0x00030000, specs.ActLog: 0x7ffc0000, specs.ActTrace: 0x7ff00000 | n}[a]
}

// meaning decides one call straight from the policy, name by name, without any of the compiler's steps.
func meaning(p *specs.LinuxSeccomp, abi string, names map[uint32]string, newest uint32, c call) uint32 {
	fallback := ret(p.DefaultAction, p.DefaultErrnoRet)
	nr := c.nr
	if abi == "x32" {
		nr &^= 0x40000000
	}
	name, ok := names[nr]
	if !ok || nr > newest && nr < 0xf0000 {
		return 0x00050000 | uint32(unix.ENOSYS)
	}
	for _, s := range p.Syscalls {
		act := ret(s.Action, s.ErrnoRet)
		if act == fallback || !slices.Contains(s.Names, name) {
			continue
		}
		all, any, twice := true, false, false
		seen := map[uint]bool{}
		for _, a := range s.Args {
			h := holds(a, c.args[a.Index])
			all, any = all && h, any || h
			twice = twice || seen[a.Index]
			seen[a.Index] = true
		}
		if len(s.Args) == 0 || !twice && all || twice && any {
			return act
		}
	}
	return fallback
}

var arches = map[string]uint32{"x86_64": unix.AUDIT_ARCH_X86_64, "x86": unix.AUDIT_ARCH_I386, "x32": unix.AUDIT_ARCH_X86_64,
	"aarch64": unix.AUDIT_ARCH_AARCH64, "arm": unix.AUDIT_ARCH_ARM}

func covered() []string {
	if runtime.GOARCH == "arm64" {
		return []string{"aarch64", "arm"}
	}
	return []string{"x86_64", "x86", "x32"}
}

// compareAll checks the compiled policy for every number of every interface and interesting arguments.
func compareAll(t *testing.T, p *specs.LinuxSeccomp) {
	t.Helper()
	f, err := build(p)
	if err != nil {
		t.Fatal(err)
	}
	values := interesting(p)
	rng := rand.New(rand.NewSource(1))
	checks := 0
	for _, abi := range covered() {
		names, newest := map[uint32]string{}, uint32(0)
		for name, n := range tables()[abi] {
			names[n] = name
		}
		for _, s := range p.Syscalls {
			for _, name := range s.Names {
				if n, ok := tables()[abi][name]; ok && n < 0xf0000 {
					newest = max(newest, n)
				}
			}
		}
		var numbers []uint32
		for n := uint32(0); n < 620; n++ {
			numbers = append(numbers, n)
		}
		numbers = append(numbers, 0xf0000, 0xf0001, 0xf0002, 0xf0005, 0xf0006, 0xf0007, 0xffffffff&^0x40000000, 0x3fffffff)
		for _, n := range numbers {
			c := call{nr: n, arch: arches[abi]}
			if abi == "x32" {
				c.nr |= 0x40000000
			}
			rounds := 3
			if hasArgs(p, names[n]) {
				rounds = 400
			}
			for i := 0; i < rounds; i++ {
				for a := range c.args {
					c.args[a] = values[rng.Intn(len(values))]
				}
				got, want := evaluate(t, f.Code, c), meaning(p, abi, names, newest, c)
				if checks++; got != want {
					t.Fatalf("%s %s (%d) %x: filter says %#x, the policy %#x", abi, names[n], n, c.args, got, want)
				}
			}
		}
	}
	for _, arch := range []uint32{0, unix.AUDIT_ARCH_MIPS, unix.AUDIT_ARCH_RISCV64} {
		if got := evaluate(t, f.Code, call{arch: arch}); got != unix.SECCOMP_RET_KILL_PROCESS {
			t.Errorf("architecture %#x: %#x", arch, got)
		}
	}
	t.Logf("%d instructions, %d calls compared", len(f.Code)/8, checks)
}

func hasArgs(p *specs.LinuxSeccomp, name string) bool {
	return slices.ContainsFunc(p.Syscalls, func(s specs.LinuxSyscall) bool { return len(s.Args) > 0 && slices.Contains(s.Names, name) })
}

// interesting are the values around those that the policy compares with.
func interesting(p *specs.LinuxSeccomp) []uint64 {
	out := []uint64{0, 1, 2, 9, 16, 38, 40, 1 << 31, 1<<32 - 1, 1 << 32, 1<<63 + 1, 1<<64 - 1}
	for _, s := range p.Syscalls {
		for _, a := range s.Args {
			for _, v := range []uint64{a.Value, a.ValueTwo} {
				out = append(out, v, v-1, v+1, v|1<<40, v^1<<33)
			}
		}
	}
	return out
}

var dockerCaps = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}

func TestDefaultPolicyCompilesToItsMeaning(t *testing.T) {
	for _, caps := range [][]string{nil, dockerCaps, {"CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_BPF"}} {
		p, err := DefaultPolicy(caps)
		if err != nil {
			t.Fatal(err)
		}
		compareAll(t, p)
	}
}

// The doors that the default must keep closed, and some that it must not close.
func TestDefaultPolicyVerdicts(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("names calls of x86_64")
	}
	f, err := Default(dockerCaps, "")
	if err != nil {
		t.Fatal(err)
	}
	perm, nosys, allow := uint32(0x50001), uint32(0x50000|uint32(unix.ENOSYS)), uint32(0x7fff0000)
	for _, c := range []struct {
		abi, name string
		args      [6]uint64
		want      uint32
	}{
		{"x86_64", "read", [6]uint64{}, allow}, {"x32", "read", [6]uint64{}, allow}, {"x86", "read", [6]uint64{}, allow},
		{"x86_64", "socket", [6]uint64{unix.AF_INET}, allow}, {"x86_64", "socket", [6]uint64{unix.AF_UNIX}, allow},
		{"x86_64", "socket", [6]uint64{unix.AF_ALG}, perm}, {"x86_64", "socket", [6]uint64{unix.AF_VSOCK}, perm},
		{"x86", "socket", [6]uint64{unix.AF_ALG}, perm}, {"x86", "socketcall", [6]uint64{1}, perm},
		{"x86_64", "io_uring_setup", [6]uint64{}, perm}, {"x86_64", "io_uring_enter", [6]uint64{}, perm},
		{"x86_64", "clone3", [6]uint64{}, nosys}, {"x86_64", "clone", [6]uint64{unix.CLONE_NEWUSER}, perm},
		{"x86_64", "clone", [6]uint64{uint64(unix.SIGCHLD)}, allow}, {"x86_64", "unshare", [6]uint64{}, perm},
		{"x86_64", "mount", [6]uint64{}, perm}, {"x86_64", "bpf", [6]uint64{}, perm}, {"x86_64", "keyctl", [6]uint64{}, perm},
		{"x86_64", "personality", [6]uint64{0x20008}, allow}, {"x86_64", "personality", [6]uint64{1}, perm},
		{"x86_64", "mseal", [6]uint64{}, allow}, {"x86_64", "landlock_restrict_self", [6]uint64{}, allow},
	} {
		n := tables()[c.abi][c.name]
		if c.abi == "x32" {
			n |= x32Bit
		}
		if got := evaluate(t, f.Code, call{n, arches[c.abi], c.args}); got != c.want {
			t.Errorf("%s %s %v: %#x, want %#x", c.abi, c.name, c.args, got, c.want)
		}
	}
	if got := evaluate(t, f.Code, call{nr: 3000, arch: unix.AUDIT_ARCH_X86_64}); got != nosys {
		t.Errorf("a call that is not yet invented: %#x", got)
	}
	strict, err := Default(nil, "")
	if err != nil {
		t.Fatal(err)
	}
	audit := call{tables()["x86_64"]["socket"], unix.AUDIT_ARCH_X86_64, [6]uint64{unix.AF_NETLINK, 3, unix.NETLINK_AUDIT}}
	if got := evaluate(t, strict.Code, audit); got != 0x50000|uint32(unix.EINVAL) {
		t.Errorf("the audit socket without CAP_AUDIT_WRITE: %#x", got)
	}
	if got := evaluate(t, f.Code, audit); got != allow {
		t.Errorf("the audit socket with CAP_AUDIT_WRITE: %#x", got)
	}
}

// Policies made at random, with every comparison, several actions and several rules for a call.
func TestRandomPolicies(t *testing.T) {
	ops := []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpMaskedEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpLessThan, specs.OpLessEqual}
	acts := []specs.LinuxSeccompAction{specs.ActAllow, specs.ActErrno, specs.ActKillProcess, specs.ActLog, specs.ActTrap}
	names := []string{"read", "write", "open", "ioctl", "futex", "personality", "socket", "execve", "statx"}
	for seed := int64(0); seed < 30; seed++ {
		rng := rand.New(rand.NewSource(seed))
		p := &specs.LinuxSeccomp{DefaultAction: []specs.LinuxSeccompAction{specs.ActErrno, specs.ActKillProcess}[rng.Intn(2)]}
		p.Architectures = []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32, specs.ArchAARCH64, specs.ArchARM}
		for i := 0; i < 25; i++ {
			s := specs.LinuxSyscall{Names: []string{names[rng.Intn(len(names))], names[rng.Intn(len(names))]}, Action: acts[rng.Intn(len(acts))]}
			if s.Action == specs.ActErrno {
				e := uint(rng.Intn(100) + 2)
				s.ErrnoRet = &e
			}
			for j := rng.Intn(5); j > 0; j-- {
				s.Args = append(s.Args, specs.LinuxSeccompArg{Index: uint(rng.Intn(6)), Op: ops[rng.Intn(len(ops))],
					Value: rng.Uint64() >> uint(rng.Intn(64)), ValueTwo: rng.Uint64() >> uint(rng.Intn(64))})
			}
			p.Syscalls = append(p.Syscalls, s)
		}
		// Only what the machine knows takes part.
		p.Architectures = slices.DeleteFunc(p.Architectures, func(a specs.Arch) bool {
			abi, _ := abiOf(a)
			return !slices.Contains(covered(), abi.name)
		})
		compareAll(t, p)
	}
}

func TestBadPolicies(t *testing.T) {
	big := uint(5000)
	for _, p := range []specs.LinuxSeccomp{
		{DefaultAction: "SCMP_ACT_WHAT"},
		{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActErrno, ErrnoRet: &big}}},
		{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}}}},
		{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Op: "EQ"}}}}},
		{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"X"}},
	} {
		if _, err := Compile(&p, ""); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", p, err)
		}
	}
	if _, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActNotify}, ""); !fault.Is(err, fault.Unsupported) {
		t.Error(err)
	}
	if _, err := Load([]byte("{"), nil); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	if p, err := Load([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_CHOWN"]}}]}`), nil); err != nil || len(p.Syscalls) != 0 {
		t.Error(p, err)
	}
}

func TestCache(t *testing.T) {
	dir := t.TempDir()
	want, err := Default(dockerCaps, dir)
	if err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "seccomp-*"))
	if len(files) != 1 {
		t.Fatal(files)
	}
	file := files[0]
	if st, _ := os.Stat(file); st.Mode().Perm() != 0o600 {
		t.Error(st.Mode())
	}
	key := keyOf(t, file)
	if f, ok := readCache(file, key); !ok || !bytes.Equal(f.Code, want.Code) {
		t.Error("what was written is not read")
	}
	if _, err := Default(nil, dir); err != nil {
		t.Fatal(err)
	}
	if files, _ = filepath.Glob(filepath.Join(dir, "seccomp-*")); len(files) != 2 {
		t.Error("other capabilities use the same filter")
	}
	good, _ := os.ReadFile(file)
	for name, spoil := range map[string]func(){
		"a bit":     func() { b := bytes.Clone(good); b[100] ^= 1; os.WriteFile(file, b, 0o600) },
		"short":     func() { os.WriteFile(file, good[:len(good)-8], 0o600) },
		"empty":     func() { os.WriteFile(file, nil, 0o600) },
		"readable":  func() { os.Chmod(file, 0o644) },
		"a link":    func() { os.Rename(file, file+"x"); os.Symlink(file+"x", file) },
		"a pipe":    func() { unix.Mkfifo(file, 0o600) },
		"allow all": func() { os.WriteFile(file, append(good[:40:40], 6, 0, 0, 0, 0, 0, 0xff, 0x7f), 0o600) },
	} {
		os.Remove(file)
		os.WriteFile(file, good, 0o600)
		spoil()
		if name == "a pipe" {
			os.Remove(file)
			unix.Mkfifo(file, 0o600)
		}
		if _, ok := readCache(file, key); ok {
			t.Errorf("%s: a spoiled file is used", name)
		}
		if f, err := Default(dockerCaps, dir); err != nil || !bytes.Equal(f.Code, want.Code) {
			t.Errorf("%s: %v", name, err)
		}
		if _, ok := readCache(file, key); !ok {
			t.Errorf("%s: not repaired", name)
		}
	}
}

// keyOf finds the key that a file's digest was made with, by trying the one that Default uses.
func keyOf(t *testing.T, file string) []byte {
	t.Helper()
	k := keyFor("default " + strings.Join(slices.Sorted(slices.Values(dockerCaps)), " "))
	if !strings.HasSuffix(file, fmt.Sprintf("%x", k[:16])) {
		t.Fatal("the key is another one")
	}
	return k[:]
}

// Every name of the profile is in the table of some interface, else a rule would silently vanish.
func TestTableKnowsTheProfile(t *testing.T) {
	known := map[string]bool{}
	for _, t := range tables() {
		for name := range t {
			known[name] = true
		}
	}
	for _, s := range profile.DefaultProfile().Syscalls {
		for _, n := range s.Names {
			if !known[n] && !strings.HasPrefix(n, "s390_") && !strings.HasPrefix(n, "riscv_") && n != "swapcontext" {
				t.Errorf("no number for %s", n)
			}
		}
	}
}

func BenchmarkDefault(b *testing.B) {
	dir := b.TempDir()
	for name, cache := range map[string]string{"compiled": "", "cached": dir} {
		b.Run(name, func(b *testing.B) {
			for i := 0; i < b.N; i++ {
				if _, err := Default(dockerCaps, cache); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
