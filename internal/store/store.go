// Package store keeps blobs by digest and names that point at them, with leases and
// garbage collection. Many processes use one store at once; the disk is the truth.
//
//	blobs/<algorithm>/<hex>                 0444, write-once; sha256 or sha512
//	ingest/<key>/                           half-written, resumable, held by a flock
//	names/<registry>/<repo>/_tags/<tag>     descriptor JSON
//	names/<registry>/<repo>/_digests/<hex>  descriptor JSON: what that registry calls it -> what we hold
//	names/<registry>/<repo>/_blobs/<hex>    empty: the repository of a served registry holds this blob
//	names/<registry>/<repo>/_referrers/<subject hex>/<hex>   descriptor JSON
//	leases/<rand>   trash/<algorithm>-<hex>   damaged/
//
// A component of a repository begins with a letter or a digit (image.ParseReference), so
// what begins with "_" is never one; a sha512 hex is twice as long as a sha256 one.
package store

import (
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"keg/internal/disk"
	"keg/internal/fault"
)

// Store is one directory of blobs and names.
type Store struct{ root string }

// Open uses the directory root and makes its skeleton when missing. It scans nothing.
func Open(root string) (*Store, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	s := &Store{root}
	// trash/ is made last: when it is there, all is.
	if _, err := os.Stat(s.path("trash")); err == nil {
		return s, nil
	}
	for _, d := range []string{"blobs/sha256", "blobs/sha512", "ingest", "names", "leases", "trash"} {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	for _, d := range []string{"blobs", "."} {
		if err := disk.SyncDir(s.path(d)); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	return s, nil
}

// path names something below the root. Its arguments passed a grammar first: digests
// checkDigest, keys checkKey, references checkRef.
func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.root}, elem...)...)
}

func (s *Store) blobPath(d digest.Digest) string {
	return s.path("blobs", string(d.Algorithm()), d.Encoded())
}

func (s *Store) trashPath(d digest.Digest) string { return s.path("trash", trashName(d)) }

func trashName(d digest.Digest) string { return string(d.Algorithm()) + "-" + d.Encoded() }

// checkDigest is strict: sha256 or sha512 and lower-case hex of the right length, so that
// a digest is always a plain file name (security.md IM5).
func checkDigest(d digest.Digest) error {
	if a, _, _ := cutDigest(string(d)); a == "" {
		return fault.Invalidf("invalid digest %q: want sha256: or sha512: and lower-case hex", d)
	}
	return nil
}

func cutDigest(d string) (alg digest.Algorithm, hex string, ok bool) {
	const prefix = len("sha256:")
	if len(d) < prefix {
		return "", "", false
	}
	alg, hex = digest.Algorithm(d[:prefix-1]), d[prefix:]
	if d[prefix-1] != ':' || hexLength(alg) != len(hex) {
		return "", "", false
	}
	for i := range len(hex) {
		if c := hex[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return "", "", false
		}
	}
	return alg, hex, true
}

func hexLength(a digest.Algorithm) int {
	switch a {
	case digest.SHA256:
		return 2 * sha256.Size
	case digest.SHA512:
		return 2 * sha512.Size
	}
	return -1
}

// digestOfHex is the digest whose file is called hex; "" when there is none.
func digestOfHex(hex string) digest.Digest {
	for _, a := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		if _, _, ok := cutDigest(string(a) + ":" + hex); ok {
			return digest.NewDigestFromEncoded(a, hex)
		}
	}
	return ""
}

func newHash(a digest.Algorithm) hash.Hash {
	if a == digest.SHA512 {
		return sha512.New()
	}
	return sha256.New()
}

func sum(a digest.Algorithm, b []byte) digest.Digest {
	h := newHash(a)
	h.Write(b)
	return digest.NewDigest(a, h)
}
