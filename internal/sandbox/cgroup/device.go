package cgroup

// Device rules: everything is denied first, then the list is played in order.

import (
	"fmt"
	"os"
	"slices"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"keg/internal/fault"
	"keg/internal/linux"
	"keg/internal/weakness"
)

// setDevices applies the device rules of a new group. Without rules nothing is restricted.
func (g *Group) setDevices(r *specs.LinuxResources) error {
	if r == nil || len(r.Devices) == 0 {
		return nil
	}
	for i := range r.Devices {
		if err := checkRule(&r.Devices[i]); err != nil {
			return err
		}
	}
	if linux.InUserNS() && (len(g.hierarchies) == 0 || g.unified) {
		return nil // device nodes cannot be made in a user namespace, and eBPF not loaded
	}
	if g.unified {
		dir, err := os.OpenFile(g.v2(), unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return err
		}
		defer dir.Close()
		return attachDevices(int(dir.Fd()), r.Devices)
	}
	dir := g.dir("devices")
	if dir == "" {
		// A list that does not apply is not a limit that may be missing.
		return fault.Unsupportedf("the devices cgroup controller is not available: device rules cannot be enforced")
	}
	return playRules(dir, r.Devices)
}

// playRules writes a v1 list. An "a" rule replaces what went before, as the kernel does.
func playRules(dir string, rules []specs.LinuxDeviceCgroup) error {
	allow, err := os.OpenFile(dir+"/devices.allow", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer allow.Close()
	deny, err := os.OpenFile(dir+"/devices.deny", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer deny.Close()
	if weakness.Of("RT15") {
		rules = slices.DeleteFunc(slices.Clone(rules), func(r specs.LinuxDeviceCgroup) bool { return !r.Allow })
	} else if rules[0].Allow || wide(&rules[0]) != "a" {
		if _, err := deny.WriteString("a"); err != nil {
			return fmt.Errorf("deny all devices: %w", err)
		}
	}
	for i := range rules {
		f, act := deny, "deny"
		if rules[i].Allow {
			f, act = allow, "allow"
		}
		line := ruleLine(&rules[i])
		if _, err := f.WriteString(line); err != nil {
			return fmt.Errorf("%s device %q: %w", act, line, err)
		}
	}
	return nil
}

func checkRule(d *specs.LinuxDeviceCgroup) error {
	switch d.Type {
	case "", "a", "b", "c":
	default:
		return fault.Invalidf("device rule has the unknown type %q", d.Type)
	}
	for _, c := range d.Access {
		if c != 'r' && c != 'w' && c != 'm' {
			return fault.Invalidf("device rule has the unknown access %q", d.Access)
		}
	}
	return nil
}

// wide is "a" for a rule about every device.
func wide(d *specs.LinuxDeviceCgroup) string {
	if d.Type == "" || d.Type == "a" {
		return "a"
	}
	return d.Type
}

func ruleLine(d *specs.LinuxDeviceCgroup) string {
	t := wide(d)
	if t == "a" {
		return "a"
	}
	access := d.Access
	if access == "" {
		access = "rwm"
	}
	return t + " " + number(d.Major) + ":" + number(d.Minor) + " " + access
}

func number(n *int64) string {
	if n == nil || *n < 0 {
		return "*"
	}
	return strconv.FormatInt(*n, 10)
}
