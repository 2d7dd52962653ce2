package container

import (
	"errors"
	"strconv"
	"sync"
	"testing"

	"github.com/moby/moby/api/types/container"

	"keg/internal/fault"
)

func TestEditsDoNotLoseEachOther(t *testing.T) {
	s := Open(t.TempDir())
	r := &Record{Name: "web", Config: &container.Config{Labels: map[string]string{}}, Host: &container.HostConfig{}}
	if err := s.Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	stale := *r
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			err := s.Edit(r.ID, func(r *Record) error { r.Config.Labels[strconv.Itoa(i)] = ""; return nil })
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// A rename that looked at the record before them keeps them, too.
	if err := s.Rename(&stale, "wub"); err != nil {
		t.Fatal(err)
	}
	got, err := s.Find("wub")
	if err != nil || len(got.Config.Labels) != 8 || got.Name != "wub" {
		t.Errorf("%+v, %v", got, err)
	}
	no := errors.New("no")
	if err := s.Edit(r.ID, func(r *Record) error { r.Name = "x"; return no }); err != no {
		t.Error(err)
	}
	if got, _ := s.Get(r.ID); got.Name != "wub" {
		t.Error("a refused edit was written")
	}
	if err := s.Edit(NewID(), func(*Record) error { return nil }); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}
