package engine

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"

	dimage "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/mount"
	"github.com/opencontainers/go-digest"

	"keg/internal/container"
	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/store"
)

// removal is what Docker's rules make of one docker rmi: which names go, and whether the
// image goes with them. It is decided by a pure function.
type removal struct {
	untag  []image.Reference
	delete bool
}

// user is a container that uses the image.
type user struct {
	id      string
	running bool
}

// planRemoval applies Docker's rules. typed is what the user wrote, ref what it parsed to
// when it named a name; refs are all names of the image.
func planRemoval(id digest.Digest, typed string, ref image.Reference, refs []image.Reference, users []user, force bool) (removal, error) {
	if ref.Repository != "" && !isIDPrefix(id, typed) {
		return planUntag(id, typed, ref, refs, users, force)
	}
	p := removal{delete: true}
	if err := removalConflict(id, refs, users, force); err != nil {
		return p, err
	}
	p.untag = refs
	return p, nil
}

// planUntag: a name goes; the image too when it was the last one and nobody uses it.
func planUntag(id digest.Digest, typed string, ref image.Reference, refs []image.Reference, users []user, force bool) (removal, error) {
	if !force && singleReference(refs) && len(users) > 0 {
		return removal{}, fault.Conflictf("conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s",
			typed, image.ShortID(users[0].id), image.ShortID(string(id)))
	}
	p := removal{untag: []image.Reference{ref}}
	rest := slices.DeleteFunc(slices.Clone(refs), func(r image.Reference) bool { return r == ref })
	// With the last tag of a repository its digests go, too.
	inRepo := func(r image.Reference) bool { return r.Name() == ref.Name() }
	if ref.Tag != "" && !slices.ContainsFunc(rest, func(r image.Reference) bool { return inRepo(r) && r.Tag != "" }) {
		for _, r := range rest {
			if inRepo(r) {
				p.untag = append(p.untag, r)
			}
		}
		rest = slices.DeleteFunc(rest, inRepo)
	}
	running := slices.ContainsFunc(users, func(u user) bool { return u.running })
	p.delete = len(rest) == 0 && (len(users) == 0 || force && !running)
	return p, nil
}

// removalConflict: what forbids to delete an image by its id.
func removalConflict(id digest.Digest, refs []image.Reference, users []user, force bool) error {
	conflict := func(must, why string) error {
		return fault.Conflictf("conflict: unable to delete %s (%s) - %s", image.ShortID(string(id)), must, why)
	}
	for _, u := range users {
		if u.running {
			return conflict("cannot be forced", "image is being used by running container "+image.ShortID(u.id))
		}
	}
	if force {
		return nil
	}
	if len(refs) > 0 && !singleReference(refs) {
		return conflict("must be forced", "image is referenced in multiple repositories")
	}
	if len(users) > 0 {
		return conflict("must be forced", "image is being used by stopped container "+image.ShortID(users[0].id))
	}
	return nil
}

// singleReference: at most one tag, and all digests in its repository.
func singleReference(refs []image.Reference) bool {
	if len(refs) == 0 {
		return false
	}
	tags := 0
	for _, r := range refs {
		if r.Tag != "" {
			tags++
		}
		if r.Name() != refs[0].Name() {
			return false
		}
	}
	return tags <= 1
}

// RemoveImage untags and deletes as docker rmi does; the answer tells which.
func (e *Engine) RemoveImage(ctx context.Context, typed string, force bool) ([]dimage.DeleteResponse, error) {
	f, err := e.lookup(ctx, typed)
	if err != nil {
		return nil, err
	}
	a, err := e.album()
	if err != nil {
		return nil, err
	}
	users, err := e.usersOf(ctx, f.ID)
	if err != nil {
		return nil, err
	}
	ref := f.Ref
	if ref.Digest != "" {
		ref.Tag = "" // name:tag@digest is found by its digest
	}
	p, err := planRemoval(f.ID, typed, ref, references(a.names[f.ID]), users, force)
	if err != nil {
		return nil, err
	}
	gone, err := e.remove(f.imageRecord, p)
	if err != nil || !p.delete {
		return gone, err
	}
	freed, err := e.collect(ctx)
	return append(gone, deletedLayers(f.Stack, freed.layers)...), err
}

func references(names []store.Named) []image.Reference {
	refs := make([]image.Reference, len(names))
	for i, n := range names {
		refs[i] = n.Ref
	}
	return refs
}

// usersOf lists the containers of an image, the running ones first.
func (e *Engine) usersOf(ctx context.Context, id digest.Digest) ([]user, error) {
	ids, err := e.containers.List()
	if err != nil {
		return nil, err
	}
	var running, stopped []user
	for _, cid := range ids {
		r, err := e.containers.Get(cid)
		if err != nil || r.ImageID != id && !e.hasMounted(ctx, r, id) {
			continue
		}
		st, err := e.now(ctx, cid)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if isLive(st.Status) {
			running = append(running, user{cid, true})
		} else {
			stopped = append(stopped, user{cid, false})
		}
	}
	return append(running, stopped...), nil
}

// hasMounted tells whether the container has the image mounted beside its root.
func (e *Engine) hasMounted(ctx context.Context, r *container.Record, id digest.Digest) bool {
	for _, m := range r.Mounts {
		if m.Type != mount.TypeImage {
			continue
		}
		if f, err := e.lookup(ctx, m.Source); err == nil && f.ID == id {
			return true
		}
	}
	return false
}

// remove takes names away and, when the plan says so, the record of the image: it is no
// image any more then. Its bytes are the collector's.
func (e *Engine) remove(r *imageRecord, p removal) ([]dimage.DeleteResponse, error) {
	var gone []dimage.DeleteResponse
	for _, ref := range p.untag {
		if err := e.store.Untag(ref); err != nil && !fault.Is(err, fault.NotFound) {
			return gone, err
		}
		gone = append(gone, dimage.DeleteResponse{Untagged: ref.Familiar()})
		e.imageEvent("untag", string(r.ID), string(r.ID), r.Labels)
	}
	if !p.delete {
		return gone, nil
	}
	if err := os.Remove(e.imageFile(r.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return gone, err
	}
	e.imageEvent("delete", string(r.ID), string(r.ID), r.Labels)
	return append(gone, dimage.DeleteResponse{Deleted: string(r.ID)}), nil
}

// deletedLayers tells which layers of a removed image went with it, top first, by their
// chain ids as Docker does.
func deletedLayers(stack, freed []digest.Digest) []dimage.DeleteResponse {
	var gone []dimage.DeleteResponse
	chains := image.ChainIDs(stack)
	for i := len(stack) - 1; i >= 0; i-- {
		if slices.Contains(freed, stack[i]) || slices.Contains(freed, chains[i]) {
			gone = append(gone, dimage.DeleteResponse{Deleted: string(chains[i])})
		}
	}
	return gone
}
