package rootless

// The keeper: how it is started, found and ended.
//
//	starter -> keeper   one byte: the ids are mapped
//	keeper -> starter   "ok" and a warning, if there is one, or a sentence about what failed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"keg/internal/disk"
	"keg/internal/linux"
)

// Argv0 is how a keeper is called.
const Argv0 = "keg-keeper"

// linger is how long a keeper outlives the last command, so that commands in a row do not make
// the namespaces anew.
const linger = time.Second

// namespaces are open descriptors of a keeper's.
type namespaces struct{ user, mnt *os.File }

func (n *namespaces) close() {
	n.user.Close()
	n.mnt.Close()
}

// open finds the namespaces of a keeper that lives. The caller holds the lock, so it does not end meanwhile.
func (p place) open() (*namespaces, error) {
	b, err := os.ReadFile(p.keeper())
	if err != nil {
		return nil, err
	}
	var pid int
	var start uint64
	if _, err := fmt.Sscan(string(b), &pid, &start); err != nil {
		return nil, err
	}
	ns, err := namespacesOf(pid)
	if err != nil {
		return nil, err
	}
	if now, err := linux.StartTime(pid); err != nil || now != start {
		ns.close()
		return nil, fmt.Errorf("the keeper %d is gone", pid)
	}
	return ns, nil
}

func namespacesOf(pid int) (*namespaces, error) {
	dir := "/proc/" + strconv.Itoa(pid) + "/ns/"
	user, err := os.Open(dir + "user")
	if err != nil {
		return nil, err
	}
	mnt, err := os.Open(dir + "mnt")
	if err != nil {
		user.Close()
		return nil, err
	}
	return &namespaces{user, mnt}, nil
}

// make starts a keeper, or finds the one that another command has started meanwhile.
func (p place) make(e Entry) (*namespaces, error) {
	l, err := disk.LockFile(context.Background(), p.making())
	if err != nil {
		return nil, err
	}
	defer l.Unlock()
	if ns, err := p.open(); err == nil {
		return ns, nil
	}
	pasta, warning, err := choosePasta(variable(e.Env, WayVar))
	if err != nil {
		return nil, err
	}
	ids := findIDs(e.Name, os.Getuid(), os.Getgid())
	pid, said, err := startKeeper(p, ids, pasta)
	for _, w := range []string{ids.lack, warning, said} {
		if w != "" {
			e.Warn(w)
		}
	}
	if err != nil {
		return nil, err
	}
	return namespacesOf(pid)
}

// startKeeper gives it the program pasta, "" for the built-in way out, and returns its warning.
func startKeeper(p place, ids idMaps, pasta string) (pid int, warning string, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, "", os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "keeper"), os.NewFile(uintptr(fds[1]), "keeper")
	defer ours.Close()
	defer theirs.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, "", err
	}
	defer null.Close()
	pid, err = syscall.ForkExec("/proc/self/exe", []string{Argv0, string(p), pasta}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "GOMAXPROCS=2", "GOTRACEBACK=single"},
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), theirs.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS},
	})
	if err != nil {
		return 0, "", noUserNamespace(err)
	}
	theirs.Close()
	if err := ids.write(pid); err != nil {
		return 0, "", errors.Join(err, end(pid))
	}
	if _, err := ours.Write([]byte{1}); err != nil {
		return 0, "", errors.Join(fmt.Errorf("start the keeper: %w", err), end(pid))
	}
	said, err := io.ReadAll(io.LimitReader(ours, 4096))
	warning, ok := strings.CutPrefix(string(said), "ok")
	if err != nil || !ok {
		return 0, "", errors.Join(fmt.Errorf("start the keeper of the user namespace: %s", said), err, end(pid))
	}
	return pid, warning, nil
}

func end(pid int) error {
	err := unix.Kill(pid, unix.SIGKILL)
	for {
		if _, e := unix.Wait4(pid, nil, 0, nil); !errors.Is(e, unix.EINTR) {
			return err
		}
	}
}

// Main is the keeper's door. It is executed twice: first without rights, until the ids are mapped, then
// as the namespace's root, which only an execve after the mapping gives.
func Main(args []string) int {
	const sock = 3
	if len(args) == 2 {
		var b [1]byte
		if n, err := unix.Read(sock, b[:]); n != 1 || err != nil {
			return 1 // the starter gave up
		}
		err := unix.Exec("/proc/self/exe", []string{Argv0, args[0], args[1], "mapped"}, os.Environ())
		fmt.Fprintf(os.NewFile(sock, "starter"), "execute keg again: %v", err)
		return 1
	}
	if len(args) != 3 {
		fmt.Fprintf(os.Stderr, "%s is started by keg, not by people\n", Argv0)
		return 1
	}
	unix.CloseOnExec(sock)
	starter := os.NewFile(sock, "starter")
	p := place(args[0])
	warning, err := p.keep(args[1])
	if err != nil {
		fmt.Fprint(starter, err)
		return 1
	}
	if _, err := starter.WriteString("ok" + warning); err != nil {
		return 1
	}
	starter.Close()
	p.awaitEnd()
	return 0
}

// keep makes what lives in the keeper and tells who it is.
func (p place) keep(pasta string) (warning string, err error) {
	// What the host mounts later is seen inside; what is mounted inside stays there.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return "", fmt.Errorf("keep mounts apart: %w", err)
	}
	if warning, err = p.makeNetwork(pasta); err != nil {
		return "", err
	}
	start, err := linux.StartTime(os.Getpid())
	if err != nil {
		return "", err
	}
	return warning, disk.PutVolatile(p.keeper(), []byte(fmt.Sprintf("%d %d\n", os.Getpid(), start)), 0o600)
}

// awaitEnd returns, with the lock held exclusively, when nobody was inside for as long as linger.
func (p place) awaitEnd() {
	fd, err := unix.Open(p.lock(), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	for {
		if err := unix.Flock(fd, unix.LOCK_EX); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		unix.Flock(fd, unix.LOCK_UN)
		time.Sleep(linger)
		if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.Remove(p.keeper())
			return
		}
	}
}

// noUserNamespace says why there is none.
func noUserNamespace(err error) error {
	read := func(file string) string {
		b, _ := os.ReadFile(file)
		return strings.TrimSpace(string(b))
	}
	switch {
	case read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
		return fmt.Errorf("make a user namespace: %w; the host forbids them to ordinary users, allow them with: sysctl kernel.unprivileged_userns_clone=1", err)
	case read("/proc/sys/user/max_user_namespaces") == "0":
		return fmt.Errorf("make a user namespace: %w; the host allows none, raise the number with: sysctl user.max_user_namespaces=10000", err)
	}
	return fmt.Errorf("make a user namespace: %w; the host does not allow it to ordinary users, try sudo", err)
}
