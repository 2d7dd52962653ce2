package engine

// keg build --verify: is what a Dockerfile makes the same each time?

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"reflect"

	"github.com/opencontainers/go-digest"

	"keg/internal/builder"
)

// Difference is the first thing that two builds of the same sources made differently.
type Difference struct {
	Line int    // of the Dockerfile
	Step string // its instruction
	Path string // the first file; "" when only the image's config differs
	What string // what differs of it: "content", "mtime 12:00:01, then 12:00:02" ...
}

func (d *Difference) Error() string {
	if d.Path == "" {
		return "not reproducible: " + d.What
	}
	return fmt.Sprintf("not reproducible: %s differs (%s); line %d made it: %s", d.Path, d.What, d.Line, d.Step)
}

// Verify builds twice without the cache and compares. The error is a *Difference when the two are not equal.
// Nothing is named or kept.
func (e *Engine) Verify(ctx context.Context, o builder.Options, progress func(builder.Event)) (err error) {
	use, err := e.busy(ctx)
	if err != nil {
		return err
	}
	defer use.end()
	n := &numbering{emit: progress}
	o.NoCache, o.Tags = true, nil
	var made [2]*builder.Result
	for i, word := range []string{"first ", "second "} {
		keep := func(_ context.Context, r *builder.Result) error {
			for _, m := range r.Made {
				if err := use.addStack(m.Layers); err != nil {
					return err
				}
			}
			return use.addStack(r.Stack)
		}
		if made[i], err = e.build(ctx, o, building{finish: keep, progress: n.part(word)}); err != nil {
			return err
		}
	}
	return e.compare(ctx, made[0], made[1])
}

func (e *Engine) compare(ctx context.Context, a, b *builder.Result) error {
	for i := range min(len(a.Made), len(b.Made)) {
		x, y := a.Made[i], b.Made[i]
		if last(x.Layers) == last(y.Layers) {
			continue
		}
		d := &Difference{Line: x.Line, Step: x.Step}
		var err error
		if d.Path, d.What, err = e.firstDifference(ctx, x.Layers, y.Layers); err != nil {
			return err
		}
		return d
	}
	if a.ConfigID != b.ConfigID {
		return &Difference{What: fmt.Sprintf("the layers are equal and the config is not (%s, then %s): set SOURCE_DATE_EPOCH, or use --reproducible, for the times in it", a.ConfigID, b.ConfigID)}
	}
	return nil
}

func last(stack []digest.Digest) digest.Digest { return stack[len(stack)-1] }

// firstDifference reads the tars of two layers side by side.
func (e *Engine) firstDifference(ctx context.Context, a, b []digest.Digest) (path, what string, err error) {
	ta, err := e.snapshots.Tar(a)
	if err != nil {
		return "", "", err
	}
	defer ta.Close()
	tb, err := e.snapshots.Tar(b)
	if err != nil {
		return "", "", err
	}
	defer tb.Close()
	ra, rb := tar.NewReader(ta), tar.NewReader(tb)
	for ctx.Err() == nil {
		ha, erra := ra.Next()
		hb, errb := rb.Next()
		switch {
		case errors.Is(erra, io.EOF) && errors.Is(errb, io.EOF):
			return "", "the two tars have the same files in another form", nil
		case errors.Is(erra, io.EOF):
			return hb.Name, "only the second build made it", nil
		case errors.Is(errb, io.EOF):
			return ha.Name, "only the first build made it", nil
		case erra != nil || errb != nil:
			return "", "", errors.Join(erra, errb)
		}
		if what, err := unlike(ha, hb, ra, rb); what != "" || err != nil {
			return "/" + ha.Name, what, err
		}
	}
	return "", "", context.Cause(ctx)
}

// unlike tells how two entries differ; "" when they do not.
func unlike(a, b *tar.Header, ra, rb io.Reader) (string, error) {
	switch {
	case a.Name != b.Name:
		return fmt.Sprintf("the second build made /%s in its place", b.Name), nil
	case a.Typeflag != b.Typeflag || a.Linkname != b.Linkname:
		return "another kind of file", nil
	case a.Mode != b.Mode:
		return fmt.Sprintf("mode %o, then %o", a.Mode, b.Mode), nil
	case a.Uid != b.Uid || a.Gid != b.Gid:
		return fmt.Sprintf("owner %d:%d, then %d:%d", a.Uid, a.Gid, b.Uid, b.Gid), nil
	case a.Size != b.Size:
		return fmt.Sprintf("content: %d bytes, then %d", a.Size, b.Size), nil
	}
	sa, erra := sum(ra)
	sb, errb := sum(rb)
	switch {
	case erra != nil || errb != nil:
		return "", errors.Join(erra, errb)
	case !bytes.Equal(sa, sb):
		return "content", nil
	case !a.ModTime.Equal(b.ModTime):
		return fmt.Sprintf("mtime %s, then %s", a.ModTime.UTC().Format("15:04:05.000000000"), b.ModTime.UTC().Format("15:04:05.000000000")), nil
	case !reflect.DeepEqual(a.PAXRecords, b.PAXRecords):
		return "extended attributes", nil
	}
	return "", nil
}

func sum(r io.Reader) ([]byte, error) {
	h := sha256.New()
	_, err := io.Copy(h, r)
	return h.Sum(nil), err
}
