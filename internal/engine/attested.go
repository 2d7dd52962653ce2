package engine

// What was stated about an image: the attestations beside it in its index.

import (
	"context"
	"encoding/json"
	"slices"

	dimage "github.com/moby/moby/api/types/image"

	"keg/internal/fault"
	"keg/internal/image"
)

// maxStatement bounds one statement; BuildKit's reach some megabytes.
const maxStatement = 64 << 20

// AttestationOptions choose statements.
type AttestationOptions struct {
	Platform   *image.Platform // nil: of the host
	Types      []string        // of predicates; nil: all
	Statements bool            // with their text
}

// Attestations lists the statements about an image, in the order of its index. An image without an index has none.
func (e *Engine) Attestations(ctx context.Context, ref string, o AttestationOptions) ([]dimage.AttestationStatement, error) {
	f, err := e.lookup(ctx, ref)
	if err != nil {
		return nil, err
	}
	list := []dimage.AttestationStatement{}
	if !image.IsIndex(f.Desc.MediaType) {
		return list, nil
	}
	want := image.Host()
	if o.Platform != nil {
		want = *o.Platform
	}
	of, err := e.pick(f.Desc, want)
	if err != nil {
		return nil, err
	}
	x, err := e.readIndex(f.Desc.Digest)
	if err != nil {
		return nil, err
	}
	for _, entry := range x.Manifests {
		if entry.Annotations[attestationType] != attestationKind || entry.Annotations[attestationDigest] != of.Digest.String() {
			continue
		}
		more, err := e.statements(entry, o)
		if err != nil {
			return nil, err
		}
		list = append(list, more...)
	}
	return list, nil
}

func (e *Engine) statements(entry image.Descriptor, o AttestationOptions) (list []dimage.AttestationStatement, err error) {
	m, _, err := e.manifest(entry.Digest)
	if fault.Is(err, fault.NotFound) {
		return nil, nil // pulled for its image only
	}
	if err != nil {
		return nil, err
	}
	for _, l := range m.Layers {
		kind := l.Annotations[predicateKey]
		if kind == "" || l.MediaType != mediaInToto || len(o.Types) > 0 && !slices.Contains(o.Types, kind) {
			continue
		}
		st := dimage.AttestationStatement{Descriptor: l, PredicateType: kind}
		if o.Statements {
			text, err := e.store.Bytes(l.Digest, maxStatement)
			if err != nil {
				return nil, err
			}
			if !json.Valid(text) {
				return nil, fault.Invalidf("attestation %s of the image is no JSON", l.Digest)
			}
			st.Statement = (*json.RawMessage)(&text)
		}
		list = append(list, st)
	}
	return list, nil
}
