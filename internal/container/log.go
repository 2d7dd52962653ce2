package container

// The log of a container: Docker's json-file format, rotated.
//
//	<id>-json.log       {"log":"text\n","stream":"stdout","time":"2026-01-02T15:04:05.000000001Z"}
//	<id>-json.log.1     the file before, and so on up to max-file - 1

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"

	"keg/internal/fault"
)

// MaxLine is the size of the parts into which a longer line is cut, as Docker does.
const MaxLine = 16 << 10

// LogEntry is one line without its newline, or a part of one of at most 16 KiB.
type LogEntry struct {
	Stream  string // "stdout" or "stderr"
	Time    time.Time
	Line    []byte // valid until yield returns
	Partial bool   // no newline followed
}

// logLimits is a LogConfig as understood.
type logLimits struct {
	none  bool
	size  int64 // bytes of one file; 0: no limit
	files int
}

// CheckLogConfig refuses a driver or an option that keg does not have, in Docker's words.
func CheckLogConfig(c container.LogConfig) error {
	_, err := parseLogConfig(c)
	return err
}

// parseLogConfig applies the defaults: json-file rotates at 3 × 10 MiB, which Docker's
// does not; local at 5 × 20 MiB, as Docker's does.
func parseLogConfig(c container.LogConfig) (l logLimits, err error) {
	switch c.Type {
	case "", "json-file":
		l = logLimits{size: 10 << 20, files: 3}
	case "local":
		l = logLimits{size: 20 << 20, files: 5}
	case "none":
		return logLimits{none: true}, nil
	default:
		return l, fault.Invalidf("logger: no log driver named '%s' is registered; keg has json-file, local and none", c.Type)
	}
	for k, v := range c.Config {
		switch k {
		case "max-size":
			l.size, err = parseLogSize(v)
		case "max-file":
			if l.files, err = strconv.Atoi(v); err == nil && l.files < 1 {
				err = fault.Invalidf("max-file cannot be less than 1")
			}
		case "compress", "labels", "labels-regex", "env", "env-regex", "tag", "mode", "max-buffer-size":
		default:
			err = fault.Invalidf("unknown log opt '%s' for %s log driver", k, driverName(c.Type))
		}
		if err != nil {
			return l, fault.As(fault.Invalid, fmt.Errorf("log opt %s=%s: %w", k, v, err))
		}
	}
	return l, nil
}

func driverName(t string) string {
	if t == "" {
		return "json-file"
	}
	return t
}

func parseLogSize(v string) (int64, error) {
	if v == "-1" {
		return 0, nil
	}
	n, err := units.FromHumanSize(v)
	if err == nil && n <= 0 {
		err = errors.New("max-size must be a positive number")
	}
	return n, err
}

// LogWriter appends to the log of one container. One process writes a log; its methods
// are not for several goroutines at once.
type LogWriter struct {
	path    string
	limits  logLimits
	f       *os.File
	size    int64
	buf     []byte
	pending [2][]byte // unfinished lines of stdout and stderr
}

// Streams of a LogWriter.
const (
	Stdout = 0
	Stderr = 1
)

// OpenLog opens the log of r for appending; the file is made with the first output. A half-written record that a kill left at its end is
// cut off. The directory must exist.
func (s *Store) OpenLog(r *Record) (*LogWriter, error) {
	l, err := parseLogConfig(r.Host.LogConfig)
	if err != nil {
		return nil, err
	}
	w := &LogWriter{path: s.LogPath(r.ID), limits: l}
	if l.none {
		return w, nil
	}
	// A container that prints nothing has no file.
	if _, err := os.Lstat(w.path); errors.Is(err, fs.ErrNotExist) {
		return w, nil
	}
	return w, w.open()
}

