package sandbox

// What the parent makes before the clone: the root, detached mounts, their targets, device
// nodes, the terminal. It loops and parses, so that the child need not.

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/sandbox/cgroup"
	"keg/internal/weakness"
)

// attachment is one mount as the child sees it.
type attachment struct {
	object string // "proc on /proc"
	source string // name of a detached mount's descriptor; "": the child makes it
	target string // name of the target's descriptor; "": the child opens path
	path   string
	fstype string
	opts   mountOptions
}

// mask hides a path.
type mask struct {
	path   string
	source string // name of the detached mount that covers it
}

// box is a container being furnished.
type box struct {
	spec     *specs.Spec
	o        *Options
	group    *cgroup.Group
	tree     tree
	fds      map[string]int
	files    []*os.File // closed when the child is on its way
	mounts   []attachment
	masks    []mask
	late     []func() error // attributes that would be in the way of furnishing
	warnings []string
	devFD    int // of our tmpfs on /dev, or -1
	pts      *place
	console  *os.File
}

func newBox(spec *specs.Spec, o *Options) *box {
	return &box{spec: spec, o: o, fds: map[string]int{}, devFD: -1}
}

func (b *box) close() {
	for _, f := range b.files {
		f.Close()
	}
	b.files = nil
}

// keep names an open file for the child's program.
func (b *box) keep(name string, f *os.File) {
	b.files = append(b.files, f)
	b.fds[name] = int(f.Fd())
}

func (b *box) keepFD(name string, fd int) int {
	b.keep(name, os.NewFile(uintptr(fd), name))
	return fd
}

// furnish makes everything that can be made outside.
func (b *box) furnish() error {
	if err := b.openRoot(); err != nil {
		return err
	}
	for i := range b.spec.Mounts {
		m := b.substitute(b.spec.Mounts[i])
		if err := b.mount(&m, i); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.Source, m.Destination, err)
		}
	}
	if err := b.devices(); err != nil {
		return err
	}
	if err := b.terminal(); err != nil {
		return err
	}
	if err := b.makeMasks(); err != nil {
		return err
	}
	for _, f := range b.late {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

func (b *box) openRoot() error {
	fd := b.o.Root
	if fd < 0 {
		if b.spec.Root == nil || b.spec.Root.Path == "" {
			return fault.Invalidf("the spec has no root")
		}
		var err error
		fd, err = cloneTree(unix.AT_FDCWD, b.spec.Root.Path, true)
		if err != nil {
			return fmt.Errorf("open root %s: %w", b.spec.Root.Path, err)
		}
		b.keepFD("root", fd)
		if err := setAttr(fd, true, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
			return fmt.Errorf("make root %s private: %w", b.spec.Root.Path, err)
		}
	} else {
		b.fds["root"] = fd
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("look at the root: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("look at the root: %w", unix.ENOTDIR)
	}
	b.tree.root = fd
	if b.o.UserNS != nil && !holds(b.uidMap(), 0) {
		b.tree.owner = &owner{int(hostID(0, b.uidMap())), int(hostID(0, b.gidMap()))}
	}
	return nil
}

// cloneTree makes a detached copy of the mount at p (open_tree(2)).
func cloneTree(dir int, p string, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.O_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	if p == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	return unix.OpenTree(dir, p, flags)
}

func setAttr(fd int, recursive bool, a *unix.MountAttr) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(fd, "", flags, a)
}

// mount prepares the i-th mount of the spec.
func (b *box) mount(m *specs.Mount, i int) error {
	if !strings.HasPrefix(m.Destination, "/") {
		return fault.Invalidf("the destination must be an absolute path")
	}
	opts, err := parseOptions(m.Options)
	if err != nil {
		return err
	}
	opts.bind = opts.bind || m.Type == "bind"
	if !opts.bind && (opts.idmap || len(m.UIDMappings)+len(m.GIDMappings) > 0) {
		return fault.Unsupportedf("only a bind mount can have shifted ids")
	}
	name := fmt.Sprint("mount", i)
	a := attachment{object: m.Type + " on " + m.Destination, fstype: m.Type, opts: opts}
	var magic int64
	isFile := false
	src := -1
	if opts.bind {
		a.object = m.Source + " on " + m.Destination
		if src, magic, isFile, err = b.bind(m.Source, name, opts); err != nil {
			return err
		}
		if err := b.shift(m, src, &opts); err != nil {
			return err
		}
		a.source = name
	}
	want := directory
	if isFile {
		want = emptyFile
	}
	at, err := b.tree.walk(m.Destination, want)
	if err != nil {
		return err
	}
	a.path = at.path
	if at.file != nil {
		b.keep("target"+fmt.Sprint(i), at.file)
		a.target = "target" + fmt.Sprint(i)
		if at.isDir() == isFile {
			return typeMismatch(m.Source, m.Destination)
		}
	}
	if err := checkTarget(m, at.path, opts.bind, magic); err != nil {
		return err
	}
	switch {
	case opts.bind:
	case m.Type == "cgroup" || m.Type == "cgroup2":
		src, err = b.cgroupMount(&a, name, i)
		if err != nil || src < 0 {
			return err
		}
	case madeByChild(m.Type):
	default:
		if m.Type == "tmpfs" && at.file != nil && !at.made && !hasKey(opts.data, "mode") {
			opts.data = append(opts.data, octal(at.mode))
		}
		if src, err = b.fresh(m, name, opts); err != nil {
			return err
		}
		a.source = name
	}
	b.tree.mounts = append(b.tree.mounts, mountpoint{at.path, src})
	b.mounts = append(b.mounts, a)
	switch {
	case at.path == "/dev" && m.Type == "tmpfs" && !opts.bind:
		b.devFD = src
	case m.Type == "devpts":
		b.pts = &place{path: at.path, file: os.NewFile(uintptr(dup(src)), "devpts")}
		b.files = append(b.files, b.pts.file)
	}
	return nil
}

func dup(fd int) int {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1
	}
	return n
}

