package registry

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"

	"keg/internal/image"
)

// Storage is what the server needs from a store. Every call names the repository that it is
// about, and an answer comes only from what this repository holds: that a blob exists
// elsewhere is not told (fault.NotFound). Names, tags and digests have passed their grammar.
// Blobs need not be files: a layer may be made while it is read.
type Storage interface {
	StatBlob(ctx context.Context, repo string, d digest.Digest) (size int64, err error)
	OpenBlob(ctx context.Context, repo string, d digest.Digest) (io.ReadSeekCloser, error)
	// MountBlob gives repo the blob that from holds.
	MountBlob(ctx context.Context, repo, from string, d digest.Digest) error
	DeleteBlob(ctx context.Context, repo string, d digest.Digest) error

	// An upload is a session of one repository under an id of the server's making. A
	// request that finds the session busy for long gets fault.Conflict, one for a session
	// that is not there fault.NotFound, one that goes on at a wrong offset (at; -1 is the end)
	// fault.Invalid from Append and fault.Conflict from Finish, where fault.Invalid means
	// that the bytes have another digest. The session then is over.
	StartUpload(ctx context.Context, repo, id string) error
	UploadSize(ctx context.Context, repo, id string) (int64, error)
	AppendUpload(ctx context.Context, repo, id string, at int64, body io.Reader) (size int64, err error)
	FinishUpload(ctx context.Context, repo, id string, at int64, body io.Reader, d digest.Digest) error
	CancelUpload(ctx context.Context, repo, id string) error

	// Manifest looks a tag, or without one a digest, up.
	Manifest(ctx context.Context, repo, tag string, d digest.Digest) (image.Descriptor, error)
	ReadManifest(ctx context.Context, repo string, desc image.Descriptor) ([]byte, error)
	// PutManifest stores doc durably and then its tags. desc has the artifact type and
	// annotations that Referrers of subject ("": none) list.
	PutManifest(ctx context.Context, repo string, desc image.Descriptor, doc []byte, subject digest.Digest, tags []string) error
	DeleteTag(ctx context.Context, repo, tag string) error
	DeleteManifest(ctx context.Context, repo string, d, subject digest.Digest) error

	// Referrers is empty for an unknown subject; Tags is fault.NotFound for an unknown
	// repository. Both lists and List are sorted.
	Referrers(ctx context.Context, repo string, subject digest.Digest) ([]image.Descriptor, error)
	Tags(ctx context.Context, repo string) ([]string, error)
	List(ctx context.Context) ([]string, error)
}
