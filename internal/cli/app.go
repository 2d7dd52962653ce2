// What a command has at hand: streams, environment, the engine.

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"keg/internal/engine"
	"keg/internal/rootless"
)

// app is one invocation.
type app struct {
	name string // as called: keg, docker, podman

	in       io.Reader
	out, err io.Writer // what we say; control characters are escaped on a terminal
	rawOut   io.Writer // what containers say
	rawErr   io.Writer
	inFile   *os.File // the terminal, when in is one
	inTTY    bool
	outTTY   bool
	errTTY   bool

	env     map[string]string
	environ []string
	uid     int
	now     func() time.Time

	global globals
	open   func(engine.Options) (backend, error)
	become func(rootless.Entry) error // goes on in an ordinary user's own namespace
	opened func() (backend, error)
	config func() clientConfig

	completing bool   // a shell asks
	talksTo    string // the only container whose monitor the command needs
	inside     bool   // an ordinary user's own namespace
}

// globals are the flags that stand before every command (--root, --run-root and
// --debug also after it).
type globals struct {
	root, runRoot     string
	config, context   string
	host              []string
	logLevel          string
	debug, version    bool
	tls, tlsVerify    bool
	caCert, cert, key string
}

func newApp(name string, environ []string, in, out, errw *os.File) *app {
	a := &app{name: name, in: in, inFile: in, environ: environ, env: envMap(environ), uid: os.Geteuid(), now: time.Now, become: rootless.Enter}
	a.inside = rootless.Arrived(environ)
	a.inTTY = term.IsTerminal(int(in.Fd()))
	a.outTTY = term.IsTerminal(int(out.Fd()))
	a.errTTY = term.IsTerminal(int(errw.Fd()))
	a.rawOut, a.rawErr = out, errw
	a.out, a.err = out, errw
	if a.outTTY {
		a.out = &quoting{w: out}
	}
	if a.errTTY {
		a.err = &quoting{w: errw}
	}
	a.open = func(o engine.Options) (backend, error) { return engine.Open(o) }
	return a
}

func envMap(environ []string) map[string]string {
	m := make(map[string]string, len(environ))
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		m[k] = v
	}
	return m
}

// lookup has the shape of os.LookupEnv, over the environment of the caller.
func (a *app) lookup(key string) (string, bool) {
	v, ok := a.env[key]
	return v, ok
}

// main runs one command line and returns the exit status.
func (a *app) main(ctx context.Context, args []string) int {
	ctx, stop := interruptible(ctx)
	defer stop()
	begun := a.now()
	err := a.run(ctx, args)
	code := a.report(ctx, err)
	for e := err; e != nil; e = errors.Unwrap(e) {
		a.debugf("%T: %v", e, e)
	}
	a.debugf("exit status %d after %s", code, a.now().Sub(begun).Round(time.Microsecond))
	return code
}

// debugf says with --debug what is done and how long it takes.
func (a *app) debugf(format string, args ...any) {
	if a.global.debug || a.global.logLevel == "debug" {
		fmt.Fprintf(a.err, "debug: "+format+"\n", args...)
	}
}

// interrupted is the cause of a context that a signal ended.
type interrupted struct{ sig syscall.Signal }

func (i interrupted) Error() string { return i.sig.String() }

// interruptible ends the context on the first SIGINT or SIGTERM, so that commands
// undo what they began; a second one kills at once.
func interruptible(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, unix.SIGINT, unix.SIGTERM)
	go func() {
		select {
		case s := <-ch:
			signal.Stop(ch)
			sig, _ := s.(syscall.Signal)
			cancel(interrupted{sig})
		case <-ctx.Done():
		}
	}()
	return ctx, func() { signal.Stop(ch); cancel(nil) }
}

// engine opens the engine on first use.
func (a *app) engine() (backend, error) {
	if a.opened == nil {
		a.opened = sync.OnceValues(a.openEngine)
	}
	return a.opened()
}

