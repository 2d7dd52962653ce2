// keg version.

package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"keg/internal/linux"
)

// The Engine API as far as templates of docker version ask for it.
const (
	apiVersion    = "1.51"
	apiVersionMin = "1.24"
)

// versionView has the shape of docker version: {{.Server.Version}} works.
type versionView struct {
	Client clientVersion
	Server serverVersion
}

type clientVersion struct {
	Version           string
	APIVersion        string `json:"ApiVersion"`
	DefaultAPIVersion string
	GitCommit         string
	GoVersion         string
	Os, Arch          string
	Context           string
}

type serverVersion struct {
	Platform      struct{ Name string }
	Version       string
	APIVersion    string `json:"ApiVersion"`
	MinAPIVersion string
	Os, Arch      string
	GitCommit     string
	GoVersion     string
	KernelVersion string
	CgroupVersion string
	Storage       string
	Experimental  bool
	Components    []componentVersion
}

type componentVersion struct {
	Name, Version string
	Details       map[string]string
}

func newVersion(a *app) *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:  "version [OPTIONS]",
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			v, err := a.version()
			if err != nil {
				return err
			}
			if format == "" {
				return a.printVersion(v)
			}
			t, err := parseObjectTemplate("version", format)
			if err != nil {
				return err
			}
			return executeLine(a.out, t, v)
		},
	}
	c.Flags().StringVarP(&format, "format", "f", "", inspectFormatHelp)
	return c
}

// version asks the kernel, not the engine: it works for everybody and makes nothing.
func (a *app) version() (versionView, error) {
	root, _, err := a.roots()
	if err != nil {
		return versionView{}, err
	}
	v := versionView{
		Client: clientVersion{
			Version: version, APIVersion: apiVersion, DefaultAPIVersion: apiVersion, GitCommit: commit,
			GoVersion: runtime.Version(), Os: runtime.GOOS, Arch: runtime.GOARCH, Context: "default",
		},
		Server: serverVersion{
			Version: version, APIVersion: apiVersion, MinAPIVersion: apiVersionMin, Os: runtime.GOOS, Arch: runtime.GOARCH,
			GitCommit: commit, GoVersion: runtime.Version(), KernelVersion: linux.Kernel(),
			CgroupVersion: cgroupVersion(), Storage: "overlay on " + filesystemOf(root),
		},
	}
	v.Server.Platform.Name = "keg"
	v.Server.Components = []componentVersion{{Name: "Engine", Version: version, Details: map[string]string{
		"ApiVersion": apiVersion, "MinAPIVersion": apiVersionMin, "Os": runtime.GOOS, "Arch": runtime.GOARCH,
		"GitCommit": commit, "GoVersion": runtime.Version(), "KernelVersion": v.Server.KernelVersion,
		"CgroupVersion": v.Server.CgroupVersion, "Storage": v.Server.Storage, "Experimental": "false",
	}}}
	return v, nil
}

func (a *app) printVersion(v versionView) error {
	w := tabwriter.NewWriter(a.out, 20, 1, 1, ' ', 0)
	c, s := v.Client, v.Server
	fmt.Fprintln(w, "Client:")
	for _, kv := range [][2]string{
		{"Version", c.Version}, {"API version", c.APIVersion}, {"Go version", c.GoVersion}, {"Git commit", c.GitCommit},
		{"OS/Arch", c.Os + "/" + c.Arch}, {"Context", c.Context},
	} {
		fmt.Fprintf(w, " %s:\t%s\n", kv[0], kv[1])
	}
	fmt.Fprintf(w, "\nServer: %s\n Engine:\n", s.Platform.Name)
	for _, kv := range [][2]string{
		{"Version", s.Version}, {"API version", s.APIVersion + " (minimum version " + s.MinAPIVersion + ")"},
		{"Go version", s.GoVersion}, {"Git commit", s.GitCommit}, {"OS/Arch", s.Os + "/" + s.Arch},
		{"Kernel", s.KernelVersion}, {"Cgroup version", s.CgroupVersion}, {"Storage", s.Storage}, {"Experimental", "false"},
	} {
		fmt.Fprintf(w, "  %s:\t%s\n", kv[0], kv[1])
	}
	return w.Flush()
}

// cgroupVersion is 2 where the unified hierarchy is the only one (cgroups(7)).
func cgroupVersion() string {
	var st unix.Statfs_t
	if unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
		return "2"
	}
	return "1"
}

// filesystemOf names the file system that holds dir, or would hold it.
func filesystemOf(dir string) string {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(dir, &st)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || dir == "/" {
			return "unknown"
		}
		dir = filepath.Dir(dir)
	}
	switch st.Type {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlay"
	case unix.F2FS_SUPER_MAGIC:
		return "f2fs"
	case 0x2fc12fc1: // ZFS_SUPER_MAGIC of OpenZFS
		return "zfs"
	}
	return fmt.Sprintf("file system 0x%x", st.Type)
}
