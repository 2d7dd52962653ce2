package test

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// hostile is a build context beside a tree of the host's that no build may read or write.
type hostile struct {
	t            *testing.T
	e            *engine
	dir, outside string
	canary       string
	before       listing
}

func newHostile(t *testing.T) *hostile {
	e := newEngine(t)
	h := &hostile{t: t, e: e, dir: filepath.Join(t.TempDir(), "context"), outside: t.TempDir(), canary: "canary-of-the-host-7c1f"}
	os.Mkdir(h.dir, 0o755)
	os.WriteFile(filepath.Join(h.outside, "file"), []byte(h.canary), 0o644)
	os.Mkdir(filepath.Join(h.outside, "sub"), 0o755)
	os.WriteFile(filepath.Join(h.outside, "sub/deep"), []byte(h.canary), 0o600)
	before, err := listTree(h.outside)
	if err != nil {
		t.Fatal(err)
	}
	h.before = before
	e.keg("pull", "-q", "busybox")
	return h
}

// build returns what was printed and whether it succeeded.
func (h *hostile) build(text string, args ...string) (string, bool) {
	dir := h.t.TempDir()
	file := filepath.Join(dir, "Dockerfile")
	os.WriteFile(file, []byte(strings.ReplaceAll(text, "$OUT", h.outside)), 0o644)
	out, errs, code := h.e.try(append(append([]string{"build", "--progress", "plain", "-t", "hostile", "-f", file}, args...), h.dir)...)
	return out + errs, code == 0
}

// refused expects an error that has a place in the Dockerfile and the words.
func (h *hostile) refused(text, words string) {
	h.t.Helper()
	if out, ok := h.build(text); ok || !strings.Contains(out, words) || !strings.Contains(out, ">>> ") {
		h.t.Errorf("%q: succeeded %v, without %q:\n%s", text, ok, words, out)
	}
}

// allowed is the positive twin.
func (h *hostile) allowed(text string) {
	h.t.Helper()
	if out, ok := h.build(text); !ok {
		h.t.Errorf("%q failed:\n%s", text, out)
	}
}

// untouched ends a row: the host's tree is as before, and nothing of it came along.
func (h *hostile) untouched() {
	h.t.Helper()
	after, err := listTree(h.outside)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, p := range after.differ(h.before) {
		h.t.Errorf("%s was %q and is %q", p, h.before[p], after[p])
	}
	for _, p := range filesWith(h.t, h.e.state, h.canary) {
		h.t.Errorf("%s has the canary", p)
	}
	h.e.keg("system", "prune", "-af")
}

// BL1: sources and destinations of COPY and ADD never lead out of context, stage and image.
func TestCopyStaysInside(t *testing.T) {
	h := newHostile(t)
	os.WriteFile(filepath.Join(h.dir, "f"), []byte("ours"), 0o644)
	os.Symlink(h.outside+"/file", filepath.Join(h.dir, "abs"))
	os.Symlink("../../../../../../../.."+h.outside, filepath.Join(h.dir, "rel"))
	os.Symlink("f", filepath.Join(h.dir, "good"))
	for _, src := range []string{"abs", "rel", "rel/sub/deep", "../../../../.." + h.outside + "/file", "good/../rel/file"} {
		h.refused("FROM busybox\nCOPY "+src+" /x\n", "not found")
		h.refused("FROM busybox\nADD "+src+" /x\n", "not found")
	}
	h.allowed("FROM busybox\nCOPY good /x\nRUN grep ours /x\n")
	h.allowed("FROM busybox\nCOPY . /x/\nRUN test -L /x/abs && ! cat /x/abs\n")
	h.refused("FROM busybox AS s\nRUN ln -s $OUT/file /l && ln -s $OUT /d\nFROM busybox\nCOPY --from=s /l /x\n", "not found")
	h.refused("FROM busybox AS s\nRUN ln -s $OUT/file /l && ln -s $OUT /d\nFROM busybox\nCOPY --from=s /d/sub/deep /x\n", "not found")
	// What a link of the image names is a place in the image.
	h.allowed("FROM busybox\nRUN ln -s $OUT /d && ln -s ../../../../../..$OUT/file /g\nCOPY f /d/evil\nCOPY f /d/sub/deep\nADD f /g\nWORKDIR /d/made\nRUN grep ours $OUT/evil $OUT/sub/deep\n")
	h.untouched()
}