func (a *app) openEngine() (backend, error) {
	if err := a.checkHost(); err != nil {
		return nil, err
	}
	root, run, err := a.roots()
	if err != nil {
		return nil, err
	}
	if a.uid != 0 && (a.talksTo == "" || !engine.Answers(root, a.talksTo)) {
		return nil, a.enter(root, run)
	}
	env := a.env
	if a.global.config != "" {
		env = map[string]string{"DOCKER_CONFIG": a.global.config}
		for k, v := range a.env {
			if k != "DOCKER_CONFIG" {
				env[k] = v
			}
		}
	}
	a.debugf("engine in %s and %s", root, run)
	var quota int64
	if q := a.env["KEG_BUILD_QUOTA"]; q != "" {
		if quota, err = units.FromHumanSize(q); err != nil || quota <= 0 {
			return nil, failf("KEG_BUILD_QUOTA=%s: want a number of bytes, for example 20GB", q)
		}
	}
	return a.open(engine.Options{Outside: a.uid != 0, Root: root, Run: run, Env: env, Version: version, BuildQuota: quota})
}

// engineOf is the engine for a command that only talks to the monitor of one container, which an ordinary
// user's can do from outside.
func (a *app) engineOf(name string) (backend, error) {
	a.talksTo = name
	return a.engine()
}

// enter goes on as root of the user's own namespace, in this process; it returns when that failed.
func (a *app) enter(root, run string) error {
	if a.inside {
		return failf("the user namespace does not show uid %d as root: its map is not the one that %s made", a.uid, a.name)
	}
	name := a.env["USER"]
	if u, err := user.LookupId(strconv.Itoa(a.uid)); err == nil {
		name = u.Username
	}
	return a.become(rootless.Entry{Root: root, Run: run, Name: name, Args: os.Args, Env: a.environ,
		Warn: func(s string) { fmt.Fprintln(a.err, "WARNING: "+s) }})
}

// roots are the absolute directories of the engine: flag, else environment, else the
// place that fits the user.
func (a *app) roots() (root, run string, err error) {
	root = firstOf(a.global.root, a.env["KEG_ROOT"])
	run = firstOf(a.global.runRoot, a.env["KEG_RUN_ROOT"])
	if root == "" {
		root = "/var/lib/keg"
		if a.uid != 0 {
			root = filepath.Join(firstOf(a.env["XDG_DATA_HOME"], filepath.Join(a.env["HOME"], ".local/share")), "keg")
		}
	}
	if run == "" {
		run = "/run/keg"
		if a.uid != 0 {
			run = rootless.RunDir(a.uid, a.env["XDG_RUNTIME_DIR"])
		}
	}
	if root, err = filepath.Abs(root); err != nil {
		return "", "", failf("--root: %v", err)
	}
	if run, err = filepath.Abs(run); err != nil {
		return "", "", failf("--run-root: %v", err)
	}
	return root, run, nil
}

// checkHost refuses to work here when somebody asked for another machine. A Unix
// socket names this machine, so that DOCKER_HOST and -H of scripts do no harm.
func (a *app) checkHost() error {
	asked := a.global.host
	if len(asked) == 0 && a.env["DOCKER_HOST"] != "" {
		asked = []string{a.env["DOCKER_HOST"]}
	}
	for _, h := range asked {
		if strings.HasPrefix(h, "unix://") || strings.HasPrefix(h, "/") || strings.HasPrefix(h, "fd://") {
			continue
		}
		return failf("cannot reach %q: %s works on this machine without a daemon; leave out --host and unset DOCKER_HOST", h, a.name)
	}
	if c := firstOf(a.global.context, a.env["DOCKER_CONTEXT"]); c != "" && c != "default" {
		return failf("context %q: context not found: %s knows this machine only (context \"default\")", c, a.name)
	}
	return nil
}

func firstOf(ss ...string) string {
	for _, s := range ss {
		if s != "" {
			return s
		}
	}
	return ""
}

// terminated reports the signal that ended ctx.
func terminated(ctx context.Context) (syscall.Signal, bool) {
	var i interrupted
	if errors.As(context.Cause(ctx), &i) {
		return i.sig, true
	}
	return 0, false
}
