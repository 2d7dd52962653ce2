package layer

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"keg/internal/fault"
	"keg/internal/image"
)

// maxWindow bounds what a zstd stream may make us remember: the largest window that
// the zstd program writes without being forced to (--long=27).
const maxWindow = 128 << 20

// Decompress returns the uncompressed stream of a layer blob. r is read in a goroutine
// ahead of the inflating, so what r does (fetch, hash, write to disk) takes its own
// time; Apply in turn inflates ahead of its writing. Close ends the goroutine, once a
// Read of r that is under way has returned; it does not close r.
func Decompress(r io.Reader, c image.Compression) (io.ReadCloser, error) {
	switch c {
	case image.Uncompressed:
		return io.NopCloser(r), nil
	case image.Gzip:
		a := newAhead(r)
		z, err := gzip.NewReader(a.Reader) // the inflater has a fast path for exactly this type
		if err != nil {
			a.Close()
			return nil, broken("gzip", err)
		}
		return &inflater{z, z.Close, a, "gzip"}, nil
	case image.Zstd:
		a := newAhead(r)
		z, err := zstd.NewReader(a, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true), zstd.WithDecoderConcurrency(2))
		if err != nil {
			a.Close()
			return nil, broken("zstd", err)
		}
		return &inflater{z, func() error { z.Close(); return nil }, a, "zstd"}, nil
	}
	return nil, fault.Unsupportedf("compression %q is not supported", c)
}

// Sniff tells from its first bytes (4 suffice) how a stream is compressed, for archives
// that come without a media type.
func Sniff(head []byte) image.Compression {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return image.Gzip
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}), skippable(head):
		return image.Zstd
	}
	return image.Uncompressed
}

// skippable frames (RFC 8878 section 3.1.2) open the files of some zstd writers.
func skippable(head []byte) bool {
	return len(head) >= 4 && head[0]&0xf0 == 0x50 && head[1] == 0x2a && head[2] == 0x4d && head[3] == 0x18
}

// Inflate returns the tar in an archive that people hand over, however it is
// compressed: gzip, zstd, xz, bzip2 or not at all. No other program is started.
func Inflate(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 256<<10)
	head, err := b.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte("BZh")):
		return io.NopCloser(&named{bzip2.NewReader(b), "bzip2"}), nil
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		z, err := xz.ReaderConfig{DictCap: maxWindow}.NewReader(b)
		if err != nil {
			return nil, broken("xz", err)
		}
		return io.NopCloser(&named{z, "xz"}), nil
	}
	return Decompress(b, Sniff(head))
}

// named tells damage from the end.
type named struct {
	r    io.Reader
	name string
}

func (n *named) Read(p []byte) (int, error) {
	k, err := n.r.Read(p)
	if err != nil && err != io.EOF {
		err = broken(n.name, err)
	}
	return k, err
}

type inflater struct {
	r     io.Reader
	close func() error
	ahead *ahead
	name  string
}

func (i *inflater) Read(p []byte) (int, error) {
	n, err := i.r.Read(p)
	if err != nil && err != io.EOF {
		err = broken(i.name, err)
	}
	return n, err
}

func (i *inflater) Close() error {
	i.ahead.Close()
	return i.close()
}

// broken tells damage of the blob from an error of its source.
func broken(what string, err error) error {
	var src *sourceError
	switch {
	case errors.As(err, &src):
		return src.err
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	return fault.Invalidf("layer %s stream is damaged: %w", what, err)
}

type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }

// ahead reads its source in a goroutine, some blocks in advance.
type ahead struct {
	*bufio.Reader
	free, out chan []byte
	quit, end chan struct{}
	err       error
	cur, rest []byte
}

const (
	aheadSize  = 128 << 10
	aheadCount = 8
)

func newAhead(r io.Reader) *ahead {
	a := &ahead{free: make(chan []byte, aheadCount), out: make(chan []byte, aheadCount), quit: make(chan struct{}), end: make(chan struct{})}
	a.Reader = bufio.NewReaderSize(readFunc(a.next), 32<<10)
	for range aheadCount {
		a.free <- nil
	}
	go a.pump(r)
	return a
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

func (a *ahead) pump(r io.Reader) {
	defer close(a.end)
	defer close(a.out)
	for {
		var b []byte
		select {
		case b = <-a.free:
		case <-a.quit:
			return
		}
		if b == nil {
			b = make([]byte, aheadSize)
		}
		n, err := fill(r, b[:aheadSize])
		a.out <- b[:n]
		if err != nil {
			if a.err = err; err != io.EOF {
				a.err = &sourceError{err}
			}
			return
		}
	}
}

func (a *ahead) next(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.cur != nil {
			a.free <- a.cur
			a.cur = nil
		}
		b, ok := <-a.out
		if !ok {
			return 0, a.err
		}
		a.cur, a.rest = b, b
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

func (a *ahead) Close() {
	select {
	case <-a.quit:
		return
	default:
	}
	close(a.quit)
	for range a.out {
	}
	<-a.end
}
