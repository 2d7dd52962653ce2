package engine

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"keg/internal/event"
	"keg/internal/fault"
)

func journal(dir string) *event.Journal { return event.Open(dir) }

func TestOpenRefusesANewerFormat(t *testing.T) {
	dir := t.TempDir()
	root, run := filepath.Join(dir, "root"), filepath.Join(dir, "run")
	if _, err := Open(Options{Root: root, Run: run}); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{root, run} {
		if st, err := os.Stat(d); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: mode %v, %v", d, st.Mode(), err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "layout"), []byte(`{"version":99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(Options{Root: root, Run: run})
	if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "format 99") {
		t.Errorf("got %v", err)
	}
	if _, err := Open(Options{Root: "relative", Run: run}); !fault.Is(err, fault.Invalid) {
		t.Errorf("got %v", err)
	}
}

func TestFeaturesSayWhatToDo(t *testing.T) {
	for _, f := range features(probe{kernel: "5.4.0"}) {
		if f.OK || len(f.Text) < 40 || !strings.HasSuffix(strings.TrimRight(f.Text, ")"), ".") && !strings.Contains(f.Text, ": mo") {
			t.Errorf("%s: %q", f.Name, f.Text)
		}
	}
	all := probe{kernel: "6.18", kernelOK: true, overlay: true, userxattr: true, idmap: true, newMount: true, openat2: true, pidfd: true,
		cgroupClone: true, seccomp: true, apparmor: true, nftables: true, userns: true, timens: true, cgroupns: true, sysResource: true,
		cgroup: 2, controllers: []string{"memory", "cpu", "pids", "cpuset", "io"}}
	for _, f := range features(all) {
		if !f.OK {
			t.Errorf("%s is told as lacking: %s", f.Name, f.Text)
		}
	}
	v1 := all
	v1.cgroup, v1.controllers = 1, []string{"memory"}
	lacking := 0
	for _, f := range features(v1) {
		if !f.OK {
			lacking++
		}
	}
	if lacking != 4 {
		t.Errorf("%d features lack, want cpu, pids, cpuset and blkio", lacking)
	}
}
