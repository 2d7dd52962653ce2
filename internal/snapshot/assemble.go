package snapshot

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"keg/internal/linux"
)

// Bind is a file or directory of the host that a container has at Target.
type Bind struct {
	Source, Target string // absolute
	ReadOnly       bool
}

// Assembled is the root of a container that does not run, with its volumes, as its
// program would see it. The mounts are in a namespace that nobody else can enter, held
// by one thread until Close.
type Assembled struct {
	Root *os.File
	end  chan struct{}
	done chan struct{}
}

// Close ends the mounts. Descriptors that were opened below Root keep what they show.
func (a *Assembled) Close() {
	a.Root.Close()
	close(a.end)
	<-a.done
}

// Assemble mounts active key and binds on top of it. Missing targets are made, as a
// start would, unless ReadOnly; then they are left out. Nobody else may have the key
// mounted for writing.
func (s *Store) Assemble(key string, binds []Bind, o MountOptions) (*Assembled, error) {
	// A volume inside a volume needs its outer one first.
	binds = slices.SortedFunc(slices.Values(binds), func(a, b Bind) int {
		return cmp.Compare(strings.Count(a.Target, "/"), strings.Count(b.Target, "/"))
	})
	a := &Assembled{end: make(chan struct{}), done: make(chan struct{})}
	ready := make(chan error)
	inThread(func() {
		defer close(a.done)
		fd, err := s.assemble(key, binds, o)
		if err == nil {
			a.Root = os.NewFile(uintptr(fd), "/")
		}
		ready <- err
		if err == nil {
			<-a.end
		}
	})
	if err := <-ready; err != nil {
		return nil, err
	}
	return a, nil
}

// assemble runs in a thread of its own, which gets its own mount namespace.
func (s *Store) assemble(key string, binds []Bind, o MountOptions) (root int, err error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return -1, noOverlay(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return -1, fmt.Errorf("make mounts private: %w", err)
	}
	if root, err = s.Mount(key, o); err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			unix.Close(root)
		}
	}()
	// Attached, so that others can be attached to it (Linux before 6.15 refuses that for
	// a mount that is nowhere). The place is hidden in this namespace only.
	if err := unix.MoveMount(root, "", unix.AT_FDCWD, s.layers(".empty/a"), unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return -1, fmt.Errorf("attach snapshot %s: %w", key, err)
	}
	for _, b := range binds {
		if err := bindBelow(root, b, o.ReadOnly); err != nil {
			return -1, fmt.Errorf("mount %s: %w", b.Target, err)
		}
	}
	return root, nil
}

func bindBelow(root int, b Bind, readOnly bool) error {
	src, err := unix.OpenTree(unix.AT_FDCWD, b.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return &os.PathError{Op: "open", Path: b.Source, Err: err}
	}
	defer unix.Close(src)
	if b.ReadOnly {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(src, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
			return fmt.Errorf("make it read-only: %w", err)
		}
	}
	at, err := bindTarget(root, src, b.Target, readOnly)
	if err != nil || at == nil {
		return err
	}
	defer at.Close()
	return unix.MoveMount(src, "", int(at.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// bindTarget opens the target and makes it when it is missing; nil when it may not.
func bindTarget(root, src int, target string, readOnly bool) (*os.File, error) {
	f, err := linux.OpenInRoot(root, target, unix.O_PATH, 0)
	if !errors.Is(err, unix.ENOENT) {
		return f, err
	}
	if readOnly {
		return nil, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return linux.MkdirAllInRoot(root, target, 0o755)
	}
	i := strings.LastIndexByte(target, '/')
	dir, err := linux.MkdirAllInRoot(root, target[:i+1], 0o755)
	if err != nil {
		return nil, err
	}
	dir.Close()
	return linux.OpenInRoot(root, target, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o644)
}
