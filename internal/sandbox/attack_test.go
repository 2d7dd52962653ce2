package sandbox

// Attacks that others published, each beside what must keep working. The numbers in brackets are CVEs.

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A peer swaps a directory of a shared volume for a link to the host while mount targets in it are
// looked up (2021-30465, 2023-28642, 2024-45310). Whoever wins, nothing outside changes.
func TestRacingMountTargets(t *testing.T) {
	root := busyRoot(t)
	outside, shared, data := t.TempDir(), t.TempDir(), t.TempDir()
	os.WriteFile(filepath.Join(data, "mark"), []byte("mark"), 0o644)
	os.Mkdir(filepath.Join(shared, "dir"), 0o755)
	os.Symlink(outside, filepath.Join(shared, "link"))
	host, _ := os.ReadFile("/proc/self/mountinfo")
	stop := make(chan struct{})
	var racer sync.WaitGroup
	racer.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, filepath.Join(shared, "dir"), unix.AT_FDCWD, filepath.Join(shared, "link"), unix.RENAME_EXCHANGE)
			}
		}
	})
	rounds := 100
	if os.Getenv("KEG_SOAK") != "" {
		rounds = 2000
	}
	fine := 0
	for range rounds {
		s := dockerSpec("true")
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/vol", Type: "bind", Source: shared, Options: []string{"bind"}},
			specs.Mount{Destination: "/vol/dir/made/deep", Type: "bind", Source: data, Options: []string{"bind"}},
			specs.Mount{Destination: "/vol/dir/tmp", Type: "tmpfs", Source: "tmpfs"})
		s.Linux.Devices = []specs.LinuxDevice{{Path: "/vol/dir/null", Type: "c", Major: 1, Minor: 3}}
		s.Process.Cwd = "/vol/dir/work"
		if _, err := run(t, s, options(t, root)); err == nil {
			fine++
		}
	}
	close(stop)
	racer.Wait()
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("made outside: %v", left)
	}
	if now, _ := os.ReadFile("/proc/self/mountinfo"); string(now) != string(host) {
		t.Error("the host's mounts changed")
	}
	t.Logf("%d of %d starts succeeded", fine, rounds)
	out := must(t, root, "cat /vol/dir/made/deep/mark", func(s *specs.Spec) {
		os.RemoveAll(filepath.Join(shared, "link"))
		os.RemoveAll(filepath.Join(shared, "dir"))
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/vol", Type: "bind", Source: shared, Options: []string{"bind"}},
			specs.Mount{Destination: "/vol/dir/made/deep", Type: "bind", Source: data, Options: []string{"bind"}})
	})
	if out != "mark" {
		t.Errorf("a quiet volume: %q", out)
	}
}

