package rootless

// Entering a user namespace. setns(2) refuses that to a process with several threads, which every Go
// program is; one that was just executed has one thread. So keg executes a file in memory that
// holds nothing but the function joiner of join_*.s and its parameters; it joins and executes keg.

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

const (
	base     = 0x400000 // where the file is mapped
	codeAt   = 0x100    // in the file
	paramsAt = 0x400    // joiner knows this one
	wordsAt  = 0x500
)

// joinerCode is the address of joiner in this process.
func joinerCode() *byte

func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }

// join replaces this process; lock and the descriptors of the namespaces survive the first execve.
func (n *namespaces) join(lock *os.File, args, env []string) error {
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	path, _ := os.Readlink("/proc/self/exe")
	cwd, err := os.Getwd()
	if err != nil {
		cwd = "/"
	}
	for _, f := range []*os.File{n.user, n.mnt, exe, lock} {
		if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0); err != nil {
			return os.NewSyscallError("fcntl", err)
		}
	}
	file := joinFile(int(n.user.Fd()), int(n.mnt.Fd()), int(exe.Fd()), path, cwd)
	err = execMemory(file, args, env)
	runtime.KeepAlive(exe)
	return fmt.Errorf("enter the user namespace: %w", err)
}

func execMemory(file []byte, args, env []string) error {
	fd, err := unix.MemfdCreate("keg", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("keg", unix.MFD_CLOEXEC)
	}
	if errors.Is(err, unix.EACCES) {
		return fault.Deniedf("execute a file in memory: %w; allow it with: sysctl vm.memfd_noexec=1", err)
	}
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	if _, err := unix.Write(fd, file); err != nil {
		return os.NewSyscallError("write", err)
	}
	return os.NewSyscallError("execve", unix.Exec(fmt.Sprintf("/proc/self/fd/%d", fd), args, env))
}

// joinFile is an ELF executable of one segment: header, joiner, parameters, words.
func joinFile(user, mnt, exe int, path, cwd string) []byte {
	var words bytes.Buffer
	word := func(s string) uint64 {
		at := base + wordsAt + uint64(words.Len())
		words.WriteString(s + "\x00")
		return at
	}
	const sorry = "keg: cannot enter the user namespace of your containers (setns or execve was refused)\n"
	params := []uint64{uint64(user), uint64(mnt), uint64(exe), word(cwd), word(path), word(""), word(sorry), uint64(len(sorry))}
	out := make([]byte, wordsAt, wordsAt+words.Len())
	header(out, uint64(wordsAt+words.Len()))
	// What follows the function in memory is copied along and never reached.
	copy(out[codeAt:paramsAt], unsafe.Slice(joinerCode(), paramsAt-codeAt))
	for i, v := range params {
		binary.LittleEndian.PutUint64(out[paramsAt+8*i:], v)
	}
	return append(out, words.Bytes()...)
}

// header writes what elf(5) wants: Elf64_Ehdr, and one Elf64_Phdr that maps the file read-only and executable.
func header(out []byte, size uint64) {
	le := binary.LittleEndian
	copy(out, "\x7fELF\x02\x01\x01") // 64 bits, little-endian, version 1
	le.PutUint16(out[16:], 2)        // ET_EXEC
	le.PutUint16(out[18:], machine())
	le.PutUint32(out[20:], 1)
	le.PutUint64(out[24:], base+codeAt)
	le.PutUint64(out[32:], 64) // where the program header is
	le.PutUint16(out[52:], 64)
	le.PutUint16(out[54:], 56)
	le.PutUint16(out[56:], 1)
	ph := out[64:]
	le.PutUint32(ph, 1)     // PT_LOAD
	le.PutUint32(ph[4:], 5) // PF_R|PF_X
	le.PutUint64(ph[16:], base)
	le.PutUint64(ph[24:], base)
	le.PutUint64(ph[32:], size)
	le.PutUint64(ph[40:], size)
	le.PutUint64(ph[48:], 0x1000)
}

func machine() uint16 {
	if runtime.GOARCH == "arm64" {
		return 183 // EM_AARCH64
	}
	return 62 // EM_X86_64
}
