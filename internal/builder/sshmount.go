// RUN --mount=type=ssh: the caller's agent, reachable while the step runs. No key enters the build.
package builder

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"strconv"
	"sync"

	"keg/internal/fault"
)

// sshDefault is the id of the agent that is meant when none is named.
const sshDefault = "default"

// prepareSSH puts a socket of this step alone in front of the agent's.
func (m *runMount) prepareSSH(ctx context.Context, s *solver, step *Step, undo *cleanup) error {
	agent, ok := s.plan.o.SSH[m.id]
	if caller := s.plan.o.Caller; !ok && caller != nil {
		agent, ok = caller.SSH(ctx, m.id)
	}
	if !ok {
		if m.required {
			return fault.NotFoundf("ssh agent %q: not found; name it with --ssh %s", m.id, m.id)
		}
		return nil
	}
	if s.run == "" {
		return fault.Unsupportedf("ssh agent %s: there is no directory for its socket", m.id)
	}
	dir, err := s.private()
	if err != nil {
		return err
	}
	undo.add(func() { dir.Remove() })
	sock := filepath.Join(dir.Path, "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		return err
	}
	p := &relay{l: l, to: agent, open: map[net.Conn]bool{}}
	p.wait.Go(p.serve)
	undo.add(p.close)
	if err := m.give(sock, 0o600); err != nil {
		return err
	}
	n := 0
	for _, other := range step.Mounts {
		if filepath.Dir(other.Target) == sshDir {
			n++
		}
	}
	target := m.target
	if target == "" {
		target = filepath.Join(sshDir, "ssh_agent."+strconv.Itoa(n))
	}
	if n == 0 {
		step.Env = append(step.Env, "SSH_AUTH_SOCK="+target)
	}
	step.Mounts = append(step.Mounts, Mount{Type: "bind", Source: sock, Target: target})
	return nil
}

// sshDir is where BuildKit shows agents.
const sshDir = "/run/buildkit"

// relay carries connections to a socket until it is closed.
type relay struct {
	l    net.Listener
	to   Agent
	wait sync.WaitGroup

	mu   sync.Mutex
	open map[net.Conn]bool
	done bool
}

func (p *relay) serve() {
	for {
		c, err := p.l.Accept()
		if err != nil {
			return
		}
		p.wait.Go(func() { p.carry(c) })
	}
}

func (p *relay) carry(c net.Conn) {
	defer p.forget(c)
	if !p.keep(c) {
		return
	}
	agent, err := p.to()
	if err != nil {
		return
	}
	defer p.forget(agent)
	if !p.keep(agent) {
		return
	}
	p.wait.Go(func() {
		io.Copy(agent, c)
		if half, ok := agent.(interface{ CloseWrite() error }); ok {
			half.CloseWrite()
		} else {
			agent.Close()
		}
	})
	io.Copy(c, agent)
}

func (p *relay) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[c] = true
	return !p.done
}

func (p *relay) forget(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, c)
	c.Close()
}

func (p *relay) close() {
	p.l.Close()
	p.mu.Lock()
	p.done = true
	for c := range p.open {
		c.Close()
	}
	p.mu.Unlock()
	p.wait.Wait()
}
