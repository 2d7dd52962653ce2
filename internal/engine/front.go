package engine

// What a front end that lives long needs beside the commands' use cases: a start that can
// be told apart from the end, sizes of terminals, accounts of its callers.

import (
	"context"

	"github.com/moby/moby/api/types/container"

	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/monitor"
	"keg/internal/registry"
	"keg/internal/sandbox"
)

// Session is a program that was started: a container's or one of exec.
type Session interface {
	Wait(ctx context.Context) (monitor.Exit, error)
	Close() error // ends the attachment, not the program
}

// Begin is Start that returns when the program was executed, attached or not;
// fault.NotModified when it runs already.
func (e *Engine) Begin(ctx context.Context, ref string, attach *monitor.Stdio) (Session, error) {
	r, st, err := e.view(ctx, ref)
	if err != nil {
		return nil, err
	}
	switch st.Status {
	case container.StatePaused:
		return nil, fault.Conflictf("cannot start a paused container, try unpause instead")
	case container.StateRemoving, container.StateDead:
		return nil, fault.Conflictf("container is marked for removal and cannot be started")
	case container.StateRunning, container.StateRestarting:
		return nil, fault.Errorf(fault.NotModified, "container %s is already running", r.ID)
	}
	if attach != nil {
		e.containerEvent("attach", r, nil)
	}
	c, err := e.spawn(ctx, e.monitors.Spawn, r.ID, attach)
	if err != nil {
		return nil, withStatus(err)
	}
	return c, nil
}

// BeginExec is Exec that returns when the program was executed.
func (e *Engine) BeginExec(ctx context.Context, ref string, r monitor.ExecRequest, s monitor.Stdio) (Session, error) {
	if len(r.Cmd) == 0 {
		return nil, fault.Invalidf("No exec command specified")
	}
	c, err := e.running(ctx, ref, "before exec")
	if err != nil {
		return nil, err
	}
	if err := c.StartExec(ctx, r, s); err != nil {
		c.Close()
		return nil, withExecStatus(err)
	}
	return c, nil
}

// CanExec tells the full id of a container that a program can be started in, as user when one is named.
func (e *Engine) CanExec(ctx context.Context, ref, user string) (string, error) {
	c, err := e.running(ctx, ref, "before exec")
	if err != nil {
		return "", err
	}
	defer c.Close()
	r, err := e.containers.Find(ref)
	if err != nil {
		return "", err
	}
	if user == "" {
		return r.ID, nil
	}
	root, err := c.Root(ctx)
	if err != nil {
		return "", err
	}
	defer root.Close()
	if _, _, err := sandbox.LookupUser(int(root.Fd()), user, nil); err != nil {
		return "", fault.As(fault.Invalid, err)
	}
	return r.ID, nil
}

// Resize sets the size of a running container's terminal or, with exec, of that program's.
func (e *Engine) Resize(ctx context.Context, ref, exec string, rows, cols uint16) error {
	r, st, err := e.view(ctx, ref)
	if err != nil {
		return err
	}
	if !isLive(st.Status) {
		return notRunning(r.ID)
	}
	c, err := e.monitors.Dial(ctx, r.ID)
	if err != nil {
		return err
	}
	defer c.Close()
	if exec != "" {
		return c.ResizeExec(ctx, exec, rows, cols)
	}
	return c.Resize(ctx, rows, cols)
}

// Execs are the programs that were started in a running container beside its own; none
// when it does not run.
func (e *Engine) Execs(ctx context.Context, ref string) ([]monitor.ExecInfo, error) {
	r, st, err := e.view(ctx, ref)
	if err != nil || !isLive(st.Status) {
		return nil, err
	}
	c, err := e.monitors.Dial(ctx, r.ID)
	if fault.Is(err, fault.Conflict) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer c.Close()
	i, err := c.Info(ctx)
	return i.Execs, err
}

// As is the engine for a caller who has accounts of his own at registries.
func (e *Engine) As(as ...registry.Account) *Engine {
	own := *e
	own.remote = e.client(as, nil)
	return &own
}

// Asking is the same engine, that asks somebody for accounts at registries.
func (e *Engine) Asking(ask registry.Ask) *Engine {
	own := *e
	own.remote = e.client(nil, ask)
	return &own
}

func (e *Engine) client(as []registry.Account, ask registry.Ask) *registry.Client {
	return registry.NewClient(registry.Config{DockerConfig: e.opt.Env["DOCKER_CONFIG"], Env: e.opt.Env,
		UserAgent: "keg/" + e.opt.Version, Accounts: as, Ask: ask})
}

// CheckLogin asks a registry whether credentials are good, and saves nothing.
func (e *Engine) CheckLogin(ctx context.Context, host string, cr registry.Credentials) (registry.Credentials, error) {
	return e.client(nil, nil).Check(ctx, host, cr)
}

// Distribution tells what a registry has under a name, and for which platforms.
func (e *Engine) Distribution(ctx context.Context, ref image.Reference) (image.Descriptor, []image.Platform, error) {
	d, err := e.remote.Resolve(ctx, ref)
	if err != nil {
		return d, nil, err
	}
	doc, err := e.remote.Manifest(ctx, ref, registry.Unsized(d))
	if err != nil {
		return d, nil, err
	}
	d.Size = int64(len(doc))
	ps := []image.Platform{}
	if !image.IsIndex(d.MediaType) {
		m, err := image.ParseManifest(doc)
		if err != nil {
			return d, nil, err
		}
		cfg, err := e.fetchConfig(ctx, ref, m.Config)
		if err != nil {
			return d, nil, err
		}
		return d, append(ps, configPlatform(cfg)), nil
	}
	x, err := image.ParseIndex(doc)
	if err != nil {
		return d, nil, err
	}
	for _, m := range x.Manifests {
		if m.Platform != nil {
			ps = append(ps, *m.Platform)
		}
	}
	return d, ps, nil
}
