package engine

import (
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
)

func refs(t *testing.T, names ...string) []image.Reference {
	t.Helper()
	var rs []image.Reference
	for _, n := range names {
		r, err := image.ParseReference(n)
		if err != nil {
			t.Fatal(err)
		}
		rs = append(rs, r)
	}
	return rs
}

func TestRemovalRules(t *testing.T) {
	id := digest.FromString("image")
	short := image.ShortID(string(id))
	dig := "@" + string(digest.FromString("manifest"))
	stopped := []user{{strings.Repeat("ab", 32), false}}
	running := []user{{strings.Repeat("cd", 32), true}}
	for _, c := range []struct {
		name   string
		typed  string
		refs   []string
		users  []user
		force  bool
		untag  []string
		delete bool
		err    string
	}{
		{"one of two tags", "web:1", []string{"web:1", "web:2"}, running, false, []string{"web:1"}, false, ""},
		{"the last tag", "web:1", []string{"web:1"}, nil, false, []string{"web:1"}, true, ""},
		{"the last tag takes its digest along", "web:1", []string{"web:1", "web" + dig}, nil, false, []string{"web:1", "web" + dig}, true, ""},
		{"a digest of another repository stays", "web:1", []string{"web:1", "web" + dig, "localhost:5000/web" + dig}, nil, false, []string{"web:1", "web" + dig}, false, ""},
		{"the last tag of a used image", "web:1", []string{"web:1"}, stopped, false, nil, false,
			`conflict: unable to remove repository reference "web:1" (must force) - container abababababab is using its referenced image ` + short},
		{"forced, stopped", "web:1", []string{"web:1"}, stopped, true, []string{"web:1"}, true, ""},
		{"forced, running: only the name goes", "web:1", []string{"web:1"}, running, true, []string{"web:1"}, false, ""},
		{"by digest", "web" + dig, []string{"web" + dig, "web:1"}, nil, false, []string{"web" + dig}, false, ""},
		{"by id", short, []string{"web:1"}, nil, false, []string{"web:1"}, true, ""},
		{"by id with two tags", short, []string{"web:1", "web:2"}, nil, false, nil, false,
			"conflict: unable to delete " + short + " (must be forced) - image is referenced in multiple repositories"},
		{"by id with two tags, forced", short, []string{"web:1", "web:2"}, nil, true, []string{"web:1", "web:2"}, true, ""},
		{"by full id, dangling", string(id), nil, nil, false, nil, true, ""},
		{"by id, stopped container", short, []string{"web:1"}, stopped, false, nil, false,
			"conflict: unable to delete " + short + " (must be forced) - image is being used by stopped container abababababab"},
		{"by id, running container, forced", short, []string{"web:1"}, running, true, nil, false,
			"conflict: unable to delete " + short + " (cannot be forced) - image is being used by running container cdcdcdcdcdcd"},
	} {
		var ref image.Reference
		if !isIDPrefix(id, c.typed) {
			ref = refs(t, c.typed)[0]
		}
		p, err := planRemoval(id, c.typed, ref, refs(t, c.refs...), c.users, c.force)
		if c.err != "" {
			if err == nil || err.Error() != c.err || !fault.Is(err, fault.Conflict) {
				t.Errorf("%s: got error %v", c.name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if !slices.Equal(p.untag, refs(t, c.untag...)) || p.delete != c.delete {
			t.Errorf("%s: got %v, delete %v", c.name, p.untag, p.delete)
		}
	}
}

func TestDeletedLayersAreChainIDsTopFirst(t *testing.T) {
	stack := []digest.Digest{digest.FromString("a"), digest.FromString("b"), digest.FromString("c")}
	chains := image.ChainIDs(stack)
	got := deletedLayers(stack, []digest.Digest{stack[1], chains[2], digest.FromString("other")})
	if len(got) != 2 || got[0].Deleted != string(chains[2]) || got[1].Deleted != string(chains[1]) {
		t.Fatalf("got %v", got)
	}
}
