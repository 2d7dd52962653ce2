package delegate

// The terminal of a container: runtimes send its master over a socket that we listen on.

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"keg/internal/linux"
)

// consoleSocket listens in the bundle. take receives the terminal and ends listening; it is called once.
func (c *Container) consoleSocket() (name string, take func() (*os.File, error), err error) {
	dir, err := os.OpenFile(c.Bundle, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", nil, err
	}
	defer dir.Close()
	f, err := os.CreateTemp(c.Bundle, "tty-*")
	if err != nil {
		return "", nil, err
	}
	f.Close()
	os.Remove(f.Name())
	name = filepath.Base(f.Name())
	// By way of the descriptor here, relative to the bundle there: a socket's path may have 107 bytes only.
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: linux.FDPath(int(dir.Fd())) + "/" + name, Net: "unix"})
	if err != nil {
		return "", nil, fmt.Errorf("listen for the terminal: %w", err)
	}
	ln.SetUnlinkOnClose(false)
	return name, func() (*os.File, error) {
		defer os.Remove(filepath.Join(c.Bundle, name))
		defer ln.Close()
		// Who had something to send has sent it: the runtime has ended.
		_ = ln.SetDeadline(time.Now().Add(10 * time.Second))
		return receive(ln)
	}, nil
}

func receive(ln *net.UnixListener) (*os.File, error) {
	conn, err := ln.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoTerminal, err)
	}
	defer conn.Close()
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(name, oob)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoTerminal, err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return nil, errNoTerminal
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, errNoTerminal
	}
	unix.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}
