package api

// POST /session: a client's offer of files and secrets, on a connection that is taken from
// HTTP. Builds find it by its id.

import (
	"context"
	"io"
	"sync"
	"time"

	"keg/internal/buildsession"
	"keg/internal/fault"
)

// maxSessions is how many may be open at once.
const maxSessions = 1000

// sessionPatience is how long a build waits for its session or its upload, as in Docker's engine.
const sessionPatience = 5 * time.Second

// sessions that are open, by id; nil: one that begins.
type sessions struct {
	mu      sync.Mutex
	m       map[string]*buildsession.Session
	changed chan struct{} // closed by the next change
}

func (s *Server) session(w *reply, r *request) error {
	id := r.Header.Get(buildsession.HeaderID)
	if err := askedH2C(r); err != nil {
		return err
	}
	if len(id) > 256 || len(r.Header[buildsession.HeaderMethod]) > 256 {
		return fault.Invalidf("the session's headers are too long")
	}
	if err := s.sessions.claim(id); err != nil {
		return err
	}
	defer s.sessions.drop(id)
	conn, err := upgradeH2C(w, r)
	if conn == nil {
		return err
	}
	defer conn.Close()
	session, err := buildsession.Open(r.Context(), conn, r.Header)
	if err != nil {
		return nil // nobody hears it
	}
	defer session.Close()
	s.sessions.set(id, session)
	select {
	case <-session.Gone():
	case <-r.Context().Done():
	}
	return nil
}

func (s *sessions) claim(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.m[id]; ok {
		return fault.Conflictf("session %s already exists", id)
	}
	if len(s.m) >= maxSessions {
		return fault.Unavailablef("%d sessions are open; end some first", maxSessions)
	}
	if s.m == nil {
		s.m = map[string]*buildsession.Session{}
	}
	s.m[id] = nil
	return nil
}

func (s *sessions) set(id string, session *buildsession.Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.m[id] = session
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

func (s *sessions) drop(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.m, id)
}

func (s *sessions) has(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.m[id]
	return ok
}

// get waits a little for a session that is about to come.
func (s *sessions) get(ctx context.Context, id string) (*buildsession.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, sessionPatience)
	defer cancel()
	for {
		s.mu.Lock()
		session := s.m[id]
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		changed := s.changed
		s.mu.Unlock()
		if session != nil {
			return session, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fault.Invalidf("no active session for %s", id)
		}
	}
}

// uploads are contexts that come with one request for the build of another:
// buildid=upload-request:ID brings what remote=upload-request&buildid=ID waits for.
type uploads struct {
	mu sync.Mutex
	m  map[string]*meeting
}

// meeting is where both requests of a build meet, whoever comes first.
type meeting struct {
	bodies chan upload
	users  int
}

type upload struct {
	body io.Reader
	done chan struct{} // closed when it was read
}

func (u *uploads) meet(id string) (*meeting, func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.m == nil {
		u.m = map[string]*meeting{}
	}
	m := u.m[id]
	if m == nil {
		m = &meeting{bodies: make(chan upload)}
		u.m[id] = m
	}
	m.users++
	return m, func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if m.users--; m.users == 0 {
			delete(u.m, id)
		}
	}
}

// bring hands a body over and waits until it was read.
func (u *uploads) bring(ctx context.Context, id string, body io.Reader) error {
	m, leave := u.meet(id)
	defer leave()
	up := upload{body, make(chan struct{})}
	select {
	case m.bodies <- up:
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(sessionPatience):
		return fault.Invalidf("no build %s waits for an upload", id)
	}
	<-up.done // body must not outlive its request; its reader ends when the client leaves
	return nil
}

// take waits for a body and returns it with what is called after it was read.
func (u *uploads) take(ctx context.Context, id string) (io.Reader, func(), error) {
	m, leave := u.meet(id)
	defer leave()
	select {
	case up := <-m.bodies:
		return up.body, func() { close(up.done) }, nil
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	case <-time.After(sessionPatience):
		return nil, nil, fault.Invalidf("the context of build %s was not uploaded", id)
	}
}
