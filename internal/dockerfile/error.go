// Errors of a Dockerfile, with their place and an excerpt as Docker prints it.
package dockerfile

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// Error is what is wrong, and where.
type Error struct {
	File    string
	Line    int    // the first that is meant; 0 when the whole file is
	Last    int    // and the last
	Text    []byte // of the file
	Excerpt string // "Dockerfile:3\n-----...", ends with a newline; "" without a place
	Err     error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// At gives err the place loc in f. An error that has a place keeps it.
func (f *File) At(loc []parser.Range, err error) error {
	var e *Error
	if err == nil || errors.As(err, &e) {
		return err
	}
	start, end := span(loc)
	return f.errorAt(start, end, err)
}

func (f *File) errorAt(start, end int, err error) error {
	return &Error{File: f.Name, Line: start, Last: max(start, end), Text: f.Text, Excerpt: f.Excerpt(start, end), Err: err}
}

func span(loc []parser.Range) (start, end int) {
	for _, r := range loc {
		if start == 0 || r.Start.Line < start {
			start = r.Start.Line
		}
		end = max(end, r.Start.Line, r.End.Line)
	}
	return start, end
}

// Excerpt shows lines start to end with a little around them, as BuildKit does: four
// lines more for one line, two for several.
func (f *File) Excerpt(start, end int) string {
	lines := strings.Split(string(f.Text), "\n")
	if start < 1 || start > len(lines) {
		return ""
	}
	end = max(start, min(end, len(lines)))
	first, last := start, end
	pad := 2
	if start == end {
		pad = 4
	}
	for p := 0; p < pad; p++ {
		if first > 1 {
			first--
			p++
		}
		if last != len(lines) {
			last++
			p++
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d\n--------------------\n", f.Name, start)
	for i := first; i <= last; i++ {
		mark := "   "
		if start <= i && i <= end {
			mark = ">>>"
		}
		fmt.Fprintf(&b, " %3d | %s %s\n", i, mark, printable(lines[i-1]))
	}
	b.WriteString("--------------------\n")
	return b.String()
}

// Lines shows some lines of the file, each with its number.
func (f *File) Lines(numbers ...int) string {
	lines := strings.Split(string(f.Text), "\n")
	var b strings.Builder
	for _, n := range numbers {
		if n >= 1 && n <= len(lines) {
			fmt.Fprintf(&b, " %3d | %s\n", n, printable(lines[n-1]))
		}
	}
	return b.String()
}

// printable is a source line as it may be shown: a Dockerfile is foreign text, it
// must neither steer the terminal nor fill it.
func printable(s string) string {
	const limit = 500
	s = strings.TrimSuffix(s, "\r")
	cut := len(s) > limit
	if cut {
		s = s[:limit]
		for !utf8.ValidString(s) && len(s) > limit-utf8.UTFMax {
			s = s[:len(s)-1]
		}
	}
	s = strings.Map(func(r rune) rune {
		if r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
	if cut {
		s += "..."
	}
	return s
}
