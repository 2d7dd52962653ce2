// keg registry serve.

package cli

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"context"

	"github.com/spf13/cobra"

	"keg/internal/registry"
)

func newRegistryServe(a *app) *cobra.Command {
	var addr, dir, config string
	var o registry.ServerOptions
	var quiet bool
	c := &cobra.Command{
		Use:  "serve [OPTIONS]",
		Long: "Serve an OCI registry over HTTP: pull, push, mount, tags, delete.\nWithout --dir it serves the images of this engine.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if config != "" {
				set, err := registry.ReadSettings(config)
				if err != nil {
					return failf("%v", err)
				}
				// What is typed is stronger than what is written.
				if set.Addr != "" && !c.Flags().Changed("addr") {
					addr = set.Addr
				}
				if dir == "" {
					dir = set.Dir
				}
				if o.Htpasswd != "" {
					set.Options.Htpasswd = o.Htpasswd
				}
				set.Options.Delete = set.Options.Delete || o.Delete
				set.Options.ReadOnly = set.Options.ReadOnly || o.ReadOnly
				o, quiet = set.Options, quiet || set.Quiet
			}
			if dir != "" {
				abs, err := filepath.Abs(dir)
				if err != nil {
					return failf("--dir: %v", err)
				}
				dir = abs
			}
			if o.Htpasswd != "" {
				// Open to all is not what somebody who named a file wants.
				if _, err := os.Stat(o.Htpasswd); err != nil {
					return failf("--htpasswd: %v", err)
				}
			}
			if !quiet {
				o.Log = a.err
			}
			eng, err := a.engine()
			if err != nil {
				return err
			}
			err = eng.ServeRegistry(c.Context(), addr, dir, o, func(addr string) {
				fmt.Fprintf(a.out, "registry is listening on %s\n", addr)
			})
			if _, stopped := terminated(c.Context()); stopped && (err == nil || errors.Is(err, context.Canceled) || errors.Is(err, http.ErrServerClosed)) {
				return nil // asked to stop: that went well
			}
			return err
		},
	}
	fs := c.Flags()
	fs.StringVar(&addr, "addr", ":5000", "Address to listen on (host:port)")
	fs.StringVar(&config, "config", "", "Configuration file (see keg registry check)")
	fs.BoolVar(&o.Delete, "delete", false, "Allow deletion of manifests and blobs")
	fs.StringVar(&dir, "dir", "", "Directory of the registry (default: the engine's own store)")
	fs.StringVar(&dir, "root-dir", "", "")
	fs.Lookup("root-dir").Hidden = true // another name of --dir
	fs.StringVar(&o.Htpasswd, "htpasswd", "", "File of users and bcrypt passwords; without it the registry is open to all")
	fs.BoolVarP(&quiet, "quiet", "q", false, "Do not log requests")
	fs.BoolVar(&o.ReadOnly, "read-only", false, "Refuse pushes and deletions")
	return c
}

func newRegistryCheck(a *app) *cobra.Command {
	return &cobra.Command{
		Use:  "check FILE",
		Long: registryCheckLong,
		Args: exactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if _, err := registry.ReadSettings(args[0]); err != nil {
				return failf("%v", err)
			}
			fmt.Fprintf(a.out, "%s: ok\n", args[0])
			return nil
		},
	}
}

const registryCheckLong = `Check the configuration file of a registry and the files that it names.
Each mistake is printed with its line. One directive a line, "#" begins a comment:

  listen    0.0.0.0:5000
  dir       /srv/registry            # "engine": this engine's own images
  tls       cert.pem key.pem         # read again when they change
  htpasswd  users                    # htpasswd -B
  tokens    realm=https://registry.example.com/token key=token.key life=5m
  allow     **       anyone pull   users push
  allow     team/**  alice,bob all   # pull, push, delete
  immutable **       v*
  quota     team/**  10GiB
  keep      team/**  tags=pr-* last=10 age=30d pulled=14d untagged=1d
  collect   every=1h grace=1h
  upstream  hub/     docker.io fresh=1m
  delete    on                       # also: read-only, sparse, metrics, log
  connections 4096

"*" stands for a part of one component of a name, "/**" at its end for all below.`
