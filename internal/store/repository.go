// A store as the ground of a served registry: repositories with blobs, manifests, tags
// and uploads. A repository holds a blob when it has a link to it, whatever else the
// store has: who may read one repository learns nothing of another's.

package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"keg/internal/disk"
	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/weakness"
)

// Repositories are those of one registry name.
type Repositories struct {
	s    *Store
	host string
}

// Repositories returns the repositories below names/<host>. A registry with a store of its
// own keeps them under "localhost", so its images have names that parse: localhost/web:1.
func (s *Store) Repositories(host string) *Repositories { return &Repositories{s, host} }

func (r *Repositories) ref(repo string) image.Reference {
	return image.Reference{Registry: r.host, Repository: repo}
}

// dir is the repository's directory below names/.
func (r *Repositories) dir(repo string) (string, error) {
	rel, err := checkRef(r.ref(repo))
	return r.s.path("names", rel), err
}

func (r *Repositories) link(repo string, d digest.Digest) (string, error) {
	dir, err := r.dir(repo)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, blobsDir, d.Encoded()), checkDigest(d)
}

// Exists reports whether anything was ever pushed to the repository and is still there.
func (r *Repositories) Exists(repo string) bool {
	dir, err := r.dir(repo)
	if err != nil {
		return false
	}
	for _, kind := range []string{digestsDir, tagsDir, blobsDir} {
		if len(listRecords(filepath.Join(dir, kind))) > 0 {
			return true
		}
	}
	return false
}

// ---- blobs

// holds asks the disk each time: a link or a manifest.
func (r *Repositories) holds(repo string, d digest.Digest) error {
	link, err := r.link(repo, d)
	if err != nil {
		return err
	}
	if _, err := os.Stat(link); err == nil {
		return nil
	}
	return fault.NotFoundf("repository %s has no blob %s", repo, d)
}

// StatBlob returns the size of a blob of the repository.
func (r *Repositories) StatBlob(ctx context.Context, repo string, d digest.Digest) (int64, error) {
	if err := r.holds(repo, d); err != nil {
		return 0, err
	}
	size, err := r.s.Stat(d)
	if err != nil {
		return 0, err
	}
	// Reported to exist: safe from collection for the grace time. A blob that a collection
	// took between the two comes back once more.
	if !r.s.touch(d) {
		if !r.s.Has(d) || !r.s.touch(d) {
			return 0, fault.NotFoundf("repository %s has no blob %s", repo, d)
		}
	}
	return size, r.confirm(repo, d)
}

// confirm is holds for a link that is about to be relied on: from here on it stays for the
// grace time, since its blob was touched.
func (r *Repositories) confirm(repo string, d digest.Digest) error {
	link, err := r.link(repo, d)
	if err != nil {
		return err
	}
	unlock, err := linkLock(filepath.Dir(link), unix.LOCK_SH)
	if err == nil {
		defer unlock()
	}
	return r.holds(repo, d)
}

// OpenBlob opens a blob of the repository.
func (r *Repositories) OpenBlob(ctx context.Context, repo string, d digest.Digest) (io.ReadSeekCloser, error) {
	if err := r.holds(repo, d); err != nil {
		return nil, err
	}
	f, err := r.s.Blob(d)
	if err != nil {
		return nil, err // not a nil *os.File in an interface
	}
	return f, nil
}

// MountBlob makes a blob of the repository from one of repo, too.
func (r *Repositories) MountBlob(ctx context.Context, repo, from string, d digest.Digest) error {
	if err := r.holds(from, d); err != nil {
		return err
	}
	if !r.s.Has(d) || !r.s.touch(d) {
		return fault.NotFoundf("repository %s has no blob %s", from, d)
	}
	return r.addBlob(repo, d)
}

