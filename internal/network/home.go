package network

// Where bridges, rules and links are: with root, in the host's network namespace, that of this
// process; with an ordinary user in his own (package rootless), which a thread enters for as long as
// a method below takes. Listening sockets and questions to other resolvers are the host's
// in both cases.

import (
	"context"
	"fmt"
	"runtime"

	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"keg/internal/linux"
	"keg/internal/rootless"
)

// home runs f in a thread that is in the namespace of the bridges.
func (s *Store) home(f func() error) error {
	fd := rootless.Network(s.engineRun)
	if fd < 0 {
		return f()
	}
	done := make(chan error, 1)
	inHome(fd, func(err error) {
		if err == nil {
			err = f()
		}
		done <- err
	})
	return <-done
}

// inHome starts f in a thread that has entered fd, which it closes, and that ends with f: the way back into
// the host's namespace is closed to an ordinary user. The first thread never ends, and
// /proc shows its namespaces as the process's: it is kept busy until another one has taken the work.
func inHome(fd int, f func(error)) {
	enter := func() {
		err := unix.Setns(fd, unix.CLONE_NEWNET)
		unix.Close(fd)
		if err != nil {
			err = fmt.Errorf("enter the user's network namespace: %w", err)
		}
		f(err)
	}
	go func() {
		runtime.LockOSThread() // and never unlocked
		if unix.Gettid() != unix.Getpid() {
			enter()
			return
		}
		taken := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(taken)
			enter()
		}()
		<-taken
		runtime.UnlockOSThread()
	}()
}

// outside runs f in a thread of the process's own namespace, whatever the caller's is in.
func outside(f func()) {
	if !linux.InUserNS() {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
}

// Attach makes the namespace with all endpoints, publishes ports and starts answering DNS. It runs
// beside the mounts. A taken port is fault.Conflict and names the owner.
func (s *Store) Attach(ctx context.Context, r Request) (a *Attachment, err error) {
	err = s.home(func() (err error) { a, err = s.attach(ctx, r); return err })
	return a, err
}

// Connect adds an endpoint to the running container. Hosts and Resolv change with it:
// the caller writes them into the container's files again.
func (a *Attachment) Connect(ctx context.Context, e Endpoint) (got *network.EndpointSettings, err error) {
	err = a.s.home(func() (err error) { got, err = a.connect(ctx, e); return err })
	return got, err
}

// Disconnect takes the container off a network. Ports that were published there stop
// being so.
func (a *Attachment) Disconnect(ctx context.Context, name string) error {
	return a.s.home(func() error { return a.disconnect(ctx, name) })
}

// Release takes ports, names, rules and addresses back; the namespace dies by itself.
// It takes some ten milliseconds, and up to 2 s when connections or the namespace are
// held open: call it after the exit code was reported. A second call does nothing.
func (a *Attachment) Release() error { return a.s.home(a.release) }

// Clean releases what a dead monitor left for container id. Nothing left is no error.
func (s *Store) Clean(id string) error { return s.home(func() error { return s.clean(id) }) }

// Reload tells the kernel the rules again, after something outside (nft flush ruleset,
// a firewall's restart) took them away. Attach does it by itself when it finds the table missing.
func (s *Store) Reload(ctx context.Context) error {
	return s.home(func() error { return s.reload(ctx) })
}

// Teardown removes every bridge that nobody uses, and with the last one everything
// that keg put on the host. system prune calls it.
func (s *Store) Teardown(ctx context.Context) error {
	return s.home(func() error { return s.teardown(ctx) })
}

// Settle is the last thing that a process does after it released its attachments: it
// stays for a second and removes the bridges that nobody used meanwhile. At most one
// process of an engine lingers; the others return at once.
func (s *Store) Settle(ctx context.Context) error {
	return s.home(func() error { return s.settleDown(ctx) })
}

// Create picks a free subnet when none is asked for. fault.Conflict: "network with name x already exists".
func (s *Store) Create(ctx context.Context, o CreateOptions) (n Network, err error) {
	err = s.home(func() (err error) { n, err = s.create(ctx, o); return err })
	return n, err
}

// Remove refuses predefined networks (Denied) and those with active endpoints (Denied,
// Docker's words). It waits for containers that have exited but are not yet gone.
func (s *Store) Remove(ctx context.Context, name string) error {
	return s.home(func() error { return s.remove(ctx, name) })
}

// HasFirewall asks the kernel whether there can be rules where the bridges are.
func (s *Store) HasFirewall() (ok bool) {
	_ = s.home(func() error {
		ok = linux.HasNftables()
		return nil
	})
	return ok
}

// away tells whether home is another namespace than ours.
func (s *Store) away() bool {
	fd := rootless.Network(s.engineRun)
	if fd < 0 {
		return false
	}
	unix.Close(fd)
	return true
}
