// What a served registry needs beside requests: times and sizes for its rules, a
// collection that knows repositories, and blobs that are copied in while they are read.

package store

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/image"
)

// Times tells when a tag, or without one a manifest, was last written and last read. Reading
// is noted in the times of the name's own file, which nothing else looks at.
func (r *Repositories) Times(ctx context.Context, repo, tag string, d digest.Digest) (pushed, pulled time.Time, err error) {
	path, err := r.record(repo, tag, d)
	if err != nil {
		return pushed, pulled, err
	}
	rec, err := readRecord(path)
	if err != nil {
		return pushed, pulled, err
	}
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return pushed, pulled, fault.NotFoundf("repository %s has no %s%s", repo, tag, d)
	}
	if err != nil {
		return pushed, pulled, err
	}
	return rec.Updated, st.ModTime(), nil
}

func (r *Repositories) record(repo, tag string, d digest.Digest) (string, error) {
	ref := r.ref(repo)
	ref.Tag, ref.Digest = tag, d
	return r.s.namePath(ref)
}

// pullNoted bounds how often reading writes.
const pullNoted = time.Minute

// NotePull remembers that a tag, and the manifest d, were read now. When the digest is what was asked
// for, the tags that stand for it were read as well.
func (r *Repositories) NotePull(ctx context.Context, repo, tag string, d digest.Digest) {
	tags := []string{tag}
	if tag == "" {
		tags = nil
		if path, err := r.record(repo, "", d); err != nil || noted(path) {
			return
		}
		names, _ := r.Tags(ctx, repo)
		for _, t := range names {
			if desc, err := r.Manifest(ctx, repo, t, ""); err == nil && desc.Digest == d {
				tags = append(tags, t)
			}
		}
	}
	note := func(tag string, d digest.Digest) {
		if path, err := r.record(repo, tag, d); err == nil && !noted(path) {
			os.Chtimes(path, time.Time{}, time.Now()) // best effort: a tag less young than it is
		}
	}
	for _, t := range tags {
		note(t, "")
	}
	note("", d)
}

func noted(path string) bool {
	st, err := os.Stat(path)
	return err == nil && time.Since(st.ModTime()) < pullNoted
}

// Digests lists the manifests of a repository; fault.NotFound when there is no such
// repository.
func (r *Repositories) Digests(ctx context.Context, repo string) (ds []digest.Digest, err error) {
	dir, err := r.dir(repo)
	if err != nil {
		return nil, err
	}
	for _, hex := range listRecords(filepath.Join(dir, digestsDir)) {
		if d := digestOfHex(hex); d != "" {
			ds = append(ds, d)
		}
	}
	if len(ds) == 0 && !r.Exists(repo) {
		return nil, fault.NotFoundf("repository %s does not exist", repo)
	}
	return ds, nil
}

// Usage adds up the sizes of the blobs that the repository holds and seen does not, and puts them
// into seen.
func (r *Repositories) Usage(ctx context.Context, repo string, seen map[digest.Digest]bool) (n int64, err error) {
	dir, err := r.dir(repo)
	if err != nil {
		return 0, err
	}
	for _, kind := range []string{blobsDir, digestsDir} {
		for _, hex := range listRecords(filepath.Join(dir, kind)) {
			d := digestOfHex(hex)
			if d == "" || seen[d] {
				continue
			}
			seen[d] = true
			if size, err := r.s.Stat(d); err == nil {
				n += size
			}
		}
	}
	return n, nil
}

// Collect deletes what no manifest of the store names, nobody leased and nobody was told of
// within grace; then the links of repositories to blobs that are gone or that none of their
// manifests names any more. It is for a store that serves nothing but registries.
func (r *Repositories) Collect(ctx context.Context, grace time.Duration) (blobs int, bytes int64, err error) {
	freed, bytes, err := r.s.Sweep(ctx, grace, r.s.named)
	if err != nil {
		return 0, 0, err
	}
	return len(freed), bytes, r.s.DropLinks(ctx, grace)
}

// named are the manifests of all repositories and what they name. A document that cannot be
// read marks itself alone; what it named can be pulled no more either way.
func (s *Store) named() (map[digest.Digest]bool, error) {
	names, err := s.Names()
	if err != nil {
		return nil, err
	}
	marks := map[digest.Digest]bool{}
	for _, n := range names {
		s.mark(marks, n.Desc)
	}
	return marks, nil
}

