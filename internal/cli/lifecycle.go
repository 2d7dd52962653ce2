// Commands that do one thing to each container that is named: start stop restart kill
// rm pause unpause wait rename.

package cli

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"

	"keg/internal/engine"
	"keg/internal/fault"
)

// each runs act on all names at once and prints the names that went well in the order
// given; the errors come last, and the exit status is 1 if there is one.
func (a *app) each(ctx context.Context, names []string, act func(ctx context.Context, eng backend, name string) error) error {
	eng, err := a.engine()
	if err != nil {
		return err
	}
	results := make([]error, len(names))
	var wg sync.WaitGroup
	slots := make(chan struct{}, 50)
	for i, n := range names {
		slots <- struct{}{}
		wg.Go(func() {
			results[i] = act(ctx, eng, n)
			<-slots
		})
	}
	wg.Wait()
	var errs []error
	for i, n := range names {
		switch err := results[i]; {
		case err == errSkipped:
		case err != nil:
			errs = append(errs, err)
		default:
			fmt.Fprintln(a.out, n)
		}
	}
	return join(errs)
}

// errSkipped is success without a word.
var errSkipped = failf("")

func (a *app) eachCommand(use string, keep func(container.Summary) bool, act func(ctx context.Context, eng backend, name string) error) *cobra.Command {
	return &cobra.Command{
		Use:               use,
		Args:              minArgs(1),
		ValidArgsFunction: a.complete(containerNames(keep), 0),
		RunE: func(c *cobra.Command, args []string) error {
			return a.each(c.Context(), args, act)
		},
	}
}

func running(s container.Summary) bool {
	return s.State == container.StateRunning || s.State == container.StatePaused
}
func notRunning(s container.Summary) bool { return !running(s) }
func anyState(container.Summary) bool     { return true }

func newStart(a *app) *cobra.Command {
	var attach, stdin, boot bool
	var keys string
	c := &cobra.Command{
		Use: "start [OPTIONS] CONTAINER [CONTAINER...]",
		Args: func(c *cobra.Command, args []string) error {
			if boot {
				return noArgs(c, args)
			}
			return minArgs(1)(c, args)
		},
		ValidArgsFunction: a.complete(containerNames(notRunning), 0),
		RunE: func(c *cobra.Command, args []string) error {
			if boot {
				return a.startBoot(c.Context())
			}
			if _, err := parseKeys(keys); err != nil {
				return err
			}
			if !attach && !stdin {
				return a.startAll(c.Context(), args)
			}
			if len(args) > 1 {
				return failf("you cannot start and attach multiple containers at once")
			}
			return a.startAttached(c.Context(), args[0], stdin, keys)
		},
	}
	fs := c.Flags()
	fs.BoolVarP(&attach, "attach", "a", false, "Attach STDOUT/STDERR and forward signals")
	fs.BoolVar(&boot, "boot", false, "Start what should run after a boot, by the restart policies")
	elsewhere(c, ofExperiments, "checkpoint", "checkpoint-dir")
	fs.StringVar(&keys, "detach-keys", "", "Override the key sequence for detaching a container")
	fs.BoolVarP(&stdin, "interactive", "i", false, "Attach container's STDIN")
	return c
}

func (a *app) startAll(ctx context.Context, names []string) error {
	eng, err := a.engine()
	if err != nil {
		return err
	}
	var failed []string
	for _, n := range names {
		if _, err := eng.Start(ctx, n, nil); err != nil {
			fmt.Fprintln(a.err, sentence(err))
			failed = append(failed, n)
			continue
		}
		fmt.Fprintln(a.out, n)
	}
	if len(failed) > 0 {
		return failf("failed to start containers: %s", strings.Join(failed, ", "))
	}
	return nil
}

// startBoot goes on after a container that does not start: the others should run all the same.
func (a *app) startBoot(ctx context.Context) error {
	eng, err := a.engine()
	if err != nil {
		return err
	}
	var failed []string
	err = eng.StartBoot(ctx, func(b engine.Booted) {
		if b.Err != nil {
			fmt.Fprintf(a.err, "%s: %s\n", b.Name, sentence(b.Err))
			failed = append(failed, b.Name)
			return
		}
		fmt.Fprintln(a.out, b.Name)
	})
	if err == nil && len(failed) > 0 {
		return failf("failed to start containers: %s", strings.Join(failed, ", "))
	}
	return err
}

func (a *app) startAttached(ctx context.Context, name string, stdin bool, keys string) error {
	eng, err := a.engine()
	if err != nil {
		return err
	}
	r, err := eng.Inspect(ctx, name, false)
	if err != nil {
		return err
	}
	s, err := a.session(sessionOptions{
		stdin: stdin && r.Config.OpenStdin, stdout: true, stderr: true,
		tty: r.Config.Tty, signals: !r.Config.Tty, detachKeys: keys,
	})
	if err != nil {
		return err
	}
	defer s.close()
	end, err := eng.Start(context.WithoutCancel(ctx), r.ID, &s.stdio)
	if err != nil {
		return err
	}
	return status(end)
}

