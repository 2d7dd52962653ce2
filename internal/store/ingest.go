// Writing blobs. A blob grows in a directory of its own under a flock and becomes
// visible by one rename after its size and digest were found right. What a dead writer
// left is taken up by the next one with the same key.

package store

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"keg/internal/disk"
	"keg/internal/fault"
	"keg/internal/linux"
	"keg/internal/weakness"
)

// Ingest is a blob being written.
type Ingest interface {
	io.Writer
	// Offset is how many bytes are already there (resumed).
	Offset() int64
	// Truncate(0) starts anew.
	Truncate(size int64) error
	// Commit verifies size (-1: any) and digest ("": any), makes the blob visible
	// durably and returns its digest. A blob that is there already is success. After a
	// mismatch (fault.Invalid) what was written is deleted. The ingest is over either way.
	Commit(ctx context.Context, size int64, want digest.Digest) (digest.Digest, error)
	// Close keeps what was written for the next Ingest; Abort deletes it.
	Close() error
	Abort() error
}

// Ingest starts or resumes the write with this key (a digest, or any safe name). It
// waits while another process writes under the same key; on return the caller
// checks Has again.
func (s *Store) Ingest(ctx context.Context, key string) (Ingest, error) {
	return s.ingest(ctx, key, true)
}

// Resume is Ingest for a write that was begun before; fault.NotFound when it was not.
func (s *Store) Resume(ctx context.Context, key string) (Ingest, error) {
	return s.ingest(ctx, key, false)
}

// The bytes are in one of two files. "data-<boot>" holds what processes of this boot
// wrote; after a power cut it may be as long as before and full of zeros, so another boot
// deletes it. Close renames it to "data" after an fsync, which any boot resumes.
const syncedData = "data"

type ingest struct {
	s    *Store
	dir  string
	lock *os.File // of dir, with the flock
	f    *os.File
	alg  digest.Algorithm
	size int64
	h    hash.Hash // of the first size bytes; nil until needed
}

func checkKey(key string) error {
	bad := key == "" || len(key) > 200 || key[0] == '.' ||
		strings.IndexFunc(key, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._:+-", r))
		}) >= 0
	if bad {
		return fault.Invalidf("invalid ingest key %q", key)
	}
	return nil
}

func (s *Store) ingest(ctx context.Context, key string, create bool) (*ingest, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	dir := s.path("ingest", key)
	lock, err := lockIngest(ctx, dir, create)
	if err != nil {
		return nil, err
	}
	w := &ingest{s: s, dir: dir, lock: lock, alg: digest.SHA256}
	if a, _, ok := cutDigest(key); ok {
		w.alg = a
	}
	if err := w.open(); err != nil {
		lock.Close()
		return nil, fmt.Errorf("ingest %s: %w", key, err)
	}
	return w, nil
}

// lockIngest returns dir opened and locked. Commit and Abort remove the directory while
// they hold it, so after the lock the directory must still be the one with this name.
func lockIngest(ctx context.Context, dir string, create bool) (*os.File, error) {
	for wait := time.Millisecond; ; {
		if create {
			if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return nil, err
			}
		}
		f, err := os.Open(dir)
		if errors.Is(err, fs.ErrNotExist) {
			if create {
				continue
			}
			return nil, fault.NotFoundf("no unfinished write %s", filepath.Base(dir))
		}
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && sameFile(f, dir) {
			return f, nil
		}
		f.Close()
		if err == nil || errors.Is(err, unix.EINTR) {
			continue
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, &os.PathError{Op: "flock", Path: dir, Err: err}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for another process that writes %s: %w", filepath.Base(dir), context.Cause(ctx))
		case <-time.After(wait):
			wait = min(2*wait, 50*time.Millisecond)
		}
	}
}

