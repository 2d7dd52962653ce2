package engine

import (
	"context"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
)

// Problem is one thing that Check found wrong.
type Problem struct {
	Object   string // what it is about: "blob sha256:...", "image nginx:1.27"
	Text     string // what is wrong, as a sentence
	Repaired bool   // moved aside: the next pull or build makes it anew
}

// Check reads every blob, document, layer and container record and tells what does not
// hold together. With repair, damaged blobs are moved aside.
func (e *Engine) Check(ctx context.Context, repair bool, found func(Problem)) error {
	if err := e.checkBlobs(ctx, repair, found); err != nil {
		return err
	}
	if err := e.checkNames(ctx, found); err != nil {
		return err
	}
	if err := e.checkLayers(ctx, found); err != nil {
		return err
	}
	return e.checkContainers(ctx, found)
}

func (e *Engine) checkBlobs(ctx context.Context, repair bool, found func(Problem)) error {
	for d := range e.store.Blobs() {
		err := e.store.Verify(ctx, d, repair)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !fault.Is(err, fault.NotFound) { // one that gc took meanwhile is no problem
			found(Problem{Object: "blob " + string(d), Text: err.Error(), Repaired: repair && !e.store.Has(d)})
		}
	}
	return nil
}

// checkNames follows every name to a document that is there and can be read.
func (e *Engine) checkNames(ctx context.Context, found func(Problem)) error {
	names, err := e.store.Names()
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := e.store.Bytes(n.Desc.Digest, image.MaxManifest); err != nil {
			found(Problem{Object: "image " + n.Ref.Familiar(), Text: fmt.Sprintf("%v; pull or build it again", err)})
		}
	}
	return nil
}

// checkLayers makes the tar of every layer of every image anew, which fails where the
// files are no longer those that were committed.
func (e *Engine) checkLayers(ctx context.Context, found func(Problem)) error {
	a, err := e.album()
	if err != nil {
		return err
	}
	seen := map[digest.Digest]bool{}
	for _, r := range a.images {
		object := "image " + image.ShortID(string(r.ID))
		if have := e.snapshots.Has(r.Stack); have < len(r.Stack) {
			found(Problem{Object: object, Text: fmt.Sprintf("layer %s is missing; pull or build it again", r.Stack[have])})
			continue
		}
		for i := range r.Stack {
			if err := ctx.Err(); err != nil {
				return err
			}
			stack := r.Stack[:i+1]
			if chain := image.ChainID(stack); !seen[chain] {
				seen[chain] = true
				if err := e.readLayer(stack); err != nil && !fault.Is(err, fault.Unsupported) { // made of a blob, which was read above
					found(Problem{Object: object, Text: fmt.Sprintf("layer %s: %v; remove the image and pull or build it again", stack[i], err)})
				}
			}
		}
	}
	return nil
}

func (e *Engine) readLayer(stack []digest.Digest) error {
	t, err := e.snapshots.Tar(stack)
	if err != nil {
		return err
	}
	defer t.Close()
	_, err = io.Copy(io.Discard, t)
	return err
}

func (e *Engine) checkContainers(ctx context.Context, found func(Problem)) error {
	ids, err := e.containers.List()
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return err
		}
		r, err := e.containers.Get(id)
		if err == nil {
			_, err = e.containers.State(id)
		}
		if err != nil {
			if !fault.Is(err, fault.NotFound) {
				found(Problem{Object: "container " + image.ShortID(id), Text: err.Error()})
			}
			continue
		}
		if have := e.snapshots.Has(r.Stack); have < len(r.Stack) {
			found(Problem{Object: "container " + r.Name, Text: fmt.Sprintf("layer %s of its image is missing; pull %s again", r.Stack[have], r.Config.Image)})
		}
	}
	return nil
}
