package store

import (
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
)

func TestNames(t *testing.T) {
	s := open(t)
	tagged := []string{"nginx:1", "nginx:2", "docker.io/team/web:latest", "localhost:5000/a:x", "localhost:5000/a/b:x", "localhost:5000/a/b/c:x", "[::1]:5000/v6:1"}
	for _, n := range tagged {
		if err := s.Tag(mustRef(n), desc(n)); err != nil {
			t.Fatal(err)
		}
	}
	pinned := mustRef("nginx").WithDigest(digest.FromString("remote"))
	if err := s.Tag(pinned, desc("local")); err != nil {
		t.Fatal(err)
	}
	long := mustRef("nginx").WithDigest(digest.SHA512.FromString("remote"))
	if err := s.Tag(long, desc("local")); err != nil {
		t.Fatal(err)
	}
	for _, n := range tagged {
		if got, err := s.Resolve(mustRef(n)); err != nil || got.Digest != desc(n).Digest || got.MediaType != image.MediaManifest {
			t.Errorf("%s: %+v, %v", n, got, err)
		}
	}
	// With both, the digest rules.
	both := pinned
	both.Tag = "1"
	if got, err := s.Resolve(both); err != nil || got.Digest != desc("local").Digest {
		t.Error(got, err)
	}
	names, err := s.Names()
	if err != nil || len(names) != len(tagged)+2 {
		t.Fatal(len(names), err)
	}
	for i := range names[1:] {
		if names[i].Ref.String() >= names[i+1].Ref.String() {
			t.Errorf("%s before %s", names[i].Ref, names[i+1].Ref)
		}
	}
	if names[0].Updated.IsZero() {
		t.Error("no time")
	}
	for _, n := range names {
		if err := s.Untag(n.Ref); err != nil {
			t.Error(err)
		}
	}
	if left := entries(t, s, "names"); len(left) != 0 {
		t.Errorf("empty directories stay: %v", left)
	}
	if _, err := s.Resolve(mustRef("nginx:1")); !fault.Is(err, fault.NotFound) || err.Error() != "No such image: nginx:1" {
		t.Error(err)
	}
	if err := s.Untag(mustRef("nginx:1")); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}

func TestNamesStayInside(t *testing.T) {
	s := open(t)
	d := digest.FromString("x")
	for _, ref := range []image.Reference{
		{}, {Registry: "docker.io"}, {Registry: "docker.io", Repository: "a"},
		{Registry: "..", Repository: "a", Tag: "b"},
		{Registry: "docker.io", Repository: "../../x", Tag: "b"},
		{Registry: "docker.io", Repository: "a/_tags", Tag: "b"},
		{Registry: "docker.io", Repository: "_blobs/a", Tag: "b"},
		{Registry: "docker.io", Repository: "a", Tag: "../b"},
		{Registry: "docker.io", Repository: "a", Tag: ".b"},
		{Registry: "docker.io", Repository: "a//b", Tag: "b"},
		{Registry: "docker.io/a", Repository: "b", Tag: "b"},
		{Registry: "docker.io", Repository: "library/a", Tag: "b", Digest: d}, // both
		{Registry: "docker.io", Repository: "library/a", Digest: "sha256:../x"},
		{Registry: "docker.io", Repository: "library/" + strings.Repeat("a", 300), Tag: "b"},
	} {
		if err := s.Tag(ref, desc("x")); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", ref, err)
		}
	}
	if left := entries(t, s, "names"); len(left) != 0 {
		t.Error(left)
	}
}

func TestDamagedNameHidesOnlyItself(t *testing.T) {
	s := open(t)
	s.Tag(mustRef("a:1"), desc("a"))
	s.Tag(mustRef("b:1"), desc("b"))
	path, _ := s.namePath(mustRef("a:1"))
	for _, content := range []string{"", "{", `{"digest":"sha256:../x"}`, `{"version":99,"digest":"` + string(desc("a").Digest) + `"}`} {
		os.WriteFile(path, []byte(content), 0o600)
		if _, err := s.Resolve(mustRef("a:1")); err == nil || fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v", content, err)
		}
		if names, err := s.Names(); len(names) != 1 || err != nil {
			t.Error(names, err)
		}
	}
	if err := s.Tag(mustRef("a:1"), desc("a")); err != nil {
		t.Error(err)
	}
}

// Tagging makes the directories that untagging removes, at the same time.
func TestManyProcessesTagAndUntag(t *testing.T) {
	s := open(t)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			if out, err := other(t, s, "tagger").CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	wg.Wait()
	if names, err := s.Names(); err != nil || len(names) != 0 {
		t.Error(names, err)
	}
}

func TestReadersOfAMovingTagSeeOldOrNew(t *testing.T) {
	s, ref := open(t), mustRef("a:1")
	s.Tag(ref, desc("0"))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 100 {
			s.Tag(ref, desc(string(rune('0'+i%10))))
		}
	}()
	for {
		select {
		case <-done:
			return
		default:
			if _, err := s.Resolve(ref); err != nil {
				t.Fatal(err)
			}
		}
	}
}
