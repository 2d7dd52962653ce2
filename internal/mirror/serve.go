package mirror

// The server's process: its threads, and the conversation with the kernel.
//
//	descriptors: 3 the monitor; then for each tree /dev/fuse and the directory
//	server -> monitor   "ok", or a sentence; the monitor closes its end when it ends

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
	"keg/internal/weakness"
)

const (
	control = 3
	maxIO   = 256 << 10 // bytes of one read or write
	room    = 8 << 10   // for the rest of a request or answer
	threads = 8         // of a tree, at most
)

// Main is the server's door: argv[0] is Argv0, kinds has a letter for each tree. It returns the exit status.
func Main(args []string) int {
	unix.CloseOnExec(control)
	if len(args) != 1 {
		fmt.Fprintln(os.Stderr, Argv0+" is started by keg, not by people")
		return 1
	}
	var all sync.WaitGroup
	for i, kind := range args[0] {
		s, err := newServer(control+1+2*i, control+2+2*i, kind == 's', len(args[0]))
		if err != nil {
			fmt.Fprint(os.NewFile(control, "monitor"), err)
			return 1
		}
		all.Go(s.serve)
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	go func() {
		var b [1]byte
		for {
			if _, err := unix.Read(control, b[:]); !errors.Is(err, unix.EINTR) {
				break
			}
		}
		time.Sleep(patience) // the container ends with its monitor, and what it has written is still being taken
		os.Exit(1)
	}()
	if _, err := unix.Write(control, []byte("ok")); err != nil {
		return 1
	}
	<-done
	return 0
}

// server shows one tree.
type server struct {
	dev    int
	nodes  *table
	shared bool
	idle   atomic.Int32
	count  atomic.Int32
	work   sync.WaitGroup

	mu   sync.Mutex
	dirs map[uint64]*listing // by handle, which is the descriptor's number
}

func newServer(dev, root int, shared bool, trees int) (*server, error) {
	unix.CloseOnExec(dev)
	unix.CloseOnExec(root)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return nil, err
	}
	// Half of the descriptors are for files that the container has open.
	nodes, err := newTable(root, int(min(limit.Cur, 1<<18))/2/trees, shared)
	if err != nil {
		return nil, err
	}
	s := &server{dev: dev, nodes: nodes, shared: shared, dirs: map[uint64]*listing{}}
	w := newWorker(s)
	h, body, err := w.next()
	if err == nil && h.Op != opInit {
		err = fmt.Errorf("the kernel's first request is %d", h.Op)
	}
	if err != nil {
		return nil, err
	}
	return s, w.init(h, body)
}

// init agrees with the kernel on what each of us can do.
func (w *worker) init(h *inHeader, body []byte) error {
	in, _, err := take[initIn](body)
	if err != nil || in.Major != 7 {
		return fmt.Errorf("the kernel speaks another version of FUSE: %w", unix.EPROTO)
	}
	if in.Flags&initExt == 0 || in.Flags2&initAllowIdmap == 0 {
		return fault.Unsupportedf("the kernel's FUSE has no mounts with shifted ids (Linux 6.12 has); this is %s", linux.Kernel())
	}
	flags := uint32(initAsyncRead | initBigWrites | initDontMask | initAutoInvalData | initReaddirplus | initReaddirplusAuto | initAsyncDIO |
		initParallelDirops | initPosixACL | initMaxPages | initCacheSymlinks | initKillprivV2 | initSetxattrExt | initExt)
	out, n := put[initOut](w.payload())
	*out = initOut{Major: 7, Minor: min(in.Minor, 41), MaxReadahead: in.MaxReadahead, Flags: in.Flags & flags, MaxBackground: 64, CongestionThreshold: 48,
		MaxWrite: maxIO, TimeGran: 1, MaxPages: uint16(maxIO / os.Getpagesize()), Flags2: initAllowIdmap}
	return w.answer(h, n, nil)
}

// serve returns when the kernel has given the file system up.
func (s *server) serve() {
	s.hire()
	s.hire()
	s.work.Wait()
}

