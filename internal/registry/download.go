// Bytes of a blob, patiently: a reader that goes on where a connection broke, is not
// kept waiting, and never returns more or fewer bytes than the descriptor says without an
// error. Whether they are the right bytes is for the verifying writer behind it.

package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/weakness"
)

// Blob opens a blob at offset. The reader retries and resumes by Range by itself; the bytes are not
// verified here but by the writer they go to. got is the real offset (0 when the
// server does not do ranges). URLs in the descriptor are not followed.
func (c *Client) Blob(ctx context.Context, ref image.Reference, d image.Descriptor, offset int64) (r io.ReadCloser, got int64, err error) {
	if _, ok := parseDigest(string(d.Digest)); !ok {
		return nil, 0, fault.Invalidf("blob of %s: invalid digest %q", ref.Familiar(), printable(string(d.Digest)))
	}
	if isForeign(d.MediaType) && !weakness.Of("IM11") {
		return nil, 0, fault.Unsupportedf("layer %s of %s may not be distributed by registries; its own address is not trusted", d.Digest, ref.Familiar())
	}
	if offset < 0 || offset > d.Size {
		return nil, 0, fault.Invalidf("blob %s has no offset %d", d.Digest, offset)
	}
	var b *blobReader
	err = c.try(ref, true, func(p place) error {
		b = &blobReader{ctx: ctx, place: p, desc: d, off: offset, failures: c.patient.effort()}
		return b.reopen()
	})
	if err != nil {
		return nil, 0, blobError(ref, d, err)
	}
	return b, b.off, nil
}

func blobError(ref image.Reference, d image.Descriptor, err error) error {
	var r *refusal
	if errors.As(err, &r) && r.status == http.StatusNotFound {
		return fault.NotFoundf("blob %s of %s is not in registry %s: %w", d.Digest, ref.FamiliarName(), r.ep.name(), r)
	}
	return pullError(ref, err)
}

// blobReader reads from one response after the other.
type blobReader struct {
	ctx   context.Context
	place place
	desc  image.Descriptor
	off   int64 // of the next byte

	body     *watch
	skip     int64 // bytes of body before off
	started  bool  // something was returned: the offset cannot go back any more
	failures *effort
	since    int64 // off at the last failure
	err      error
}

// enough is how many bytes make a new connection worth while: with fewer between two
// failures, patience wears out.
const enough = 64 << 10

func (b *blobReader) Read(p []byte) (int, error) {
	for b.err == nil {
		if b.off == b.desc.Size {
			b.err = b.end()
			break
		}
		if b.body == nil {
			if b.err = b.reopen(); b.err != nil {
				break
			}
		}
		n, err := b.read(p)
		if n > 0 {
			b.started = true
			return n, nil
		}
		if err != nil {
			b.drop()
			b.err = b.pause(err)
		}
	}
	return 0, b.err
}

// read returns bytes at off, none beyond the size.
func (b *blobReader) read(p []byte) (int, error) {
	if b.skip > 0 {
		n, err := io.CopyN(io.Discard, b.body, b.skip)
		if b.skip -= n; err != nil {
			return 0, early(err)
		}
	}
	p = p[:min(int64(len(p)), b.desc.Size-b.off)]
	n, err := b.body.Read(p)
	b.off += int64(n)
	if n > 0 || err == nil {
		return n, nil // an error comes again
	}
	return 0, early(err)
}

