package mirror

// The kernel's words, as linux/fuse.h has them. A request is a header, a struct and up to two names; an answer is a
// header and a struct or bytes:
//
//	<- inHeader  struct  name\0 name\0 | data
//	-> outHeader struct | data           (error: the header alone)

import (
	"bytes"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	opLookup        = 1
	opForget        = 2
	opGetattr       = 3
	opSetattr       = 4
	opReadlink      = 5
	opSymlink       = 6
	opMknod         = 8
	opMkdir         = 9
	opUnlink        = 10
	opRmdir         = 11
	opRename        = 12
	opLink          = 13
	opOpen          = 14
	opRead          = 15
	opWrite         = 16
	opStatfs        = 17
	opRelease       = 18
	opFsync         = 20
	opSetxattr      = 21
	opGetxattr      = 22
	opListxattr     = 23
	opRemovexattr   = 24
	opInit          = 26
	opOpendir       = 27
	opReaddir       = 28
	opReleasedir    = 29
	opFsyncdir      = 30
	opCreate        = 35
	opDestroy       = 38
	opBatchForget   = 42
	opFallocate     = 43
	opReaddirplus   = 44
	opRename2       = 45
	opLseek         = 46
	opCopyFileRange = 47
	opTmpfile       = 51
)

// Bits of INIT. The kernel and we say what we know; what both said is used.
const (
	initAsyncRead       = 1 << 0
	initBigWrites       = 1 << 5
	initDontMask        = 1 << 6 // the umask comes with the request: a default ACL overrides it
	initAutoInvalData   = 1 << 12
	initReaddirplus     = 1 << 13
	initReaddirplusAuto = 1 << 14
	initAsyncDIO        = 1 << 15
	initParallelDirops  = 1 << 18
	initPosixACL        = 1 << 20
	initMaxPages        = 1 << 22
	initCacheSymlinks   = 1 << 23
	initKillprivV2      = 1 << 28 // without it each write would ask for security.capability first
	initSetxattrExt     = 1 << 29
	initExt             = 1 << 30
	initAllowIdmap      = 1 << (40 - 32) // of the second word; Linux 6.12

	fattrMode     = 1 << 0
	fattrUID      = 1 << 1
	fattrGID      = 1 << 2
	fattrSize     = 1 << 3
	fattrAtime    = 1 << 4
	fattrMtime    = 1 << 5
	fattrFh       = 1 << 6
	fattrAtimeNow = 1 << 7
	fattrMtimeNow = 1 << 8
	fattrKill     = 1 << 11

	fopenKeepCache = 1 << 1
	fopenCacheDir  = 1 << 3

	writeCache = 1 << 0 // from the page cache, not from a caller
	writeKill  = 1 << 2
	openKill   = 1 << 0
	aclKill    = 1 << 0
)

