package test

// Scripts of an ordinary user's engine. Root runs them, too, as a user with subordinate ids whom only
// a private /etc knows.

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/vishvananda/netlink"
)

const (
	ordinary    = "kegtester"
	ordinaryUID = 64321
	outside     = "198.51.100.1" // an address of the host in the scripts' network (RFC 5737)
)

// TestRootlessScript runs the same commands as an ordinary user.
func TestRootlessScript(t *testing.T) {
	if os.Geteuid() == 0 {
		asOrdinaryUser(t, "^TestRootlessScript$")
		return
	}
	if err := tryUserNamespace(); err != nil {
		t.Skipf("this host gives no user namespace to ordinary users: %v", err)
	}
	run(t, "script/rootless", func(e *testscript.Env) {
		e.Setenv("USER", ordinary)
		for _, k := range []string{"CONTAINERS_REGISTRIES_CONF", "HUB"} {
			e.Setenv(k, os.Getenv(k))
		}
	})
}

// TestRootlessClientAddress: row NW6 of the threats: a published port, and what the server knows of its client. It is
// one of the scripts above, alone.
func TestRootlessClientAddress(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: TestRootlessScript runs this script for an ordinary user")
	}
	asOrdinaryUser(t, "^TestRootlessScript$/^network$")
}

// TestRootlessRangesAreApart: row RT26 of the threats: who escapes has ids that no other container has. It is one of the
// scripts above, alone.
func TestRootlessRangesAreApart(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: TestRootlessScript runs this script for an ordinary user")
	}
	asOrdinaryUser(t, "^TestRootlessScript$/^ranges$")
}

// rootsScripts are those of root's that an ordinary user passes, too; a line that needs what he lacks (a cgroup, mounts, devices and
// owners of the host) has a twin with what he is told, or the rest of the script stops and says so. The short
// form takes the first six.
var rootsScripts = []string{"lesson", "errors", "rest", "run", "volumes", "archives", "analyze", "build", "build2", "buildcache",
	"buildflags", "compose", "confine", "contexts", "cp", "digests", "everyday", "flags", "lifecycle", "network", "networks2", "onerror", "outputs", "registry", "registry2", "reproducible", "rows", "userns"}

func addRootsScripts(t *testing.T, dir string) (env []string) {
	conf := bases(t)
	if err := errors.Join(os.Chmod(filepath.Dir(conf), 0o755), os.Chmod(conf, 0o644)); err != nil {
		t.Fatal(err)
	}
	list := rootsScripts
	if os.Getenv("KEG_SOAK") == "" {
		list = list[:6]
	}
	for _, name := range list {
		b, err := os.ReadFile(filepath.Join("script", name+".txtar"))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "roots-"+name+".txtar"), b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return []string{"CONTAINERS_REGISTRIES_CONF=" + conf, "HUB=" + hub.addr}
}

// addBuiltinNetwork adds the network's script with keg's own relay instead of pasta.
func addBuiltinNetwork(t *testing.T, dir string) {
	b, err := os.ReadFile("script/rootless/network.txtar")
	if err != nil {
		t.Fatal(err)
	}
	with := strings.NewReplacer("KEG_ROOTLESS_NET=pasta", "KEG_ROOTLESS_NET=builtin", "WAY=pasta", "WAY='keg.s relay'").Replace(string(b))
	if err := os.WriteFile(filepath.Join(dir, "network-builtin.txtar"), []byte(with), 0o644); err != nil {
		t.Fatal(err)
	}
}

func tryUserNamespace() error {
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
	return cmd.Run()
}

// condition answers what scripts ask in brackets.
func condition(word string) (bool, error) {
	switch word {
	case "root":
		return os.Geteuid() == 0, nil
	case "keg":
		return !onDocker(), nil
	case "subids":
		b, _ := os.ReadFile("/etc/subuid")
		return strings.Contains("\n"+string(b), "\n"+ordinary+":"), nil
	case "outside":
		addrs, err := net.InterfaceAddrs()
		return slices.ContainsFunc(addrs, func(a net.Addr) bool { return a.String() == outside+"/32" }), err
	}
	return false, fmt.Errorf("unknown condition %q", word)
}

// asOrdinaryUser runs tests in a copy of the test binary, where that user may read.
func asOrdinaryUser(t *testing.T, tests string) {
	dir, err := os.MkdirTemp("", "ordinary-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	know(t, dir)
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(outside).To4(), Mask: net.CIDRMask(32, 32)}}
	if err := netlink.AddrReplace(lo, addr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.AddrDel(lo, addr) })
	os.Chmod(dir, 0o755)
	tmp := filepath.Join(dir, "tmp")
	for from, to := range map[string]string{"/proc/self/exe": "test", filepath.Join(bin, "keg"): "keg"} {
		copyProgram(t, from, filepath.Join(dir, to))
	}
	if err := os.CopyFS(filepath.Join(dir, "script/rootless"), os.DirFS("script/rootless")); err != nil {
		t.Fatal(err)
	}
	addBuiltinNetwork(t, filepath.Join(dir, "script/rootless"))
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(tmp, ordinaryUID, ordinaryUID); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(dir, "test"), "-test.run="+tests, "-test.v", "-test.timeout=15m")
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin", "HOME=" + tmp, "TMPDIR=" + tmp, "KEG_TEST_BINARY=" + filepath.Join(dir, "keg"), "KEG_WEAKEN=" + os.Getenv("KEG_WEAKEN"), "KEG_TEST_CONTINUE=" + os.Getenv("KEG_TEST_CONTINUE")}
	cmd.Env = append(cmd.Env, addRootsScripts(t, filepath.Join(dir, "script/rootless"))...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: ordinaryUID, Gid: ordinaryUID}, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), "--- SKIP") {
		t.Errorf("as an ordinary user: %v\n%s", err, out)
	}
}

// know makes the user known in this mount namespace, which is the tests' own.
func know(t *testing.T, dir string) {
	t.Helper()
	for file, line := range map[string]string{
		"passwd": fmt.Sprintf("%s:x:%d:%d::/nonexistent:/bin/sh\n", ordinary, ordinaryUID, ordinaryUID),
		"group":  fmt.Sprintf("%s:x:%d:\n", ordinary, ordinaryUID),
		"subuid": ordinary + ":1700000:65536\n", "subgid": ordinary + ":1700000:65536\n",
	} {
		at := filepath.Join("/etc", file)
		old, err := os.ReadFile(at)
		if os.IsNotExist(err) {
			t.Fatalf("%s is missing; install uidmap", at)
		}
		mine := filepath.Join(dir, file)
		if err := os.WriteFile(mine, append(old, line...), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount(mine, at, "", syscall.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { syscall.Unmount(at, syscall.MNT_DETACH) })
	}
}

func copyProgram(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}
