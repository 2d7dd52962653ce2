// keg system install: what makes containers start after a boot, and the API answer when somebody calls.

package cli

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"text/template"

	"github.com/spf13/cobra"

	"keg/internal/fault"
)

// unit is one file for systemd and what pulls it in.
type unit struct{ name, wantedBy, text string }

// unitFiles: the service that starts, once after a boot, what should run, and the API on a socket, whose server comes with
// the first call. The containers' monitors outlive both: they are ended by the shutdown, or by keg, never by
// "systemctl stop".
var unitFiles = []unit{
	{"keg-boot.service", "multi-user.target", `[Unit]
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
`},
	{"keg.socket", "sockets.target", `[Unit]
Description=The Docker Engine API of keg

[Socket]
ListenStream={{.Run}}/keg.sock
SocketMode=0660
SocketUser=root
SocketGroup={{.Group}}

[Install]
WantedBy=sockets.target
`},
	{"keg.service", "", `[Unit]
Description=Answer the Docker Engine API over keg
Requires=keg.socket
After=keg.socket network-online.target
Wants=network-online.target
RequiresMountsFor={{.Root}}

[Service]
ExecStart={{.Binary}} --root {{.Root}} --run-root {{.Run}} serve -H fd://
KillMode=process
Delegate=yes
TasksMax=infinity
LimitNOFILE=1048576

[Install]
Also=keg.socket
`},
}

type installFlags struct {
	prefix, group string
	print, remove bool
}

func newSystemInstall(a *app) *cobra.Command {
	var o installFlags
	c := &cobra.Command{
		Use: "install [OPTIONS]",
		Long: "Install systemd units: one starts, after a boot, the containers whose restart policy asks for it;\n" +
			"a socket answers the Docker Engine API, by a server that starts with the first call",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.install(o) },
	}
	fs := c.Flags()
	fs.StringVar(&o.prefix, "prefix", "/", "Install below this directory; systemd is told only of /")
	fs.StringVarP(&o.group, "group", "G", "root", "Group that may use the API's socket (its members are root on this machine)")
	fs.BoolVar(&o.print, "print", false, "Print the units and install nothing")
	fs.BoolVar(&o.remove, "remove", false, "Remove what was installed")
	return c
}

func (a *app) install(o installFlags) error {
	texts, err := a.units(o.group)
	if err != nil {
		return err
	}
	dir := filepath.Join(o.prefix, "etc/systemd/system")
	for i, u := range unitFiles {
		if o.print {
			fmt.Fprintf(a.out, "# %s\n%s", u.name, texts[i])
			continue
		}
		file, wanted := filepath.Join(dir, u.name), ""
		if u.wantedBy != "" {
			wanted = filepath.Join(dir, u.wantedBy+".wants", u.name)
		}
		if o.remove {
			err = removeUnit(file, wanted)
		} else {
			err = writeUnit(file, wanted, texts[i])
		}
		if err != nil {
			return fault.As(fault.Denied, err)
		}
		fmt.Fprintln(a.out, map[bool]string{true: "Removed", false: "Installed"}[o.remove], file)
	}
	if o.print {
		return nil
	}
	return a.reloadSystemd(o.prefix)
}

func removeUnit(file, wanted string) error {
	for _, f := range []string{wanted, file} {
		if f == "" {
			continue
		}
		if err := os.Remove(f); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}

func writeUnit(file, wanted string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(file, text, 0o644); err != nil {
		return err
	}
	if wanted == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(wanted), 0o755); err != nil {
		return err
	}
	if err := os.Symlink(filepath.Join("..", filepath.Base(file)), wanted); err != nil && !os.IsExist(err) {
		return err
	}
	return nil
}

// isGroupName tells what useradd(8) takes for a name, or a number. The expression is compiled where it is used: every
// monitor would pay 38 KB for a variable.
func isGroupName(s string) bool {
	return regexp.MustCompile(`^([a-z_][a-z0-9_-]{0,31}|[0-9]{1,9})$`).MatchString(s)
}

// units fills in this binary, this engine's directories and the socket's group.
func (a *app) units(group string) (texts [][]byte, err error) {
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
	if !isGroupName(group) {
		return nil, failf("%q is not the name of a group", group)
	}
	for _, u := range unitFiles {
		t, err := template.New(u.name).Parse(u.text)
		if err != nil {
			return nil, err
		}
		var b bytes.Buffer
		if err := t.Execute(&b, map[string]string{"Binary": self, "Root": root, "Run": run, "Group": group}); err != nil {
			return nil, err
		}
		texts = append(texts, b.Bytes())
	}
	return texts, nil
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
