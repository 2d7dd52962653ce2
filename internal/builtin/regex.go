// grep and sed, on Go's regular expressions.
package builtin

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// compile reads a POSIX expression: basic ones escape what extended ones (and Go's)
// write bare.
func compile(expr string, extended, fixed, fold bool) (*regexp.Regexp, error) {
	switch {
	case fixed:
		expr = regexp.QuoteMeta(expr)
	case !extended:
		expr = basic(expr)
	}
	if fold {
		expr = "(?i)" + expr
	}
	return regexp.Compile(expr)
}

// basic turns a basic expression into an extended one: \( \) \{ \} \| \+ \? lose their
// backslash, the bare characters gain one.
func basic(e string) string {
	var b strings.Builder
	inClass := false
	for i := 0; i < len(e); i++ {
		c := e[i]
		switch {
		case inClass:
			inClass = c != ']'
			b.WriteByte(c)
		case c == '\\' && i+1 < len(e):
			i++
			if !strings.ContainsRune("(){}|+?", rune(e[i])) {
				b.WriteByte('\\')
			}
			b.WriteByte(e[i])
		case c == '[':
			inClass = true
			b.WriteByte(c)
			for i+1 < len(e) && (e[i+1] == '^' || e[i+1] == ']') {
				i++
				b.WriteByte(e[i])
			}
		case strings.ContainsRune("(){}|+?", rune(c)), c == '*' && i == 0:
			b.WriteByte('\\')
			b.WriteByte(c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

type grepOptions struct {
	extended, fixed, fold, invert, number, count, quiet, names, recurse, only, noName, withName bool
}

func grep(name string, args []string) int {
	o := grepOptions{extended: name == "egrep", fixed: name == "fgrep"}
	var exprs []string
	f, ok := flags(name, args, func(f *flag.FlagSet) {
		for letter, p := range map[string]*bool{"E": &o.extended, "F": &o.fixed, "i": &o.fold, "v": &o.invert, "n": &o.number,
			"c": &o.count, "q": &o.quiet, "l": &o.names, "r": &o.recurse, "R": &o.recurse, "o": &o.only, "h": &o.noName, "H": &o.withName, "s": new(bool)} {
			f.BoolVar(p, letter, *p, "")
		}
		f.Func("e", "pattern", func(s string) error { exprs = append(exprs, s); return nil })
	})
	if !ok {
		return 2
	}
	files := f.Args()
	if len(exprs) == 0 {
		if len(files) == 0 {
			fmt.Fprintf(os.Stderr, "usage: %s [-EFivncqlroh] PATTERN [FILE...]\n", name)
			return 2
		}
		exprs, files = files[:1], files[1:]
	}
	var res []*regexp.Regexp
	for _, e := range exprs {
		re, err := compile(e, o.extended, o.fixed, o.fold)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: bad expression %q: %v\n", name, e, err)
			return 2
		}
		res = append(res, re)
	}
	var err error
	if o.recurse {
		if files, err = walkFiles(files); err != nil {
			fail(name, err)
		}
	}
	showName := (len(files) > 1 || o.recurse || o.withName) && !o.noName
	found, code := false, 0
	out := printing(func(w *bufio.Writer) int {
		code = inputs(name, files, func(file string, r io.Reader) error {
			n, err := o.file(w, file, r, res, showName)
			found = found || n > 0
			return err
		})
		return 0
	})
	switch {
	case code != 0 || out != 0:
		return 2
	case found:
		return 0
	}
	return 1
}

func walkFiles(roots []string) (files []string, err error) {
	if len(roots) == 0 {
		roots = []string{"."}
	}
	for _, root := range roots {
		err = errors.Join(err, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				files = append(files, p)
			}
			return err
		}))
	}
	return files, err
}