// mark needs no descent into indexes: their parts have names of their own in a repository,
// and those that are not there need no mark.
func (s *Store) mark(marks map[digest.Digest]bool, d image.Descriptor) {
	if marks[d.Digest] {
		return
	}
	marks[d.Digest] = true
	if image.IsIndex(d.MediaType) {
		return
	}
	b, err := s.Bytes(d.Digest, image.MaxManifest)
	if err != nil {
		return
	}
	if m, err := image.ParseManifest(b); err == nil {
		marks[m.Config.Digest] = true
		for _, l := range m.Layers {
			marks[l.Digest] = true
		}
	}
}

// DropLinks removes the links to blobs that are no more, and to those that were neither
// asked for within grace nor are named by a manifest of their repository.
func (s *Store) DropLinks(ctx context.Context, grace time.Duration) error {
	before := time.Now().Add(-grace)
	return s.walkRepositories("", func(registry, repo, dir string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		links := listRecords(filepath.Join(dir, blobsDir))
		if len(links) == 0 {
			return nil
		}
		// Twice, as a sweep looks: what got a name since the first look is in the second.
		for range 2 {
			marks := s.namedIn(dir)
			links = slices.DeleteFunc(links, func(hex string) bool {
				d := digestOfHex(hex)
				return d == "" || marks[d] && s.Has(d) || s.young(d, before)
			})
			if len(links) == 0 {
				return nil
			}
		}
		for _, hex := range links {
			if err := s.dropLink(filepath.Join(dir, blobsDir, hex), digestOfHex(hex), before); err != nil {
				return err
			}
		}
		return nil
	})
}

// namedIn are the manifests of one repository and what they name.
func (s *Store) namedIn(dir string) map[digest.Digest]bool {
	marks := map[digest.Digest]bool{}
	for _, kind := range []string{digestsDir, tagsDir} {
		for _, file := range listRecords(filepath.Join(dir, kind)) {
			if rec, err := readRecord(filepath.Join(dir, kind, file)); err == nil {
				s.mark(marks, rec.Descriptor)
			}
		}
	}
	return marks
}

// young reports whether somebody was told of a blob, or wrote it, since then.
func (s *Store) young(d digest.Digest, since time.Time) bool {
	st, err := os.Stat(s.blobPath(d))
	return err == nil && !st.ModTime().Before(since)
}

// dropLink looks once more while nobody can make or confirm the link (see linkLock).
func (s *Store) dropLink(link string, d digest.Digest, before time.Time) error {
	unlock, err := linkLock(filepath.Dir(link), unix.LOCK_EX)
	if err != nil {
		return notExistIsFine(err)
	}
	defer unlock()
	if s.young(d, before) {
		return nil
	}
	return notExistIsFine(s.removeRecord(link))
}

func notExistIsFine(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// linkLock is held, shared, by who makes a link or relies on one, and alone by who removes
// one. The order of the others is: blob in place and touched, then the link under the lock; so
// whoever holds it alone sees the touch, or is done before the link is made.
func linkLock(dir string, how int) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, &os.PathError{Op: "flock", Path: dir, Err: err}
	}
	return func() { f.Close() }, nil
}

// FillBlob writes the blob d of repo from source, which is told where to begin (what an earlier
// attempt left stays) and says where it does. grown is told up to where the bytes can be
// read, and a last time, with nil, before they move to their place.
func (r *Repositories) FillBlob(ctx context.Context, repo string, d digest.Digest, source func(at int64) (io.ReadCloser, int64, error), grown func(io.ReaderAt, int64)) error {
	if err := checkDigest(d); err != nil {
		return err
	}
	if r.s.Has(d) {
		r.s.touch(d)
		return r.addBlob(repo, d)
	}
	w, err := r.s.ingest(ctx, string(d), true)
	if err != nil {
		return err
	}
	if r.s.Has(d) { // another process was faster
		r.s.touch(d)
		return errors.Join(w.Abort(), r.addBlob(repo, d))
	}
	if err := w.fill(source, grown); err != nil {
		grown(nil, 0)
		return errors.Join(err, w.Close())
	}
	grown(nil, 0)
	if _, err := w.Commit(ctx, -1, d); err != nil {
		return err
	}
	return r.addBlob(repo, d)
}

func (w *ingest) fill(source func(at int64) (io.ReadCloser, int64, error), grown func(io.ReaderAt, int64)) error {
	body, at, err := source(w.Offset())
	if err != nil {
		return err
	}
	defer body.Close()
	if err := w.Truncate(at); err != nil {
		return err
	}
	buf := copyBuffers.Get().(*[copySize]byte)
	defer copyBuffers.Put(buf)
	for {
		grown(w.f, w.size)
		n, err := body.Read(buf[:])
		if _, werr := w.Write(buf[:n]); werr != nil {
			return werr
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
