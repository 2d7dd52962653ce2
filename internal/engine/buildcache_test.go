package engine

import (
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/builder"
)

// Two steps on one another and one beside them; the quota takes the oldest first, and
// bytes count when nobody stands on them any more.
func TestCacheQuotaTakesTheLeastRecentlyUsed(t *testing.T) {
	now := time.Now()
	chain := func(s string) digest.Digest { return digest.FromString(s) }
	item := func(id string, age time.Duration, chains ...digest.Digest) cached {
		return cached{Item: builder.Item{Kind: builder.ItemStep, ID: id, Size: 1, Used: now.Add(-age)}, chains: chains}
	}
	view := func() *cacheView {
		return &cacheView{
			list: []cached{
				item("new", time.Minute, chain("c")),
				item("low", 3*time.Hour, chain("a")),
				item("up", 3*time.Hour, chain("a"), chain("b")),
			},
			own:     map[digest.Digest]int64{chain("a"): 100, chain("b"): 10, chain("c"): 1000},
			holders: map[digest.Digest]int{chain("a"): 2, chain("b"): 1, chain("c"): 1},
		}
	}
	all := func(cached) string { return "asked for" }
	for _, c := range []struct {
		quota int64
		spare time.Duration
		want  string
		freed int64
	}{
		{0, 0, "up low new", 1113},
		{0, time.Hour, "up low", 112},
		{5000, 0, "", 0},
		{1105, 0, "up", 11},
		{1002, 0, "up low", 112},
		{1, 0, "up low new", 1113},
		{1, time.Hour, "up low", 112},
	} {
		going, rows, freed := view().choose(c.quota, c.spare, all)
		var ids []string
		for i, g := range going {
			ids = append(ids, g.ID)
			if rows[i].ID != g.ID || rows[i].Reason == "" {
				t.Errorf("row %+v", rows[i])
			}
		}
		if got := strings.Join(ids, " "); got != c.want || freed != c.freed {
			t.Errorf("quota %d, spare %v: %q frees %d; want %q, %d", c.quota, c.spare, got, freed, c.want, c.freed)
		}
	}
	if going, _, _ := view().choose(1, 0, func(c cached) string { return map[bool]string{true: "yes"}[c.ID == "new"] }); len(going) != 1 {
		t.Errorf("what the rule spares went for the quota: %v", going)
	}
}
