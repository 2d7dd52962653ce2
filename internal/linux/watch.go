package linux

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A Watch wakes up when something changes in a directory (inotify(7)). Where no inotify
// instance is to be had (they are few per user) it polls. It may wake up too often,
// never too late by more than the time that Wait is given.
type Watch struct {
	f   *os.File // nil: polling
	buf [4096]byte
}

// pollEvery is how often a Watch without inotify looks.
const pollEvery = 20 * time.Millisecond

// WatchDir watches the entries of dir: writes, closes after writing, renames, removals.
func WatchDir(dir string) *Watch {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return &Watch{}
	}
	const mask = unix.IN_MODIFY | unix.IN_CLOSE_WRITE | unix.IN_CREATE | unix.IN_DELETE |
		unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF
	if _, err := unix.InotifyAddWatch(fd, dir, mask); err != nil {
		unix.Close(fd)
		return &Watch{}
	}
	return &Watch{f: os.NewFile(uintptr(fd), "inotify "+dir)}
}

// Wait returns nil after a change since the last Wait, or after at most max; with ctx's
// cause when ctx ends first.
func (w *Watch) Wait(ctx context.Context, max time.Duration) error {
	if w.f == nil {
		return w.poll(ctx, min(max, pollEvery))
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	w.f.SetReadDeadline(time.Now().Add(max))
	stop := context.AfterFunc(ctx, func() { w.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err := w.f.Read(w.buf[:])
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return w.poll(ctx, min(max, pollEvery))
	}
	return nil
}

func (w *Watch) poll(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// Close ends the watch.
func (w *Watch) Close() {
	if w.f != nil {
		w.f.Close()
	}
}