// What a bundle puts over /proc would redirect the engine's own writes there (2025-52881).
func TestWritesToProcAreNotRedirected(t *testing.T) {
	root := busyRoot(t)
	core, _ := os.ReadFile("/proc/sys/kernel/core_pattern")
	src := t.TempDir()
	os.Symlink("/proc/sys/kernel/core_pattern", filepath.Join(src, "forwarding"))
	for _, m := range []specs.Mount{
		{Destination: "/proc/self/attr", Type: "tmpfs", Source: "tmpfs"},
		{Destination: "/proc/sys/net", Type: "tmpfs", Source: "tmpfs"},
		{Destination: "/proc/sys/net/ipv4", Type: "bind", Source: src, Options: []string{"bind"}},
		{Destination: "/proc/thread-self/attr", Type: "bind", Source: src, Options: []string{"bind"}},
		{Destination: "/p/sys", Type: "tmpfs", Source: "tmpfs"}, // a link of the image to /proc
	} {
		os.Symlink("proc", filepath.Join(root, "p"))
		s := dockerSpec("true")
		s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
		s.Mounts = append(s.Mounts, m)
		if _, err := run(t, s, options(t, root)); err == nil {
			t.Errorf("%s on %s was accepted", m.Type, m.Destination)
		}
	}
	// The root itself has a proc full of links: it is covered before anything is written.
	os.MkdirAll(filepath.Join(root, "proc/sys/net/ipv4"), 0o755)
	os.Symlink("/proc/sys/kernel/core_pattern", filepath.Join(root, "proc/sys/net/ipv4/ip_forward"))
	out := must(t, root, "cat /proc/sys/net/ipv4/ip_forward", func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"} })
	if out != "1" {
		t.Errorf("an honest sysctl: %q", out)
	}
	if now, _ := os.ReadFile("/proc/sys/kernel/core_pattern"); string(now) != string(core) {
		t.Errorf("core_pattern is %q", now)
	}
}

// Files that the engine mounts over an image's own follow its links inside only; a home directory with
// a line break forges no account (2024-9341, 2025-9566).
func TestEngineFilesStayInside(t *testing.T) {
	root := busyRoot(t)
	canary, hosts := filepath.Join(t.TempDir(), "canary"), filepath.Join(t.TempDir(), "hosts")
	os.WriteFile(canary, []byte("canary"), 0o644)
	os.WriteFile(hosts, []byte("ours"), 0o644)
	up := strings.Repeat("../", 30) + canary[1:]
	names := map[string]string{"hosts": canary, "hostname": up, "resolv.conf": "/proc/self/root" + canary, "mtab": "/proc/1/cwd" + canary}
	var ms []specs.Mount
	for n, to := range names {
		os.Symlink(to, filepath.Join(root, "etc", n))
		ms = append(ms, specs.Mount{Destination: "/etc/" + n, Type: "bind", Source: hosts, Options: []string{"bind"}})
	}
	for _, m := range ms {
		s := dockerSpec("true")
		s.Mounts = append(s.Mounts, m)
		_, err := run(t, s, options(t, root))
		if inside := !strings.HasPrefix(names[filepath.Base(m.Destination)], "/proc/"); inside && err != nil {
			t.Errorf("%s: %v", m.Destination, err)
		}
	}
	if out := must(t, root, "cat /etc/hosts /etc/hostname; echo $HOME", func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/etc/hosts", Type: "bind", Source: hosts, Options: []string{"bind"}},
			specs.Mount{Destination: "/etc/hostname", Type: "bind", Source: hosts, Options: []string{"bind"}})
		s.Process.Env = append(s.Process.Env, "HOME=/a\nroot2::0:0")
	}); out != "oursours/a root2::0:0" {
		t.Errorf("%q", out)
	}
	if b, _ := os.ReadFile(canary); string(b) != "canary" {
		t.Errorf("the canary is %q", b)
	}
	if b, _ := os.ReadFile(filepath.Join(root, "etc/passwd")); strings.Contains(string(b), "root2") {
		t.Error("an account was forged")
	}
}

// int80 is a static program that makes one 32-bit system call with the arguments a and b, and exits
// with its negated result: 0 is success. A 32-bit process is not needed: the call's table is.
func int80(nr, a, b uint32) []byte {
	const base = 0x400000
	code := []byte{0xb8, 0, 0, 0, 0, 0xbb, 0, 0, 0, 0, 0xb9, 0, 0, 0, 0, // mov eax, nr; mov ebx, a; mov ecx, b
		0xcd, 0x80, // int 0x80
		0x31, 0xff, 0x85, 0xc0, 0x79, 0x04, // xor edi, edi; test eax, eax; jns +4
		0x29, 0xc7, 0x90, 0x90, // sub edi, eax
		0xb8, 0xe7, 0, 0, 0, 0x0f, 0x05} // mov eax, exit_group; syscall
	binary.LittleEndian.PutUint32(code[1:], nr)
	binary.LittleEndian.PutUint32(code[6:], a)
	binary.LittleEndian.PutUint32(code[11:], b)
	f := make([]byte, 64+56, 512)
	copy(f, "\x7fELF\x02\x01\x01")
	put := func(at int, v uint64, size int) {
		for i := range size {
			f[at+i] = byte(v >> (8 * i))
		}
	}
	put(16, 2, 2)        // ET_EXEC
	put(18, 62, 2)       // x86-64
	put(20, 1, 4)        // version
	put(24, base+120, 8) // entry
	put(32, 64, 8)       // program headers
	put(52, 64, 2)
	put(54, 56, 2)
	put(56, 1, 2)
	put(64, 1, 4) // PT_LOAD
	put(68, 5, 4) // r-x
	put(80, base, 8)
	put(88, base, 8)
	put(112, 0x1000, 8)
	f = append(f, code...)
	for len(f)%8 != 0 {
		f = append(f, 0)
	}
	// socketcall's arguments: family, type, protocol.
	args := uint64(len(f))
	f = binary.LittleEndian.AppendUint32(f, b)
	f = binary.LittleEndian.AppendUint32(f, 5) // SOCK_SEQPACKET
	f = binary.LittleEndian.AppendUint32(f, 0)
	if nr == 102 {
		binary.LittleEndian.PutUint32(f[64+56+11:], uint32(base+args))
	}
	put(96, uint64(len(f)), 8)
	put(104, uint64(len(f)), 8)
	return f
}

