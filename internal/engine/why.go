package engine

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"keg/internal/fault"
	"keg/internal/image"
)

// Reason tells why something is still on the disk, and how it would go.
type Reason struct {
	Kind, ID, Name string
	Size           int64 // bytes of it
	Users          []Referrer
	Free           []string // commands, without the program's name, in order
	Frees          int64    // bytes that are free after them
}

// Referrer is one that refers to it: what, which, in which way.
type Referrer struct{ Kind, Name, How string }

// Why explains every object that ref names: containers, images, volumes and networks by name or id,
// layers and blobs by digest or the beginning of one. fault.NotFound when there is none.
func (e *Engine) Why(ctx context.Context, ref string) ([]Reason, error) {
	w, err := e.references(ctx)
	if err != nil {
		return nil, err
	}
	var all []Reason
	for _, find := range []func(context.Context, string) ([]Reason, error){
		w.container, w.image, w.volume, w.network, w.layers, w.blobs,
	} {
		rs, err := find(ctx, ref)
		if err != nil && !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Invalid) {
			return nil, err
		}
		all = append(all, rs...)
	}
	if len(all) == 0 {
		return nil, fault.NotFoundf("No such object: %s", ref)
	}
	return all, nil
}

// whoRefers is what is read once for one Why.
type whoRefers struct {
	e     *Engine
	album *album
	list  []one
	steps []step
}

func (e *Engine) references(ctx context.Context) (w whoRefers, err error) {
	w.e = e
	if w.album, err = e.album(); err != nil {
		return w, err
	}
	if w.list, err = e.all(ctx); err != nil {
		return w, err
	}
	w.steps, err = e.steps()
	return w, err
}

// imageName is how people call an image.
func (w whoRefers) imageName(r *imageRecord) string {
	if tags := repoTags(w.album.names[r.ID]); len(tags) > 0 {
		return tags[0]
	}
	return image.ShortID(string(r.ID))
}

// rmCommand removes containers, by force those that run.
func rmCommand(cs []one) []string {
	if len(cs) == 0 {
		return nil
	}
	words := "rm"
	if slices.ContainsFunc(cs, func(c one) bool { return isLive(c.st.Status) }) {
		words += " -f"
	}
	for _, c := range cs {
		words += " " + c.Name
	}
	return []string{words}
}

func asUser(c one, how string) Referrer {
	return Referrer{"container", c.Name, fmt.Sprintf("%s, %s", c.st.Status, how)}
}

func (w whoRefers) container(_ context.Context, ref string) ([]Reason, error) {
	r, err := w.e.containers.Find(ref)
	if err != nil {
		return nil, err
	}
	x := Reason{Kind: "container", ID: r.ID, Name: r.Name}
	if n, err := w.e.snapshots.Usage(r.ID); err == nil {
		x.Size = n
	}
	x.Frees = x.Size
	for _, c := range w.list {
		switch {
		case c.ID == r.ID && isLive(c.st.Status):
			x.Users = append(x.Users, Referrer{"process", fmt.Sprint(c.st.Pid), "it runs"})
			x.Free = []string{"rm -f " + r.Name}
		case c.ID == r.ID:
			x.Free = []string{"rm " + r.Name}
		case slices.Contains(needs(c.Host), r.ID) || slices.Contains(needs(c.Host), r.Name):
			x.Users = append(x.Users, asUser(c, "shares its namespaces"))
		}
	}
	return []Reason{x}, nil
}

func (w whoRefers) volume(_ context.Context, ref string) ([]Reason, error) {
	v, err := w.e.volumes.Get(ref)
	if err != nil {
		return nil, err
	}
	x := Reason{Kind: "volume", ID: v.Name, Name: v.Name}
	if x.Size, err = w.e.volumes.Size(v.Name); err != nil {
		return nil, err
	}
	var cs []one
	for _, c := range w.list {
		for _, m := range c.Mounts {
			if m.Name == v.Name && m.Type == "volume" {
				x.Users = append(x.Users, asUser(c, "mounted on "+m.Destination))
				cs = append(cs, c)
				break
			}
		}
	}
	x.Free, x.Frees = append(rmCommand(cs), "volume rm "+v.Name), x.Size
	return []Reason{x}, nil
}