type (
	inHeader struct {
		Len, Op       uint32
		Unique, Node  uint64
		UID, GID, PID uint32
		_             uint32
	}
	outHeader struct {
		Len    uint32
		Error  int32
		Unique uint64
	}
	attr struct {
		Ino, Size, Blocks                    uint64
		Atime, Mtime, Ctime                  uint64
		AtimeNsec, MtimeNsec, CtimeNsec      uint32
		Mode, Nlink, UID, GID, Rdev, Blksize uint32
		_                                    uint32
	}
	entryOut struct {
		Node, Generation          uint64
		EntryValid, AttrValid     uint64
		EntryValidNs, AttrValidNs uint32
		Attr                      attr
	}
	attrOut struct {
		Valid uint64
		_     uint64
		Attr  attr
	}
	initIn struct {
		Major, Minor, MaxReadahead, Flags, Flags2 uint32
	}
	initOut struct {
		Major, Minor, MaxReadahead, Flags  uint32
		MaxBackground, CongestionThreshold uint16
		MaxWrite, TimeGran                 uint32
		MaxPages, MapAlignment             uint16
		Flags2                             uint32
		_                                  [7]uint32
	}
	forgetIn  struct{ Nlookup uint64 }
	forgetOne struct{ Node, Nlookup uint64 }
	setattrIn struct {
		Valid, _                        uint32
		Fh, Size, LockOwner             uint64
		Atime, Mtime, Ctime             uint64
		AtimeNsec, MtimeNsec, CtimeNsec uint32
		Mode, _, UID, GID, _            uint32
	}
	mknodIn   struct{ Mode, Rdev, Umask, _ uint32 }
	mkdirIn   struct{ Mode, Umask uint32 }
	renameIn  struct{ NewDir uint64 }
	rename2In struct {
		NewDir   uint64
		Flags, _ uint32
	}
	linkIn   struct{ Node uint64 }
	openIn   struct{ Flags, OpenFlags uint32 }
	createIn struct{ Flags, Mode, Umask, OpenFlags uint32 }
	openOut  struct {
		Fh           uint64
		OpenFlags, _ uint32
	}
	releaseIn struct{ Fh uint64 }
	readIn    struct {
		Fh, Offset      uint64
		Size, ReadFlags uint32
		LockOwner       uint64
		Flags, _        uint32
	}
	writeIn struct {
		Fh, Offset       uint64
		Size, WriteFlags uint32
		LockOwner        uint64
		Flags, _         uint32
	}
	sizeOut struct{ Size, _ uint32 }
	fsyncIn struct {
		Fh       uint64
		Flags, _ uint32
	}
	setxattrIn struct{ Size, Flags, SetxattrFlags, _ uint32 }
	getxattrIn struct{ Size, _ uint32 }
	statfsOut  struct {
		Blocks, Bfree, Bavail, Files, Ffree uint64
		Bsize, Namelen, Frsize, _           uint32
		_                                   [6]uint32
	}
	fallocateIn struct {
		Fh, Offset, Length uint64
		Mode, _            uint32
	}
	lseekIn struct {
		Fh, Offset uint64
		Whence, _  uint32
	}
	lseekOut        struct{ Offset uint64 }
	copyFileRangeIn struct {
		FhIn, OffIn, NodeOut, FhOut, OffOut, Len, Flags uint64
	}
	dirent struct {
		Ino, Off      uint64
		Namelen, Type uint32
	}
)

// take reads a struct from the front of b.
func take[T any](b []byte) (*T, []byte, error) {
	var t *T
	if uintptr(len(b)) < unsafe.Sizeof(*t) {
		return nil, nil, unix.EINVAL
	}
	return (*T)(unsafe.Pointer(&b[0])), b[unsafe.Sizeof(*t):], nil
}

// put makes a zeroed struct at the front of b.
func put[T any](b []byte) (*T, int) {
	var t *T
	n := int(unsafe.Sizeof(*t))
	clear(b[:n])
	return (*T)(unsafe.Pointer(&b[0])), n
}

// name reads a string that ends with a zero byte. One that is not the name of an entry is refused: the kernel asks for
// none, and all that keeps us below the root of a tree is that one name leads at most one step down.
func name(b []byte) (string, []byte, error) {
	s, rest, err := text(b)
	if err == nil && (s == "" || s == "." || s == ".." || bytes.IndexByte(b[:len(s)], '/') >= 0) {
		err = unix.EINVAL
	}
	return s, rest, err
}

func text(b []byte) (string, []byte, error) {
	i := bytes.IndexByte(b, 0)
	if i < 0 {
		return "", nil, unix.EINVAL
	}
	return string(b[:i]), b[i+1:], nil
}

// newDev is a device number as the kernel's user interface packs it.
func newDev(d uint64) uint32 {
	major, minor := unix.Major(d), unix.Minor(d)
	return minor&0xff | major<<8 | (minor&^0xff)<<12
}

func oldDev(d uint32) int {
	return int(unix.Mkdev(d>>8&0xfff, d&0xff|d>>12&0xfff00))
}
