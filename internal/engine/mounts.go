package engine

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/opencontainers/go-digest"

	ctr "keg/internal/container"
	"keg/internal/fault"
	vol "keg/internal/volume"
)

// wanted is one mount before its volume exists or its source was checked.
type wanted struct {
	container.MountPoint
	make   bool // make a missing source directory (-v, not --mount)
	labels map[string]string
	driver map[string]string
	stack  []digest.Digest // of an image
	sub    string          // the part of a volume or image that is mounted
}

// mounts makes the volumes and checks the binds of a container: those of --volumes-from,
// then -v, then --mount, then the anonymous ones that config.Volumes still lacks.
func (e *Engine) mounts(ctx context.Context, r *ctr.Record, u *undo) (_ []container.MountPoint, err error) {
	var all []wanted
	for _, from := range r.Host.VolumesFrom {
		ws, err := e.volumesFrom(from)
		if err != nil {
			return nil, err
		}
		all = append(all, ws...)
	}
	for _, b := range r.Host.Binds {
		w, err := parseBind(b)
		if err != nil {
			return nil, err
		}
		if w.Type == mount.TypeVolume {
			w.Driver = r.Host.VolumeDriver
		}
		all = replace(all, w)
	}
	for _, m := range r.Host.Mounts {
		w, err := parseMount(m)
		if err != nil {
			return nil, err
		}
		all = replace(all, w)
	}
	for _, dest := range slices.Sorted(maps.Keys(r.Config.Volumes)) {
		w := wanted{MountPoint: container.MountPoint{Type: mount.TypeVolume, Destination: path.Clean(dest), RW: true, Driver: r.Host.VolumeDriver}}
		if _, tmpfs := r.Host.Tmpfs[dest]; tmpfs || has(all, w.Destination) {
			continue
		}
		all = append(all, w)
	}
	mps := []container.MountPoint{}
	for _, w := range all {
		if w.Type == mount.TypeImage && w.stack == nil {
			if w, err = e.imageMount(ctx, w); err != nil {
				return nil, err
			}
		}
		if w.stack != nil {
			if r.ImageMounts == nil {
				r.ImageMounts = map[string][]digest.Digest{}
			}
			r.ImageMounts[w.Destination] = w.stack
		}
		if w.sub != "" {
			if r.Subpaths == nil {
				r.Subpaths = map[string]string{}
			}
			r.Subpaths[w.Destination] = w.sub
		}
		mp, err := e.realise(ctx, w, u)
		if err != nil {
			return nil, err
		}
		mps = append(mps, mp)
	}
	slices.SortFunc(mps, func(a, b container.MountPoint) int { return cmp.Compare(a.Destination, b.Destination) })
	return mps, nil
}

func has(all []wanted, dest string) bool {
	return slices.ContainsFunc(all, func(w wanted) bool { return w.Destination == dest })
}

func replace(all []wanted, w wanted) []wanted {
	all = slices.DeleteFunc(all, func(o wanted) bool { return o.Destination == w.Destination })
	return append(all, w)
}

// realise makes the volume or checks the source of one mount.
func (e *Engine) realise(ctx context.Context, w wanted, u *undo) (container.MountPoint, error) {
	mp := w.MountPoint
	if err := checkDestination(mp); err != nil {
		return mp, err
	}
	switch mp.Type {
	case mount.TypeTmpfs, mount.TypeImage:
		return mp, nil
	case mount.TypeBind:
		return mp, bindSource(mp.Source, w.make)
	}
	_, err := e.volumes.Get(mp.Name)
	isNew := mp.Name == "" || fault.Is(err, fault.NotFound)
	v, err := e.volumes.Create(ctx, vol.CreateOptions{Name: mp.Name, Driver: mp.Driver, Labels: w.labels, Options: w.driver})
	if err != nil {
		return mp, err
	}
	if isNew {
		u.add(func() { _ = e.volumes.Remove(context.WithoutCancel(ctx), v.Name) })
		e.volumeEvent("create", v.Name, v.Driver)
	}
	mp.Name, mp.Source, mp.Driver = v.Name, v.Mountpoint, v.Driver
	return mp, nil
}

