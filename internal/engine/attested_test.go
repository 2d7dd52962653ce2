package engine

import (
	"encoding/json"
	"strings"
	"testing"

	"keg/internal/fault"
	"keg/internal/image"
)

func TestAttestations(t *testing.T) {
	e := newEngine(t, newFakeRegistry())
	r := addImage(t, e, "plain:1", nil, tarOf(t, map[string]string{"a": "b"}))
	if list, err := e.Attestations(t.Context(), "plain:1", AttestationOptions{}); err != nil || len(list) != 0 {
		t.Errorf("an image without an index: %v, %v", list, err)
	}
	if _, err := e.Attestations(t.Context(), "nope", AttestationOptions{}); !fault.Is(err, fault.NotFound) {
		t.Error(err)
	}
	own := r.Manifests[0]
	own.Platform = &r.Platform
	x := &image.Index{MediaType: image.MediaIndex, Manifests: []image.Descriptor{own}}
	x.SchemaVersion = 2
	for _, kind := range []string{provenanceType, "https://spdx.dev/Document"} {
		docs, entry, err := attestation(&statement{Type: statementType, PredicateType: kind, Predicate: json.RawMessage(`{}`), Subject: []resource{{Name: "x"}}}, own.Digest)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range docs {
			if _, err := e.store.Put(t.Context(), d.bytes); err != nil {
				t.Fatal(err)
			}
		}
		x.Manifests = append(x.Manifests, entry)
	}
	// One about another image, and one that was not pulled along.
	_, foreign, _ := attestation(&statement{PredicateType: "foreign", Subject: []resource{{}}}, r.ID)
	_, absent, _ := attestation(&statement{PredicateType: "absent", Subject: []resource{{}}}, own.Digest)
	x.Manifests = append(x.Manifests, foreign, absent)
	use, err := e.busy(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer use.end()
	d, err := e.putIndex(t.Context(), x, use)
	if err != nil {
		t.Fatal(err)
	}
	ref, _ := image.ParseReference("stated:1")
	if err := e.store.Tag(ref, d); err != nil {
		t.Fatal(err)
	}
	list, err := e.Attestations(t.Context(), "stated:1", AttestationOptions{})
	if err != nil || len(list) != 2 || list[0].PredicateType != provenanceType || list[0].Statement != nil || list[0].Descriptor.Size == 0 {
		t.Errorf("%+v, %v", list, err)
	}
	list, err = e.Attestations(t.Context(), "stated:1", AttestationOptions{Types: []string{"https://spdx.dev/Document"}, Statements: true})
	if err != nil || len(list) != 1 || !strings.Contains(string(*list[0].Statement), own.Digest.Encoded()) {
		t.Errorf("%+v, %v", list, err)
	}
}