// bind clones the source's mount; it is trusted, as the caller resolved it.
func (b *box) bind(source, name string, opts mountOptions) (fd int, magic int64, isFile bool, err error) {
	if fd, err = cloneTree(unix.AT_FDCWD, source, opts.recursive); err != nil {
		return -1, 0, false, err
	}
	b.keepFD(name, fd)
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err = errors.Join(unix.Fstat(fd, &st), unix.Fstatfs(fd, &fs)); err != nil {
		return -1, 0, false, err
	}
	prop := opts.propagation
	if prop == 0 {
		prop = unix.MS_PRIVATE
	}
	// First apart from the host's peers, then what was asked for.
	spread := opts.spread || opts.propagation == 0
	if err = setAttr(fd, spread, &unix.MountAttr{Propagation: prop}); err != nil {
		return -1, 0, false, fmt.Errorf("set propagation: %w", err)
	}
	if err = opts.apply(fd); err != nil {
		return -1, 0, false, fmt.Errorf("set options: %w", err)
	}
	return fd, int64(fs.Type), st.Mode&unix.S_IFMT != unix.S_IFDIR, nil
}

// apply sets the attributes on an existing mount.
func (m *mountOptions) apply(fd int) error {
	if m.set|m.clear != 0 {
		if err := setAttr(fd, false, &unix.MountAttr{Attr_set: m.set, Attr_clr: m.clear}); err != nil {
			return err
		}
	}
	if m.allSet|m.allClear != 0 {
		return setAttr(fd, true, &unix.MountAttr{Attr_set: m.allSet, Attr_clr: m.allClear})
	}
	return nil
}

// fresh mounts a new file system, detached.
func (b *box) fresh(m *specs.Mount, name string, opts mountOptions) (int, error) {
	attrs := opts.set | opts.allSet
	if attrs&unix.MOUNT_ATTR_RDONLY != 0 {
		attrs &^= unix.MOUNT_ATTR_RDONLY
		ro := attrs | unix.MOUNT_ATTR_RDONLY
		b.late = append(b.late, func() error {
			return setAttr(b.fds[name], false, &unix.MountAttr{Attr_set: ro & unix.MOUNT_ATTR_RDONLY})
		})
	}
	data := opts.data
	if weakness.Of("RT22") {
		data = slices.DeleteFunc(slices.Clone(data), func(d string) bool { return strings.HasPrefix(d, "size=") })
	}
	if l := b.spec.Linux; b.inUserNS() && (m.Type == "tmpfs" || m.Type == "devpts") {
		data = append([]string{}, data...)
		data = append(data, rootOwned(l, data)...)
	}
	data = knownGroups(data)
	fd, err := newMount(m.Type, m.Source, opts.flags, data, attrs)
	if err != nil {
		return -1, err
	}
	return b.keepFD(name, fd), nil
}

