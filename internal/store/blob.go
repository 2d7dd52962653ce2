// Reading blobs: every look-up finds a blob in its place or fetches it back from the
// trash, where a collection that may still change its mind has put it.

package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
)

// Blob opens a blob for reading; fault.NotFound when missing.
func (s *Store) Blob(d digest.Digest) (*os.File, error) {
	if err := checkDigest(d); err != nil {
		return nil, err
	}
	f, err := os.Open(s.blobPath(d))
	if errors.Is(err, fs.ErrNotExist) && s.rescue(d) {
		f, err = os.Open(s.blobPath(d))
	}
	return f, blobError(d, err)
}

// Stat returns a blob's size; fault.NotFound when missing.
func (s *Store) Stat(d digest.Digest) (int64, error) {
	if err := checkDigest(d); err != nil {
		return 0, err
	}
	st, err := os.Stat(s.blobPath(d))
	if errors.Is(err, fs.ErrNotExist) && s.rescue(d) {
		st, err = os.Stat(s.blobPath(d))
	}
	if err != nil {
		return 0, blobError(d, err)
	}
	return st.Size(), nil
}

// Has reports whether the blob is there.
func (s *Store) Has(d digest.Digest) bool {
	_, err := s.Stat(d)
	return err == nil
}

func blobError(d digest.Digest, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fault.NotFoundf("blob %s is not in the store", d)
	}
	if err != nil {
		return fmt.Errorf("open blob %s: %w", d, err)
	}
	return nil
}

// rescue takes a blob back out of the trash. The collector unlinks it there, so one
// of the two wins and neither sees half of it.
func (s *Store) rescue(d digest.Digest) bool {
	return os.Rename(s.trashPath(d), s.blobPath(d)) == nil
}

// touch begins the hour for which a blob is safe from collection without a lease; false when
// it is not in its place.
func (s *Store) touch(d digest.Digest) bool {
	return os.Chtimes(s.blobPath(d), time.Time{}, time.Now()) == nil
}

// Bytes reads a small document of at most limit bytes and verifies its digest; a
// damaged blob is an error that names it and is moved aside.
func (s *Store) Bytes(d digest.Digest, limit int64) ([]byte, error) {
	f, err := s.Blob(d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", d, err)
	}
	if int64(len(b)) > limit {
		return nil, fault.Invalidf("blob %s is larger than the %d bytes allowed for a document", d, limit)
	}
	if got := sum(d.Algorithm(), b); got != d {
		return nil, s.quarantine(d, f, got)
	}
	return b, nil
}

// quarantine moves a blob whose bytes are not its digest's out of the way, so that a
// pull or a build can put a good one in its place.
func (s *Store) quarantine(d digest.Digest, f *os.File, got digest.Digest) error {
	aside := s.path("damaged", fmt.Sprintf("%s-%d", trashName(d), time.Now().UnixNano()))
	err := os.MkdirAll(s.path("damaged"), 0o700)
	if err == nil && sameFile(f, s.blobPath(d)) {
		err = os.Rename(s.blobPath(d), aside)
	}
	if err != nil {
		return fmt.Errorf("blob %s is damaged (its bytes are %s) and cannot be moved aside: %w", d, got, err)
	}
	return fmt.Errorf("blob %s is damaged (its bytes are %s); it was moved to %s: pull or build the image again", d, got, aside)
}

func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}

// Put stores a small document and returns its digest; leased for an hour.
func (s *Store) Put(ctx context.Context, data []byte) (digest.Digest, error) {
	return s.PutAs(ctx, sum(digest.SHA256, data), data)
}

// PutAs is Put for a document whose digest is known; fault.Invalid when it is another's.
func (s *Store) PutAs(ctx context.Context, d digest.Digest, data []byte) (digest.Digest, error) {
	if err := checkDigest(d); err != nil {
		return "", err
	}
	if got := sum(d.Algorithm(), data); got != d {
		return "", fault.Invalidf("document has digest %s, not %s", got, d)
	}
	if size, err := s.Stat(d); err == nil && size == int64(len(data)) {
		s.touch(d)
		return d, nil
	}
	in, err := s.Ingest(ctx, string(d))
	if err != nil {
		return "", err
	}
	if err = in.Truncate(0); err == nil {
		_, err = in.Write(data)
	}
	if err != nil {
		in.Abort()
		return "", fmt.Errorf("store document %s: %w", d, err)
	}
	return in.Commit(ctx, int64(len(data)), d)
}

// Blobs yields every blob with its size.
func (s *Store) Blobs() iter.Seq2[digest.Digest, int64] {
	return func(yield func(digest.Digest, int64) bool) {
		for _, a := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
			ents, _ := os.ReadDir(s.path("blobs", string(a)))
			for _, e := range ents {
				d := digestOfHex(e.Name())
				st, err := e.Info()
				if d == "" || err != nil || d.Algorithm() != a {
					continue
				}
				if !yield(d, st.Size()) {
					return
				}
			}
		}
	}
}
