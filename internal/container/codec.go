package container

// Records in JSON without reflection. encoding/json has to learn Docker's large types in every process, which costs a
// monitor 400 KB and a millisecond of its start; the tables of fields.go know them at compile time. What is
// rare in a record goes through encoding/json all the same. The form is exactly that of encoding/json, and the tests hold it there.

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/opencontainers/go-digest"
)

// field is one field of a T: its name in JSON, whether it is left out when empty, and where it is.
type field[T any] struct {
	name string
	omit bool
	at   func(*T) any
}

type fields[T any] []field[T]

// encodeRecord is json.Marshal of a record.
func encodeRecord(r *Record) ([]byte, error) {
	e := encoder{make([]byte, 0, 4<<10), nil}
	object(&e, r, recordFields)
	return e.b, e.err
}

// encodeState is json.Marshal of a state.
func encodeState(s *State) ([]byte, error) {
	e := encoder{make([]byte, 0, 1<<10), nil}
	object(&e, s, stateFields)
	return e.b, e.err
}

// decodeRecord is json.Unmarshal into an empty record.
func decodeRecord(b []byte, r *Record) error { return decode(b, r, recordFields) }

// decodeState is json.Unmarshal into an empty state.
func decodeState(b []byte, s *State) error { return decode(b, s, stateFields) }

type encoder struct {
	b   []byte
	err error
}

func object[T any](e *encoder, v *T, table fields[T]) {
	first := true
	e.b = append(e.b, '{')
	for i := range table {
		f := &table[i]
		p := f.at(v)
		if f.omit && empty(p) {
			continue
		}
		if !first {
			e.b = append(e.b, ',')
		}
		first = false
		e.b = append(append(append(e.b, '"'), f.name...), '"', ':')
		e.value(p)
	}
	e.b = append(e.b, '}')
}

// empty is what omitempty leaves out.
func empty(p any) bool {
	switch v := p.(type) {
	case *string:
		return *v == ""
	case *bool:
		return !*v
	}
	switch v := reflect.ValueOf(p).Elem(); v.Kind() {
	case reflect.Map, reflect.Slice:
		return v.Len() == 0
	default:
		return v.IsZero()
	}
}

func (e *encoder) value(p any) {
	switch v := p.(type) {
	case *string:
		e.text(*v)
	case *bool:
		e.b = strconv.AppendBool(e.b, *v)
	case *int:
		e.b = strconv.AppendInt(e.b, int64(*v), 10)
	case *int64:
		e.b = strconv.AppendInt(e.b, *v, 10)
	case *uint16:
		e.b = strconv.AppendUint(e.b, uint64(*v), 10)
	case *uint64:
		e.b = strconv.AppendUint(e.b, *v, 10)
	case *[2]uint:
		e.b = fmt.Appendf(e.b, "[%d,%d]", v[0], v[1])
	case *[]string:
		list(e, *v, func(s *string) { e.text(*s) })
	case *[]digest.Digest:
		list(e, *v, func(d *digest.Digest) { e.text(string(*d)) })
	case *[]container.MountPoint:
		list(e, *v, func(m *container.MountPoint) { object(e, m, mountFields) })
	case *map[string]string:
		dict(e, *v, e.text)
	case *map[string]*network.EndpointSettings:
		dict(e, *v, func(s *network.EndpointSettings) { target(e, s, endpointFields) })
	case **container.Config:
		target(e, *v, configFields)
	case **container.HostConfig:
		target(e, *v, hostFields)
	case *container.RestartPolicy:
		object(e, v, restartFields)
	case *container.LogConfig:
		object(e, v, logFields)
	case *netip.Addr:
		b, err := v.MarshalText()
		e.text(string(b))
		e.err = firstError(e.err, err)
	case *time.Time:
		b, err := v.MarshalJSON()
		e.b = append(e.b, b...)
		e.err = firstError(e.err, err)
	default:
		e.rare(p)
	}
}

