// keg system install: what makes containers start after a boot.

package cli

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/spf13/cobra"

	"keg/internal/fault"
)

// unitText is the service that starts, once after a boot, what should run. The containers'
// monitors outlive it: they are ended by the shutdown, or by keg, never by "systemctl stop".
const unitText = `[Unit]
Description=Start the containers of keg that should run after a boot
After=network-online.target local-fs.target firewalld.service nftables.service ufw.service
Wants=network-online.target
RequiresMountsFor={{.Root}}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={{.Binary}} --root {{.Root}} --run-root {{.Run}} start --boot
KillMode=process
Delegate=yes
TasksMax=infinity

[Install]
WantedBy=multi-user.target
`

const unitName = "keg-boot.service"

type installFlags struct {
	prefix string
	print  bool
	remove bool
}

func newSystemInstall(a *app) *cobra.Command {
	var o installFlags
	c := &cobra.Command{
		Use:  "install [OPTIONS]",
		Long: "Install a systemd unit that starts, after a boot, the containers whose restart policy asks for it",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.install(o) },
	}
	fs := c.Flags()
	fs.StringVar(&o.prefix, "prefix", "/", "Install below this directory; systemd is told only of /")
	fs.BoolVar(&o.print, "print", false, "Print the unit and install nothing")
	fs.BoolVar(&o.remove, "remove", false, "Remove what was installed")
	return c
}

func (a *app) install(o installFlags) error {
	unit, err := a.unit()
	if err != nil {
		return err
	}
	if o.print {
		_, err := a.out.Write(unit)
		return err
	}
	dir := filepath.Join(o.prefix, "etc/systemd/system")
	file := filepath.Join(dir, unitName)
	wanted := filepath.Join(dir, "multi-user.target.wants", unitName)
	if o.remove {
		for _, f := range []string{wanted, file} {
			if err := os.Remove(f); err != nil && !os.IsNotExist(err) {
				return fault.As(fault.Denied, err)
			}
		}
		fmt.Fprintln(a.out, "Removed", file)
		return a.reloadSystemd(o.prefix)
	}
	if err := os.MkdirAll(filepath.Dir(wanted), 0o755); err != nil {
		return fault.As(fault.Denied, err)
	}
	if err := os.WriteFile(file, unit, 0o644); err != nil {
		return fault.As(fault.Denied, err)
	}
	if err := os.Symlink(filepath.Join("..", unitName), wanted); err != nil && !os.IsExist(err) {
		return fault.As(fault.Denied, err)
	}
	fmt.Fprintln(a.out, "Installed", file)
	return a.reloadSystemd(o.prefix)
}

// unit fills in this binary and this engine's directories.
func (a *app) unit() ([]byte, error) {
	root, run, err := a.roots()
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	for _, p := range []string{self, root, run} {
		if strings.ContainsAny(p, " \t\n\"'\\%$") {
			return nil, failf("%q cannot be written into a unit: it has blanks, quotes or other characters that systemd reads differently", p)
		}
	}
	t, err := template.New(unitName).Parse(unitText)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = t.Execute(&b, map[string]string{"Binary": self, "Root": root, "Run": run})
	return b.Bytes(), err
}

// reloadSystemd makes a systemd that runs here read its units again.
func (a *app) reloadSystemd(prefix string) error {
	if _, err := os.Stat("/run/systemd/system"); err != nil || filepath.Clean(prefix) != "/" {
		return nil
	}
	if out, err := exec.Command("systemctl", "daemon-reload").CombinedOutput(); err != nil {
		return failf("systemctl daemon-reload: %v: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
