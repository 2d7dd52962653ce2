// keg info.

package cli

import (
	"fmt"
	"io"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"keg/internal/engine"
)

// infoView has Docker's field names, so that templates of docker info work.
type infoView struct {
	ID                                                                      string
	Containers, ContainersRunning, ContainersPaused, ContainersStopped      int
	Images                                                                  int
	Driver                                                                  string
	DriverStatus                                                            [][2]string
	LoggingDriver, CgroupDriver, CgroupVersion                              string
	KernelVersion, OperatingSystem, OSType, Architecture                    string
	NCPU                                                                    int
	MemTotal                                                                int64
	DockerRootDir, RunRoot, Name, ServerVersion, DefaultRuntime, InitBinary string
	SecurityOptions                                                         []string
	Swarm                                                                   struct{ LocalNodeState string }
	Rootless                                                                bool
	Features                                                                []engine.Feature
	Warnings                                                                []string
	ClientInfo                                                              struct {
		Version, Context string
		Debug            bool
	}
}

func newInfo(a *app) *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:  "info [OPTIONS]",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			t, err := parseObjectTemplate("", format)
			if err != nil {
				return err
			}
			eng, err := a.engine()
			if err != nil {
				return err
			}
			i, err := eng.Info(c.Context())
			if err != nil {
				return err
			}
			v := a.infoView(i)
			if format != "" {
				return executeLine(a.out, t, v)
			}
			printInfo(a.out, v)
			for _, w := range v.Warnings {
				fmt.Fprintln(a.err, "WARNING:", w)
			}
			return nil
		},
	}
	c.Flags().StringVarP(&format, "format", "f", "", inspectFormatHelp)
	return c
}

func (a *app) infoView(i engine.Info) infoView {
	v := infoView{
		ID: i.ID, Containers: i.Containers, ContainersRunning: i.Running, ContainersPaused: i.Paused,
		ContainersStopped: i.Stopped, Images: i.Images, Driver: i.Storage,
		DriverStatus:  [][2]string{{"Backing Filesystem", i.BackingFS}},
		LoggingDriver: "json-file", CgroupDriver: i.CgroupDriver, CgroupVersion: i.CgroupVersion,
		KernelVersion: i.KernelVersion, OperatingSystem: i.OperatingSystem, OSType: i.OSType, Architecture: i.Architecture,
		NCPU: i.NCPU, MemTotal: i.MemTotal, DockerRootDir: i.Root, RunRoot: i.Run, Name: i.Name,
		ServerVersion: version, DefaultRuntime: "keg", SecurityOptions: i.SecurityOptions,
		Rootless: i.Rootless, Features: i.Features, Warnings: i.Warnings,
	}
	v.Swarm.LocalNodeState = "inactive"
	v.ClientInfo.Version, v.ClientInfo.Context, v.ClientInfo.Debug = version, "default", a.global.debug
	return v
}

func printInfo(w io.Writer, v infoView) {
	fmt.Fprintf(w, "Client:\n Version:    %s\n Context:    %s\n Debug Mode: %t\n\nServer:\n", v.ClientInfo.Version, v.ClientInfo.Context, v.ClientInfo.Debug)
	line := func(label string, value any) {
		if value != "" {
			fmt.Fprintf(w, " %s: %v\n", label, value)
		}
	}
	line("Containers", v.Containers)
	line(" Running", v.ContainersRunning)
	line(" Paused", v.ContainersPaused)
	line(" Stopped", v.ContainersStopped)
	line("Images", v.Images)
	line("Server Version", v.ServerVersion)
	line("Storage Driver", v.Driver)
	for _, kv := range v.DriverStatus {
		line(" "+kv[0], kv[1])
	}
	line("Logging Driver", v.LoggingDriver)
	line("Cgroup Driver", v.CgroupDriver)
	line("Cgroup Version", v.CgroupVersion)
	line("Default Runtime", v.DefaultRuntime)
	if len(v.SecurityOptions) > 0 {
		fmt.Fprintln(w, " Security Options:")
		for _, s := range v.SecurityOptions {
			fmt.Fprintln(w, "  "+s)
		}
	}
	line("Kernel Version", v.KernelVersion)
	line("Operating System", v.OperatingSystem)
	line("OSType", v.OSType)
	line("Architecture", v.Architecture)
	line("CPUs", v.NCPU)
	line("Total Memory", units.BytesSize(float64(v.MemTotal)))
	line("Name", v.Name)
	line("ID", v.ID)
	line("Docker Root Dir", v.DockerRootDir)
	line("Run Root", v.RunRoot)
	line("Rootless", v.Rootless)
	line("Debug Mode", v.ClientInfo.Debug)
	printFeatures(w, v.Features)
}

// printFeatures lists what the kernel and the host offer and what they lack, a
// sentence each.
func printFeatures(w io.Writer, fs []engine.Feature) {
	for _, part := range []struct {
		title string
		ok    bool
	}{{"Offered by this host", true}, {"Lacking on this host", false}} {
		first := true
		for _, f := range fs {
			if f.OK != part.ok {
				continue
			}
			if first {
				fmt.Fprintf(w, " %s:\n", part.title)
				first = false
			}
			fmt.Fprintf(w, "  %s: %s\n", f.Name, f.Text)
		}
	}
}