// rare leaves a value to encoding/json, when there is one.
func (e *encoder) rare(p any) {
	switch v := reflect.ValueOf(p).Elem(); v.Kind() {
	case reflect.Map, reflect.Slice, reflect.Pointer:
		// A nil HardwareAddr is text.
		if _, text := p.(*network.HardwareAddr); text && v.IsNil() {
			e.text("")
			return
		}
		if v.IsNil() {
			e.b = append(e.b, "null"...)
			return
		}
	}
	b, err := json.Marshal(p)
	e.b = append(e.b, b...)
	e.err = firstError(e.err, err)
}

func firstError(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func target[T any](e *encoder, v *T, table fields[T]) {
	if v == nil {
		e.b = append(e.b, "null"...)
		return
	}
	object(e, v, table)
}

func list[T any](e *encoder, vs []T, each func(*T)) {
	if vs == nil {
		e.b = append(e.b, "null"...)
		return
	}
	e.b = append(e.b, '[')
	for i := range vs {
		if i > 0 {
			e.b = append(e.b, ',')
		}
		each(&vs[i])
	}
	e.b = append(e.b, ']')
}

func dict[V any](e *encoder, m map[string]V, each func(V)) {
	if m == nil {
		e.b = append(e.b, "null"...)
		return
	}
	e.b = append(e.b, '{')
	for i, k := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			e.b = append(e.b, ',')
		}
		e.text(k)
		e.b = append(e.b, ':')
		each(m[k])
	}
	e.b = append(e.b, '}')
}

// text appends a string; what needs escapes, encoding/json escapes.
func (e *encoder) text(s string) {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f || strings.IndexByte(`"\<>&`, c) >= 0 {
			b, err := json.Marshal(s)
			e.b = append(e.b, b...)
			e.err = firstError(e.err, err)
			return
		}
	}
	e.b = append(append(append(e.b, '"'), s...), '"')
}

// decode reads an object. Its form was checked as a whole, so that reading on cannot go astray.
func decode[T any](b []byte, v *T, table fields[T]) error {
	if !json.Valid(b) {
		return json.Unmarshal(b, &struct{}{}) // for its words
	}
	b = bytes.TrimSpace(b)
	if len(b) == 0 || b[0] != '{' {
		if string(b) == "null" {
			return nil
		}
		return fmt.Errorf("not an object: %.20q", b)
	}
	return members(b, func(name string, raw []byte) error {
		for i := range table {
			if table[i].name == name {
				if err := set(table[i].at(v), raw); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				break
			}
		}
		return nil
	})
}

// set stores the value that raw is.
func set(p any, raw []byte) (err error) {
	if string(raw) == "null" {
		return nil // the value is new: it is nil already
	}
	switch v := p.(type) {
	case *string:
		*v, err = textOf(raw)
	case *bool:
		*v, err = strconv.ParseBool(string(raw))
	case *int:
		*v, err = strconv.Atoi(string(raw))
	case *int64:
		*v, err = strconv.ParseInt(string(raw), 10, 64)
	case *uint64:
		*v, err = strconv.ParseUint(string(raw), 10, 64)
	case *[]string:
		return elements(raw, v, func(raw []byte, s *string) (err error) { *s, err = textOf(raw); return err })
	case *[]digest.Digest:
		return elements(raw, v, func(raw []byte, d *digest.Digest) error {
			s, err := textOf(raw)
			*d = digest.Digest(s)
			return err
		})
	case *[]container.MountPoint:
		return elements(raw, v, func(raw []byte, m *container.MountPoint) error { return inner(raw, m, mountFields) })
	case *map[string]string:
		return entries(raw, v, textOf)
	case *map[string]*network.EndpointSettings:
		return entries(raw, v, func(raw []byte) (*network.EndpointSettings, error) { return fresh(raw, endpointFields) })
	case **container.Config:
		*v, err = fresh(raw, configFields)
	case **container.HostConfig:
		*v, err = fresh(raw, hostFields)
	case *container.RestartPolicy:
		return inner(raw, v, restartFields)
	case *container.LogConfig:
		return inner(raw, v, logFields)
	case *netip.Addr:
		s, err := textOf(raw)
		if err != nil {
			return err
		}
		return v.UnmarshalText([]byte(s))
	case *time.Time:
		return v.UnmarshalJSON(raw)
	default:
		return json.Unmarshal(raw, p)
	}
	return err
}

