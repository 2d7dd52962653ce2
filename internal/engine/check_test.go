package engine

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	e := newEngine(t, nil)
	addImage(t, e, "app:1", nil, tarOf(t, map[string]string{"a": "1"}))
	check := func(repair bool) (ps []Problem) {
		t.Helper()
		if err := e.Check(t.Context(), repair, func(p Problem) { ps = append(ps, p) }); err != nil {
			t.Fatal(err)
		}
		return ps
	}
	if ps := check(false); len(ps) != 0 {
		t.Fatalf("problems of a sound engine: %+v", ps)
	}
	desc, err := e.store.Resolve(refs(t, "app:1")[0])
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(e.opt.Root, "blobs", "sha256", desc.Digest.Encoded())
	os.Chmod(path, 0o600)
	if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	ps := check(true)
	if len(ps) < 2 || ps[0].Object != "blob "+string(desc.Digest) || !ps[0].Repaired || !strings.Contains(ps[0].Text, "is damaged") {
		t.Errorf("problems after a bit flipped: %+v", ps)
	}
	if last := ps[len(ps)-1]; last.Object != "image app:1" || !strings.Contains(last.Text, "again") {
		t.Errorf("the name is not told: %+v", ps)
	}
}