// file prints the matches of one file and returns how many lines matched.
func (o grepOptions) file(w io.Writer, file string, r io.Reader, res []*regexp.Regexp, showName bool) (n int, err error) {
	prefix := ""
	if showName {
		prefix = file + ":"
	}
	line := 0
	err = lines(r, func(s string) bool {
		line++
		var hits []string
		for _, re := range res {
			hits = append(hits, re.FindAllString(s, -1)...)
		}
		if (hits != nil) == o.invert {
			return true
		}
		n++
		p := prefix
		if o.number {
			p += strconv.Itoa(line) + ":"
		}
		switch {
		case o.quiet || o.names:
			return false
		case o.count:
		case o.only:
			for _, h := range hits {
				fmt.Fprintln(w, p+h)
			}
		default:
			fmt.Fprintln(w, p+s)
		}
		return true
	})
	if o.count {
		fmt.Fprintf(w, "%s%d\n", prefix, n)
	}
	if o.names && n > 0 {
		fmt.Fprintln(w, file)
	}
	return n, err
}

// sed [-n] [-E] [-i] SCRIPT | -e SCRIPT [FILE...], with the commands s, p, d and q on
// addresses N, $, /re/ and ranges of them.
func sed(name string, args []string) int {
	var quiet, extended, inPlace bool
	var scripts []string
	f, ok := flags(name, args, func(f *flag.FlagSet) {
		f.BoolVar(&quiet, "n", false, "")
		f.BoolVar(&extended, "E", false, "")
		f.BoolVar(&extended, "r", false, "")
		f.BoolVar(&inPlace, "i", false, "")
		f.Func("e", "script", func(s string) error { scripts = append(scripts, s); return nil })
	})
	if !ok {
		return 2
	}
	files := f.Args()
	if len(scripts) == 0 {
		if len(files) == 0 {
			fmt.Fprintf(os.Stderr, "usage: %s [-nEi] SCRIPT [FILE...]\n", name)
			return 2
		}
		scripts, files = files[:1], files[1:]
	}
	prog, err := parseSed(strings.Join(scripts, "\n"), extended)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return 2
	}
	if !inPlace {
		return printing(func(w *bufio.Writer) int {
			return inputs(name, files, func(_ string, r io.Reader) error { return prog.run(w, r, quiet) })
		})
	}
	return inputs(name, files, func(file string, r io.Reader) error {
		var b bytes.Buffer
		if err := prog.run(&b, r, quiet); err != nil {
			return err
		}
		st, err := os.Stat(file)
		if err != nil {
			return err
		}
		return os.WriteFile(file, b.Bytes(), st.Mode())
	})
}

type sedProgram []sedCommand

type sedCommand struct {
	from, to      *sedAddress
	negate        bool
	verb          byte
	re            *regexp.Regexp
	with          string
	global, print bool
}

type sedAddress struct {
	line int // -1: the last
	re   *regexp.Regexp
}

func (a *sedAddress) matches(n int, last bool, s string) bool {
	switch {
	case a.re != nil:
		return a.re.MatchString(s)
	case a.line < 0:
		return last
	}
	return a.line == n
}

func parseSed(script string, extended bool) (prog sedProgram, err error) {
	rest := script
	for {
		rest = strings.TrimLeft(rest, " \t\n;")
		if rest == "" {
			return prog, nil
		}
		var c sedCommand
		if c.from, rest, err = parseAddress(rest, extended); err != nil {
			return nil, err
		}
		if c.from != nil && strings.HasPrefix(rest, ",") {
			if c.to, rest, err = parseAddress(rest[1:], extended); err != nil {
				return nil, err
			}
		}
		if rest = strings.TrimLeft(rest, " "); strings.HasPrefix(rest, "!") {
			c.negate, rest = true, rest[1:]
		}
		if rest == "" {
			return nil, errors.New("missing command")
		}
		c.verb, rest = rest[0], rest[1:]
		switch c.verb {
		case 'p', 'd', 'q':
		case 's':
			if rest, err = c.parseSubstitution(rest, extended); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("unknown command: %q", c.verb)
		}
		prog = append(prog, c)
	}
}