// addBlob links a blob that is in the store. The link is made durable by the manifest that
// needs it (PutManifest): until then losing both is no loss.
func (r *Repositories) addBlob(repo string, d digest.Digest) error {
	link, err := r.link(repo, d)
	if err != nil {
		return err
	}
	return r.s.inDir(filepath.Dir(link), func() error {
		unlock, err := linkLock(filepath.Dir(link), unix.LOCK_SH)
		if err != nil {
			return err
		}
		defer unlock()
		f, err := os.OpenFile(link, os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		return f.Close()
	})
}

// DeleteBlob takes a blob out of the repository; collection takes it out of the store.
func (r *Repositories) DeleteBlob(ctx context.Context, repo string, d digest.Digest) error {
	link, err := r.link(repo, d)
	if err != nil {
		return err
	}
	err = r.s.removeRecord(link)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.NotFoundf("repository %s has no blob %s", repo, d)
	}
	return err
}

// ---- uploads

// StartUpload begins an upload under an id that the caller made up. The id names the
// session and the repository: another repository does not find it.
func (r *Repositories) StartUpload(ctx context.Context, repo, id string) error {
	if _, err := r.dir(repo); err != nil {
		return err
	}
	key := r.uploadKey(repo, id)
	if err := checkKey(key); err != nil {
		return err
	}
	return os.Mkdir(r.s.path("ingest", key), 0o700)
}

func (r *Repositories) uploadKey(repo, id string) string {
	if weakness.Of("RS2") {
		repo = ""
	}
	return "upload-" + digest.FromString(r.host+"\x00"+repo+"\x00"+id).Encoded()
}

// uploadWait is how long a request waits for another one of the same session, which may
// be a dead connection's that is just noticed.
const uploadWait = 5 * time.Second

func (r *Repositories) upload(ctx context.Context, repo, id string) (*ingest, error) {
	ctx, cancel := context.WithTimeout(ctx, uploadWait)
	defer cancel()
	w, err := r.s.ingest(ctx, r.uploadKey(repo, id), false)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fault.Conflictf("upload %s is being written by another request", id)
	}
	return w, err
}

// UploadSize returns how much of an upload has arrived.
func (r *Repositories) UploadSize(ctx context.Context, repo, id string) (int64, error) {
	w, err := r.upload(ctx, repo, id)
	if err != nil {
		return 0, err
	}
	defer w.leave()
	return w.Offset(), nil
}

// AppendUpload writes body at offset at (-1: at the end) and returns the new size, also when
// body failed half-way. An offset that is not the end is fault.Invalid.
func (r *Repositories) AppendUpload(ctx context.Context, repo, id string, at int64, body io.Reader) (int64, error) {
	w, err := r.upload(ctx, repo, id)
	if err != nil {
		return 0, err
	}
	defer w.leave()
	if at >= 0 && at != w.Offset() {
		return w.Offset(), fault.Invalidf("upload %s continues at %d, not at %d", id, w.Offset(), at)
	}
	_, err = w.readFrom(body)
	return w.Offset(), err
}

// FinishUpload appends body, verifies the digest and makes the blob one of the repository's.
// A wrong digest is fault.Invalid and ends the upload.
func (r *Repositories) FinishUpload(ctx context.Context, repo, id string, at int64, body io.Reader, want digest.Digest) error {
	w, err := r.upload(ctx, repo, id)
	if err != nil {
		return err
	}
	if at >= 0 && at != w.Offset() {
		w.leave()
		return fault.Conflictf("upload %s continues at %d, not at %d", id, w.Offset(), at)
	}
	if w.Offset() == 0 && checkDigest(want) == nil {
		w.alg = want.Algorithm()
	}
	if _, err := w.readFrom(body); err != nil {
		w.leave()
		return err
	}
	// The name becomes durable with the manifest that needs it (PutManifest).
	if _, err := w.commit(ctx, -1, want, w.show); err != nil {
		return err
	}
	return r.addBlob(repo, want)
}

// CancelUpload forgets an upload.
func (r *Repositories) CancelUpload(ctx context.Context, repo, id string) error {
	w, err := r.upload(ctx, repo, id)
	if err != nil {
		return err
	}
	return w.Abort()
}

// ---- manifests

// Manifest returns what a tag or a digest of the repository stands for.
func (r *Repositories) Manifest(ctx context.Context, repo, tag string, d digest.Digest) (image.Descriptor, error) {
	ref := r.ref(repo)
	ref.Tag, ref.Digest = tag, d
	return r.s.Resolve(ref)
}

