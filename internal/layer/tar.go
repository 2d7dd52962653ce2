package layer

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"
	"sort"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
)

// Tar is a tar re-created from a tree and its recipe. Read from the start to the end
// it hashes what it gives and withholds the last bytes unless the digest is right;
// after Seek, and through ReadAt, it gives the contents of a file only as far as the
// whole file has the recorded digest. A reader can thus never finish with wrong bytes.
//
// ReadAt may be called from several goroutines, beside one that uses Read and Seek.
type Tar struct {
	root   *os.File
	recipe *os.File
	index  []chunkAt
	size   int64
	sum    [sha256.Size]byte

	mu      sync.Mutex // the following
	cache   *chunk
	dec     *zstd.Decoder
	checked map[int64]bool

	pos  int64
	flow *flow
}

// ErrChanged is in the chain of every error that means: the tree no longer gives the
// tar of its recipe.
var ErrChanged = errors.New("layer tree has changed")

// chunkAt is where a chunk begins, in the tar and in the recipe.
type chunkAt struct{ tar, recipe int64 }

// op is a literal (data) or a file's contents (name) at an offset of the tar.
type op struct {
	at, size int64
	data     []byte
	name     string
	sum      []byte
}

type chunk struct {
	i   int
	ops []op
}

// OpenTar opens the tar of the tree root by its recipe. Closing it closes both; after
// an error they are closed too.
func OpenTar(root, recipe *os.File) (_ *Tar, err error) {
	t := &Tar{root: root, recipe: recipe, checked: map[int64]bool{}}
	defer func() {
		if err != nil {
			t.Close()
		}
	}()
	st, err := recipe.Stat()
	if err != nil {
		return nil, err
	}
	damaged := func(why string) (*Tar, error) {
		return nil, fmt.Errorf("recipe %s is damaged (%s): %w", recipe.Name(), why, ErrChanged)
	}
	if st.Size() < int64(len(recipeMagic)+trailerSize) {
		return damaged("short")
	}
	trailer := make([]byte, trailerSize)
	if _, err := recipe.ReadAt(trailer, st.Size()-trailerSize); err != nil {
		return nil, err
	}
	rest := trailer[8+sha256.Size:]
	chunks, indexAt, crc := binary.LittleEndian.Uint32(rest), int64(binary.LittleEndian.Uint64(rest[4:])), binary.LittleEndian.Uint32(rest[12:])
	t.size = int64(binary.LittleEndian.Uint64(trailer))
	copy(t.sum[:], trailer[8:])
	if indexAt < int64(len(recipeMagic)) || indexAt > st.Size()-trailerSize || t.size < 0 {
		return damaged("bad index")
	}
	index := make([]byte, st.Size()-indexAt)
	if _, err := recipe.ReadAt(index, indexAt); err != nil {
		return nil, err
	}
	if crc32.Checksum(index[:len(index)-4], crc32.MakeTable(crc32.Castagnoli)) != crc {
		return damaged("checksum of its index")
	}
	if !t.readIndex(index[:len(index)-trailerSize], chunks) {
		return damaged("bad index")
	}
	return t, nil
}

// readIndex turns lengths into offsets; the last entry is the end of both.
func (t *Tar) readIndex(p []byte, chunks uint32) bool {
	at := chunkAt{0, int64(len(recipeMagic))}
	if uint64(chunks) > uint64(len(p)) {
		return false
	}
	t.index = append(make([]chunkAt, 0, chunks+1), at)
	for range chunks {
		a, n := binary.Uvarint(p)
		if n <= 0 {
			return false
		}
		b, m := binary.Uvarint(p[n:])
		if m <= 0 || a > 1<<62 || b > 1<<40 {
			return false
		}
		p = p[n+m:]
		at.tar += int64(a)
		at.recipe += int64(b)
		t.index = append(t.index, at)
	}
	return at.tar == t.size
}

// Size of the tar.
func (t *Tar) Size() int64 { return t.size }

// Digest of the tar: its diffID.
func (t *Tar) Digest() digest.Digest { return digest.NewDigestFromBytes(digest.SHA256, t.sum[:]) }

// Close ends the use of tree and recipe.
func (t *Tar) Close() error {
	if t.flow != nil {
		t.flow.close()
	}
	if t.dec != nil {
		t.dec.Close()
	}
	t.root.Close()
	return t.recipe.Close()
}

