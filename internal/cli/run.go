// keg run and keg create.

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"keg/internal/engine"
	"keg/internal/monitor"
)

type runFlags struct {
	*containerFlags
	detach     bool
	sigProxy   bool
	detachKeys string
}

func newRun(a *app) *cobra.Command {
	o := &runFlags{containerFlags: newContainerFlags(a)}
	c := &cobra.Command{
		Use:               "run [OPTIONS] IMAGE [COMMAND] [ARG...]",
		Args:              minArgs(1),
		ValidArgsFunction: a.complete(imageNames, 1),
		RunE: func(c *cobra.Command, args []string) error {
			req, err := o.options(c.Flags(), args)
			if err != nil {
				return a.withHelp(failf("%v", err), "run")
			}
			return a.runContainer(c.Context(), o, req)
		},
	}
	fs := c.Flags()
	o.bind(fs, "running")
	elsewhere(c, ofWindows, onlyWindows()...)
	fs.BoolVarP(&o.detach, "detach", "d", false, "Run container in background and print container ID")
	fs.StringVar(&o.detachKeys, "detach-keys", "", "Override the key sequence for detaching a container")
	fs.BoolVar(&o.sigProxy, "sig-proxy", true, "Proxy received signals to the process")
	a.completeFlags(c)
	return c
}

func newCreate(a *app) *cobra.Command {
	o := newContainerFlags(a)
	c := &cobra.Command{
		Use:               "create [OPTIONS] IMAGE [COMMAND] [ARG...]",
		Args:              minArgs(1),
		ValidArgsFunction: a.complete(imageNames, 1),
		RunE: func(c *cobra.Command, args []string) error {
			req, err := o.options(c.Flags(), args)
			if err != nil {
				return a.withHelp(failf("%v", err), "create")
			}
			return a.createContainer(c.Context(), o, req)
		},
	}
	o.bind(c.Flags(), "creating")
	elsewhere(c, ofWindows, onlyWindows()...)
	a.completeFlags(c)
	return c
}

func (a *app) createContainer(ctx context.Context, o *containerFlags, req engine.CreateOptions) error {
	eng, err := a.engine()
	if err != nil {
		return a.withHelp(err, "create")
	}
	id, err := newIDFile(o.cidfile)
	if err != nil {
		return a.withHelp(err, "create")
	}
	defer id.close()
	a.pullProgress(o, &req)
	made, err := eng.Create(ctx, req)
	if err != nil {
		return a.withHelp(err, "create")
	}
	a.warn(made.Warnings)
	fmt.Fprintln(a.out, made.ID)
	return id.write(made.ID)
}

func (a *app) warn(warnings []string) {
	for _, w := range warnings {
		fmt.Fprintln(a.err, "WARNING:", w)
	}
}

// runContainer creates, starts, and stays with the program unless detached.
func (a *app) runContainer(ctx context.Context, o *runFlags, req engine.CreateOptions) error {
	if o.detach && len(o.attach) > 0 {
		return failf("conflicting options: cannot specify both --attach and --detach")
	}
	eng, err := a.engine()
	if err != nil {
		return a.withHelp(err, "run")
	}
	cfg := req.Config
	if o.detach {
		cfg.AttachStdin, cfg.AttachStdout, cfg.AttachStderr, cfg.StdinOnce = false, false, false, false
	}
	id, err := newIDFile(o.cidfile)
	if err != nil {
		return a.withHelp(err, "run")
	}
	defer id.close()
	if rows, cols, ok := a.size(); ok {
		req.Host.ConsoleSize = [2]uint{uint(rows), uint(cols)}
	}
	// Until the container exists an interrupt ends the pull; from then on it belongs
	// to the program.
	ctx, keep, cancel := detachable(ctx)
	defer cancel()
	var s *session
	var stdio *monitor.Stdio
	var words *lastWords
	if !o.detach {
		s, err = a.session(sessionOptions{
			stdin: cfg.AttachStdin, stdout: cfg.AttachStdout, stderr: cfg.AttachStderr,
			tty: cfg.Tty, detachKeys: o.detachKeys,
		})
		if err != nil {
			return err
		}
		defer s.close()
		words = s.listen()
		stdio = &s.stdio
		if o.sigProxy {
			stdio.Signals = s.later()
		}
	} else if _, err := parseKeys(o.detachKeys); err != nil {
		return err
	}
	a.pullProgress(o.containerFlags, &req)
	end, err := eng.Run(ctx, req, stdio, func(made engine.Created) error {
		keep()
		if s != nil && o.sigProxy {
			s.forwardNow()
		}
		a.warn(made.Warnings)
		if o.detach {
			fmt.Fprintln(a.out, made.ID)
		}
		return id.write(made.ID)
	})
	if s != nil {
		s.close()
	}
	if err != nil {
		return a.withHelp(err, "run")
	}
	if o.detach {
		return nil
	}
	a.tellRefusal(words, end.Code, req.Host)
	return status(end)
}

// status turns the end of a program into the end of the command.
func status(end monitor.Exit) error {
	if end.Detached || end.Code == 0 {
		return nil
	}
	return exit(end.Code)
}

// detachable returns a context that ends with ctx until keep is called.
func detachable(ctx context.Context) (_ context.Context, keep func(), cancel func()) {
	free, end := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { end(context.Cause(ctx)) })
	return free, func() { stop() }, func() { stop(); end(nil) }
}

// idFile is --cidfile: made before the container so that two runs cannot share it,
// removed again when there is no container.
type idFile struct {
	path    string
	f       *os.File
	written bool
}

func newIDFile(path string) (*idFile, error) {
	if path == "" {
		return &idFile{}, nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
	if errors.Is(err, os.ErrExist) {
		return nil, failf("container ID file found, make sure the other container isn't running or delete %s", path)
	}
	if err != nil {
		return nil, failf("failed to create the container ID file: %v", err)
	}
	return &idFile{path: path, f: f}, nil
}

func (i *idFile) write(id string) error {
	if i.f == nil {
		return nil
	}
	if _, err := i.f.WriteString(id); err != nil {
		return failf("failed to write the container ID (%s) to file: %v", id, err)
	}
	i.written = true
	return nil
}

func (i *idFile) close() {
	if i.f == nil {
		return
	}
	i.f.Close()
	if !i.written {
		os.Remove(i.path)
	}
}
