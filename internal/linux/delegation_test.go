package linux

import (
	"os"
	"path/filepath"
	"testing"
)

func TestFindDelegation(t *testing.T) {
	if os.Geteuid() == 0 {
		return // root may write everywhere: the run as an ordinary user shows it
	}
	root := t.TempDir()
	cgroup := func(path string, writable bool) {
		dir := filepath.Join(root, path)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{"cgroup.procs", "cgroup.subtree_control"} {
			mode := os.FileMode(0o444)
			if writable {
				mode = 0o644
			}
			if err := os.WriteFile(filepath.Join(dir, f), nil, mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	cgroup("user.slice", false)
	cgroup("user.slice/user-7.slice", false)
	cgroup("user.slice/user-7.slice/session-1.scope", false)
	cgroup("user.slice/user-7.slice/user@7.service", true)
	cgroup("user.slice/user-7.slice/user@7.service/app.slice", true)
	const given = "/user.slice/user-7.slice/user@7.service"
	for _, c := range []struct {
		own  string
		uid  uint32
		want Delegation
	}{
		{"0::" + given + "/app.slice/x.scope\n", 7, Delegation{given, true}},
		{"0::" + given + "\n", 7, Delegation{given, true}},
		{"0::/user.slice/user-7.slice/session-1.scope\n", 7, Delegation{given, false}},
		{"0::/user.slice/user-7.slice/session-1.scope\n", 8, Delegation{}},
		{"0::/\n", 8, Delegation{}},
		{"4:memory:/a\n0::" + given + "\n", 7, Delegation{}},
		{"", 7, Delegation{}},
	} {
		if got := findDelegation(root, c.own, c.uid); got != c.want {
			t.Errorf("%q as %d: %+v, want %+v", c.own, c.uid, got, c.want)
		}
	}
}
