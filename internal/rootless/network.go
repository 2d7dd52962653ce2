package rootless

// The user's own network namespace: all his bridges and containers are in it.

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// makeNetwork makes the namespace, names it by a mount and opens the way out. Without one there are still
// containers that reach each other.
func (p place) makeNetwork() error {
	f, err := os.OpenFile(p.net(), os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	done := make(chan error, 1)
	inThread(func() { done <- p.fillNetwork() })
	return <-done
}

func (p place) fillNetwork() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make the user's network namespace: %w", err)
	}
	if err := unix.Mount("/proc/thread-self/ns/net", p.net(), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("name the user's network namespace: %w", err)
	}
	u, err := openUplink()
	if err != nil {
		return os.WriteFile(p.lack(), []byte(err.Error()), 0o600)
	}
	os.Remove(p.lack())
	go u.serve()
	return nil
}

// inThread runs f in a thread that ends with it: one that has changed its namespace cannot go back
// to the host's. The first thread never ends, and what /proc shows of a process is its, so
// it is kept busy until another one has taken the work.
func inThread(f func()) {
	go func() {
		runtime.LockOSThread() // and never unlocked
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		taken := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(taken)
			f()
		}()
		<-taken
		runtime.UnlockOSThread()
	}()
}