func fresh[T any](raw []byte, table fields[T]) (*T, error) {
	if string(raw) == "null" {
		return nil, nil
	}
	v := new(T)
	return v, inner(raw, v, table)
}

// inner is decode of a part that is known to be well formed.
func inner[T any](raw []byte, v *T, table fields[T]) error {
	if raw[0] != '{' {
		return fmt.Errorf("not an object: %.20q", raw)
	}
	return members(raw, func(name string, raw []byte) error {
		for i := range table {
			if table[i].name == name {
				return set(table[i].at(v), raw)
			}
		}
		return nil
	})
}

func elements[T any](raw []byte, to *[]T, each func([]byte, *T) error) error {
	if raw[0] != '[' {
		return fmt.Errorf("not a list: %.20q", raw)
	}
	*to = []T{}
	for i := skipSpace(raw, 1); raw[i] != ']'; i = skipComma(raw, i) {
		end := skipValue(raw, i)
		var v T
		if string(raw[i:end]) != "null" {
			if err := each(raw[i:end], &v); err != nil {
				return err
			}
		}
		*to = append(*to, v)
		i = end
	}
	return nil
}

func entries[V any](raw []byte, to *map[string]V, each func([]byte) (V, error)) error {
	if raw[0] != '{' {
		return fmt.Errorf("not an object: %.20q", raw)
	}
	*to = map[string]V{}
	return members(raw, func(name string, raw []byte) (err error) {
		var v V
		if string(raw) != "null" {
			v, err = each(raw)
		}
		(*to)[name] = v
		return err
	})
}

// members calls each for the members of an object that is known to be well formed.
func members(raw []byte, each func(name string, raw []byte) error) error {
	for i := skipSpace(raw, 1); raw[i] != '}'; i = skipComma(raw, i) {
		end := skipValue(raw, i)
		name, err := textOf(raw[i:end])
		if err != nil {
			return err
		}
		i = skipSpace(raw, skipSpace(raw, end)+1) // the colon
		end = skipValue(raw, i)
		if err := each(name, raw[i:end]); err != nil {
			return err
		}
		i = end
	}
	return nil
}

func skipSpace(b []byte, i int) int {
	for b[i] == ' ' || b[i] == '\n' || b[i] == '\t' || b[i] == '\r' {
		i++
	}
	return i
}

// skipComma goes to the next member, or to the bracket that ends them.
func skipComma(b []byte, i int) int {
	if i = skipSpace(b, i); b[i] == ',' {
		i = skipSpace(b, i+1)
	}
	return i
}

// skipValue returns where the value that begins at i ends.
func skipValue(b []byte, i int) int {
	for depth := 0; ; i++ {
		switch b[i] {
		case '"':
			for i++; b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		default:
			if depth == 0 { // a number or a word
				for i < len(b) && strings.IndexByte(",]} \n\t\r", b[i]) < 0 {
					i++
				}
				return i
			}
		}
		if depth == 0 {
			return i + 1
		}
	}
}

func textOf(raw []byte) (string, error) {
	if raw[0] != '"' {
		return "", fmt.Errorf("not a string: %.20q", raw)
	}
	for _, c := range raw[1 : len(raw)-1] {
		if c == '\\' || c >= 0x80 {
			var s string
			err := json.Unmarshal(raw, &s)
			return s, err
		}
	}
	return string(raw[1 : len(raw)-1]), nil
}
