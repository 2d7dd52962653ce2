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
	var addr, dir string
	var o registry.ServerOptions
	var quiet bool
	c := &cobra.Command{
		Use:  "serve [OPTIONS]",
		Long: "Serve an OCI registry over HTTP: pull, push, mount, tags, delete.\nWithout --dir it serves the images of this engine.",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
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
	fs.BoolVar(&o.Delete, "delete", false, "Allow deletion of manifests and blobs")
	fs.StringVar(&dir, "dir", "", "Directory of the registry (default: the engine's own store)")
	fs.StringVar(&dir, "root-dir", "", "")
	fs.Lookup("root-dir").Hidden = true // another name of --dir
	fs.StringVar(&o.Htpasswd, "htpasswd", "", "File of users and bcrypt passwords; without it the registry is open to all")
	fs.BoolVarP(&quiet, "quiet", "q", false, "Do not log requests")
	fs.BoolVar(&o.ReadOnly, "read-only", false, "Refuse pushes and deletions")
	return c
}
