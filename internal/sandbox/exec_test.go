package sandbox

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// sleeper starts a container that stays, and ends it with the test.
func sleeper(t testing.TB, root string, change ...func(*specs.Spec)) (*Process, *specs.Spec, Options) {
	t.Helper()
	s := dockerSpec("sleep", "1000")
	for _, c := range change {
		c(s)
	}
	o := options(t, root)
	p, err := Start(context.Background(), s, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, p) })
	o.Root = -1
	return p, s, o
}

// execIn runs args in the container.
func execIn(t testing.TB, p *Process, s *specs.Spec, o Options, change func(*specs.Process), args ...string) (result, error) {
	t.Helper()
	or, ow, _ := os.Pipe()
	er, ew, _ := os.Pipe()
	defer or.Close()
	defer er.Close()
	o.Stdio = [3]*os.File{nil, ow, ew}
	x := &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin", "A=b"}}
	if change != nil {
		change(x)
	}
	e, err := Exec(context.Background(), p.Pid, s, x, o)
	ow.Close()
	ew.Close()
	if err != nil {
		return result{}, err
	}
	return collect(t, e, or, er), nil
}

const confinement = `grep -E '^(Cap|NoNewPrivs|Seccomp|Groups|Uid|Gid|Umask)' /proc/self/status; readlink /proc/self/cwd; ulimit -n; cat /proc/self/oom_score_adj /proc/self/cgroup; for n in mnt pid net ipc uts cgroup; do readlink /proc/self/ns/$n; done; ls /proc/self/fd`

// What a process may do must not depend on how it came into the container.
func TestExecEqualsRun(t *testing.T) {
	root := busyRoot(t)
	for name, user := range map[string]specs.User{"root": {}, "ann": {UID: 1000, GID: 1000, AdditionalGids: []uint32{44}}} {
		t.Run(name, func(t *testing.T) {
			s := dockerSpec("sh", "-c", confinement+"; echo ready; while sleep 1; do :; done")
			s.Process.User = user
			o := options(t, root)
			r, w, _ := os.Pipe()
			defer r.Close()
			o.Stdio = [3]*os.File{nil, w, w}
			p, err := Start(context.Background(), s, o)
			w.Close()
			if err != nil {
				t.Fatal(err)
			}
			defer end(t, p)
			var first strings.Builder
			b := make([]byte, 4096)
			for !strings.Contains(first.String(), "ready") {
				n, err := r.Read(b)
				if err != nil {
					t.Fatal(first.String(), err)
				}
				first.Write(b[:n])
			}
			second, err := execIn(t, p, s, o, func(x *specs.Process) { x.User = user }, "sh", "-c", confinement+"; echo ready")
			if err != nil {
				t.Fatal(err)
			}
			if second.out != first.String() {
				t.Errorf("run:\n%s\nexec:\n%s%s", first.String(), second.out, second.err)
			}
			if !strings.Contains(second.out, "CapInh:\t0000000000000000") || !strings.Contains(second.out, "Seccomp:\t2") {
				t.Errorf("confinement is not as expected:\n%s", second.out)
			}
		})
	}
}

func TestExecExitCodesAndErrors(t *testing.T) {
	p, s, o := sleeper(t, busyRoot(t))
	if r, err := execIn(t, p, s, o, nil, "sh", "-c", "exit 42"); err != nil || r.code != 42 {
		t.Error(r, err)
	}
	if r, err := execIn(t, p, s, o, nil, "sh", "-c", "kill -TERM $$"); err != nil || r.code != 143 {
		t.Error(r, err)
	}
	var e *ExecError
	if _, err := execIn(t, p, s, o, nil, "nosuch"); !errors.As(err, &e) || e.Code != 127 || e.Error() != `exec: "nosuch": executable file not found in $PATH` {
		t.Errorf("%v", err)
	}
	if _, err := execIn(t, p, s, o, nil, "/etc/passwd"); !errors.As(err, &e) || e.Code != 126 || !strings.HasSuffix(e.Error(), "permission denied") {
		t.Errorf("%v", err)
	}
	if _, err := execIn(t, p, s, o, func(x *specs.Process) { x.Cwd = "/none" }, "true"); err == nil || !strings.Contains(err.Error(), "/none") {
		t.Errorf("%v", err)
	}
}

func TestExecTerminal(t *testing.T) {
	p, s, o := sleeper(t, busyRoot(t))
	x := &specs.Process{Args: []string{"sh", "-c", "tty; stty size; exit 3"}, Cwd: "/", Env: []string{"PATH=/bin"}, Terminal: true, ConsoleSize: &specs.Box{Height: 31, Width: 97}}
	e, err := Exec(context.Background(), p.Pid, s, x, o)
	if err != nil {
		t.Fatal(err)
	}
	out := readTerminal(t, e)
	if !strings.Contains(out, "/dev/pts/0") || !strings.Contains(out, "31 97") {
		t.Errorf("%q", out)
	}
	if code, err := e.Wait(); code != 3 || err != nil {
		t.Error(code, err)
	}
}

func readTerminal(t testing.TB, p *Process) string {
	t.Helper()
	defer p.Console.Close()
	p.Console.SetReadDeadline(time.Now().Add(10 * time.Second))
	b, _ := io.ReadAll(p.Console) // ends with EIO when the last process is gone
	return string(b)
}

func TestExecInUserNamespace(t *testing.T) {
	p, s, o := sleeper(t, busyRoot(t), userNS)
	r, err := execIn(t, p, s, o, nil, "sh", "-c", "id -u; cat /proc/self/uid_map; readlink /proc/self/ns/user; readlink /proc/1/ns/user; echo $$")
	if err != nil || r.code != 0 {
		t.Fatal(r, err)
	}
	f := strings.Fields(r.out)
	if len(f) != 7 || f[0] != "0" || f[2] != "100000" || f[4] != f[5] {
		t.Errorf("%q", r.out)
	}
}

func userNS(s *specs.Spec) {
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	m := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	s.Linux.UIDMappings, s.Linux.GIDMappings = m, m
	delete(s.Linux.Sysctl, "net.ipv4.ping_group_range") // its ids must be mapped
}
