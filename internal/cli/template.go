// --format: Go templates with Docker's functions, tables, JSON.

package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"
	"text/template"
	"unicode"
	"unicode/utf8"
)

const formatHelp = `Format output using a custom template:
'table':            Print output in table format with column headers (default)
'table TEMPLATE':   Print output in table format using the given Go template
'json':             Print in JSON format
'TEMPLATE':         Print output using the given Go template`

const inspectFormatHelp = `Format output using a custom template:
'json':             Print in JSON format
'TEMPLATE':         Print output using the given Go template`

func functions() template.FuncMap {
	return template.FuncMap{
		"json":     templateJSON,
		"split":    strings.Split,
		"join":     templateJoin,
		"title":    templateTitle,
		"lower":    strings.ToLower,
		"upper":    strings.ToUpper,
		"pad":      templatePad,
		"truncate": templateTruncate,
	}
}

// headerFunctions leave the name of a column as it is; only pad still pads.
func headerFunctions() template.FuncMap {
	same := func(s string) string { return s }
	return template.FuncMap{
		"json": same, "title": same, "lower": same, "upper": same,
		"split":    func(s, _ string) string { return s },
		"join":     func(s, _ string) string { return s },
		"truncate": func(s string, _ int) string { return s },
	}
}

func templateJSON(v any) (string, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return "", err
	}
	return strings.TrimSpace(b.String()), nil
}

// templateTitle upper-cases the first letter of each word.
func templateTitle(s string) string {
	prev := ' '
	return strings.Map(func(r rune) rune {
		start := !unicode.IsLetter(prev) && !unicode.IsDigit(prev) && prev != '_' && prev != '\''
		prev = r
		if start {
			return unicode.ToTitle(r)
		}
		return r
	}, s)
}

func templatePad(s string, before, after int) string {
	if s == "" {
		return s
	}
	return strings.Repeat(" ", before) + s + strings.Repeat(" ", after)
}

func templateTruncate(s string, n int) string {
	if len(s) < n {
		return s
	}
	return s[:n]
}

func templateJoin(elems any, sep string) (string, error) {
	if ss, ok := elems.([]string); ok || elems == nil {
		return strings.Join(ss, sep), nil
	}
	var out []string
	switch v := reflect.ValueOf(elems); v.Kind() {
	case reflect.Array, reflect.Slice:
		for i := range v.Len() {
			out = append(out, fmt.Sprint(v.Index(i).Interface()))
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			out = append(out, fmt.Sprint(v.MapIndex(k).Interface()))
		}
		slices.Sort(out)
	default:
		return "", fmt.Errorf("expected slice, got %T", elems)
	}
	return strings.Join(out, sep), nil
}

// header names the columns of a listing by field.
type header map[string]string

// Label is the header of {{.Label "com.example.some-thing"}}: "some thing".
func (header) Label(name string) string {
	n := name[strings.LastIndexByte(name, '.')+1:]
	return strings.NewReplacer("-", " ", "_", " ").Replace(n)
}

// listing prints rows by a format. A row's methods are the fields of templates.
type listing struct {
	format string // "table", "table TEMPLATE", "json" or "TEMPLATE"
	header header
}

func isTable(format string) bool { return strings.HasPrefix(format, "table") }

func (l listing) parse() (*template.Template, error) {
	src := l.format
	switch {
	case src == "json":
		src = "{{json .}}"
	case isTable(src):
		src = strings.TrimPrefix(src, "table")
	}
	src = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(strings.Trim(src, " "))
	t, err := template.New("").Funcs(functions()).Parse(src)
	if err != nil {
		return nil, failf("template parsing error: %v", err)
	}
	return t, nil
}

// writeRows prints all rows; nothing is printed when one does not fit the template.
func writeRows[T any](w io.Writer, l listing, rows []T) error {
	t, err := l.parse()
	if err != nil {
		return err
	}
	var b bytes.Buffer
	for _, r := range rows {
		if err := t.Execute(&b, r); err != nil {
			return failf("template parsing error: %v", err)
		}
		b.WriteByte('\n')
	}
	if !isTable(l.format) {
		_, err = b.WriteTo(w)
		return err
	}
	var h bytes.Buffer
	if err := t.Funcs(headerFunctions()).Execute(&h, l.header); err != nil {
		return failf("template parsing error: %v", err)
	}
	var table bytes.Buffer
	tw := tabwriter.NewWriter(&table, 10, 1, 3, ' ', 0)
	fmt.Fprintf(tw, "%s\n", widen(h.Bytes()))
	_, _ = tw.Write(widen(b.Bytes()))
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err = w.Write(bytes.ReplaceAll(table.Bytes(), []byte(filler), nil))
	return err
}

// filler stands after a character that takes two columns while tabwriter, which counts
// characters, lays out a table. It is a noncharacter: no text holds it.
const filler = "\ufdd0"

func widen(b []byte) []byte {
	if !bytes.ContainsFunc(b, func(r rune) bool { return runeWidth(r) > 1 }) {
		return b
	}
	var out []byte
	for _, r := range string(b) {
		out = utf8.AppendRune(out, r)
		if runeWidth(r) > 1 {
			out = append(out, filler...)
		}
	}
	return out
}

// marshalRow is {{json .}} of a row: its fields by name, sorted.
func marshalRow(row any) ([]byte, error) {
	m := map[string]any{}
	v := reflect.ValueOf(row)
	for i := range v.NumMethod() {
		f := v.Method(i).Type()
		if f.NumIn() == 0 && f.NumOut() == 1 {
			m[v.Type().Method(i).Name] = v.Method(i).Call(nil)[0].Interface()
		}
	}
	return json.Marshal(m)
}

// parseObjectTemplate is for the formats of inspect, info, version and events, which
// have no tables.
func parseObjectTemplate(name, format string) (*template.Template, error) {
	if format == "json" {
		format = "{{json .}}"
	}
	t, err := template.New(name).Funcs(functions()).Parse(format)
	if err != nil {
		return nil, &failure{code: exitFormat, msg: fmt.Sprintf("template parsing error: %v", err)}
	}
	return t, nil
}
