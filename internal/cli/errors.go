// From errors to words and exit statuses.

package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"keg/internal/engine"
)

// Exit statuses that belong to the engine and not to a program in a container.
const (
	exitEngine = 125 // the engine could not do it
	exitUsage  = 125 // an unknown flag
	exitFormat = 64  // a --format that does not parse
)

// failure is an error of the command line itself: it is printed as it stands. All
// other errors come from the engine.
type failure struct {
	code int // 0 is 1
	msg  string
}

func (f *failure) Error() string { return f.msg }

func failf(format string, args ...any) error { return &failure{msg: fmt.Sprintf(format, args...)} }

// exit is the status of a program that ran; there is nothing to say about it.
type exit int

func (e exit) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// daemonPrefix is what scripts expect before the sentence of an engine.
const daemonPrefix = "Error response from daemon: "

// sentence is err as people see it.
func sentence(err error) string {
	var f *failure
	if errors.As(err, &f) {
		return f.msg
	}
	return daemonPrefix + err.Error()
}

// report prints err and returns the exit status.
func (a *app) report(ctx context.Context, err error) int {
	if err == nil {
		return 0
	}
	var code exit
	if errors.As(err, &code) {
		return int(code)
	}
	if sig, ok := terminated(ctx); ok && errors.Is(err, context.Canceled) {
		return 128 + int(sig)
	}
	var many *several
	if errors.As(err, &many) {
		for _, e := range many.errs {
			fmt.Fprintln(a.err, sentence(e))
		}
		return 1
	}
	if s := sentence(err); s != "" {
		fmt.Fprintln(a.err, s)
	}
	var f *failure
	var x *engine.ExitError
	switch {
	case errors.As(err, &f) && f.code != 0:
		return f.code
	case errors.As(err, &x) && x.Code != 0:
		return x.Code
	}
	return 1
}

// several are the errors of a command that works on many objects and goes on.
type several struct{ errs []error }

func (s *several) Error() string {
	var b strings.Builder
	for i, e := range s.errs {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(e.Error())
	}
	return b.String()
}

func (s *several) Unwrap() []error { return s.errs }

func join(errs []error) error {
	if len(errs) == 0 {
		return nil
	}
	return &several{errs}
}

// withHelp dresses an error of run and create as Docker does: the name of the program
// before it, a hint after it.
func (a *app) withHelp(err error, command string) error {
	var code exit
	if err == nil || errors.As(err, &code) || errors.Is(err, context.Canceled) {
		return err
	}
	f := &failure{
		code: exitEngine,
		msg:  fmt.Sprintf("%s: %s\n\nRun '%[1]s %[3]s --help' for more information", a.name, sentence(err), command),
	}
	var x *engine.ExitError
	switch {
	case errors.As(err, &x) && x.Code != 0 && x.Code != exitEngine:
		f.code = x.Code
	case command == "run":
		f.code = statusOf(err.Error())
	}
	return f
}

// statusOf is the exit status that docker run reads out of the words of an error, whatever it is that
// was not found or may not be touched.
func statusOf(words string) int {
	switch {
	case strings.Contains(words, "no such file or directory"):
		return 127
	case strings.Contains(words, "permission denied"), strings.Contains(words, "is a directory"):
		return 126
	}
	return exitEngine
}
