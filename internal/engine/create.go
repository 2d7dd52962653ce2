package engine

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	ctr "keg/internal/container"
	"keg/internal/fault"
	"keg/internal/image"
	"keg/internal/linux"
	"keg/internal/rootless"
)

// CreateOptions is the body of docker create: what the user asked for, before the
// image's defaults are merged in.
type CreateOptions struct {
	Name     string
	Config   *container.Config
	Host     *container.HostConfig
	Networks map[string]*network.EndpointSettings
	Platform *image.Platform
	Pull     string          // "missing" (""), "always", "never"
	Progress func(PullEvent) // of the pull; an empty event first, when there is to be one
}

// Created is the answer to Create.
type Created struct {
	ID       string
	Warnings []string
}

// Create pulls the image when needed, merges its config, makes volumes and the writable
// layer, and writes the record.
func (e *Engine) Create(ctx context.Context, o CreateOptions) (_ Created, err error) {
	if o.Host != nil { // what nobody may ask for is told before an image is looked for
		if err := checkHost(o.Config, o.Host); err != nil {
			return Created{}, err
		}
	}
	img, err := e.imageFor(ctx, o)
	if err != nil {
		return Created{}, err
	}
	use, err := e.use(ctx, img.ID, img.Desc.Digest)
	if err != nil {
		return Created{}, err
	}
	defer use.end()
	r, warnings, err := e.record(o, img)
	if err != nil {
		return Created{}, err
	}
	var u undo
	defer u.onError(&err)
	if r.Mounts, err = e.mounts(ctx, r, &u); err != nil {
		return Created{}, err
	}
	if err := e.networksExist(r); err != nil {
		return Created{}, err
	}
	if err := e.prepare(ctx, r, img); err != nil {
		return Created{}, err
	}
	u.add(func() { _ = e.snapshots.Remove(r.ID) })
	if err := e.containers.Create(ctx, r); err != nil {
		return Created{}, err
	}
	e.containerEvent("create", r, nil)
	return Created{r.ID, warnings}, nil
}

// imageFor finds the image of a container to be: here, carried, or in its registry.
func (e *Engine) imageFor(ctx context.Context, o CreateOptions) (found, error) {
	name := o.Config.Image
	if o.Pull != "always" {
		f, err := e.lookup(ctx, name)
		switch {
		case err == nil && (o.Platform == nil || image.Matches(*o.Platform, f.Platform)):
			return f, nil
		case err == nil && o.Pull == "never":
			return found{}, wrongPlatform(name, *o.Platform, f.Platform)
		case err != nil && (o.Pull == "never" || !fault.Is(err, fault.NotFound)):
			return found{}, err
		}
	}
	ref, err := image.ParseReference(name)
	if err != nil {
		return found{}, err
	}
	if f, ok, err := e.carry(ctx, ref, o.Platform); ok || err != nil {
		return f, err
	}
	if o.Progress != nil {
		o.Progress(PullEvent{}) // the registry is about to be asked, whatever it will say
	}
	p, err := e.Pull(ctx, ref, PullOptions{Platform: o.Platform, Progress: o.Progress})
	if err != nil {
		return found{}, err
	}
	if words := p.Moved(); words != "" && o.Progress != nil {
		o.Progress(PullEvent{Status: words})
	}
	return e.lookup(ctx, name)
}

// record writes down the container: the user's words completed by the image's.
func (e *Engine) record(o CreateOptions, img found) (*ctr.Record, []string, error) {
	cfg, err := e.config(img.ID)
	if err != nil {
		return nil, nil, err
	}
	c, h := *o.Config, container.HostConfig{}
	if o.Host != nil {
		h = *o.Host
	}
	c.Labels, c.Volumes, c.ExposedPorts = maps.Clone(c.Labels), maps.Clone(c.Volumes), maps.Clone(c.ExposedPorts)
	c.Env = slices.Clone(c.Env)
	if err := mergeConfig(&c, cfg); err != nil {
		return nil, nil, err
	}
	if len(c.Entrypoint) == 0 && len(c.Cmd) == 0 {
		return nil, nil, fault.Invalidf("no command specified")
	}
	argv := append(slices.Clone(c.Entrypoint), c.Cmd...)
	r := &ctr.Record{
		Version: 1, ID: ctr.NewID(), Name: o.Name, Created: time.Now().UTC(),
		ImageID: img.ID, Manifest: img.Desc.Digest, Stack: img.Stack,
		Platform: "linux", Config: &c, Host: &h, Path: argv[0], Args: argv[1:],
	}
	if err := checkHost(&c, &h); err != nil {
		return nil, nil, err
	}
	keepUser(&c, &h, o.Config.User)
	normalise(&c, &h)
	if err := checkNetMode(o.Config, &h); err != nil {
		return nil, nil, err
	}
	if err := e.joinNetMode(r); err != nil {
		return nil, nil, err
	}
	if c.Hostname == "" && !h.UTSMode.IsHost() {
		c.Hostname = r.ID[:12]
	}
	r.Networks = endpoints(&h, o.Networks)
	return r, e.warnings(o, img), nil
}

