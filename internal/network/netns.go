package network

// A container's network namespace, made in a locked thread so that it can be done
// beside the mounts.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
	"keg/internal/rootless"
	"keg/internal/weakness"
)

// A netns is a namespace with loopback up.
type netns struct {
	fd    int
	inode uint64
	rt    rtnl // inside
	dns   *resolver
}

type netnsOptions struct {
	given int // an empty namespace; 0: make one
	ipv6  bool
	dns   *resolver // opens its sockets inside; nil for none
}

// startNetNS makes a namespace in the background; the function waits for it, as often
// as it is called.
func (s *Store) startNetNS(o netnsOptions) (wait func() netnsResult) {
	ch := make(chan netnsResult, 1)
	if home := rootless.Network(s.engineRun); home >= 0 {
		inHome(home, func(err error) {
			if err != nil {
				ch <- netnsResult{nil, err}
				return
			}
			n, err := newNetNS(o)
			ch <- netnsResult{n, err}
		})
		return sync.OnceValue(func() netnsResult { return <-ch })
	}
	go func() {
		runtime.LockOSThread()
		n, err := newNetNS(o)
		if back := errors.Is(err, errStuck); !back {
			runtime.UnlockOSThread()
		} // else the thread ends with the goroutine
		ch <- netnsResult{n, err}
	}()
	return sync.OnceValue(func() netnsResult { return <-ch })
}

type netnsResult struct {
	ns  *netns
	err error
}

// errStuck: the thread could not return to its own namespace and must not be reused.
var errStuck = errors.New("thread cannot return to its network namespace")

func newNetNS(o netnsOptions) (n *netns, err error) {
	old, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	defer unix.Close(old)
	enter := func() error { return unix.Unshare(unix.CLONE_NEWNET) }
	if o.given > 0 {
		enter = func() error { return unix.Setns(o.given, unix.CLONE_NEWNET) }
	}
	if err := enter(); err != nil {
		if errors.Is(err, unix.EPERM) {
			return nil, fault.Deniedf("make network namespace: %w (is keg running as root?)", err)
		}
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	defer func() {
		if e := unix.Setns(old, unix.CLONE_NEWNET); e != nil {
			err = fmt.Errorf("%w: %w", errStuck, e)
		}
		if err != nil && n != nil {
			n.close()
			n = nil
		}
	}()
	n = &netns{fd: -1, rt: rtnl{-1}}
	return n, n.furnish(o)
}

// furnish runs inside the new namespace.
func (n *netns) furnish(o netnsOptions) (err error) {
	n.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(n.fd, &st); err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	n.inode = st.Ino
	// default/ is what a link starts with: set before any link but lo is there.
	if o.ipv6 && weakness.Of("NW4") {
		err = nil
	} else if o.ipv6 {
		err = errors.Join(sysctl("ipv6/conf/all/accept_ra", "0"), sysctl("ipv6/conf/default/accept_ra", "0"))
	} else {
		err = sysctl("ipv6/conf/all/disable_ipv6", "1")
	}
	if err != nil {
		return fmt.Errorf("set up network namespace: %w", err)
	}
	if n.rt, err = openRtnl(); err != nil {
		return err
	}
	if err := n.rt.do(linkUp(1)); err != nil {
		return err
	}
	if o.dns != nil {
		n.dns = o.dns
		return o.dns.listen()
	}
	return nil
}

func (n *netns) close() {
	if n == nil {
		return
	}
	if n.dns != nil {
		n.dns.close()
	}
	n.rt.close()
	n.rt = rtnl{-1}
	if n.fd >= 0 {
		unix.Close(n.fd)
		n.fd = -1
	}
}

// OpenNetNS opens the network namespace of a process: what a container in the mode
// container:ID joins. The descriptor is the caller's.
func OpenNetNS(pid int) (int, error) {
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open network namespace of process %d: %w", pid, err)
	}
	return fd, nil
}

// inside runs f in a thread that has entered the namespace fd.
func inside(ctx context.Context, fd int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		old, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer unix.Close(old)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		err = f()
		if e := unix.Setns(old, unix.CLONE_NEWNET); linux.InUserNS() && errors.Is(e, unix.EPERM) {
			// The host's namespace is closed to an ordinary user: the thread ends here.
		} else if e != nil {
			err = errors.Join(err, errStuck)
		} else {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// deserted reports whether no process is in the namespace with this inode: its
// container has exited, whatever its record says. It walks /proc, for error paths only.
func deserted(inode uint64) bool {
	if inode == 0 {
		return false
	}
	want := "net:[" + strconv.FormatUint(inode, 10) + "]"
	ents, err := os.ReadDir("/proc")
	if err != nil {
		return false
	}
	for _, e := range ents {
		if strings.Trim(e.Name(), "0123456789") != "" {
			continue
		}
		if got, err := os.Readlink("/proc/" + e.Name() + "/ns/net"); err == nil && got == want {
			return false
		}
	}
	return true
}
