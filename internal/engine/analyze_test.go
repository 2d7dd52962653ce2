package engine

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

func dirs(ps ...string) (list []layerFile) {
	for _, p := range ps {
		list = append(list, layerFile{path: p, dir: true})
	}
	return list
}

func reg(p string, size int64, ino uint64) layerFile {
	return layerFile{path: p, size: size, ino: ino, links: 1, regular: true}
}

func TestMergeCountsWhatIsHidden(t *testing.T) {
	linked := func(p string) layerFile { return layerFile{path: p, size: 100, ino: 9, links: 2, regular: true} }
	layers := [][]layerFile{
		append(dirs("a", "b", "b/sub", "c"), reg("a/one", 10, 1), reg("a/two", 20, 2), reg("b/three", 30, 3), reg("b/sub/four", 40, 4),
			reg("c/five", 50, 5), linked("hard1"), linked("hard2")),
		append(dirs("a"), reg("a/one", 11, 1), layerFile{path: "a/two", whiteout: true}, layerFile{path: "b", whiteout: true}),
		{{path: "c", dir: true, opaque: true}, reg("c/six", 60, 6), reg("a/one", 12, 1)},
		{reg("c", 5, 1)},
	}
	stack := make([]digest.Digest, len(layers))
	m := merge(layers, []string{"ADD base", "RUN one", "RUN two", "COPY c"}, stack)
	r := m.report()
	want := []AnalyzedLayer{
		{Layer: 1, Line: "ADD base", Size: 250, Files: 7, Replaced: Bulk{1, 10}, Removed: Bulk{4, 140}},
		{Layer: 2, Line: "RUN one", Size: 11, Files: 1, Replaced: Bulk{1, 11}},
		{Layer: 3, Line: "RUN two", Size: 72, Files: 2, Removed: Bulk{1, 60}},
		{Layer: 4, Line: "COPY c", Size: 5, Files: 1},
	}
	for i, w := range want {
		if r.Layers[i] != w {
			t.Errorf("layer %d: %+v, want %+v", i+1, r.Layers[i], w)
		}
	}
	if r.Size != 338 || r.Visible != 117 || r.Files != 4 {
		t.Errorf("size %d, visible %d in %d files; want 338, 117 in 4", r.Size, r.Visible, r.Files)
	}
	var paths []string
	for _, p := range m.visible() {
		paths = append(paths, p.path)
	}
	if got := strings.Join(paths, " "); got != "a/one c hard1 hard2" {
		t.Errorf("visible: %s", got)
	}
	if h := r.Hidden[0]; h.Path != "/c/six" || h.Layer != 3 || h.By != 4 || h.How != "removed" {
		t.Errorf("largest of the hidden: %+v", h)
	}
	if r.Largest[0].Path != "/hard1" || r.Largest[0].Size != 100 {
		t.Errorf("largest: %+v", r.Largest[0])
	}
	if b, err := json.Marshal(r); err != nil || !strings.Contains(string(b), `"hidden":[{"path":"/c/six","size":60,"layer":3,"by":4,"how":"removed"}`) {
		t.Errorf("JSON: %s %v", b, err)
	}
}

func TestCachesLeft(t *testing.T) {
	var visible []*node
	add := func(p string, layer int) { visible = append(visible, &node{layerFile: reg(p, 7, 1), layer: layer}) }
	add("home/ann/.cache/pip/x/y", 2)
	add("home/ann/.cache/other", 2)
	add("root/.cache/pip", 1) // a file of that name is none
	add("var/lib/apt/lists/a", 0)
	add("var/lib/apt/lists/b", 1)
	got := cachesLeft(visible)
	if len(got) != 2 || got[0].Path != "/var/lib/apt/lists" || got[0].Size != 14 || len(got[0].Layers) != 2 || got[1].Path != "/home/ann/.cache/pip" || got[1].Tool != "pip" {
		t.Errorf("%+v", got)
	}
}

func TestPackagesForBuilding(t *testing.T) {
	deb := dpkgPackages(strings.NewReader("Package: gcc\nStatus: install ok installed\nSection: devel\nInstalled-Size: 2\nDescription: x\n Package: no\n\n" +
		"Package: gone\nStatus: deinstall ok config-files\nSection: devel\nInstalled-Size: 9\n\nPackage: bash\nStatus: install ok installed\nSection: shells\nInstalled-Size: x\n"))
	if len(deb) != 2 || deb[0] != (pkg{"gcc", 2048, true}) || deb[1] != (pkg{"bash", 0, false}) {
		t.Errorf("dpkg: %+v", deb)
	}
	apk := apkPackages(strings.NewReader("P:musl\nI:100\n\nP:musl-dev\nI:300\n\n"))
	if len(apk) != 2 || apk[0] != (pkg{"musl", 100, false}) || apk[1] != (pkg{"musl-dev", 300, true}) {
		t.Errorf("apk: %+v", apk)
	}
}
