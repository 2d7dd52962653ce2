// What registries.conf(5) says: where a name really is, mirrors that may have it, who may be
// spoken to without TLS, who not at all.

package registry

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"keg/internal/fault"
)

type registriesConf struct {
	Registry   []registryConf `toml:"registry"`
	Registries struct {       // version 1 of the format
		Insecure struct {
			Registries []string `toml:"registries"`
		} `toml:"insecure"`
		Block struct {
			Registries []string `toml:"registries"`
		} `toml:"block"`
	} `toml:"registries"`
}

type registryConf struct {
	Prefix             string       `toml:"prefix"`
	Location           string       `toml:"location"`
	Insecure           bool         `toml:"insecure"`
	Blocked            bool         `toml:"blocked"`
	MirrorByDigestOnly bool         `toml:"mirror-by-digest-only"`
	Mirrors            []mirrorConf `toml:"mirror"`
	file               string
}

type mirrorConf struct {
	Location       string `toml:"location"`
	Insecure       bool   `toml:"insecure"`
	PullFromMirror string `toml:"pull-from-mirror"` // all, digest-only, tag-only
}

type mirrorTable struct{ registries []registryConf }

// location is a place by its words.
type location struct {
	host, repo string
	insecure   bool
}

// readMirrors reads the user's file, else the system's, and the drop-ins beside both.
func readMirrors(c Config) (*mirrorTable, error) {
	system := filepath.Join(c.SystemDir, "containers", "registries.conf")
	files := []string{system}
	var user string
	if home := c.Env["HOME"]; home != "" {
		user = filepath.Join(home, ".config", "containers", "registries.conf")
		if _, err := os.Stat(user); err == nil {
			files = []string{user}
		}
	}
	if f := c.Env["CONTAINERS_REGISTRIES_CONF"]; f != "" {
		files = []string{f}
	} else {
		files = append(files, dropIns(system)...)
		if user != "" {
			files = append(files, dropIns(user)...)
		}
	}
	t := &mirrorTable{}
	for _, f := range files {
		if err := t.read(f); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func dropIns(file string) []string {
	found, _ := filepath.Glob(file + ".d/*.conf") // sorted
	return found
}

func (t *mirrorTable) read(file string) error {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read registries: %w", err)
	}
	var conf registriesConf
	if err := toml.Unmarshal(b, &conf); err != nil {
		return fault.Invalidf("%s: %w", file, err)
	}
	for _, r := range conf.Registry {
		r.Prefix = cmp.Or(r.Prefix, r.Location)
		if r.Prefix == "" {
			return fault.Invalidf("%s: a [[registry]] has neither prefix nor location", file)
		}
		r.file = file
		t.add(r)
	}
	for _, h := range conf.Registries.Insecure.Registries {
		t.add(registryConf{Prefix: h, Location: h, Insecure: true, file: file})
	}
	for _, h := range conf.Registries.Block.Registries {
		t.add(registryConf{Prefix: h, Location: h, Blocked: true, file: file})
	}
	return nil
}

// add: a later file's entry for a prefix replaces an earlier one's.
func (t *mirrorTable) add(r registryConf) {
	t.registries = slices.DeleteFunc(t.registries, func(o registryConf) bool { return o.Prefix == r.Prefix && o.file != r.file })
	t.registries = append(t.registries, r)
}

// matched returns how long a prefix of name r is; 0 when it is none. "*.example.com"
// matches hosts below example.com.
func (r registryConf) matched(name string) int {
	if suffix, ok := strings.CutPrefix(r.Prefix, "*."); ok {
		host, _, _ := strings.Cut(name, "/")
		if strings.HasSuffix(host, "."+suffix) {
			return len(host)
		}
		return 0
	}
	rest, ok := strings.CutPrefix(name, r.Prefix)
	if !ok || rest != "" && rest[0] != '/' {
		return 0
	}
	return len(r.Prefix)
}

// locate lists where the repository name ("docker.io/library/nginx") is: mirrors, then itself.
func (t *mirrorTable) locate(name string, pinned bool) ([]location, error) {
	var best registryConf
	longest := 0
	for _, r := range t.registries {
		if n := r.matched(name); n > longest {
			best, longest = r, n
		}
	}
	if longest == 0 {
		return []location{at(name, false)}, nil
	}
	if best.Blocked {
		return nil, fault.Deniedf("registry %s is blocked in %s", best.Prefix, best.file)
	}
	var locs []location
	for _, m := range best.Mirrors {
		mode := cmp.Or(m.PullFromMirror, "all")
		if best.MirrorByDigestOnly {
			mode = "digest-only"
		}
		if mode == "all" || (mode == "digest-only") == pinned {
			locs = append(locs, at(m.Location+name[longest:], m.Insecure))
		}
	}
	self := name
	if best.Location != "" {
		self = best.Location + name[longest:]
	}
	return append(locs, at(self, best.Insecure)), nil
}

func at(name string, insecure bool) location {
	host, repo, _ := strings.Cut(name, "/")
	return location{host, repo, insecure}
}
