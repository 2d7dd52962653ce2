package container

// Reading the log: forward across rotations, backward for the tail.

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/moby/moby/api/types/container"

	"keg/internal/linux"
)

// LogOptions are those of docker logs.
type LogOptions struct {
	Follow       bool
	Tail         int // -1: all
	Since, Until time.Time
}

// errUntil ends a reading at LogOptions.Until.
var errUntil = errors.New("until")

// Logs yields the entries of a container in order; with Follow until the run that is under way ends or ctx does. The output of the
// next one is for whoever asks after its start, as with Docker: clients ask again when they hear of it.
func (s *Store) Logs(ctx context.Context, id string, o LogOptions, yield func(LogEntry) error) error {
	if _, err := s.Get(id); err != nil {
		return err
	}
	r := logReader{s: s, id: id, o: o, yield: yield, path: s.LogPath(id)}
	defer r.close()
	if o.Follow {
		r.watch = linux.WatchDir(s.Dir(id))
		defer r.watch.Close()
	}
	err := r.run(ctx)
	if errors.Is(err, errUntil) {
		return nil
	}
	return err
}

type logReader struct {
	s       *Store
	id      string
	path    string
	o       LogOptions
	yield   func(LogEntry) error
	watch   *linux.Watch
	files   []*os.File // oldest first; files[0] is being read
	buf     []byte     // bytes read and not yielded: less than one record after drain
	chunk   []byte
	scratch []byte
	begun   time.Time // when the run that is followed began
}

func (r *logReader) close() {
	for _, f := range r.files {
		f.Close()
	}
	r.files = nil
}

func (r *logReader) run(ctx context.Context) error {
	files, err := openLogs(r.path)
	if err != nil {
		return err
	}
	r.files = files
	end := int64(-1)
	if n := len(files); n > 0 && !r.o.Follow {
		// What is written from now on is not asked for.
		if fi, err := files[n-1].Stat(); err == nil {
			end = fi.Size()
		}
	}
	if r.o.Tail >= 0 {
		if err := r.seekTail(r.o.Tail, end); err != nil {
			return err
		}
	}
	for len(r.files) > 1 {
		if err := r.drain(ctx, -1); err != nil {
			return err
		}
		r.next()
	}
	if !r.o.Follow {
		return r.drain(ctx, end)
	}
	return r.follow(ctx)
}

func (r *logReader) next() {
	r.files[0].Close()
	r.files = r.files[1:]
	r.buf = r.buf[:0] // a torn record
}

