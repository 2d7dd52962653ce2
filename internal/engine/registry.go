package engine

import (
	"context"
	"fmt"
	"io"
	stdnet "net"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/registry"
	"keg/internal/store"
)

// ownRegistry is the name under which a registry with a directory of its own keeps its
// repositories.
const ownRegistry = "localhost"

// ServeRegistry serves the store at dir (its own, or the engine's when dir is "") on addr until ctx ends.
// Of the engine's store it serves what is tagged with its own address (localhost:5000/...):
// an image that was just built is there at once, without a byte copied.
func (e *Engine) ServeRegistry(ctx context.Context, addr, dir string, o registry.ServerOptions, ready func(addr string)) error {
	if err := o.Check(); err != nil {
		return err
	}
	if len(o.Upstreams) > 0 && o.Client == nil {
		o.Client, _ = e.remote.(*registry.Client)
	}
	var lc stdnet.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return fault.Unavailablef("serve registry on %s: %w; choose another address with --addr", addr, err)
	}
	defer l.Close()
	storage, end, err := e.storage(ctx, l.Addr().String(), dir)
	if err != nil {
		return err
	}
	defer end()
	if ready != nil {
		ready(l.Addr().String())
	}
	return registry.Serve(ctx, l, registry.NewServer(storage, o))
}

func (e *Engine) storage(ctx context.Context, addr, dir string) (registry.Storage, func(), error) {
	if dir != "" {
		s, err := store.Open(dir)
		if err != nil {
			return nil, nil, err
		}
		return s.Repositories(ownRegistry), func() {}, nil
	}
	host, err := servedHost(addr)
	if err != nil {
		return nil, nil, err
	}
	// While others may be pushing into it, gc spares what has no name yet.
	use, err := e.busy(ctx)
	if err != nil {
		return nil, nil, err
	}
	return served{e.store.Repositories(host), e, host}, use.end, nil
}

// servedHost is what image names call a registry that listens on addr.
func servedHost(addr string) (string, error) {
	host, port, err := stdnet.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("serve registry on %s: %w", addr, err)
	}
	if ip := stdnet.ParseIP(host); ip != nil && (ip.IsLoopback() || ip.IsUnspecified()) {
		host = "localhost"
	}
	return stdnet.JoinHostPort(host, port), nil
}

// served is the engine's store as a registry: beside what was pushed into it, the images
// of this engine whose names begin with its address. Built layers are made from their
// trees while they are read.
type served struct {
	*store.Repositories
	e    *Engine
	host string
}

// Collect is the engine's own: what the repositories name is not all that is in use here. While
// the registry is served, what is younger than an hour stays, whatever grace says.
func (s served) Collect(ctx context.Context, grace time.Duration) (blobs int, bytes int64, err error) {
	f, err := s.e.collect(ctx)
	return len(f.blobs), f.bytes, err
}

func (s served) Manifest(ctx context.Context, repo, tag string, d digest.Digest) (image.Descriptor, error) {
	desc, err := s.Repositories.Manifest(ctx, repo, tag, d)
	if d == "" || err == nil && desc.Digest == d {
		return desc, err
	}
	tags, terr := s.Tags(ctx, repo)
	if terr != nil {
		return desc, terr
	}
	for _, t := range tags {
		if desc, err := s.Repositories.Manifest(ctx, repo, t, ""); err == nil && desc.Digest == d {
			return desc, nil
		}
	}
	return desc, fault.NotFoundf("repository %s has no manifest %s", repo, d)
}

func (s served) StatBlob(ctx context.Context, repo string, d digest.Digest) (int64, error) {
	n, err := s.Repositories.StatBlob(ctx, repo, d)
	if !fault.Is(err, fault.NotFound) || !s.named(ctx, repo, d) {
		return n, err
	}
	if n, err := s.e.store.Stat(d); err == nil {
		return n, nil
	}
	_, n, err = s.e.snapshots.Find(d)
	return n, err
}

func (s served) OpenBlob(ctx context.Context, repo string, d digest.Digest) (io.ReadSeekCloser, error) {
	r, err := s.Repositories.OpenBlob(ctx, repo, d)
	if !fault.Is(err, fault.NotFound) || !s.named(ctx, repo, d) {
		return r, err
	}
	if f, err := s.e.store.Blob(d); err == nil {
		return f, nil
	}
	stack, _, err := s.e.snapshots.Find(d)
	if err != nil {
		return nil, err
	}
	return s.e.snapshots.Tar(stack)
}

// named reports whether an image of the repository has the blob: who may read one
// repository learns nothing of another's.
func (s served) named(ctx context.Context, repo string, d digest.Digest) bool {
	tags, err := s.Tags(ctx, repo)
	if err != nil {
		return false
	}
	for _, t := range tags {
		desc, err := s.Repositories.Manifest(ctx, repo, t, "")
		if err != nil {
			continue
		}
		marks := map[digest.Digest]bool{}
		if s.e.mark(marks, desc, 0); marks[d] {
			return true
		}
	}
	return false
}
