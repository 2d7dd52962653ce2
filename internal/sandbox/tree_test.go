package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func openDir(t testing.TB, dir string) int {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func TestWalkStaysInsideAndSeesMounts(t *testing.T) {
	outside := t.TempDir()
	os.WriteFile(filepath.Join(outside, "secret"), []byte("s"), 0o644)
	root, vol := t.TempDir(), t.TempDir()
	os.MkdirAll(filepath.Join(root, "a/b"), 0o755)
	os.Symlink(outside, filepath.Join(root, "abs"))
	os.Symlink("../../../../../../../.."+outside, filepath.Join(root, "a/dots"))
	os.Symlink("/data/x/../y", filepath.Join(root, "via"))
	os.Symlink("/data/w", filepath.Join(root, "a/deep"))
	os.Symlink("loop", filepath.Join(root, "loop"))
	os.Symlink("/proc/self/root"+outside, filepath.Join(root, "magic"))
	tr := &tree{root: openDir(t, root), mounts: []mountpoint{{"/data", openDir(t, vol)}, {"/proc", -1}}}
	for _, c := range []struct {
		path string
		want string // canonical path
		real string // what must exist afterwards
	}{
		{"/a/b", "/a/b", root + "/a/b"},
		{"/new/deep", "/new/deep", root + "/new/deep"},
		{"/abs/made", outside + "/made", root + outside + "/made"},
		{"/a/dots/made2", outside + "/made2", root + outside + "/made2"},
		{"/data/sub", "/data/sub", vol + "/sub"},
		{"/via", "/data/y", vol + "/y"},
		{"/a/deep", "/data/w", vol + "/w"},
		{"/a/../../../data/z", "/data/z", vol + "/z"},
		{"/magic", "/proc/self/root" + outside, ""}, // below a mount of the child: nothing is touched
		{"/proc/x/y", "/proc/x/y", ""},
	} {
		p, err := tr.walk(c.path, directory)
		if err != nil || p.path != c.want || (p.file == nil) != (c.real == "") {
			t.Errorf("%s: %+v %v", c.path, p, err)
			continue
		}
		if c.real != "" {
			link, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", p.file.Fd()))
			if link != c.real {
				t.Errorf("%s leads to %s, want %s", c.path, link, c.real)
			}
			p.file.Close()
		}
	}
	if _, err := tr.walk("/loop/x", directory); !errors.Is(err, unix.ELOOP) {
		t.Error(err)
	}
	if _, err := tr.walk("/none", nothing); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if f, err := tr.walk("/f/file", emptyFile); err != nil || f.isDir() || !f.made {
		t.Error(f, err)
	}
	if left, _ := os.ReadDir(outside); len(left) != 1 {
		t.Error("something was made outside:", left)
	}
}

// Every target of a mount, reached through every kind of link that an image can bring
// (CVE-2021-30465, CVE-2024-45310): the container starts or an error says why, and nothing outside
// of it is made, changed or mounted on.
func TestMountTargetsThroughLinks(t *testing.T) {
	needRoot(t)
	targets := []string{"dev", "dev/pts", "dev/shm", "dev/mqueue", "dev/null", "dev/console", "dev/ptmx", "proc", "sys", "sys/fs/cgroup",
		"etc/resolv.conf", "etc/hosts", "etc/hostname", "data", "work", "etc", "sys/fs", "srv/deep", "srv/deep/down", "tmp"}
	canary := t.TempDir()
	file := filepath.Join(t.TempDir(), "file")
	os.WriteFile(file, []byte("bound"), 0o644)
	for i, target := range targets {
		for kind, to := range map[string]string{"absolute": canary, "relative": strings.Repeat("../", 30) + canary, "magic": "/proc/self/fd/3", "magic root": "/proc/1/root" + canary, "dangling": canary + "/none/x"} {
			t.Run(fmt.Sprintf("%s %s", strings.ReplaceAll(target, "/", "."), kind), func(t *testing.T) {
				root := busyRoot(t)
				os.RemoveAll(canary)
				os.Mkdir(canary, 0o755)
				os.WriteFile(filepath.Join(canary, "c"), []byte("canary"), 0o600)
				at := filepath.Join(root, target)
				os.RemoveAll(at)
				os.MkdirAll(filepath.Dir(at), 0o755)
				os.Symlink(to, at)
				before := hostMounts(t)
				s := dockerSpec("/bin/busybox", "true")
				s.Process.Cwd = "/work/here"
				s.Process.Terminal = i%2 == 0
				for _, f := range []string{"/etc/resolv.conf", "/etc/hosts", "/etc/hostname", "/srv/deep/down"} {
					s.Mounts = append(s.Mounts, specs.Mount{Destination: f, Type: "bind", Source: file, Options: []string{"rbind"}})
				}
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data/vol", Type: "tmpfs", Source: "tmpfs"})
				o := options(t, root)
				o.Cgroup = cgroupName(t)[:40] + fmt.Sprint(i)
				p, err := Start(context.Background(), s, o)
				if err == nil {
					if p.Console != nil {
						readTerminal(t, p)
					}
					if _, err := p.Wait(); err != nil {
						t.Error(err)
					}
					if err := p.Cgroup.Remove(context.Background()); err != nil {
						t.Error(err)
					}
				} else {
					t.Log(err)
				}
				if left, _ := os.ReadDir(canary); len(left) != 1 {
					t.Errorf("the canary's directory was changed: %v", left)
				}
				if b, _ := os.ReadFile(filepath.Join(canary, "c")); string(b) != "canary" {
					t.Errorf("the canary reads %q", b)
				}
				if after := hostMounts(t); after != before {
					t.Errorf("mounts of the host changed:\n%s\n%s", before, after)
				}
			})
		}
	}
}

func hostMounts(t testing.TB) string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(b), "\n")
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}
