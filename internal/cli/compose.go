// keg compose: Docker Compose, which somebody else wrote, against this engine.

package cli

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keg/internal/api"
)

const composeMissing = `Docker Compose is not installed; this is how to get it:
  apt install docker-compose-v2      on Ubuntu; on Debian with Docker's repository: docker-compose-plugin
  or put docker-compose of https://github.com/docker/compose/releases on PATH, or into ~/.docker/cli-plugins`

func newCompose(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "compose [ARG...]",
		Long: "Run Docker Compose against this engine. Without a server (keg serve) the API is answered for as\n" +
			"long as the command takes; with DOCKER_HOST that is asked.",
		DisableFlagParsing: true, // all words are Compose's
		RunE: func(c *cobra.Command, args []string) error {
			if _, err := a.findCompose(); err != nil && (slices.Contains(args, "--help") || slices.Contains(args, "-h")) {
				return a.printHelp(c)
			}
			return a.compose(c.Context(), args)
		},
	}
}

func (a *app) compose(ctx context.Context, args []string) error {
	program, err := a.findCompose()
	if err != nil {
		return err
	}
	host := a.env["DOCKER_HOST"]
	if host == "" {
		var stop func()
		if host, stop, err = a.composeServer(ctx); err != nil {
			return err
		}
		defer stop()
	}
	// Compose hears of Ctrl-C from the terminal, as we do, and needs the API for what it does then.
	cmd := exec.Command(program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.in, a.rawOut, a.rawErr
	for _, kv := range a.environ {
		if k, _, _ := strings.Cut(kv, "="); k != "DOCKER_HOST" && k != "DOCKER_CONTEXT" && k != "BUILDX_BUILDER" {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "DOCKER_HOST="+host)
	a.debugf("%s with DOCKER_HOST=%s", strings.Join(cmd.Args, " "), host)
	err = cmd.Run()
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		if code := ended.ExitCode(); code > 0 {
			return exit(code)
		}
		return exit(130) // by a signal
	}
	return err
}

// pluginDirs are where Docker's client looks for plugins, after the user's own directory.
var pluginDirs = [...]string{"/usr/local/lib/docker/cli-plugins", "/usr/local/libexec/docker/cli-plugins",
	"/usr/lib/docker/cli-plugins", "/usr/libexec/docker/cli-plugins"}

// findCompose finds Compose as a program or as a plugin of Docker's client, which is a program by itself, too.
func (a *app) findCompose() (string, error) {
	config := firstOf(a.global.config, a.env["DOCKER_CONFIG"], filepath.Join(a.env["HOME"], ".docker"))
	for _, dir := range append([]string{filepath.Join(config, "cli-plugins")}, pluginDirs[:]...) {
		p := filepath.Join(dir, "docker-compose")
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	for _, dir := range filepath.SplitList(a.env["PATH"]) {
		p := filepath.Join(dir, "docker-compose")
		if st, err := os.Stat(p); filepath.IsAbs(p) && err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", failf("%s", composeMissing)
}

// composeServer is the server that runs, or one of our own on a socket that nobody else finds.
func (a *app) composeServer(ctx context.Context) (host string, stop func(), err error) {
	_, run, err := a.roots()
	if err != nil {
		return "", nil, err
	}
	sock := filepath.Join(run, "keg.sock")
	if c, err := net.DialTimeout("unix", sock, time.Second); err == nil {
		c.Close()
		return "unix://" + sock, func() {}, nil
	}
	eng, err := a.serving()
	if err != nil {
		return "", nil, err
	}
	dir, err := os.MkdirTemp("", "keg") // mode 0700, and short: a socket's path has 107 bytes
	if err != nil {
		return "", nil, err
	}
	sock = filepath.Join(dir, "sock")
	lns, err := api.Listen("unix://"+sock, api.ListenOptions{})
	if err != nil {
		os.RemoveAll(dir)
		return "", nil, failf("%v", err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // the first Ctrl-C is not the end
	done := make(chan error, 1)
	s := a.server(eng, io.Discard)
	go func() { done <- s.Serve(ctx, lns...) }()
	return "unix://" + sock, func() { cancel(); <-done; os.RemoveAll(dir) }, nil
}
