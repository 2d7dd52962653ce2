// Environment variables and labels: from flags, from files, from the caller.

package cli

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"
)

// checkEnv gives a variable without "=" the value that it has for the caller; one that
// the caller has not stays bare, which unsets it in the container.
func (a *app) checkEnv(s string) (string, error) {
	k, _, has := strings.Cut(s, "=")
	if k == "" {
		return "", fmt.Errorf("invalid environment variable: %s", s)
	}
	if !has {
		if v, ok := a.lookup(k); ok {
			return k + "=" + v, nil
		}
	}
	return s, nil
}

// readLines reads the files of --env-file and --label-file: KEY[=VALUE] a line, "#"
// comments, no quoting. A key without value is looked up, or left out.
func readLines(path string, lookup func(string) (string, bool)) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []string
	sc := bufio.NewScanner(f)
	for n := 1; sc.Scan(); n++ {
		b := sc.Bytes()
		if !utf8.Valid(b) {
			return nil, fmt.Errorf("invalid env file (%s): invalid utf8 bytes at line %d: %v", path, n, b)
		}
		if n == 1 {
			b = bytes.TrimPrefix(b, []byte("\ufeff"))
		}
		line := strings.TrimLeftFunc(string(b), unicode.IsSpace)
		if line == "" || line[0] == '#' {
			continue
		}
		key, _, has := strings.Cut(line, "=")
		switch {
		case key == "":
			return nil, fmt.Errorf("invalid env file (%s): no variable name on line '%s'", path, line)
		case strings.ContainsAny(key, " \t"):
			return nil, fmt.Errorf("invalid env file (%s): variable '%s' contains whitespaces", path, key)
		case has:
			out = append(out, line)
		case lookup != nil:
			if v, ok := lookup(key); ok {
				out = append(out, key+"="+v)
			}
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("invalid env file (%s): %v", path, err)
	}
	return out, nil
}

// readAll appends what flags say to what files say.
func readAll(files, flags []string, lookup func(string) (string, bool)) ([]string, error) {
	var out []string
	for _, f := range files {
		lines, err := readLines(f, lookup)
		if err != nil {
			return nil, err
		}
		out = append(out, lines...)
	}
	return append(out, flags...), nil
}
