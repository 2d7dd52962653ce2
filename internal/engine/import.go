package engine

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/builder"
	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/layer"
	"keg/internal/snapshot"
)

// ImportOptions are those of docker import.
type ImportOptions struct {
	Repository string // name[:tag], or ""
	Message    string
	Changes    []string // Dockerfile instructions
	Platform   *image.Platform
	Source     string // as history tells it: "-" or a URL
}

// Import makes an image of one layer from a tar of a root file system.
func (e *Engine) Import(ctx context.Context, in io.Reader, o ImportOptions) (digest.Digest, error) {
	ref, err := newName(o.Repository)
	if err != nil {
		return "", err
	}
	if o.Platform != nil && o.Platform.OS != "linux" {
		return "", fault.Invalidf("operating system is not supported: %s", o.Platform.OS)
	}
	now := time.Now().UTC()
	cfg := &image.Config{}
	cfg.Platform = image.Host()
	cfg.Platform.Variant = ""
	if o.Platform != nil {
		cfg.Platform = *o.Platform
	}
	if cfg, err = builder.Change(cfg, o.Changes); err != nil {
		return "", err
	}
	use, err := e.busy(ctx)
	if err != nil {
		return "", err
	}
	defer use.end()
	u, err := e.importLayer(ctx, in)
	if err != nil {
		return "", err
	}
	defer u.Discard()
	stack := []digest.Digest{u.DiffID()}
	if err := use.addStack(stack); err != nil {
		return "", err
	}
	if err := use.add(u.DiffID()); err != nil {
		return "", err
	}
	if err := u.Place(ctx, nil); err != nil {
		return "", err
	}
	comment := o.Message
	if comment == "" {
		comment = "Imported from " + orElse(o.Source, "-")
	}
	cfg.Created = &now
	cfg.RootFS.Type, cfg.RootFS.DiffIDs = "layers", stack
	cfg.History = []image.History{{Created: &now, Comment: comment}}
	m := &image.Manifest{MediaType: image.MediaManifest}
	m.SchemaVersion = 2
	m.Layers = []image.Descriptor{{MediaType: image.MediaLayer, Digest: u.DiffID(), Size: u.Size()}}
	return e.finishImage(ctx, cfg, m, use, ref, "import")
}

// importLayer unpacks the tar; the tar itself is kept only when the tree could not give
// it back.
func (e *Engine) importLayer(ctx context.Context, in io.Reader) (snapshot.Unpacked, error) {
	plain, err := layer.Inflate(in)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	var key [16]byte
	rand.Read(key[:])
	ing, err := e.store.Ingest(ctx, "import-"+hex.EncodeToString(key[:]))
	if err != nil {
		return nil, err
	}
	tar := io.TeeReader(&watched{r: plain, ctx: ctx, step: func(int64) {}}, ing)
	u, err := e.snapshots.UnpackRecorded(ctx, tar, "")
	if err != nil {
		return nil, errors.Join(err, ing.Abort())
	}
	if u.Recorded() {
		err = ing.Abort()
	} else {
		_, err = ing.Commit(ctx, u.Size(), u.DiffID())
	}
	if err != nil {
		u.Discard()
		return nil, err
	}
	return u, nil
}

// finishImage stores a new image and gives it its name, last of all.
func (e *Engine) finishImage(ctx context.Context, cfg *image.Config, m *image.Manifest, use *use, ref image.Reference, act string) (digest.Digest, error) {
	if err := e.snapshots.Sync(ctx); err != nil {
		return "", err
	}
	desc, err := e.putImage(ctx, cfg, m, use)
	if err != nil {
		return "", err
	}
	r, err := e.remember(desc)
	if err != nil {
		return "", err
	}
	name := string(r.ID)
	if ref.Repository != "" {
		if err := e.store.Tag(ref, desc); err != nil {
			return "", err
		}
		name = ref.Familiar()
	}
	if act == "import" {
		e.imageEvent("import", string(r.ID), name, r.Labels)
	}
	if ref.Repository != "" {
		e.imageEvent("tag", string(r.ID), name, r.Labels)
	}
	return r.ID, nil
}

// newName reads the name that a new image shall have; "" is none.
func newName(s string) (image.Reference, error) {
	if s == "" {
		return image.Reference{}, nil
	}
	ref, err := image.ParseReference(s)
	if err != nil {
		return ref, err
	}
	if ref.Digest != "" {
		return ref, fault.Invalidf("cannot import digest reference")
	}
	return ref, nil
}

// OpenURL opens what docker import downloads.
func OpenURL(ctx context.Context, s string) (io.ReadCloser, error) {
	if !strings.Contains(s, "://") {
		s = "http://" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, fault.As(fault.Invalid, err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fault.Invalidf("cannot download %q: want http:// or https://", u.Redacted())
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fault.As(fault.Invalid, err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fault.Unavailablef("download %s: %w", u.Redacted(), err)
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		kind := fault.Unavailable
		switch resp.StatusCode { // the kinds that Docker tells apart
		case http.StatusNotFound:
			kind = fault.NotFound
		case http.StatusBadRequest:
			kind = fault.Invalid
		case http.StatusUnauthorized:
			kind = fault.Unauthorized
		case http.StatusForbidden:
			kind = fault.Denied
		}
		return nil, fault.Errorf(kind, "download %s: the server answers %s", u.Redacted(), resp.Status)
	}
	if resp.ContentLength < 0 {
		return resp.Body, nil
	}
	return struct {
		io.Reader
		io.Closer
	}{&exactly{r: resp.Body, left: resp.ContentLength}, resp.Body}, nil
}

// exactly turns a connection that ends early into an error.
type exactly struct {
	r    io.Reader
	left int64
}

func (x *exactly) Read(p []byte) (int, error) {
	n, err := x.r.Read(p)
	if x.left -= int64(n); err == io.EOF && x.left > 0 {
		err = fmt.Errorf("download: %w", io.ErrUnexpectedEOF)
	}
	return n, err
}
