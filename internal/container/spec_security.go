package container

// --security-opt: seccomp, AppArmor, SELinux, no_new_privs, and the profile of capabilities.

import (
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"

	"keg/internal/fault"
)

// Profiles of capabilities. Docker's is the default.
const (
	CapProfileDocker = "docker"
	CapProfileStrict = "strict"
)

// Security is HostConfig.SecurityOpt as understood.
type Security struct {
	NoNewPrivileges bool
	WritableCgroups bool   // the container may make cgroups below its own
	Seccomp         string // "": the default policy; "unconfined"; otherwise a profile as JSON
	AppArmor        string // "": the default profile where AppArmor is
	CapProfile      string
	// SELinux labels, "" where nobody asked for one: user:role:type:level.
	ProcessLabel, MountLabel string
}

// ParseSecurity reads the security options; an unknown one is refused, never ignored.
func ParseSecurity(h *container.HostConfig) (s Security, err error) {
	if h.Privileged {
		s.Seccomp, s.AppArmor = "unconfined", "unconfined"
	}
	var labels []string
	for _, o := range h.SecurityOpt {
		switch o {
		case "no-new-privileges":
			s.NoNewPrivileges = true
			continue
		case "writable-cgroups":
			s.WritableCgroups = true
			continue
		}
		k, v, ok := strings.Cut(o, "=")
		if !ok {
			k, v, ok = strings.Cut(o, ":") // the older form
		}
		if !ok {
			return s, badSecurity(o)
		}
		switch k {
		case "no-new-privileges":
			if v != "true" && v != "false" {
				return s, badSecurity(o)
			}
			s.NoNewPrivileges = v == "true"
		case "writable-cgroups":
			if s.WritableCgroups, err = strconv.ParseBool(v); err != nil {
				return s, badSecurity(o)
			}
		case "seccomp":
			if s.Seccomp = v; v == "builtin" {
				s.Seccomp = ""
			}
		case "apparmor":
			s.AppArmor = v
		case "cap-profile":
			if v != CapProfileDocker && v != CapProfileStrict {
				return s, fault.Invalidf("unknown capability profile %q: docker and strict are known", v)
			}
			s.CapProfile = v
		case "label":
			labels = append(labels, v)
		case "systempaths": // arrives as empty path lists
		default:
			return s, badSecurity(o)
		}
	}
	s.ProcessLabel, s.MountLabel, err = seLinux(labels)
	return s, err
}

func badSecurity(o string) error { return fault.Invalidf("invalid --security-opt: %q", o) }

// seLinux makes the two labels of label=user:U, role:R, type:T, filetype:T, level:L and disable, from the
// defaults of container-selinux. What nobody asked for stays the policy's business.
func seLinux(opts []string) (process, mount string, err error) {
	if len(opts) == 0 {
		return "", "", nil
	}
	p := [4]string{"system_u", "system_r", "container_t", "s0"}
	m := [4]string{"system_u", "object_r", "container_file_t", "s0"}
	for _, o := range opts {
		k, v, ok := strings.Cut(o, ":")
		if o == "disable" {
			return "", "", nil
		}
		// A level is two words (s0:c1,c2); elsewhere a colon would forge a field.
		if !ok || v == "" || strings.ContainsAny(v, " \t\n\x00\"") || k != "level" && strings.Contains(v, ":") {
			return "", "", badSecurity("label=" + o)
		}
		switch k {
		case "user":
			p[0], m[0] = v, v
		case "role":
			p[1] = v
		case "type":
			p[2] = v
		case "filetype":
			m[2] = v
		case "level":
			p[3], m[3] = v, v
		default:
			return "", "", badSecurity("label=" + o)
		}
	}
	return strings.Join(p[:], ":"), strings.Join(m[:], ":"), nil
}
