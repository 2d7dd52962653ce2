package cli

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	dimage "github.com/moby/moby/api/types/image"

	"keg/internal/engine"
	"keg/internal/fault"
	"keg/internal/image"
)

func TestSave(t *testing.T) {
	dir := t.TempDir()
	f := &fake{out: "archive"}
	keg(t, f, "save", "a", "b:1").want(t, 0, "archive", "")
	out := filepath.Join(dir, "x.tar")
	keg(t, f, "image", "save", "-o", out, "--platform", "linux/arm64", "a").want(t, 0, "", "")
	if b, _ := os.ReadFile(out); string(b) != "archive" || f.saved.Platform.Architecture != "arm64" {
		t.Errorf("%q %+v", b, f.saved)
	}
	if want := []string{"save a b:1", "save a"}; !slices.Equal(f.calls, want) {
		t.Errorf("%q", f.calls)
	}
	keg(t, f, "save", "-o", dir+"/no/x", "a").want(t, 1, "", "failed to save image: invalid output path: directory \""+dir+"/no\" does not exist\n")
	// What fails leaves an older file as it was, and nothing half-written.
	f = &fake{out: "half", err: fault.NotFoundf("No such image: a:latest")}
	keg(t, f, "save", "-o", out, "a").want(t, 1, "", "Error response from daemon: No such image: a:latest\n")
	if b, _ := os.ReadFile(out); string(b) != "archive" {
		t.Errorf("%q", b)
	}
	if ents, _ := os.ReadDir(dir); len(ents) != 1 {
		t.Errorf("left %v", ents)
	}
	f = &fake{out: "archive"}
	keg(t, f, "export", "-o", "/dev/null", "web").want(t, 0, "", "")
	keg(t, f, "container", "export", "web").want(t, 0, "archive", "")
}

func TestLoad(t *testing.T) {
	web := image.Reference{Registry: "docker.io", Repository: "library/web", Tag: "1"}
	f := &fake{loaded: []engine.Loaded{{Ref: web, ID: someDigest}, {ID: someDigest}, {Ref: web, ID: someDigest, Moved: "sha256:old"}}}
	kegWith(t, f, "tar", nil, "load").want(t, 0, "Loaded image: web:1\nLoaded image ID: "+someDigest+
		"\nThe image web:1 already exists, renaming the old one with ID sha256:old to empty string\nLoaded image: web:1\n", "")
	if f.got != "tar" || f.load.Progress != nil {
		t.Errorf("%q", f.got)
	}
	keg(t, f, "load", "-i", "/nope").want(t, 1, "", "open /nope: no such file or directory\n")
	f = &fake{err: fault.Invalidf("invalid archive")}
	kegWith(t, f, "", nil, "image", "load", "-q").want(t, 1, "", "Error response from daemon: invalid archive\n")
}

func TestImportAndCommit(t *testing.T) {
	f := &fake{id: someDigest}
	kegWith(t, f, "root", nil, "import", "-m", "M", "-c", "CMD a", "--change", "USER b", "--platform", "linux/arm64", "-", "x:1").want(t, 0, someDigest+"\n", "")
	if o := f.importOpt; f.got != "root" || o.Message != "M" || !slices.Equal(o.Changes, []string{"CMD a", "USER b"}) || o.Repository != "x:1" || o.Source != "-" || o.Platform.Architecture != "arm64" {
		t.Errorf("%q %+v", f.got, f.importOpt)
	}
	keg(t, f, "import", "/nope.tar").want(t, 1, "", "open /nope.tar: no such file or directory\n")
	keg(t, f, "commit", "-a", "A", "-m", "M", "-c", "CMD a", "web", "x:2").want(t, 0, someDigest+"\n", "")
	if o := f.commit; o.Author != "A" || o.Message != "M" || o.NoPause || o.Repository != "x:2" {
		t.Errorf("%+v", o)
	}
	for _, flag := range []string{"--no-pause", "--pause=false", "-p=false"} {
		if keg(t, f, "container", "commit", flag, "web"); !f.commit.NoPause {
			t.Errorf("%s pauses", flag)
		}
	}
	keg(t, f, "commit", "--no-pause", "-p", "web").want(t, 1, "", "conflicting options: --no-pause and --pause cannot be used together\n")
	if r := keg(t, f, "commit", "a", "b", "c"); r.code != 1 || !strings.Contains(r.err, "'keg commit' requires at least 1 and at most 2 arguments") {
		t.Errorf("%+v", r)
	}
}

