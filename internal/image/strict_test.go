package image

import (
	"strings"
	"testing"

	"keg/internal/fault"
)

const goodManifest = `{"schemaVersion":2,"mediaType":"` + MediaManifest + `","config":{"mediaType":"` + MediaConfig +
	`","digest":"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","size":2},"layers":[],"annotations":{"a":"1","A":"2","Layers":"mine"},"extra":{"X":1}}`

func TestManifestWithOwnWordsIsRead(t *testing.T) {
	m, err := ParseManifest([]byte(goodManifest))
	if err != nil || m.Annotations["A"] != "2" {
		t.Fatal(m, err)
	}
}

func TestDocumentsOfTwoTypesAreRefused(t *testing.T) {
	cut := strings.TrimSuffix(goodManifest, "}")
	for name, doc := range map[string]string{
		"field twice":        cut + `,"layers":[]}`,
		"other letters":      cut + `,"Layers":[]}`,
		"only other letters": strings.Replace(goodManifest, `"config"`, `"CONFIG"`, 1),
		"kelvin sign":        strings.Replace(goodManifest, `"layers"`, `"layer\u017f"`, 1),
		"nested twice":       strings.Replace(goodManifest, `"size":2`, `"size":2,"size":3`, 1),
		"nested letters":     strings.Replace(goodManifest, `"size":2`, `"size":2,"Digest":"x"`, 1),
		"manifest and index": cut + `,"manifests":[]}`,
		"manifest and v1":    cut + `,"fsLayers":[]}`,
		"index by its type":  strings.Replace(goodManifest, MediaManifest, MediaIndex, 1),
		"annotation twice":   strings.Replace(goodManifest, `"a":"1"`, `"a":"1","a":"2"`, 1),
		"two documents":      goodManifest + goodManifest,
		"deep":               cut + `,"deep":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`,
	} {
		if _, err := ParseManifest([]byte(doc)); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Null in the place of every value in turn: an error or a document, no panic.
func TestNullAtEveryNode(t *testing.T) {
	for i := range goodManifest {
		if goodManifest[i] != ':' {
			continue
		}
		for j := i + 1; j <= len(goodManifest); j++ {
			doc := []byte(goodManifest[:i+1] + "null" + goodManifest[j:])
			ParseManifest(doc)
			ParseIndex(doc)
			ParseConfig(doc)
		}
	}
}
