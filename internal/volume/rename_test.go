package volume

import (
	"testing"

	"keg/internal/fault"
)

func TestRename(t *testing.T) {
	s := Open(t.TempDir())
	v, err := s.Create(ctx, CreateOptions{Labels: map[string]string{"a": "b"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Rename(ctx, v.Name, "named"); err != nil {
		t.Fatal(err)
	}
	got, err := s.Get("named")
	if err != nil || got.Labels["a"] != "b" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, anonymous := got.Labels[AnonymousLabel]; anonymous {
		t.Error("a volume with a name still goes with its container")
	}
	if _, err := s.Get(v.Name); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	s.Create(ctx, CreateOptions{Name: "other"})
	if err := s.Rename(ctx, "named", "other"); !fault.Is(err, fault.Conflict) {
		t.Error(err)
	}
	if err := s.Rename(ctx, "named", "../x"); !fault.Is(err, fault.Invalid) {
		t.Error(err)
	}
	if err := s.Rename(ctx, "nosuch", "xx"); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
}
