package snapshot

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/layer"
	"keg/internal/linux"
)

// MountOptions for Mount.
type MountOptions struct {
	ReadOnly bool // no writes reach the upper directory
	Volatile bool // overlay "volatile": no syncs; only for what is removed at exit
	// Shift, when not nil, shows files with the owners that its map gives to those on disk
	// (mount_setattr(2), layers of an overlay since Linux 5.19).
	Shift *Shift
}

// Mount returns a descriptor of a detached overlay mount of active key (fsopen, fsmount),
// never attached anywhere; it ends when the descriptor and all copies are closed.
// ReadOnly looks at what is there without touching it, beside a running container too.
func (s *Store) Mount(key string, o MountOptions) (fd int, err error) {
	p, err := s.parents(key)
	if err != nil {
		return -1, err
	}
	dir := s.active(key)
	m := overlay{volatile: o.Volatile}
	if o.ReadOnly {
		m.lower = append(m.lower, dir+"/upper")
	} else {
		m.upper, m.work = dir+"/upper", dir+"/work"
	}
	for i := len(p.Layers) - 1; i >= 0; i-- {
		m.lower = append(m.lower, s.layers(p.Layers[i])+"/diff")
	}
	mount := s.mount
	if o.Shift != nil {
		mount = func(m overlay) (int, error) { return s.mountShifted(m, dir, o.Shift) }
	}
	fd, err = mount(m)
	// A volatile mount leaves a mark so that a crash is noticed. The same boot saw none;
	// after another the user of volatile has lost what he said he could lose.
	if errors.Is(err, unix.EINVAL) && !o.ReadOnly && s.forgetVolatile(m.work) {
		fd, err = mount(m)
	}
	if err != nil {
		return -1, fmt.Errorf("mount snapshot %s: %w", key, err)
	}
	return fd, nil
}

func (s *Store) forgetVolatile(work string) bool {
	fd, err := unix.Open(work+"/work", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	return unix.Fstatat(fd, "incompat", &st, unix.AT_SYMLINK_NOFOLLOW) == nil && layer.RemoveAt(fd, "incompat") == nil
}

// Edit mounts active key for a build step that writes files (COPY, ADD, WORKDIR) and
// returns the root directory of the mount. Through the mount, the directories on the
// way keep the attributes that they have below, and links of the layers are followed
// as the program will see them (use linux.OpenInRoot and its kin). It costs 0.4 ms.
// Close it before Commit.
func (s *Store) Edit(key string) (*os.File, error) {
	fd, err := s.Mount(key, MountOptions{Volatile: true})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "snapshot "+key), nil
}

// View returns a read-only detached mount of the stack alone. Who is not protected by
// an active key takes a Lease for as long as it is used.
func (s *Store) View(stack []digest.Digest) (fd int, err error) {
	found, err := s.all(stack)
	if err != nil {
		return -1, err
	}
	var m overlay
	for i := len(found) - 1; i >= 0; i-- {
		m.lower = append(m.lower, s.layers(found[i].name)+"/diff")
	}
	if fd, err = s.mount(m); err != nil {
		return -1, fmt.Errorf("mount layers: %w", err)
	}
	return fd, nil
}

// overlay is a mount to be made; lower has the topmost first.
type overlay struct {
	lower       []string
	upper, work string
	volatile    bool
}

// mount makes it. A read-only overlay needs two directories, any needs one: empty ones
// stand in.
func (s *Store) mount(m overlay) (int, error) {
	m.lower = topmost(m.lower)
	if len(m.lower) == 0 {
		m.lower = append(m.lower, s.layers(".empty/b"))
	}
	if len(m.lower) == 1 && m.upper == "" {
		m.lower = append(m.lower, s.layers(".empty/a"))
	}
	if s.noAppend.Load() || !appends() {
		return s.mountOld(m)
	}
	return s.mountNew(m)
}

// topmost drops the lower ones of equal directories: a stack may name a layer twice
// (two steps that change nothing), which overlayfs refuses, and what the upper one has
// hides all that the lower one has.
func topmost(dirs []string) []string {
	seen := make(map[string]bool, len(dirs))
	return slices.DeleteFunc(dirs, func(d string) bool {
		again := seen[d]
		seen[d] = true
		return again
	})
}