func early(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// end makes sure that the body is over, too.
func (b *blobReader) end() error {
	if b.body == nil {
		return io.EOF
	}
	var one [1]byte
	if n, _ := io.ReadFull(b.body, one[:]); n > 0 {
		return fault.Invalidf("registry %s sends more than the %d bytes of blob %s", b.place.name(), b.desc.Size, b.desc.Digest)
	}
	return io.EOF
}

// pause counts a failure and waits; the error is final when patience is at its end.
func (b *blobReader) pause(cause error) error {
	if err := context.Cause(b.ctx); err != nil {
		return err
	}
	if b.off-b.since >= enough {
		b.failures.anew()
	}
	b.since = b.off
	if b.failures.spent(cause) {
		if errors.Is(cause, errDamaged) {
			return cause
		}
		return fault.Unavailablef("blob %s: registry %s: connection lost at byte %d of %d, %d times in a row: %w; what arrived is kept, try again",
			b.desc.Digest, b.place.name(), b.off, b.desc.Size, b.failures.tries, cause)
	}
	return sleep(b.ctx, b.failures.pause())
}

// reopen asks again, also when the answer was not to the question. Patience with the
// way there is do's.
func (b *blobReader) reopen() error {
	for {
		err := b.open()
		if !errors.Is(err, errDamaged) {
			return err
		}
		if err := b.pause(err); err != nil {
			return err
		}
	}
}

// open asks for the rest from off. A server that ignores Range sends all: if nothing was
// returned yet, off becomes 0 and the caller is told; later the known part is skipped.
func (b *blobReader) open() error {
	c := call{method: http.MethodGet, path: b.place.path("/blobs/" + string(b.desc.Digest)), scopes: pullScope(b.place),
		header: http.Header{}, want: []int{http.StatusOK, http.StatusPartialContent}}
	if b.off == b.desc.Size && b.off > 0 {
		return nil
	}
	if b.off > 0 {
		c.header.Set("Range", fmt.Sprintf("bytes=%d-", b.off))
	}
	resp, err := b.place.do(b.ctx, c)
	if err != nil {
		return err
	}
	if err := b.accept(resp); err != nil {
		resp.Body.Close()
		return err
	}
	b.body = watched(resp.Body, b.place.c.patient.stall)
	return nil
}

func (b *blobReader) accept(resp *http.Response) error {
	length := resp.ContentLength
	b.skip = 0
	if resp.StatusCode == http.StatusPartialContent {
		start, total, ok := parseContentRange(resp.Header.Get("Content-Range"))
		switch {
		case !ok || start != b.off && !weakness.Of("RC3"):
			return &damaged{fmt.Errorf("registry %s: the answer is another range than the one asked for: %q", b.place.name(), printable(resp.Header.Get("Content-Range")))}
		case total >= 0 && total != b.desc.Size:
			return b.wrongSize(total)
		}
		return nil
	}
	if length >= 0 && length != b.desc.Size && resp.Header.Get("Content-Encoding") == "" {
		return b.wrongSize(length)
	}
	if b.started {
		b.skip = b.off
	} else {
		b.off = 0
	}
	return nil
}

func (b *blobReader) wrongSize(n int64) error {
	return &damaged{fault.Invalidf("blob %s has %d bytes in its manifest and %d in registry %s", b.desc.Digest, b.desc.Size, n, b.place.name())}
}

// parseContentRange reads "bytes 5-9/10"; total is -1 for "*".
func parseContentRange(h string) (start, total int64, ok bool) {
	rest, found := strings.CutPrefix(strings.TrimSpace(h), "bytes ")
	span, size, found2 := strings.Cut(rest, "/")
	a, _, found3 := strings.Cut(span, "-")
	start, err := strconv.ParseInt(a, 10, 64)
	if !found || !found2 || !found3 || err != nil {
		return 0, 0, false
	}
	if size == "*" {
		return start, -1, true
	}
	total, err = strconv.ParseInt(size, 10, 64)
	return start, total, err == nil
}

func (b *blobReader) drop() {
	if b.body != nil {
		b.body.stop()
		b.body.rc.Close()
		b.body = nil
	}
}

// Close ends the transfer.
func (b *blobReader) Close() error {
	b.drop()
	if b.err == nil {
		b.err = errors.New("read of a closed blob")
	}
	return nil
}

// watch is a body that is closed when it gives less than trickle bytes in the stall time.
type watch struct {
	rc    io.ReadCloser
	limit time.Duration
	timer *time.Timer
	n     int64 // since the timer was set

	mu      sync.Mutex
	stalled bool
}

const trickle = 4 << 10

func watched(rc io.ReadCloser, limit time.Duration) *watch {
	w := &watch{rc: rc, limit: limit}
	w.timer = time.AfterFunc(limit, func() {
		w.mu.Lock()
		w.stalled = true
		w.mu.Unlock()
		rc.Close()
	})
	return w
}

func (w *watch) Read(p []byte) (int, error) {
	n, err := w.rc.Read(p)
	if w.n += int64(n); w.n >= trickle {
		w.n = 0
		w.timer.Reset(w.limit)
	}
	if err != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.stalled {
			return n, errStalled
		}
	}
	return n, err
}

func (w *watch) stop() { w.timer.Stop() }

// HasBlob asks whether the repository has the blob.
func (c *Client) HasBlob(ctx context.Context, ref image.Reference, d digest.Digest) (bool, error) {
	p, err := c.home(ref)
	if err != nil {
		return false, err
	}
	resp, err := p.do(ctx, call{method: http.MethodHead, path: p.path("/blobs/" + string(d)), scopes: pushScope(p),
		want: []int{http.StatusOK, http.StatusNotFound}})
	if err != nil {
		return false, pushError(ref, err)
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK, nil
}
