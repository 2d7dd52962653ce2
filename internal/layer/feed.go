package layer

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

// The pipeline of Apply: one goroutine reads (and so inflates), one hashes, the
// caller's writes files. Blocks go round between them; none is copied but into tar's
// reader.
//
//	reader --block--> hasher --+
//	       \--block--> Read    +--> free
const (
	blockSize  = 256 << 10
	blockCount = 8
)

type block struct {
	data []byte
	uses atomic.Int32
}

// blocks is a ring of buffers, so that memory is bounded whatever comes.
type blocks chan *block

func newBlocks() blocks {
	free := make(blocks, blockCount)
	for range blockCount {
		free <- &block{}
	}
	return free
}

// ready gives a free block its whole length; its memory is made on first use.
func (b *block) ready() *block {
	if b.data == nil {
		b.data = make([]byte, blockSize)
	}
	b.data = b.data[:blockSize]
	return b
}

func (free blocks) done(b *block) {
	if b.uses.Add(-1) == 0 {
		free <- b
	}
}

// sum hashes blocks in a goroutine of its own.
type sum struct {
	in   chan *block
	done chan struct{}
	hash hash.Hash
}

// newSum with skip lets the blocks pass: for who does not ask for the digest.
func newSum(free blocks, skip bool) *sum {
	s := &sum{make(chan *block, blockCount), make(chan struct{}), nil}
	if !skip {
		s.hash = sha256.New()
	}
	go func() {
		defer close(s.done)
		for b := range s.in {
			if s.hash != nil {
				s.hash.Write(b.data)
			}
			free.done(b)
		}
	}()
	return s
}

// end waits for the goroutine; no block may follow.
func (s *sum) end() {
	close(s.in)
	<-s.done
}

// digest is what was hashed, after end.
func (s *sum) digest() digest.Digest {
	if s.hash == nil {
		return ""
	}
	return digest.NewDigest(digest.SHA256, s.hash)
}

// feed is the reading end. Read and drain belong to one goroutine.
type feed struct {
	free blocks
	out  chan *block
	quit chan struct{}
	end  chan struct{}
	sum  *sum
	err  error // of the reader; set before out is closed
	cur  *block
	rest []byte
	size int64

	keep func([]byte) // sees every byte that Read hands out, when set
}

func newFeed(ctx context.Context, r io.Reader, noDigest bool) *feed {
	f := &feed{free: newBlocks(), out: make(chan *block, blockCount), quit: make(chan struct{}), end: make(chan struct{})}
	f.sum = newSum(f.free, noDigest)
	go f.pump(ctx, r)
	return f
}

func (f *feed) pump(ctx context.Context, r io.Reader) {
	defer close(f.end)
	defer close(f.out)
	for {
		var b *block
		select {
		case b = <-f.free:
			b.ready()
		case <-f.quit:
			f.err = errors.New("stopped")
			return
		}
		if err := ctx.Err(); err != nil {
			f.err = context.Cause(ctx)
			return
		}
		n, err := fill(r, b.data)
		b.data = b.data[:n]
		f.size += int64(n)
		b.uses.Store(2)
		f.sum.in <- b
		f.out <- b
		if err != nil {
			f.err = err
			return
		}
	}
}

// fill reads until a quarter of p is full, so that a slow source is not waited for
// longer than a few packets while a fast one costs few hand-overs.
func fill(r io.Reader, p []byte) (n int, err error) {
	for idle := 0; n < len(p)/4 && err == nil; {
		var m int
		m, err = r.Read(p[n:])
		n += m
		if idle++; m > 0 {
			idle = 0
		} else if idle > 100 && err == nil {
			err = io.ErrNoProgress
		}
	}
	return n, err
}

func (f *feed) Read(p []byte) (int, error) {
	for len(f.rest) == 0 {
		if f.cur != nil {
			f.free.done(f.cur)
			f.cur = nil
		}
		b, ok := <-f.out
		if !ok {
			return 0, f.err
		}
		f.cur, f.rest = b, b.data
	}
	n := copy(p, f.rest)
	if f.keep != nil {
		f.keep(f.rest[:n])
	}
	f.rest = f.rest[n:]
	return n, nil
}

// drain reads what follows the archive: the digest is that of all bytes.
func (f *feed) drain() error {
	_, err := io.Copy(io.Discard, onlyReader{f})
	return err
}

type onlyReader struct{ io.Reader }

// stop ends the goroutines, the reader's once its present Read returned, and leaves
// digest and size of what was read.
func (f *feed) stop() {
	close(f.quit)
	for b := range f.out {
		f.free.done(b)
	}
	<-f.end
	f.sum.end()
}
