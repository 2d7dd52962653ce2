// Digests of files, remembered by device, inode, size and change time.
//
// The file sums/<context> is a header and sorted records, read whole and searched in
// place: 50,000 files are checked without opening one.
package builder

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"keg/internal/disk"
	"keg/internal/fault"
)

// magic [8] | crc32 of the records u32 | unused u32 | records, sorted by device and inode
// record: device u64 | inode u64 | size i64 | ctime ns i64 | sha256 [32]
const (
	sumsMagic  = "kegsum1\n"
	sumsHeader = 16
	sumRecord  = 64
)

// racy is how much older than the hashing a change time must be to be trusted: a
// second change within one tick of the clock keeps it (git's racy rule).
const racy = 2 * time.Second

// sums remembers digests between builds. Find and add are for several goroutines.
type sums struct {
	path string
	old  []byte // records of the last build

	mu      sync.Mutex
	now     map[sumKey][32]byte // seen in this build
	changed bool
}

type sumKey struct {
	dev, ino    uint64
	size, ctime int64
}

func sumKeyOf(st *unix.Stat_t) sumKey {
	return sumKey{uint64(st.Dev), st.Ino, st.Size, st.Ctim.Nano()}
}

// loadSums reads what was remembered; a missing or damaged file is an empty one.
func loadSums(path string) *sums {
	s := &sums{path: path, now: map[sumKey][32]byte{}}
	b, err := os.ReadFile(path)
	if err != nil || len(b) < sumsHeader || string(b[:8]) != sumsMagic || (len(b)-sumsHeader)%sumRecord != 0 {
		return s
	}
	if crc32.ChecksumIEEE(b[sumsHeader:]) == binary.LittleEndian.Uint32(b[8:]) {
		s.old = b[sumsHeader:]
	}
	return s
}

func (s *sums) find(st *unix.Stat_t) ([32]byte, bool) {
	k := sumKeyOf(st)
	s.mu.Lock()
	defer s.mu.Unlock()
	if sum, ok := s.now[k]; ok {
		return sum, true
	}
	lo, hi := 0, len(s.old)/sumRecord
	for lo < hi {
		mid := (lo + hi) / 2
		if r := s.at(mid); cmp.Or(cmp.Compare(r.dev, k.dev), cmp.Compare(r.ino, k.ino)) < 0 {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo >= len(s.old)/sumRecord || s.at(lo) != k {
		return [32]byte{}, false
	}
	sum := [32]byte(s.old[lo*sumRecord+32:])
	s.now[k] = sum
	return sum, true
}

func (s *sums) at(i int) sumKey {
	r := s.old[i*sumRecord:]
	le := binary.LittleEndian
	return sumKey{le.Uint64(r), le.Uint64(r[8:]), int64(le.Uint64(r[16:])), int64(le.Uint64(r[24:]))}
}

// add remembers a digest whose hashing began at start, if its change time can be trusted.
func (s *sums) add(st *unix.Stat_t, sum [32]byte, start time.Time) {
	if start.UnixNano()-st.Ctim.Nano() < int64(racy) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now[sumKeyOf(st)] = sum
	s.changed = true
}

// save writes what this build saw, if anything is new.
func (s *sums) save() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.changed {
		return nil
	}
	keys := make([]sumKey, 0, len(s.now))
	for k := range s.now {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b sumKey) int {
		return cmp.Or(cmp.Compare(a.dev, b.dev), cmp.Compare(a.ino, b.ino))
	})
	le := binary.LittleEndian
	b := make([]byte, sumsHeader, sumsHeader+len(keys)*sumRecord)
	copy(b, sumsMagic)
	for _, k := range keys {
		sum := s.now[k]
		b = le.AppendUint64(b, k.dev)
		b = le.AppendUint64(b, k.ino)
		b = le.AppendUint64(b, uint64(k.size))
		b = le.AppendUint64(b, uint64(k.ctime))
		b = append(b, sum[:]...)
	}
	le.PutUint32(b[8:], crc32.ChecksumIEEE(b[sumsHeader:]))
	return disk.PutVolatile(s.path, b, 0o600)
}

