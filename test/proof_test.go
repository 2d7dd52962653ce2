package test

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// One name, port, volume and network, used again at once, never fail, and leave nothing.
func TestOneNameInALoop(t *testing.T) {
	e := newEngine(t)
	e.keg("pull", "-q", "busybox")
	e.keg("network", "create", "loop")
	rounds := 500
	if testing.Short() {
		rounds = 20
	}
	for i := range rounds {
		for _, args := range [][]string{
			{"run", "-d", "--name", "loop", "-p", "127.0.0.1:18080:80", "-v", "loop:/data", "--network", "loop", "busybox", "sleep", "1000"},
			{"exec", "loop", "sh", "-c", "echo x >> /data/rounds"},
			{"rm", "-f", "loop"},
		} {
			if _, errs, code := e.try(args...); code != 0 {
				t.Fatalf("round %d: %q: exit %d: %s", i, args, code, errs)
			}
		}
	}
	if out := e.keg("run", "--rm", "-v", "loop:/data", "busybox", "wc", "-l", "/data/rounds"); !strings.HasPrefix(out, strconv.Itoa(rounds)+" ") {
		t.Errorf("after %d rounds the volume holds %s", rounds, out)
	}
	e.keg("network", "rm", "loop")
	e.keg("volume", "rm", "loop")
	e.keg("rmi", "busybox")
}

// Exit codes 0 to 255, of the first process and of one in exec.
func TestExitCodes(t *testing.T) {
	e := newEngine(t)
	e.keg("pull", "-q", "busybox")
	e.keg("run", "-d", "--name", "box", "busybox", "sleep", "1000")
	for want := range 256 {
		script := fmt.Sprintf("exit %d", want)
		if _, errs, code := e.try("run", "--rm", "--network", "none", "busybox", "sh", "-c", script); code != want {
			t.Errorf("run %q: exit %d %s", script, code, errs)
		}
		if _, errs, code := e.try("exec", "box", "sh", "-c", script); code != want {
			t.Errorf("exec %q: exit %d %s", script, code, errs)
		}
	}
}

// Signals 0 to 64 as keg kill sends them: each arrives, those that no program can catch do what they do.
func TestSignals(t *testing.T) {
	e := newEngine(t)
	e.keg("pull", "-q", "busybox")
	// SIGSTOP cannot be caught; 32 and 33 are the C library's own.
	const trap = `for i in $(seq 1 64); do trap "echo got $i" $i 2>/dev/null; done; echo ready; while :; do read -t 1 x < /fifo; done`
	e.keg("run", "-d", "--name", "traps", "busybox", "sh", "-c", "mkfifo /fifo; (exec 9<>/fifo; sleep 1000) & "+trap)
	e.await("ready", "logs", "traps")
	for n := range 65 {
		sig := strconv.Itoa(n)
		switch n {
		case 0:
			if _, errs, code := e.try("kill", "-s", sig, "traps"); code != 1 || !strings.Contains(errs, "invalid signal: 0") {
				t.Errorf("signal 0: exit %d %s", code, errs)
			}
		case 9, 32, 33:
		case 19:
			e.keg("kill", "-s", sig, "traps")
			e.keg("kill", "-s", "CONT", "traps")
			e.await("got 18\n", "logs", "traps")
		default:
			e.keg("kill", "-s", sig, "traps")
			e.await("got "+sig+"\n", "logs", "traps")
		}
	}
	e.keg("kill", "-s", "9", "traps")
	if code := e.keg("wait", "traps"); code != "137" {
		t.Errorf("killed by 9: %s", code)
	}
	e.keg("rm", "traps")

	// A program that a signal ends says so by 128 and the signal's number.
	e.keg("run", "-d", "--name", "box", "busybox", "sleep", "1000")
	for n := 1; n < 65; n++ {
		switch unix.Signal(n) {
		case 32, 33: // the C library's own
			continue
		case unix.SIGQUIT, // the shell ignores it
			unix.SIGCHLD, unix.SIGCONT, unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGURG, unix.SIGWINCH:
			continue // they end nothing
		}
		if _, errs, code := e.try("exec", "box", "sh", "-c", fmt.Sprintf("kill -%d $$; sleep 5", n)); code != 128+n {
			t.Errorf("exec ended by signal %d: exit %d %s", n, code, errs)
		}
	}
}

// await runs keg until its output holds the text.
func (e *engine) await(text string, args ...string) {
	e.t.Helper()
	for range 200 {
		cmd := e.command(args...)
		out, _ := cmd.CombinedOutput()
		if bytes.Contains(out, []byte(text)) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	e.t.Errorf("keg %q never said %q", args, text)
}

// A terminal's size arrives, at the start and when it changes.
func TestTerminalSizes(t *testing.T) {
	e := newEngine(t)
	e.keg("pull", "-q", "busybox")
	e.keg("run", "-d", "--name", "box", "busybox", "sleep", "1000")
	for _, words := range [][]string{{"run", "-it", "--rm", "--network", "none", "busybox"}, {"exec", "-it", "box"}} {
		term := e.terminal(33, 77, append(words, "sh", "-c", `trap 'echo now $(stty size)' WINCH; echo first $(stty size); while :; do sleep 0.05; done`)...)
		term.await(t, "first 33 77")
		for _, s := range [][2]uint16{{24, 80}, {500, 900}, {2, 2}, {25, 80}} {
			term.resize(t, s[0], s[1])
			term.await(t, fmt.Sprintf("now %d %d", s[0], s[1]))
		}
		term.cmd.Process.Kill()
		term.cmd.Wait()
		term.master.Close()
	}
}

// terminal is a command on a terminal.
type terminal struct {
	cmd    *exec.Cmd
	master *os.File
	mu     sync.Mutex
	said   bytes.Buffer
}

func (e *engine) terminal(rows, cols uint16, args ...string) *terminal {
	e.t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		e.t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		e.t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		e.t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		e.t.Fatal(err)
	}
	defer slave.Close()
	term := &terminal{cmd: e.command(args...), master: master}
	term.resize(e.t, rows, cols)
	term.cmd.Stdin, term.cmd.Stdout, term.cmd.Stderr = slave, slave, slave
	term.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := term.cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			term.mu.Lock()
			term.said.Write(buf[:n])
			term.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return term
}

