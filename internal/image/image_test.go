package image

import (
	"strings"
	"testing"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
)

const sum = "sha256:ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"

// What Docker's reference library says of a name is what we say.
func TestReferencesAgreeWithDistribution(t *testing.T) {
	names := []string{
		"nginx", "nginx:1.27-alpine", "library/nginx", "docker.io/nginx", "docker.io/library/nginx:latest",
		"index.docker.io/nginx", "user/app", "docker.io/user/app:v1", "localhost/app", "localhost:5000/app:1",
		"127.0.0.1:5000/a/b/c:x", "example.com/a", "EXAMPLE.com/a", "Example/a", "[::1]:5000/a", "[::1]/a",
		"a@" + sum, "localhost:5000/a:b@" + sum, "a:B_.-", "a:.b", "a:-b", "a:", "a@", "a@sha256:ff", ":x", "", "/a",
		"a//b", "a/", "-a", "a-", "a_b", "a__b", "a___b", "a.b", "a..b", "a--b", "a---b/c", "a._b", "A", "a/B", "a b",
		"foo:80/bar", "foo:/bar", "foo:8a/bar", "xn--n3h.com/a", "a.b.c/d:e", strings.Repeat("a", 64), strings.Repeat("a/", 128) + "a",
		strings.Repeat("a", 256), "a:" + strings.Repeat("t", 128), "a:" + strings.Repeat("t", 129), "https://x/y", "a@b",
		"[fe80::1%eth0]:5000/a", "[::1", "docker.io/", "docker.io", "x.y/z:1@" + sum, "a\x00b", "ä/b", "..", "a/../b",
	}
	for _, n := range names {
		want, wantErr := reference.ParseDockerRef(n)
		if named, err := reference.ParseNormalizedNamed(n); err == nil {
			want = reference.TagNameOnly(named)
		}
		got, err := ParseReference(n)
		if (err != nil) != (wantErr != nil) {
			t.Errorf("%q: error %v, distribution says %v", n, err, wantErr)
			continue
		}
		if err != nil {
			if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "invalid reference format") {
				t.Errorf("%q: %v", n, err)
			}
			continue
		}
		if got.String() != want.String() {
			t.Errorf("%q is %s, distribution says %s", n, got, want)
		}
		if got.Familiar() != reference.FamiliarString(want) {
			t.Errorf("%q is familiarly %s, distribution says %s", n, got.Familiar(), reference.FamiliarString(want))
		}
	}
}

func FuzzReference(f *testing.F) {
	for _, s := range []string{"nginx", "localhost:5000/a:b@" + sum, "[::1]:5/a", "a__b/c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseReference(s)
		named, wantErr := reference.ParseNormalizedNamed(s)
		if (err != nil) != (wantErr != nil) {
			t.Fatalf("%q: error %v, distribution says %v", s, err, wantErr)
		}
		if err == nil && got.String() != reference.TagNameOnly(named).String() {
			t.Fatalf("%q is %s, distribution says %s", s, got, named)
		}
	})
}

func TestPlatforms(t *testing.T) {
	for in, want := range map[string]string{
		"linux/amd64": "linux/amd64", "amd64": "linux/amd64", "x86_64": "linux/amd64", "linux/aarch64": "linux/arm64",
		"linux/arm64/v8": "linux/arm64", "linux/arm/v6": "linux/arm/v6", "linux/arm": "linux/arm/v7", "Linux/AMD64": "linux/amd64",
		"windows/amd64": "windows/amd64", "macos/arm64": "darwin/arm64", "linux/386": "linux/386",
	} {
		p, err := ParsePlatform(in)
		if err != nil || FormatPlatform(p) != want {
			t.Errorf("%s: %s, %v; want %s", in, FormatPlatform(p), err, want)
		}
	}
	if p, err := ParsePlatform("macos"); p.OS != "darwin" || err != nil {
		t.Errorf("a system alone: %+v, %v", p, err)
	}
	for _, bad := range []string{"", "  ", "nintendo64", "a/b/c/d", "linux//v7", "plan9x", "linux/a b", "linux/\x1b"} {
		if _, err := ParsePlatform(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestSelect(t *testing.T) {
	entry := func(p string, n string) Descriptor {
		pl, _ := ParsePlatform(p)
		return Descriptor{Digest: digest.FromString(n), Platform: &pl}
	}
	x := &Index{Manifests: []Descriptor{
		{Digest: digest.FromString("att"), Platform: &Platform{OS: "unknown", Architecture: "unknown"}},
		entry("linux/arm/v6", "v6"), entry("linux/arm/v7", "v7"), entry("linux/amd64", "amd"), entry("linux/arm64", "arm64"),
	}}
	for p, want := range map[string]string{"linux/amd64": "amd", "linux/arm/v7": "v7", "linux/arm/v6": "v6", "linux/arm64": "arm64"} {
		pl, _ := ParsePlatform(p)
		if d, err := Select(x, pl); err != nil || d.Digest != digest.FromString(want) {
			t.Errorf("%s: %v, %v", p, d, err)
		}
	}
	pl, _ := ParsePlatform("linux/s390x")
	if _, err := Select(x, pl); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "linux/arm/v6") {
		t.Errorf("a missing platform: %v", err)
	}
}

func TestAmbiguousDocumentsAreRefused(t *testing.T) {
	good := `"config":{"digest":"` + sum + `","size":1},"layers":[]`
	if _, err := ParseManifest([]byte(`{` + good + `}`)); err != nil {
		t.Fatal(err)
	}
	for name, doc := range map[string]string{
		"manifest with manifests": `{` + good + `,"manifests":[]}`,
		"manifest with fsLayers":  `{` + good + `,"fsLayers":[]}`,
		"index media type":        `{` + good + `,"mediaType":"` + MediaIndex + `"}`,
		"null config":             `{"config":null,"layers":[]}`,
		"bad layer digest":        `{"config":{"digest":"` + sum + `"},"layers":[{"digest":"sha256:../../x"}]}`,
		"negative size":           `{"config":{"digest":"` + sum + `","size":-1},"layers":[]}`,
		"not json":                `{`,
		"null":                    `null`,
	} {
		if _, err := ParseManifest([]byte(doc)); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, doc := range map[string]string{
		"index with layers": `{"manifests":[],"layers":[]}`,
		"index with config": `{"manifests":[],"config":{}}`,
		"manifest type":     `{"manifests":[],"mediaType":"` + MediaManifest + `"}`,
		"bad digest":        `{"manifests":[{"digest":"x"}]}`,
	} {
		if _, err := ParseIndex([]byte(doc)); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ParseConfig([]byte(`{"rootfs":{"diff_ids":["sha256:../x"]}}`)); !fault.Is(err, fault.Invalid) {
		t.Errorf("config with a bad diff id: %v", err)
	}
}

func TestChainIDs(t *testing.T) {
	a, b := digest.FromString("a"), digest.FromString("b")
	stack := []digest.Digest{a, b}
	ids := ChainIDs(stack)
	if ids[0] != a || ids[1] != digest.FromString(string(a)+" "+string(b)) || ids[1] != ChainID(stack) {
		t.Fatalf("%v", ids)
	}
	if stack[1] != b {
		t.Fatal("the argument was changed")
	}
	if ShortID(sum) != "ffffffffffff" || ShortID("abc") != "abc" {
		t.Fatal("short ids")
	}
}
