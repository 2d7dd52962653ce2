// Package store keeps blobs by digest and names that point at them, with leases and
// garbage collection. Many processes use one store at once; the disk is the truth.
//
//	blobs/sha256/<hex>                      0444, write-once
//	ingest/<key>/                           half-written, resumable, held by a flock
//	names/<registry>/<repo>/_tags/<tag>     descriptor JSON
//	names/<registry>/<repo>/_digests/<hex>  descriptor JSON: what that registry calls it -> what we hold
//	leases/<rand>   trash/
package store

import (
	"context"
	"io"
	"iter"
	"os"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/image"
)

// Store is one directory of blobs and names.
type Store struct{ root string }

// Open uses the directory root and makes its skeleton when missing. It scans nothing.
func Open(root string) (*Store, error) { panic("unwritten") }

// Blob opens a blob for reading; fault.NotFound when missing.
func (s *Store) Blob(d digest.Digest) (*os.File, error) { panic("unwritten") }

// Stat returns a blob's size; fault.NotFound when missing.
func (s *Store) Stat(d digest.Digest) (int64, error) { panic("unwritten") }

// Bytes reads a small document of at most limit bytes and verifies its digest; a
// damaged blob is an error that names it and is moved aside.
func (s *Store) Bytes(d digest.Digest, limit int64) ([]byte, error) { panic("unwritten") }

// Put stores a small document and returns its digest; leased for an hour.
func (s *Store) Put(ctx context.Context, data []byte) (digest.Digest, error) { panic("unwritten") }

// Ingest is a blob being written.
type Ingest interface {
	io.Writer
	// Offset is how many bytes are already there (resumed).
	Offset() int64
	// Truncate(0) starts anew.
	Truncate(size int64) error
	// Commit verifies size (-1: any) and digest ("": any), makes the blob visible
	// durably and returns its digest. A blob that is there already is success.
	Commit(ctx context.Context, size int64, want digest.Digest) (digest.Digest, error)
	// Close keeps what was written for the next Resume; Abort deletes it.
	Close() error
	Abort() error
}

// Ingest starts or resumes the write with this key (a digest, or any safe name). It
// waits while another process writes under the same key; on return the caller
// checks Has again.
func (s *Store) Ingest(ctx context.Context, key string) (Ingest, error) { panic("unwritten") }

// Has reports whether the blob is there.
func (s *Store) Has(d digest.Digest) bool { panic("unwritten") }

// Blobs yields every blob with its size.
func (s *Store) Blobs() iter.Seq2[digest.Digest, int64] { panic("unwritten") }

// Named is a name and what it points at.
type Named struct {
	Ref     image.Reference  // with Tag, or with Digest (a registry's name for the image)
	Desc    image.Descriptor // of a manifest or index in this store
	Updated time.Time
}

// Tag points ref (Tag or Digest set, exactly one) at desc, durably and atomically.
func (s *Store) Tag(ref image.Reference, desc image.Descriptor) error { panic("unwritten") }

// Resolve returns what ref points at; with both tag and digest the digest rules.
// fault.NotFound ("No such image: x") when nothing does.
func (s *Store) Resolve(ref image.Reference) (image.Descriptor, error) { panic("unwritten") }

// Untag removes the name; fault.NotFound when it is not there.
func (s *Store) Untag(ref image.Reference) error { panic("unwritten") }

// Names returns all names, sorted by reference.
func (s *Store) Names() ([]Named, error) { panic("unwritten") }

// Lease protects digests from collection until Release or, when the process dies,
// until its flock ends. Add before relying on a digest.
type Lease interface {
	Add(ds ...digest.Digest) error
	Release() error
}

// Lease starts a lease on ds.
func (s *Store) Lease(ctx context.Context, ds ...digest.Digest) (Lease, error) { panic("unwritten") }

// Sweep deletes blobs that are neither marked nor leased (nor younger than grace) and
// returns what it freed. marks is called after the leases were read.
func (s *Store) Sweep(ctx context.Context, grace time.Duration, marks func() (map[digest.Digest]bool, error)) (freed []digest.Digest, bytes int64, err error) {
	panic("unwritten")
}