// hire starts one more thread.
func (s *server) hire() {
	if s.count.Add(1) > threads {
		s.count.Add(-1)
		return
	}
	s.idle.Add(1)
	s.work.Go(func() { newWorker(s).loop() })
}

// worker is a thread: who asks and with which umask is a thread's own.
type worker struct {
	s       *server
	in, out []byte
	held    []*node
}

func newWorker(s *server) *worker {
	return &worker{s: s, in: make([]byte, maxIO+room), out: make([]byte, maxIO+room)}
}

func (w *worker) loop() {
	runtime.LockOSThread() // and never unlocked: the thread ends
	if err := errors.Join(unix.Unshare(unix.CLONE_FS), unix.Chdir("/proc/self/fd"), giveUpRights()); err != nil {
		fmt.Fprintln(os.Stderr, Argv0+":", err)
		os.Exit(1)
	}
	for {
		h, body, err := w.next()
		switch {
		case errors.Is(err, unix.ENODEV): // unmounted
			return
		case err != nil:
			fmt.Fprintln(os.Stderr, Argv0+": read a request:", err)
			os.Exit(1)
		}
		if w.s.idle.Add(-1) == 0 {
			w.s.hire()
		}
		w.serve(h, body)
		w.s.idle.Add(1)
	}
}

// next waits for a request.
func (w *worker) next() (*inHeader, []byte, error) {
	for {
		n, err := unix.Read(w.s.dev, w.in)
		switch {
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOENT): // it was taken back
			continue
		case err != nil:
			return nil, nil, err
		}
		h, body, err := take[inHeader](w.in[:n])
		return h, body, err
	}
}

// handlers do what is asked. They put the answer into the payload and return its size.
var handlers = [...]func(*worker, *inHeader, []byte) (int, error){
	opLookup: (*worker).lookup, opGetattr: (*worker).getattr, opSetattr: (*worker).setattr, opReadlink: (*worker).readlink,
	opSymlink: (*worker).symlink, opMknod: (*worker).mknod, opMkdir: (*worker).mkdir, opUnlink: (*worker).unlink, opRmdir: (*worker).rmdir,
	opRename: (*worker).rename, opRename2: (*worker).rename2, opLink: (*worker).link,
	opOpen: (*worker).open, opCreate: (*worker).create, opTmpfile: (*worker).tmpfile, opRead: (*worker).read, opWrite: (*worker).write, opRelease: (*worker).close,
	opFsync: (*worker).fsync, opFallocate: (*worker).fallocate, opLseek: (*worker).lseek, opCopyFileRange: (*worker).copyFileRange,
	opOpendir: (*worker).opendir, opReaddir: (*worker).readdir, opReaddirplus: (*worker).readdirplus, opReleasedir: (*worker).closedir, opFsyncdir: (*worker).fsync,
	opStatfs: (*worker).statfs, opGetxattr: (*worker).getxattr, opSetxattr: (*worker).setxattr, opListxattr: (*worker).listxattr, opRemovexattr: (*worker).removexattr,
	opDestroy: (*worker).nothing,
}

func (w *worker) serve(h *inHeader, body []byte) {
	switch h.Op {
	case opForget:
		if in, _, err := take[forgetIn](body); err == nil {
			w.s.nodes.forget(h.Node, in.Nlookup)
		}
		return
	case opBatchForget:
		_, rest, err := take[[2]uint32](body)
		for err == nil {
			var in *forgetOne
			if in, rest, err = take[forgetOne](rest); err == nil {
				w.s.nodes.forget(in.Node, in.Nlookup)
			}
		}
		return
	}
	n, err := 0, error(unix.ENOSYS) // locks, polls and interrupts are the kernel's then
	if h.Op < uint32(len(handlers)) && handlers[h.Op] != nil {
		n, err = handlers[h.Op](w, h, body)
	}
	for _, n := range w.held {
		w.s.nodes.release(n)
	}
	w.held = w.held[:0]
	// ENOENT: who asked was killed meanwhile.
	if err := w.answer(h, n, err); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		fmt.Fprintln(os.Stderr, Argv0+": answer a request:", err)
	}
}