// BL1: an archive writes below its destination only.
func TestAddedArchivesStayInside(t *testing.T) {
	h := newHostile(t)
	archive := func(name string, hs ...tar.Header) {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, x := range hs {
			if x.Typeflag == tar.TypeReg {
				x.Size = 4
			}
			x.Mode = 0o777
			w.WriteHeader(&x)
			if x.Typeflag == tar.TypeReg {
				w.Write([]byte("evil"))
			}
		}
		w.Close()
		os.WriteFile(filepath.Join(h.dir, name), b.Bytes(), 0o644)
	}
	file := func(p string) tar.Header { return tar.Header{Name: p, Typeflag: tar.TypeReg} }
	link := func(p, to string) tar.Header { return tar.Header{Name: p, Linkname: to, Typeflag: tar.TypeSymlink} }
	hard := func(p, to string) tar.Header { return tar.Header{Name: p, Linkname: to, Typeflag: tar.TypeLink} }
	for name, hs := range map[string][]tar.Header{
		"dots":      {file("../../../../../../.." + h.outside + "/file")},
		"absolute":  {file(h.outside + "/file")},
		"through":   {link("d", h.outside), file("d/file"), file("d/new")},
		"relative":  {link("d", "../../../../../../.."+h.outside), file("d/file")},
		"chain":     {link("a", "b"), link("b", h.outside), file("a/sub/deep")},
		"hard":      {hard("h", h.outside+"/file"), file("h")},
		"hard link": {link("l", h.outside+"/file"), hard("h", "l"), file("h")},
		"directory": {link("d", h.outside), {Name: "d", Typeflag: tar.TypeDir}, file("d/new")},
		"over":      {link("f", h.outside+"/file"), file("f")},
	} {
		archive("t.tar", hs...)
		h.build("FROM busybox\nADD t.tar /x/\n") // refused, or kept inside
		h.build("FROM busybox\nRUN ln -s $OUT /x\nADD t.tar /x\n")
		if after, _ := listTree(h.outside); len(after.differ(h.before)) > 0 {
			t.Errorf("%s wrote to the host", name)
		}
	}
	archive("t.tar", file("a/f"), link("a/l", "f"), hard("a/h", "a/f"), link("a/abs", "/etc/passwd"))
	h.allowed("FROM busybox\nADD t.tar /x/\nRUN cat /x/a/l && test /x/a/f -ef /x/a/h && grep root /x/a/abs\n")
	h.untouched()
}

// BL2: mounts of RUN show and change nothing of the host, whatever they name.
func TestRunMountsStayInside(t *testing.T) {
	h := newHostile(t)
	os.Symlink(h.outside, filepath.Join(h.dir, "out"))
	os.WriteFile(filepath.Join(h.dir, "f"), []byte("ours"), 0o644)
	h.refused("FROM busybox\nRUN --mount=type=bind,source=out,target=/x cat /x/file\n", "not found")
	h.refused("FROM busybox\nRUN --mount=type=bind,source=../../../../..$OUT,target=/x cat /x/file\n", "not found")
	h.refused("FROM busybox AS s\nRUN ln -s $OUT /l\nFROM busybox\nRUN --mount=from=s,source=/l,target=/x cat /x/file\n", "not found")
	h.refused("FROM busybox AS s\nRUN ln -s $OUT /l\nFROM busybox\nRUN --mount=type=cache,from=s,source=/l,target=/x cat /x/file\n", "not found")
	// A target that is a link is a place in the image, and what only was there for a mount goes.
	h.allowed("FROM busybox\nRUN ln -s $OUT /x && ln -s /etc/../../../..$OUT/sub /y\n" +
		"RUN --mount=type=tmpfs,target=/x touch /x/evil\nRUN --mount=type=cache,target=/y/c touch /y/c/evil\n" +
		"RUN --mount=type=bind,source=f,target=/x/file grep ours /x/file\nRUN ! test -e $OUT/file\n")
	// Ids of caches are names, not paths.
	for _, id := range []string{"../../../../../../../.." + h.outside, h.outside, "..", ".", "a/../../b", "x.lock"} {
		h.allowed("FROM busybox\nRUN --mount=type=cache,id=" + id + ",target=/c echo evil > /c/file; rm -rf /c/sub\n")
	}
	// Two builds at once change one cache from a directory to a link and back.
	var wg sync.WaitGroup
	for _, to := range []string{"mkdir -p /c/s", "ln -sfn " + h.outside + " /c/s"} {
		wg.Go(func() {
			for range soak(3, 100) {
				h.build("FROM busybox\nRUN --mount=type=cache,id=race,target=/c rm -rf /c/s; "+to+"; echo evil > /c/s/file; true\n"+
					"RUN --mount=type=cache,id=race,target=/c --mount=type=cache,id=race,target=/c/s/in true\n", "--no-cache")
			}
		})
	}
	wg.Wait()
	h.untouched()
}

