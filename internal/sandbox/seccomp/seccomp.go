// Package seccomp compiles an OCI seccomp policy to classic BPF and keeps the default one.
//
//	seccomp.go   what callers use: Default, Load, Compile, and the cache of compiled filters
//	policy.go    a policy by architecture and number: which rules decide a call
//	compile.go   that, as a binary search tree in BPF
//	table.go     system call numbers (syscalls.txt)
package seccomp

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	profile "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/disk"
	"keg/internal/fault"
	"keg/internal/linux"
)

// Filter is a compiled policy: struct sock_filter after struct sock_filter, in this machine's
// byte order, and the flags of seccomp(2).
type Filter struct {
	Code  []byte
	Flags uint
}

// version names what the compiler and the built-in profile make of their input; a cached
// filter of another version is not used.
const version = "1 moby/profiles/seccomp v0.3.0"

// Default returns the filter of the built-in profile for a process with these capabilities
// in its bounding set. cache is a directory, or "".
func Default(caps []string, cache string) (Filter, error) {
	sorted := slices.Sorted(slices.Values(caps))
	return cached(cache, "default "+strings.Join(sorted, " "), func() (*specs.LinuxSeccomp, error) { return DefaultPolicy(caps) })
}

// Compile returns the filter of a policy.
func Compile(p *specs.LinuxSeccomp, cache string) (Filter, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return Filter{}, err
	}
	return cached(cache, "policy "+string(b), func() (*specs.LinuxSeccomp, error) { return p, nil })
}

// DefaultPolicy is Docker's default profile for these capabilities, with two doors closed that
// it leaves open: socketcall, which hides the address family of a 32-bit program's socket from the
// filter, and the kernel's audit socket, which answers EPERM where programs expect EINVAL.
func DefaultPolicy(caps []string) (*specs.LinuxSeccomp, error) {
	p, err := profile.GetDefaultProfile(specFor(caps))
	if err != nil {
		return nil, fmt.Errorf("build the default seccomp profile: %w", err)
	}
	for i := range p.Syscalls {
		s := &p.Syscalls[i]
		s.Names = slices.DeleteFunc(slices.Clone(s.Names), func(n string) bool { return n == "socketcall" })
	}
	if !slices.Contains(caps, "CAP_AUDIT_WRITE") {
		invalid := uint(unix.EINVAL)
		p.Syscalls = append([]specs.LinuxSyscall{{Names: []string{"socket"}, Action: specs.ActErrno, ErrnoRet: &invalid,
			Args: []specs.LinuxSeccompArg{
				{Index: 0, Value: unix.AF_NETLINK, Op: specs.OpEqualTo},
				{Index: 2, Value: unix.NETLINK_AUDIT, Op: specs.OpEqualTo}}}}, p.Syscalls...)
	}
	return p, nil
}

// Load reads a profile in Docker's JSON format.
func Load(body []byte, caps []string) (*specs.LinuxSeccomp, error) {
	p, err := profile.LoadProfile(string(body), specFor(caps))
	if err != nil {
		return nil, fault.Invalidf("seccomp profile: %w", err)
	}
	if p == nil {
		return nil, nil
	}
	if _, err := build(p); err != nil {
		return nil, err
	}
	return p, nil
}

func specFor(caps []string) *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}, Linux: &specs.Linux{}}
}

// cached returns the compiled filter from the cache, or compiles it and remembers it. A cache
// that cannot be written costs a millisecond, not the container.
func cached(dir, what string, policy func() (*specs.LinuxSeccomp, error)) (Filter, error) {
	key := keyFor(what)
	file := ""
	if dir != "" {
		file = filepath.Join(dir, "seccomp-"+hex.EncodeToString(key[:16]))
		if f, ok := readCache(file, key[:]); ok {
			return f, nil
		}
	}
	p, err := policy()
	if err != nil {
		return Filter{}, err
	}
	f, err := build(p)
	if err == nil && file != "" {
		_ = disk.PutVolatile(file, sealed(f, key[:]), 0o600)
	}
	return f, err
}

// keyFor names a filter: what it is made of, by whom, for which machine and kernel.
func keyFor(what string) [sha256.Size]byte {
	return sha256.Sum256([]byte(strings.Join([]string{version, runtime.GOARCH, linux.Kernel(), what}, "\x00")))
}

// sealed is a cache file: digest of the rest with the key, flags, code.
func sealed(f Filter, key []byte) []byte {
	body := binary.LittleEndian.AppendUint64(nil, uint64(f.Flags))
	body = append(body, f.Code...)
	return append(digest(key, body), body...)
}

func digest(key, body []byte) []byte {
	h := sha256.New()
	h.Write(key)
	h.Write(body)
	return h.Sum(nil)
}

// readCache refuses a file that somebody else may have written: a filter is executed by the kernel.
func readCache(file string, key []byte) (Filter, bool) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return Filter{}, false
	}
	defer f.Close()
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || st.Mode&(unix.S_IFMT|0o077) != unix.S_IFREG || int(st.Uid) != os.Geteuid() {
		return Filter{}, false
	}
	if st.Size < sha256.Size+16 || st.Size > 1<<20 || (st.Size-sha256.Size)%8 != 0 {
		return Filter{}, false
	}
	b := make([]byte, st.Size)
	if _, err := io.ReadFull(f, b); err != nil {
		return Filter{}, false
	}
	body := b[sha256.Size:]
	if !bytes.Equal(b[:sha256.Size], digest(key, body)) {
		return Filter{}, false
	}
	return Filter{Code: body[8:], Flags: uint(binary.LittleEndian.Uint64(body))}, true
}
