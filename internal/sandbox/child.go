package sandbox

// What runs between clone and execve. The child shares no thread with the Go runtime
// that it was copied from: it may not allocate, grow its stack, take a lock or return.

import (
	"syscall"
	"unsafe"
)

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()

// machineOp is one step as the child sees it: numbers and addresses only.
type machineOp struct {
	nr    uintptr // system call, or one of the pseudo calls below
	a     [6]uintptr
	slots [2]uint8 // argument arg[i] is the result kept in slot slots[i]-1
	arg   [2]uint8
	save  uint8 // keep the result in slot save-1
	flags uint8
	pass  [3]pass
}

// pass: errno is no failure; go on after skipping skip further steps.
type pass struct{ errno, skip uint16 }

const (
	wantSome   = 1 << iota // a result of 0 is a failure (end of file at a barrier)
	parentExit             // a clone: who gets a pid back is done
)

// Pseudo calls, beyond any system call number.
const (
	opPoke  = 1<<20 + iota // *(int32 at a[0]) = a[1]
	opCheck                // the byte at a[0] must be a[1], else errno a[2]
	opFail                 // fail with errno a[0]
)

// cloneArgs is struct clone_args of clone3(2).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// report is what the child writes on its control socket: a failure when failed is the
// number of a step, or the pid of a second child.
type report struct{ step, value uint64 }

// Values of report.step that are no steps.
const (
	reportPid   = (1 + iota) << 32 // value is the pid of the second child
	reportReady                    // the box is made; the child waits for the go-ahead
	reportHooks                    // the namespaces are there; the child waits
)

// walker is what the child needs besides itself: n steps, their results, the memory that
// arguments point to, and where to report.
type walker struct {
	ops   unsafe.Pointer // [n]machineOp
	n     uintptr
	slots unsafe.Pointer // []uintptr
	arena unsafe.Pointer
	msg   report
	ctl   uintptr
}

// cloneRun clones and, in the child, walks w. It returns in the parent only.
//
//go:nosplit
//go:norace
//go:nocheckptr
func cloneRun(c *cloneArgs, w *walker) (pid uintptr, e syscall.Errno) {
	beforeFork()
	pid, _, e = syscall.RawSyscall(sysClone3, uintptr(unsafe.Pointer(c)), unsafe.Sizeof(*c), 0)
	if e != 0 || pid != 0 {
		afterFork()
		return pid, e
	}
	afterForkInChild()
	walk(w)
	return
}

//go:nosplit
//go:norace
//go:nocheckptr
func walk(w *walker) {
	var i, r, k uintptr
	var e syscall.Errno
	var o *machineOp
	for i = 0; i < w.n; i++ {
		o = (*machineOp)(unsafe.Add(w.ops, i*unsafe.Sizeof(machineOp{})))
		for k = 0; k < 2; k++ {
			if o.slots[k] != 0 {
				o.a[o.arg[k]%6] = *(*uintptr)(unsafe.Add(w.slots, uintptr(o.slots[k]-1)*8))
			}
		}
		r, e = 1, 0
		switch o.nr {
		case opPoke:
			*(*int32)(unsafe.Add(w.arena, o.a[0]-uintptr(w.arena))) = int32(o.a[1])
		case opCheck:
			if uintptr(*(*byte)(unsafe.Add(w.arena, o.a[0]-uintptr(w.arena)))) != o.a[1] {
				e = syscall.Errno(o.a[2])
			}
		case opFail:
			e = syscall.Errno(o.a[0])
		default:
			r, _, e = syscall.RawSyscall6(o.nr, o.a[0], o.a[1], o.a[2], o.a[3], o.a[4], o.a[5])
		}
		if e == syscall.EINTR {
			i--
			continue
		}
		if e == 0 && r == 0 && o.flags&wantSome != 0 {
			e = syscall.ECANCELED
		}
		if e != 0 {
			for k = 0; k < 3; k++ {
				if o.pass[k].errno == uint16(e) {
					break
				}
			}
			if k == 3 {
				w.msg.step, w.msg.value = uint64(i), uint64(e)
				syscall.RawSyscall(syscall.SYS_WRITE, w.ctl, uintptr(unsafe.Pointer(&w.msg)), 16)
				break
			}
			i += uintptr(o.pass[k].skip)
			continue
		}
		if o.flags&parentExit != 0 && r != 0 {
			w.msg.step, w.msg.value = reportPid, uint64(r)
			syscall.RawSyscall(syscall.SYS_WRITE, w.ctl, uintptr(unsafe.Pointer(&w.msg)), 16)
			break
		}
		if o.save != 0 {
			*(*uintptr)(unsafe.Add(w.slots, uintptr(o.save-1)*8)) = r
		}
	}
	for {
		syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 126, 0, 0)
	}
}
