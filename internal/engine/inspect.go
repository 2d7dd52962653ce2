package engine

import (
	"context"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/storage"

	ctr "keg/internal/container"
	"keg/internal/image"
)

// Inspect returns Docker's inspect record; size adds SizeRw and SizeRootFs.
func (e *Engine) Inspect(ctx context.Context, ref string, size bool) (container.InspectResponse, error) {
	r, st, err := e.view(ctx, ref)
	if err != nil {
		return container.InspectResponse{}, err
	}
	c := one{r, st}
	dir := filepath.Join(e.opt.Run, r.ID) // made by the monitor, gone with it
	res := container.InspectResponse{
		ID: r.ID, Created: r.Created.Format(time.RFC3339Nano), Path: r.Path, Args: r.Args,
		State: inspectState(st), Image: string(r.ImageID), Name: "/" + r.Name, RestartCount: st.RestartCount,
		Driver: "overlay", Platform: orElse(r.Platform, "linux"), HostConfig: e.inspectHost(r), Mounts: r.Mounts, Config: r.Config,
		ResolvConfPath: filepath.Join(dir, "resolv.conf"), HostnamePath: filepath.Join(dir, "hostname"), HostsPath: filepath.Join(dir, "hosts"),
		NetworkSettings: &container.NetworkSettings{SandboxKey: st.SandboxKey, Ports: st.Ports, Networks: endpointsNow(c)},
		GraphDriver:     &storage.DriverData{Name: "overlay", Data: map[string]string{"UpperDir": e.snapshots.Upper(r.ID)}},
	}
	if r.Host.LogConfig.Type != "none" {
		res.LogPath = e.containers.LogPath(r.ID)
	}
	if r.Args == nil {
		res.Args = []string{}
	}
	if r.Manifest != "" {
		if n, err := e.store.Stat(r.Manifest); err == nil {
			res.ImageManifestDescriptor = &image.Descriptor{MediaType: image.MediaManifest, Digest: r.Manifest, Size: n}
		}
	}
	if size {
		rw, root, err := e.containerSize(r)
		if err != nil {
			return res, err
		}
		res.SizeRw, res.SizeRootFs = &rw, &root
	}
	return res, nil
}

// inspectHost shows the paths that are covered when nobody said otherwise, and links as Docker does: /target:/container/alias.
func (e *Engine) inspectHost(r *ctr.Record) *container.HostConfig {
	shown := *r.Host
	shown.Links = nil
	for _, l := range r.Host.Links {
		target := strings.TrimPrefix(linkTarget(l), "/")
		if to, err := e.containers.Find(target); err == nil {
			target = to.Name
		}
		shown.Links = append(shown.Links, "/"+target+":/"+r.Name+"/"+linkAlias(l))
	}
	h := r.Host
	if h.Privileged || h.MaskedPaths != nil && h.ReadonlyPaths != nil {
		return &shown
	}
	masked, readonly := ctr.DefaultPaths()
	if h.MaskedPaths == nil {
		shown.MaskedPaths = masked
	}
	if h.ReadonlyPaths == nil {
		shown.ReadonlyPaths = readonly
	}
	return &shown
}

func inspectState(st *ctr.State) *container.State {
	return &container.State{
		Status: st.Status, Running: isLive(st.Status), Paused: st.Status == container.StatePaused,
		Restarting: st.Status == container.StateRestarting, Dead: st.Status == container.StateDead,
		OOMKilled: st.OOMKilled, Pid: livePid(st), ExitCode: st.ExitCode, Error: st.Error, Health: st.Health,
		StartedAt: st.Started.Format(time.RFC3339Nano), FinishedAt: st.Finished.Format(time.RFC3339Nano),
	}
}

func livePid(st *ctr.State) int {
	if isLive(st.Status) {
		return st.Pid
	}
	return 0
}