// The 32-bit door to the kernel is guarded as the other (2022-0185, 2026-31431): socketcall hides its
// arguments from filters, so that AF_ALG and AF_VSOCK could be had through it.
func TestThirtyTwoBitCalls(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("int 0x80 is of x86")
	}
	root := busyRoot(t)
	for _, c := range []struct {
		name     string
		nr, a, b uint32
		open     bool // for a container without a filter
		closed   []unix.Errno
	}{
		{"socketcall AF_ALG", 102, 1, unix.AF_ALG, true, []unix.Errno{unix.ENOSYS, unix.EPERM}},
		{"socketcall AF_UNIX", 102, 1, unix.AF_UNIX, true, []unix.Errno{unix.ENOSYS, unix.EPERM}},
		{"socket AF_VSOCK", 359, unix.AF_VSOCK, 1, true, []unix.Errno{unix.EPERM, unix.EAFNOSUPPORT, unix.ENOSYS}},
		{"socket AF_ALG", 359, unix.AF_ALG, 5, true, []unix.Errno{unix.EPERM, unix.EAFNOSUPPORT, unix.ENOSYS}},
		{"unshare", 310, unix.CLONE_NEWNS, 0, true, []unix.Errno{unix.EPERM}},
		{"io_uring_setup", 425, 1, 0, false, []unix.Errno{unix.EPERM, unix.ENOSYS}},
		{"bpf", 357, 0, 0, false, []unix.Errno{unix.EPERM}},
		{"an unknown call", 511, 0, 0, false, []unix.Errno{unix.ENOSYS}},
		{"getpid", 20, 0, 0, true, nil},
		{"socket AF_UNIX", 359, unix.AF_UNIX, 1, true, nil},
	} {
		os.Remove(filepath.Join(root, "int80"))
		if err := os.WriteFile(filepath.Join(root, "int80"), int80(c.nr, c.a, c.b), 0o755); err != nil {
			t.Fatal(err)
		}
		s := dockerSpec("/int80")
		r, err := run(t, s, options(t, root))
		if err != nil {
			t.Fatal(c.name, err)
		}
		if r.code == 128+int(unix.SIGSEGV) {
			t.Skip("this kernel has no 32-bit calls")
		}
		ok := c.closed == nil && r.code == 0
		for _, e := range c.closed {
			ok = ok || r.code == int(e)
		}
		if !ok {
			t.Errorf("%s: exit %d (%v)", c.name, r.code, unix.Errno(r.code))
		}
	}
	// The program does call the kernel: without a filter it says what the kernel says.
	os.WriteFile(filepath.Join(root, "int80"), int80(102, 1, unix.AF_UNIX), 0o755)
	s := dockerSpec("/int80")
	s.Linux.Seccomp = nil
	o := options(t, root)
	o.DefaultSeccomp = false
	if r, err := run(t, s, o); err != nil || r.code != 0 {
		t.Errorf("unconfined socketcall: %d %v", r.code, err)
	}
}

// One spec, many containers: what one has in its environment no other has (2020-14370, 2021-3602).
func TestEnvironmentsDoNotMix(t *testing.T) {
	root := busyRoot(t)
	base := dockerSpec("sh", "-c", "env | grep ^ONLY_ | sort")
	base.Process.Env = append(make([]string, 0, 16), base.Process.Env...) // room that appends could share
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			s := *base
			p := *base.Process
			p.Env = append(append([]string{}, base.Process.Env...), fmt.Sprintf("ONLY_%d=x", i))
			s.Process = &p
			o := options(t, root)
			o.Cgroup += fmt.Sprint("-", i)
			r, err := run(t, &s, o)
			if want := fmt.Sprintf("ONLY_%d=x", i); err != nil || strings.TrimSpace(r.out) != want {
				t.Errorf("%d: %q %v", i, r.out, err)
			}
		})
	}
	all.Wait()
}