func (w whoRefers) network(_ context.Context, ref string) ([]Reason, error) {
	n, err := w.e.networks.Get(ref)
	if err != nil {
		return nil, err
	}
	x := Reason{Kind: "network", ID: n.ID, Name: n.Name}
	var cs []one
	for _, c := range w.list {
		if c.Networks[n.Name] != nil {
			x.Users = append(x.Users, asUser(c, "connected"))
			cs = append(cs, c)
		}
	}
	if predefined(n.Name) {
		x.Users = append(x.Users, Referrer{"keg", "itself", "the network always exists"})
	} else {
		x.Free = append(rmCommand(cs), "network rm "+n.Name)
	}
	return []Reason{x}, nil
}

func (w whoRefers) image(ctx context.Context, ref string) ([]Reason, error) {
	f, err := w.e.lookup(ctx, ref)
	if err != nil {
		return nil, err
	}
	r := f.imageRecord
	x := Reason{Kind: "image", ID: string(r.ID), Name: w.imageName(r), Size: r.Size}
	for _, n := range w.album.names[r.ID] {
		x.Users = append(x.Users, Referrer{"name", n.Ref.Familiar(), "points at it"})
	}
	var cs []one
	for _, c := range w.list {
		if c.ImageID == r.ID {
			x.Users = append(x.Users, asUser(c, "made from it"))
			cs = append(cs, c)
		}
	}
	for _, o := range w.album.images {
		if o.ID != r.ID && len(r.Stack) > 0 && len(o.Stack) >= len(r.Stack) && slices.Equal(o.Stack[:len(r.Stack)], r.Stack) {
			x.Users = append(x.Users, Referrer{"image", w.imageName(o), "stands on its layers"})
		}
	}
	x.Free = append(rmCommand(cs), w.rmiCommand(r))
	cached, bytes := w.exclusive(r)
	if cached {
		x.Users = append(x.Users, Referrer{"build cache", "steps", "keep its layers for the next build"})
		x.Free = append(x.Free, "builder prune -a")
	}
	x.Frees = bytes
	return []Reason{x}, nil
}

func (w whoRefers) rmiCommand(r *imageRecord) string {
	if tags := repoTags(w.album.names[r.ID]); len(tags) > 0 {
		return "rmi " + strings.Join(tags, " ")
	}
	return "rmi " + image.ShortID(string(r.ID))
}

// exclusive is the size of the layers that only this image and its containers hold, and
// whether the build cache holds some of them, too.
func (w whoRefers) exclusive(r *imageRecord) (cached bool, bytes int64) {
	others, steps := map[digest.Digest]bool{}, map[digest.Digest]bool{}
	for _, o := range w.album.images {
		if o.ID != r.ID {
			mark(others, o.Stack)
		}
	}
	for _, c := range w.list {
		if c.ImageID != r.ID {
			mark(others, c.Stack)
		}
		for _, stack := range c.ImageMounts {
			mark(others, stack)
		}
	}
	for _, s := range w.steps {
		mark(steps, s.stack)
	}
	for i, chain := range image.ChainIDs(r.Stack) {
		if others[chain] {
			continue
		}
		if _, n, err := w.e.snapshots.LayerSize(r.Stack[:i+1]); err == nil {
			bytes += n
		}
		cached = cached || steps[chain]
	}
	return cached, bytes
}

func mark(set map[digest.Digest]bool, stack []digest.Digest) {
	for _, chain := range image.ChainIDs(stack) {
		set[chain] = true
	}
}