func newStop(a *app) *cobra.Command {
	return stopCommand(a, "stop [OPTIONS] CONTAINER [CONTAINER...]", running, backend.Stop)
}

func newRestart(a *app) *cobra.Command {
	return stopCommand(a, "restart [OPTIONS] CONTAINER [CONTAINER...]", anyState, backend.Restart)
}

func stopCommand(a *app, use string, keep func(container.Summary) bool, act func(backend, context.Context, string, engine.StopOptions) error) *cobra.Command {
	var o engine.StopOptions
	var timeout int
	c := a.eachCommand(use, keep, nil)
	c.RunE = func(c *cobra.Command, args []string) error {
		fs := c.Flags()
		if fs.Changed("time") && fs.Changed("timeout") {
			return failf("conflicting options: cannot specify both --timeout and --time")
		}
		if fs.Changed("time") || fs.Changed("timeout") {
			o.Timeout = &timeout
		}
		return a.each(c.Context(), args, func(ctx context.Context, eng backend, name string) error {
			return quietly(act(eng, ctx, name, o))
		})
	}
	fs := c.Flags()
	fs.StringVarP(&o.Signal, "signal", "s", "", "Signal to send to the container")
	fs.IntVarP(&timeout, "timeout", "t", 0, "Seconds to wait before killing the container")
	fs.IntVar(&timeout, "time", 0, "")
	fs.Lookup("time").Hidden = true // the flag's name before --timeout
	if a.completing {
		_ = c.RegisterFlagCompletionFunc("signal", completeSignals)
	}
	return c
}

// quietly: what is already as asked for is success.
func quietly(err error) error {
	if fault.Is(err, fault.NotModified) {
		return nil
	}
	return err
}

func newKill(a *app) *cobra.Command {
	var signal string
	c := a.eachCommand("kill [OPTIONS] CONTAINER [CONTAINER...]", running, func(ctx context.Context, eng backend, name string) error {
		return eng.Kill(ctx, name, signal)
	})
	c.Flags().StringVarP(&signal, "signal", "s", "", "Signal to send to the container")
	if a.completing {
		_ = c.RegisterFlagCompletionFunc("signal", completeSignals)
	}
	return c
}

func newPause(a *app) *cobra.Command {
	return a.eachCommand("pause CONTAINER [CONTAINER...]", func(s container.Summary) bool { return s.State == container.StateRunning },
		func(ctx context.Context, eng backend, name string) error { return eng.Pause(ctx, name) })
}

func newUnpause(a *app) *cobra.Command {
	return a.eachCommand("unpause CONTAINER [CONTAINER...]", func(s container.Summary) bool { return s.State == container.StatePaused },
		func(ctx context.Context, eng backend, name string) error { return eng.Unpause(ctx, name) })
}

func newRm(a *app) *cobra.Command {
	var o engine.RemoveOptions
	var link bool
	keep := func(s container.Summary) bool { return o.Force || !running(s) }
	c := a.eachCommand("rm [OPTIONS] CONTAINER [CONTAINER...]", keep, func(ctx context.Context, eng backend, name string) error {
		if name = strings.Trim(name, "/"); name == "" {
			return failf("container name cannot be empty")
		}
		if link {
			return eng.Unlink(ctx, name)
		}
		err := eng.Remove(ctx, name, o)
		if o.Force && fault.Is(err, fault.NotFound) {
			return errSkipped
		}
		return err
	})
	fs := c.Flags()
	fs.BoolVarP(&o.Force, "force", "f", false, "Remove a running container too (uses SIGKILL)")
	fs.BoolVarP(&link, "link", "l", false, "Remove the specified link")
	fs.BoolVarP(&o.Volumes, "volumes", "v", false, "Remove anonymous volumes associated with the container")
	return c
}

func newWait(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "wait CONTAINER [CONTAINER...]",
		Args:              minArgs(1),
		ValidArgsFunction: a.complete(containerNames(running), 0),
		RunE: func(c *cobra.Command, args []string) error {
			eng, err := a.engine()
			if err != nil {
				return err
			}
			var errs []error
			for _, n := range args {
				code, err := eng.Wait(c.Context(), n, container.WaitConditionNotRunning)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				fmt.Fprintln(a.out, code)
			}
			return join(errs)
		},
	}
}

func newRename(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "rename CONTAINER NEW_NAME",
		Args:              exactArgs(2),
		ValidArgsFunction: a.complete(containerNames(anyState), 1),
		RunE: func(c *cobra.Command, args []string) error {
			eng, err := a.engine()
			if err != nil {
				return err
			}
			return eng.Rename(c.Context(), args[0], args[1])
		},
	}
}
