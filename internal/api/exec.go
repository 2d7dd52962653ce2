package api

// Exec instances: what is to be run is remembered until it was run and asked about.

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"

	ctr "keg/internal/container"
	"keg/internal/engine"
	"keg/internal/fault"
	"keg/internal/monitor"
)

// instance is one exec, from create until some time after its end.
type instance struct {
	container string
	request   container.ExecCreateRequest
	keys      []byte

	mu      sync.Mutex
	begun   bool
	running bool
	left    bool // by the detach keys: the end is not told to us
	code    *int
	changed time.Time
}

type execs struct {
	mu sync.Mutex
	m  map[string]*instance
}

// execMemory is how long an instance that ended, or was never started, can be asked about.
const (
	execMemory = 10 * time.Minute
	maxExecs   = 10000
)

func (e *execs) add(id string, x *instance) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.m == nil {
		e.m = map[string]*instance{}
	}
	for old, i := range e.m {
		i.mu.Lock()
		stale := !i.running && (time.Since(i.changed) > execMemory || len(e.m) >= maxExecs)
		i.mu.Unlock()
		if stale {
			delete(e.m, old)
		}
	}
	e.m[id] = x
}

func (e *execs) get(id string) (*instance, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	x := e.m[id]
	if x == nil {
		return nil, fault.NotFoundf("No such exec instance: %s", id)
	}
	return x, nil
}

// of lists the instances of a container that run.
func (e *execs) of(id string) (ids []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for k, x := range e.m {
		x.mu.Lock()
		if x.container == id && x.running {
			ids = append(ids, k)
		}
		x.mu.Unlock()
	}
	slices.Sort(ids)
	return ids
}

func (s *Server) execCreate(w *reply, r *request) error {
	var q container.ExecCreateRequest
	if err := r.body(w, &q, false); err != nil {
		return err
	}
	if len(q.Cmd) == 0 {
		return fault.Invalidf("No exec command specified")
	}
	keys, err := detachKeys(q.DetachKeys)
	if err != nil {
		return fault.Invalidf("Invalid escape keys (%s) provided", q.DetachKeys)
	}
	id, err := s.engine.CanExec(r.Context(), r.name(), q.User)
	if err != nil {
		return err
	}
	exec := ctr.NewID()
	s.execs.add(exec, &instance{container: id, request: q, keys: keys, changed: time.Now()})
	return w.json(http.StatusCreated, container.ExecCreateResponse{ID: exec})
}

func (s *Server) execStart(w *reply, r *request) error {
	var q container.ExecStartRequest
	if err := r.body(w, &q, true); err != nil {
		return err
	}
	id := r.vars["id"]
	x, err := s.execs.get(id)
	if err != nil {
		return err
	}
	if _, err := s.engine.CanExec(r.Context(), x.container, ""); err != nil {
		return err
	}
	if err := x.claim(id); err != nil {
		return err
	}
	mq := x.monitorRequest(id, q)
	// What was started is not undone because its client left.
	ctx := context.WithoutCancel(r.Context())
	if q.Detach {
		session, err := s.engine.BeginExec(ctx, x.container, mq, monitor.Stdio{})
		if err != nil {
			x.end(exitCode(err))
			return err
		}
		go x.follow(ctx, session)
		w.WriteHeader(http.StatusOK)
		return nil
	}
	tty := x.request.Tty
	// As in Docker it is the start that says whether the stream is framed.
	conn, err := hijack(w, r, streamType(q.Tty, r.version))
	if err != nil {
		x.end(exitCode(err))
		return err
	}
	defer conn.Close()
	_ = conn.accept() // who left meanwhile left a program that runs all the same
	stdio := streams(conn, q.Tty, x.request.AttachStdin, x.request.AttachStdout, x.request.AttachStderr)
	if q.Tty && !tty && x.request.AttachStderr {
		stdio.Err = conn
	}
	if tty {
		stdio.DetachKeys = x.keys
	}
	session, err := s.engine.BeginExec(ctx, x.container, mq, stdio)
	if err != nil {
		x.end(exitCode(err))
		if out := orWriter(stdio.Out, stdio.Err); out != nil { // as in Docker, which takes the output's stream
			fmt.Fprintf(out, "%v\r\n", err)
		}
		return nil
	}
	x.follow(ctx, session)
	return nil
}

// claim lets an instance be started once.
func (x *instance) claim(id string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.begun {
		return fault.Conflictf("exec %s has already been started", id)
	}
	x.begun, x.running, x.changed = true, true, time.Now()
	return nil
}

func (x *instance) monitorRequest(id string, q container.ExecStartRequest) monitor.ExecRequest {
	c := x.request
	m := monitor.ExecRequest{ID: id, Cmd: c.Cmd, Env: c.Env, User: c.User, Dir: c.WorkingDir, TTY: c.Tty,
		Stdin: c.AttachStdin && !q.Detach, Privileged: c.Privileged}
	for _, size := range []*[2]uint{c.ConsoleSize, q.ConsoleSize} {
		if size != nil && size[0] < 1<<16 && size[1] < 1<<16 {
			m.Rows, m.Cols = uint16(size[0]), uint16(size[1])
		}
	}
	return m
}

func (x *instance) follow(ctx context.Context, session engine.Session) {
	defer session.Close()
	exit, err := session.Wait(ctx)
	switch {
	case err != nil:
		x.end(137) // with its container
	case exit.Detached: // it goes on without us
		x.mu.Lock()
		x.left = true
		x.mu.Unlock()
	default:
		x.end(exit.Code)
	}
}

func (x *instance) end(code int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.running, x.code, x.changed = false, &code, time.Now()
}

// forgotten marks one that was left and has ended since; its exit code nobody knows.
func (x *instance) forgotten() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.left {
		x.running, x.changed = false, time.Now()
	}
	return x.left
}

func exitCode(err error) int {
	var coded *engine.ExitError
	if errors.As(err, &coded) {
		return coded.Code
	}
	return 126
}

func (s *Server) execInspect(w *reply, r *request) error {
	id := r.vars["id"]
	x, err := s.execs.get(id)
	if err != nil {
		return err
	}
	x.mu.Lock()
	running, code := x.running, x.code
	x.mu.Unlock()
	c := x.request
	res := container.ExecInspectResponse{ID: id, Running: running, ExitCode: code, ContainerID: x.container,
		OpenStdin: c.AttachStdin, OpenStdout: c.AttachStdout, OpenStderr: c.AttachStderr, DetachKeys: []byte(c.DetachKeys),
		ProcessConfig: &container.ExecProcessConfig{Tty: c.Tty, Entrypoint: c.Cmd[0], Arguments: c.Cmd[1:], Privileged: &c.Privileged, User: c.User}}
	if running {
		infos, err := s.engine.Execs(r.Context(), x.container)
		if err == nil {
			if i := slices.IndexFunc(infos, func(i monitor.ExecInfo) bool { return i.ID == id }); i >= 0 {
				res.Pid = infos[i].Pid
			} else if x.forgotten() {
				res.Running = false
			}
		}
	}
	return w.json(http.StatusOK, res)
}

func (s *Server) execResize(w *reply, r *request) error {
	x, err := s.execs.get(r.vars["id"])
	if err != nil {
		return err
	}
	rows, cols, err := r.size()
	if err != nil {
		return err
	}
	if err := s.engine.Resize(r.Context(), x.container, r.vars["id"], rows, cols); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}
