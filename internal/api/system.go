package api

// The engine as a whole: ping, version, info, disk usage, events, auth.

import (
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types"
	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	dregistry "github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	"keg/internal/engine"
	"keg/internal/event"
	"keg/internal/fault"
	"keg/internal/linux"
	"keg/internal/registry"
)

func (s *Server) ping(w *reply, r *request) error {
	h := w.Header()
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Builder-Version", string(builderVersion))
	h.Set("Swarm", "inactive")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if r.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		w.WriteHeader(http.StatusOK)
		return nil
	}
	_, _ = w.Write([]byte("OK"))
	return nil
}

func options(_ *Server, w *reply, _ *request) error {
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) systemVersion(w *reply, _ *request) error {
	v := system.VersionResponse{
		Platform: system.PlatformInfo{Name: "keg"}, Version: s.o.Version, APIVersion: MaxVersion, MinAPIVersion: MinVersion,
		Os: "linux", Arch: runtime.GOARCH, GitCommit: s.o.Commit, GoVersion: runtime.Version(), KernelVersion: linux.Kernel(),
	}
	v.Components = []system.ComponentVersion{{Name: "Engine", Version: v.Version, Details: map[string]string{
		"ApiVersion": v.APIVersion, "MinAPIVersion": v.MinAPIVersion, "Os": v.Os, "Arch": v.Arch, "GitCommit": v.GitCommit,
		"GoVersion": v.GoVersion, "KernelVersion": v.KernelVersion, "Experimental": "false"}}}
	return w.json(http.StatusOK, v)
}

func (s *Server) systemInfo(w *reply, r *request) error {
	i, err := s.engine.Info(r.Context())
	if err != nil {
		return err
	}
	has := map[string]bool{}
	for _, f := range i.Features {
		has[f.Name] = f.OK
	}
	fds, _ := os.ReadDir("/proc/self/fd")
	res := system.Info{
		ID: i.ID, Containers: i.Containers, ContainersRunning: i.Running, ContainersPaused: i.Paused, ContainersStopped: i.Stopped,
		Images: i.Images, Driver: i.Storage, DriverStatus: [][2]string{{"Backing Filesystem", i.BackingFS}},
		Plugins:     system.PluginsInfo{Volume: []string{"local"}, Network: []string{"bridge", "host", "null"}, Log: []string{"json-file", "local"}},
		MemoryLimit: has["cgroup memory"], SwapLimit: has["cgroup memory"], CPUCfsPeriod: has["cgroup cpu"], CPUCfsQuota: has["cgroup cpu"],
		CPUShares: has["cgroup cpu"], CPUSet: has["cgroup cpuset"], PidsLimit: has["cgroup pids"], OomKillDisable: i.CgroupVersion == "1",
		IPv4Forwarding: forwarding(), NFd: len(fds), NGoroutines: runtime.NumGoroutine(),
		SystemTime: time.Now().Format(time.RFC3339Nano), LoggingDriver: "json-file", CgroupDriver: i.CgroupDriver, CgroupVersion: i.CgroupVersion,
		KernelVersion: i.KernelVersion, OperatingSystem: i.OperatingSystem, OSType: i.OSType, Architecture: i.Architecture,
		IndexServerAddress: "https://index.docker.io/v1/",
		RegistryConfig: &dregistry.ServiceConfig{Mirrors: []string{}, IndexConfigs: map[string]*dregistry.IndexInfo{
			"docker.io": {Name: "docker.io", Mirrors: []string{}, Secure: true, Official: true}}},
		NCPU: i.NCPU, MemTotal: i.MemTotal, DockerRootDir: i.Root, Name: i.Name, Labels: []string{}, ServerVersion: s.o.Version,
		HTTPProxy: s.env("HTTP_PROXY"), HTTPSProxy: s.env("HTTPS_PROXY"), NoProxy: s.env("NO_PROXY"),
		Runtimes: map[string]system.RuntimeWithStatus{"keg": {Runtime: system.Runtime{Path: "keg"}}}, DefaultRuntime: "keg",
		Swarm:              swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive, RemoteManagers: []swarm.Peer{}},
		LiveRestoreEnabled: true, InitBinary: "keg-init", SecurityOptions: i.SecurityOptions, CDISpecDirs: []string{}, Warnings: i.Warnings,
	}
	if r.version < 50 {
		return w.json(http.StatusOK, oldInfo{Info: res})
	}
	return w.json(http.StatusOK, res)
}