// layers finds committed layers by diffID or by the name of their directory.
func (w whoRefers) layers(_ context.Context, ref string) (rs []Reason, err error) {
	prefix, ok := hexPrefix(ref)
	if !ok {
		return nil, nil
	}
	all, err := w.e.snapshots.Layers()
	if err != nil {
		return nil, err
	}
	for _, l := range all {
		if !strings.HasPrefix(l.DiffID.Encoded(), prefix) && !strings.HasPrefix(path.Base(l.Name), prefix) {
			continue
		}
		holds := func(stack []digest.Digest) bool {
			i := slices.Index(stack, l.DiffID)
			return i >= 0 && (l.Shared || len(l.Stack) == i+1 && slices.Equal(stack[:i+1], l.Stack))
		}
		x := Reason{Kind: "layer", ID: string(l.DiffID), Name: string(l.DiffID), Size: l.Files, Frees: l.Files}
		w.holders(&x, holds)
		rs = append(rs, x)
	}
	return rs, nil
}

// holders fills in who holds a layer, and what would let it go.
func (w whoRefers) holders(x *Reason, holds func([]digest.Digest) bool) {
	var cs []one
	for _, c := range w.list {
		how := ""
		if holds(c.Stack) {
			how = "its root stands on it"
		}
		for dest, stack := range c.ImageMounts {
			if holds(stack) {
				how = "mounted on " + dest
			}
		}
		if how != "" {
			x.Users = append(x.Users, asUser(c, how))
			cs = append(cs, c)
		}
	}
	x.Free = rmCommand(cs)
	for _, r := range w.album.images {
		if holds(r.Stack) {
			x.Users = append(x.Users, Referrer{"image", w.imageName(r), "contains it"})
			x.Free = append(x.Free, w.rmiCommand(r))
		}
	}
	n := 0
	for _, s := range w.steps {
		if holds(s.stack) {
			n++
		}
	}
	if n > 0 {
		x.Users = append(x.Users, Referrer{"build cache", fmt.Sprintf("%d steps", n), "keep it for the next build"})
		x.Free = append(x.Free, "builder prune -a")
	}
	if len(x.Users) == 0 {
		x.Free = append(x.Free, "system prune")
	}
}

// blobs finds documents and layers as they were pulled.
func (w whoRefers) blobs(_ context.Context, ref string) (rs []Reason, err error) {
	prefix, ok := hexPrefix(ref)
	if !ok {
		return nil, nil
	}
	for d, size := range w.e.store.Blobs() {
		if !strings.HasPrefix(d.Encoded(), prefix) {
			continue
		}
		x := Reason{Kind: "blob", ID: string(d), Name: string(d), Size: size, Frees: size}
		for _, r := range w.album.images {
			marks := map[digest.Digest]bool{r.ID: true}
			for _, m := range r.Manifests {
				w.e.mark(marks, m, 0)
			}
			if marks[d] {
				x.Users = append(x.Users, Referrer{"image", w.imageName(r), blobRole(r, d)})
				x.Free = append(x.Free, w.rmiCommand(r))
			}
		}
		var cs []one
		for _, c := range w.list {
			marks := map[digest.Digest]bool{c.ImageID: true}
			w.e.mark(marks, image.Descriptor{MediaType: image.MediaManifest, Digest: c.Manifest}, 0)
			if marks[d] {
				x.Users = append(x.Users, asUser(c, "made from its image"))
				cs = append(cs, c)
			}
		}
		x.Free = append(rmCommand(cs), x.Free...)
		if len(x.Users) == 0 {
			x.Free = append(x.Free, "system prune")
		}
		rs = append(rs, x)
	}
	return rs, nil
}

func blobRole(r *imageRecord, d digest.Digest) string {
	if d == r.ID {
		return "its configuration"
	}
	for _, m := range r.Manifests {
		if m.Digest == d {
			return "its manifest"
		}
	}
	return "its manifest names it"
}

// hexPrefix reads a digest or the beginning of one; 4 digits at least, since fewer are names
// rather than digests.
func hexPrefix(ref string) (string, bool) {
	p := strings.TrimPrefix(ref, "sha256:")
	return p, len(p) >= 4 && len(p) <= 64 && strings.Trim(p, "0123456789abcdef") == ""
}