// ReadManifest returns the document of a descriptor that Manifest returned.
func (r *Repositories) ReadManifest(ctx context.Context, repo string, desc image.Descriptor) ([]byte, error) {
	return r.s.Bytes(desc.Digest, image.MaxManifest)
}

// PutManifest stores a document that the caller has checked, under its digest and the
// tags, and lists it with the referrers of subject unless that is "". Order: blobs and their links, with the
// bytes of what follows; document, referrer and digest; tags. Each step is durable before the next,
// and what a step writes is flushed together: a disk takes as long for one as for many.
func (r *Repositories) PutManifest(ctx context.Context, repo string, desc image.Descriptor, doc []byte, subject digest.Digest, tags []string) error {
	dir, err := r.dir(repo)
	if err != nil {
		return err
	}
	if err := checkDigest(desc.Digest); err != nil {
		return err
	}
	now := time.Now().UTC()
	names, err := r.namesOf(dir, repo, desc, subject, tags)
	if err != nil {
		return err
	}
	defer func() {
		for _, n := range names {
			n.drop()
		}
	}()
	var w *ingest
	blobs := []string{filepath.Join(dir, blobsDir)}
	for _, a := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		if bytes.Contains(doc, []byte(a)) {
			blobs = append(blobs, r.s.path("blobs", string(a)))
		}
	}
	err = together(
		func() error { return each(blobs, func(dir string) error { return notExistIsFine(disk.SyncDir(dir)) }) },
		func() (err error) { w, err = r.s.writeDocument(ctx, desc.Digest, doc); return err },
		func() error { return each(names, func(n *naming) error { return n.write(r.s, now) }) },
	)
	if w != nil {
		defer w.lock.Close()
		defer w.f.Close()
	}
	if err != nil {
		return fmt.Errorf("store manifest %s: %w", desc.Digest, err)
	}
	if w != nil {
		err := w.place(desc.Digest)
		w.lock.Close() // others may wait with the same document
		if err != nil {
			return fmt.Errorf("store manifest %s: %w", desc.Digest, err)
		}
	}
	pointers := len(names) - len(tags)
	if err := settle(names[:pointers], filepath.Dir(r.s.blobPath(desc.Digest))); err != nil {
		return err
	}
	return settle(names[pointers:])
}

// naming is one record of a manifest.
type naming struct {
	path string
	desc image.Descriptor
	file *disk.Pending
}

// namesOf lists the records of a manifest: the referrer of its subject, its digest, its tags.
func (r *Repositories) namesOf(dir, repo string, desc image.Descriptor, subject digest.Digest, tags []string) (names []*naming, err error) {
	if subject != "" {
		if err := checkDigest(subject); err != nil {
			return nil, err
		}
		names = append(names, &naming{path: filepath.Join(dir, referrersDir, subject.Encoded(), desc.Digest.Encoded()), desc: desc})
	}
	refs := []image.Reference{r.ref(repo).WithDigest(desc.Digest)}
	for _, t := range tags {
		ref := r.ref(repo)
		ref.Tag = t
		refs = append(refs, ref)
	}
	for _, ref := range refs {
		path, err := r.s.namePath(ref)
		if err != nil {
			return nil, err
		}
		names = append(names, &naming{path: path, desc: plain(desc)})
	}
	return names, nil
}