// openLogs opens all files of a log, oldest first, as they were at one moment.
func openLogs(path string) ([]*os.File, error) {
	for try := 0; ; try++ {
		files, err := openLogsOnce(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err == nil && stillNewest(path, files) {
			return files, nil
		}
		for _, f := range files {
			f.Close()
		}
		if try == 100 {
			return nil, nil // there is no log, or it rotates faster than it can be opened
		}
		if _, err := os.Lstat(numbered(path, 1)); err != nil && len(files) == 0 {
			return nil, nil
		}
		time.Sleep(time.Millisecond)
	}
}

func openLogsOnce(path string) (files []*os.File, err error) {
	for i := 0; ; i++ {
		f, err := os.Open(numbered(path, i))
		if errors.Is(err, fs.ErrNotExist) && i > 0 {
			return files, nil
		}
		if err != nil {
			return files, err
		}
		files = append([]*os.File{f}, files...)
	}
}

func stillNewest(path string, files []*os.File) bool {
	if len(files) == 0 {
		return false
	}
	return sameFile(path, files[len(files)-1])
}

func sameFile(path string, f *os.File) bool {
	now, err1 := os.Lstat(path)
	old, err2 := f.Stat()
	return err1 == nil && err2 == nil && os.SameFile(now, old)
}

// drain yields what files[0] holds from its offset on; end >= 0 bounds it.
func (r *logReader) drain(ctx context.Context, end int64) error {
	if len(r.files) == 0 {
		return nil
	}
	if r.chunk == nil {
		r.chunk = make([]byte, 64<<10)
	}
	pos, err := r.files[0].Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := r.files[0].Read(r.chunk)
		if end >= 0 {
			n = int(min(int64(n), max(0, end-pos)))
		}
		pos += int64(n)
		if e := r.take(r.chunk[:n]); e != nil {
			return e
		}
		if n == 0 || errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// take yields the whole records of what was kept and b, and keeps the rest.
func (r *logReader) take(b []byte) error {
	for len(b) > 0 {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			r.buf = append(r.buf, b...)
			return nil
		}
		line := b[:i]
		if len(r.buf) > 0 {
			r.buf = append(r.buf, line...)
			line = r.buf
		}
		if err := r.record(line); err != nil {
			return err
		}
		r.buf = r.buf[:0]
		b = b[i+1:]
	}
	return nil
}

func (r *logReader) record(line []byte) error {
	var e LogEntry
	if parseEntry(line, &e, &r.scratch) != nil {
		return nil // a damaged record loses itself, not the log
	}
	if e.Time.Before(r.o.Since) {
		return nil
	}
	if !r.o.Until.IsZero() && e.Time.After(r.o.Until) {
		return errUntil
	}
	return r.yield(e)
}

// follow yields what comes until the container ends.
func (r *logReader) follow(ctx context.Context) error {
	for {
		// Asked before reading: what was written until then is read below.
		over := r.ended()
		if err := r.catchUp(ctx); err != nil {
			return err
		}
		if over {
			return nil
		}
		if !r.o.Until.IsZero() && time.Now().After(r.o.Until) {
			return nil
		}
		if err := r.watch.Wait(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
}

// ended: the monitor closes the log before it writes that the container has exited. Where another run has begun since,
// what that one prints is not read.
func (r *logReader) ended() bool {
	running, err := r.s.Running(r.id)
	if err != nil || !running {
		return true
	}
	st, err := r.s.State(r.id)
	if err != nil || st.Status == container.StateExited || st.Status == container.StateRestarting {
		return true
	}
	if r.begun.IsZero() {
		r.begun = st.Started
	}
	if st.Started.Equal(r.begun) {
		return false
	}
	if r.o.Until.IsZero() || st.Started.Before(r.o.Until) {
		r.o.Until = st.Started
	}
	return true
}

// catchUp reads to the end of the newest file.
func (r *logReader) catchUp(ctx context.Context) error {
	for {
		if len(r.files) == 0 {
			files, err := openLogs(r.path)
			if err != nil || len(files) == 0 {
				return err
			}
			r.files = files
		}
		rotated := !sameFile(r.path, r.files[0])
		// After the look: once it is not the newest nothing is added to it.
		if err := r.drain(ctx, -1); err != nil || !rotated {
			return err
		}
		moved, err := r.step(ctx)
		if err != nil || !moved {
			return err
		}
	}
}

// step goes from a rotated file to the next newer one. It reports false when there is none
// yet, or none any more.
func (r *logReader) step(ctx context.Context) (bool, error) {
	files, err := openLogs(r.path)
	if err != nil || len(files) == 0 {
		return false, err
	}
	next := 0 // our file was dropped: all that is left is newer
	mine, err := r.files[0].Stat()
	for i, f := range files {
		if fi, e := f.Stat(); err == nil && e == nil && os.SameFile(mine, fi) {
			next = i + 1
		}
	}
	for _, f := range files[:next] {
		f.Close()
	}
	r.files[0].Close()
	r.buf = r.buf[:0]
	r.files = files[next:]
	for len(r.files) > 1 {
		if err := r.drain(ctx, -1); err != nil {
			return false, err
		}
		r.next()
	}
	return len(r.files) > 0, nil
}

// seekTail positions the files so that the last n records follow. end >= 0 is the size of the
// newest that counts.
func (r *logReader) seekTail(n int, end int64) error {
	last := len(r.files) - 1
	for i := last; i >= 0; i-- {
		size, err := r.files[i].Seek(0, io.SeekEnd)
		if err != nil {
			return err
		}
		if i == last && end >= 0 {
			size = end
		}
		pos, missing, err := backLines(r.files[i], size, n)
		if err != nil {
			return err
		}
		if _, err := r.files[i].Seek(pos, io.SeekStart); err != nil {
			return err
		}
		if missing == 0 {
			for _, f := range r.files[:i] {
				f.Close()
			}
			r.files = r.files[i:]
			return nil
		}
		n = missing
	}
	return nil
}

// backLines returns the offset of the n-th last line of f[:size], and how many lines were
// lacking.
func backLines(f *os.File, size int64, n int) (pos int64, missing int, err error) {
	buf := make([]byte, 32<<10)
	seen := 0 // newlines
	for end := size; end > 0; {
		k := min(int64(len(buf)), end)
		if _, err := f.ReadAt(buf[:k], end-k); err != nil && !errors.Is(err, io.EOF) {
			return 0, 0, err
		}
		for b := buf[:k]; ; {
			i := bytes.LastIndexByte(b, '\n')
			if i < 0 {
				break
			}
			if seen == n { // the newline before the first wanted line
				return end - k + int64(i) + 1, 0, nil
			}
			seen++
			b = b[:i]
		}
		end -= k
	}
	return 0, n - seen, nil
}