// oldInfo is info with the fields that went with version 1.50; in newer engines they are always false.
type oldInfo struct {
	system.Info
	BridgeNfIptables  bool
	BridgeNfIP6tables bool `json:"BridgeNfIp6tables"`
}

// env is a proxy variable in either case, without the password that it may carry.
func (s *Server) env(key string) string {
	v := s.o.Env[key]
	if v == "" {
		v = s.o.Env[strings.ToLower(key)]
	}
	if scheme, rest, ok := strings.Cut(v, "://"); ok {
		if at := strings.LastIndex(rest, "@"); at >= 0 {
			return scheme + "://xxxxx:xxxxx@" + rest[at+1:]
		}
	}
	return v
}

func forwarding() bool {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	return err == nil && strings.TrimSpace(string(b)) == "1"
}

// usageTypes are those that system/df can be asked for.
var usageTypes = []string{"image", "container", "volume", "build-cache"}

func (s *Server) systemDF(w *reply, r *request) error {
	asked := r.query["type"]
	if len(asked) == 0 || r.version < 42 {
		asked = usageTypes
	}
	for _, t := range asked {
		if !slices.Contains(usageTypes, t) {
			return fault.Invalidf("unknown object type: %s", t)
		}
	}
	d, err := s.engine.DiskDetail(r.Context())
	if err != nil {
		return err
	}
	us, err := s.engine.DiskUsage(r.Context())
	if err != nil {
		return err
	}
	sums := map[string]engine.Usage{}
	for i, u := range us { // in the order of usageTypes
		sums[usageTypes[i]] = u
	}
	verbose := r.flag("verbose")
	old, now := &diskUsage{}, &system.DiskUsage{}
	for _, t := range asked {
		u := sums[t]
		switch t {
		case "image":
			old.LayersSize, old.Images = u.Size, summaries(d.Images, r.version)
			now.ImageUsage = &image.DiskUsage{ActiveCount: int64(u.Active), TotalCount: int64(u.Total), TotalSize: u.Size, Reclaimable: u.Reclaimable}
			if verbose {
				now.ImageUsage.Items = d.Images
			}
		case "container":
			old.Containers = some(containerRows(d.Containers, r.version))
			now.ContainerUsage = &container.DiskUsage{ActiveCount: int64(u.Active), TotalCount: int64(u.Total), TotalSize: u.Size, Reclaimable: u.Reclaimable}
			if verbose {
				now.ContainerUsage.Items = d.Containers
			}
		case "volume":
			old.Volumes = some(d.Volumes)
			now.VolumeUsage = &volume.DiskUsage{ActiveCount: int64(u.Active), TotalCount: int64(u.Total), TotalSize: u.Size, Reclaimable: u.Reclaimable}
			if verbose {
				now.VolumeUsage.Items = d.Volumes
			}
		case "build-cache":
			old.BuildCache = cacheRecords(d.BuildCache)
			now.BuildCacheUsage = &build.DiskUsage{ActiveCount: int64(u.Active), TotalCount: int64(u.Total), TotalSize: u.Size, Reclaimable: u.Reclaimable}
			if verbose {
				now.BuildCacheUsage.Items = old.BuildCache
			}
		}
	}
	switch {
	case r.version < 52:
		return w.json(http.StatusOK, old)
	case verbose:
		return w.json(http.StatusOK, now)
	}
	return w.json(http.StatusOK, bothUsages{old, now})
}

func cacheRecords(list []engine.CacheUse) []build.CacheRecord {
	out := []build.CacheRecord{}
	for _, c := range list {
		out = append(out, build.CacheRecord{ID: c.ID, Type: c.Type, Description: c.Text, InUse: c.InUse,
			Shared: c.Shared, Size: c.Size, CreatedAt: c.Created, LastUsedAt: &c.Used, UsageCount: c.Uses})
	}
	return out
}

// eventStream is the content type of the events and what goes before each of them.
func eventStream(r *request) (contentType, before string) {
	for accept := range strings.SplitSeq(r.Header.Get("Accept"), ",") {
		switch t, _, _ := mime.ParseMediaType(accept); types.MediaType(t) {
		case types.MediaTypeJSONSequence:
			return t, "\x1e" // RFC 7464
		case types.MediaTypeJSONLines, types.MediaTypeNDJSON:
			return t, ""
		}
	}
	if r.version < 52 {
		return string(types.MediaTypeJSON), ""
	}
	return string(types.MediaTypeJSONLines), ""
}

