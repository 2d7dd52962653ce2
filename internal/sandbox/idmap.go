package sandbox

// Mounts whose ids are shifted (mount_setattr(2), MOUNT_ATTR_IDMAP).

import (
	"errors"
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
)

// shift gives a detached mount the ids of m, or with "idmap" alone the container's.
func (b *box) shift(m *specs.Mount, fd int, opts *mountOptions) error {
	uids, gids := m.UIDMappings, m.GIDMappings
	if len(uids)+len(gids) == 0 {
		if !opts.idmap {
			return nil
		}
		uids, gids = b.uidMap(), b.gidMap()
	}
	if len(uids) == 0 || len(gids) == 0 {
		return fault.Invalidf("an id-mapped mount needs uidMappings and gidMappings")
	}
	ns, net, err := namespacesFor(uids, gids, 0)
	if net != nil {
		net.Close()
	}
	if err != nil {
		return fmt.Errorf("make a user namespace for the mount's ids: %w", err)
	}
	defer ns.Close()
	err = setAttr(fd, opts.idmapAll, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())})
	if errors.Is(err, unix.EINVAL) {
		return fault.Unsupportedf("the file system of %s cannot be mounted with shifted ids on this kernel", m.Source)
	}
	return err
}

// Namespaces makes a user namespace with these maps and a network namespace that belongs to it.
func Namespaces(uids, gids []specs.LinuxIDMapping) (user, net *os.File, err error) {
	err = onSpawner(func() (err error) {
		user, net, err = namespacesFor(uids, gids, unix.CLONE_NEWNET)
		return err
	})
	return user, net, err
}

// namespacesFor must be called on the spawner: a child that only waits holds the namespaces until they
// are open.
func namespacesFor(uids, gids []specs.LinuxIDMapping, also uint64) (user, net *os.File, err error) {
	p := &program{}
	p.dieWithParent(&process{})
	p.barrier("its end")
	b := &birth{program: p, fds: map[string]int{}, keepBelow: 3, flags: unix.CLONE_NEWUSER | also, cgroup: -1, pidns: -1}
	if err := b.deliver(); err != nil {
		return nil, nil, err
	}
	defer func() {
		b.parentEnd.Close() // the child's barrier fails, and it ends
		c := &Process{Pid: b.pid, PidFD: os.NewFile(uintptr(b.pidfd), "pidfd")}
		_ = c.Signal(int(unix.SIGKILL))
		_, e := c.Wait()
		err = errors.Join(err, e)
	}()
	if err := mapIDs(b.pid, &specs.Linux{UIDMappings: uids, GIDMappings: gids}); err != nil {
		return nil, nil, err
	}
	if user, err = os.Open(procFile(b.pid, "ns/user")); err != nil {
		return nil, nil, err
	}
	net, err = os.Open(procFile(b.pid, "ns/net"))
	return user, net, err
}