// newMount is fsopen, fsconfig and fsmount. The context's log has the kernel's reason.
func newMount(fstype, source string, flags, data []string, attrs uint64) (int, error) {
	ctx, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open file system %s: %w", fstype, err)
	}
	defer unix.Close(ctx)
	if source != "" && !hasKey(data, "source") {
		data = append([]string{"source=" + source}, data...)
	}
	for _, f := range flags {
		if err := unix.FsconfigSetFlag(ctx, f); err != nil {
			return -1, fmt.Errorf("set option %s: %w", f, withLog(ctx, err))
		}
	}
	for _, d := range data {
		k, v, has := strings.Cut(d, "=")
		if has {
			err = unix.FsconfigSetString(ctx, k, v)
		} else {
			err = unix.FsconfigSetFlag(ctx, k)
		}
		if err != nil && !(fstype == "devpts" && k == "newinstance") {
			return -1, fmt.Errorf("set option %s: %w", d, withLog(ctx, err))
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, fmt.Errorf("create %s: %w", fstype, withLog(ctx, err))
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, int(attrs))
	if err != nil {
		return -1, fmt.Errorf("mount %s: %w", fstype, withLog(ctx, err))
	}
	return fd, nil
}

func withLog(ctx int, err error) error {
	b := make([]byte, 512)
	if n, e := unix.Read(ctx, b); e == nil && n > 2 {
		return fmt.Errorf("%w (%s)", err, strings.TrimSpace(string(b[2:n])))
	}
	return err
}

func (b *box) inUserNS() bool {
	for _, ns := range b.spec.Linux.Namespaces {
		if ns.Type == specs.UserNamespace {
			return true
		}
	}
	return false
}

// cgroupMount shows the container its own cgroup: binds of its directories.
func (b *box) cgroupMount(a *attachment, name string, i int) (int, error) {
	if b.group == nil {
		b.warnings = append(b.warnings, "no cgroup: "+a.path+" is not mounted")
		return -1, nil
	}
	hs := b.group.Hierarchies()
	if weakness.Of("RT16") {
		a.opts.set &^= unix.MOUNT_ATTR_RDONLY
	}
	a.source = name
	if b.group.Unified() {
		fd, err := cloneTree(unix.AT_FDCWD, hs[0].Dir, false)
		if err != nil {
			return -1, err
		}
		b.keepFD(name, fd)
		return fd, errors.Join(setAttr(fd, false, &unix.MountAttr{Propagation: unix.MS_PRIVATE}), a.opts.apply(fd))
	}
	fd, err := newMount("tmpfs", "tmpfs", nil, []string{"mode=755"}, a.opts.set&^unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return -1, err
	}
	b.keepFD(name, fd)
	tmpfs := *a
	b.mounts = append(b.mounts, tmpfs)
	b.tree.mounts = append(b.tree.mounts, mountpoint{a.path, fd})
	for j, h := range hs {
		if err := b.hierarchy(a, h, fd, fmt.Sprintf("%s-%d", name, j), fmt.Sprintf("target%d-%d", i, j)); err != nil {
			return -1, fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	if a.opts.set&unix.MOUNT_ATTR_RDONLY != 0 {
		return -1, setAttr(fd, false, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}
	return -1, nil
}

func (b *box) hierarchy(a *attachment, h cgroup.Hierarchy, tmpfs int, source, target string) error {
	if err := unix.Mkdirat(tmpfs, h.Name, 0o755); err != nil {
		return err
	}
	for _, l := range h.Links {
		if err := unix.Symlinkat(h.Name, tmpfs, l); err != nil {
			return err
		}
	}
	at, err := unix.Openat(tmpfs, h.Name, unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	b.keepFD(target, at)
	fd, err := cloneTree(unix.AT_FDCWD, h.Dir, false)
	if err != nil {
		return err
	}
	b.keepFD(source, fd)
	b.mounts = append(b.mounts, attachment{object: "cgroup " + h.Name, source: source, target: target, path: a.path + "/" + h.Name, fstype: "cgroup"})
	return setAttr(fd, false, &unix.MountAttr{Attr_set: a.opts.set, Propagation: unix.MS_PRIVATE})
}

func (b *box) uidMap() []specs.LinuxIDMapping {
	if b.inUserNS() {
		return b.spec.Linux.UIDMappings
	}
	return nil
}

func (b *box) gidMap() []specs.LinuxIDMapping {
	if b.inUserNS() {
		return b.spec.Linux.GIDMappings
	}
	return nil
}
