package linux

import (
	"os"
	"testing"
)

func TestVersionAtLeast(t *testing.T) {
	for _, c := range []struct {
		release      string
		major, minor int
		want         bool
	}{
		{"6.18.44", 5, 15, true}, {"5.15.0-91-generic", 5, 15, true}, {"5.10.0-28-amd64", 5, 15, false},
		{"4.19.0", 5, 2, false}, {"6.1-rc3", 6, 1, true}, {"6", 5, 15, true}, {"", 5, 15, false},
	} {
		if got := versionAtLeast(c.release, c.major, c.minor); got != c.want {
			t.Errorf("%q at least %d.%d: got %v", c.release, c.major, c.minor, got)
		}
	}
}

func TestQuestionsToTheKernel(t *testing.T) {
	if !KernelAtLeast(5, 15) {
		t.Skip("the kernel is older than what keg is tested with")
	}
	// Each of these came before 5.15; a seccomp filter around the test may still forbid one.
	for name, has := range map[string]bool{"openat2": HasOpenat2(), "pidfd_open": HasPidfd(), "mount_setattr": HasMountSetattr(), "proc": HasFilesystem("proc")} {
		if !has {
			t.Errorf("%s is told as missing", name)
		}
	}
	if HasFilesystem("nosuchfs") || HasNamespace("nosuchns") {
		t.Error("what does not exist is told as there")
	}
	if MemTotal() < 16<<20 {
		t.Errorf("memory %d", MemTotal())
	}
	if v := CgroupVersion(); v > 0 && len(CgroupControllers()) == 0 {
		t.Errorf("cgroup v%d has no controllers", v)
	}
	if before, after := openFDs(t), openFDsAfter(t); after != before {
		t.Errorf("descriptors leak: %d, then %d", before, after)
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	ents, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	return len(ents)
}

func openFDsAfter(t *testing.T) int {
	t.Helper()
	HasOpenat2()
	HasPidfd()
	HasNewMount()
	HasCgroupClone()
	HasNftables()
	HasMountSetattr()
	return openFDs(t)
}

func TestRemoteFSNamesTheFileSystem(t *testing.T) {
	name, remote, err := RemoteFS("/proc")
	if err != nil || remote || name == "" {
		t.Errorf("got %q %v %v", name, remote, err)
	}
	if _, _, err := RemoteFS("/no/such/path"); !os.IsNotExist(err) {
		t.Errorf("got %v", err)
	}
}
