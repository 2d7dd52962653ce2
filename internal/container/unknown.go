package container

import (
	"encoding/json"
	"reflect"
	"strings"
)

// mergeUnknown returns the JSON object next with those fields of prev added that the
// type of v has no place for. Only structs are followed: an entry that is missing from
// a map was deleted, not unknown.
func mergeUnknown(prev, next []byte, v any) []byte {
	var p, n map[string]json.RawMessage
	if json.Unmarshal(prev, &p) != nil || json.Unmarshal(next, &n) != nil || p == nil || n == nil {
		return next
	}
	known := fieldsOf(reflect.TypeOf(v))
	for k, old := range p {
		t, ok := known[strings.ToLower(k)]
		switch {
		case !ok:
			n[k] = old
		case structOf(t) != nil && n[k] != nil:
			n[k] = mergeUnknown(old, n[k], reflect.Zero(structOf(t)).Interface())
		}
	}
	out, err := json.Marshal(n)
	if err != nil {
		return next
	}
	return out
}

// structOf returns t or what it points at when that is a struct with fields of its own.
func structOf(t reflect.Type) reflect.Type {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t.Implements(reflect.TypeFor[json.Marshaler]()) {
		return nil
	}
	return t
}

// fieldsOf lists the JSON names of t's fields, lower case as encoding/json matches them.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	m := map[string]reflect.Type{}
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" {
			name = f.Name
		}
		m[strings.ToLower(name)] = f.Type
	}
	return m
}
