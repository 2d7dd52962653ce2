// Untrusted text on a terminal.

package cli

import (
	"fmt"
	"io"
	"unicode/utf8"
)

// quoting escapes what a terminal would obey: C0 and C1 controls but newline and tab,
// bytes that are no UTF-8, and the marks that turn the direction of text round. Labels,
// image histories, answers of registries and container names come from strangers.
type quoting struct {
	w    io.Writer
	tail []byte // the beginning of a rune whose end is in the next Write
}

func (q *quoting) Write(p []byte) (int, error) {
	b := p
	if len(q.tail) > 0 {
		b = append(q.tail, p...)
		q.tail = nil
	}
	if n := len(b); n > 0 {
		for i := max(0, n-utf8.UTFMax+1); i < n; i++ {
			if utf8.RuneStart(b[i]) && !utf8.FullRune(b[i:]) {
				q.tail = append([]byte(nil), b[i:]...)
				b = b[:i]
				break
			}
		}
	}
	if _, err := q.w.Write(quote(b)); err != nil {
		return 0, err
	}
	return len(p), nil
}

func quote(b []byte) []byte {
	clean := true
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		if obeyed(r, n) {
			clean = false
			break
		}
		i += n
	}
	if clean {
		return b
	}
	out := make([]byte, 0, len(b)+16)
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		switch {
		case !obeyed(r, n):
			out = append(out, b[i:i+n]...)
		case r > 0xff && r != utf8.RuneError:
			out = fmt.Appendf(out, `\u%04x`, r)
		case r == utf8.RuneError:
			out = fmt.Appendf(out, `\x%02x`, b[i])
		default:
			out = fmt.Appendf(out, `\x%02x`, r)
		}
		i += n
	}
	return out
}

// obeyed: would a terminal act on it rather than show it?
func obeyed(r rune, size int) bool {
	switch {
	case r == '\n' || r == '\t':
		return false
	case r < 0x20, r >= 0x7f && r < 0xa0:
		return true
	case r == utf8.RuneError && size == 1:
		return true
	case r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0x200e, r == 0x200f, r == 0x061c:
		return true
	}
	return false
}

// shown is quote for one string, for progress lines that move the cursor themselves.
func shown(s string) string { return string(quote([]byte(s))) }