func (w *LogWriter) open() error {
	f, err := os.OpenFile(w.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	size, err := f.Seek(0, 2)
	if err == nil && size > 0 {
		size, err = cutTorn(f, size)
	}
	if err != nil {
		f.Close()
		return err
	}
	w.f, w.size = f, size
	return nil
}

// cutTorn truncates f after its last newline.
func cutTorn(f *os.File, size int64) (int64, error) {
	buf := make([]byte, 4096)
	for end := size; end > 0; {
		n := min(int64(len(buf)), end)
		if _, err := f.ReadAt(buf[:n], end-n); err != nil {
			return size, err
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			keep := end - n + int64(i) + 1
			if keep == size {
				return size, nil
			}
			return keep, f.Truncate(keep)
		}
		end -= n
	}
	return 0, f.Truncate(0)
}

// Append takes bytes as they were read from a stream at time t: whole lines are written
// at once, in one write; the unfinished one is kept until it ends, or is 16 KiB long.
func (w *LogWriter) Append(stream int, t time.Time, b []byte) error {
	if w.limits.none {
		return nil
	}
	stamp := appendTail(make([]byte, 0, 80), stream, t)
	w.buf = w.buf[:0]
	p := w.pending[stream]
	for len(b) > 0 {
		i := bytes.IndexByte(b[:min(len(b), MaxLine-len(p))], '\n')
		switch {
		case i >= 0:
			i++
		case len(p)+len(b) < MaxLine:
			w.pending[stream] = append(p, b...)
			return w.flush()
		default:
			i = wholeRunes(b, MaxLine-len(p))
		}
		start := len(w.buf)
		w.buf = appendHead(w.buf)
		w.buf = appendText(w.buf, p)
		w.buf = appendText(w.buf, b[:i])
		w.buf = append(w.buf, stamp...)
		b, p = b[i:], p[:0]
		if err := w.spill(start); err != nil {
			w.pending[stream] = p
			return err
		}
	}
	w.pending[stream] = p
	return w.flush()
}

// wholeRunes moves the cut b[:n] back to the start of a character.
func wholeRunes(b []byte, n int) int {
	for k := n; k > 0 && k > n-utf8.UTFMax && k < len(b); k-- {
		if utf8.RuneStart(b[k]) {
			return k
		}
	}
	return n
}

// spill looks at a record that was added at start: if it does not fit into the file any
// more, what is before it is written and the file rotated; large batches are written.
func (w *LogWriter) spill(start int) error {
	if max := w.limits.size; max > 0 && w.size+int64(len(w.buf)) > max && w.size+int64(start) > 0 {
		rest := w.buf[start:]
		if err := w.write(w.buf[:start]); err != nil {
			return err
		}
		if err := w.rotate(); err != nil {
			return err
		}
		w.buf = append(w.buf[:0], rest...)
	}
	if len(w.buf) >= 256<<10 {
		return w.flush()
	}
	return nil
}

// flush writes the whole records that were gathered.
func (w *LogWriter) flush() error {
	err := w.write(w.buf)
	w.buf = w.buf[:0]
	if cap(w.buf) > 64<<10 {
		w.buf = nil
	}
	return err
}

func (w *LogWriter) write(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if w.f == nil {
		if err := w.open(); err != nil {
			return err
		}
	}
	n, err := w.f.Write(b)
	if err != nil && n > 0 && w.f.Truncate(w.size) == nil {
		n = 0 // a full disk leaves no torn record
	}
	w.size += int64(n)
	return err
}

// rotate renames the files one number up and starts a new one. A reader that follows
// holds the old file open, reads it to its end and goes on with the next.
func (w *LogWriter) rotate() error {
	for i := w.limits.files - 1; i > 1; i-- {
		if err := os.Rename(numbered(w.path, i-1), numbered(w.path, i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	var err error
	if w.limits.files > 1 {
		err = os.Rename(w.path, numbered(w.path, 1))
	} else {
		err = os.Remove(w.path)
	}
	if err != nil {
		return err
	}
	f, err := os.OpenFile(w.path, os.O_RDWR|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	w.f.Close()
	w.f, w.size = f, 0
	return nil
}

func numbered(path string, i int) string {
	if i == 0 {
		return path
	}
	return path + "." + strconv.Itoa(i)
}

// End writes what is left of stream after its last newline.
func (w *LogWriter) End(stream int, t time.Time) error {
	p := w.pending[stream]
	w.pending[stream] = nil
	if w.limits.none || len(p) == 0 {
		return nil
	}
	w.buf = appendHead(w.buf[:0])
	w.buf = appendText(w.buf, p)
	w.buf = appendTail(w.buf, stream, t)
	return errors.Join(w.spill(0), w.flush())
}

// Close ends both streams and closes the file.
func (w *LogWriter) Close() error {
	now := time.Now()
	err := errors.Join(w.End(Stdout, now), w.End(Stderr, now))
	if w.f != nil {
		err = errors.Join(err, w.f.Close())
		w.f = nil
	}
	return err
}

func appendHead(b []byte) []byte { return append(b, `{"log":"`...) }

func appendTail(b []byte, stream int, t time.Time) []byte {
	if stream == Stderr {
		b = append(b, `","stream":"stderr","time":"`...)
	} else {
		b = append(b, `","stream":"stdout","time":"`...)
	}
	b = t.UTC().AppendFormat(b, time.RFC3339Nano)
	return append(b, '"', '}', '\n')
}
