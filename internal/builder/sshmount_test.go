package builder

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"keg/internal/fault"
)

// echoAgent answers what it is told, once the other side has said all.
func echoAgent(t *testing.T) Agent {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b, _ := io.ReadAll(c)
				c.Write(append([]byte("agent: "), b...))
			}()
		}
	}()
	return func() (net.Conn, error) { return net.Dial("unix", path) }
}

// pipeAgent is one of this process, that answers each line.
func pipeAgent() (net.Conn, error) {
	ours, theirs := net.Pipe()
	go func() {
		defer ours.Close()
		for in := bufio.NewScanner(ours); in.Scan(); {
			fmt.Fprintf(ours, "pipe: %s\n", in.Text())
		}
	}()
	return theirs, nil
}

func TestSSHMount(t *testing.T) {
	s := &solver{plan: &plan{o: Options{SSH: map[string]Agent{"default": echoAgent(t), "other": pipeAgent}}}}
	s.run = t.TempDir()
	var step Step
	var undo cleanup
	mode := uint64(0o620)
	for _, m := range []runMount{{id: "default"}, {id: "other", mode: &mode}, {id: "none"}} {
		if err := m.prepareSSH(t.Context(), s, &step, &undo); err != nil {
			t.Fatal(err)
		}
	}
	if len(step.Mounts) != 2 || step.Mounts[0].Target != "/run/buildkit/ssh_agent.0" || step.Mounts[1].Target != "/run/buildkit/ssh_agent.1" ||
		len(step.Env) != 1 || step.Env[0] != "SSH_AUTH_SOCK=/run/buildkit/ssh_agent.0" {
		t.Errorf("%+v", step)
	}
	for i, want := range []os.FileMode{0o600, 0o620} {
		if st, err := os.Stat(step.Mounts[i].Source); err != nil || st.Mode().Perm() != want {
			t.Errorf("socket %d: %v, %v", i, st.Mode(), err)
		}
	}
	c, err := net.Dial("unix", step.Mounts[0].Source)
	if err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("list"))
	c.(*net.UnixConn).CloseWrite()
	if b, err := io.ReadAll(c); string(b) != "agent: list" {
		t.Errorf("%q, %v", b, err)
	}
	if c, err = net.Dial("unix", step.Mounts[1].Source); err != nil {
		t.Fatal(err)
	}
	c.Write([]byte("list\n"))
	if line, err := bufio.NewReader(c).ReadString('\n'); line != "pipe: list\n" {
		t.Errorf("%q, %v", line, err)
	}
	c.Close()
	idle, err := net.Dial("unix", step.Mounts[0].Source) // a program that stays connected does not hold the build up
	if err != nil {
		t.Fatal(err)
	}
	undo.run()
	if _, err := io.ReadAll(idle); err != nil {
		t.Log(err) // reset or closed: gone either way
	}
	if ents, _ := os.ReadDir(secretsDir(s.run)); len(ents) != 0 {
		t.Errorf("left behind: %v", ents)
	}
	if err := (&runMount{id: "none", required: true}).prepareSSH(t.Context(), s, &step, &undo); !fault.Is(err, fault.NotFound) {
		t.Errorf("required: %v", err)
	}
}
