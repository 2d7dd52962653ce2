package engine

// Provenance: what an image was built from, as an in-toto statement beside it in the index
// (in-toto.io/Statement/v1, slsa.dev/provenance/v1; BuildKit's attestation storage).

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"keg/internal/builder"
	"keg/internal/image"
)

const (
	mediaInToto       = "application/vnd.in-toto+json"
	predicateKey      = "in-toto.io/predicate-type"
	statementType     = "https://in-toto.io/Statement/v1"
	provenanceType    = "https://slsa.dev/provenance/v1"
	provenanceBuild   = "urn:keg:build:dockerfile"
	provenanceMaximum = "max"
)

type statement struct {
	Type          string          `json:"_type"`
	Subject       []resource      `json:"subject"`
	PredicateType string          `json:"predicateType"`
	Predicate     json.RawMessage `json:"predicate"`
}

// resource is a thing by its digest: an in-toto ResourceDescriptor.
type resource struct {
	Name   string            `json:"name,omitempty"`
	URI    string            `json:"uri,omitempty"`
	Digest map[string]string `json:"digest"`
}

type provenance struct {
	BuildDefinition struct {
		BuildType            string         `json:"buildType"`
		ExternalParameters   map[string]any `json:"externalParameters"`
		InternalParameters   map[string]any `json:"internalParameters"`
		ResolvedDependencies []resource     `json:"resolvedDependencies,omitempty"`
	} `json:"buildDefinition"`
	RunDetails struct {
		Builder struct {
			ID string `json:"id"`
		} `json:"builder"`
		Metadata map[string]any `json:"metadata,omitempty"`
	} `json:"runDetails"`
}

// attest writes the provenance of one platform; the answer is its entry in the index.
func (b *delivery) attest(ctx context.Context, r *builder.Result, of image.Descriptor) (image.Descriptor, error) {
	predicate, err := json.Marshal(b.provenance(r))
	if err != nil {
		return of, err
	}
	st := statement{Type: statementType, PredicateType: provenanceType, Predicate: predicate,
		Subject: []resource{{Name: subjectName(b.tags, r.Platform)}}}
	docs, entry, err := attestation(&st, of.Digest)
	if err != nil {
		return entry, err
	}
	for _, d := range docs {
		if err := b.use.add(d.Digest); err != nil {
			return entry, err
		}
		if _, err := b.e.store.Put(ctx, d.bytes); err != nil {
			return entry, err
		}
	}
	return entry, nil
}

func (b *delivery) provenance(r *builder.Result) *provenance {
	var p provenance
	d := &p.BuildDefinition
	d.BuildType = provenanceBuild
	request := map[string]any{"frontend": "dockerfile.v0"}
	if b.q.Target != "" {
		request["target"] = b.q.Target
	}
	if b.q.Provenance == provenanceMaximum { // the values of arguments may be nobody's business
		args := map[string]string{}
		for k, v := range b.q.Args {
			if v != nil {
				args[k] = *v
			}
		}
		request["args"] = args
	}
	d.ExternalParameters = map[string]any{"configSource": map[string]any{"path": dockerfileName(b.q.Dockerfile)}, "request": request}
	d.InternalParameters = map[string]any{"builderPlatform": image.FormatPlatform(image.Host())}
	for _, base := range r.Bases {
		d.ResolvedDependencies = append(d.ResolvedDependencies, resource{
			URI:    packageURL(base.Ref, r.Platform),
			Digest: map[string]string{base.Digest.Algorithm().String(): base.Digest.Encoded()},
		})
	}
	if r.Epoch != nil {
		p.RunDetails.Metadata = map[string]any{"finishedOn": r.Epoch.UTC().Format(time.RFC3339)}
	} else {
		p.RunDetails.Metadata = map[string]any{"finishedOn": time.Now().UTC().Format(time.RFC3339)}
	}
	return &p
}

func dockerfileName(f string) string {
	if f == "" || f == "-" {
		return "Dockerfile"
	}
	return f
}

// packageURL names an image as BuildKit does (package-url: pkg:docker/NAME@TAG?platform=P).
func packageURL(ref image.Reference, p image.Platform) string {
	name := "pkg:docker/" + ref.FamiliarName()
	if ref.Tag != "" {
		name += "@" + ref.Tag
	}
	return name + "?platform=" + url.QueryEscape(image.FormatPlatform(p))
}

