// -v, --tmpfs and --device.

package cli

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"github.com/moby/moby/api/types/container"
)

// splitVolumes tells the specs of -v that name a source (Binds) from the anonymous
// volumes (Config.Volumes). A relative source is resolved against the working
// directory, as Docker does for ./x and ../x.
func splitVolumes(specs []string) (binds []string, anonymous map[string]struct{}, err error) {
	anonymous = map[string]struct{}{}
	seen := map[string]bool{}
	for _, s := range specs {
		if seen[s] {
			continue
		}
		seen[s] = true
		source, rest, err := parseVolume(s)
		if err != nil {
			return nil, nil, err
		}
		switch {
		case source == "":
			anonymous[s] = struct{}{}
		case strings.HasPrefix(source, "."):
			abs, err := filepath.Abs(source)
			if err != nil {
				return nil, nil, err
			}
			binds = append(binds, abs+":"+rest)
		default:
			binds = append(binds, s)
		}
	}
	return binds, anonymous, nil
}

// parseVolume cuts source:target[:options]. Options are the engine's to judge.
func parseVolume(s string) (source, rest string, err error) {
	switch {
	case s == "":
		return "", "", errors.New("invalid empty volume spec")
	case len(s) <= 2:
		return "", s, nil
	}
	parts := strings.Split(s, ":")
	for _, p := range parts {
		if p == "" {
			return "", "", fmt.Errorf("invalid spec: %s: empty section between colons", s)
		}
	}
	switch len(parts) {
	case 1:
		return "", s, nil
	case 2, 3:
		return parts[0], strings.Join(parts[1:], ":"), nil
	}
	return "", "", fmt.Errorf("invalid spec: %s: too many colons", s)
}

func parseTmpfs(specs []string) map[string]string {
	m := make(map[string]string, len(specs))
	for _, s := range specs {
		k, v, _ := strings.Cut(s, ":")
		m[k] = v
	}
	return m
}

// parseDevice reads host[:container][:access].
func parseDevice(s string) (container.DeviceMapping, error) {
	d := container.DeviceMapping{CgroupPermissions: "rwm"}
	parts := strings.Split(s, ":")
	if len(parts) > 3 || parts[0] == "" {
		return d, fmt.Errorf("bad format for path: %s", s)
	}
	d.PathOnHost = parts[0]
	d.PathInContainer = parts[0]
	switch {
	case len(parts) == 3:
		d.PathInContainer, d.CgroupPermissions = parts[1], parts[2]
		if !deviceAccess(parts[2]) {
			return d, fmt.Errorf("bad mode specified: %s", parts[2])
		}
	case len(parts) == 2 && deviceAccess(parts[1]):
		d.CgroupPermissions = parts[1]
	case len(parts) == 2:
		d.PathInContainer = parts[1]
	}
	if !path.IsAbs(d.PathInContainer) {
		return d, fmt.Errorf("%s is not an absolute path", d.PathInContainer)
	}
	if len(parts) < 3 {
		d.PathInContainer = path.Clean(d.PathInContainer)
	}
	if len(parts) == 1 || len(parts) == 2 && deviceAccess(parts[1]) {
		d.PathOnHost = path.Clean(d.PathOnHost)
	}
	return d, nil
}

// deviceAccess: letters of r, w and m, each at most once.
func deviceAccess(s string) bool {
	if s == "" || len(s) > 3 || strings.Trim(s, "rwm") != "" {
		return false
	}
	for i := range len(s) {
		if strings.IndexByte(s[i+1:], s[i]) >= 0 {
			return false
		}
	}
	return true
}

// cdiName: vendor.com/class=device names a device of the Container Device Interface.
func cdiName(s string) bool {
	kind, name, ok := strings.Cut(s, "=")
	vendor, class, slash := strings.Cut(kind, "/")
	return ok && slash && vendor != "" && class != "" && name != "" && !strings.Contains(class, "/") && vendor[0] != '/'
}
