package dockerfile

import "strings"

// Commands cuts a line of the shell into simple commands and these into words, as far as that can be done without
// being a shell: quotes are taken off, redirections left out, nothing is expanded.
func Commands(line string) (all [][]string) {
	var words []string
	var word strings.Builder
	begun, target := false, false // target: the word is the file of a redirection
	endWord := func() {
		if begun {
			redirection, open := redirects(word.String())
			if !redirection && !target {
				words = append(words, word.String())
			}
			target = open
		}
		word.Reset()
		begun = false
	}
	end := func() {
		endWord()
		if len(words) > 0 {
			all = append(all, words)
		}
		words = nil
	}
	quote := byte(0)
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case quote == '\'' && c != '\'', quote == '"' && c != '"' && c != '\\':
			word.WriteByte(c)
		case c == quote:
			quote = 0
		case c == '\\' && i+1 < len(line):
			if i++; line[i] != '\n' {
				word.WriteByte(line[i])
				begun = true
			}
		case quote == 0 && (c == '\'' || c == '"'):
			quote, begun = c, true
		case c == ' ' || c == '\t' || c == '\r':
			endWord()
		case c == '&' && strings.HasSuffix(word.String(), ">"):
			word.WriteByte(c)
		case c == ';' || c == '&' || c == '|' || c == '\n' || c == '(' || c == ')':
			end()
		case c == '#' && !begun:
			for i+1 < len(line) && line[i+1] != '\n' {
				i++
			}
		default:
			word.WriteByte(c)
			begun = true
		}
	}
	end()
	return all
}

// redirects tells a redirection, >file or 2>&1, and one whose file is the next word.
func redirects(w string) (is, open bool) {
	w = strings.TrimLeft(w, "0123456789")
	is = strings.HasPrefix(w, ">") || strings.HasPrefix(w, "<")
	return is, is && strings.HasSuffix(w, w[:1])
}