// checkDestination keeps mounts off the places that confine the container: a volume on
// /proc would hide the masks below it (CVE-2015-3631, CVE-2019-16884).
func checkDestination(mp container.MountPoint) error {
	dest := mp.Destination
	if !path.IsAbs(dest) {
		return fault.Invalidf("invalid mount config for type %q: invalid mount path: '%s' mount path must be absolute", mp.Type, dest)
	}
	clean := path.Clean(dest)
	if clean == "/" {
		return fault.Invalidf("invalid volume specification: '%s': invalid mount config for type %q: invalid specification: destination can't be '/'", mp.Source+":"+dest, mp.Type)
	}
	under := func(dir string) bool { return clean == dir || strings.HasPrefix(clean, dir+"/") }
	if under("/proc") || under("/sys") && mp.Type != mount.TypeBind {
		return fault.Invalidf("cannot mount a %s on %s: what confines the container is mounted there", mp.Type, clean)
	}
	return nil
}

func bindSource(src string, create bool) error {
	_, err := os.Stat(src)
	if err == nil {
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fault.Invalidf("invalid mount config for type \"bind\": stat %s: %w", src, err)
	}
	if !create {
		return fault.Invalidf("invalid mount config for type \"bind\": bind source path does not exist: %s", src)
	}
	if err := os.MkdirAll(src, 0o755); err != nil {
		return fault.Invalidf("error while creating mount source path '%s': %w", src, err)
	}
	return nil
}

// parseBind reads -v: [source:]destination[:mode], where a source that is a path is a
// bind and one that is a name is a volume.
func parseBind(spec string) (wanted, error) {
	bad := func(why string) (wanted, error) {
		return wanted{}, fault.Invalidf("invalid volume specification: '%s'%s", spec, why)
	}
	parts := strings.Split(spec, ":")
	w := wanted{MountPoint: container.MountPoint{RW: true}, make: true}
	mode := ""
	switch len(parts) {
	case 1:
		w.Destination = parts[0]
	case 2:
		w.Source, w.Destination = parts[0], parts[1]
		if !path.IsAbs(w.Destination) && validMode(w.Destination) && path.IsAbs(w.Source) {
			w.Source, w.Destination, mode = "", parts[0], parts[1]
		}
	case 3:
		w.Source, w.Destination, mode = parts[0], parts[1], parts[2]
	default:
		return bad("")
	}
	if w.Destination == "" || len(parts) > 1 && w.Source == "" && mode == "" {
		return bad("")
	}
	if !validMode(mode) {
		return wanted{}, fault.Invalidf("invalid mode: %s", mode)
	}
	if !path.IsAbs(w.Destination) {
		return bad(`: invalid mount config for type "` + string(bindType(w.Source)) + `": invalid mount path: '` + w.Destination + `' mount path must be absolute`)
	}
	w.Destination = path.Clean(w.Destination)
	w.Type = bindType(w.Source)
	if w.Type == mount.TypeVolume {
		w.Name, w.Source = w.Source, ""
		w.Mode = orElse(mode, "z")
		if w.Name != "" && !validVolumeName(w.Name) {
			return wanted{}, fault.Invalidf("%q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", w.Name)
		}
	} else {
		w.Source = filepath.Clean(w.Source)
		w.Mode, w.Propagation = mode, mount.PropagationRPrivate
	}
	for _, m := range strings.Split(mode, ",") {
		switch {
		case m == "ro":
			w.RW = false
		case slices.Contains(mount.Propagations, mount.Propagation(m)):
			w.Propagation = mount.Propagation(m)
		}
	}
	return w, nil
}

func bindType(source string) mount.Type {
	if path.IsAbs(source) {
		return mount.TypeBind
	}
	return mount.TypeVolume
}

func validMode(mode string) bool {
	if mode == "" {
		return true
	}
	for _, m := range strings.Split(mode, ",") {
		if !slices.Contains([]string{"ro", "rw", "z", "Z", "nocopy", "consistent", "cached", "delegated"}, m) &&
			!slices.Contains(mount.Propagations, mount.Propagation(m)) {
			return false
		}
	}
	return true
}

