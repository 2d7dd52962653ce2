// keg exec.

package cli

import (
	"context"

	"github.com/spf13/cobra"

	"keg/internal/monitor"
)

type execFlags struct {
	req           monitor.ExecRequest
	env, envFiles []string
	keys          string
}

func newExec(a *app) *cobra.Command {
	o := &execFlags{}
	c := &cobra.Command{
		Use:               "exec [OPTIONS] CONTAINER COMMAND [ARG...]",
		Args:              minArgs(2),
		ValidArgsFunction: a.complete(containerNames(running), 1),
		RunE: func(c *cobra.Command, args []string) error {
			o.req.Cmd = args[1:]
			return a.execIn(c.Context(), args[0], o)
		},
	}
	fs := c.Flags()
	fs.SetInterspersed(false)
	fs.BoolVarP(&o.req.Detach, "detach", "d", false, "Detached mode: run command in the background")
	fs.StringVar(&o.keys, "detach-keys", "", "Override the key sequence for detaching a container")
	fs.VarP(newList(&o.env, a.checkEnv), "env", "e", "Set environment variables")
	fs.Var(newList(&o.envFiles, nil), "env-file", "Read environment variables from a file")
	fs.BoolVarP(&o.req.Stdin, "interactive", "i", false, "Keep STDIN open even if not attached")
	fs.BoolVar(&o.req.Privileged, "privileged", false, "Give extended privileges to the command")
	fs.BoolVarP(&o.req.TTY, "tty", "t", false, "Allocate a pseudo-TTY")
	fs.StringVarP(&o.req.User, "user", "u", "", `Username or UID (format: "<name|uid>[:<group|gid>]")`)
	fs.StringVarP(&o.req.Dir, "workdir", "w", "", "Working directory inside the container")
	a.completeFlags(c)
	return c
}

func (a *app) execIn(ctx context.Context, name string, o *execFlags) error {
	var err error
	if o.req.Env, err = readAll(o.envFiles, o.env, a.lookup); err != nil {
		return failf("%v", err)
	}
	if o.req.Detach {
		if _, err := parseKeys(o.keys); err != nil {
			return err
		}
		o.req.Stdin = false
		eng, err := a.engineOf(name)
		if err != nil {
			return err
		}
		_, err = eng.Exec(ctx, name, o.req, monitor.Stdio{})
		return err
	}
	eng, err := a.engineOf(name)
	if err != nil {
		return err
	}
	if o.req.TTY {
		o.req.Rows, o.req.Cols, _ = a.size()
	}
	s, err := a.session(sessionOptions{stdin: o.req.Stdin, stdout: true, stderr: true, tty: o.req.TTY, detachKeys: o.keys})
	if err != nil {
		return err
	}
	defer s.close()
	words := s.listen()
	end, err := eng.Exec(ctx, name, o.req, s.stdio)
	s.close()
	if err != nil {
		return err
	}
	if end.Detached {
		return a.detached()
	}
	if end.Code != 0 && !o.req.Privileged && words.refused() {
		if d, err := eng.Inspect(ctx, name, false); err == nil && d.HostConfig != nil {
			a.tellRefusal(words, end.Code, d.HostConfig)
		}
	}
	return status(end)
}