func (w *worker) nothing(*inHeader, []byte) (int, error) { return 0, nil }

const outHeaderSize = int(unsafe.Sizeof(outHeader{}))

// payload is where an answer is made.
func (w *worker) payload() []byte { return w.out[outHeaderSize:] }

func (w *worker) answer(h *inHeader, n int, err error) error {
	out, _ := put[outHeader](w.out)
	out.Unique = h.Unique
	if err != nil {
		n = 0
		errno := unix.EIO
		errors.As(err, &errno)
		out.Error = -int32(errno)
	}
	out.Len = uint32(outHeaderSize + n)
	_, err = unix.Write(w.s.dev, w.out[:out.Len])
	return err
}

// node is one that a request names, held until the answer.
func (w *worker) node(id uint64) (*node, error) {
	n, err := w.s.nodes.get(id)
	if err == nil {
		w.held = append(w.held, n)
	}
	return n, err
}

// dir is a node with the name of an entry.
func (w *worker) dir(id uint64, b []byte) (*node, string, []byte, error) {
	s, rest, err := name(b)
	if err != nil {
		return nil, "", nil, err
	}
	n, err := w.node(id)
	return n, s, rest, err
}

// as makes this thread the one who asks, for what it creates, with all rights: the kernel has checked his.
func as(h *inHeader, umask uint32) (back func()) {
	unix.Umask(int(umask & 0o777))
	if h.UID == 0 && h.GID == 0 {
		return func() {}
	}
	_ = unix.Setfsgid(int(h.GID))
	_ = unix.Setfsuid(int(h.UID)) // takes the rights over files away
	setRights(^uint64(0))
	return func() {
		_ = unix.Setfsuid(0)
		_ = unix.Setfsgid(0)
	}
}

// withoutFSETID does something whereby set-user-ID bits are lost, as with those who lack this right.
func withoutFSETID(when bool, do func() error) error {
	if !when {
		return do()
	}
	setRights(^uint64(1 << unix.CAP_FSETID))
	defer setRights(^uint64(0))
	return do()
}

// needed are the rights of a thread that answers: those over files, and to become who asks.
const needed = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID |
	1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETFCAP | 1<<unix.CAP_MKNOD

// giveUpRights leaves this thread with the rights that are needed.
func giveUpRights() error {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	caps := [2]unix.CapUserData{{Permitted: needed & 0xffffffff, Effective: needed & 0xffffffff}, {Permitted: needed >> 32, Effective: needed >> 32}}
	return errors.Join(os.NewSyscallError("capset", unix.Capset(&h, &caps[0])), os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)))
}

// setRights makes those permitted rights effective that mask has.
func setRights(mask uint64) {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if unix.Capget(&h, &caps[0]) != nil {
		return
	}
	caps[0].Effective, caps[1].Effective = caps[0].Permitted&uint32(mask), caps[1].Permitted&uint32(mask>>32)
	_ = unix.Capset(&h, &caps[0])
}

// openEntry opens one name in a directory and follows nothing.
func openEntry(dir int, name string, flags int, mode uint32) (int, error) {
	if weakness.Of("RT25") {
		return unix.Openat(dir, name, flags|unix.O_CLOEXEC, mode)
	}
	return unix.Openat2(dir, name, &unix.OpenHow{Flags: uint64(flags | unix.O_NOFOLLOW | unix.O_CLOEXEC), Mode: uint64(mode),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV})
}

// path names a descriptor in this thread's working directory, which is /proc/self/fd.
func path(fd int) string { return strconv.Itoa(fd) }

// reopen opens the file of a descriptor that was opened with O_PATH.
func reopen(fd, flags int) (int, error) {
	return unix.Open("/proc/self/fd/"+path(fd), flags|unix.O_CLOEXEC, 0)
}
