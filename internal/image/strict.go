package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"keg/internal/weakness"
)

// fields of manifests, indexes and descriptors. encoding/json takes "Layers" for
// "layers", other readers do not.
var fields = [...]string{"schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests", "subject",
	"annotations", "digest", "size", "urls", "data", "platform", "fsLayers"}

// maxNesting of a document; real ones stay below 6.
const maxNesting = 64

// checkDocument refuses a manifest or index that two readers may read differently: keys
// that come twice, or that are a field's name in other letters (security.md IM6).
func checkDocument(b []byte) error {
	if weakness.Of("IM6") {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(b))
	if err := checkValue(d, 0, false); err != nil {
		return err
	}
	if d.More() {
		return errors.New("something follows the document")
	}
	return nil
}

// checkValue reads one value. free tells that the keys are the author's own words, as
// in annotations.
func checkValue(d *json.Decoder, depth int, free bool) error {
	if depth > maxNesting {
		return errors.New("nested too deep")
	}
	t, err := d.Token()
	if err != nil {
		return err
	}
	open, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	seen := map[string]bool{}
	for d.More() {
		inner := free
		if open == '{' {
			t, err := d.Token()
			if err != nil {
				return err
			}
			key, _ := t.(string)
			if err := checkKey(key, seen, free); err != nil {
				return err
			}
			inner = free || key == "annotations"
		}
		if err := checkValue(d, depth+1, inner); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}

func checkKey(key string, seen map[string]bool, free bool) error {
	if seen[key] {
		return fmt.Errorf("document is ambiguous: key %q comes twice", key)
	}
	seen[key] = true
	if free {
		return nil
	}
	for _, f := range fields {
		if key != f && strings.EqualFold(key, f) {
			return fmt.Errorf("document is ambiguous: key %q is not %q", key, f)
		}
	}
	return nil
}