// keepUser makes the caller the container's user with --userns=keep-id, unless another was asked for.
func keepUser(c *container.Config, h *container.HostConfig, asked string) {
	mode, err := ctr.ParseUserns(string(h.UsernsMode))
	if err != nil || !mode.KeepID || asked != "" {
		return
	}
	uid, _ := linux.OwnIDs("uid_map")
	gid, _ := linux.OwnIDs("gid_map")
	if mode.UID >= 0 {
		uid = uint32(mode.UID)
	}
	if mode.GID >= 0 {
		gid = uint32(mode.GID)
	}
	c.User = fmt.Sprintf("%d:%d", uid, gid)
}

// warnings are what Docker says beside a container that it did create.
func (e *Engine) warnings(o CreateOptions, img found) (out []string) {
	if o.Host != nil && limited(&o.Host.Resources) {
		out = noLimits()
	}
	host := image.Host()
	if o.Platform != nil || image.Matches(host, img.Platform) {
		return out
	}
	return append(out, fmt.Sprintf("The requested image's platform (%s) does not match the detected host platform (%s) and no specific platform was requested",
		image.FormatPlatform(img.Platform), hostPlatformText(host)))
}

// noLimits is the warning of who has no cgroup for what he asks.
func noLimits() []string {
	if w := rootless.NoLimits(); w != "" {
		return []string{w}
	}
	return nil
}

// limited tells whether a cgroup is asked to limit something.
func limited(r *container.Resources) bool {
	return r.Memory > 0 || r.MemorySwap > 0 || r.NanoCPUs > 0 || r.CPUShares > 0 || r.CPUQuota > 0 || r.CpusetCpus != "" ||
		r.CpusetMems != "" || r.BlkioWeight > 0 || r.PidsLimit != nil && *r.PidsLimit > 0 || r.OomKillDisable != nil && *r.OomKillDisable || len(r.DeviceCgroupRules) > 0
}

// hostPlatformText is the platform of the host as Docker's warning writes it, which
// names the variant that amd64 has by default.
func hostPlatformText(p image.Platform) string {
	switch p.Architecture {
	case "amd64":
		return p.OS + "/amd64/" + orElse(p.Variant, "v1")
	case "arm64":
		return p.OS + "/arm64/" + orElse(p.Variant, "v8")
	}
	return image.FormatPlatform(p)
}

// endpoints names the networks of a container: those asked for, else the one of its
// network mode.
func endpoints(h *container.HostConfig, asked map[string]*network.EndpointSettings) map[string]*network.EndpointSettings {
	if h.NetworkMode == "" || h.NetworkMode.IsDefault() {
		h.NetworkMode = network.NetworkBridge
	}
	if h.NetworkMode.IsContainer() {
		return nil
	}
	ns := map[string]*network.EndpointSettings{}
	for name, s := range asked {
		if name == network.NetworkDefault {
			name = network.NetworkBridge
		}
		ns[name] = orElse(s.Copy(), &network.EndpointSettings{})
	}
	if mode := string(h.NetworkMode); ns[mode] == nil {
		ns[mode] = &network.EndpointSettings{}
	}
	return ns
}

func (e *Engine) networksExist(r *ctr.Record) error {
	if r.Host.NetworkMode.IsContainer() {
		_, err := e.containers.Find(r.Host.NetworkMode.ConnectedContainer())
		return err
	}
	for name, s := range r.Networks {
		n, err := e.networks.Get(name)
		if fault.Is(err, fault.NotFound) {
			continue // as in Docker it may be made before the container starts; the start says what is missing
		}
		if err != nil {
			return err
		}
		s.NetworkID = n.ID
	}
	return nil
}

// prepare makes the writable layer. When a layer went between the look-up and now (an
// rmi at the same time), the image is brought again, once.
func (e *Engine) prepare(ctx context.Context, r *ctr.Record, img found) error {
	err := e.snapshots.Prepare(ctx, r.ID, r.Stack)
	if !fault.Is(err, fault.NotFound) || img.Ref.Repository == "" {
		return err
	}
	if _, ok, cerr := e.carry(ctx, img.Ref, nil); ok && cerr == nil {
		return e.snapshots.Prepare(ctx, r.ID, r.Stack)
	}
	use, uerr := e.busy(ctx, img.Desc.Digest)
	if uerr != nil {
		return err
	}
	defer use.end()
	if _, ferr := e.fetch(ctx, use, img.Ref, img.Desc, nil, serial(nil)); ferr != nil {
		return err
	}
	return e.snapshots.Prepare(ctx, r.ID, r.Stack)
}

// settleTime is how long keg waits for what an exiting container still holds.
const settleTime = 5 * time.Second

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
