// keg login and logout.

package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"keg/internal/registry"
)

type loginFlags struct {
	user, password string
	stdin          bool
}

func newLogin(a *app) *cobra.Command {
	o := &loginFlags{}
	c := &cobra.Command{
		Use:  "login [OPTIONS] [SERVER]",
		Long: "Authenticate to a registry.\nDefaults to Docker Hub if no server is specified.",
		Args: maxArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := o.check(c.Flags()); err != nil {
				return err
			}
			return a.login(c.Context(), registryName(firstOf(args...)), o)
		},
	}
	fs := c.Flags()
	fs.StringVarP(&o.password, "password", "p", "", `Password or token, or "-" to read it from stdin`)
	fs.BoolVar(&o.stdin, "password-stdin", false, "Take the password or token from stdin")
	fs.StringVarP(&o.user, "username", "u", "", "Username")
	return c
}

func (o *loginFlags) check(fs *pflag.FlagSet) error {
	if o.password == "-" {
		o.password, o.stdin = "", true
	} else if o.stdin && fs.Changed("password") {
		return failf("conflicting options: cannot specify both --password and --password-stdin")
	}
	switch {
	case o.stdin && !fs.Changed("username"):
		return failf("the --password-stdin option requires --username to be set")
	case fs.Changed("username") && o.user == "":
		return failf("username is empty")
	case fs.Changed("password") && o.password == "" && !o.stdin:
		return failf("password is empty")
	}
	return nil
}

// registryName: Docker Hub has many names.
func registryName(server string) string {
	switch server {
	case "", "index.docker.io", "registry-1.docker.io", "https://index.docker.io/v1/":
		return "docker.io"
	}
	server = strings.TrimPrefix(strings.TrimPrefix(server, "https://"), "http://")
	host, _, _ := strings.Cut(server, "/")
	return host
}

func (a *app) login(ctx context.Context, server string, o *loginFlags) error {
	eng, err := a.engine()
	if err != nil {
		return err
	}
	if o.password != "" {
		fmt.Fprintln(a.err, "WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
	}
	cr := registry.Credentials{Username: o.user, Password: o.password}
	if o.stdin {
		b, err := io.ReadAll(a.in)
		if err != nil {
			return failf("read the password from stdin: %v", err)
		}
		cr.Password = trimLine(string(b))
		if strings.TrimSpace(cr.Password) == "" {
			return failf("password is empty")
		}
	}
	if cr.Username == "" && cr.Password == "" {
		if done, err := a.loginStored(ctx, eng, server); done {
			return err
		}
	}
	if err := a.ask(&cr, server); err != nil {
		return err
	}
	return a.loginWith(ctx, eng, server, cr)
}

// loginStored tries what was saved; done is false when new credentials are wanted.
func (a *app) loginStored(ctx context.Context, eng backend, server string) (done bool, err error) {
	cr, err := eng.StoredCredentials(ctx, server)
	if err != nil || cr.Password == "" && cr.IdentityToken == "" {
		return false, nil
	}
	said := ""
	if cr.Username != "" {
		said = " [Username: " + cr.Username + "]"
	}
	fmt.Fprintf(a.err, "Authenticating with existing credentials...%s\n", said)
	if err := a.loginWith(ctx, eng, server, cr); err != nil {
		fmt.Fprintln(a.err, "Login did not succeed, error:", err)
		return false, nil
	}
	return true, nil
}

func (a *app) loginWith(ctx context.Context, eng backend, server string, cr registry.Credentials) error {
	said, err := eng.Login(ctx, server, cr)
	if err != nil {
		return err
	}
	fmt.Fprintln(a.out, firstOf(said, "Login Succeeded"))
	return nil
}

// ask prompts for what is missing. The password is not echoed.
func (a *app) ask(cr *registry.Credentials, server string) error {
	if cr.Username != "" && cr.Password != "" {
		return nil
	}
	if !a.inTTY {
		return failf("Error: Cannot perform an interactive login from a non TTY device")
	}
	if cr.Username == "" {
		if server == "docker.io" {
			fmt.Fprintln(a.out, "Log in with your Docker ID to push and pull images from Docker Hub.")
		}
		fmt.Fprint(a.out, "Username: ")
		line, err := bufio.NewReaderSize(onlyByteReads{a.in}, 1).ReadString('\n')
		if cr.Username = trimLine(line); cr.Username == "" {
			return failf("username is empty%s", because(err))
		}
	}
	if cr.Password == "" {
		fmt.Fprint(a.out, "Password: ")
		b, err := term.ReadPassword(int(a.inFile.Fd()))
		fmt.Fprintln(a.out)
		if cr.Password = string(b); cr.Password == "" {
			return failf("password is empty%s", because(err))
		}
	}
	return nil
}

func because(err error) string {
	if err == nil || err == io.EOF {
		return ""
	}
	return ": " + err.Error()
}

// onlyByteReads keeps a buffered reader from taking the line after the one it is for.
type onlyByteReads struct{ r io.Reader }

func (o onlyByteReads) Read(p []byte) (int, error) { return o.r.Read(p[:min(1, len(p))]) }

func trimLine(s string) string {
	for _, end := range []string{"\r\n", "\n", "\r"} {
		if t, ok := strings.CutSuffix(s, end); ok {
			return t
		}
	}
	return s
}

func newLogout(a *app) *cobra.Command {
	return &cobra.Command{
		Use:  "logout [SERVER]",
		Long: "Log out from a registry.\nDefaults to Docker Hub if no server is specified.",
		Args: maxArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			eng, err := a.engine()
			if err != nil {
				return err
			}
			server := registryName(firstOf(args...))
			shown := server
			if server == "docker.io" {
				shown = "https://index.docker.io/v1/"
			}
			fmt.Fprintln(a.out, "Removing login credentials for", shown)
			return quietly(eng.Logout(c.Context(), server)) // nothing was saved: fine
		},
	}
}