// appends reports whether lower directories can be given one by one (Linux 6.7).
var appends = sync.OnceValue(func() bool {
	major, rest, _ := strings.Cut(linux.Kernel(), ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, _ := strconv.Atoi(major)
	b, _ := strconv.Atoi(minor)
	return a > 6 || a == 6 && b >= 7
})

// options are those that every mount has. nofollow is what keeps a layer that smuggles
// in redirects from showing what others deleted; off does not when the host's
// redirect_always_follow is set.
func (s *Store) options(m overlay) (kv [][2]string) {
	kv = [][2]string{{"redirect_dir", "nofollow"}, {"metacopy", "off"}}
	if m.upper != "" {
		kv = append(kv, [2]string{"index", "off"})
	}
	if m.volatile && m.upper != "" {
		kv = append(kv, [2]string{"volatile", ""})
	}
	if s.opt.UserXattr {
		kv = append(kv, [2]string{"userxattr", ""})
	}
	return kv
}

func (s *Store) mountNew(m overlay) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, noOverlay(err)
	}
	defer unix.Close(fs)
	var open opened
	defer open.close()
	for _, l := range m.lower {
		if err := setPath(fs, "lowerdir+", l, &open); err != nil {
			return -1, err
		}
	}
	if m.upper != "" {
		if err := setPath(fs, "upperdir", m.upper, &open); err != nil {
			return -1, err
		}
		if err := setPath(fs, "workdir", m.work, &open); err != nil {
			return -1, err
		}
	}
	for _, o := range s.options(m) {
		if o[1] == "" {
			err = unix.FsconfigSetFlag(fs, o[0])
		} else {
			err = unix.FsconfigSetString(fs, o[0], o[1])
		}
		if err != nil {
			return -1, explain(fs, "option "+o[0], err)
		}
	}
	if err := unix.FsconfigSetString(fs, "source", "keg"); err != nil {
		return -1, explain(fs, "option source", err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, explain(fs, "overlay", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, m.attr())
	if err != nil {
		return -1, fmt.Errorf("fsmount: %w", err)
	}
	return fd, nil
}

func (m overlay) attr() int {
	if m.upper == "" {
		return unix.MOUNT_ATTR_RDONLY
	}
	return 0
}

// setPath hands over a directory: by name, which /proc/mounts then shows, or by
// descriptor where the name is longer than fsconfig(2) takes.
func setPath(fs int, key, path string, open *opened) error {
	arg := path
	if len(path) > 255 {
		fd, err := open.dir(path)
		if err != nil {
			return err
		}
		arg = linux.FDPath(fd)
	}
	if err := unix.FsconfigSetString(fs, key, arg); err != nil {
		return explain(fs, key+"="+path, err)
	}
	return nil
}

// opened are directories that stay open until the mount is made.
type opened []int

func (o *opened) dir(p string) (int, error) {
	fd, err := unix.Open(p, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: p, Err: err}
	}
	*o = append(*o, fd)
	return fd, nil
}

func (o *opened) close() {
	for _, fd := range *o {
		unix.Close(fd)
	}
}

// explain adds what the kernel says about a failed configuration: reading the context's
// descriptor gives its messages.
func explain(fs int, what string, err error) error {
	buf := make([]byte, 512)
	if n, rerr := unix.Read(fs, buf); rerr == nil && n > 2 {
		what += " (" + strings.TrimSpace(string(buf[2:n])) + ")"
	}
	return fmt.Errorf("%s: %w", what, err)
}

func noOverlay(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return fault.Unsupportedf("the kernel has no overlay file system (CONFIG_OVERLAY_FS): %w", err)
	}
	if errors.Is(err, unix.EPERM) {
		return fault.Deniedf("mount an overlay: %w; keg needs root for it", err)
	}
	return err
}

// mountOld serves kernels before 6.7 with mount(2), whose options are limited to a
// page: directories are named by their descriptors, from a thread of its own whose
// working directory is /proc/self/fd and whose mount namespace ends with it.
func (s *Store) mountOld(m overlay) (int, error) {
	type result struct {
		fd  int
		err error
	}
	done := make(chan result)
	inThread(func() {
		fd, err := s.mountInThread(m)
		done <- result{fd, err}
	})
	r := <-done
	return r.fd, r.err
}

// inThread runs f in a thread that ends with it, and the thread's namespaces with that.
// The process's first thread never ends, and /proc/self shows its namespaces: it is
// kept busy until another one has taken the work.
func inThread(f func()) {
	go func() {
		runtime.LockOSThread() // and never unlocked, so that the thread ends
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

func (s *Store) mountInThread(m overlay) (int, error) {
	var open opened
	defer open.close()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return -1, noOverlay(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return -1, err
	}
	// Opened only now: overlayfs takes directories of the caller's namespace alone.
	data, err := s.optionString(m, &open)
	if err != nil {
		return -1, err
	}
	if err := unix.Chdir("/proc/self/fd"); err != nil {
		return -1, err
	}
	at := s.layers(".empty/a")
	var flags uintptr
	if m.upper == "" {
		flags = unix.MS_RDONLY
	}
	if err := unix.Mount("keg", at, "overlay", flags, data); err != nil {
		return -1, fmt.Errorf("overlay (%s): %w", data, err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, at, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open_tree: %w", err)
	}
	return fd, nil
}

func (s *Store) optionString(m overlay, open *opened) (string, error) {
	names := make([]string, len(m.lower))
	for i, l := range m.lower {
		fd, err := open.dir(l)
		if err != nil {
			return "", err
		}
		names[i] = strconv.Itoa(fd)
	}
	opts := []string{"lowerdir=" + strings.Join(names, ":")}
	if m.upper != "" {
		u, err := open.dir(m.upper)
		if err != nil {
			return "", err
		}
		w, err := open.dir(m.work)
		if err != nil {
			return "", err
		}
		opts = append(opts, fmt.Sprintf("upperdir=%d,workdir=%d", u, w))
	}
	for _, o := range s.options(m) {
		if o[1] != "" {
			o[0] += "=" + o[1]
		}
		opts = append(opts, o[0])
	}
	return strings.Join(opts, ","), nil
}
