// The POSIX shell of keg/shell, on mvdan.cc/sh. Tools that are not found as files run
// in a process of their own: the binary again, under the tool's name.
package builtin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/term"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"
)

// sh [-c COMMAND [NAME [ARG...]] | FILE [ARG...]], with -e, -u, -x, -i as usual.
func sh(name string, args []string) int {
	o, err := parseShellArgs(name, args)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return 2
	}
	interactive := o.interactive || o.command == nil && o.file == "" && term.IsTerminal(0)
	r, err := interp.New(
		interp.Interactive(interactive),
		interp.StdIO(os.Stdin, os.Stdout, os.Stderr),
		interp.Params(o.params()...),
		interp.ExecHandlers(ownTools),
	)
	if err != nil {
		return fail(name, err)
	}
	err = o.run(r, interactive)
	var status interp.ExitStatus
	switch {
	case errors.As(err, &status):
		return int(status)
	case err != nil:
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return 2
	}
	return 0
}

type shellArgs struct {
	set         []string // -e, -u, -x ...
	interactive bool
	command     *string
	file        string
	rest        []string
	name        string
}

func parseShellArgs(name string, args []string) (o shellArgs, err error) {
	o.name = name
	withCommand := false
	for len(args) > 0 && len(args[0]) > 1 && (args[0][0] == '-' || args[0][0] == '+') {
		a := args[0]
		args = args[1:]
		if a == "--" {
			break
		}
		for _, c := range a[1:] {
			switch c {
			case 'c':
				withCommand = true
			case 'i':
				o.interactive = true
			case 'l', 's':
			case 'e', 'u', 'x', 'f', 'n', 'a':
				o.set = append(o.set, a[:1]+string(c))
			default:
				return o, fmt.Errorf("%s: invalid option", a)
			}
		}
	}
	switch {
	case withCommand && len(args) == 0:
		return o, errors.New("-c: option requires an argument")
	case withCommand:
		o.command, args = &args[0], args[1:]
		if len(args) > 0 {
			args = args[1:] // $0
		}
	case len(args) > 0:
		o.file, args = args[0], args[1:]
	}
	o.rest = args
	return o, nil
}

func (o shellArgs) params() []string { return append(append(o.set, "--"), o.rest...) }

func (o shellArgs) run(r *interp.Runner, interactive bool) error {
	switch {
	case o.command != nil:
		return runScript(r, strings.NewReader(*o.command), o.name)
	case o.file != "":
		f, err := os.Open(o.file)
		if err != nil {
			return err
		}
		defer f.Close()
		return runScript(r, f, o.file)
	case interactive:
		return runInteractive(r)
	}
	return runScript(r, os.Stdin, o.name)
}

func runScript(r *interp.Runner, in io.Reader, name string) error {
	prog, err := syntax.NewParser(syntax.Variant(syntax.LangBash)).Parse(in, name)
	if err != nil {
		return err
	}
	return r.Run(context.Background(), prog)
}

func runInteractive(r *interp.Runner) error {
	signal.Ignore(syscall.SIGTERM)
	sigint := make(chan os.Signal, 1)
	signal.Notify(sigint, os.Interrupt)
	prompt := "# "
	if os.Geteuid() != 0 {
		prompt = "$ "
	}
	parser := syntax.NewParser(syntax.Variant(syntax.LangBash))
	var last error
	fmt.Print("/ " + prompt)
	for stmts, err := range parser.InteractiveSeq(os.Stdin) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return interp.ExitStatus(2)
		}
		if parser.Incomplete() {
			fmt.Print("> ")
			continue
		}
		for _, stmt := range stmts {
			last = runStmt(r, stmt, sigint)
			if r.Exited() {
				return last
			}
		}
		fmt.Print(r.Dir + " " + prompt)
	}
	fmt.Println()
	return last
}

// runStmt runs one statement; ctrl-C ends it, not the shell.
func runStmt(r *interp.Runner, stmt *syntax.Stmt, sigint <-chan os.Signal) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-sigint:
			cancel()
		case <-ctx.Done():
		}
	}()
	return r.Run(ctx, stmt)
}

// ownTools runs a tool that no file on PATH provides from this binary.
func ownTools(next interp.ExecHandlerFunc) interp.ExecHandlerFunc {
	return func(ctx context.Context, args []string) error {
		hc := interp.HandlerCtx(ctx)
		if _, err := interp.LookPathDir(hc.Dir, hc.Env, args[0]); err == nil || strings.Contains(args[0], "/") {
			return next(ctx, args)
		}
		if _, ok := applets(args[0]); !ok {
			return next(ctx, args)
		}
		return execSelf(ctx, hc, args)
	}
}
