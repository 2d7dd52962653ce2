package delegate

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"keg/internal/fault"
	"keg/internal/sandbox"
)

func TestFind(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "runtime"), []byte("#!/bin/sh\n"), 0o755)
	os.WriteFile(filepath.Join(dir, "plain"), nil, 0o644)
	if p, err := Find(filepath.Join(dir, "runtime")); err != nil || p != filepath.Join(dir, "runtime") {
		t.Error(p, err)
	}
	if p, err := Find("sh"); err != nil || !filepath.IsAbs(p) {
		t.Error(p, err)
	}
	for _, bad := range []string{"no-such-runtime", "../sh", "./sh", "bin/sh", dir, filepath.Join(dir, "plain"), filepath.Join(dir, "missing"), "a\x00b", "a\nb"} {
		if p, err := Find(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %q %v", bad, p, err)
		}
	}
	if !Own("") || !Own("keg") || Own("runc") {
		t.Error("own")
	}
}

// All that the sandbox takes by descriptor is said to a runtime.
func TestTranslate(t *testing.T) {
	caps := []string{"CAP_CHOWN"}
	s := &specs.Spec{Root: &specs.Root{Readonly: true}, Process: &specs.Process{Args: []string{"x"}, Capabilities: &specs.LinuxCapabilities{Bounding: caps}},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace}}}}
	got, _, err := Translate(s, sandbox.Options{NetNS: 7, Cgroup: "keg/x", DefaultSeccomp: true}, "/b/rootfs")
	if err != nil {
		t.Fatal(err)
	}
	net := got.Linux.Namespaces[1]
	if got.Root.Path != "/b/rootfs" || !got.Root.Readonly || got.Linux.CgroupsPath != "/keg/x" || got.Linux.Seccomp == nil ||
		net.Type != specs.NetworkNamespace || net.Path != fmt.Sprintf("/proc/%d/fd/7", os.Getpid()) || len(got.Linux.Namespaces) != 2 {
		t.Errorf("%+v %+v", got.Root, got.Linux)
	}
	if s.Linux.Seccomp != nil || s.Linux.CgroupsPath != "" || s.Linux.Namespaces[1].Path != "" || s.Root.Path != "" {
		t.Error("the caller's spec was changed")
	}
	if got, _, _ := Translate(s, sandbox.Options{NetNS: -1}, "/r"); got.Linux.Seccomp != nil || got.Linux.Namespaces[1].Path != "" {
		t.Error("unasked for")
	}
}

// A runtime's last error of this call is the error; what it said before is not.
func TestFailureIsReadFromTheLog(t *testing.T) {
	dir := t.TempDir()
	script := `#!/bin/sh
while [ $# -gt 0 ]; do case $1 in --log) log=$2; shift;; create|start|kill) op=$1;; esac; shift; done
[ "$op" = start ] && { echo plain words >&2; exit 1; }
[ "$op" = kill ] && exit 1
echo '{"level":"error","msg":"runc create failed: exec: \"x\": executable file not found in $PATH"}' >> $log; exit 1
`
	os.WriteFile(filepath.Join(dir, "runtime"), []byte(script), 0o755)
	c, err := New(filepath.Join(dir, "runtime"), "id", dir)
	if err != nil {
		t.Fatal(err)
	}
	var x *sandbox.ExecError
	if err := c.run(t.Context(), nil, "create"); !errors.As(err, &x) || x.Code != 127 || !strings.HasPrefix(err.Error(), "runc create failed: exec") {
		t.Errorf("%v", err)
	}
	if err := c.run(t.Context(), nil, "start"); err == nil || !strings.HasSuffix(err.Error(), "start failed: plain words") {
		t.Errorf("%v", err)
	}
	if err := c.run(t.Context(), nil, "kill"); err == nil || !strings.HasSuffix(err.Error(), "kill failed: exit status 1") {
		t.Errorf("%v", err)
	}
}
