package builtin

import (
	"context"
	"errors"
	"os/exec"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/interp"
)

// execSelf starts this binary under the name args[0] with the shell's streams,
// directory and exported variables.
func execSelf(ctx context.Context, hc interp.HandlerContext, args []string) error {
	cmd := exec.CommandContext(ctx, self, args[1:]...)
	cmd.Args[0] = args[0]
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = hc.Dir, hc.Stdin, hc.Stdout, hc.Stderr
	for name, v := range hc.Env.Each {
		if v.Exported && v.Kind == expand.String {
			cmd.Env = append(cmd.Env, name+"="+v.Str)
		}
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code := exit.ExitCode()
		if code < 0 {
			code = 130
		}
		return interp.ExitStatus(uint8(code))
	}
	return err
}