func parseAddress(s string, extended bool) (*sedAddress, string, error) {
	switch {
	case strings.HasPrefix(s, "$"):
		return &sedAddress{line: -1}, s[1:], nil
	case strings.HasPrefix(s, "/"):
		expr, rest, ok := until(s[1:], '/')
		if !ok {
			return nil, s, errors.New("unterminated address")
		}
		re, err := compile(expr, extended, false, false)
		return &sedAddress{re: re}, rest, err
	}
	end := len(s) - len(strings.TrimLeft(s, "0123456789"))
	if end == 0 {
		return nil, s, nil
	}
	n, err := strconv.Atoi(s[:end])
	return &sedAddress{line: n}, s[end:], err
}

func (c *sedCommand) parseSubstitution(s string, extended bool) (rest string, err error) {
	if s == "" {
		return "", errors.New("unterminated `s' command")
	}
	delim := s[0]
	expr, s, ok := until(s[1:], delim)
	if !ok {
		return "", errors.New("unterminated `s' command")
	}
	with, s, ok := until(s, delim)
	if !ok {
		return "", errors.New("unterminated `s' command")
	}
	fold := false
	for s != "" && strings.ContainsRune("gpiI", rune(s[0])) {
		switch s[0] {
		case 'g':
			c.global = true
		case 'p':
			c.print = true
		default:
			fold = true
		}
		s = s[1:]
	}
	c.re, err = compile(expr, extended, false, fold)
	c.with = replacement(with)
	return s, err
}

// until cuts at the next unescaped delim; an escaped delim loses its backslash.
func until(s string, delim byte) (part, rest string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
			if s[i] != delim {
				b.WriteByte('\\')
			}
			b.WriteByte(s[i])
		case s[i] == delim:
			return b.String(), s[i+1:], true
		default:
			b.WriteByte(s[i])
		}
	}
	return "", "", false
}

// replacement turns sed's & and \1 into Go's ${0} and ${1}.
func replacement(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '$':
			b.WriteString("$$")
		case c == '&':
			b.WriteString("${0}")
		case c == '\\' && i+1 < len(s):
			i++
			switch d := s[i]; {
			case d >= '0' && d <= '9':
				b.WriteString("${" + string(d) + "}")
			case d == 'n':
				b.WriteByte('\n')
			case d == 't':
				b.WriteByte('\t')
			default:
				b.WriteByte(d)
			}
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

func (p sedProgram) run(w io.Writer, r io.Reader, quiet bool) error {
	inRange := make([]bool, len(p))
	n := 0
	var pending *string
	quit := false
	step := func(s string, last bool) {
		n++
		for i := range p {
			c := &p[i]
			if c.selects(&inRange[i], n, last, s) == c.negate {
				continue
			}
			switch c.verb {
			case 'd':
				return
			case 'p':
				fmt.Fprintln(w, s)
			case 'q':
				quit = true
			case 's':
				var changed bool
				if s, changed = c.substitute(s); changed && c.print {
					fmt.Fprintln(w, s)
				}
			}
		}
		if !quiet {
			fmt.Fprintln(w, s)
		}
	}
	// One line of look-ahead: "$" needs to know the last one.
	err := lines(r, func(s string) bool {
		if pending != nil {
			step(*pending, false)
		}
		pending = &s
		return !quit
	})
	if pending != nil && !quit {
		step(*pending, true)
	}
	return err
}

func (c *sedCommand) selects(in *bool, n int, last bool, s string) bool {
	switch {
	case c.from == nil:
		return true
	case c.to == nil:
		return c.from.matches(n, last, s)
	case *in:
		*in = !c.to.matches(n, last, s) && (c.to.re != nil || c.to.line < 0 || n < c.to.line)
		return true
	case c.from.matches(n, last, s):
		*in = c.to.re != nil || c.to.line < 0 || n < c.to.line
		return true
	}
	return false
}

func (c *sedCommand) substitute(s string) (string, bool) {
	if c.global {
		return c.re.ReplaceAllString(s, c.with), c.re.MatchString(s)
	}
	m := c.re.FindStringSubmatchIndex(s)
	if m == nil {
		return s, false
	}
	return s[:m[0]] + string(c.re.ExpandString(nil, c.with, s, m)) + s[m[1]:], true
}