// chunkFor returns the chunk that holds offset off of the tar.
func (t *Tar) chunkFor(off int64) (*chunk, error) {
	i := sort.Search(len(t.index), func(i int) bool { return t.index[i].tar > off }) - 1
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cache != nil && t.cache.i == i {
		return t.cache, nil
	}
	raw := make([]byte, t.index[i+1].recipe-t.index[i].recipe)
	if _, err := t.recipe.ReadAt(raw, t.index[i].recipe); err != nil {
		return nil, fmt.Errorf("read recipe: %w", err)
	}
	ops, err := t.decode(raw, t.index[i].tar, t.index[i+1].tar)
	if err != nil {
		return nil, fmt.Errorf("recipe %s is damaged: %w: %w", t.recipe.Name(), err, ErrChanged)
	}
	t.cache = &chunk{i, ops}
	return t.cache, nil
}

func (t *Tar) decode(raw []byte, at, end int64) (ops []op, err error) {
	short := errors.New("chunk ends early")
	if len(raw) == 0 {
		return nil, short
	}
	p := raw[1:]
	if raw[0] == 1 {
		if t.dec == nil {
			if t.dec, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20)); err != nil {
				return nil, err
			}
		}
		if p, err = t.dec.DecodeAll(p, nil); err != nil {
			return nil, err
		}
	}
	for len(p) > 0 {
		kind := p[0]
		n, w := binary.Uvarint(p[1:])
		if w <= 0 {
			return nil, short
		}
		p = p[1+w:]
		o := op{at: at, size: int64(n)}
		switch kind {
		case opLiteral:
			if n > uint64(len(p)) {
				return nil, short
			}
			o.data, p = p[:n], p[n:]
		case opFile:
			if len(p) < sha256.Size {
				return nil, short
			}
			o.sum, p = p[:sha256.Size], p[sha256.Size:]
			m, w := binary.Uvarint(p)
			if w <= 0 || m > uint64(len(p)-w) {
				return nil, short
			}
			o.name, p = string(p[w:w+int(m)]), p[w+int(m):]
		default:
			return nil, errors.New("unknown operation")
		}
		if o.size <= 0 || o.size > end-at {
			return nil, errors.New("sizes do not add up")
		}
		at += o.size
		ops = append(ops, o)
	}
	if at != end {
		return nil, short
	}
	return ops, nil
}

// opAt returns the operation that holds offset off < size.
func (t *Tar) opAt(off int64) (op, error) {
	c, err := t.chunkFor(off)
	if err != nil {
		return op{}, err
	}
	i := sort.Search(len(c.ops), func(i int) bool { return c.ops[i].at > off }) - 1
	return c.ops[i], nil
}

// open opens the file of an operation, which must still be one of the recorded size.
func (t *Tar) open(o op) (*os.File, error) {
	f, err := linux.OpenInRoot(int(t.root.Fd()), o.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return nil, changed(o.name, "it is gone")
	}
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	switch {
	case err != nil:
	case !st.Mode().IsRegular():
		err = changed(o.name, "it is no regular file")
	case st.Size() != o.size:
		err = changed(o.name, fmt.Sprintf("it has %d bytes instead of %d", st.Size(), o.size))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func changed(name, how string) error {
	return fmt.Errorf("file %q of the layer is not what it was when the layer was made: %s: %w", name, how, ErrChanged)
}

// check hashes a whole file.
func (t *Tar) check(o op, f *os.File) error {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, o.size)); err != nil {
		return fmt.Errorf("read layer file %q: %w", o.name, err)
	}
	if string(h.Sum(nil)) != string(o.sum) {
		return changed(o.name, "its contents differ")
	}
	return nil
}

