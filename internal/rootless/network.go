package rootless

// The user's own network namespace: all his bridges and containers are in it.

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"keg/internal/disk"
)

// makeNetwork makes the namespace, names it by a mount and opens the way out, by pasta when program says where that is.
// Without a way there are still containers that reach each other. The warning is about one that is not what was meant.
func (p place) makeNetwork(program string) (warning string, err error) {
	f, err := os.OpenFile(p.net(), os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return "", err
	}
	f.Close()
	inNetwork := make(chan error)
	inThread(func() {
		var e error
		warning, e = p.fillNetwork(program)
		inNetwork <- e
	})
	return warning, <-inNetwork
}

func (p place) fillNetwork(program string) (warning string, err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return "", fmt.Errorf("make the user's network namespace: %w", err)
	}
	if err := unix.Mount("/proc/thread-self/ns/net", p.net(), "", unix.MS_BIND, ""); err != nil {
		return "", fmt.Errorf("name the user's network namespace: %w", err)
	}
	if err := openSource(); err != nil {
		return "", p.tellLack(err)
	}
	if program == "" {
		return "", p.openBuiltin("")
	}
	ended, err := p.startPasta(program)
	if err != nil {
		warning = "pasta did not start, so containers reach out through keg's relay: " + err.Error()
		return warning, p.openBuiltin("; pasta did not start: " + err.Error())
	}
	go p.replacePasta(ended)
	return "", p.tellWay("pasta", "")
}

// replacePasta opens the built-in way when pasta has ended though the keeper has not.
func (p place) replacePasta(ended <-chan error) {
	err := <-ended
	inThread(func() {
		if fd, e := unix.Open(p.net(), unix.O_RDONLY|unix.O_CLOEXEC, 0); e == nil && unix.Setns(fd, unix.CLONE_NEWNET) == nil {
			_ = p.openBuiltin("; pasta ended: " + err.Error())
		}
	})
}

// openBuiltin opens keg's own way; why it is not pasta's is told with it.
func (p place) openBuiltin(why string) error {
	u, err := openUplink()
	if err != nil {
		return p.tellLack(err)
	}
	go u.serve()
	return p.tellWay("keg's relay", why)
}

func (p place) tellLack(err error) error {
	return disk.PutVolatile(p.lack(), []byte(err.Error()), 0o600)
}

func (p place) tellWay(through, why string) error {
	os.Remove(p.lack())
	return disk.PutVolatile(p.way(), []byte("containers reach out through "+through+": the far end sees the host's address"+why), 0o600)
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
