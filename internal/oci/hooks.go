package oci

// Hooks: programs of the caller, told the container's state on standard input
// (runtime-spec config.md "POSIX-platform Hooks").

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/sandbox"
)

func hooksOf(s *specs.Spec) specs.Hooks {
	if s.Hooks == nil {
		return specs.Hooks{}
	}
	return *s.Hooks
}

// runHooks runs one list in order; the first that fails ends it. inside is the process whose
// namespaces they run in; 0: ours.
func (c *container) runHooks(ctx context.Context, kind string, list []specs.Hook, status specs.ContainerState, inside int) error {
	if len(list) == 0 {
		return nil
	}
	state, err := c.hookState(status)
	if err != nil {
		return err
	}
	for i := range list {
		if err := c.runHook(ctx, &list[i], state, inside); err != nil {
			return fmt.Errorf("error running %s hook #%d (%s): %w", kind, i, list[i].Path, err)
		}
	}
	return nil
}

func (c *container) runHook(ctx context.Context, h *specs.Hook, state []byte, inside int) error {
	if h.Timeout != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*h.Timeout)*time.Second)
		defer cancel()
	}
	var words words
	err := c.launch(ctx, h, state, inside, &words)
	if ctx.Err() != nil {
		err = fmt.Errorf("it did not end in time: %w", ctx.Err())
	}
	if said := words.String(); err != nil && said != "" {
		err = fmt.Errorf("%w, output: %s", err, said)
	}
	return err
}

func (c *container) launch(ctx context.Context, h *specs.Hook, state []byte, inside int, out io.Writer) error {
	args := h.Args
	if len(args) == 0 {
		args = []string{h.Path}
	}
	if inside == 0 {
		cmd := exec.CommandContext(ctx, h.Path)
		cmd.Args, cmd.Env, cmd.Dir = args, append([]string{}, h.Env...), c.rec.Bundle
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(state), out, out
		cmd.WaitDelay = time.Second
		return cmd.Run()
	}
	return c.launchInside(ctx, h.Path, args, h.Env, state, inside, out)
}

func (c *container) launchInside(ctx context.Context, file string, args, env []string, state []byte, inside int, out io.Writer) error {
	in, err := memory(state)
	if err != nil {
		return err
	}
	defer in.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	p, err := sandbox.RunIn(ctx, inside, c.rec.Spec, file, args, env, [3]*os.File{in, w, w})
	w.Close()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.Signal(int(unix.SIGKILL)); r.SetReadDeadline(time.Now().Add(time.Second)) })
	defer stop()
	_, _ = io.Copy(out, r)
	code, err := p.Wait()
	if err == nil && code != 0 {
		err = fmt.Errorf("exit status %d", code)
	}
	return err
}

// memory is a file with this content and no name.
func memory(b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("state", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "state")
	_, err = f.Write(b)
	_, e := f.Seek(0, io.SeekStart)
	if err = errors.Join(err, e); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// words keeps the beginning of what a hook says.
type words struct{ b []byte }

func (w *words) Write(b []byte) (int, error) {
	w.b = append(w.b, b[:min(len(b), 4096-len(w.b))]...)
	return len(b), nil
}

func (w *words) String() string { return strings.TrimSpace(strings.ToValidUTF8(string(w.b), "?")) }