// ReadAt reads at an offset; each file that it touches is hashed the first time.
func (t *Tar) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fault.Invalidf("read layer tar: negative offset")
	}
	for len(p) > 0 {
		if off >= t.size {
			return n, io.EOF
		}
		o, err := t.opAt(off)
		if err != nil {
			return n, err
		}
		m, err := t.readOp(o, p, off-o.at)
		n, off, p = n+m, off+int64(m), p[m:]
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (t *Tar) readOp(o op, p []byte, off int64) (int, error) {
	p = p[:min(int64(len(p)), o.size-off)]
	if o.data != nil {
		return copy(p, o.data[off:]), nil
	}
	f, err := t.open(o)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	t.mu.Lock()
	good := t.checked[o.at]
	t.mu.Unlock()
	if !good {
		if err := t.check(o, f); err != nil {
			return 0, err
		}
		t.mu.Lock()
		t.checked[o.at] = true
		t.mu.Unlock()
	}
	return io.ReadFull(io.NewSectionReader(f, off, o.size-off), p)
}

// Seek sets the offset of the next Read.
func (t *Tar) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += t.pos
	case io.SeekEnd:
		off += t.size
	}
	if off < 0 {
		return 0, fault.Invalidf("seek layer tar: negative offset")
	}
	t.pos = off
	return off, nil
}

// Read reads on. See Tar for what it promises.
func (t *Tar) Read(p []byte) (n int, err error) {
	if t.pos >= t.size {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	if t.flow == nil || t.flow.at != t.pos {
		if t.flow != nil {
			t.flow.close()
		}
		t.flow = &flow{t: t, at: t.pos, whole: t.pos == 0, sum: sha256.New()}
	}
	n, err = t.flow.read(p)
	t.pos += int64(n)
	return n, err
}

// flow is one run of Reads without a Seek between.
type flow struct {
	t     *Tar
	at    int64
	whole bool      // from offset 0: one digest over all, else one over each file
	sum   hash.Hash // of the tar, or of the file f from its start
	op    op
	f     *os.File
	err   error
}

func (w *flow) close() {
	if w.f != nil {
		w.f.Close()
		w.f = nil
	}
}

func (w *flow) read(p []byte) (n int, err error) {
	if w.err != nil {
		return 0, w.err
	}
	for n < len(p) && w.at < w.t.size && err == nil {
		var m int
		m, err = w.step(p[n:])
		n += m
	}
	if err == nil && w.at == w.t.size && w.whole && string(w.sum.Sum(nil)) != string(w.t.sum[:]) {
		err = w.t.culprit()
	}
	if err != nil {
		// All of p is withheld: it may end in what just proved wrong.
		w.close()
		w.err = err
		return 0, err
	}
	return n, nil
}

// step gives bytes of one operation.
func (w *flow) step(p []byte) (int, error) {
	if w.at >= w.op.at+w.op.size || w.op.size == 0 {
		if err := w.enter(); err != nil {
			return 0, err
		}
	}
	off := w.at - w.op.at
	p = p[:min(int64(len(p)), w.op.size-off)]
	if w.f == nil {
		copy(p, w.op.data[off:])
	} else if n, err := io.ReadFull(w.f, p); err != nil {
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return 0, changed(w.op.name, "it became shorter")
		}
		return n, fmt.Errorf("read layer file %q: %w", w.op.name, err)
	}
	if w.whole || w.f != nil {
		w.sum.Write(p)
	}
	w.at += int64(len(p))
	if w.at < w.op.at+w.op.size || w.f == nil {
		return len(p), nil
	}
	w.close()
	if !w.whole && string(w.sum.Sum(nil)) != string(w.op.sum) {
		return 0, changed(w.op.name, "its contents differ")
	}
	return len(p), nil
}

// enter opens the operation at the present offset.
func (w *flow) enter() (err error) {
	if w.op, err = w.t.opAt(w.at); err != nil || w.op.data != nil {
		return err
	}
	if w.f, err = w.t.open(w.op); err != nil {
		return err
	}
	if w.whole {
		return nil
	}
	w.sum.Reset()
	_, err = io.CopyN(w.sum, w.f, w.at-w.op.at)
	return err
}

// culprit names the first file whose contents changed, once the digest of the whole
// was wrong.
func (t *Tar) culprit() error {
	if err := t.Verify(context.Background()); err != nil {
		return err
	}
	return fmt.Errorf("layer no longer gives the tar %s: %w", t.Digest(), ErrChanged)
}

// Verify compares every file with the recipe and names the first that differs.
func (t *Tar) Verify(ctx context.Context) error {
	for at := int64(0); at < t.size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		o, err := t.opAt(at)
		if err != nil {
			return err
		}
		at = o.at + o.size
		if o.data != nil {
			continue
		}
		f, err := t.open(o)
		if err != nil {
			return err
		}
		err = t.check(o, f)
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
