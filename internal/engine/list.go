package engine

import (
	"cmp"
	"context"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/opencontainers/go-digest"

	ctr "keg/internal/container"
	"keg/internal/fault"
)

// ListOptions are those of docker ps.
type ListOptions struct {
	All    bool
	Last   int
	Size   bool
	Filter Filter
}

// one is a container with its state, both to be read only.
type one struct {
	*ctr.Record
	st *ctr.State
}

// all reads every container, newest first. Those that go meanwhile are left out.
func (e *Engine) all(ctx context.Context) ([]one, error) {
	ids, err := e.containers.List()
	if err != nil {
		return nil, err
	}
	e.kept.forget(ids)
	list, err := readAll(ids, func(id string) (one, error) { return e.one(ctx, id) })
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(list, func(a, b one) int { return b.Created.Compare(a.Created) })
	return list, nil
}

// one reads one container; fault.NotFound when it was removed meanwhile.
func (e *Engine) one(ctx context.Context, id string) (one, error) {
	r, err := e.readRecord(id)
	if err != nil {
		return one{}, err
	}
	st, err := e.now(ctx, id)
	if err != nil {
		return one{}, err
	}
	return one{r, st}, nil
}

// Containers lists as the Engine API does (newest first).
func (e *Engine) Containers(ctx context.Context, o ListOptions) ([]container.Summary, error) {
	if err := o.Filter.only("id", "name", "label", "label!", "status", "exited", "ancestor", "before", "since",
		"volume", "network", "publish", "expose", "health", "is-task", "isolation", "annotation"); err != nil {
		return nil, err
	}
	list, err := e.all(ctx)
	if err != nil {
		return nil, err
	}
	pick, err := e.containerPicker(ctx, o, list)
	if err != nil {
		return nil, err
	}
	names, linked := e.imageNamer(ctx), e.linkNames(list)
	sums := []container.Summary{}
	for _, c := range list {
		if !pick(c) {
			continue
		}
		sum := summary(c, time.Now())
		sum.Image, sum.Names = names(c.Record), append(sum.Names, linked[c.ID]...)
		if o.Size {
			if sum.SizeRw, sum.SizeRootFs, err = e.containerSize(c.Record); err != nil {
				return nil, err
			}
		}
		sums = append(sums, sum)
		if o.Last > 0 && len(sums) == o.Last {
			break
		}
	}
	return sums, nil
}

// linkNames are the names that legacy links give to their targets: /from/alias.
func (e *Engine) linkNames(list []one) map[string][]string {
	names := map[string][]string{}
	for _, c := range list {
		for _, l := range c.Host.Links {
			_, alias, ok := strings.Cut(l, ":")
			if !ok {
				alias = linkTarget(l)
			}
			if r, err := e.containers.Find(linkTarget(l)); err == nil {
				names[r.ID] = append(names[r.ID], "/"+c.Name+"/"+path.Base(alias))
			}
		}
	}
	for _, ns := range names {
		slices.Sort(ns)
	}
	return names
}

// summary is one row of docker ps.
func summary(c one, now time.Time) container.Summary {
	s := container.Summary{
		ID: c.ID, Names: []string{"/" + c.Name}, Image: c.Config.Image, ImageID: string(c.ImageID),
		Command: commandText(c.Path, c.Args), Created: c.Created.Unix(),
		Ports: portSummaries(c.Config.ExposedPorts, c.st.Ports), Labels: c.Config.Labels,
		State: c.st.Status, Status: statusText(c.st, now), Mounts: c.Mounts,
		NetworkSettings: &container.NetworkSettingsSummary{Networks: endpointsNow(c)},
		Health:          &container.HealthSummary{Status: container.NoHealthcheck},
	}
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	if h := c.st.Health; h != nil {
		s.Health = &container.HealthSummary{Status: h.Status, FailingStreak: h.FailingStreak}
	}
	s.HostConfig.NetworkMode = string(c.Host.NetworkMode)
	s.HostConfig.Annotations = c.Host.Annotations
	return s
}

// endpointsNow are the networks with their addresses while the container runs, else as asked for.
func endpointsNow(c one) map[string]*network.EndpointSettings {
	if isLive(c.st.Status) && len(c.st.Networks) > 0 {
		return c.st.Networks
	}
	return c.Networks
}

