package oci

// One more process in a running container, and being a parent.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/sandbox"
)

// LoadProcess reads the file of exec --process.
func LoadProcess(file string) (*specs.Process, error) {
	p := &specs.Process{}
	if err := readJSON(file, p); err != nil {
		return nil, err
	}
	return p, checkProcess(p)
}

// ProcessOf is a copy of the container's own process: what exec on the command line starts from.
func (r *Runtime) ProcessOf(id string) (*specs.Process, error) {
	c, err := r.load(id)
	if err != nil {
		return nil, err
	}
	p := *c.rec.Spec.Process
	p.Terminal, p.ConsoleSize = false, nil
	p.Env = append([]string{}, p.Env...)
	return &p, nil
}

// Exec runs p in the container. Detached, it returns once the program runs; otherwise with its exit code.
func (r *Runtime) Exec(ctx context.Context, id string, p *specs.Process, l Launch, detached, paused bool) (code int, err error) {
	c, err := r.load(id)
	if err != nil {
		return 255, err
	}
	if !path.IsAbs(p.Cwd) {
		return 255, fault.Invalidf("the working directory %q must be an absolute path", p.Cwd)
	}
	switch s := c.status(); {
	case s == specs.StateStopped:
		return 255, fault.Conflictf("cannot exec in a stopped container")
	case s == Paused && !paused:
		return 255, fault.Conflictf("cannot exec in a paused container")
	}
	if err := checkTerminal(p.Terminal, detached, l.ConsoleSocket); err != nil {
		return 255, err
	}
	files, err := passed(l)
	if err != nil {
		return 255, err
	}
	defer closeAll(files)
	proc, err := sandbox.Exec(ctx, c.rec.Pid, c.rec.Spec, p, sandbox.Options{Root: -1, NetNS: -1, Stdio: l.Stdio, Cgroup: c.rec.Cgroup, Files: files, Outlive: detached})
	if err != nil {
		return 255, err
	}
	r.warn(proc.Warnings...)
	if err := deliver(proc, l, detached); err != nil {
		_ = proc.Signal(int(unix.SIGKILL))
		_, _ = proc.Wait()
		return 255, err
	}
	if detached {
		return 0, proc.PidFD.Close()
	}
	return attend(proc, l)
}

// attend waits for a process of ours; signals and the terminal are passed on.
func attend(p *sandbox.Process, l Launch) (int, error) {
	sigs := make(chan os.Signal, 64)
	signal.Notify(sigs)
	defer signal.Stop(sigs)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-done:
				return
			case s := <-sigs:
				pass(p, s, l)
			}
		}
	}()
	defer close(done)
	if p.Console == nil {
		return p.Wait()
	}
	defer p.Console.Close()
	if l.Stdio[0] != nil {
		if restore, err := raw(int(l.Stdio[0].Fd())); err == nil {
			defer restore()
		}
		pass(p, unix.SIGWINCH, l)
		go io.Copy(p.Console, l.Stdio[0]) // ends with this process
	}
	out := make(chan struct{})
	go func() {
		defer close(out)
		if l.Stdio[1] != nil {
			_, _ = io.Copy(l.Stdio[1], p.Console) // EIO when the last holder of the other end is gone
		}
	}()
	code, err := p.Wait()
	<-out
	return code, err
}

// pass gives the process a signal that we got; a changed window is for its terminal.
func pass(p *sandbox.Process, s os.Signal, l Launch) {
	switch sig, _ := s.(unix.Signal); sig {
	case unix.SIGCHLD, unix.SIGURG, unix.SIGPIPE, 0:
	case unix.SIGWINCH:
		if p.Console == nil || l.Stdio[0] == nil {
			return
		}
		if ws, err := unix.IoctlGetWinsize(int(l.Stdio[0].Fd()), unix.TIOCGWINSZ); err == nil {
			_ = unix.IoctlSetWinsize(int(p.Console.Fd()), unix.TIOCSWINSZ, ws)
		}
	default:
		_ = p.Signal(int(sig))
	}
}

// raw hands every key to the container's terminal.
func raw(fd int) (restore func(), err error) {
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	t := *old
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, old) }, unix.IoctlSetTermios(fd, unix.TCSETS, &t)
}

// sendConsole sends the terminal's master over the socket, named as runc names it.
func sendConsole(master *os.File, socket string) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return fmt.Errorf("connect to the console socket: %w", err)
	}
	defer conn.Close()
	fd := int(master.Fd())
	if err := unix.SetNonblock(fd, false); err != nil {
		return err
	}
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return errors.New("the console socket is not a Unix socket")
	}
	if _, _, err = u.WriteMsgUnix([]byte("/dev/ptmx"), unix.UnixRights(fd), nil); err != nil {
		return fmt.Errorf("send the terminal: %w", err)
	}
	return nil
}
