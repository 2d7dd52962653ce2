// keg build --on-error shell.

package cli

import (
	"context"
	"fmt"
	"path"

	"keg/internal/builder"
	"keg/internal/engine"
	"keg/internal/monitor"
)

// lookAround gives the user a shell in the state that a RUN left, and returns why it could not.
func (a *app) lookAround(ctx context.Context, f engine.FailedStep, show *builder.Printer) (why string) {
	const none = "--on-error shell: no shell was opened: "
	if !a.inTTY {
		return none + "standard input is no terminal"
	}
	show.Pause()
	defer show.Resume()
	fmt.Fprintf(a.rawErr, "\n%s: %v\nThis is %s in the state that it left, as user %s in %s. What you change is thrown away; leave with exit.\n",
		oneLine(f.Name), f.Err, oneLine(path.Base(f.Shell)), oneLine(firstOf(f.Step.User, "root")), oneLine(firstOf(f.Step.Dir, "/")))
	s, err := a.session(sessionOptions{stdin: true, stdout: true, tty: true})
	if err != nil {
		return none + err.Error()
	}
	defer s.close()
	if !a.outTTY {
		s.stdio.Out = a.rawErr
	}
	s.stdio.Stay = true // ctrl-p belongs to the shell
	var size monitor.Size
	size.Rows, size.Cols, _ = a.size()
	if _, err = f.Open(ctx, size, s.stdio); err != nil && ctx.Err() == nil {
		return none + err.Error()
	}
	return ""
}
