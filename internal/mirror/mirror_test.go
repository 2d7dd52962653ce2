package mirror

// A mirror as a container has it: a user namespace of an ordinary user's, here that of ids which nobody has; in it a tree,
// its mirror with shifted ids, and a program with those ids that works with the files.
//
//	test -> inside ("keg" of the user: makes the trees, starts the mirror) -> program (one of programs, root of ids of its own)

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	outer  = 1 << 20 // what the user's root is for the host
	range1 = 3072    // what the program's root is for the user
	size1  = 1024
)

func TestMain(m *testing.M) {
	switch {
	case os.Args[0] == Argv0:
		os.Exit(Main(os.Args[1:]))
	case len(os.Args) == 4 && os.Args[1] == "inside":
		end(inside(os.Args[2], os.Args[3]))
	case len(os.Args) == 4 && os.Args[1] == "program":
		end(programs[os.Args[2]].work(os.Args[3]))
	case len(os.Args) == 2 && os.Args[1] == "hold":
		var b [1]byte
		os.Stdin.Read(b[:])
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func end(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// program is what a container does, and what must be on disk then.
type program struct {
	before func(disk string) error // makes what is there already
	beside func(disk string, stop <-chan struct{})
	work   func(dir string) error
	after  func(disk string) error
}

func self(from, count int, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	ids := []syscall.SysProcIDMap{{HostID: from, Size: count}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, UidMappings: ids, GidMappings: ids,
		GidMappingsEnableSetgroups: true, Credential: &syscall.Credential{}, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// TestPrograms runs each program on the mirror of an overlay, on one with hardly any descriptors, and on that of a directory
// which others may change.
func TestPrograms(t *testing.T) {
	needRoot(t)
	for name := range programs {
		if name == "swapped" {
			continue
		}
		for _, kind := range []string{"overlay", "few", "shared"} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				runProgram(t, name+"/"+kind)
			})
		}
	}
}

// TestSwappedEntries: row RT25 of the threats: who shares a directory with the container puts links to what is outside in the
// place of what the kernel has just looked at.
func TestSwappedEntries(t *testing.T) {
	needRoot(t)
	runProgram(t, "swapped/shared")
}

func needRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, who may map ids; test/script/rootless has an ordinary user's")
	}
	if err := Unsupported(); err != nil {
		t.Skip(err)
	}
}

// TestNoDevice: what the host lacks is named, and how to get it.
func TestNoDevice(t *testing.T) {
	needRoot(t)
	if out := tryProgram(t, "names/nodevice"); !strings.Contains(out, "the host has no /dev/fuse; load the kernel's module with: sudo modprobe fuse") {
		t.Errorf("without /dev/fuse: %q", out)
	}
}

func runProgram(t *testing.T, what string) {
	if out := tryProgram(t, what); out != "" {
		t.Error(out)
	}
}

// tryProgram returns what went wrong.
func tryProgram(t *testing.T, what string) string {
	dir, err := os.MkdirTemp("", "mirror-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chown(dir, outer, outer)); err != nil {
		t.Fatal(err)
	}
	if out, err := self(outer, 1<<16, "inside", what, dir).CombinedOutput(); err != nil {
		return fmt.Sprintf("%v\n%s", err, out)
	}
	return ""
}

// TestNames: what is no name of an entry is refused, whoever sends it.
func TestNames(t *testing.T) {
	for _, s := range []string{"", ".", "..", "/", "a/b", "../x", "/etc/passwd"} {
		if _, _, err := name([]byte(s + "\x00")); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
	if _, _, err := name([]byte("endless")); err == nil {
		t.Error("a name without an end is taken")
	}
	if s, rest, err := name([]byte("...\x00b\x00")); s != "..." || string(rest) != "b\x00" || err != nil {
		t.Errorf("%q %q %v", s, rest, err)
	}
}

func inside(what, dir string) (err error) {
	name, kind, _ := strings.Cut(what, "/")
	hidden := ""
	p := programs[name]
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	disk, shown := filepath.Join(dir, "disk"), filepath.Join(dir, "shown")
	lower, upper := filepath.Join(dir, "lower"), filepath.Join(dir, "upper")
	for _, d := range []string{disk, shown, lower, upper, filepath.Join(dir, "work")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	first := disk
	if kind != "shared" {
		first = lower
	}
	if kind == "few" {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 100, Max: 100}); err != nil {
			return err
		}
	}
	if p.before != nil {
		if err := p.before(first); err != nil {
			return fmt.Errorf("before: %w", err)
		}
	}
	if kind != "shared" {
		err := unix.Mount("keg", disk, "overlay", 0, "lowerdir="+lower+",upperdir="+upper+",workdir="+filepath.Join(dir, "work")+",userxattr,index=off")
		if err != nil {
			return fmt.Errorf("overlay: %w", err)
		}
	}
	if kind == "nodevice" {
		hidden = "/dev"
	}
	m, err := mirrorOn(disk, shown, hidden, kind == "shared")
	if err != nil {
		return err
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		if p.beside != nil {
			p.beside(disk, stop)
		}
	}()
	cmd := self(range1, size1, "program", name, shown)
	out, err := cmd.CombinedOutput()
	close(stop)
	<-stopped
	if err != nil {
		err = fmt.Errorf("the program: %w\n%s", err, out)
	}
	if err == nil && p.after != nil {
		if err = p.after(disk); err != nil {
			err = fmt.Errorf("after: %w", err)
		}
	}
	return errors.Join(err, unix.Unmount(shown, 0), m.Close())
}

func mirrorOn(disk, shown, hidden string, shared bool) (*Mirror, error) {
	holder := self(range1, size1, "hold")
	hold, err := holder.StdinPipe()
	if err != nil {
		return nil, err
	}
	defer hold.Close()
	if err := holder.Start(); err != nil {
		return nil, err
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", holder.Process.Pid))
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	d, err := os.Open(disk)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if hidden != "" {
		if err := unix.Mount("none", hidden, "tmpfs", 0, ""); err != nil {
			return nil, err
		}
	}
	m, err := Start([]Tree{{Dir: int(d.Fd()), Shared: shared}}, ns)
	if err != nil {
		return nil, err
	}
	fd := m.Take()[0]
	defer unix.Close(fd)
	return m, unix.MoveMount(fd, "", unix.AT_FDCWD, shown, unix.MOVE_MOUNT_F_EMPTY_PATH)
}
