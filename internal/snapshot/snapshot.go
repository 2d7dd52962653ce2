// Package snapshot keeps root file systems as overlay stacks: committed layers below,
// one writable directory on top.
//
//	layers/<diff-id or chain-id>/{diff/,recipe}   committed file trees    l/<n> short aliases
//	active/<key>/{upper/,work/,parents}           writable: containers and build steps
package snapshot

import (
	"context"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
)

// Store owns layers/, l/ and active/ below its root.
type Store struct{ root string }

// Open uses the directory root and makes its skeleton when missing. It scans nothing.
func Open(root string) (*Store, error) { panic("unwritten") }

// A stack is the list of diffIDs of an image, bottom first, as in its config.

// Has reports how many layers of the stack, from the bottom, are committed here.
func (s *Store) Has(stack []digest.Digest) int { panic("unwritten") }

// Unpacked is a layer whose tar was read but which has no place yet.
type Unpacked interface {
	// DiffID and Size (of the uncompressed tar) as read.
	DiffID() digest.Digest
	Size() int64
	// Place commits it on top of the layers below (bottom first), which must be
	// committed. A layer that leans on nothing below is shared by all.
	Place(ctx context.Context, below []digest.Digest) error
	// Discard removes it; harmless after Place.
	Discard() error
}

// Unpack reads an uncompressed layer tar into a new directory. Layers are unpacked in
// parallel, each alone. want, when not "", is the diffID that the tar must have.
func (s *Store) Unpack(ctx context.Context, tar io.Reader, want digest.Digest) (Unpacked, error) {
	panic("unwritten")
}

// Prepare makes the writable directory key on top of stack and remembers the stack.
// fault.Conflict when the key exists; fault.NotFound naming the missing layer.
func (s *Store) Prepare(ctx context.Context, key string, stack []digest.Digest) error {
	panic("unwritten")
}

// MountOptions for Mount.
type MountOptions struct {
	ReadOnly bool // no writes reach the upper directory
	Volatile bool // overlay "volatile": no syncs; only for what is removed at exit
}

// Mount returns a descriptor of a detached overlay mount of active key (fsopen, fsmount),
// never attached anywhere; it ends when the descriptor and all copies are closed.
func (s *Store) Mount(key string, o MountOptions) (fd int, err error) { panic("unwritten") }

// View returns a read-only detached mount of the stack alone.
func (s *Store) View(stack []digest.Digest) (fd int, err error) { panic("unwritten") }

// Upper is the absolute path of the writable directory of key.
func (s *Store) Upper(key string) string { panic("unwritten") }

// Stack returns what Prepare was given.
func (s *Store) Stack(key string) ([]digest.Digest, error) { panic("unwritten") }

// CommitOptions for Commit.
type CommitOptions struct {
	Epoch *time.Time // newer file times are clamped to it
	Copy  bool       // leave the active directory usable (commit of a container)
}

// Committed describes a layer made by Commit.
type Committed struct {
	DiffID digest.Digest
	Size   int64 // of its tar
	Empty  bool  // nothing changed: there is no layer, DiffID is ""
}

// Commit turns the changes of key into a layer on top of its stack: normalise, record
// the recipe, rename into place. Without Copy the key is gone afterwards.
func (s *Store) Commit(ctx context.Context, key string, o CommitOptions) (Committed, error) {
	panic("unwritten")
}

// Remove deletes active key, at once for readers (rename), the bytes after it.
// Removing what is not there is no error.
func (s *Store) Remove(key string) error { panic("unwritten") }

// Tar is a layer's tar re-created from tree and recipe, byte for byte, seekable
// without walking.
type Tar interface {
	io.ReadSeekCloser
	io.ReaderAt
	Size() int64
}

// Tar opens the tar of the topmost layer of stack; a tree that no longer gives the
// recorded digest fails before the last bytes are handed out.
func (s *Store) Tar(stack []digest.Digest) (Tar, error) { panic("unwritten") }

// Find returns a stack whose top is a committed layer with this diffID, for serving
// it as a blob; fault.NotFound otherwise.
func (s *Store) Find(diffID digest.Digest) (stack []digest.Digest, size int64, err error) {
	panic("unwritten")
}

// LayerSize returns the size of the tar and of the files (bytes on disk) of the top layer.
func (s *Store) LayerSize(stack []digest.Digest) (tar, files int64, err error) { panic("unwritten") }

// Usage returns the bytes in the writable directory of key (docker ps --size).
func (s *Store) Usage(key string) (int64, error) { panic("unwritten") }

// Kind of a Change: 0 modified, 1 added, 2 deleted, as Docker's API numbers them.
type Kind uint8

// Change is one path that differs from the stack below.
type Change struct {
	Kind Kind
	Path string
}

// Changes lists what key changed, sorted by path (docker diff).
func (s *Store) Changes(key string) ([]Change, error) { panic("unwritten") }

// Keys lists the active keys.
func (s *Store) Keys() ([]string, error) { panic("unwritten") }

// Sync makes all committed layers durable before a name, push or export refers to
// them: one syncfs when unsynced layers of this boot exist. On the first use after
// another boot unsynced layers are dropped.
func (s *Store) Sync(ctx context.Context) error { panic("unwritten") }

// Sweep removes layers that belong to no stack in keep (nor to an active key, nor are
// younger than grace) and returns the freed bytes.
func (s *Store) Sweep(ctx context.Context, grace time.Duration, keep func() ([][]digest.Digest, error)) (freed []digest.Digest, bytes int64, err error) {
	panic("unwritten")
}