// fill computes the digests of all entries of the sources, in parallel where a file
// has to be read.
func (t *tree) fill(ctx context.Context, found []source) error {
	type missing struct {
		src *source
		e   *entry
	}
	var unknown []missing
	for i := range found {
		for j := range found[i].entries {
			e := &found[i].entries[j]
			if e.is(unix.S_IFLNK) {
				continue // its target is in the entry
			}
			if t.sums != nil {
				if sum, ok := t.sums.find(&e.st); ok {
					e.sum = sum
					continue
				}
			}
			unknown = append(unknown, missing{&found[i], e})
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, runtime.GOMAXPROCS(0)))
	// A part has 64 files, or fewer and at least so many bytes.
	const batch, enough = 64, 4 << 20
	for len(unknown) > 0 {
		n, bytes := 0, int64(0)
		for n < min(batch, len(unknown)) && bytes < enough {
			bytes += unknown[n].e.st.Size
			n++
		}
		part := unknown[:n]
		unknown = unknown[n:]
		g.Go(func() error {
			buf := make([]byte, 256<<10)
			for _, m := range part {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err := t.hash(m.src.at(m.e), m.e, buf); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// hash computes one digest: of the content and of the extended attributes that an
// image keeps. A file that changes meanwhile is read again, and refused when it does
// not come to rest.
func (t *tree) hash(at string, e *entry, buf []byte) error {
	flags := unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY
	switch e.st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		flags |= unix.O_DIRECTORY
	default:
		return nil // devices, sockets and pipes are what their entry says
	}
	for try := 0; ; try++ {
		start := time.Now()
		sum, st, err := t.hashOnce(at, flags, buf)
		if err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != e.st.Mode&unix.S_IFMT {
			return fault.Conflictf("%q changed while it was read", at)
		}
		if sumKeyOf(&st) == sumKeyOf(&e.st) || e.is(unix.S_IFDIR) {
			e.sum = sum
			if t.sums != nil {
				t.sums.add(&e.st, sum, start)
			}
			return nil
		}
		if try == 3 {
			return fault.Conflictf("%q changed while it was read: the context must not change during a build", at)
		}
		e.st = st
	}
}

func (t *tree) hashOnce(at string, flags int, buf []byte) (sum [32]byte, st unix.Stat_t, err error) {
	fd, err := openBeneath(int(t.root.Fd()), at, flags, 0)
	if err != nil {
		return sum, st, &fs.PathError{Op: "open", Path: "/" + at, Err: err}
	}
	defer unix.Close(fd)
	h := sha256.New()
	if err := hashXattrs(h, fd); err != nil {
		return sum, st, &fs.PathError{Op: "read attributes", Path: "/" + at, Err: err}
	}
	if flags&unix.O_DIRECTORY == 0 {
		for {
			n, err := unix.Read(fd, buf)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return sum, st, &fs.PathError{Op: "read", Path: "/" + at, Err: err}
			}
			if n == 0 {
				break
			}
			h.Write(buf[:n])
		}
	}
	err = unix.Fstat(fd, &st)
	return [32]byte(h.Sum(nil)), st, err
}

// keptXattr tells the extended attributes that a copy carries along: those of users
// and file capabilities. What steers overlayfs is never foreign text's business.
func keptXattr(name string) bool {
	return name == "security.capability" ||
		len(name) > 5 && name[:5] == "user." && !(len(name) > 13 && name[:13] == "user.overlay.")
}

func hashXattrs(h io.Writer, fd int) error {
	names, err := xattrNames(fd)
	for _, n := range names {
		v, err := xattrValue(fd, n)
		if err != nil {
			return err
		}
		var size [16]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(n)))
		binary.BigEndian.PutUint64(size[8:], uint64(len(v)))
		h.Write(size[:])
		io.WriteString(h, n)
		h.Write(v)
	}
	return err
}

// xattrNames lists the kept attributes of an open file, sorted. A file system without
// them has none.
func xattrNames(fd int) ([]string, error) {
	var small [512]byte
	b := small[:]
	n, err := unix.Flistxattr(fd, b)
	if errors.Is(err, unix.ERANGE) {
		b = make([]byte, 64<<10) // XATTR_LIST_MAX
		n, err = unix.Flistxattr(fd, b)
	}
	if errors.Is(err, unix.ENOTSUP) || n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for name := range bytes.SplitSeq(bytes.TrimSuffix(b[:n], []byte{0}), []byte{0}) {
		if keptXattr(string(name)) {
			names = append(names, string(name))
		}
	}
	slices.Sort(names)
	return names, nil
}

func xattrValue(fd int, name string) ([]byte, error) {
	b := make([]byte, 64<<10) // XATTR_SIZE_MAX
	n, err := unix.Fgetxattr(fd, name, b)
	if err != nil {
		return nil, err
	}
	return b[:n], nil
}

// noXattrs is the digest of a directory without kept attributes.
func noXattrs() [32]byte { return sha256.Sum256(nil) }
