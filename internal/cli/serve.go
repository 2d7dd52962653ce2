// keg serve.

package cli

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"runtime/debug"

	"github.com/spf13/cobra"

	"keg/internal/api"
	"keg/internal/engine"
	"keg/internal/registry"
)

func newServe(a *app) *cobra.Command {
	var group string
	c := &cobra.Command{
		Use: "serve [OPTIONS]",
		Long: "Answer the Docker Engine API, for docker and all programs that speak it.\n" +
			"Without --host it listens on keg.sock in the run directory. The server may be ended\nat any time: containers go on.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.serve(c, group) },
	}
	c.Flags().StringVarP(&group, "group", "G", "", "Group that may use the Unix socket (its members are root on this machine)")
	c.Flags().VarP(newList(&a.global.host, nil), "host", "H", "Where to listen: unix:///path, fd://, or tcp://host:port with mutual TLS")
	c.Flags().StringVar(&a.global.caCert, "tlscacert", a.global.caCert, "Trust clients with certificates that this CA signed")
	c.Flags().StringVar(&a.global.cert, "tlscert", a.global.cert, "Certificate of the server")
	c.Flags().StringVar(&a.global.key, "tlskey", a.global.key, "Key of the server's certificate")
	return c
}

func (a *app) serve(c *cobra.Command, group string) error {
	hosts := a.global.host
	a.global.host = nil // here it says where to listen
	_, run, err := a.roots()
	if err != nil {
		return err
	}
	eng, err := a.serving()
	if err != nil {
		return err
	}
	if len(hosts) == 0 {
		hosts = []string{"unix://" + filepath.Join(run, "keg.sock")}
		if a.env["LISTEN_FDS"] != "" {
			hosts = []string{"fd://"}
		}
	}
	o := api.ListenOptions{Group: group, Env: a.env, TLS: api.TLS{CA: a.global.caCert, Cert: a.global.cert, Key: a.global.key}}
	var lns []net.Listener
	for _, h := range hosts {
		more, err := api.Listen(h, o)
		if err != nil {
			for _, ln := range lns {
				ln.Close()
			}
			return failf("%v", err)
		}
		lns = append(lns, more...)
		fmt.Fprintf(a.out, "API listens on %s\n", h)
	}
	debug.SetGCPercent(50) // a server is idle most of the time: memory before speed
	return a.server(eng, a.err).Serve(c.Context(), lns...)
}

// server answers the API over an engine.
func (a *app) server(eng *engine.Engine, log io.Writer) *api.Server {
	root, _, _ := a.roots()
	eng.KeepRecords()
	return api.New(eng, api.Options{Version: version, Commit: commit, Env: a.env, Log: log, Scratch: filepath.Join(root, "contexts"), History: filepath.Join(root, "builds"),
		As:     func(as ...registry.Account) api.Engine { return eng.As(as...) },
		Asking: func(ask registry.Ask) api.Engine { return eng.Asking(ask) }})
}

// serving opens the engine itself; DOCKER_HOST of the caller's environment is for clients.
func (a *app) serving() (*engine.Engine, error) {
	delete(a.env, "DOCKER_HOST")
	delete(a.env, "DOCKER_CONTEXT")
	b, err := a.engine()
	if err != nil {
		return nil, err
	}
	eng, ok := b.(*engine.Engine)
	if !ok {
		return nil, failf("the engine cannot be served")
	}
	return eng, nil
}
