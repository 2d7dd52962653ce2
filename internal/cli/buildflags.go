// Flags of keg build that bound its steps, and those whose meaning keg does not have.

package cli

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"

	"keg/internal/builder"
)

// limits are the words of --resource, which are also hidden flags of their own, as docker build had them.
func limitFields(l *builder.Limits) map[string]any {
	return map[string]any{"memory": &l.Memory, "memory-swap": &l.MemorySwap, "cpu-shares": &l.CPUShares, "cpu-period": &l.CPUPeriod,
		"cpu-quota": &l.CPUQuota, "cpuset-cpus": &l.CpusetCpus, "cpuset-mems": &l.CpusetMems}
}

func (o *buildFlags) bindLimits(fs *pflag.FlagSet) {
	fs.StringVar(&o.limits.CgroupParent, "cgroup-parent", "", "Set the parent cgroup for the RUN instructions during build")
	fs.Var(&limitValue{&o.limits, ""}, "resource", `Resource limits for RUN instructions (format: "memory=2g", "cpu-quota=50000")`)
	short := map[string]string{"memory": "m", "cpu-shares": "c"}
	for name := range limitFields(&o.limits) {
		fs.VarP(&limitValue{&o.limits, name}, name, short[name], "")
		fs.Lookup(name).Hidden = true
	}
}

// limitValue is KEY=VALUE, or the value of one key.
type limitValue struct {
	l   *builder.Limits
	key string
}

func (v *limitValue) Type() string   { return "string" }
func (v *limitValue) String() string { return "" }

func (v *limitValue) Set(s string) (err error) {
	key := v.key
	if key == "" {
		var ok bool
		if key, s, ok = strings.Cut(s, "="); !ok {
			return fmt.Errorf("invalid resource %q, expected key=value", key)
		}
	}
	key, s = strings.TrimSpace(key), strings.TrimSpace(s)
	switch p := limitFields(v.l)[key].(type) {
	case *string:
		*p = s
	case *int64:
		switch {
		case key == "memory-swap" && s == "-1":
			*p = -1
		case strings.HasPrefix(key, "memory"):
			*p, err = units.RAMInBytes(s)
		default:
			*p, err = strconv.ParseInt(s, 10, 64)
		}
		if err != nil {
			return fmt.Errorf("invalid value %q for resource %s", s, key)
		}
	default:
		return fmt.Errorf("unknown resource %q: want memory, memory-swap, cpu-shares, cpu-period, cpu-quota, cpuset-cpus or cpuset-mems", key)
	}
	return nil
}

// refuse takes flags that keg must not pass over in silence, to say why it cannot do them.
func (o *buildFlags) refuse(fs *pflag.FlagSet) {
	o.refused = map[string]string{}
	for name, why := range map[string]string{
		"policy":                "keg evaluates no build policies; check the Dockerfile with --check=error",
		"isolation":             "containers of Linux have one kind of isolation",
		"security-opt":          "a step that needs more rights says so itself: RUN --security=insecure, with --allow security.insecure",
		"squash":                "copy from a last stage instead: FROM scratch and COPY --from",
		"stream":                "the context is read in place",
		"disable-content-trust": "keg verifies no signatures of Docker Content Trust, so it cannot be turned on",
	} {
		fs.Var(&refusedValue{o, name, why}, name, "")
		f := fs.Lookup(name)
		f.Hidden = true
		if name == "squash" || name == "stream" || name == "disable-content-trust" {
			f.NoOptDefVal = "true"
		}
	}
}

type refusedValue struct {
	o         *buildFlags
	name, why string
}

func (v *refusedValue) Type() string   { return "string" }
func (v *refusedValue) String() string { return "" }

// Set lets pass what asks for nothing.
func (v *refusedValue) Set(s string) error {
	switch v.name {
	case "disable-content-trust":
		if s != "false" {
			return nil
		}
	case "isolation":
		if s == "" || s == "default" {
			return nil
		}
	default:
		if s == "false" {
			return nil
		}
	}
	v.o.refused[v.name] = v.why
	return nil
}

// refusal is the error of the flags that cannot be done.
func (o *buildFlags) refusal() error {
	for _, name := range sortedKeys(o.refused) {
		return fmt.Errorf("--%s is not supported: %s", name, o.refused[name])
	}
	return nil
}