func subjectName(tags []image.Reference, p image.Platform) string {
	if len(tags) == 0 {
		return "_"
	}
	return packageURL(tags[0], p)
}

// rawDocument is a document with its descriptor.
type rawDocument struct {
	image.Descriptor
	bytes []byte
}

func (d rawDocument) open() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(d.bytes)), nil
}

func rawOf(mediaType string, b []byte) rawDocument {
	return rawDocument{image.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}, b}
}

// attestation makes the documents of a statement about a manifest: statement, config, manifest, in that order; and
// the entry of an index.
func attestation(st *statement, of digest.Digest) ([]rawDocument, image.Descriptor, error) {
	for i := range st.Subject {
		st.Subject[i].Digest = map[string]string{of.Algorithm().String(): of.Encoded()}
	}
	text, err := json.Marshal(st)
	if err != nil {
		return nil, image.Descriptor{}, err
	}
	layer := rawOf(mediaInToto, text)
	layer.Annotations = map[string]string{predicateKey: st.PredicateType}
	cfg := image.Config{}
	cfg.Architecture, cfg.OS = "unknown", "unknown"
	cfg.RootFS.Type, cfg.RootFS.DiffIDs = "layers", []digest.Digest{layer.Digest}
	text, err = json.Marshal(cfg)
	if err != nil {
		return nil, image.Descriptor{}, err
	}
	config := rawOf(image.MediaConfig, text)
	m := image.Manifest{MediaType: image.MediaManifest, Config: config.Descriptor, Layers: []image.Descriptor{layer.Descriptor}}
	m.SchemaVersion = 2
	if text, err = json.Marshal(m); err != nil {
		return nil, image.Descriptor{}, err
	}
	manifest := rawOf(image.MediaManifest, text)
	entry := manifest.Descriptor
	entry.Platform = &image.Platform{Architecture: "unknown", OS: "unknown"}
	entry.Annotations = map[string]string{attestationType: attestationKind, attestationDigest: of.String()}
	return []rawDocument{layer, config, manifest}, entry, nil
}

// restate makes an attestation of ours one about another manifest of the same image.
func (e *Engine) restate(entry image.Descriptor, of digest.Digest) ([]rawDocument, image.Descriptor, error) {
	if of == "" {
		return nil, entry, fmt.Errorf("attestation %s: its image %s is not in the index", entry.Digest, entry.Annotations[attestationDigest])
	}
	m, doc, err := e.manifest(entry.Digest)
	if err != nil {
		return nil, entry, err
	}
	var docs []rawDocument
	for _, d := range append(slices.Clone(m.Layers), m.Config) {
		b, err := e.store.Bytes(d.Digest, image.MaxConfig)
		if err != nil {
			return nil, entry, err
		}
		docs = append(docs, rawDocument{d, b})
	}
	docs = append(docs, rawDocument{entry, doc})
	if of.String() == entry.Annotations[attestationDigest] {
		return docs, entry, nil
	}
	var st statement
	if len(m.Layers) != 1 || m.Layers[0].MediaType != mediaInToto || json.Unmarshal(docs[0].bytes, &st) != nil {
		return nil, entry, fmt.Errorf("attestation %s: not a single in-toto statement, so its subject cannot follow the image", entry.Digest)
	}
	docs, now, err := attestation(&st, of)
	if err != nil {
		return nil, entry, err
	}
	kept := maps.Clone(entry.Annotations)
	maps.Copy(kept, now.Annotations)
	now.Annotations = kept
	return docs, now, nil
}

// attestation pushes one, restated for the manifest that the registry has.
func (p *push) attestation(ctx context.Context, entry image.Descriptor, of digest.Digest) (image.Descriptor, error) {
	docs, now, err := p.e.restate(entry, of)
	if err != nil {
		return entry, err
	}
	q := p.byDigest()
	last := len(docs) - 1
	for _, d := range docs[:last] {
		there, err := p.e.remote.HasBlob(ctx, q.ref, d.Digest)
		if err != nil {
			return entry, err
		}
		if there {
			continue
		}
		if err := p.e.remote.PushBlob(ctx, q.ref, d.Descriptor, d.open, nil); err != nil {
			return entry, err
		}
	}
	_, err = p.e.remote.PushManifest(ctx, q.ref, docs[last].MediaType, docs[last].bytes)
	return now, err
}
