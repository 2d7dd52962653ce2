package container

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/network"
)

// TestCodecIsJSON: records in every shape come out as encoding/json writes them, and back as it reads them.
func TestCodecIsJSON(t *testing.T) {
	for _, how := range []string{"zero", "empty", "full", "odd"} {
		t.Run(how, func(t *testing.T) {
			same(t, how, encodeRecord, decodeRecord)
			same(t, how, encodeState, decodeState)
		})
	}
}

func same[T any](t *testing.T, how string, encode func(*T) ([]byte, error), decode func([]byte, *T) error) {
	t.Helper()
	var v T
	if how != "zero" {
		fill(reflect.ValueOf(&v).Elem(), how, 0)
	}
	want, err := json.Marshal(&v)
	if err != nil {
		t.Fatal(err)
	}
	got, err := encode(&v)
	if err != nil || string(got) != string(want) {
		t.Errorf("%T encoded: %v\n%s\nwant\n%s", v, err, got, want)
	}
	indented, _ := json.MarshalIndent(&v, "", "\t")
	for _, text := range [][]byte{want, indented, []byte("{}"), []byte(`{"New":[{"a":"}"}],"Version":7}`), []byte(" null ")} {
		var a, b T
		if err := json.Unmarshal(text, &a); err != nil {
			t.Fatal(err)
		}
		if err := decode(text, &b); err != nil || !reflect.DeepEqual(a, b) {
			t.Errorf("%T decoded from %.100q: %v\n%+v\nwant\n%+v", v, text, err, b, a)
		}
	}
	for _, bad := range []string{"", "{", `{"Version":"x"}`, `[]`, string(want[:len(want)/2]), `{"Path":1,"Error":1}`, `{"Stack":{},"Networks":[]}`, `{"Config":[],"Started":1}`} {
		var a, b T
		if (json.Unmarshal([]byte(bad), &a) == nil) != (decode([]byte(bad), &b) == nil) {
			t.Errorf("%T from %.60q: %v, encoding/json says otherwise", v, bad, decode([]byte(bad), &b))
		}
	}
}

// fill gives every field a value of its own.
func fill(v reflect.Value, how string, depth int) {
	text := map[string]string{"empty": "", "full": "plain text", "odd": "a\"<b>\\ \u2028 é\x00 \xff"}[how]
	switch x := v.Addr().Interface().(type) {
	case *time.Time:
		*x = time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)
		return
	case *network.Port:
		*x = network.MustParsePort("80/tcp")
		return
	case *network.HardwareAddr:
		*x = network.HardwareAddr{2, 0, 0, 0, 0, byte(depth)}
		return
	case interface{ UnmarshalText([]byte) error }:
		if how != "empty" {
			x.UnmarshalText([]byte("10.0.0.1"))
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fill(v.Field(i), how, depth+1)
			}
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), how, depth+1)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 0, 2))
		for range map[string]int{"full": 2, "odd": 1}[how] {
			e := reflect.New(v.Type().Elem()).Elem()
			fill(e, how, depth+1)
			v.Set(reflect.Append(v, e))
		}
	case reflect.Array:
		for i := range v.Len() {
			v.Index(i).SetUint(uint64(i + 3))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		if how != "empty" {
			k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			fill(k, how, depth+1)
			fill(e, how, depth+1)
			v.SetMapIndex(k, e)
		}
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		v.SetBool(how != "empty")
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(-7 * len(text)))
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uint:
		v.SetUint(uint64(7 * len(text)))
	default:
		panic(v.Type().String())
	}
}

func BenchmarkCodec(b *testing.B) {
	var r Record
	fill(reflect.ValueOf(&r).Elem(), "full", 0)
	text, _ := json.Marshal(&r)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		var back Record
		if err := decodeRecord(text, &back); err != nil || !strings.HasPrefix(back.Path, "plain") {
			b.Fatal(err)
		}
	}
}