func (w *ingest) open() error {
	boot, err := linux.BootID()
	if err != nil {
		return err
	}
	name := syncedData + "-" + boot
	ents, err := os.ReadDir(w.dir)
	if err != nil {
		return err
	}
	for _, e := range ents {
		switch e.Name() {
		case name:
		case syncedData:
			err = os.Rename(filepath.Join(w.dir, syncedData), filepath.Join(w.dir, name))
		default:
			err = os.RemoveAll(filepath.Join(w.dir, e.Name()))
		}
		if err != nil {
			return err
		}
	}
	w.f, err = os.OpenFile(filepath.Join(w.dir, name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	w.size, err = w.f.Seek(0, io.SeekEnd)
	return err
}

func (w *ingest) Offset() int64 { return w.size }

// parallelHash is the size from which a goroutine for the hash costs less than waiting.
const parallelHash = 32 << 10

func (w *ingest) Write(p []byte) (int, error) {
	if err := w.hashed(); err != nil {
		return 0, err
	}
	var n int
	var err error
	if len(p) < parallelHash {
		n, err = w.f.Write(p)
		w.h.Write(p[:n])
	} else {
		done := make(chan struct{})
		go func() { w.h.Write(p); close(done) }()
		n, err = w.f.Write(p)
		<-done
		if n < len(p) {
			w.h = nil
		}
	}
	w.size += int64(n)
	return n, err
}

// hashed makes h the hash of what is in the file; a resumed prefix is read once.
func (w *ingest) hashed() error {
	if w.h != nil {
		return nil
	}
	h := newHash(w.alg)
	if w.size > 0 {
		n, err := io.Copy(h, io.NewSectionReader(w.f, 0, w.size))
		if err == nil && n != w.size {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("read what was written before: %w", err)
		}
	}
	w.h = h
	return nil
}

func (w *ingest) Truncate(size int64) error {
	if size > w.size {
		return fault.Invalidf("truncate to %d: only %d bytes are written", size, w.size)
	}
	if size == w.size {
		return nil
	}
	if err := w.f.Truncate(size); err != nil {
		return err
	}
	w.h = nil
	w.size = size
	_, err := w.f.Seek(size, io.SeekStart)
	return err
}

func (w *ingest) Commit(ctx context.Context, size int64, want digest.Digest) (digest.Digest, error) {
	return w.commit(ctx, size, want, w.publish)
}

func (w *ingest) commit(ctx context.Context, size int64, want digest.Digest, publish func(digest.Digest) error) (digest.Digest, error) {
	defer w.lock.Close()
	defer w.f.Close()
	d, err := w.verify(size, want)
	if err != nil {
		if fault.Is(err, fault.Invalid) {
			os.RemoveAll(w.dir)
		}
		return "", err
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if err := publish(d); err != nil {
		return "", fmt.Errorf("store blob %s: %w", d, err)
	}
	return d, nil
}

func (w *ingest) verify(size int64, want digest.Digest) (digest.Digest, error) {
	if want != "" {
		if err := checkDigest(want); err != nil {
			return "", err
		}
		if a := want.Algorithm(); a != w.alg {
			w.alg, w.h = a, nil
		}
	}
	if size >= 0 && size != w.size {
		return "", fault.Invalidf("blob %s has %d bytes, not %d", want, w.size, size)
	}
	if err := w.hashed(); err != nil {
		return "", err
	}
	d := digest.NewDigest(w.alg, w.h)
	if want != "" && d != want && !weakness.Of("IM5") {
		return "", fault.Invalidf("blob %s: the %d bytes received have digest %s", want, w.size, d)
	}
	return d, nil
}

// publish: bytes, then the name, then the directory that holds the name.
func (w *ingest) publish(d digest.Digest) error {
	if err := w.show(d); err != nil {
		return err
	}
	return disk.SyncDir(filepath.Dir(w.s.blobPath(d)))
}

// show is publish without the last step: the blob is whole and has its name, which a power cut may take
// away again until the directory is synced.
func (w *ingest) show(d digest.Digest) error {
	if size, err := w.s.Stat(d); err == nil && size == w.size {
		w.s.touch(d)
		return os.RemoveAll(w.dir)
	}
	if err := w.flush(); err != nil {
		return err
	}
	return w.place(d)
}

func (w *ingest) flush() error {
	if err := w.f.Chmod(0o444); err != nil {
		return err
	}
	return w.f.Sync()
}

// place names what was flushed.
func (w *ingest) place(d digest.Digest) error {
	// A blob of another length under this digest is damaged; the rename heals it.
	if err := os.Rename(w.f.Name(), w.s.blobPath(d)); err != nil {
		return err
	}
	w.s.touch(d)
	return os.RemoveAll(w.dir)
}

func (w *ingest) Close() error {
	defer w.lock.Close()
	err := w.f.Sync()
	if err == nil {
		err = os.Rename(w.f.Name(), filepath.Join(w.dir, syncedData))
	}
	w.f.Close()
	return err
}

func (w *ingest) Abort() error {
	defer w.lock.Close()
	w.f.Close()
	return os.RemoveAll(w.dir)
}

// leave lets go without a sync, for a session whose next request comes at once.
func (w *ingest) leave() {
	w.f.Close()
	w.lock.Close()
}

// readFrom appends body through a buffer that is large enough to hash in parallel.
func (w *ingest) readFrom(body io.Reader) (int64, error) {
	buf := copyBuffers.Get().(*[copySize]byte)
	defer copyBuffers.Put(buf)
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{body}, buf[:])
}

const copySize = 256 << 10

var copyBuffers = sync.Pool{New: func() any { return new([copySize]byte) }}
