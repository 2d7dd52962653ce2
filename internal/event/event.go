// Package event is the journal of what happened: JSON lines with sequence numbers.
//
//	events      {"seq":7,"Type":"container","Action":"start","Actor":{...},"time":...,"timeNano":...}
//	events.1    the file before
package event

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/moby/moby/api/types/events"
	"golang.org/x/sys/unix"

	"keg/internal/linux"
)

// Message is Docker's event: type, action, actor with attributes, time.
type Message = events.Message

// maxSize is the size at which the journal starts a new file; one older one is kept.
const maxSize = 8 << 20

// Journal appends to and reads the events file of one engine. Several processes may
// hold one Journal each on the same directory.
type Journal struct{ root string }

// Open uses the directory root/; nothing is read or made until the first Append.
func Open(root string) *Journal { return &Journal{root} }

func (j *Journal) path() string { return filepath.Join(j.root, "events") }
func (j *Journal) old() string  { return filepath.Join(j.root, "events.1") }

// record is one line: the message and its place in the order.
type record struct {
	Seq uint64 `json:"seq"`
	Message
}

// Append writes one message; time is set when zero. It never blocks for long and an
// error is not worth failing the act that is reported.
func (j *Journal) Append(m Message) error {
	if m.TimeNano == 0 {
		m.TimeNano = time.Now().UnixNano()
	}
	if m.Time == 0 {
		m.Time = m.TimeNano / 1e9
	}
	if m.Scope == "" {
		m.Scope = "local"
	}
	for {
		full, err := j.append(m)
		if err != nil || !full {
			return err
		}
	}
}

// append writes m into the newest file under its lock, or makes that the older one when it is full.
func (j *Journal) append(m Message) (full bool, err error) {
	f, err := j.lock()
	if err != nil {
		return false, err
	}
	defer f.Close() // and unlock
	seq, size, err := lastSeq(f)
	if err != nil {
		return false, err
	}
	if size > maxSize {
		return true, os.Rename(j.path(), j.old())
	}
	if size == 0 {
		if seq, err = j.oldSeq(); err != nil {
			return false, err
		}
	}
	b, err := json.Marshal(record{seq + 1, m})
	if err != nil {
		return false, fmt.Errorf("encode event: %w", err)
	}
	_, err = f.Write(append(b, '\n'))
	return false, err
}

