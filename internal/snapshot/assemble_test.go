package snapshot

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"keg/internal/linux"
)

func readIn(t *testing.T, root *os.File, p string) (string, error) {
	t.Helper()
	f, err := linux.OpenInRoot(int(root.Fd()), p, unix.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	return string(b), err
}

func TestAssembleShowsVolumesAndLeavesNothing(t *testing.T) {
	needsRoot(t)
	s := open(t)
	base := add(t, s, nil, entry{name: "etc/"}, entry{name: "etc/a", body: "image"}, entry{name: "link", link: "/etc", kind: tar.TypeSymlink})
	prepare(t, s, "k", base)
	vol, inner, file := t.TempDir(), t.TempDir(), t.TempDir()+"/f"
	write(t, vol+"/v", "volume")
	write(t, inner+"/i", "inner")
	write(t, file, "file")
	before, _ := os.ReadFile("/proc/self/mounts")
	binds := []Bind{{inner, "/data/in/side", true}, {vol, "/data", false}, {file, "/link/bound", false}}
	a, err := s.Assemble("k", binds, MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]string{"etc/a": "image", "data/v": "volume", "data/in/side/i": "inner", "etc/bound": "file"} {
		if got, err := readIn(t, a.Root, p); got != want || err != nil {
			t.Errorf("%s: %q, %v", p, got, err)
		}
	}
	if _, err := linux.OpenInRoot(int(a.Root.Fd()), "data/in/side/x", unix.O_CREAT|unix.O_WRONLY, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("a read-only volume was written to: %v", err)
	}
	f, err := linux.OpenInRoot(int(a.Root.Fd()), "data/new", unix.O_CREAT|unix.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if now, _ := os.ReadFile("/proc/self/mounts"); string(now) != string(before) {
		t.Error("the mounts are seen outside")
	}
	a.Close()
	if _, err := os.Stat(vol + "/new"); err != nil {
		t.Error(err)
	}
	// For reading nothing is made, and what has no place is left out.
	prepare(t, s, "r", base)
	a, err = s.Assemble("r", binds, MountOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readIn(t, a.Root, "data/v"); !errors.Is(err, unix.ENOENT) {
		t.Error(err)
	}
	a.Close()
	if changes, err := s.Changes("r"); err != nil || len(changes) != 0 {
		t.Error(changes, err)
	}
	// A source that is gone is an error that leaves no thread or mount.
	if _, err := s.Assemble("k", []Bind{{vol + "/nope", "/x", false}}, MountOptions{}); !errors.Is(err, unix.ENOENT) {
		t.Error(err)
	}
}

func TestPlacesForMountsAreNoChange(t *testing.T) {
	needsRoot(t)
	s := open(t)
	base := add(t, s, nil, entry{name: "etc/"}, entry{name: "etc/a", body: "a"}, entry{name: "proc/"})
	omit := []string{"/dev", "/proc", "/etc/hosts", "/etc/hostname", "/run/x/y"}
	places := func(d string) {
		os.Mkdir(d+"/dev", 0o755)
		os.MkdirAll(d+"/run/x/y", 0o755)
		write(t, d+"/etc/hosts", "")
		write(t, d+"/etc/hostname", "")
	}
	changes := func(key string) (all []string) {
		t.Helper()
		list, err := s.Changes(key, omit...)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			all = append(all, string("CAD"[c.Kind])+" "+c.Path)
		}
		return all
	}
	prepare(t, s, "still", base)
	edit(t, s, "still", places)
	if got := changes("still"); got != nil {
		t.Errorf("%q", got)
	}
	if c, err := s.Commit(ctx, "still", CommitOptions{Copy: true, Omit: omit}); err != nil || !c.Empty {
		t.Errorf("%+v, %v", c, err)
	}
	prepare(t, s, "busy", base)
	edit(t, s, "busy", func(d string) {
		places(d)
		write(t, d+"/etc/mine", "")
		write(t, d+"/etc/hosts", "written to")
		write(t, d+"/dev/null", "")
		os.Remove(d + "/etc/a")
	})
	want := []string{"A /dev", "A /dev/null", "C /etc", "D /etc/a", "A /etc/hosts", "A /etc/mine"}
	if got := changes("busy"); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	c, err := s.Commit(ctx, "busy", CommitOptions{Copy: true, Omit: omit})
	if err != nil {
		t.Fatal(err)
	}
	names := tarNames(t, readTar(t, s, append(base, c.DiffID)))
	if wantTar := []string{"dev/", "dev/null", "etc/", "etc/.wh.a", "etc/hosts", "etc/mine"}; !slices.Equal(names, wantTar) {
		t.Errorf("%q", names)
	}
	if keys, _ := s.Keys(); !slices.Contains(keys, "busy") {
		t.Error("the container lost its files")
	}
}