func TestDiff(t *testing.T) {
	f := &fake{changes: []engine.Change{{Kind: 0, Path: "/etc"}, {Kind: 1, Path: "/etc/new"}, {Kind: 2, Path: "/gone"}}}
	keg(t, f, "diff", "web").want(t, 0, "C /etc\nA /etc/new\nD /gone\n", "")
}

func TestPullAllTags(t *testing.T) {
	f := &fake{}
	keg(t, f, "pull", "-q", "-a", "web").want(t, 0, "docker.io/library/web\n", "")
	keg(t, f, "pull", "--all-tags", "web:1").want(t, 1, "", "tag can't be used with --all-tags/-a\n")
}

func TestCp(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	f := &fake{out: "tar"}
	keg(t, f, "cp", "web:/a", "b").want(t, 0, "", "Successfully copied 2.05kB to "+dir+"/b\n")
	keg(t, f, "cp", "-q", "-a", "./x:y/", "web:rel/.").want(t, 0, "", "")
	if !f.copy.Archive || f.copy.Follow {
		t.Errorf("%+v", f.copy)
	}
	keg(t, f, "container", "cp", "-L", "web:/a", ".").want(t, 0, "", "Successfully copied 2.05kB to "+dir+"/.\n")
	if !f.copy.Follow {
		t.Errorf("%+v", f.copy)
	}
	keg(t, f, "cp", "web:/a", "-").want(t, 0, "tar", "")
	kegWith(t, f, "in", nil, "cp", "-", "web:/d").want(t, 0, "", "")
	if f.got != "in" {
		t.Errorf("%q", f.got)
	}
	want := []string{"out web /a " + dir + "/b", "in " + dir + "/x:y/ web rel/.", "out web /a " + dir + "/.", "from web /a", "to web /d"}
	if !slices.Equal(f.calls, want) {
		t.Errorf("%q", f.calls)
	}
	for _, c := range [][]string{
		{"a", "b", "must specify at least one container source"},
		{"a:b", "c:d", "copying between containers is not supported"},
		{"", "c:d", "source can not be empty"},
		{"c:d", "", "destination can not be empty"},
		{"c:d", "no/x", "invalid output path: directory \"" + dir + "/no\" does not exist"},
		{"c:d", "/dev/zero", "invalid output path: \"/dev/zero\" must be a directory or a regular file: got a device"},
	} {
		keg(t, f, "cp", c[0], c[1]).want(t, 1, "", c[2]+"\n")
	}
	f = &fake{err: &engine.HostError{Err: os.ErrNotExist}}
	keg(t, f, "cp", "a", "web:/").want(t, 1, "", "file does not exist\n")
	f = &fake{err: fault.NotFoundf("Could not find the file /a in container web")}
	keg(t, f, "cp", "web:/a", ".").want(t, 1, "", "Error response from daemon: Could not find the file /a in container web\n")
}

func TestImageTree(t *testing.T) {
	m := func(arch string, content int64, users ...string) (s dimage.ManifestSummary) {
		s.ID, s.Kind, s.ImageData = someDigest, dimage.ManifestKindImage, &dimage.ImageProperties{Platform: image.Platform{OS: "linux", Architecture: arch}, Containers: users}
		s.Size.Content, s.Size.Total = content, content+1000
		return s
	}
	f := &fake{images: []dimage.Summary{
		{ID: someDigest, RepoTags: []string{"web:1", "web:longer"}, Manifests: []dimage.ManifestSummary{m("amd64", 500, "c"), m("arm64", 0)}},
		{ID: someDigest, Manifests: []dimage.ManifestSummary{m("amd64", 1)}},
	}}
	keg(t, f, "images", "--tree").want(t, 0, `IMAGE            ID             DISK USAGE   CONTENT SIZE   EXTRA
web:1
web:longer       e3b0c44298fc        2.5kB           500B   U
├─ linux/amd64   e3b0c44298fc        1.5kB           500B   U
└─ linux/arm64   e3b0c44298fc          1kB             0B
<untagged>       e3b0c44298fc          1kB             1B
└─ linux/amd64   e3b0c44298fc          1kB             1B
`, "")
	if !f.imageList.Manifests {
		t.Error("the platforms were not asked for")
	}
	keg(t, f, "image", "ls", "--tree", "-q").want(t, 1, "", "--quiet is not yet supported with --tree\n")
}