// oldSeq is where the numbers of a new file go on.
func (j *Journal) oldSeq() (uint64, error) {
	f, err := os.OpenFile(j.old(), os.O_RDWR|os.O_APPEND, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	seq, _, err := lastSeq(f)
	return seq, err
}

// lock opens the newest file under an exclusive flock: the order of sequence numbers, and
// one rotation at a time.
func (j *Journal) lock() (*os.File, error) {
	for {
		f, err := os.OpenFile(j.path(), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return nil, err
		}
		if err := flock(f); err != nil {
			f.Close()
			return nil, &os.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
		if same(j.path(), f) {
			return f, nil
		}
		f.Close() // rotated between open and lock
	}
}

func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func same(path string, f *os.File) bool {
	a, err1 := os.Lstat(path)
	b, err2 := f.Stat()
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}

// lastSeq reads the sequence number of the last whole line. A line that a kill tore is
// closed with a newline; readers skip it.
func lastSeq(f *os.File) (seq uint64, size int64, err error) {
	fi, err := f.Stat()
	if err != nil || fi.Size() == 0 {
		return 0, 0, err
	}
	size = fi.Size()
	for span := int64(4 << 10); ; span *= 16 {
		buf := make([]byte, min(span, size))
		if _, err := f.ReadAt(buf, size-int64(len(buf))); err != nil && !errors.Is(err, io.EOF) {
			return 0, 0, err
		}
		if buf[len(buf)-1] != '\n' {
			if _, err := f.Write([]byte{'\n'}); err != nil {
				return 0, 0, err
			}
			size++
			continue
		}
		if seq, ok := scanBack(buf); ok || span >= size {
			return seq, size, nil
		}
	}
}

// scanBack returns the number of the last line in buf that is a record.
func scanBack(buf []byte) (uint64, bool) {
	end := len(buf) - 1
	for i := end - 1; i >= 0; i-- {
		if buf[i] != '\n' {
			continue
		}
		var r struct {
			Seq uint64 `json:"seq"`
		}
		if json.Unmarshal(buf[i+1:end], &r) == nil && r.Seq > 0 {
			return r.Seq, true
		}
		end = i
	}
	var r struct {
		Seq uint64 `json:"seq"`
	}
	if json.Unmarshal(buf[:max(end, 0)], &r) == nil && r.Seq > 0 {
		return r.Seq, true
	}
	return 0, false
}

// errUntil ends a reading.
var errUntil = errors.New("until")

// Read calls yield for each message with since <= time (unix nanoseconds, 0 = from the
// oldest kept), then, when follow is set, for each later one until ctx ends or until
// (0 = never) is passed.
func (j *Journal) Read(ctx context.Context, since, until int64, follow bool, yield func(Message) error) error {
	r := reader{j: j, since: since, until: until, yield: yield}
	defer r.close()
	var watch *linux.Watch
	if follow {
		watch = linux.WatchDir(j.root)
		defer watch.Close()
	}
	for {
		err := r.catchUp(ctx)
		if errors.Is(err, errUntil) {
			return nil
		}
		if err != nil || !follow {
			return err
		}
		wait := time.Second
		if until > 0 {
			if wait = min(wait, time.Until(time.Unix(0, until))); wait <= 0 {
				return nil
			}
		}
		if err := watch.Wait(ctx, wait); err != nil {
			return err
		}
	}
}

// reader goes through both files, and over a rotation, by sequence numbers: it cannot
// yield a message twice.
type reader struct {
	j            *Journal
	since, until int64
	yield        func(Message) error
	f            *os.File
	buf          *bufio.Reader
	part         []byte
	seq          uint64
}

func (r *reader) close() {
	if r.f != nil {
		r.f.Close()
	}
}

func (r *reader) catchUp(ctx context.Context) error {
	if r.f == nil {
		if err := r.scanFile(ctx, r.j.old()); err != nil {
			return err
		}
		if err := r.open(r.j.path()); err != nil || r.f == nil {
			return err
		}
	}
	for {
		rotated := !same(r.j.path(), r.f)
		if err := r.drain(ctx); err != nil || !rotated {
			return err
		}
		// More than one rotation may have passed: the older file first.
		if err := r.scanFile(ctx, r.j.old()); err != nil {
			return err
		}
		if err := r.open(r.j.path()); err != nil || r.f == nil {
			return err
		}
	}
}

// open starts reading path; a missing file leaves r.f nil.
func (r *reader) open(path string) error {
	r.close()
	r.f, r.part = nil, nil
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	r.f, r.buf = f, bufio.NewReaderSize(f, 32<<10)
	return nil
}

func (r *reader) scanFile(ctx context.Context, path string) error {
	if err := r.open(path); err != nil || r.f == nil {
		return err
	}
	err := r.drain(ctx)
	r.close()
	r.f = nil
	return err
}

func (r *reader) drain(ctx context.Context) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		b, err := r.buf.ReadBytes('\n')
		r.part = append(r.part, b...)
		if errors.Is(err, io.EOF) {
			return nil // the rest of a line that is being written comes later
		}
		if err != nil {
			return err
		}
		line := r.part
		r.part = r.part[:0]
		if err := r.line(line); err != nil {
			return err
		}
	}
}

func (r *reader) line(b []byte) error {
	var m record
	if json.Unmarshal(b, &m) != nil || m.Seq <= r.seq {
		return nil
	}
	r.seq = m.Seq
	if r.until > 0 && m.TimeNano > r.until {
		return errUntil
	}
	if m.TimeNano < r.since {
		return nil
	}
	return r.yield(m.Message)
}
