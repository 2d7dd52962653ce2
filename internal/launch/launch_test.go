package launch

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"keg/test/private"
)

// The test binary also looks at what it was executed from.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "exe" {
		var st unix.Statfs_t
		_, err := os.OpenFile("/proc/self/exe", os.O_WRONLY, 0)
		fmt.Println(unix.Statfs("/proc/self/exe", &st), st.Flags&unix.ST_RDONLY != 0, err != nil)
		return
	}
	private.Enter()
	os.Exit(m.Run())
}

func TestExecutableIsReadOnly(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: clones a mount")
	}
	f, err := Executable()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), "exe")
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "<nil> true true\n" {
		t.Errorf("%q %v", out, err)
	}
}

func TestExpect(t *testing.T) {
	type env map[string]string
	for _, c := range []struct {
		args  []string
		env   env
		where string // "" is no early process
	}{
		{[]string{"/usr/bin/keg", "run", "x"}, nil, "/var/lib/keg /run/keg"},
		{[]string{"docker", "run", "--rm", "x", "-h"}, nil, "/var/lib/keg /run/keg"},
		{[]string{"keg", "run", "x"}, env{"KEG_ROOT": "/a//b/", "KEG_RUN_ROOT": "/r"}, "/a/b /r"},
		{[]string{"keg", "run", "x"}, env{"KEG_ROOT": "a"}, ""},
		{[]string{"keg", "run"}, nil, ""},
		{[]string{"keg"}, nil, ""},
		{[]string{"keg", "--root", "/a", "run", "x"}, nil, ""},
		{[]string{"keg", "run", "--root=/a", "x"}, nil, ""},
		{[]string{"keg", "run", "--run-root", "/a", "x"}, nil, ""},
		{[]string{"keg", "run", "--help"}, nil, ""},
		{[]string{"keg", "create", "x"}, nil, ""},
		{[]string{"run", "run", "x"}, nil, ""},
		{[]string{Argv0, "run", "x"}, nil, ""},
		{[]string{"keg", "run", "x"}, env{"DOCKER_HOST": "unix:///a"}, ""},
		{[]string{"keg", "run", "x"}, env{"DOCKER_CONTEXT": "c"}, ""},
	} {
		root, run, ok := expect(c.args, func(k string) string { return c.env[k] })
		got := ""
		if ok {
			got = root + " " + run
		}
		if got != c.where {
			t.Errorf("%q %v: %q, not %q", c.args, c.env, got, c.where)
		}
	}
}

// A process for another engine is not given away, and ends.
func TestEarlyIsOfItsEngine(t *testing.T) {
	for _, c := range []struct {
		root string
		want bool
	}{{"/root", true}, {"/other", false}} {
		cmd := exec.Command("sleep", "1000")
		words, err := memfile("words")
		if err != nil {
			t.Fatal(err)
		}
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		other := os.NewFile(uintptr(fds[1]), "socket")
		cmd.Stdin = other
		cmd.Path, cmd.Args = "/bin/cat", []string{"cat"} // which ends when our end of its socket is closed
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		other.Close()
		s := &promise{"/root", "/run", make(chan *Process, 1)}
		s.process <- &Process{Socket: fds[0], Pid: cmd.Process.Pid, Words: words}
		spare.Store(s)
		p := early(c.root, "/run")
		if (p != nil) != c.want {
			t.Errorf("%s: got %v", c.root, p)
		}
		if early(c.root, "/run") != nil {
			t.Error("given away twice")
		}
		if p != nil {
			p.close()
		}
		for unix.Kill(cmd.Process.Pid, 0) == nil { // until it is waited for
		}
	}
}

func TestRuntime(t *testing.T) {
	for _, c := range []struct {
		args   []string
		ok     bool
		clones bool
	}{
		{[]string{"keg", "oci", "--root", "/r", "run", "c"}, true, true},
		{[]string{"/usr/bin/keg-oci", "create", "c"}, true, true},
		{[]string{"keg-oci", "state", "c"}, true, false},
		{[]string{"keg", "oci"}, true, false},
		{[]string{"keg", "run", "c"}, false, false},
		{nil, false, false},
	} {
		words, ok := Runtime(c.args)
		if ok != c.ok || clones(words) != c.clones {
			t.Errorf("%q: %v, clones: %v", c.args, ok, clones(words))
		}
	}
}
