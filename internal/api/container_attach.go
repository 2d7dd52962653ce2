package api

// start, wait, attach, logs, resize.

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"regexp"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/container"

	ctr "keg/internal/container"
	"keg/internal/engine"
	"keg/internal/fault"
	"keg/internal/monitor"
)

func (s *Server) containerStart(w *reply, r *request) error {
	// A start is finished whoever asked for it: half of one helps nobody.
	ctx := context.WithoutCancel(r.Context())
	if n := r.ContentLength; n > 2 || n < 0 {
		return fault.Invalidf("starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24")
	}
	if err := checkCheckpoint(r); err != nil {
		return err
	}
	c, err := s.engine.Inspect(ctx, r.name(), false)
	if err != nil {
		return err
	}
	if c.State.Running && !c.State.Paused {
		return fault.Errorf(fault.NotModified, "container %s is already running", c.ID)
	}
	v := s.vigils.take(c.ID)
	var attach *monitor.Stdio
	if v != nil {
		attach = v.attachment()
	}
	session, err := s.engine.Begin(ctx, c.ID, attach)
	if err != nil {
		return s.startFailed(ctx, c, v, err)
	}
	if v == nil {
		session.Close()
	} else {
		go v.follow(session)
	}
	return w.done(nil)
}

// isCheckpointName is Docker's pattern of names; compiled where it is used, since a variable is paid for at every start.
func isCheckpointName(s string) bool {
	return regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`).MatchString(s)
}

// checkCheckpoint: there are none, and what is no name of one is refused in other words.
func checkCheckpoint(r *request) error {
	switch id := r.query.Get("checkpoint"); {
	case id == "":
		return nil
	case !isCheckpointName(id):
		return fault.Invalidf("invalid checkpoint ID %q, only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", id)
	}
	return fault.Unsupportedf("checkpoints are not supported; start the container without one")
}

func (s *Server) startFailed(ctx context.Context, c container.InspectResponse, v *vigil, err error) error {
	code := 128
	var x *engine.ExitError
	if errors.As(err, &x) {
		code = x.Code
	}
	if c.HostConfig.AutoRemove && !fault.Is(err, fault.NotModified) {
		rerr := s.engine.Remove(ctx, c.ID, engine.RemoveOptions{Force: true, Volumes: true})
		if rerr != nil && !fault.Is(rerr, fault.NotFound) {
			err = fault.As(fault.KindOf(err), errors.Join(err, rerr))
		}
	}
	if v != nil {
		v.end(monitor.Exit{Code: code}, nil)
		// Clients give up their other calls once they hear that the start failed: those are answered first.
		select {
		case <-v.left:
		case <-time.After(answerPatience):
		}
	}
	return err
}

// answerPatience is how long a failed start waits for the answers to those who waited for it.
const answerPatience = time.Second

func (s *Server) containerWait(w *reply, r *request) error {
	cond := container.WaitCondition(r.query.Get("condition"))
	if r.version < 30 {
		cond = container.WaitConditionNotRunning
	}
	switch cond {
	case "", container.WaitConditionNotRunning, container.WaitConditionNextExit, container.WaitConditionRemoved:
	default:
		return fault.Invalidf("invalid condition: %q", cond)
	}
	c, err := s.engine.Inspect(r.Context(), r.name(), false)
	if err != nil {
		return err
	}
	var v *vigil
	if !c.State.Running && cond != "" && cond != container.WaitConditionNotRunning {
		v = s.vigils.join(c.ID, nil)
		defer s.vigils.leave(c.ID, v)
	}
	if r.version >= 30 { // the client starts the container once it knows that we wait
		w.Header().Set("Content-Type", "application/json")
		w.flush()
	}
	code, err := s.wait(r.Context(), c.ID, cond, v)
	s.open.drained(r.Context(), c.ID)
	if r.Context().Err() != nil {
		return nil
	}
	res := container.WaitResponse{StatusCode: int64(code)}
	if err != nil {
		if !w.begun {
			return err
		}
		res.Error = &container.WaitExitError{Message: err.Error()}
	}
	defer w.flush() // before we leave the others
	return w.json(http.StatusOK, res)
}

// wait asks the engine and, for a container that was not running, also whoever starts it
// through this server: a program that ends and goes at once leaves its exit code there.
func (s *Server) wait(ctx context.Context, id string, cond container.WaitCondition, v *vigil) (int, error) {
	if v == nil {
		return s.engine.Wait(ctx, id, cond)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type end struct {
		code int
		err  error
	}
	asked := make(chan end, 1)
	go func() {
		code, err := s.engine.Wait(ctx, id, cond)
		asked <- end{code, err}
	}()
	if cond == container.WaitConditionNextExit {
		select {
		case e := <-asked:
			return e.code, e.err
		case <-v.ended:
			if fault.Is(v.err, fault.Conflict) {
				// It ended before it could be followed: what is written counts.
				select {
				case e := <-asked:
					return e.code, e.err
				case <-time.After(recordPatience):
				}
			}
			return v.exit.Code, v.err
		}
	}
	e := <-asked
	select {
	case <-v.ended:
		if fault.Is(v.err, fault.Conflict) {
			return e.code, e.err
		}
		return v.exit.Code, v.err
	case <-time.After(exitPatience(e.err)):
		return e.code, e.err
	}
}

// recordPatience is how long the record of an end may lag behind it.
const recordPatience = 2 * time.Second

// exitPatience: a removal may be seen a little earlier than the exit that was told before it.
func exitPatience(err error) time.Duration {
	if err != nil {
		return 0
	}
	return 50 * time.Millisecond
}

// attachable finds the container of an attach and reads its detach keys.
func (s *Server) attachable(r *request) (c container.InspectResponse, keys []byte, err error) {
	if c, err = s.engine.Inspect(r.Context(), r.name(), false); err != nil {
		return c, nil, err
	}
	switch {
	case c.State.Paused:
		return c, nil, fault.Conflictf("container %s is paused, unpause the container before attach", c.ID)
	case c.State.Restarting:
		return c, nil, fault.Conflictf("container %s is restarting, wait until the container is running", c.ID)
	}
	keys, err = detachKeys(r.query.Get("detachKeys"))
	return c, keys, err
}

func (s *Server) containerAttach(w *reply, r *request) error {
	c, keys, err := s.attachable(r)
	if err != nil {
		return err
	}
	tty := c.Config.Tty
	conn, err := hijack(w, r, streamType(tty, r.version))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := conn.watched(context.WithoutCancel(r.Context()))
	defer cancel()
	stdio := streams(conn, tty, r.flag("stdin") && c.Config.OpenStdin, r.flag("stdout"), r.flag("stderr"))
	if tty {
		stdio.DetachKeys = keys
	}
	var v *vigil
	if r.flag("stream") && !c.State.Running { // before the client hears from us: it starts the container then
		v = s.vigils.join(c.ID, &stdio)
		defer s.vigils.leave(c.ID, v)
	}
	if conn.accept() != nil {
		return nil
	}
	s.serveAttach(ctx, r, c, stdio, v)
	return nil
}

// serveAttach is what an attach gets once its stream is ready.
func (s *Server) serveAttach(ctx context.Context, r *request, c container.InspectResponse, stdio monitor.Stdio, v *vigil) {
	if r.flag("logs") {
		if err := s.replay(ctx, c.ID, stdio); err != nil {
			problem(stdio.Err, err)
			return
		}
	}
	if r.flag("stream") {
		defer s.open.begin(c.ID)()
		problem(orWriter(stdio.Err, stdio.Out), s.attach(ctx, c, stdio, v))
	}
}

// attach serves a running container, or waits for the start of one that is not.
func (s *Server) attach(ctx context.Context, c container.InspectResponse, stdio monitor.Stdio, v *vigil) error {
	if v == nil {
		_, err := s.engine.Attach(ctx, c.ID, stdio)
		return err
	}
	select {
	case <-v.ended:
		return v.err
	case <-ctx.Done():
		return nil
	}
}

// streams are what a client gets of a program.
func streams(conn *wire, tty, in, out, errs bool) (s monitor.Stdio) {
	if in {
		s.In = conn
	}
	if tty {
		if out || errs {
			s.Out = conn
		}
		return s
	}
	stdout, stderr := multiplex(conn, nil)
	if out {
		s.Out = stdout
	}
	if errs {
		s.Err = stderr
	}
	return s
}

func orWriter(a, b io.Writer) io.Writer {
	if a != nil {
		return a
	}
	return b
}

// replay writes the log to streams.
func (s *Server) replay(ctx context.Context, id string, stdio monitor.Stdio) error {
	return s.engine.Logs(ctx, id, ctr.LogOptions{Tail: -1}, func(e ctr.LogEntry) error {
		return logLine(e, orWriter(stdio.Out, nil), orWriter(stdio.Err, nil), false)
	})
}

// logLine writes one entry to the stream that it came from.
func logLine(e ctr.LogEntry, out, errs io.Writer, timestamps bool) error {
	w := out
	if e.Stream == "stderr" {
		w = errs
	}
	if w == nil {
		return nil
	}
	line := make([]byte, 0, len(e.Line)+32)
	if timestamps {
		line = append(e.Time.UTC().AppendFormat(line, "2006-01-02T15:04:05.000000000Z07:00"), ' ')
	}
	line = append(line, e.Line...)
	if !e.Partial {
		line = append(line, '\n')
	}
	_, err := w.Write(line)
	return err
}

func (s *Server) containerLogs(w *reply, r *request) error {
	out, errs := r.flag("stdout"), r.flag("stderr")
	if !out && !errs {
		return fault.Invalidf("Bad parameters: you must choose at least one stream")
	}
	c, err := s.engine.Inspect(r.Context(), r.name(), false)
	if err != nil {
		return err
	}
	o := ctr.LogOptions{Follow: r.flag("follow"), Tail: -1}
	if n, err := strconv.Atoi(r.query.Get("tail")); err == nil && n >= 0 {
		o.Tail = n
	}
	if o.Since, err = r.moment("since"); err != nil {
		return err
	}
	if o.Until, err = r.moment("until"); err != nil {
		return err
	}
	if c.HostConfig.LogConfig.Type == "none" {
		return fault.Unsupportedf("configured logging driver does not support reading")
	}
	w.Header().Set("Content-Type", streamType(c.Config.Tty, r.version))
	w.flush()
	var after func()
	if o.Follow {
		after = w.flush
	}
	stdout, stderr := multiplex(w, after)
	if c.Config.Tty {
		stdout = &flushing{w, after}
		stderr = stdout
	}
	if !out {
		stdout = nil
	}
	if !errs {
		stderr = nil
	}
	stamps := r.flag("timestamps")
	err = s.engine.Logs(r.Context(), c.ID, o, func(e ctr.LogEntry) error { return logLine(e, stdout, stderr, stamps) })
	if r.Context().Err() != nil {
		return nil
	}
	return err
}

type flushing struct {
	w     io.Writer
	after func()
}

func (f *flushing) Write(b []byte) (int, error) {
	n, err := f.w.Write(b)
	if f.after != nil {
		f.after()
	}
	return n, err
}

// size reads h and w of a resize.
func (r *request) size() (rows, cols uint16, err error) {
	if rows, err = cells("height", r.query.Get("h")); err != nil {
		return 0, 0, err
	}
	cols, err = cells("width", r.query.Get("w"))
	return rows, cols, err
}

// cells reads a number of rows or columns.
func cells(what, text string) (uint16, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err == nil && (n < 0 || n > math.MaxUint16) {
		err = strconv.ErrRange
	}
	if err != nil {
		if cause := errors.Unwrap(err); cause != nil { // "invalid syntax", without the name of a Go function
			err = cause
		}
		return 0, fault.Invalidf("invalid resize %s %q: %w", what, text, err)
	}
	return uint16(n), nil
}

func (s *Server) containerResize(w *reply, r *request) error {
	rows, cols, err := r.size()
	if err != nil {
		return err
	}
	err = s.engine.Resize(r.Context(), r.name(), "", rows, cols)
	if fault.Is(err, fault.Invalid) { // no terminal: Docker has nothing to say about it
		err = nil
	}
	if err == nil {
		w.WriteHeader(http.StatusOK)
	}
	return err
}
