package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A container behind the firewalls that hosts have: they go on working, and so do we.
func TestFirewalls(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces and firewalls")
	}
	for _, f := range []struct{ name, program string }{{"ufw", "ufw"}, {"firewalld", "firewalld"}, {"docker", "dockerd"}} {
		t.Run(f.name, func(t *testing.T) {
			if _, err := exec.LookPath(f.program); err != nil {
				t.Skip("needs ", f.name, " (scripts/install-test-deps): ", err)
			}
			script, err := filepath.Abs("testdata/firewall.sh")
			if err != nil {
				t.Fatal(err)
			}
			dir, err := os.MkdirTemp("", "kf-") // short: sockets are below it
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			// With a process namespace of its own nothing that it starts outlives it.
			cmd := exec.Command("timeout", "120", "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", script, f.name)
			cmd.Env = append(os.Environ(), "KEG="+filepath.Join(bin, "keg"), "TMP="+dir, "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.HasSuffix(string(out), "done\n") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
