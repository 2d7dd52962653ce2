package sandbox

import (
	"os"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Without a mount namespace of its own, or in another's, a container has its root and mounts all the same;
// whose namespace it is sees nothing of them, and nothing is left.
func TestMountNamespaceOfOthers(t *testing.T) {
	root := busyRoot(t)
	other, _, _ := sleeper(t, root)
	for name, path := range map[string]string{"the engine's": "", "another container's": procFile(other.Pid, "ns/mnt")} {
		t.Run(name, func(t *testing.T) { besides(t, root, path, other.Pid) })
	}
}

func besides(t *testing.T, root, path string, other int) {
	from := path
	if from == "" {
		from = "/proc/self/ns/mnt"
	}
	want, _ := os.Readlink(from)
	mounts := mountsOf(t, other)
	host := mountsOf(t, os.Getpid())
	p, s, o := sleeper(t, root, func(s *specs.Spec) {
		s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.MountNamespace })
		if path != "" {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.MountNamespace, Path: path})
		}
	})
	if got, _ := os.Readlink(procFile(p.Pid, "ns/mnt")); got != want {
		t.Errorf("in %s, not in %s", got, want)
	}
	r, err := execIn(t, p, s, o, nil, "sh", "-c", "ls /; pwd; readlink /proc/self/ns/mnt; echo x > /proc/sys/kernel/hostname; cat /proc/kcore | wc -c; test -c /dev/null && cat /etc/hostname")
	if err != nil || !strings.Contains(r.out, "bin\n") || strings.Contains(r.out, "boot\n") || !strings.Contains(r.out, "\n/\n"+want+"\n0\n") {
		t.Errorf("%v %q %q", err, r.out, r.err)
	}
	if mountsOf(t, other) != mounts || mountsOf(t, os.Getpid()) != host {
		t.Errorf("the mounts of others changed")
	}
	// Nor does "/.." lead out.
	if r, _ := execIn(t, p, s, o, nil, "sh", "-c", "cd ../../..; ls; ls /../.."); strings.Contains(r.out, "boot\n") {
		t.Errorf("%q", r.out)
	}
}

func mountsOf(t *testing.T, pid int) string {
	b, err := os.ReadFile(procFile(pid, "mountinfo"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