func (s *Server) systemEvents(w *reply, r *request) error {
	since, err := r.moment("since")
	if err != nil {
		return err
	}
	until, err := r.moment("until")
	if err != nil {
		return err
	}
	f, err := r.filters()
	if err != nil {
		return err
	}
	now := time.Now()
	if since.IsZero() {
		since = now
	}
	if !until.IsZero() && until.Before(since) {
		return fault.Invalidf("`since` time (%d.%09d) cannot be after `until` time (%d.%09d)",
			since.Unix(), since.Nanosecond(), until.Unix(), until.Nanosecond())
	}
	// A filter that is wrong is told before the stream begins.
	if err := s.engine.Events(r.Context(), now, now, false, f, func(event.Message) error { return nil }); err != nil {
		return err
	}
	contentType, before := eventStream(r)
	w.Header().Set("Content-Type", contentType)
	w.flush()
	enc := json.NewEncoder(w)
	err = s.engine.Events(r.Context(), since, until, until.IsZero() || until.After(now), f, func(m event.Message) error {
		if r.version < 46 && m.Type == events.ImageEventType && m.Action == events.ActionCreate {
			return nil // came with 1.46
		}
		if _, err := io.WriteString(w, before); err != nil {
			return err
		}
		var shaped any = m
		if r.version < 52 {
			shaped = legacy(m)
		}
		if err := enc.Encode(shaped); err != nil {
			return err
		}
		w.flush()
		return nil
	})
	if r.Context().Err() != nil {
		return nil
	}
	return err
}

func (s *Server) auth(w *reply, r *request) error {
	var q dregistry.AuthConfig
	if err := r.body(w, &q, false); err != nil {
		return err
	}
	cr := registry.Credentials{Username: q.Username, Password: q.Password, IdentityToken: q.IdentityToken}
	got, err := s.engine.CheckLogin(r.Context(), q.ServerAddress, cr)
	if err != nil {
		return err
	}
	res := dregistry.AuthResponse{Status: "Login Succeeded"}
	if got.IdentityToken != cr.IdentityToken {
		res.IdentityToken = got.IdentityToken
	}
	return w.json(http.StatusOK, res)
}

func (s *Server) buildPrune(w *reply, r *request) error {
	f, err := r.filters()
	if err != nil {
		return err
	}
	o := engine.PruneOptions{BuildCache: true, All: r.flag("all"), Filter: onlyKeys(f, "until", "label", "label!")}
	for key, p := range map[string]*int64{"keep-storage": &o.Reserved, "reserved-space": &o.Reserved, "max-used-space": &o.MaxUsed, "min-free-space": &o.MinFree} {
		if n, given, err := r.number(key); err != nil {
			return err
		} else if given {
			*p = n
		}
	}
	p, err := s.engine.Prune(r.Context(), o)
	return w.ok(build.CachePruneReport{CachesDeleted: some(p.BuildCache), SpaceReclaimed: uint64(p.Reclaimed)}, err)
}

// onlyKeys leaves out filters that narrow what is never there.
func onlyKeys(f engine.Filter, keys ...string) engine.Filter {
	out := engine.Filter{}
	for _, k := range keys {
		if v := f[k]; v != nil {
			out[k] = v
		}
	}
	return out
}

func notSwarm(*Server, *reply, *request) error {
	return fault.Unavailablef(`This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`)
}

func notPartOfSwarm(*Server, *reply, *request) error {
	return fault.Unavailablef("This node is not part of a swarm")
}

func notPlugin(_ *Server, _ *reply, r *request) error {
	return fault.NotFoundf("plugin %q not found", r.name())
}

func noPlugins(_ *Server, w *reply, _ *request) error {
	return w.json(http.StatusOK, []struct{}{})
}

func noPluginInstall(*Server, *reply, *request) error {
	return fault.Unsupportedf("plugins are not supported; volumes, networks and logs have the drivers that info lists")
}

func noSwarm(*Server, *reply, *request) error {
	return fault.Unsupportedf("swarm mode is not supported; this engine runs containers on one host")
}