// portSummaries are published ports and, without a host port, those only exposed.
func portSummaries(exposed network.PortSet, published network.PortMap) []container.PortSummary {
	ps := []container.PortSummary{}
	for p, bs := range published {
		for _, b := range bs {
			n, _ := strconv.ParseUint(b.HostPort, 10, 16)
			ps = append(ps, container.PortSummary{IP: b.HostIP, PrivatePort: p.Num(), PublicPort: uint16(n), Type: string(p.Proto())})
		}
	}
	for p := range exposed {
		if len(published[p]) == 0 {
			ps = append(ps, container.PortSummary{PrivatePort: p.Num(), Type: string(p.Proto())})
		}
	}
	slices.SortFunc(ps, func(a, b container.PortSummary) int {
		return cmp.Or(cmp.Compare(a.PrivatePort, b.PrivatePort), cmp.Compare(a.Type, b.Type),
			cmp.Compare(a.PublicPort, b.PublicPort), a.IP.Compare(b.IP))
	})
	return ps
}

// imageNamer tells what docker ps prints for an image: the name that the user gave, or
// the id once that name points at another image.
func (e *Engine) imageNamer(ctx context.Context) func(*ctr.Record) string {
	known := map[string]digest.Digest{}
	return func(r *ctr.Record) string {
		name := r.Config.Image
		id, ok := known[name]
		if !ok {
			if f, err := e.lookup(ctx, name); err == nil {
				id = f.ID
			}
			known[name] = id
		}
		if id != r.ImageID && r.ImageID != "" {
			return string(r.ImageID)
		}
		return name
	}
}

// Outdated is a container whose image's name has been given to another image since.
type Outdated struct {
	Container, Image string // names
	Was, Now         digest.Digest
}

// Outdated finds those among containers that Containers has listed. A name that is gone is none.
func (e *Engine) Outdated(ctx context.Context, list []container.Summary) (old []Outdated) {
	for _, c := range list {
		if c.Image != c.ImageID {
			continue // the name still leads to its image
		}
		r, err := e.containers.Get(c.ID)
		if err != nil {
			continue
		}
		f, err := e.lookup(ctx, r.Config.Image)
		if err != nil || f.ID == r.ImageID {
			continue
		}
		old = append(old, Outdated{r.Name, r.Config.Image, r.ImageID, f.ID})
	}
	return old
}

// containerSize is the size of what the container wrote, and of that with its image.
func (e *Engine) containerSize(r *ctr.Record) (rw, root int64, err error) {
	if rw, err = e.snapshots.Usage(r.ID); err != nil {
		return 0, 0, err
	}
	root = rw
	for i := range r.Stack {
		_, files, err := e.snapshots.LayerSize(r.Stack[:i+1])
		if err != nil {
			return 0, 0, err
		}
		root += files
	}
	return rw, root, nil
}

// containerPicker turns the options into one question about a container.
func (e *Engine) containerPicker(ctx context.Context, o ListOptions, list []one) (func(one) bool, error) {
	f := o.Filter
	for _, s := range f["status"] {
		if err := container.ValidateContainerState(container.ContainerState(s)); err != nil {
			return nil, fault.Invalidf("invalid filter 'status=%s': %w", s, err)
		}
	}
	for _, h := range f["health"] {
		if err := container.ValidateHealthStatus(container.HealthStatus(h)); err != nil {
			return nil, fault.Invalidf("invalid filter 'health=%s': %w", h, err)
		}
	}
	for _, code := range f["exited"] {
		if _, err := strconv.Atoi(code); err != nil {
			return nil, fault.Invalidf("invalid filter 'exited=%s': want a number", code)
		}
	}
	task, taskSet, err := f.boolean("is-task")
	if err != nil {
		return nil, err
	}
	between, err := betweenContainers(f, list)
	if err != nil {
		return nil, err
	}
	ancestors, err := e.ancestors(ctx, f["ancestor"])
	if err != nil {
		return nil, err
	}
	publish, err := portRanges("publish", f["publish"])
	if err != nil {
		return nil, err
	}
	expose, err := portRanges("expose", f["expose"])
	if err != nil {
		return nil, err
	}
	shown := o.All || o.Last > 0 || len(f["status"]) > 0
	return func(c one) bool {
		return (shown || isLive(c.st.Status)) &&
			!(taskSet && task) &&
			f.prefix("id", c.ID) &&
			f.matches("name", c.Name, "/"+c.Name) &&
			f.labels(c.Config.Labels) && f.all("annotation", c.Host.Annotations) &&
			f.exact("status", string(c.st.Status)) &&
			f.exact("health", string(healthStatus(c.st))) &&
			exitedWith(f["exited"], c.st) &&
			between(c) &&
			(len(f["ancestor"]) == 0 || slices.ContainsFunc(ancestors, func(a ancestor) bool { return a.of(c.Record) })) &&
			(len(f["volume"]) == 0 || slices.ContainsFunc(c.Mounts, func(m container.MountPoint) bool {
				return slices.Contains(f["volume"], m.Name) && m.Name != "" || slices.Contains(f["volume"], m.Destination) || slices.Contains(f["volume"], m.Source)
			})) &&
			onNetwork(f["network"], c) &&
			(len(publish) == 0 || anyPort(publish, c.st.Ports)) &&
			(len(expose) == 0 || anyPort(expose, c.Config.ExposedPorts))
	}, nil
}

