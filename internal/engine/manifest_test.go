package engine

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/registry"
)

func TestManifestListByHand(t *testing.T) {
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
	signature := sign(t, e, refs(t, names[1])[0])
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
	// The signature of the second one has come along.
	if got, err := e.remote.Referrers(ctx, list, all[1].Desc.Digest); err != nil || len(got) != 1 || got[0].Digest != signature {
		t.Errorf("%v %v", got, err)
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

func TestPushRemembersItsCompression(t *testing.T) {
	e := openEngine(t, t.TempDir(), nil)
	addr, stop := serveRegistry(t, e, filepath.Join(t.TempDir(), "registry"))
	defer stop()
	host := strings.Replace(addr, "127.0.0.1", "localhost", 1)
	name := host + "/web:1"
	r := addImage(t, e, name, nil, tarOf(t, map[string]string{"data": strings.Repeat("words ", 1<<15)}))
	push := func(c image.Compression) (image.Descriptor, string) {
		t.Helper()
		d, err := e.PushWith(t.Context(), refs(t, name)[0], PushOptions{Compression: c})
		if err != nil {
			t.Fatal(err)
		}
		all, err := e.RemoteImages(t.Context(), refs(t, name)[0])
		if err != nil || len(all) != 1 {
			t.Fatal(err)
		}
		return d, all[0].Manifest.Layers[0].MediaType
	}
	first, media := push("")
	if media != image.MediaLayerGzip {
		t.Error(media)
	}
	zstd, media := push(image.Zstd)
	if media != image.MediaLayerZstd || zstd.Digest == first.Digest {
		t.Error(media)
	}
	if again, _ := push(""); again.Digest != zstd.Digest {
		t.Error("the choice was forgotten:", again.Digest)
	}
	other := openEngine(t, t.TempDir(), nil)
	if _, err := other.Pull(t.Context(), refs(t, name)[0], PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if f, err := other.lookup(t.Context(), name); err != nil || f.ID != r.ID {
		t.Error(f, err)
	}
	if _, err := e.PushWith(t.Context(), refs(t, name)[0], PushOptions{Compression: "lz4"}); !fault.Is(err, fault.Unsupported) {
		t.Error(err)
	}
}

// sign puts an artifact beside an image that has it as its subject.
func sign(t *testing.T, e *Engine, ref image.Reference) digest.Digest {
	t.Helper()
	subject, err := e.remote.Resolve(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	config := []byte("{}")
	d := image.Descriptor{MediaType: "application/vnd.oci.empty.v1+json", Digest: digest.FromBytes(config), Size: int64(len(config))}
	if err := e.remote.PushBlob(t.Context(), ref, d, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(config)), nil }, nil); err != nil {
		t.Fatal(err)
	}
	m := map[string]any{"schemaVersion": 2, "mediaType": image.MediaManifest, "artifactType": "application/x-signature", "config": d, "layers": []image.Descriptor{d}, "subject": subject}
	doc, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	ref.Tag = ""
	ref.Digest = digest.FromBytes(doc)
	if _, err := e.remote.PushManifest(t.Context(), ref, image.MediaManifest, doc); err != nil {
		t.Fatal(err)
	}
	return ref.Digest
}

// What refers to an image goes along when it is pulled here and pushed there, whether or not the other
// registry knows what referrers are; and when it cannot be asked for, the image goes alone.
func TestPushTakesReferrersAlong(t *testing.T) {
	e := openEngine(t, t.TempDir(), nil)
	from, stop := serveWith(t, e, filepath.Join(t.TempDir(), "from"), registry.ServerOptions{})
	defer stop()
	to, stopTo := serveWith(t, e, filepath.Join(t.TempDir(), "to"), registry.ServerOptions{})
	defer stopTo()
	name := from + "/team/web:1"
	addImage(t, e, name, nil, tarOf(t, map[string]string{"data": noise(31, 1<<16)}))
	if _, err := e.Push(t.Context(), refs(t, name)[0], nil); err != nil {
		t.Fatal(err)
	}
	signature := sign(t, e, refs(t, name)[0])
	other := openEngine(t, t.TempDir(), nil)
	if _, err := other.Pull(t.Context(), refs(t, name)[0], PullOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, repo := range []string{to + "/copy", from + "/copy"} {
		if err := other.Tag(t.Context(), name, repo+":2"); err != nil {
			t.Fatal(err)
		}
		var said []string
		d, err := other.Push(t.Context(), refs(t, repo+":2")[0], func(ev PullEvent) { said = append(said, ev.Status) })
		if err != nil {
			t.Fatal(err)
		}
		got, err := other.remote.Referrers(t.Context(), refs(t, repo+":2")[0], d.Digest)
		if err != nil || len(got) != 1 || got[0].Digest != signature || got[0].ArtifactType != "application/x-signature" {
			t.Errorf("%s: %+v, %v", repo, got, err)
		}
		if want := "Pushed application/x-signature, which refers to the image: " + string(signature); !slices.Contains(said, want) {
			t.Errorf("%q", said)
		}
	}
	stop()
	if err := other.Tag(t.Context(), name, to+"/alone:2"); err != nil {
		t.Fatal(err)
	}
	var said []string
	if _, err := other.Push(t.Context(), refs(t, to+"/alone:2")[0], func(ev PullEvent) { said = append(said, ev.Status) }); err != nil {
		t.Error(err)
	}
	if !strings.Contains(strings.Join(said, "\n"), "What refers to the image in "+from+"/team/web was not copied: ") {
		t.Errorf("%q", said)
	}
}

// An image in a registry is described without a layer of it being asked for.
func TestInspectRemote(t *testing.T) {
	e := openEngine(t, t.TempDir(), nil)
	host, stop := serveWith(t, e, filepath.Join(t.TempDir(), "registry"), registry.ServerOptions{})
	defer stop()
	name := host + "/team/web:1"
	r := addImage(t, e, name, nil, tarOf(t, map[string]string{"data": noise(33, 1<<16)}))
	d, err := e.Push(t.Context(), refs(t, name)[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	other := openEngine(t, t.TempDir(), nil)
	got, err := other.InspectRemote(t.Context(), refs(t, name)[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	here, err := e.InspectImage(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != string(r.ID) || got.Architecture != here.Architecture || !slices.Equal(got.RootFS.Layers, here.RootFS.Layers) || got.Created != here.Created ||
		!slices.Equal(got.RepoDigests, []string{host + "/team/web@" + string(d.Digest)}) || !slices.Equal(got.RepoTags, []string{name}) || got.Size < 1<<16 {
		t.Errorf("%+v", got)
	}
	if left := leftovers(t, other); len(left) != 0 {
		t.Errorf("something was pulled: %v", left)
	}
	if _, err := other.InspectRemote(t.Context(), refs(t, name)[0], &image.Platform{OS: "linux", Architecture: "s390x"}); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}
