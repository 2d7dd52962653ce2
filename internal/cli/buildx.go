// keg buildx: the words of docker buildx for the one builder that there is.

package cli

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// oneBuilder is its name.
const oneBuilder = "default"

// bindBuilder takes --builder, which can name the only one.
func bindBuilder(fs *pflag.FlagSet, p *string) {
	fs.Var(&builderValue{p}, "builder", `Override the configured builder instance (there is one: "default")`)
}

type builderValue struct{ p *string }

func (v *builderValue) Type() string   { return "string" }
func (v *builderValue) String() string { return *v.p }
func (v *builderValue) Set(s string) error {
	*v.p = s
	return checkBuilder(s)
}

func checkBuilder(name string) error {
	if name != "" && name != oneBuilder {
		return fmt.Errorf("no builder %q found: keg has one, %q, which needs not be created", name, oneBuilder)
	}
	return nil
}

func buildxCommands() []entry {
	return []entry{
		{name: "build", short: "Start a build", make: newBuild},
		{name: "du", short: "Show what the build cache keeps, and why", make: newBuilderDu},
		{name: "inspect", short: "Inspect current builder instance", make: newBuildxInspect},
		{name: "ls", short: "List builder instances", make: newBuildxLs},
		{name: "prune", short: "Remove build cache", make: newBuilderPrune},
		{name: "use", short: "Set the current builder instance", make: newBuildxUse},
		{name: "version", short: "Show buildx version information", make: newBuildxVersion},
	}
}

func newBuildxVersion(a *app) *cobra.Command {
	return &cobra.Command{
		Use:  "version",
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			fmt.Fprintln(a.out, "keg", "v"+strings.TrimPrefix(version, "v"), commit)
			return nil
		},
	}
}

func newBuildxUse(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:  "use [OPTIONS] NAME",
		Args: exactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := checkBuilder(args[0]); err != nil {
				return failf("ERROR: %v", err)
			}
			return nil
		},
	}
	c.Flags().Bool("default", false, "Set builder as default for current context")
	c.Flags().Bool("global", false, "Builder persists context changes")
	return c
}

// bindTimeout takes a flag that bounds the asking of builders over a network; there is nobody to be asked.
func bindTimeout(fs *pflag.FlagSet) {
	fs.Duration("timeout", 20*time.Second, "Override the default timeout for loading builder status")
}

func newBuildxInspect(a *app) *cobra.Command {
	var name string
	c := &cobra.Command{
		Use:  "inspect [NAME]",
		Args: maxArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				if err := checkBuilder(args[0]); err != nil {
					return failf("ERROR: %v", err)
				}
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 1, ' ', 0)
			fmt.Fprintf(w, "Name:\t%s\nDriver:\tkeg\n\nNodes:\nName:\t%s\nEndpoint:\t%s\nStatus:\trunning\nBuildKit version:\t%s\nPlatforms:\t%s\n",
				oneBuilder, oneBuilder, oneBuilder, version, strings.Join(runnable(), ", "))
			return w.Flush()
		},
	}
	c.Flags().Bool("bootstrap", false, "Ensure builder has booted before inspecting (it needs not)")
	bindTimeout(c.Flags())
	bindBuilder(c.Flags(), &name)
	return c
}

// runnable are the platforms whose programs RUN can execute here: this one, and those that the kernel has an
// emulator for.
func runnable() []string {
	all := []string{"linux/" + runtime.GOARCH}
	const dir = "/proc/sys/fs/binfmt_misc/"
	for _, q := range [][2]string{{"x86_64", "amd64"}, {"aarch64", "arm64"}, {"riscv64", "riscv64"}, {"ppc64le", "ppc64le"}, {"s390x", "s390x"},
		{"i386", "386"}, {"mips64el", "mips64le"}, {"mips64", "mips64"}, {"loongarch64", "loong64"}, {"arm", "arm/v7"}} {
		if b, err := os.ReadFile(dir + "qemu-" + q[0]); err == nil && strings.HasPrefix(string(b), "enabled") && q[1] != runtime.GOARCH {
			all = append(all, "linux/"+q[1])
		}
	}
	return all
}

// builderRow is a row of keg buildx ls: the builder, or its node.
type builderRow struct{ name, driver, status, buildkit, platforms string }

func (r *builderRow) MarshalJSON() ([]byte, error) { return marshalRow(r) }
func (r *builderRow) Name() string                 { return r.name }
func (r *builderRow) DriverEndpoint() string       { return r.driver }
func (r *builderRow) LastActivity() string         { return "" }
func (r *builderRow) Status() string               { return r.status }
func (r *builderRow) Buildkit() string             { return r.buildkit }
func (r *builderRow) Platforms() string            { return r.platforms }
func (r *builderRow) Error() string                { return "" }

func newBuildxLs(a *app) *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:  "ls [OPTIONS]",
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			top, node := &builderRow{name: oneBuilder, driver: "keg"}, &builderRow{oneBuilder, oneBuilder, "running", version, strings.Join(runnable(), ", ")}
			if format == "" || format == "table" {
				format = "table {{.Name}}\t{{.DriverEndpoint}}\t{{.Status}}\t{{.Buildkit}}\t{{.Platforms}}"
				top.name, node.name, node.driver = oneBuilder+"*", ` \_ `+oneBuilder, ` \_ `+oneBuilder
			}
			return writeRows(a.out, listing{format, header{"Name": "NAME/NODE", "DriverEndpoint": "DRIVER/ENDPOINT", "Status": "STATUS",
				"Buildkit": "BUILDKIT", "Platforms": "PLATFORMS", "LastActivity": "LAST ACTIVITY", "Error": "ERROR"}}, []*builderRow{top, node})
		},
	}
	c.Flags().StringVar(&format, "format", "", formatHelp)
	c.Flags().Bool("no-trunc", true, "Don't truncate output")
	bindTimeout(c.Flags())
	return c
}
