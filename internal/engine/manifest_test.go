package engine

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"keg/internal/fault"
	"keg/internal/image"
)

func TestManifestListByHand(t *testing.T) {
	loopback(t)
	e := openEngine(t, t.TempDir(), nil)
	addr, stop := serveRegistry(t, e, filepath.Join(t.TempDir(), "one"))
	defer stop()
	addr2, stop2 := serveRegistry(t, e, filepath.Join(t.TempDir(), "two"))
	defer stop2()
	host, host2 := strings.Replace(addr, "127.0.0.1", "localhost", 1), strings.Replace(addr2, "127.0.0.1", "localhost", 1)
	// Two images, one of them in another registry.
	var names []string
	for i, h := range []string{host, host2} {
		name := h + "/parts/p" + strconv.Itoa(i) + ":1"
		addImage(t, e, name, nil, tarOf(t, map[string]string{"data": noise(20+uint64(i), 1<<16)}))
		if _, err := e.Push(t.Context(), refs(t, name)[0], nil); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	list := refs(t, host+"/team/web:1")[0]
	ctx := t.Context()
	if err := e.CreateManifestList(ctx, list, refs(t, names...), false); err != nil {
		t.Fatal(err)
	}
	if err := e.CreateManifestList(ctx, list, refs(t, names[0]), false); !fault.Is(err, fault.Conflict) {
		t.Error("a list was replaced without --amend:", err)
	}
	if err := e.CreateManifestList(ctx, list, refs(t, names[0]), true); err != nil {
		t.Error(err)
	}
	if err := e.AnnotateManifestList(ctx, list, refs(t, names[1])[0], Annotation{OS: "linux", Architecture: "arm64", Variant: "v8"}); err != nil {
		t.Error(err)
	}
	if err := e.AnnotateManifestList(ctx, list, refs(t, host+"/parts/none:1")[0], Annotation{OS: "linux"}); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	x, err := e.ManifestList(list)
	if err != nil || len(x.Manifests) != 2 || x.Manifests[1].Platform.Architecture != "arm64" || x.Manifests[0].Platform.OS != "linux" {
		t.Fatalf("%+v, %v", x, err)
	}
	d, err := e.PushManifestList(ctx, list, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.ManifestList(list); !fault.Is(err, fault.NotFound) {
		t.Error("still here after --purge:", err)
	}
	desc, doc, err := e.RemoteManifest(ctx, list)
	var got image.Index
	if err != nil || desc.Digest != d || json.Unmarshal(doc, &got) != nil || len(got.Manifests) != 2 {
		t.Errorf("%s %s %v", desc.Digest, doc, err)
	}
	all, err := e.RemoteImages(ctx, list)
	if err != nil || len(all) != 2 || all[0].Config == nil || len(all[1].Config.RootFS.DiffIDs) != 1 {
		t.Errorf("%+v %v", all, err)
	}
	// All of it is in the one repository.
	for _, im := range all {
		for _, l := range im.Manifest.Layers {
			if ok, err := e.remote.HasBlob(ctx, list, l.Digest); !ok || err != nil {
				t.Error(l.Digest, err)
			}
		}
	}
	if err := e.RemoveManifestList(list); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

// written is how many bytes of files this process had written to disks.
func written(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Skip("needs /proc/self/io: ", err)
	}
	_, rest, _ := strings.Cut(string(b), "\nwrite_bytes: ")
	n, err := strconv.ParseInt(strings.SplitN(rest, "\n", 2)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// bytesBelow adds up the sizes of the files below a directory.
func bytesBelow(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		st, err := d.Info()
		if err == nil {
			n += st.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// An image of 32 MiB that exists only as a tree goes to a stock client: with no push, with less
// than 1 MiB written, and the store is as large as before.
func TestServingWhatIsHereWritesNothing(t *testing.T) {
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skip("needs skopeo: apt-get install skopeo")
	}
	loopback(t)
	root := t.TempDir()
	e := openEngine(t, root, nil)
	addr, stop := serveRegistry(t, e, "")
	defer stop()
	host := strings.Replace(addr, "127.0.0.1", "localhost", 1)
	addImage(t, e, host+"/web:1", nil, tarOf(t, map[string]string{"data": noise(30, 32<<20)}))
	if err := e.snapshots.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	size, before := bytesBelow(t, root), written(t)
	if size < 32<<20 {
		t.Fatal("the image is not here:", size)
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), skopeo, "--insecure-policy", "--tmpdir", dir, "copy", "--src-tls-verify=false", "docker://"+host+"/web:1", "dir:"+dir+"/out")
	cmd.Env = []string{"HOME=" + dir, "XDG_RUNTIME_DIR=" + dir, "PATH=/usr/bin:/bin", "CONTAINERS_REGISTRIES_CONF=/dev/null"}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := bytesBelow(t, dir+"/out"); got < 32<<20 {
		t.Error("skopeo got", got, "bytes")
	}
	// What a child wrote is counted as ours when it has been waited for.
	theirs := cmd.ProcessState.SysUsage().(*syscall.Rusage).Oublock * 512
	if n := written(t) - before - theirs; n >= 1<<20 {
		t.Error(n, "bytes were written")
	}
	if now := bytesBelow(t, root); now > size {
		t.Errorf("the store grew from %d to %d", size, now)
	}
}
