// Package dockerfile turns text into stages and typed instructions with their source
// positions. It does no I/O.
//
// The grammar is BuildKit's own (parser, instructions, shell, linter); this package
// adds what people see: one kind of error with its place and an excerpt, limits on
// hostile text, and the warnings.
package dockerfile

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"keg/internal/fault"
	"keg/internal/weakness"
)

// Limits on the text. The parser refuses longer lines too, but without their place.
const (
	MaxSize = 16 << 20
	maxLine = 64<<10 - 2
)

// File is a parsed Dockerfile. Evaluating it expands the commands in place, so one
// File serves one build.
type File struct {
	Name     string // as errors show it
	Text     []byte
	Stages   []instructions.Stage
	Args     []instructions.ArgCommand // before the first FROM
	Escape   rune
	Syntax   string // value of "# syntax=", "" without
	Warnings []Warning
	Strict   bool // "# check=error=true"

	lint *linter.Linter
}

// Warning is one finding of the linter.
type Warning struct {
	Rule, Message, URL string
	Line               int
	LastLine           int
	Excerpt            string // the lines that are meant, as an error shows them
}

func (w Warning) String() string {
	return fmt.Sprintf("%s: %s (line %d)", w.Rule, w.Message, w.Line)
}

// Parse reads a Dockerfile; name is what errors call it. All errors are *Error.
func Parse(text []byte, name string) (*File, error) {
	f := &File{Name: name, Text: text}
	if err := f.check(); err != nil {
		return nil, err
	}
	if err := f.directives(); err != nil {
		return nil, err
	}
	lint, err := f.linter()
	if err != nil {
		return nil, err
	}
	f.lint = lint
	tree, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, f.parseError(err)
	}
	f.Escape = tree.EscapeToken
	for _, w := range tree.Warnings {
		if w.URL == linter.RuleNoEmptyContinuation.URL {
			lint.Run(&linter.RuleNoEmptyContinuation, []parser.Range{*w.Location}, linter.RuleNoEmptyContinuation.Format())
		}
	}
	f.Stages, f.Args, err = instructions.Parse(tree.AST, lint)
	if err != nil {
		return nil, f.parseError(err)
	}
	if len(f.Stages) == 0 {
		return nil, f.errorAt(0, 0, fault.Invalidf("dockerfile contains no stages to build: it needs a FROM"))
	}
	return f, nil
}

// Lex returns a lexer for the file's escape character; one goroutine at a time uses it.
func (f *File) Lex() *shell.Lex { return shell.NewLex(f.Escape) }

// ParseTrigger reads an ONBUILD trigger as a command that stands at the given place.
func ParseTrigger(trigger string, at []parser.Range) (instructions.Command, error) {
	c, err := parseOne(trigger, at)
	if err != nil {
		return nil, fault.Invalidf("ONBUILD trigger %q of the base image: %w", trigger, err)
	}
	return c, nil
}

// ParseChange reads an instruction that stands alone (commit --change).
func ParseChange(text string) (instructions.Command, error) {
	c, err := parseOne(text, nil)
	if err != nil {
		return nil, fault.Invalidf("change %q: %w", text, err)
	}
	return c, nil
}

func parseOne(text string, at []parser.Range) (instructions.Command, error) {
	tree, err := parser.Parse(strings.NewReader(text))
	if err != nil {
		return nil, err
	}
	if len(tree.AST.Children) != 1 {
		return nil, fault.Invalidf("not a single instruction")
	}
	node := tree.AST.Children[0]
	if len(at) > 0 {
		node.StartLine, node.EndLine = at[0].Start.Line, at[len(at)-1].End.Line
	}
	return instructions.ParseCommand(node)
}

// check refuses text that no Dockerfile has, with its place.
func (f *File) check() error {
	if len(bytes.TrimSpace(f.Text)) == 0 {
		return f.errorAt(0, 0, fault.Invalidf("the Dockerfile cannot be empty"))
	}
	if len(f.Text) > MaxSize {
		return f.errorAt(0, 0, fault.Invalidf("the Dockerfile has %d bytes, more than the %d MiB allowed", len(f.Text), MaxSize>>20))
	}
	if weakness.Of("BL7") {
		return nil
	}
	if i := bytes.IndexByte(f.Text, 0); i >= 0 {
		line := 1 + bytes.Count(f.Text[:i], []byte("\n"))
		return f.errorAt(line, line, fault.Invalidf("dockerfile parse error on line %d: the line has a NUL byte: this is not a text file", line))
	}
	n := 0
	for line := range bytes.Lines(f.Text) {
		if n++; len(line) > maxLine {
			return f.errorAt(n, n, fault.Invalidf("dockerfile parse error on line %d: the line has %d bytes, more than the %d allowed", n, len(line), maxLine))
		}
	}
	return nil
}

// directives reads "# syntax". Only Docker's own frontend is known; another one is a
// program that would have to run.
func (f *File) directives() error {
	syntax, _, loc, ok := parser.DetectSyntax(f.Text)
	if !ok {
		return nil
	}
	f.Syntax = syntax
	name, _, _ := strings.Cut(syntax, "@")
	name = strings.TrimPrefix(name, "docker.io/")
	name, _, _ = strings.Cut(name, ":")
	switch name {
	case "docker/dockerfile", "docker/dockerfile-upstream", "docker/dockerfile-labs":
		return nil
	}
	return f.At(loc, fault.Unsupportedf("syntax %q is not supported: only docker/dockerfile is built in", syntax))
}

func (f *File) linter() (*linter.Linter, error) {
	option, _, loc, _ := parser.ParseDirective("check", f.Text)
	config, err := linter.ParseLintOptions(option)
	if err != nil {
		return nil, f.At(loc, fault.Invalidf("# check=%s: %w", option, err))
	}
	config.Warn = func(rule, _, url, message string, loc []parser.Range) {
		w := Warning{Rule: rule, Message: message, URL: url}
		w.Line, w.LastLine = span(loc)
		var at *Error
		if errors.As(f.At(loc, errors.New(message)), &at) {
			w.Excerpt = at.Excerpt
		}
		f.Warnings = append(f.Warnings, w)
	}
	f.Strict = config.ReturnAsError
	return linter.New(config), nil
}

// parseError places an error of the parser. Its message names the line once, in
// Docker's words.
func (f *File) parseError(err error) error {
	var le *parser.LocationError
	var loc []parser.Range
	if errors.As(err, &le) && len(le.Locations) > 0 {
		loc = le.Locations[len(le.Locations)-1]
	}
	msg := err.Error()
	start, _ := span(loc)
	if start > 0 && !strings.HasPrefix(msg, "dockerfile parse error") {
		err = fmt.Errorf("dockerfile parse error on line %d: %w", start, err)
	}
	return f.At(loc, fault.As(fault.Invalid, err))
}