func healthStatus(st *ctr.State) container.HealthStatus {
	if st.Health == nil || st.Health.Status == "" {
		return container.NoHealthcheck
	}
	return st.Health.Status
}

func exitedWith(codes []string, st *ctr.State) bool {
	if len(codes) == 0 {
		return true
	}
	return !isLive(st.Status) && !st.Started.IsZero() && slices.Contains(codes, strconv.Itoa(st.ExitCode))
}

// betweenContainers is "before" and "since": created earlier or later than another one.
func betweenContainers(f Filter, list []one) (func(one) bool, error) {
	find := func(key string) (time.Time, error) {
		vs := f[key]
		if len(vs) == 0 {
			return time.Time{}, nil
		}
		i := slices.IndexFunc(list, func(c one) bool {
			return c.Name == strings.TrimPrefix(vs[0], "/") || strings.HasPrefix(c.ID, vs[0])
		})
		if i < 0 {
			return time.Time{}, fault.NotFoundf("No such container: %s", vs[0])
		}
		return list[i].Created, nil
	}
	before, err := find("before")
	if err != nil {
		return nil, err
	}
	since, err := find("since")
	if err != nil {
		return nil, err
	}
	return func(c one) bool {
		return (before.IsZero() || c.Created.Before(before)) && (since.IsZero() || c.Created.After(since))
	}, nil
}

// ancestor is an image that a container may come from.
type ancestor struct {
	id    digest.Digest
	stack []digest.Digest
}

// of reports whether the container's image is this one or was built on it.
func (a ancestor) of(r *ctr.Record) bool {
	return r.ImageID == a.id || len(a.stack) > 0 && len(r.Stack) > len(a.stack) && slices.Equal(r.Stack[:len(a.stack)], a.stack)
}

func (e *Engine) ancestors(ctx context.Context, refs []string) ([]ancestor, error) {
	var as []ancestor
	for _, ref := range refs {
		f, err := e.lookup(ctx, ref)
		if fault.Is(err, fault.NotFound) {
			continue // nothing comes from it
		}
		if err != nil {
			return nil, err
		}
		as = append(as, ancestor{f.ID, f.Stack})
	}
	return as, nil
}

func onNetwork(want []string, c one) bool {
	if len(want) == 0 {
		return true
	}
	for name, s := range endpointsNow(c) {
		if slices.Contains(want, name) || s != nil && s.NetworkID != "" &&
			slices.ContainsFunc(want, func(w string) bool { return w != "" && strings.HasPrefix(s.NetworkID, w) }) {
			return true
		}
	}
	return false
}

func portRanges(key string, values []string) ([]network.PortRange, error) {
	var rs []network.PortRange
	for _, v := range values {
		r, err := network.ParsePortRange(v)
		if err != nil {
			return nil, fault.Invalidf("invalid filter '%s=%s': %w", key, v, err)
		}
		rs = append(rs, r)
	}
	return rs, nil
}

func anyPort[V any](rs []network.PortRange, ports map[network.Port]V) bool {
	for p := range ports {
		for _, r := range rs {
			if p.Proto() == r.Proto() && p.Num() >= r.Start() && p.Num() <= r.End() {
				return true
			}
		}
	}
	return false
}
