package engine

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"keg/internal/fault"
)

func TestEntryName(t *testing.T) {
	for p, want := range map[string]string{
		"/": "", ".": "", "/.": "", "a/.": "", "/a/b": "b", "a/": "a", "a/b/..": "a", "..": "", "a/.hidden": ".hidden", "x.": "x.",
	} {
		if got := entryName(p); got != want {
			t.Errorf("%q: %q, want %q", p, got, want)
		}
	}
}

// made is a container that has not run, with a volume and a bind.
func made(t *testing.T) (e *Engine, bind string) {
	t.Helper()
	e = liveEngine(t)
	addImage(t, e, "base:1", nil, tarOf(t, map[string]string{"bin/": "", "bin/a": "a", "etc/": "", "etc/passwd": "app:x:1000:1001::/:/bin/sh\n", "d/": "", "d/f": "file"}))
	bind = t.TempDir()
	_, err := e.Create(t.Context(), CreateOptions{Name: "made", Config: &container.Config{Image: "base:1", User: "app"},
		Host: &container.HostConfig{NetworkMode: "none", Binds: []string{bind + ":/bind:ro"}, Mounts: []mount.Mount{{Type: mount.TypeVolume, Source: "vol", Target: "/vol"}}}})
	if err != nil {
		t.Fatal(err)
	}
	return e, bind
}

func TestCopyOfAContainerThatDoesNotRun(t *testing.T) {
	e, bind := made(t)
	host := t.TempDir()
	in := func(src, dst string, o CopyOptions) error {
		_, err := e.CopyIn(t.Context(), src, "made", dst, o)
		return err
	}
	file := filepath.Join(host, "file")
	if err := os.WriteFile(file, []byte("from the host"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bind, "b"), []byte("bound"), 0o644); err != nil {
		t.Fatal(err)
	}
	for dst, archive := range map[string]bool{"/new": false, "/vol/v": true, "/d": false, "/d/f": false} {
		if err := in(file, dst, CopyOptions{Archive: archive}); err != nil {
			t.Errorf("%s: %v", dst, err)
		}
	}
	for p, want := range map[string]string{"/new": "from the host", "/vol/v": "from the host", "/d/file": "from the host", "/d/f": "from the host", "/bind/b": "bound", "bin/a": "a"} {
		out := filepath.Join(host, "out")
		if _, err := e.CopyOut(t.Context(), "made", p, out, CopyOptions{}); err != nil {
			t.Errorf("%s: %v", p, err)
			continue
		}
		if b, _ := os.ReadFile(out); string(b) != want {
			t.Errorf("%s: %q", p, b)
		}
	}
	var b bytes.Buffer
	st, err := e.CopyFrom(t.Context(), "made", "/vol/v", false, &b)
	if err != nil || st.Name != "v" || st.Size != 13 || st.Mode != 0o640 {
		t.Errorf("%+v, %v", st, err)
	}
	h, err := tar.NewReader(&b).Next()
	if err != nil || h.Uid != 1000 || h.Gid != 1001 {
		t.Errorf("-a gave it to %d:%d", h.Uid, h.Gid)
	}
	if st, err := e.StatPath(t.Context(), "made", "/d/"); err != nil || !st.Mode.IsDir() || st.Name != "d" {
		t.Errorf("%+v, %v", st, err)
	}

	var he *HostError
	for what, c := range map[string]struct {
		err  error
		want string
		host bool
	}{
		"no source":       {in(filepath.Join(host, "nope"), "/", CopyOptions{}), "lstat " + host + "/nope: no such file or directory", true},
		"a file as a dir": {in(file+"/", "/", CopyOptions{}), "lstat " + file + "/: not a directory", true},
		"no directory":    {in(file, "/no/x", CopyOptions{}), "Could not find the file /no in container made", false},
		"asserted":        {in(file, "/no/", CopyOptions{}), "no such directory", true},
		"dir over file":   {in(host, "/new", CopyOptions{}), "cannot copy directory", true},
		"read-only":       {in(file, "/bind/x", CopyOptions{}), "container rootfs or mounted volume is marked read-only", false},
	} {
		if c.err == nil || !strings.HasPrefix(c.err.Error(), c.want) || errors.As(c.err, &he) != c.host {
			t.Errorf("%s: %v", what, c.err)
		}
	}
	if _, err := e.CopyOut(t.Context(), "made", "/nope", host, CopyOptions{}); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if err := e.CopyTo(t.Context(), "made", "/new", &b, CopyOptions{}); !errors.As(err, &he) || err.Error() != `destination "made:/new" must be a directory` {
		t.Error(err)
	}
}

// A tar from a stranger stays in the directory that it is unpacked in.
func TestCopyToStaysInside(t *testing.T) {
	e, _ := made(t)
	for name, hs := range map[string][]tar.Header{
		"climbs":     {{Name: "../../x", Typeflag: tar.TypeReg, Mode: 0o644}},
		"a link out": {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, {Name: "l/x", Typeflag: tar.TypeReg, Mode: 0o644}},
		"hard link":  {{Name: "h", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range hs {
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
		}
		w.Close()
		_ = e.CopyTo(t.Context(), "made", "/d", &b, CopyOptions{}) // refused or contained
		for _, p := range []string{"/x", "/etc/x"} {
			if _, err := e.StatPath(t.Context(), "made", p); !fault.Is(err, fault.NotFound) {
				t.Errorf("%s: %s was made (%v)", name, p, err)
			}
		}
	}
}

func TestExportDiffAndCommit(t *testing.T) {
	e, _ := made(t)
	if changes, err := e.Diff(t.Context(), "made"); err != nil || len(changes) != 0 {
		t.Error(changes, err)
	}
	if err := e.CopyTo(t.Context(), "made", "/d", bytes.NewReader(tarOf(t, map[string]string{"f": "changed", "n": "new"})), CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	changes, err := e.Diff(t.Context(), "made")
	if err != nil {
		t.Fatal(err)
	}
	var all string
	for _, c := range changes {
		all += string("CAD"[c.Kind]) + c.Path + " "
	}
	// The places for the two mounts were made by the copy, as by a start.
	if all != "A/bind C/d C/d/f A/d/n A/vol " {
		t.Errorf("%q", all)
	}
	var b bytes.Buffer
	if err := e.Export(t.Context(), "made", &b); err != nil {
		t.Fatal(err)
	}
	if m := members(t, b.Bytes()); m["d/f"] != "changed" || m["d/n"] != "new" || m["bin/a"] != "a" {
		t.Errorf("%q", m)
	}
	id, err := e.Commit(t.Context(), "made", CommitOptions{Repository: "kept:1", Author: "A", Message: "M", Changes: []string{"CMD x"}})
	if err != nil {
		t.Fatal(err)
	}
	info, err := e.InspectImage(t.Context(), "kept:1")
	if err != nil || info.ID != string(id) || info.Author != "A" || info.Comment != "M" || info.Config.User != "app" || len(info.RootFS.Layers) != 2 {
		t.Errorf("%+v, %v", info, err)
	}
	n := newEngine(t, nil)
	if _, err := n.Load(t.Context(), bytes.NewReader(save(t, e, "kept:1")), LoadOptions{}); err != nil {
		t.Error(err)
	}
	if err := e.Export(t.Context(), "nope", io.Discard); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	if _, err := e.Commit(t.Context(), "made", CommitOptions{Changes: []string{"COPY a b"}}); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
}
