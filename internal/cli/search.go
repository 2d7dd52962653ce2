// keg search, keg context.

package cli

import (
	"fmt"
	"strconv"
	"strings"

	dregistry "github.com/moby/moby/api/types/registry"
	"github.com/spf13/cobra"

	"keg/internal/engine"
)

func newSearch(a *app) *cobra.Command {
	var o engine.SearchOptions
	var filter filterValue
	var format string
	var noTrunc bool
	c := &cobra.Command{
		Use:  "search [OPTIONS] TERM",
		Args: exactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			o.Filter = filter.f
			eng, err := a.engine()
			if err != nil {
				return err
			}
			found, err := eng.Search(c.Context(), args[0], o)
			if err != nil {
				return err
			}
			rows := make([]*searchRow, len(found))
			for i := range found {
				rows[i] = &searchRow{&found[i], !noTrunc}
			}
			f := format
			if f == "" || f == "table" {
				f = "table {{.Name}}\t{{.Description}}\t{{.StarCount}}\t{{.IsOfficial}}"
			}
			return writeRows(a.out, listing{f, header{"Name": "NAME", "Description": "DESCRIPTION", "StarCount": "STARS", "IsOfficial": "OFFICIAL"}}, rows)
		},
	}
	fs := c.Flags()
	fs.VarP(&filter, "filter", "f", "Filter output based on conditions provided")
	fs.StringVar(&format, "format", "", formatHelp)
	fs.IntVar(&o.Limit, "limit", 0, "Max number of search results")
	fs.BoolVar(&noTrunc, "no-trunc", false, "Don't truncate output")
	return c
}

// searchRow is one repository as templates see it.
type searchRow struct {
	r     *dregistry.SearchResult
	short bool
}

func (r *searchRow) MarshalJSON() ([]byte, error) { return marshalRow(r) }

func (r *searchRow) Name() string      { return r.r.Name }
func (r *searchRow) StarCount() string { return strconv.Itoa(r.r.StarCount) }

func (r *searchRow) Description() string {
	d := strings.NewReplacer("\n", " ", "\r", " ").Replace(r.r.Description)
	if r.short {
		return ellipsis(d, 45)
	}
	return d
}

func (r *searchRow) IsOfficial() string {
	if r.r.IsOfficial {
		return "[OK]"
	}
	return ""
}

// Contexts are other engines; this one knows itself only, as "default".

const onlyContext = "default"

func contextCommands() []entry {
	return []entry{
		{name: "inspect", short: "Display detailed information on one or more contexts", make: newContextInspect},
		{name: "ls", short: "List contexts", make: newContextLs},
		{name: "show", short: "Print the name of the current context", make: newContextShow},
		{name: "use", short: "Set the current context", make: newContextUse},
	}
}

// endpoint is the address at which keg serve answers.
func (a *app) endpoint() string {
	if h := a.env["DOCKER_HOST"]; h != "" {
		return h
	}
	_, run, err := a.roots()
	if err != nil {
		return ""
	}
	return "unix://" + run + "/keg.sock"
}

func unknownContext(a *app, name string) error {
	return failf("context %q: context not found: %s knows this machine only (context %q)", name, a.name, onlyContext)
}

func newContextShow(a *app) *cobra.Command {
	return &cobra.Command{Use: "show", Args: noArgs, RunE: func(*cobra.Command, []string) error {
		fmt.Fprintln(a.out, onlyContext)
		return nil
	}}
}

func newContextUse(a *app) *cobra.Command {
	return &cobra.Command{Use: "use CONTEXT", Args: exactArgs(1), RunE: func(_ *cobra.Command, args []string) error {
		if args[0] != onlyContext {
			return unknownContext(a, args[0])
		}
		fmt.Fprintln(a.out, onlyContext)
		fmt.Fprintf(a.err, "Current context is now %q\n", onlyContext)
		return nil
	}}
}

func newContextLs(a *app) *cobra.Command {
	var format string
	var quiet bool
	c := &cobra.Command{Use: "ls [OPTIONS]", Args: noArgs, RunE: func(*cobra.Command, []string) error {
		f := format
		switch {
		case quiet:
			f = "{{.Name}}"
		case f == "" || f == "table":
			f = "table {{.Name}}{{if .Current}} *{{end}}\t{{.Description}}\t{{.DockerEndpoint}}\t{{.Error}}"
		}
		h := header{"Name": "NAME", "Description": "DESCRIPTION", "DockerEndpoint": "DOCKER ENDPOINT", "Error": "ERROR"}
		return writeRows(a.out, listing{f, h}, []*contextRow{{a.endpoint()}})
	}}
	c.Flags().StringVar(&format, "format", "", formatHelp)
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "Only show context names")
	return c
}

// contextRow is the one context as templates see it.
type contextRow struct{ at string }

func (r *contextRow) MarshalJSON() ([]byte, error) { return marshalRow(r) }

func (r *contextRow) Name() string           { return onlyContext }
func (r *contextRow) Current() bool          { return true }
func (r *contextRow) Description() string    { return "Current DOCKER_HOST based configuration" }
func (r *contextRow) DockerEndpoint() string { return r.at }
func (r *contextRow) Error() string          { return "" }
func (r *contextRow) ContextType() string    { return "moby" }

func newContextInspect(a *app) *cobra.Command {
	var format string
	c := &cobra.Command{Use: "inspect [OPTIONS] [CONTEXT] [CONTEXT...]", RunE: func(_ *cobra.Command, args []string) error {
		w, err := newObjectWriter(format)
		if err != nil {
			return err
		}
		if len(args) == 0 {
			args = []string{onlyContext}
		}
		for _, name := range args {
			if name != onlyContext {
				return unknownContext(a, name)
			}
			if err := w.add(contextDetail{Name: name, Endpoints: map[string]contextEndpoint{"docker": {Host: a.endpoint()}}}); err != nil {
				return err
			}
		}
		_, err = a.out.Write(w.bytes())
		return err
	}}
	c.Flags().StringVarP(&format, "format", "f", "", inspectFormatHelp)
	return c
}

type contextDetail struct {
	Name        string
	Metadata    struct{}
	Endpoints   map[string]contextEndpoint
	TLSMaterial struct{}
	Storage     struct{}
}

type contextEndpoint struct {
	Host          string
	SkipTLSVerify bool
}
