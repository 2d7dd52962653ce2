// keg attach.

package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
)

func newAttach(a *app) *cobra.Command {
	var noStdin, proxy bool
	var keys string
	c := &cobra.Command{
		Use:               "attach [OPTIONS] CONTAINER",
		Args:              exactArgs(1),
		ValidArgsFunction: a.complete(containerNames(running), 1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.attach(c.Context(), args[0], noStdin, proxy, keys)
		},
	}
	fs := c.Flags()
	fs.StringVar(&keys, "detach-keys", "", "Override the key sequence for detaching a container")
	fs.BoolVar(&noStdin, "no-stdin", false, "Do not attach STDIN")
	fs.BoolVar(&proxy, "sig-proxy", true, "Proxy all received signals to the process")
	return c
}

func (a *app) attach(ctx context.Context, name string, noStdin, proxy bool, keys string) error {
	eng, err := a.engine()
	if err != nil {
		return err
	}
	r, err := eng.Inspect(ctx, name, false)
	if err != nil {
		return err
	}
	switch st := r.State; {
	case !st.Running:
		return failf("cannot attach to a stopped container, start it first")
	case st.Paused:
		return failf("cannot attach to a paused container, unpause it first")
	case st.Restarting:
		return failf("cannot attach to a restarting container, wait until it is running")
	}
	s, err := a.session(sessionOptions{
		stdin: !noStdin && r.Config.OpenStdin, stdout: true, stderr: true,
		tty: r.Config.Tty, signals: proxy && !r.Config.Tty, detachKeys: keys,
	})
	if err != nil {
		return err
	}
	defer s.close()
	if proxy && !r.Config.Tty {
		ctx = context.WithoutCancel(ctx)
	}
	end, err := eng.Attach(ctx, r.ID, s.stdio)
	s.close()
	if err != nil {
		return err
	}
	if end.Detached {
		return a.detached()
	}
	return status(end)
}

// detached is how attach and exec end when the detach keys were typed.
func (a *app) detached() error {
	fmt.Fprintln(a.err, "read escape sequence")
	return exit(1)
}
