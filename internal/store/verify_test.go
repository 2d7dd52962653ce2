package store

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
)

func TestVerify(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.Put(t.Context(), []byte("good"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context(), d, false); err != nil {
		t.Errorf("a good blob: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Verify(ctx, d, false); !errors.Is(err, context.Canceled) {
		t.Errorf("after a cancel: %v", err)
	}
	// A bit that flipped on the disk.
	path := s.blobPath(d)
	os.Chmod(path, 0o600)
	if err := os.WriteFile(path, []byte("bad!"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context(), d, false); err == nil || !strings.Contains(err.Error(), "is damaged") || !s.Has(d) {
		t.Errorf("a damaged blob, looked at: %v, there: %v", err, s.Has(d))
	}
	if err := s.Verify(t.Context(), d, true); err == nil || s.Has(d) {
		t.Errorf("a damaged blob, repaired: %v, there: %v", err, s.Has(d))
	}
	if err := s.Verify(t.Context(), digest.FromString("none"), false); !fault.Is(err, fault.NotFound) {
		t.Errorf("a missing blob: %v", err)
	}
}
