package monitor

// Starting monitors: the binary again, in a session of its own, with nothing of ours but a socket.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"keg/internal/launch"
	"keg/internal/sandbox/cgroup"
)

// Prepared is a monitor process that waits to be told its container. Starting it before the record
// is written takes the start of a process off the way from command to program.
type Prepared struct {
	r     Roots
	c     *net.UnixConn
	words *os.File
}

// Prepare starts a monitor in its own session and cgroup, or takes the one that was started at this program's
// first moment. One that is closed, or whose starter dies, before it was told a container ends by itself.
func Prepare(r Roots) (*Prepared, error) {
	p, err := launch.Monitor(r.Root, r.Run)
	if err == nil {
		var c *net.UnixConn
		if c, err = adopt(p); err == nil {
			return &Prepared{r, c, p.Words}, nil
		}
		p.Words.Close()
	}
	return nil, fmt.Errorf("start a monitor: %w", err)
}

// Close ends a monitor that was not used; after Spawn it does nothing.
func (p *Prepared) Close() error {
	if p.c == nil {
		return nil
	}
	p.words.Close()
	return p.c.Close()
}

// Spawn starts the monitor of container id in its own session and cgroup and waits until the
// program was executed or an error came back. With attach set the stdio is connected
// before the program starts, so that not a byte is missed.
func Spawn(ctx context.Context, r Roots, id string, attach *Stdio) (*Conn, error) {
	p, err := Prepare(r)
	if err != nil {
		return nil, err
	}
	return p.Spawn(ctx, id, attach)
}

// Spawn is the function of the same name with this process as the monitor. It can be used once.
func (p *Prepared) Spawn(ctx context.Context, id string, attach *Stdio) (*Conn, error) {
	k := newConn(p.c, id)
	p.c = nil
	defer p.words.Close()
	q := request{Op: "start", ID: id}
	if attach != nil {
		a := wants(*attach)
		q.Attach = &a
	}
	if err := k.call(ctx, q, nil); err != nil {
		k.Close()
		if errors.Is(err, errGone) {
			return nil, fmt.Errorf("the monitor of container %s ended before the program was started%s", id, lastWords(p.words))
		}
		return nil, err
	}
	if attach != nil {
		k.session = k.begin(*attach)
	}
	return k, nil
}

// lastWords is the end of a monitor's error file, for people.
func lastWords(f *os.File) string {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
	b = bytes.TrimSpace(b)
	if err != nil || len(b) == 0 {
		return ""
	}
	return ": " + strings.ToValidUTF8(string(b[max(0, len(b)-2000):]), "?")
}

// adopt is the connection to a process of ours; one that is a front end's and lives long leaves no zombie.
func adopt(p *launch.Process) (*net.UnixConn, error) {
	go reapMonitor(p.Pid)
	return fileConn(p.Socket)
}

func reapMonitor(pid int) {
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// farewell takes away what monitors share and the last one needs no more.
func farewell() {
	cgroup.Tidy(cgroupParent)
	if b, err := os.ReadFile("/proc/self/cgroup"); err == nil && string(b) == "0::/"+filepath.Base(launch.MonitorsCgroup)+"\n" {
		cgroup.Leave(launch.MonitorsCgroup)
	}
}
