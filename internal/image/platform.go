package image

import (
	"runtime"
	"strings"

	"keg/internal/fault"
)

// Host returns the platform of this machine, as images name it.
func Host() Platform {
	p := Platform{OS: "linux", Architecture: runtime.GOARCH}
	if p.Architecture == "arm64" {
		p.Variant = "v8"
	}
	return p
}

// ParsePlatform reads os[/arch[/variant]] or a bare arch, with the usual aliases
// (x86_64, aarch64). A missing part is taken from the host.
func ParsePlatform(s string) (Platform, error) {
	parts := strings.Split(strings.ToLower(s), "/")
	if s == "" || len(parts) > 3 {
		return Platform{}, fault.Invalidf("invalid platform %q: want os/arch[/variant], such as linux/amd64", s)
	}
	for i, part := range parts {
		if part == "" || strings.Trim(part, "abcdefghijklmnopqrstuvwxyz0123456789_-.") != "" {
			return Platform{}, fault.Invalidf("invalid platform %q: %q is an invalid %s component; want os/arch[/variant], such as linux/amd64",
				s, part, [...]string{"OS", "architecture", "variant"}[i])
		}
	}
	p := Host()
	switch len(parts) {
	case 1:
		if arch, variant, known := normalArch(parts[0], ""); known {
			p.Architecture, p.Variant = arch, variant
		} else if os := normalOS(parts[0]); strings.Contains(otherSystems, " "+os+" ") {
			p.OS = os
		} else if parts[0] != "linux" {
			return Platform{}, fault.Invalidf("invalid platform %q: unknown operating system or architecture", s)
		}
		return p, nil
	case 3:
		p.Variant = parts[2]
	default:
		p.Variant = ""
	}
	p.OS = normalOS(parts[0])
	p.Architecture, p.Variant, _ = normalArch(parts[1], p.Variant)
	return p, nil
}

// otherSystems are those that Go knows beside linux.
const otherSystems = " aix android darwin dragonfly freebsd illumos ios js netbsd openbsd plan9 solaris wasip1 windows zos "

func normalOS(os string) string {
	if os == "macos" {
		return "darwin"
	}
	return os
}

func normalArch(arch, variant string) (string, string, bool) {
	switch arch {
	case "x86_64", "x86-64", "amd64":
		if variant == "v1" {
			variant = ""
		}
		return "amd64", variant, true
	case "aarch64", "arm64":
		if variant == "" || variant == "8" {
			variant = "v8"
		}
		return "arm64", variant, true
	case "armhf":
		return "arm", "v7", true
	case "armel":
		return "arm", "v6", true
	case "arm":
		if variant == "" {
			variant = "v7"
		}
		return "arm", variant, true
	case "i386", "i686":
		return "386", "", true
	case "386", "riscv64", "ppc64le", "s390x", "loong64", "mips64le", "mips64":
		return arch, variant, true
	}
	return arch, variant, false
}

// FormatPlatform is the inverse of ParsePlatform: os/arch[/variant], without arm64's
// only variant.
func FormatPlatform(p Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" && !(p.Architecture == "arm64" && p.Variant == "v8") {
		s += "/" + p.Variant
	}
	return s
}

// Matches reports whether an image of platform have runs where want is asked for.
func Matches(want, have Platform) bool {
	wa, wv, _ := normalArch(want.Architecture, want.Variant)
	ha, hv, _ := normalArch(have.Architecture, have.Variant)
	return want.OS == have.OS && wa == ha && (wv == hv || wv == "" || (wa == "amd64" && hv == ""))
}

// Select picks the entry of an index for the platform: an exact match first, else
// the first that matches. Attestation entries (platform unknown/unknown) never match.
func Select(x *Index, want Platform) (Descriptor, error) {
	var have []string
	var found *Descriptor
	for i, d := range x.Manifests {
		if d.Platform == nil {
			continue
		}
		if Matches(want, *d.Platform) {
			if d.Platform.Variant == want.Variant {
				return d, nil
			}
			if found == nil {
				found = &x.Manifests[i]
			}
		}
		if d.Platform.OS != "unknown" {
			have = append(have, FormatPlatform(*d.Platform))
		}
	}
	if found != nil {
		return *found, nil
	}
	if len(x.Manifests) == 1 && x.Manifests[0].Platform == nil {
		return x.Manifests[0], nil
	}
	return Descriptor{}, fault.NotFoundf("no matching manifest for %s in the manifest list entries; it has %s",
		FormatPlatform(want), strings.Join(have, ", "))
}