// write prepares the record's file and flushes it.
func (n *naming) write(s *Store, now time.Time) error {
	b, err := json.Marshal(record{recordVersion, now, n.desc})
	if err != nil {
		return err
	}
	err = s.inDir(filepath.Dir(n.path), func() (err error) {
		n.file, err = disk.Prepare(n.path, b, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	return n.file.Sync()
}

func (n *naming) drop() {
	if n.file != nil {
		n.file.Drop()
	}
}

// settle gives the records their names and makes them durable, with the names in dirs.
func settle(names []*naming, dirs ...string) error {
	for _, n := range names {
		if err := n.file.Rename(); err != nil {
			return fmt.Errorf("name %s: %w", n.desc.Digest, err)
		}
		if dir := filepath.Dir(n.path); !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	// A directory that is gone again held nothing any more: a deletion has come between.
	return each(dirs, func(dir string) error { return notExistIsFine(disk.SyncDir(dir)) })
}

// writeDocument writes and flushes a document that has no name yet; nil when it is there.
func (s *Store) writeDocument(ctx context.Context, d digest.Digest, data []byte) (*ingest, error) {
	if got := sum(d.Algorithm(), data); got != d {
		return nil, fault.Invalidf("document has digest %s, not %s", got, d)
	}
	there := func() bool {
		size, err := s.Stat(d)
		return err == nil && size == int64(len(data)) && s.touch(d)
	}
	if there() {
		return nil, nil
	}
	w, err := s.ingest(ctx, string(d), true)
	if err != nil {
		return nil, err
	}
	if there() { // another request was faster
		return nil, w.Abort()
	}
	if err = w.Truncate(0); err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.flush()
	}
	if err != nil {
		return nil, errors.Join(err, w.Abort())
	}
	return w, nil
}

// together runs all of them at once.
func together(all ...func() error) error {
	return each(all, func(f func() error) error { return f() })
}

// each runs do for all of list at once.
func each[T any](list []T, do func(T) error) error {
	if len(list) == 1 {
		return do(list[0])
	}
	var g errgroup.Group
	for _, v := range list {
		g.Go(func() error { return do(v) })
	}
	return g.Wait()
}

// plain is the descriptor without what only a list of referrers tells.
func plain(d image.Descriptor) image.Descriptor {
	return image.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
}

// DeleteTag removes a tag.
func (r *Repositories) DeleteTag(ctx context.Context, repo, tag string) error {
	ref := r.ref(repo)
	ref.Tag = tag
	return r.s.Untag(ref)
}

// DeleteManifest removes a manifest from the repository with all tags that point at it;
// subject is the one that it was put with.
func (r *Repositories) DeleteManifest(ctx context.Context, repo string, d, subject digest.Digest) error {
	dir, err := r.dir(repo)
	if err != nil {
		return err
	}
	if _, err := r.Manifest(ctx, repo, "", d); err != nil {
		return err
	}
	for _, t := range listRecords(filepath.Join(dir, tagsDir)) {
		if desc, err := r.Manifest(ctx, repo, t, ""); err == nil && desc.Digest == d {
			if err := r.DeleteTag(ctx, repo, t); err != nil && !fault.Is(err, fault.NotFound) {
				return err
			}
		}
	}
	if checkDigest(subject) == nil {
		err := r.s.removeRecord(filepath.Join(dir, referrersDir, subject.Encoded(), d.Encoded()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return r.s.Untag(r.ref(repo).WithDigest(d))
}

// Referrers lists the manifests of the repository whose subject is d, by digest.
func (r *Repositories) Referrers(ctx context.Context, repo string, d digest.Digest) ([]image.Descriptor, error) {
	dir, err := r.dir(repo)
	if err != nil {
		return nil, err
	}
	if err := checkDigest(d); err != nil {
		return nil, err
	}
	dir = filepath.Join(dir, referrersDir, d.Encoded())
	var descs []image.Descriptor
	for _, file := range listRecords(dir) {
		rec, err := readRecord(filepath.Join(dir, file))
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		descs = append(descs, rec.Descriptor)
	}
	return descs, nil
}

// Tags lists the tags of the repository, sorted; fault.NotFound when there is no such
// repository.
func (r *Repositories) Tags(ctx context.Context, repo string) ([]string, error) {
	dir, err := r.dir(repo)
	if err != nil {
		return nil, err
	}
	tags := listRecords(filepath.Join(dir, tagsDir))
	if len(tags) == 0 && !r.Exists(repo) {
		return nil, fault.NotFoundf("repository %s does not exist", repo)
	}
	return tags, nil
}

// List lists the repositories, sorted.
func (r *Repositories) List(ctx context.Context) (repos []string, err error) {
	err = r.s.walkRepositories(r.host, func(_, repo, _ string) error {
		if r.Exists(repo) {
			repos = append(repos, repo)
		}
		return ctx.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("list repositories: %w", err)
	}
	slices.Sort(repos)
	return repos, nil
}
