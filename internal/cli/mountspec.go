// --mount type=...,source=...,target=...

package cli

import (
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/mount"
)

// mountValue is the flag --mount.
type mountValue struct{ list *[]mount.Mount }

func (m *mountValue) Type() string { return "mount" }
func (m *mountValue) String() string {
	var out []string
	for _, x := range *m.list {
		out = append(out, fmt.Sprintf("%s %s %s", x.Type, x.Source, x.Target))
	}
	return strings.Join(out, ", ")
}

func (m *mountValue) Set(s string) error {
	x, err := parseMount(s)
	if err != nil {
		return err
	}
	*m.list = append(*m.list, x)
	return nil
}

func parseMount(s string) (mount.Mount, error) {
	x := mount.Mount{Type: mount.TypeVolume}
	if s = strings.TrimSpace(s); s == "" {
		return x, errors.New("value is empty")
	}
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return x, err
	}
	for _, f := range fields {
		if err := setMountField(&x, f); err != nil {
			return x, err
		}
	}
	return x, checkMount(&x)
}

func setMountField(x *mount.Mount, field string) error {
	key, val, has := strings.Cut(field, "=")
	if t := strings.TrimSpace(key); t != key {
		return fmt.Errorf("invalid option '%s' in '%s': option should not have whitespace", t, field)
	}
	if has {
		switch t := strings.TrimSpace(val); {
		case t == "":
			return fmt.Errorf("invalid value for '%s': value is empty", key)
		case t != val:
			return fmt.Errorf("invalid value for '%s' in '%s': value should not have whitespace", key, field)
		}
	}
	key = strings.ToLower(key)
	if flag := mountSwitch(x, key); flag != nil {
		on, err := parseSwitch(key, val, has)
		*flag = on
		return err
	}
	switch {
	case key == "bind-nonrecursive":
		return errors.New("bind-nonrecursive is deprecated, use bind-recursive=disabled instead")
	case !has:
		return fmt.Errorf("invalid field '%s' must be a key=value pair", field)
	}
	return setMountValue(x, key, val, field)
}

// mountSwitch is the boolean that key stands for, if it is one.
func mountSwitch(x *mount.Mount, key string) *bool {
	switch key {
	case "readonly", "ro":
		return &x.ReadOnly
	case "volume-nocopy":
		return &ensure(&x.VolumeOptions).NoCopy
	case "bind-create-src":
		return &ensure(&x.BindOptions).CreateMountpoint
	}
	return nil
}

func parseSwitch(key, val string, has bool) (bool, error) {
	switch {
	case !has, val == "1", val == "true":
		return true, nil
	case val == "0", val == "false":
		return false, nil
	}
	return false, fmt.Errorf(`invalid value for '%s': invalid boolean value (%q): must be one of "true", "1", "false", or "0" (default "true")`, key, val)
}

func setMountValue(x *mount.Mount, key, val, field string) error {
	switch key {
	case "type":
		x.Type = mount.Type(strings.ToLower(val))
	case "source", "src":
		x.Source = val
		if strings.HasPrefix(val, ".") {
			if abs, err := filepath.Abs(val); err == nil {
				x.Source = abs
			}
		}
	case "target", "dst", "destination":
		x.Target = val
	case "consistency":
		x.Consistency = mount.Consistency(strings.ToLower(val))
	case "bind-propagation":
		ensure(&x.BindOptions).Propagation = mount.Propagation(strings.ToLower(val))
	case "bind-recursive":
		return setRecursive(ensure(&x.BindOptions), key, val)
	case "volume-subpath":
		ensure(&x.VolumeOptions).Subpath = val
	case "volume-label":
		o := ensure(&x.VolumeOptions)
		o.Labels = withPair(o.Labels, val)
	case "volume-driver":
		ensure(&ensure(&x.VolumeOptions).DriverConfig).Name = val
	case "volume-opt":
		d := ensure(&ensure(&x.VolumeOptions).DriverConfig)
		d.Options = withPair(d.Options, val)
	case "image-subpath":
		ensure(&x.ImageOptions).Subpath = val
	case "tmpfs-size":
		n, err := units.RAMInBytes(val)
		if err != nil {
			return fmt.Errorf("invalid value for %s: %s", key, val)
		}
		ensure(&x.TmpfsOptions).SizeBytes = n
	case "tmpfs-mode":
		n, err := strconv.ParseUint(val, 8, 32)
		if err != nil {
			return fmt.Errorf("invalid value for %s: %s", key, val)
		}
		ensure(&x.TmpfsOptions).Mode = os.FileMode(n)
	default:
		return fmt.Errorf("unknown option '%s' in '%s'", key, field)
	}
	return nil
}

func setRecursive(o *mount.BindOptions, key, val string) error {
	switch val {
	case "enabled":
	case "disabled":
		o.NonRecursive = true
	case "writable":
		o.ReadOnlyNonRecursive = true
	case "readonly":
		o.ReadOnlyForceRecursive = true
	default:
		return fmt.Errorf(`invalid value for %s: %s (must be "enabled", "disabled", "writable", or "readonly")`, key, val)
	}
	return nil
}

// checkMount refuses options of another type than the mount's.
func checkMount(x *mount.Mount) error {
	var of string
	switch {
	case x.Type == "":
		return errors.New("type is required")
	case x.Type != mount.TypeBind && x.BindOptions != nil:
		of = "bind"
	case x.Type != mount.TypeVolume && x.VolumeOptions != nil:
		of = "volume"
	case x.Type != mount.TypeImage && x.ImageOptions != nil:
		of = "image"
	case x.Type != mount.TypeTmpfs && x.TmpfsOptions != nil:
		of = "tmpfs"
	}
	if of != "" {
		return fmt.Errorf("cannot mix '%s-*' options with mount type '%s'", of, x.Type)
	}
	if b := x.BindOptions; b != nil {
		switch {
		case b.ReadOnlyNonRecursive && !x.ReadOnly:
			return errors.New("option 'bind-recursive=writable' requires 'readonly' to be specified in conjunction")
		case b.ReadOnlyForceRecursive && !x.ReadOnly:
			return errors.New("option 'bind-recursive=readonly' requires 'readonly' to be specified in conjunction")
		case b.ReadOnlyForceRecursive && b.Propagation != mount.PropagationRPrivate:
			return errors.New("option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' to be specified in conjunction")
		}
	}
	return nil
}

// ensure makes *p when it is nil.
func ensure[T any](p **T) *T {
	if *p == nil {
		*p = new(T)
	}
	return *p
}

func withPair(m map[string]string, pair string) map[string]string {
	k, v, _ := strings.Cut(pair, "=")
	if k == "" {
		return m
	}
	if m == nil {
		m = map[string]string{}
	}
	m[k] = v
	return m
}
