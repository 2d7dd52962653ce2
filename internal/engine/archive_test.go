package engine

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
)

// members are the files of a tar.
func members(t *testing.T, b []byte) map[string]string {
	t.Helper()
	m := map[string]string{}
	for tr := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return m
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			m[h.Name] = string(body)
		}
	}
}

func archiveOf(t *testing.T, files map[string]string, more ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		more = append(more, tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(files[name]))})
	}
	for _, h := range more {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, files[h.Name])
	}
	w.Close()
	return b.Bytes()
}

func save(t *testing.T, e *Engine, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := e.Save(t.Context(), names, &b, SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Images of all kinds come back with id and digest, and the archive is what OCI and
// Docker say: each document refers to blobs that have their digests.
func TestSaveAndLoad(t *testing.T) {
	f := newFakeRegistry()
	layers := [][]byte{tarOf(t, map[string]string{"bin/": "", "bin/a": "a"}), tarOf(t, map[string]string{"etc/": "", "etc/b": strings.Repeat("b", 9000)})}
	pulled, _ := f.publish(t, "pulled:1", image.Gzip, layers...)
	f.publish(t, "zipped:1", image.Zstd, layers[1])
	e := newEngine(t, f)
	for _, name := range []string{"pulled:1", "zipped:1"} {
		if _, err := e.Pull(t.Context(), refs(t, name)[0], PullOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	built := addImage(t, e, "built:1", nil, tarOf(t, map[string]string{"x": "x"}))
	if err := e.Tag(t.Context(), "built:1", "example.com/other:2"); err != nil {
		t.Fatal(err)
	}
	out := save(t, e, "pulled:1", "zipped", "built:1", "example.com/other:2")
	if again := save(t, e, "pulled:1", "zipped", "built:1", "example.com/other:2"); !bytes.Equal(out, again) {
		t.Error("saving twice gives different archives")
	}
	files := members(t, out)
	for name, body := range files {
		if hex, ok := strings.CutPrefix(name, "blobs/sha256/"); ok && digest.FromString(body).Encoded() != hex {
			t.Errorf("%s does not have its digest", name)
		}
	}
	var items []dockerItem
	if err := json.Unmarshal([]byte(files["manifest.json"]), &items); err != nil || len(items) != 3 {
		t.Fatal(items, err)
	}
	if want := []string{"built:1", "example.com/other:2"}; !slices.Equal(items[2].RepoTags, want) {
		t.Errorf("names %q", items[2].RepoTags)
	}
	for _, it := range items {
		for _, l := range append(it.Layers, it.Config) {
			if _, ok := files[l]; !ok {
				t.Errorf("%s is missing", l)
			}
		}
	}
	if files["oci-layout"] != `{"imageLayoutVersion":"1.0.0"}` {
		t.Error(files["oci-layout"])
	}

	n := newEngine(t, nil)
	loaded, err := n.Load(t.Context(), bytes.NewReader(out), LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range loaded {
		names = append(names, l.Ref.Familiar())
	}
	if want := []string{"pulled:1", "zipped:1", "built:1", "example.com/other:2"}; !slices.Equal(names, want) {
		t.Errorf("loaded %q", names)
	}
	if g, err := n.named(refs(t, "pulled:1")[0]); err != nil || g.Desc.Digest != pulled.Digest {
		t.Error(g.Desc, err)
	}
	if g, err := n.named(refs(t, "built:1")[0]); err != nil || g.ID != built.ID {
		t.Error(err)
	}
	if again := save(t, n, "pulled:1", "zipped", "built:1", "example.com/other:2"); !bytes.Equal(out, again) {
		t.Error("the archive of what was loaded is another one")
	}
	// Without the layout's files the docker-archive in it says the same.
	delete(files, "oci-layout")
	d := newEngine(t, nil)
	if loaded, err = d.Load(t.Context(), bytes.NewReader(archiveOf(t, files)), LoadOptions{}); err != nil || len(loaded) != 4 || loaded[2].ID != built.ID {
		t.Fatal(loaded, err)
	}
	if g, err := d.named(refs(t, "pulled:1")[0]); err != nil || d.snapshots.Has(g.Stack) != 2 {
		t.Error(err)
	}
}

// A file that can be read anywhere is not copied first.
func TestLoadReadsAFileInPlace(t *testing.T) {
	e := newEngine(t, nil)
	r := addImage(t, e, "a:1", nil, tarOf(t, map[string]string{"x": "x"}))
	p := filepath.Join(t.TempDir(), "a.tar")
	if err := os.WriteFile(p, save(t, e, "a:1"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := openBundle(t.Context(), f, "/nonexistent")
	if err != nil || b.ours {
		t.Fatal(b, err)
	}
	n := newEngine(t, nil)
	if l, err := n.Load(t.Context(), f, LoadOptions{}); err != nil || l[0].ID != r.ID {
		t.Error(l, err)
	}
}

// Of a hostile archive nothing becomes visible: no name, no image, no layer, no blob that
// outlives a collection.
func TestLoadRefusesHostileArchives(t *testing.T) {
	e := newEngine(t, nil)
	addImage(t, e, "good:1", nil, tarOf(t, map[string]string{"x": "x"}), tarOf(t, map[string]string{"y": "y"}))
	good := members(t, save(t, e, "good:1"))
	var items []dockerItem
	if err := json.Unmarshal([]byte(good["manifest.json"]), &items); err != nil {
		t.Fatal(err)
	}
	it := items[0]
	item := func(edit func(*dockerItem)) string {
		x := it
		x.Layers = slices.Clone(it.Layers)
		edit(&x)
		b, _ := json.Marshal([]dockerItem{x})
		return string(b)
	}
	docker := func(edit func(files map[string]string)) []byte {
		files := maps.Clone(good)
		delete(files, "oci-layout")
		edit(files)
		return archiveOf(t, files)
	}
	oci := func(edit func(files map[string]string)) []byte {
		files := maps.Clone(good)
		edit(files)
		return archiveOf(t, files)
	}
	link := func(name, to string, kind byte) []byte {
		files := maps.Clone(good)
		delete(files, "oci-layout")
		delete(files, name)
		return archiveOf(t, files, tar.Header{Name: name, Typeflag: kind, Linkname: to})
	}
	for name, c := range map[string]struct {
		archive []byte
		want    string
	}{
		"empty":                {archiveOf(t, nil), "does not contain a manifest.json"},
		"no tar":               {[]byte(strings.Repeat("junk", 300)), "read archive: archive/tar: invalid tar header"},
		"no images":            {docker(func(f map[string]string) { f["manifest.json"] = "[]" }), "the archive holds no image"},
		"manifest is a link":   {link("manifest.json", "/etc/passwd", tar.TypeSymlink), `"manifest.json" is a link`},
		"config is a link":     {link(it.Config, "/etc/passwd", tar.TypeSymlink), "is a link"},
		"layer is a link":      {link(it.Layers[0], "/etc/passwd", tar.TypeSymlink), "is a link"},
		"layer is a hard link": {link(it.Layers[1], it.Layers[0], tar.TypeLink), "is a link"},
		"layer is a device":    {link(it.Layers[1], "", tar.TypeChar), "is not an ordinary file"},
		"config out of the tree": {docker(func(f map[string]string) {
			f["manifest.json"] = item(func(x *dockerItem) { x.Config = "../../etc/passwd" })
		}), "is missing"},
		"layer out of the tree": {docker(func(f map[string]string) {
			f["manifest.json"] = item(func(x *dockerItem) { x.Layers[0] = "/etc/passwd" })
		}), "is missing"},
		"a layer too few": {docker(func(f map[string]string) { f["manifest.json"] = item(func(x *dockerItem) { x.Layers = x.Layers[:1] }) }), "layers length mismatch: expected 2, got 1"},
		"layers swapped":  {docker(func(f map[string]string) { f["manifest.json"] = item(func(x *dockerItem) { slices.Reverse(x.Layers) }) }), "digest"},
		"bad name": {docker(func(f map[string]string) {
			f["manifest.json"] = item(func(x *dockerItem) { x.RepoTags = []string{"../../x:1"} })
		}), `bad image name "../../x:1"`},
		"name with digest": {docker(func(f map[string]string) {
			f["manifest.json"] = item(func(x *dockerItem) { x.RepoTags = []string{"x@" + string(digest.FromString("x"))} })
		}), "bad image name"},
		"config null":       {docker(func(f map[string]string) { f[it.Config] = "null" }), "layers length mismatch"},
		"manifest null":     {docker(func(f map[string]string) { f["manifest.json"] = "[null]" }), `"" is missing`},
		"layer damaged":     {docker(func(f map[string]string) { f[it.Layers[0]] = f[it.Layers[1]] }), "digest"},
		"layout: bad index": {oci(func(f map[string]string) { f["index.json"] = "{" }), "index.json"},
		"layout: digest climbs": {oci(func(f map[string]string) {
			f["index.json"] = strings.ReplaceAll(f["index.json"], "sha256:", "sha256:../")
		}), "digest"},
		"layout: bad name": {oci(func(f map[string]string) {
			f["index.json"] = strings.ReplaceAll(f["index.json"], "docker.io/library/good:1", "../x")
		}), `bad image name "../x"`},
		"layout: blob damaged":  {oci(func(f map[string]string) { f[it.Layers[0]] = f[it.Layers[1]] }), "digest"},
		"layout: blob missing":  {oci(func(f map[string]string) { delete(f, it.Config) }), "is missing"},
		"layout: config longer": {oci(func(f map[string]string) { f[it.Config] += " " }), "its manifest says"},
	} {
		n := newEngine(t, nil)
		loaded, err := n.Load(t.Context(), bytes.NewReader(c.archive), LoadOptions{})
		if err == nil || !strings.Contains(err.Error(), c.want) || len(loaded) > 0 {
			t.Errorf("%s: %v, %v", name, loaded, err)
			continue
		}
		if k := fault.KindOf(err); k != fault.Invalid && k != fault.NotFound {
			t.Errorf("%s: kind %v of %v", name, k, err)
		}
		if _, err := n.collect(t.Context()); err != nil {
			t.Error(err)
		}
		if left := leftovers(t, n); len(left) > 0 {
			t.Errorf("%s: left %q", name, left)
		}
	}
}

// An index of several platforms: the one for this machine, or what there is.
func TestLoadChoosesThePlatform(t *testing.T) {
	e := newEngine(t, nil)
	files := map[string]string{"oci-layout": `{"imageLayoutVersion":"1.0.0"}`}
	put := func(v any) image.Descriptor {
		b, _ := json.Marshal(v)
		d := digest.FromBytes(b)
		files[blobName(d)] = string(b)
		return image.Descriptor{MediaType: image.MediaManifest, Digest: d, Size: int64(len(b))}
	}
	layer := tarOf(t, map[string]string{"x": "x"})
	files[blobName(digest.FromBytes(layer))] = string(layer)
	x := image.Index{MediaType: image.MediaIndex}
	x.SchemaVersion = 2
	for _, arch := range []string{"s390x", image.Host().Architecture} {
		cfg := testConfig(layer)
		cfg.Architecture = arch
		m := image.Manifest{MediaType: image.MediaManifest, Config: put(cfg)}
		m.Config.MediaType, m.SchemaVersion = image.MediaConfig, 2
		m.Layers = []image.Descriptor{{MediaType: image.MediaLayer, Digest: digest.FromBytes(layer), Size: int64(len(layer))}}
		d := put(m)
		d.Platform = &image.Platform{OS: "linux", Architecture: arch}
		x.Manifests = append(x.Manifests, d)
	}
	d := put(x)
	d.MediaType = image.MediaIndex
	top := image.Index{MediaType: image.MediaIndex, Manifests: []image.Descriptor{d}}
	top.SchemaVersion = 2
	b, _ := json.Marshal(top)
	files["index.json"] = string(b)
	arch := func(o LoadOptions) string {
		t.Helper()
		l, err := e.Load(t.Context(), bytes.NewReader(archiveOf(t, files)), o)
		if err != nil {
			return err.Error()
		}
		r, err := e.imageByID(l[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		return r.Platform.Architecture
	}
	if got := arch(LoadOptions{}); got != image.Host().Architecture {
		t.Error(got)
	}
	if got := arch(LoadOptions{Platform: &image.Platform{OS: "linux", Architecture: "s390x"}}); got != "s390x" {
		t.Error(got)
	}
	delete(files, blobName(x.Manifests[1].Digest))
	if got := arch(LoadOptions{}); got != "s390x" {
		t.Error(got)
	}
}

func TestImport(t *testing.T) {
	e := newEngine(t, nil)
	layer := tarOf(t, map[string]string{"bin/": "", "bin/a": "a"})
	_, zipped := pack(t, image.Gzip, layer)
	for i, in := range [][]byte{layer, zipped} {
		id, err := e.Import(t.Context(), bytes.NewReader(in), ImportOptions{Repository: "imp", Changes: []string{"CMD a"}})
		if err != nil {
			t.Fatal(err)
		}
		info, err := e.InspectImage(t.Context(), "imp:latest")
		if err != nil || info.ID != string(id) || info.Comment != "Imported from -" || len(info.RootFS.Layers) != 1 || info.RootFS.Layers[0] != string(digest.FromBytes(layer)) {
			t.Errorf("%d: %+v, %v", i, info, err)
		}
	}
	// A tar that its tree cannot give back is kept.
	twice := append(tarOf(t, map[string]string{"f": "1"})[:1024], tarOf(t, map[string]string{"f": "2"})...)
	if _, err := e.Import(t.Context(), bytes.NewReader(twice), ImportOptions{Repository: "twice"}); err != nil {
		t.Fatal(err)
	}
	if !e.store.Has(digest.FromBytes(twice)) {
		t.Error("the tar is lost")
	}
	save(t, e, "twice")
	for _, o := range []ImportOptions{{Platform: &image.Platform{OS: "darwin", Architecture: "arm64"}}, {Repository: "UPPER"}, {Changes: []string{"RUN x"}}, {Repository: "x@" + string(digest.FromString("x"))}} {
		if _, err := e.Import(t.Context(), bytes.NewReader(layer), o); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if _, err := e.Import(t.Context(), strings.NewReader(strings.Repeat("junk", 500)), ImportOptions{}); err == nil {
		t.Error("junk is an image")
	}
}

func TestPullAll(t *testing.T) {
	f := newFakeRegistry()
	f.publish(t, "web:1", image.Gzip, tarOf(t, map[string]string{"a": "1"}))
	f.publish(t, "web:2", image.Gzip, tarOf(t, map[string]string{"a": "2"}))
	f.publish(t, "website:1", image.Gzip, tarOf(t, map[string]string{"a": "3"}))
	e := newEngine(t, f)
	all, err := e.PullAll(t.Context(), refs(t, "web")[0], PullOptions{})
	if err != nil || len(all) != 2 || all[0].Ref.Tag != "1" || all[1].Ref.Tag != "2" {
		t.Error(all, err)
	}
	if _, err := e.PullAll(t.Context(), refs(t, "nothing")[0], PullOptions{}); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

func TestOpenURL(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/cut":
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "short")
		case "/root.tar":
			io.WriteString(w, "the tar")
		default:
			http.NotFound(w, r)
		}
	}))
	defer s.Close()
	read := func(p string) (string, error) {
		body, err := OpenURL(t.Context(), s.URL+p)
		if err != nil {
			return "", err
		}
		defer body.Close()
		b, err := io.ReadAll(body)
		return string(b), err
	}
	if got, err := read("/root.tar"); got != "the tar" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	for _, bad := range []string{"%2Fdata%2Ffile.tar", "file:///etc/passwd", "http://"} {
		if _, err := OpenURL(t.Context(), bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if _, err := read("/nope"); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "404 Not Found") {
		t.Error(err)
	}
	if _, err := read("/cut"); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}
