package store

import (
	"context"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
)

// Verify reads the blob d whole and compares its bytes with its name. A damaged blob is
// an error; with repair it is also moved aside, so that a pull or a build can put a
// good one in its place. fault.NotFound when there is no such blob.
func (s *Store) Verify(ctx context.Context, d digest.Digest, repair bool) error {
	f, err := s.Blob(d)
	if err != nil {
		return err
	}
	defer f.Close()
	h := d.Algorithm().Hash()
	if _, err := io.Copy(h, &cancelled{ctx, f}); err != nil {
		return fmt.Errorf("read blob %s: %w", d, err)
	}
	got := digest.NewDigest(d.Algorithm(), h)
	switch {
	case got == d:
		return nil
	case repair:
		return s.quarantine(d, f, got)
	}
	return fmt.Errorf("blob %s is damaged: its bytes are %s", d, got)
}

// cancelled ends reading when ctx does.
type cancelled struct {
	ctx context.Context
	r   io.Reader
}

func (c *cancelled) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
