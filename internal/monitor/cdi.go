package monitor

// Descriptions of devices on this host (Container Device Interface).

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	cdi "tags.cncf.io/container-device-interface/specs-go"

	"keg/internal/fault"
)

// cdiDirs in the order of the interface's specification: what is found later wins.
var cdiDirs = []string{"/etc/cdi", "/var/run/cdi"}

const maxDescription = 8 << 20

// lookCDI finds what the named devices ask for: the edits of their descriptions as a whole once, then of each.
func lookCDI(dirs, names []string) (edits []cdi.ContainerEdits, err error) {
	if len(names) == 0 {
		return nil, nil
	}
	all, skipped, err := descriptions(dirs)
	if err != nil {
		return nil, err
	}
	seen := map[*cdi.Spec]bool{}
	for _, name := range names {
		kind, device, ok := strings.Cut(name, "=")
		s, d := find(all, kind, device)
		if !ok || d == nil {
			return nil, fault.NotFoundf("CDI device injection failed: unresolvable CDI devices %s: no description of it in %s%s", name, strings.Join(dirs, " or "), skipped)
		}
		if !seen[s] {
			seen[s] = true
			edits = append(edits, s.ContainerEdits)
		}
		edits = append(edits, d.ContainerEdits)
	}
	return edits, nil
}

func find(all []*cdi.Spec, kind, device string) (*cdi.Spec, *cdi.Device) {
	for i := len(all) - 1; i >= 0; i-- {
		for j := range all[i].Devices {
			if all[i].Kind == kind && all[i].Devices[j].Name == device {
				return all[i], &all[i].Devices[j]
			}
		}
	}
	return nil, nil
}

// descriptions reads those in JSON; skipped tells of others, for the error of a device that is not found.
func descriptions(dirs []string) (all []*cdi.Spec, skipped string, err error) {
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			return nil, "", err
		}
		for _, file := range files {
			switch filepath.Ext(file) {
			case ".json":
				s, err := description(file)
				if err != nil {
					return nil, "", err
				}
				all = append(all, s)
			case ".yaml", ".yml":
				skipped = fmt.Sprintf(" (%s is YAML; keg reads JSON: nvidia-ctk cdi generate --format=json --output=%s)", file,
					strings.TrimSuffix(file, filepath.Ext(file))+".json")
			}
		}
	}
	return all, skipped, nil
}

func description(file string) (*cdi.Spec, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := &cdi.Spec{}
	if err := json.NewDecoder(io.LimitReader(f, maxDescription)).Decode(s); err != nil {
		return nil, fault.Invalidf("read the description of devices %s: %v", file, err)
	}
	if !strings.Contains(s.Kind, "/") || s.Version == "" {
		return nil, fault.Invalidf("the description of devices %s has no cdiVersion or no kind such as vendor.com/class", file)
	}
	return s, nil
}