// BL3: what a step may be is a closed list, and its box is that of run.
func TestRunOptionsAreClosed(t *testing.T) {
	h := newHostile(t)
	for _, line := range []string{
		"RUN --security=none id", "RUN --security=Insecure id", "RUN --security= id", "RUN --network=container:x id", "RUN --network=all id", "RUN --network= id",
		"RUN --mount=type=host,target=/x id", "RUN --mount=type=,target=/x id", "RUN --mount=type=cache,sharing=all,target=/x id", "RUN --mount=type=bind,target=/x,bind-propagation=shared id",
		"RUN --mount=type=bind,target=/x,rw=perhaps id", "RUN --mount=type=tmpfs,target=/x,size=-1g id", "RUN --mount=type=cache,target=/x,mode=0x1ff id", "RUN --mount=type=cache,target=/x,uid=-1 id",
		"RUN --mount=type=secret,id=x,required=maybe id", "RUN --mount=type=bind,target=/ id", "RUN --mount=type=tmpfs id", "RUN --device=all id", "RUN --cap-add=ALL id", "RUN --privileged id",
		"COPY --link=perhaps f /", "COPY --chmod=u+s,zz f /", "ADD --checksum=md5:x http://localhost/ /", "ADD --keep-git-dir=perhaps x /",
	} {
		h.refused("FROM busybox\n"+line+"\n", "ERROR")
	}
	h.refused("FROM busybox\nRUN --security=insecure id\n", "--allow security.insecure")
	h.refused("FROM busybox\nRUN --network=host id\n", "--allow network.host")
	const probe = "grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups)' /proc/self/status"
	h.allowed("FROM busybox\nRUN --security=sandbox --network=none " + probe + " > /probe\n")
	built := h.e.keg("run", "--rm", "hostile", "cat", "/probe")
	if ran := h.e.keg("run", "--rm", "hostile", "sh", "-c", probe); built != ran {
		t.Errorf("a step's box is not that of run:\n%s\n\n%s", built, ran)
	}
	h.untouched()
}

// BL5: what .dockerignore names is not in the store, however the name is reached.
func TestIgnoredFilesStayOutOfTheStore(t *testing.T) {
	h := newHostile(t)
	os.MkdirAll(filepath.Join(h.dir, "d"), 0o755)
	os.WriteFile(filepath.Join(h.dir, "d/key"), []byte(h.canary), 0o644)
	os.WriteFile(filepath.Join(h.dir, "d/open"), []byte("open"), 0o644)
	os.Symlink("d/key", filepath.Join(h.dir, "link"))
	os.Link(filepath.Join(h.dir, "d/key"), filepath.Join(h.dir, "hard.key"))
	os.WriteFile(filepath.Join(h.dir, ".dockerignore"), []byte("\xef\xbb\xbf**/key\r\n*.key\r\n"), 0o644)
	h.allowed("FROM busybox\nCOPY . /all/\nRUN test ! -e /all/d/key && test ! -e /all/hard.key && grep open /all/d/open\n")
	h.allowed("FROM busybox\nCOPY d /d/\nRUN --mount=target=/c test ! -e /c/d/key && cat /c/d/open\n")
	h.refused("FROM busybox\nCOPY link /x\n", "not found")
	h.refused("FROM busybox\nCOPY d/key /x\n", ".dockerignore excludes it")
	// As BuildKit has it, a pattern may match nothing.
	h.allowed("FROM busybox\nCOPY d/k* hard.k* /x/\nRUN ! ls /x/*\n")
	h.untouched()
}