func (x *terminal) resize(t *testing.T, rows, cols uint16) {
	if err := unix.IoctlSetWinsize(int(x.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
		t.Fatal(err)
	}
}

func (x *terminal) await(t *testing.T, text string) {
	t.Helper()
	for range 200 {
		x.mu.Lock()
		found := bytes.Contains(x.said.Bytes(), []byte(text+"\r\n"))
		x.mu.Unlock()
		if found {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	t.Errorf("%q never came: %q", text, x.said.String())
}

// What is left to say after the end of the input still arrives.
func TestHalfClosedInput(t *testing.T) {
	e := newEngine(t)
	e.keg("pull", "-q", "busybox")
	e.keg("run", "-d", "--name", "box", "busybox", "sleep", "1000")
	for _, words := range [][]string{{"run", "-i", "--rm", "--network", "none", "busybox"}, {"exec", "-i", "box"}} {
		cmd := e.command(append(words, "sh", "-c", "n=$(wc -c); sleep 0.3; echo read $n; sleep 0.3; echo late >&2; exit 5")...)
		cmd.Stdin = strings.NewReader("some words")
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		cmd.Run()
		if out.String() != "read 10\n" || errs.String() != "late\n" || cmd.ProcessState.ExitCode() != 5 {
			t.Errorf("%q: %q %q %v", words, out.String(), errs.String(), cmd.ProcessState)
		}
		// The other way round: the reader goes, the writer is told.
		cmd = e.command(append(words, "sh", "-c", "yes; echo gone $? >&2")...)
		pipe, _ := cmd.StdoutPipe()
		cmd.Start()
		io.ReadFull(pipe, make([]byte, 100))
		pipe.Close()
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Errorf("%q does not end when nobody reads", words)
			cmd.Process.Kill()
			<-done
		}
	}
}

// noise is a stream of bytes that depends on nothing but its key.
func noise(n int64) io.Reader {
	b, err := aes.NewCipher(make([]byte, 16))
	if err != nil {
		panic(err)
	}
	return io.LimitReader(&cipher.StreamReader{S: cipher.NewCTR(b, make([]byte, 16)), R: zeroes{}}, n)
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A gibibyte through standard input and output, by run and by exec.
func TestGibibyteThrough(t *testing.T) {
	e := newEngine(t)
	e.keg("pull", "-q", "busybox")
	e.keg("run", "-d", "--name", "box", "busybox", "sleep", "1000")
	size := int64(1 << 30)
	if testing.Short() {
		size = 64 << 20
	}
	want := sha256.New()
	io.Copy(want, noise(size))
	for _, words := range [][]string{{"run", "-i", "--rm", "--network", "none", "--log-driver", "none", "busybox"}, {"exec", "-i", "box"}} {
		cmd := e.command(append(words, "cat")...)
		cmd.Stdin = noise(size)
		got := sha256.New()
		n := &counted{Hash: got}
		cmd.Stdout = n
		begun := time.Now()
		if err := cmd.Run(); err != nil {
			t.Errorf("%q: %v", words, err)
		}
		t.Logf("%q: %.0f MB/s", words, float64(size)/1e6/time.Since(begun).Seconds())
		if n.n != size || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
			t.Errorf("%q: %d bytes of %d, or others", words, n.n, size)
		}
	}
}

type counted struct {
	hash.Hash
	n int64
}

func (c *counted) Write(p []byte) (int, error) { c.n += int64(len(p)); return c.Hash.Write(p) }

// A log of a million lines, followed by three readers while it is written: each line once and in order.
func TestMillionLinesFollowed(t *testing.T) {
	e := newEngine(t)
	e.keg("pull", "-q", "busybox")
	lines := 1_000_000
	if testing.Short() {
		lines = 50_000
	}
	for _, opts := range [][]string{{"--log-opt", "max-size=1g"}, {"--log-driver", "local", "--log-opt", "max-size=1g"}, nil} {
		if opts == nil && lines > 200_000 {
			lines = 200_000 // the default keeps three files of 10 MiB
		}
		e.keg(append(append([]string{"run", "-d", "--name", "talks"}, opts...), "busybox", "sh", "-c",
			fmt.Sprintf("while [ ! -e /go ]; do sleep 0.05; done; seq 1 %d", lines))...)
		var readers sync.WaitGroup
		for r := range 3 {
			cmd := e.command("logs", "-f", "talks")
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			readers.Go(func() {
				defer cmd.Wait()
				next := 1
				for s := bufio.NewScanner(out); s.Scan(); next++ {
					if s.Text() != strconv.Itoa(next) {
						t.Errorf("%q: reader %d read %q where %d was due", opts, r, s.Text(), next)
						cmd.Process.Kill()
						return
					}
				}
				if next != lines+1 {
					t.Errorf("%q: reader %d saw %d lines of %d", opts, r, next-1, lines)
				}
			})
		}
		time.Sleep(200 * time.Millisecond)
		begun := time.Now()
		e.keg("exec", "talks", "touch", "/go")
		readers.Wait()
		t.Logf("%q: %d lines to three readers in %v", opts, lines, time.Since(begun).Round(time.Millisecond))
		e.keg("rm", "-f", "talks")
	}
}
