package container

// The text of a log record: JSON strings written and read without reflection, since
// every byte that a container prints passes here.

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// appendText appends p as the inside of a JSON string, escaped as Docker's json-file
// does it; bytes that are not UTF-8 become U+FFFD.
func appendText(dst, p []byte) []byte {
	start := 0
	for i := 0; i < len(p); {
		c := p[i]
		if c < utf8.RuneSelf {
			if c >= 0x20 && c != '\\' && c != '"' && c != '<' && c != '>' && c != '&' {
				i++
				continue
			}
			dst = append(dst, p[start:i]...)
			dst = appendEscape(dst, c)
			i++
			start = i
			continue
		}
		r, n := utf8.DecodeRune(p[i:])
		if r == utf8.RuneError && n == 1 {
			dst = append(dst, p[start:i]...)
			dst = append(dst, `\ufffd`...)
			start = i + n
		} else if r == '\u2028' || r == '\u2029' {
			dst = append(dst, p[start:i]...)
			dst = append(dst, `\u202`...)
			dst = append(dst, hexDigits[r&0xf])
			start = i + n
		}
		i += n
	}
	return append(dst, p[start:]...)
}

func appendEscape(dst []byte, c byte) []byte {
	switch c {
	case '\\', '"':
		return append(dst, '\\', c)
	case '\n':
		return append(dst, '\\', 'n')
	case '\r':
		return append(dst, '\\', 'r')
	case '\t':
		return append(dst, '\\', 't')
	}
	return append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&0xf])
}

// parseEntry decodes one record as this package writes it, and any other writer's JSON
// through the general decoder. e.Line points into line or scratch.
func parseEntry(line []byte, e *LogEntry, scratch *[]byte) error {
	if parseOwn(line, e, scratch) {
		return nil
	}
	var j struct {
		Log    string    `json:"log"`
		Stream string    `json:"stream"`
		Time   time.Time `json:"time"`
	}
	if err := json.Unmarshal(line, &j); err != nil {
		return fmt.Errorf("parse log record: %w", err)
	}
	setEntry(e, []byte(j.Log), j.Stream, j.Time)
	return nil
}

func setEntry(e *LogEntry, text []byte, stream string, t time.Time) {
	rest, whole := bytes.CutSuffix(text, []byte{'\n'})
	*e = LogEntry{Stream: stream, Time: t, Line: rest, Partial: !whole}
}

func parseOwn(line []byte, e *LogEntry, scratch *[]byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte(`{"log":"`))
	if !ok {
		return false
	}
	// The text's own quotes are escaped, so the last separator is the real one.
	i := bytes.LastIndex(rest, []byte(`","stream":"std`))
	if i < 0 {
		return false
	}
	text, tail := rest[:i], rest[i+len(`","stream":"std`):]
	stream := "stdout"
	switch {
	case bytes.HasPrefix(tail, []byte(`out","time":"`)):
	case bytes.HasPrefix(tail, []byte(`err","time":"`)):
		stream = "stderr"
	default:
		return false
	}
	stamp, ok := bytes.CutSuffix(tail[len(`out","time":"`):], []byte(`"}`))
	if !ok {
		return false
	}
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return false
	}
	if text, ok = unescape(text, scratch); !ok {
		return false
	}
	setEntry(e, text, stream, t)
	return true
}

// unescape decodes the inside of a JSON string, false for what appendText does not write.
func unescape(p []byte, scratch *[]byte) ([]byte, bool) {
	i := bytes.IndexByte(p, '\\')
	if i < 0 {
		return p, true
	}
	out := append((*scratch)[:0], p[:i]...)
	defer func() { *scratch = out }()
	for i < len(p) {
		if p[i] != '\\' {
			out = append(out, p[i])
			i++
			continue
		}
		if i+1 >= len(p) {
			return nil, false
		}
		switch p[i+1] {
		case '\\', '"':
			out = append(out, p[i+1])
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r, ok := hex4(p[i+2:])
			if !ok || r >= 0xd800 && r < 0xe000 {
				return nil, false
			}
			out = utf8.AppendRune(out, r)
			i += 4
		default:
			return nil, false
		}
		i += 2
	}
	return out, true
}

func hex4(p []byte) (r rune, ok bool) {
	if len(p) < 4 {
		return 0, false
	}
	for _, c := range p[:4] {
		d := bytes.IndexByte([]byte(hexDigits), c|0x20)
		if d < 0 {
			return 0, false
		}
		r = r<<4 | rune(d)
	}
	return r, true
}
