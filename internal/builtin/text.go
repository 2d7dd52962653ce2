// Small tools that work on lines of text.
package builtin

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// inputs calls f for each named file, or for standard input; it returns the exit code.
func inputs(name string, files []string, f func(file string, r io.Reader) error) int {
	if len(files) == 0 {
		files = []string{"-"}
	}
	code := 0
	for _, p := range files {
		if err := input(p, f); err != nil {
			code = fail(name, err)
		}
	}
	return code
}

func input(p string, f func(string, io.Reader) error) error {
	if p == "-" {
		return f(p, os.Stdin)
	}
	r, err := os.Open(p)
	if err != nil {
		return err
	}
	defer r.Close()
	return f(p, r)
}

// lines calls f for each line without its end; f returns false to stop.
func lines(r io.Reader, f func(string) bool) error {
	br := bufio.NewReaderSize(r, 64<<10)
	for {
		s, err := br.ReadString('\n')
		if s != "" && !f(strings.TrimSuffix(s, "\n")) {
			return nil
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// printing buffers standard output for one tool.
func printing(f func(w *bufio.Writer) int) int {
	w := bufio.NewWriterSize(os.Stdout, 64<<10)
	code := f(w)
	if w.Flush() != nil {
		return 1
	}
	return code
}

func headTail(name string, args []string) int {
	if len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' && args[0][1] >= '0' && args[0][1] <= '9' {
		args = append([]string{"-n", args[0][1:]}, args[1:]...)
	}
	n, bytes := "10", -1
	f, ok := flags(name, args, func(f *flag.FlagSet) {
		f.StringVar(&n, "n", n, "lines")
		f.IntVar(&bytes, "c", bytes, "bytes")
	})
	if !ok {
		return 2
	}
	count, err := strconv.Atoi(strings.TrimPrefix(n, "+"))
	if err != nil {
		return fail(name, fmt.Errorf("invalid number of lines: %q", n))
	}
	return printing(func(w *bufio.Writer) int {
		return inputs(name, f.Args(), func(file string, r io.Reader) error {
			if f.NArg() > 1 {
				fmt.Fprintf(w, "==> %s <==\n", file)
			}
			switch {
			case bytes >= 0 && name == "head":
				_, err := io.Copy(w, io.LimitReader(r, int64(bytes)))
				return err
			case bytes >= 0:
				b, err := io.ReadAll(r)
				w.Write(b[max(0, len(b)-bytes):])
				return err
			case name == "head":
				return lines(r, func(s string) bool {
					if count <= 0 {
						return false
					}
					count--
					fmt.Fprintln(w, s)
					return count > 0
				})
			}
			return tailLines(w, r, count, strings.HasPrefix(n, "+"))
		})
	})
}

func tailLines(w io.Writer, r io.Reader, count int, from bool) error {
	var keep []string
	i := 0
	err := lines(r, func(s string) bool {
		i++
		if from {
			if i >= count {
				fmt.Fprintln(w, s)
			}
			return true
		}
		if keep = append(keep, s); len(keep) > 2*count+1024 {
			keep = slices.Clone(keep[len(keep)-count:])
		}
		return true
	})
	for _, s := range keep[max(0, len(keep)-count):] {
		fmt.Fprintln(w, s)
	}
	return err
}

func wc(name string, args []string) int {
	var l, wd, c bool
	f, ok := flags(name, args, func(f *flag.FlagSet) {
		f.BoolVar(&l, "l", false, "lines")
		f.BoolVar(&wd, "w", false, "words")
		f.BoolVar(&c, "c", false, "bytes")
	})
	if !ok {
		return 2
	}
	if !l && !wd && !c {
		l, wd, c = true, true, true
	}
	show := func(n [3]int, file string) {
		var out []string
		for i, on := range []bool{l, wd, c} {
			if on {
				out = append(out, strconv.Itoa(n[i]))
			}
		}
		if file != "-" {
			out = append(out, file)
		}
		fmt.Println(strings.Join(out, " "))
	}
	var total [3]int
	code := inputs(name, f.Args(), func(file string, r io.Reader) error {
		n, err := count(r)
		for i := range n {
			total[i] += n[i]
		}
		show(n, file)
		return err
	})
	if f.NArg() > 1 {
		show(total, "total")
	}
	return code
}

// count returns the lines, words and bytes of r.
func count(r io.Reader) (n [3]int, err error) {
	br := bufio.NewReaderSize(r, 64<<10)
	inWord := false
	for {
		b, err := br.ReadByte()
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		n[2]++
		if b == '\n' {
			n[0]++
		}
		space := unicode.IsSpace(rune(b))
		if !space && !inWord {
			n[1]++
		}
		inWord = !space
	}
}

func sortLines(name string, args []string) int {
	var reverse, numeric, unique bool
	f, ok := flags(name, args, func(f *flag.FlagSet) {
		f.BoolVar(&reverse, "r", false, "reverse")
		f.BoolVar(&numeric, "n", false, "by number")
		f.BoolVar(&unique, "u", false, "without repetitions")
	})
	if !ok {
		return 2
	}
	var all []string
	code := inputs(name, f.Args(), func(_ string, r io.Reader) error {
		return lines(r, func(s string) bool { all = append(all, s); return true })
	})
	slices.SortStableFunc(all, func(a, b string) int {
		c := strings.Compare(a, b)
		if numeric {
			if x, y := leadingNumber(a), leadingNumber(b); x != y {
				c = 1
				if x < y {
					c = -1
				}
			}
		}
		if reverse {
			return -c
		}
		return c
	})
	if unique {
		all = slices.Compact(all)
	}
	return printing(func(w *bufio.Writer) int {
		for _, s := range all {
			fmt.Fprintln(w, s)
		}
		return code
	})
}

func leadingNumber(s string) float64 {
	s = strings.TrimSpace(s)
	end := len(s) - len(strings.TrimLeft(s, "+-0123456789."))
	n, _ := strconv.ParseFloat(s[:end], 64)
	return n
}

func uniq(name string, args []string) int {
	var withCount bool
	f, ok := flags(name, args, func(f *flag.FlagSet) { f.BoolVar(&withCount, "c", false, "count") })
	if !ok {
		return 2
	}
	return printing(func(w *bufio.Writer) int {
		last, n := "", 0
		flush := func() {
			switch {
			case n > 0 && withCount:
				fmt.Fprintf(w, "%7d %s\n", n, last)
			case n > 0:
				fmt.Fprintln(w, last)
			}
		}
		code := inputs(name, f.Args(), func(_ string, r io.Reader) error {
			return lines(r, func(s string) bool {
				if n > 0 && s == last {
					n++
					return true
				}
				flush()
				last, n = s, 1
				return true
			})
		})
		flush()
		return code
	})
}

func cut(name string, args []string) int {
	delim, list, chars := "\t", "", ""
	f, ok := flags(name, args, func(f *flag.FlagSet) {
		f.StringVar(&delim, "d", delim, "delimiter")
		f.StringVar(&list, "f", "", "fields")
		f.StringVar(&chars, "c", "", "characters")
	})
	if !ok || (list == "") == (chars == "") {
		fmt.Fprintf(os.Stderr, "usage: %s -f LIST [-d DELIM] | -c LIST [FILE...]\n", name)
		return 2
	}
	pick, err := ranges(list + chars)
	if err != nil {
		return fail(name, err)
	}
	return printing(func(w *bufio.Writer) int {
		return inputs(name, f.Args(), func(_ string, r io.Reader) error {
			return lines(r, func(s string) bool {
				sep := delim
				if chars != "" {
					sep = ""
				}
				fields := strings.Split(s, sep)
				if len(fields) == 1 && chars == "" {
					fmt.Fprintln(w, s)
					return true
				}
				var out []string
				for i, f := range fields {
					if pick(i + 1) {
						out = append(out, f)
					}
				}
				fmt.Fprintln(w, strings.Join(out, sep))
				return true
			})
		})
	})
}

// ranges reads 1,3-5,7- into a predicate.
func ranges(list string) (func(int) bool, error) {
	var rs [][2]int
	for part := range strings.SplitSeq(list, ",") {
		lo, hi, dash := strings.Cut(part, "-")
		r := [2]int{1, 1 << 30}
		var err error
		if lo != "" {
			if r[0], err = strconv.Atoi(lo); err != nil {
				return nil, fmt.Errorf("invalid list %q", list)
			}
		}
		if !dash {
			r[1] = r[0]
		} else if hi != "" {
			if r[1], err = strconv.Atoi(hi); err != nil {
				return nil, fmt.Errorf("invalid list %q", list)
			}
		}
		rs = append(rs, r)
	}
	return func(i int) bool {
		return slices.ContainsFunc(rs, func(r [2]int) bool { return i >= r[0] && i <= r[1] })
	}, nil
}

func tr(name string, args []string) int {
	del := len(args) > 0 && args[0] == "-d"
	if del {
		args = args[1:]
	}
	if len(args) < 1 || !del && len(args) < 2 {
		fmt.Fprintf(os.Stderr, "usage: %s [-d] SET1 [SET2]\n", name)
		return 2
	}
	from := charSet(args[0])
	var to []rune
	if !del {
		if to = charSet(args[1]); len(to) == 0 {
			return fail(name, fmt.Errorf("SET2 is empty"))
		}
	}
	return printing(func(w *bufio.Writer) int {
		r := bufio.NewReader(os.Stdin)
		for {
			c, _, err := r.ReadRune()
			if err != nil {
				return 0
			}
			i := slices.Index(from, c)
			switch {
			case i < 0:
				w.WriteRune(c)
			case !del:
				w.WriteRune(to[min(i, len(to)-1)])
			}
		}
	})
}

func charSet(s string) (set []rune) {
	s = strings.NewReplacer(`\n`, "\n", `\t`, "\t", `\\`, `\`, "[:upper:]", "A-Z", "[:lower:]", "a-z", "[:digit:]", "0-9",
		"[:space:]", " \t\n\r\v\f").Replace(s)
	rs := []rune(s)
	for i := 0; i < len(rs); i++ {
		if i+2 < len(rs) && rs[i+1] == '-' && rs[i+2] >= rs[i] {
			for c := rs[i]; c <= rs[i+2]; c++ {
				set = append(set, c)
			}
			i += 2
			continue
		}
		set = append(set, rs[i])
	}
	return set
}

func tee(name string, args []string) int {
	mode := os.O_TRUNC
	if len(args) > 0 && args[0] == "-a" {
		mode, args = os.O_APPEND, args[1:]
	}
	ws := []io.Writer{os.Stdout}
	for _, p := range args {
		f, err := os.OpenFile(p, os.O_WRONLY|os.O_CREATE|mode, 0o666)
		if err != nil {
			return fail(name, err)
		}
		defer f.Close()
		ws = append(ws, f)
	}
	if _, err := io.Copy(io.MultiWriter(ws...), os.Stdin); err != nil {
		return fail(name, err)
	}
	return 0
}

func seq(name string, args []string) int {
	n := []float64{1, 1, 0}
	var err error
	for i, a := range args {
		var v float64
		if v, err = strconv.ParseFloat(a, 64); err != nil {
			return fail(name, err)
		}
		switch {
		case len(args) == 1 || i == len(args)-1:
			n[2] = v
		case i == 0:
			n[0] = v
		default:
			n[1] = v
		}
	}
	if len(args) == 0 || len(args) > 3 || n[1] == 0 {
		fmt.Fprintf(os.Stderr, "usage: %s [FIRST [STEP]] LAST\n", name)
		return 2
	}
	return printing(func(w *bufio.Writer) int {
		for i := 0; ; i++ {
			v := n[0] + float64(i)*n[1]
			if n[1] > 0 && v > n[2] || n[1] < 0 && v < n[2] {
				return 0
			}
			fmt.Fprintln(w, strconv.FormatFloat(v, 'f', -1, 64))
		}
	})
}

func yes(_ string, args []string) int {
	line := "y"
	if len(args) > 0 {
		line = strings.Join(args, " ")
	}
	w := bufio.NewWriterSize(os.Stdout, 64<<10)
	for {
		if _, err := w.WriteString(line + "\n"); err != nil {
			return 1
		}
	}
}