// validVolumeName is Docker's [a-zA-Z0-9][a-zA-Z0-9_.-]+.
func validVolumeName(s string) bool {
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '_' && c != '.' && c != '-') {
			return false
		}
	}
	return len(s) > 1
}

// parseMount reads one --mount.
func parseMount(m mount.Mount) (wanted, error) {
	w := wanted{MountPoint: container.MountPoint{Type: m.Type, Destination: path.Clean(m.Target), RW: !m.ReadOnly}}
	if m.Target == "" {
		return w, fault.Invalidf("invalid mount config for type %q: field Target must not be empty", m.Type)
	}
	if !path.IsAbs(m.Target) {
		return w, fault.Invalidf("invalid mount config for type %q: invalid mount path: '%s' mount path must be absolute", m.Type, m.Target)
	}
	switch m.Type {
	case mount.TypeBind:
		if m.Source == "" {
			return w, fault.Invalidf("invalid mount config for type \"bind\": field Source must not be empty")
		}
		if !path.IsAbs(m.Source) {
			return w, fault.Invalidf("invalid mount config for type \"bind\": invalid mount path: '%s' mount path must be absolute", m.Source)
		}
		w.Source, w.Propagation = filepath.Clean(m.Source), mount.PropagationRPrivate
		if b := m.BindOptions; b != nil {
			w.Propagation = orElse(b.Propagation, w.Propagation)
			w.make = b.CreateMountpoint
		}
	case mount.TypeVolume:
		w.Name, w.Mode = m.Source, "z"
		if m.Source != "" && !validVolumeName(m.Source) {
			return w, fault.Invalidf("invalid mount config for type \"volume\": %q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed", m.Source)
		}
		if v := m.VolumeOptions; v != nil {
			w.labels = v.Labels
			w.sub = v.Subpath
			if v.DriverConfig != nil {
				w.Driver, w.driver = v.DriverConfig.Name, v.DriverConfig.Options
			}
		}
	case mount.TypeTmpfs:
		if m.Source != "" {
			return w, fault.Invalidf("invalid mount config for type \"tmpfs\": field Source must not be specified")
		}
	case mount.TypeImage:
		if m.Source == "" {
			return w, fault.Invalidf("invalid mount config for type \"image\": field Source must not be empty")
		}
		w.Source, w.RW = m.Source, false
		if m.ImageOptions != nil {
			w.sub = m.ImageOptions.Subpath
		}
	default:
		return w, fault.Unsupportedf("invalid mount config for type %q: keg mounts bind, volume, tmpfs and image", m.Type)
	}
	return w, checkSubpath(m, w.sub)
}

// checkSubpath: links in the volume are dealt with when it is opened; a path that leaves it
// by itself is a mistake to tell at once.
func checkSubpath(m mount.Mount, sub string) error {
	switch {
	case sub == "":
		return nil
	case m.Source == "":
		return fault.Invalidf("invalid mount config for type %q: must specify %s name when using subpath", m.Type, m.Type)
	case !filepath.IsLocal(sub):
		return fault.Invalidf("invalid mount config for type %q: subpath must be a relative path within the volume", m.Type) // Docker says volume of images, too
	}
	return nil
}

// imageMount finds the layers of an image that is to be mounted; it must be here.
func (e *Engine) imageMount(ctx context.Context, w wanted) (wanted, error) {
	f, err := e.lookup(ctx, w.Source)
	if err != nil {
		return w, err
	}
	w.stack = f.Stack
	return w, nil
}

// volumesFrom takes the mounts of another container: container[:ro|rw].
func (e *Engine) volumesFrom(spec string) ([]wanted, error) {
	name, mode, _ := strings.Cut(spec, ":")
	if !validMode(mode) {
		return nil, fault.Invalidf("invalid mode: %s", mode)
	}
	r, err := e.containers.Find(name)
	if err != nil {
		return nil, fault.As(fault.Invalid, err)
	}
	var ws []wanted
	for _, mp := range r.Mounts {
		mp.RW = mp.RW && mode != "ro"
		ws = append(ws, wanted{MountPoint: mp, stack: r.ImageMounts[mp.Destination], sub: r.Subpaths[mp.Destination]})
	}
	return ws, nil
}
