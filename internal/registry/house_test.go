package registry

import (
	"bytes"
	"context"
	"io"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// The memory storage as one that keeps house and takes copies in.

func (m *memory) Times(_ context.Context, repo, tag string, d digest.Digest) (pushed, pulled time.Time, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.repo(repo, false)
	if tag != "" {
		if _, ok := r.tags[tag]; !ok {
			return pushed, pulled, errNothing
		}
	} else if _, ok := r.manifests[d]; !ok {
		return pushed, pulled, errNothing
	}
	key := repo + ":" + tag + string(d)
	return m.pushed[key], m.pulled[key], nil
}

func (m *memory) NotePull(_ context.Context, repo, tag string, d digest.Digest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.setTime(&m.pulled, repo+":"+tag, time.Now())
}

func (m *memory) setTime(times *map[string]time.Time, key string, t time.Time) {
	if *times == nil {
		*times = map[string]time.Time{}
	}
	(*times)[key] = t
}

func (m *memory) Digests(_ context.Context, repo string) (ds []digest.Digest, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for d := range m.repo(repo, false).manifests {
		ds = append(ds, d)
	}
	slices.Sort(ds)
	return ds, nil
}

func (m *memory) Usage(_ context.Context, repo string, seen map[digest.Digest]bool) (n int64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for d := range m.repo(repo, false).blobs {
		if !seen[d] {
			seen[d] = true
			n += int64(len(m.blobs[d]))
		}
	}
	return n, nil
}

func (m *memory) Collect(context.Context, time.Duration) (int, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.collected++
	return 1, 10, nil
}

func (m *memory) FillBlob(_ context.Context, repo string, d digest.Digest, source func(int64) (io.ReadCloser, int64, error), grown func(io.ReaderAt, int64)) error {
	body, _, err := source(0)
	if err != nil {
		return err
	}
	defer body.Close()
	var all []byte
	buf := make([]byte, 1000)
	for {
		grown(bytes.NewReader(slices.Clone(all)), int64(len(all)))
		n, err := body.Read(buf)
		all = append(all, buf[:n]...)
		if err == io.EOF {
			break
		}
		if err != nil {
			grown(nil, 0)
			return err
		}
	}
	grown(nil, 0)
	if d.Algorithm().FromBytes(all) != d {
		return errNothing
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blobs[d] = all
	m.repo(repo, true).blobs[d] = true
	return nil
}
